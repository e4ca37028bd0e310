// Package nbd serves exports by the NBD protocol (doc/proto.md of the NBD
// project): fixed newstyle with structured replies or extended headers, the
// metadata contexts base:allocation and qemu:allocation-depth, and TLS.
//
// A read is answered by one chunk, holes too: it is of one moment, which a look
// for holes and a read after it would not be. Who wants no zeros on the wire
// asks for the block status, as nbdcopy and qemu-img do.
//
// A Server accepts, a handshake haggles over options until it has opened a
// Device of the Backend, a session serves its requests. What an export is,
// only the Backend knows.
package nbd

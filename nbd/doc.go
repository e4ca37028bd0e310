// Package nbd serves exports by the NBD protocol (doc/proto.md of the NBD
// project): fixed newstyle with structured replies, and the metadata contexts
// base:allocation and qemu:allocation-depth. No TLS.
//
// A Server accepts, a handshake haggles over options until it has opened a
// Device of the Backend, a session serves its requests. What an export is,
// only the Backend knows.
package nbd

package nbd

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A watch tells whether bytes wait in a socket, and receives none. Where the
// connection is not a socket it can't tell.
type watch struct {
	raw  syscall.RawConn // nil: can't tell
	poll [1]unix.PollFd
	look func(fd uintptr) // bound once: a closure a call would be an allocation
	some bool
}

func (w *watch) init(nc net.Conn) {
	if socket, ok := nc.(syscall.Conn); ok {
		w.raw, _ = socket.SyscallConn()
	}
	w.look = func(fd uintptr) {
		w.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		n, err := unix.Poll(w.poll[:], 0)
		w.some = n != 0 || err != nil
	}
}

// can tells whether the socket can be watched at all.
func (w *watch) can() bool { return w.raw != nil }

// bytesWait tells whether a read would return at once, if only with an error.
func (w *watch) bytesWait() bool {
	return w.raw.Control(w.look) != nil || w.some
}

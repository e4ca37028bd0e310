package nbd

import (
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An outlet is the sending side of a socket. A client that reads what it is sent makes
// room after a few microseconds, bit by bit, but the poller tells only when three
// quarters of a unix socket's buffer are free: who waits for that lets the client wait
// in turn. So it tries again and again before it waits, as a patience allows.
//
// One goroutine at a time uses it.
type outlet struct {
	net.Conn
	patience patience

	raw     syscall.RawConn // nil: not a socket
	attempt func(fd uintptr) bool
	rest    []byte // of what is to be sent
	err     error
}

func newOutlet(nc net.Conn) *outlet {
	o := &outlet{Conn: nc}
	o.attempt = o.try
	if socket, ok := nc.(syscall.Conn); ok {
		if raw, err := socket.SyscallConn(); err == nil {
			o.raw = raw
		}
	}
	return o
}

// Write implements io.Writer.
func (o *outlet) Write(p []byte) (int, error) {
	if o.raw == nil {
		return o.Conn.Write(p)
	}
	o.rest, o.err = p, nil
	err := o.raw.Write(o.attempt)
	n := len(p) - len(o.rest)
	o.rest = nil
	if err == nil {
		err = o.err
	}
	return n, err
}

// try sends what the socket takes; false when that was not all.
func (o *outlet) try(fd uintptr) bool {
	full := o.send(fd)
	if full && o.patience.begin() {
		for since := time.Now(); full && o.patience.again(since); {
			before := len(o.rest)
			if full = o.send(fd); len(o.rest) < before {
				since = time.Now()
			}
		}
		o.patience.end(!full)
	}
	return !full
}

// send sends what the socket takes; full if that was not all.
func (o *outlet) send(fd uintptr) (full bool) {
	for len(o.rest) > 0 && o.err == nil {
		n, err := unix.Write(int(fd), o.rest)
		switch {
		case err == unix.EAGAIN:
			return true
		case err == nil:
			o.rest = o.rest[n:]
		case err != unix.EINTR:
			o.err = os.NewSyscallError("write", err)
		}
	}
	return false
}

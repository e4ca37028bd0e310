package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errIdle: the server shuts down, and the client has been silent for shutdownGrace.
var errIdle = errors.New("nbd: idle at shutdown")

// shutdownGrace is how long a client may be silent, once the server shuts
// down, before its connection counts as idle.
const shutdownGrace = 100 * time.Millisecond

// An intake is the receiving side of a connection: as many bytes as the socket
// has, with one read, into one buffer that requests are served from in place.
// One goroutine uses it.
//
// It waits for the client with a small buffer, and asks its owner for a larger
// one when there is more to receive.
//
// A shutdown wakes it by a read deadline in the past. From then on it is
// closing, and each read may take shutdownGrace.
type intake struct {
	nc       net.Conn
	shutdown *atomic.Bool // the server's
	closing  bool         // shutdown has been noticed
	owner    owner        // nil: there is nothing but the small buffer

	small    *buffer
	large    *buffer // buf's, of a need that was larger than the buffer before
	buf      []byte
	r, w     int           // buf[r:w] is received and not yet consumed
	askBytes int           // at most so many bytes a read
	needs    int           // bytes in buf that are waited for
	moved    *atomic.Int64 // the account's
	arrived  time.Time     // when the last read returned
	patience patience

	// Of a socket, where to read can be told from to wait; raw is nil otherwise.
	raw     syscall.RawConn
	attempt func(fd uintptr) bool // try, bound once
	into    []byte                // where try reads to; nil: into buf
	n       int                   // what try read
	err     error
}

// An owner of an intake has a larger buffer for it at times.
type owner interface {
	// ready is called before a read that may find many bytes; it may call use.
	ready()
	// full is called when a read has filled the buffer; it may call use.
	full()
	// rest is called before a wait for the client; it may call shrink.
	rest()
}

func newIntake(nc net.Conn, shutdown *atomic.Bool, moved *atomic.Int64) *intake {
	in := &intake{nc: nc, shutdown: shutdown, moved: moved, small: takeBuffer(smallBytes)}
	in.buf, in.askBytes = in.small.bytes, smallBytes
	in.attempt = in.try
	if socket, ok := nc.(syscall.Conn); ok {
		if raw, err := socket.SyscallConn(); err == nil {
			in.raw = raw
		}
	}
	return in
}

// release gives the memory back, after the last use.
func (in *intake) release() {
	in.patience.sleep()
	in.small.release()
	in.large.release()
	in.small, in.large, in.buf = nil, nil, nil
}

func (in *intake) buffered() int { return in.w - in.r }

// use makes buf the buffer and moves what the old one holds there.
func (in *intake) use(buf []byte) {
	in.w = copy(buf, in.buf[in.r:in.w])
	in.r, in.buf, in.askBytes = 0, buf, len(buf)
	in.large.release()
	in.large = nil
}

// shrink goes back to the small buffer, if what is held and waited for fits.
func (in *intake) shrink() bool {
	if max(in.buffered(), in.needs) > smallBytes {
		return false
	}
	in.use(in.small.bytes)
	return true
}

// need waits until n bytes are buffered and returns them, not consumed, valid
// until the next call.
func (in *intake) need(n int) ([]byte, error) {
	if in.large != nil {
		in.shrink()
	}
	if n > len(in.buf) {
		larger := takeBuffer(n)
		in.use(larger.bytes)
		in.large = larger
	}
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	in.needs = n
	for in.buffered() < n {
		if _, err := in.receive(nil); err != nil {
			return nil, err
		}
	}
	in.needs = 0
	return in.buf[in.r : in.r+n], nil
}

// consume drops n bytes that need returned.
func (in *intake) consume(n int) { in.r += n }

// readFull fills p, first with what is buffered.
func (in *intake) readFull(p []byte) error {
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	for n < len(p) {
		k, err := in.receive(p[n:])
		if err != nil {
			return err
		}
		n += k
	}
	return nil
}

// empty drops what is buffered, and what was waited for.
func (in *intake) empty() { in.r, in.w, in.needs = 0, 0, 0 }

// discard drops the next n bytes of the stream.
func (in *intake) discard(n int64) error {
	for n > 0 {
		if in.buffered() == 0 {
			if _, err := in.need(1); err != nil {
				return err
			}
		}
		k := min(n, int64(in.buffered()))
		in.r += int(k)
		n -= k
	}
	return nil
}

// receive reads at least one byte, into p or, if that is nil, into the buffer.
func (in *intake) receive(p []byte) (int, error) {
	for {
		n, err := in.read(p)
		if n > 0 {
			in.arrived = time.Now()
			in.moved.Add(int64(n))
			if in.closing {
				_ = in.nc.SetReadDeadline(in.arrived.Add(shutdownGrace))
			}
			if p == nil {
				if in.w += n; in.w == len(in.buf) && in.owner != nil {
					in.owner.full()
				}
			}
			return n, nil
		}
		switch {
		case err == nil:
			return 0, fmt.Errorf("receive: %w", io.ErrNoProgress)
		case !errors.Is(err, os.ErrDeadlineExceeded) || !in.shutdown.Load():
			return 0, fmt.Errorf("receive: %w", err)
		case in.closing:
			return 0, errIdle
		}
		in.closing = true
		in.allowGrace()
	}
}

// read is one read of the socket. Where that can't be told from a wait, it is
// taken for one.
func (in *intake) read(p []byte) (int, error) {
	if in.raw == nil {
		if in.owner != nil {
			in.owner.rest()
		}
		if p == nil {
			p = in.room()
		}
		return in.nc.Read(p)
	}
	in.into = p
	err := in.raw.Read(in.attempt)
	in.into = nil
	if err != nil {
		return 0, err
	}
	return in.n, in.err
}

// try reads what the socket has; false when that is nothing.
func (in *intake) try(fd uintptr) bool {
	p := in.into
	if p == nil {
		if in.owner != nil {
			in.owner.ready()
		}
		p = in.room()
	}
	var waits bool
	in.n, waits, in.err = in.patience.read(fd, p)
	if waits && in.owner != nil {
		in.owner.rest()
	}
	return !waits
}

// readNow reads what a socket has; waits when that is nothing.
func readNow(fd uintptr, p []byte) (n int, waits bool, err error) {
	for {
		n, err = unix.Read(int(fd), p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return 0, true, nil
		case err != nil:
			return 0, false, os.NewSyscallError("read", err)
		case n == 0:
			return 0, false, io.EOF
		}
		return n, false, nil
	}
}

// room is where the next read into the buffer goes.
func (in *intake) room() []byte {
	if in.r+in.needs > len(in.buf) {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	room := in.buf[in.w:]
	if ask := max(in.askBytes, in.needs-in.buffered()); ask < len(room) {
		room = room[:ask]
	}
	return room
}

// allowGrace lets the client be silent for another shutdownGrace.
func (in *intake) allowGrace() {
	_ = in.nc.SetReadDeadline(time.Now().Add(shutdownGrace))
}

package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
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
// A shutdown wakes it by a read deadline in the past. From then on it is
// closing, and each read may take shutdownGrace.
type intake struct {
	nc       net.Conn
	shutdown *atomic.Bool // the server's
	closing  bool         // shutdown has been noticed

	buf      []byte
	r, w     int       // buf[r:w] is received and not yet consumed
	askBytes int       // at most so many bytes a read
	arrived  time.Time // when the last read returned
}

func (in *intake) buffered() int { return in.w - in.r }

// use makes buf the buffer and moves what the old one holds there.
func (in *intake) use(buf []byte) {
	in.w = copy(buf, in.buf[in.r:in.w])
	in.r, in.buf, in.askBytes = 0, buf, len(buf)
}

// need waits until n <= len(buf) bytes are buffered and returns them, not
// consumed, valid until the next call.
func (in *intake) need(n int) ([]byte, error) {
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	for in.buffered() < n {
		if in.r+n > len(in.buf) {
			in.w = copy(in.buf, in.buf[in.r:in.w])
			in.r = 0
		}
		room := in.buf[in.w:]
		if ask := max(in.askBytes, n-in.buffered()); ask < len(room) {
			room = room[:ask]
		}
		k, err := in.read(room)
		if err != nil {
			return nil, err
		}
		in.w += k
	}
	return in.buf[in.r : in.r+n], nil
}

// consume drops n bytes that need returned.
func (in *intake) consume(n int) { in.r += n }

// readFull fills p, first with what is buffered.
func (in *intake) readFull(p []byte) error {
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	for n < len(p) {
		k, err := in.read(p[n:])
		if err != nil {
			return err
		}
		n += k
	}
	return nil
}

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

// read is one read of the socket, of at least one byte.
func (in *intake) read(p []byte) (int, error) {
	for {
		n, err := in.nc.Read(p)
		if n > 0 {
			in.arrived = time.Now()
			if in.closing {
				_ = in.nc.SetReadDeadline(in.arrived.Add(shutdownGrace))
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

// allowGrace lets the client be silent for another shutdownGrace.
func (in *intake) allowGrace() {
	_ = in.nc.SetReadDeadline(time.Now().Add(shutdownGrace))
}

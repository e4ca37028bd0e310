package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/nbd/client"
)

// piped opens a client of d over a pipe, which has no buffer at all.
func piped(t *testing.T, d *disk) *client.Client {
	t.Helper()
	s := nbd.NewServer(d, nbd.Options{})
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	near, far := net.Pipe()
	go s.ServeConn(far)
	c, err := client.NewClient(t.Context(), near, "a disk/%")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A lane writes its own range of the disk and reads it back, again and again.
type lane struct {
	t      *testing.T
	r      client.Request
	wrote  []byte
	got    []byte
	rounds int
	ended  chan struct{}
}

func (l *lane) done(r *client.Request) bool {
	if r.Err != nil {
		l.t.Errorf("round %d: %v", l.rounds, r.Err)
		close(l.ended)
		return false
	}
	switch {
	case r.Op == client.Write:
		r.Op, r.Data = client.Read, l.got
	case r.Op == client.Read:
		if !bytes.Equal(l.got, l.wrote) {
			l.t.Errorf("round %d: other bytes at %d", l.rounds, r.Off)
		}
		r.Op = client.Flush
	case r.Op == client.Flush && l.rounds%3 == 0 && l.wrote[0] != 0:
		clear(l.wrote)
		r.Op, r.Length = client.Zero, int64(len(l.wrote))
	case r.Op == client.Zero:
		r.Op = client.Read
		l.got[0] = 1
	default:
		if l.rounds--; l.rounds == 0 {
			close(l.ended)
			return false
		}
		l.wrote[0]++
		clear(l.got)
		r.Op, r.Data, r.FUA = client.Write, l.wrote, l.rounds%2 == 0
	}
	return true
}

func TestRequestsGoAgain(t *testing.T) {
	const size = 32 << 20
	a := certtest.New(t)
	loopback := a.Client("")
	loopback.ServerName = ""
	dir, sockets := t.TempDir(), 0
	dial := func(d client.Dialer, o nbd.Options, network string) func(t *testing.T, m *disk) *client.Client {
		return func(t *testing.T, m *disk) *client.Client {
			addr := "127.0.0.1:0"
			if network == "unix" {
				sockets++
				addr = fmt.Sprintf("%s/%d", dir, sockets)
			}
			c, err := d.Dial(t.Context(), serveWith(t, m, o, network, addr))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	for name, open := range map[string]func(*testing.T, *disk) *client.Client{
		"over unix":                      dial(client.Dialer{}, nbd.Options{}, "unix"),
		"over unix with compact headers": dial(client.Dialer{Compact: true}, nbd.Options{}, "unix"),
		"over tcp":                       dial(client.Dialer{}, nbd.Options{}, "tcp"),
		"over tcp and TLS":               dial(client.Dialer{TLS: loopback}, nbd.Options{TLS: a.Server(), TLSMode: nbd.TLSRequire}, "tcp"),
		"over a pipe without a buffer":   piped,
	} {
		// More than the buffers on the way hold, in both directions at once, too.
		for _, c := range []struct{ lanes, bytes, rounds int }{{1, 4096, 50}, {32, 4096, 20}, {200, 512, 5}, {16, 20 << 10, 10}, {16, 1 << 20, 3}} {
			t.Run(fmt.Sprintf("%d of %d bytes %s", c.lanes, c.bytes, name), func(t *testing.T) {
				k := open(t, newDisk(size))
				var requests []*client.Request
				var lanes []*lane
				for i := range c.lanes {
					l := &lane{t: t, rounds: c.rounds, ended: make(chan struct{}), got: make([]byte, c.bytes), wrote: bytes.Repeat([]byte{byte(i + 1)}, c.bytes)}
					l.r = client.Request{Op: client.Write, Off: int64(i * c.bytes), Data: l.wrote, Done: l.done}
					lanes, requests = append(lanes, l), append(requests, &l.r)
				}
				if err := k.Start(requests...); err != nil {
					t.Fatal(err)
				}
				// Others who wait for their replies share the connection.
				p := make([]byte, 300<<10)
				for range 5 {
					if _, err := k.WriteAt(p, size-int64(len(p))); err != nil {
						t.Error(err)
					}
					if _, err := k.ReadAt(p, size-int64(len(p))); err != nil {
						t.Error(err)
					}
				}
				for _, l := range lanes {
					<-l.ended
				}
				if err := k.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestRequestsEndWithTheConnection(t *testing.T) {
	d := newDisk(1 << 20)
	d.hold = make(chan struct{})
	k, err := client.Dial(t.Context(), serve(t, d, "unix", t.TempDir()+"/s"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 10)
	done := func(r *client.Request) bool {
		ended <- r.Err
		return r.Op == client.Flush // not heeded
	}
	if err := k.Start(&client.Request{Op: client.Flush, Done: done}, &client.Request{Op: client.Flush, Done: done}); err != nil {
		t.Fatal(err)
	}
	_ = k.Abort()
	for range 2 {
		if err := <-ended; !errors.Is(err, client.ErrClosed) {
			t.Error(err)
		}
	}
	if err := k.Start(&client.Request{Op: client.Flush, Done: done}); !errors.Is(err, client.ErrClosed) {
		t.Error(err)
	}
	if len(ended) > 0 {
		t.Errorf("Done of a request that was not started")
	}
	close(d.hold)
}

func TestRequestsThatTheServerRefuses(t *testing.T) {
	k, err := client.Dial(t.Context(), serve(t, newDisk(1<<20), "unix", t.TempDir()+"/s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	ended := make(chan error, 1)
	done := func(r *client.Request) bool {
		ended <- r.Err
		return false
	}
	var refused *client.CommandError
	if err := k.Start(&client.Request{Off: 1 << 20, Data: make([]byte, 512), Done: done}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.As(err, &refused) {
		t.Errorf("a read beyond the end: %v", err)
	}
	if err := k.Start(&client.Request{Data: make([]byte, k.MaxBytes()+1), Done: done}); err == nil {
		t.Error("a request is started that is longer than the server takes")
	}
}

// A server that answers what it was not asked yet gets no data of a request that
// is used again.
func TestAReplyBeforeItsRequestIsNone(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	asked := make(chan struct{})
	go func() { // reads until the write's first byte is there, and no further
		defer close(asked)
		b := make([]byte, 4096)
		for {
			n, err := far.Read(b)
			if err != nil || bytes.HasPrefix(b[:n], []byte{0x25, 0x60, 0x95, 0x13}) {
				return
			}
		}
	}()
	said := make(chan struct{})
	go func() {
		defer close(said)
		_, _ = far.Write(simpleExport(1 << 20))
		<-asked
		// To the second request, which can't be sent before the first.
		_, _ = far.Write([]byte{0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2})
	}()
	k, err := client.NewClient(t.Context(), near, "x")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	done := func(r *client.Request) bool {
		ended <- r.Err
		return false
	}
	p := make([]byte, 1<<20)
	_ = k.Start(&client.Request{Op: client.Write, Data: p, Done: done}, &client.Request{Op: client.Write, Data: p, Done: done})
	for range 2 {
		if err := <-ended; !errors.Is(err, client.ErrClosed) {
			t.Error(err)
		}
	}
	<-said
}

// simpleExport is all that a server says in a handshake without structured
// replies.
func simpleExport(sizeBytes uint32) []byte {
	ack := func(option, kind byte, data string) []byte {
		b := []byte{0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, option, 0, 0, 0, kind, 0, 0, 0, byte(len(data))}
		return append(b, data...)
	}
	refused := func(option byte) []byte {
		b := ack(option, 1, "")
		b[12] = 0x80
		return b
	}
	size := string([]byte{0, 0, 0, 0, 0, 0, byte(sizeBytes >> 24), byte(sizeBytes >> 16), byte(sizeBytes >> 8), byte(sizeBytes), 0, 0x6d})
	return bytes.Join([][]byte{[]byte("NBDMAGICIHAVEOPT\x00\x03"), refused(11), refused(8), ack(7, 3, size), ack(7, 1, "")}, nil)
}

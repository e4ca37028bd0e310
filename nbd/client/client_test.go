package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/nbd/client"
)

// disk is a Device in memory whose first half is data, and whose second half
// is a hole until it is written; a Backend of itself.
type disk struct {
	mu      sync.Mutex
	data    []byte
	written bool
	hold    chan struct{} // a flush waits for it
	flushes atomic.Int64
	cached  atomic.Int64
	torn    chan bool
}

func newDisk(sizeBytes int) *disk {
	return &disk{data: make([]byte, sizeBytes), torn: make(chan bool, 10)}
}

func (d *disk) List(nbd.Client) []string { return nil }
func (d *disk) Open(name string, _ nbd.Client) (nbd.Device, nbd.Info, error) {
	if name != "a disk/%" {
		return nil, nbd.Info{}, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	return d, nbd.Info{MultiConn: true}, nil
}
func (d *disk) SizeBytes() int64 { return int64(len(d.data)) }
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}
func (d *disk) TryReadAt(p []byte, off int64) (int, error) { return d.ReadAt(p, off) }
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written = d.written || off+int64(len(p)) > d.SizeBytes()/2
	return copy(d.data[off:], p), nil
}
func (d *disk) TryWriteAt(p []byte, off int64) (int, error) { return d.WriteAt(p, off) }
func (d *disk) Trim(off, n int64) error                     { return d.WriteZeroes(off, n, false) }
func (d *disk) WriteZeroes(off, n int64, noHole bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	return nil
}
func (d *disk) Cache(_, n int64) error {
	d.cached.Add(n)
	return nil
}
func (d *disk) Flush() error {
	if d.hold != nil {
		<-d.hold
	}
	d.flushes.Add(1)
	return nil
}
func (d *disk) Extents(off, n int64, yield func(nbd.Extent) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	half := d.SizeBytes() / 2
	if off < half && !yield(nbd.Extent{Length: half - off, Depth: 1}) {
		return nil
	}
	yield(nbd.Extent{Length: d.SizeBytes() - max(off, half), Hole: !d.written, Zero: !d.written, Depth: 2})
	return nil
}
func (d *disk) Publish() error   { return nil }
func (d *disk) Served(time.Time) {}
func (d *disk) Close(torn bool)  { d.torn <- torn }

// serve serves d and returns an URI of it.
func serve(t *testing.T, d *disk, network, addr string) string {
	t.Helper()
	return serveWith(t, d, nbd.Options{}, network, addr)
}

func serveWith(t *testing.T, d *disk, o nbd.Options, network, addr string) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	s := nbd.NewServer(d, o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, nbd.ErrServerClosed) {
			t.Error(err)
		}
	})
	scheme := "nbd"
	if o.TLSMode != nbd.TLSOff {
		scheme = "nbds"
	}
	if network == "unix" {
		return scheme + "+unix:///a%20disk%2F%25?socket=" + addr
	}
	return scheme + "://" + l.Addr().String() + "/a%20disk%2F%25"
}

func TestClientAndServerAgree(t *testing.T) {
	const size = 34 << 20
	a := certtest.New(t)
	loopback := a.Client("")
	loopback.ServerName = "" // that of the URI
	secure := nbd.Options{TLS: a.Server(), TLSMode: nbd.TLSRequire}
	for _, c := range []struct {
		name, network, addr string
		server              nbd.Options
		dialer              client.Dialer
	}{
		{"over unix", "unix", t.TempDir() + "/s", nbd.Options{}, client.Dialer{}},
		{"over tcp", "tcp", "127.0.0.1:0", nbd.Options{}, client.Dialer{}},
		{"over tcp and TLS", "tcp", "127.0.0.1:0", secure, client.Dialer{TLS: loopback}},
		{"over unix with compact headers", "unix", t.TempDir() + "/s", nbd.Options{}, client.Dialer{Compact: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDisk(size)
			k, err := c.dialer.Dial(t.Context(), serveWith(t, d, c.server, c.network, c.addr))
			if err != nil {
				t.Fatal(err)
			}
			if k.Extended() == c.dialer.Compact {
				t.Errorf("extended headers: %t", k.Extended())
			}
			if k.SizeBytes() != size || k.ReadOnly() || !k.MultiConn() {
				t.Errorf("size %d, read-only %t, multi-conn %t", k.SizeBytes(), k.ReadOnly(), k.MultiConn())
			}
			extents, err := k.BlockStatus(4096, size-4096)
			if want := "[{17821696 false false 1} {17825792 true true 2}]"; err != nil || fmt.Sprint(extents) != want {
				t.Errorf("extents %v, %v; want %s", extents, err, want)
			}
			// More than goes in one request.
			image := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
			if n, err := k.WriteAt(image, 0); n != size || err != nil {
				t.Fatalf("wrote %d: %v", n, err)
			}
			got := make([]byte, size)
			if n, err := k.ReadAt(got[1:], 1); n != size-1 || err != nil || !bytes.Equal(got[1:], image[1:]) {
				t.Errorf("read %d: %v", n, err)
			}
			if n, err := k.ReadAt(got[:10], size-4); n != 4 || !errors.Is(err, io.EOF) {
				t.Errorf("read %d at the end: %v", n, err)
			}
			if n, err := k.WriteFUA([]byte("durable"), 9); n != 7 || err != nil || d.flushes.Load() != 1 {
				t.Errorf("wrote %d, flushed %d times: %v", n, d.flushes.Load(), err)
			}
			if err := errors.Join(k.Trim(0, 4096), k.WriteZeroes(8192, 4096, true), k.Flush()); err != nil || d.flushes.Load() != 2 {
				t.Errorf("flushed %d times: %v", d.flushes.Load(), err)
			}
			if err := k.Cache(1, size-1); err != nil || d.cached.Load() != size-1 {
				t.Errorf("cached %d bytes: %v", d.cached.Load(), err)
			}
			if !bytes.Equal(d.data[8192:12288], make([]byte, 4096)) || d.data[12288] == 0 {
				t.Errorf("zeroes went wrong")
			}
			var refused *client.CommandError
			if _, err := k.WriteAt(got[:2], size-1); !errors.As(err, &refused) || refused.Errno != 28 {
				t.Errorf("write beyond the end: %v", err)
			}
			if err := k.Close(); err != nil {
				t.Error(err)
			}
			for range 2 { // the metadata contexts' probe, and the session
				if <-d.torn {
					t.Errorf("Close tears")
				}
			}
			if err := k.Flush(); !errors.Is(err, client.ErrClosed) {
				t.Errorf("flush of a closed client: %v", err)
			}
		})
	}
}

func TestConcurrentCallersShareAConnection(t *testing.T) {
	d := newDisk(1 << 20)
	k, err := client.Dial(t.Context(), serve(t, d, "unix", t.TempDir()+"/s"))
	if err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for i := range 16 {
		callers.Go(func() {
			want := bytes.Repeat([]byte{byte(i + 1)}, 5000)
			got := make([]byte, len(want))
			for range 50 {
				if _, err := k.WriteAt(want, int64(i*5000)); err != nil {
					t.Error(err)
				}
				if err := k.Flush(); err != nil {
					t.Error(err)
				}
				if _, err := k.ReadAt(got, int64(i*5000)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("caller %d reads another's bytes (%v)", i, err)
				}
			}
		})
	}
	callers.Wait()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

func TestAbortTearsAndEndsCalls(t *testing.T) {
	d := newDisk(1 << 20)
	d.hold = make(chan struct{})
	k, err := client.Dial(t.Context(), serve(t, d, "unix", t.TempDir()+"/s"))
	if err != nil {
		t.Fatal(err)
	}
	flushed := make(chan error)
	go func() { flushed <- k.Flush() }()
	_ = k.Abort()
	if err := <-flushed; !errors.Is(err, client.ErrClosed) {
		t.Errorf("flush: %v", err)
	}
	close(d.hold)
	if <-d.torn || !<-d.torn { // of the probe, of the session
		t.Errorf("Abort does not tear")
	}
}

func TestDialTellsWhyItFails(t *testing.T) {
	uri := serve(t, newDisk(1<<20), "unix", t.TempDir()+"/s")
	var refused *client.RefusedError
	_, err := client.Dial(t.Context(), strings.Replace(uri, "a%20disk", "nope", 1))
	if !errors.As(err, &refused) || !refused.Unknown || !strings.Contains(err.Error(), "no such export") {
		t.Errorf("no such export: %v", err)
	}
	a, stranger := certtest.New(t), certtest.New(t)
	secure := serveWith(t, newDisk(1<<20), nbd.Options{TLS: a.Server(), TLSMode: nbd.TLSRequire}, "unix", t.TempDir()+"/s")
	if k, err := (client.Dialer{TLS: a.Client("alice")}).Dial(t.Context(), secure); err != nil {
		t.Errorf("a server of the same authority: %v", err)
	} else if err := k.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		name, uri string
		tls       *tls.Config
		want      string
	}{
		{"a server without TLS", strings.Replace(uri, "nbd+", "nbds+", 1), a.Client(""), "server refuses TLS: this server does not use TLS"},
		{"a server that wants TLS", strings.Replace(secure, "nbds+", "nbd+", 1), nil, "this server wants TLS first"},
		{"an URI that does not ask for TLS", uri, a.Client(""), "does not ask for TLS"},
		{"an URI that asks for TLS", secure, nil, "there are no certificates here"},
		{"a server of another authority", secure, stranger.Client(""), "unknown authority"},
		{"a server of another name", secure, &tls.Config{RootCAs: a.Pool(), ServerName: "elsewhere"}, "not elsewhere"},
		{"a client of another authority", secure, &tls.Config{RootCAs: a.Pool(), ServerName: "localhost", Certificates: stranger.Client("mallory").Certificates}, "unknown certificate authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := (client.Dialer{TLS: c.tls}).Dial(t.Context(), c.uri); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, not %q", err, c.want)
			}
		})
	}
	t.Run("a server that says nothing, by its context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			near, far := net.Pipe()
			defer func() { _ = far.Close() }()
			if _, err := client.NewClient(ctx, near, ""); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	})
}

func TestParseURI(t *testing.T) {
	for _, c := range []struct{ uri, want string }{
		{"nbd+unix:///vol:session?socket=/run/a b.sock", "unix /run/a b.sock vol:session"},
		{"nbd+unix:///v%40s?socket=%2Frun%2Fs", "unix /run/s v@s"},
		{"nbd+unix:///?socket=s", "unix s "},
		{"nbd://host/vol@snap", "tcp host:10809 vol@snap"},
		{"nbd://[::1]:99/vol:process:a.b", "tcp [::1]:99 vol:process:a.b"},
		{"nbd://host", "tcp host:10809 "},
		{"nbd://host//a/b", "tcp host:10809 /a/b"},
		{"nbd+unix:///v", ""},
		{"nbd:///v", ""},
		{"nbds://host/v", "tcp host:10809 v TLS"},
		{"nbds+unix:///v?socket=s", "unix s v TLS"},
		{"nbdss://host/v", ""},
		{"nbds+unix://host/v?socket=s", ""},
		{"nbd://host/v?tls=1", ""},
		{"http://host/v", ""},
	} {
		a, err := client.ParseURI(c.uri)
		got := a.Network + " " + a.Addr + " " + a.Export
		if a.TLS {
			got += " TLS"
		}
		if got != c.want && (c.want != "" || err == nil) {
			t.Errorf("%s is %q (%v), want %q", c.uri, got, err, c.want)
		}
	}
}

func FuzzRepliesOfAServer(f *testing.F) {
	ack := func(option, kind uint32, data string) []byte {
		b := binary.BigEndian.AppendUint64(nil, 0x3e889045565a9)
		for _, v := range []uint32{option, kind, uint32(len(data))} {
			b = binary.BigEndian.AppendUint32(b, v)
		}
		return append(b, data...)
	}
	hello := []byte("NBDMAGICIHAVEOPT\x00\x03")
	info := ack(7, 3, "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x6d")
	structured := bytes.Join([][]byte{hello, ack(11, 1<<31+1, ""), ack(8, 1, ""), ack(10, 4, "\x00\x00\x00\x01base:allocation"), ack(10, 1, ""), info, ack(7, 1, "")}, nil)
	simple := bytes.Join([][]byte{hello, ack(11, 1<<31+1, ""), ack(8, 1<<31+1, ""), info, ack(7, 1, "")}, nil)
	extended := bytes.Join([][]byte{hello, ack(11, 1, ""), ack(10, 4, "\x00\x00\x00\x01base:allocation"), ack(10, 1, ""), info, ack(7, 1, "")}, nil)
	f.Add(append(bytes.Clone(extended), "\x6e\x8a\x27\x8c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00data"...))
	f.Add(append(bytes.Clone(extended), "\x6e\x8a\x27\x8c\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x18\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x03"...))
	f.Add(append(bytes.Clone(simple), "\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01data"...))
	f.Add(append(bytes.Clone(structured), "\x66\x8e\x33\xef\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00data"...))
	f.Add(append(bytes.Clone(structured), "\x66\x8e\x33\xef\x00\x01\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04"...))
	f.Add(append(bytes.Clone(structured), "\x66\x8e\x33\xef\x00\x01\x80\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00\x05\x00\x02no"...))
	f.Fuzz(func(t *testing.T, say []byte) {
		near, far := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		go func() {
			_, _ = far.Write(say)
			_ = far.Close()
		}()
		k, err := client.NewClient(context.Background(), near, "x")
		if err != nil {
			return
		}
		_, _ = k.ReadAt(make([]byte, 4), 0)
		_, _ = k.BlockStatus(0, 4096)
		_ = k.Flush()
		_ = k.Abort()
	})
}

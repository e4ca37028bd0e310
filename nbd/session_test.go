package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

const testSize = 1 << 20

func TestCommandIsAnswered(t *testing.T) {
	const (
		read, write, flush = wire.CmdRead, wire.CmdWrite, wire.CmdFlush
		trim, zeroes       = wire.CmdTrim, wire.CmdZeroes
		status             = wire.CmdBlockStatus
		fua                = wire.FlagFUA
	)
	both := []string{wire.ContextAllocation, wire.ContextDepth}
	type request = wire.Request
	for _, c := range []struct {
		name    string
		request request
		// want with simple replies, and with structured ones if those differ
		// in more than the form of an error or of read data. With extended
		// headers it is as with structured ones, but for the simple replies.
		want, structured string
		readOnly         bool
		failure          error
		contexts         []string
	}{
		{name: "a read returns the data", request: request{Command: read, Offset: 4094, Length: 4}, want: `simple 0 "\x00\x00hi"`, structured: `data 4094 "\x00\x00hi"`},
		{name: "a read may not be fragmented anyway", request: request{Command: read, Flags: wire.FlagDF, Offset: 4096, Length: 2}, want: "simple 22", structured: `data 4096 "hi"`},
		{name: "a read may carry FUA", request: request{Command: read, Flags: fua, Offset: 4096, Length: 2}, want: `simple 0 "hi"`, structured: `data 4096 "hi"`},
		{name: "a read of nothing succeeds", request: request{Command: read, Offset: testSize}, want: `simple 0 ""`, structured: `none""`},
		{name: "a read beyond the end is invalid", request: request{Command: read, Offset: testSize - 1, Length: 2}, want: "simple 22"},
		{name: "a read whose end overflows is invalid", request: request{Command: read, Offset: math.MaxUint64, Length: 2}, want: "simple 22"},
		{name: "a read of more than 32 MiB is invalid", request: request{Command: read, Length: 32<<20 + 1}, want: "simple 22"},
		{name: "a read with a flag of another command is invalid", request: request{Command: read, Flags: wire.FlagNoHole, Length: 1}, want: "simple 22"},
		{name: "a read with an unknown flag is invalid", request: request{Command: read, Flags: 1 << 12, Length: 1}, want: "simple 22"},
		{name: "a read that fails is an I/O error", request: request{Command: read, Length: 1}, failure: errPlain, want: "simple 5", structured: "error 5 the disk is on fire"},

		{name: "a write succeeds", request: request{Command: write, Offset: 9, Length: 3}, want: "simple 0", structured: "simple 0"},
		{name: "a write with FUA succeeds", request: request{Command: write, Flags: fua, Offset: 9, Length: 3}, want: "simple 0", structured: "simple 0"},
		{name: "a write of nothing succeeds", request: request{Command: write, Offset: 9}, want: "simple 0", structured: "simple 0"},
		{name: "a write beyond the end has no space", request: request{Command: write, Offset: testSize - 1, Length: 2}, want: "simple 28"},
		{name: "a write of more than 32 MiB is invalid", request: request{Command: write, Length: 32<<20 + 1}, want: "simple 22"},
		{name: "a write with a flag of another command is invalid", request: request{Command: write, Flags: wire.FlagDF, Length: 3}, want: "simple 22"},
		{name: "a write to a read-only export is not permitted", request: request{Command: write, Length: 300_000}, readOnly: true, want: "simple 1"},
		{name: "a write that fails for space says so", request: request{Command: write, Length: 3}, failure: fmt.Errorf("write: %w", syscall.EDQUOT), want: "simple 28", structured: "error 28 write: disk quota exceeded"},
		{name: "an error with a value of its own keeps it", request: request{Command: write, Length: 3}, failure: errDeclared(108), want: "simple 108", structured: "error 108 declared"},
		{name: "an error with a value that NBD lacks is an I/O error", request: request{Command: write, Length: 3}, failure: errDeclared(7), want: "simple 5", structured: "error 5 declared"},
		{name: "a write that the device does not permit", request: request{Command: write, Length: 3}, failure: fs.ErrPermission, want: "simple 1", structured: "error 1 permission denied"},

		{name: "a flush succeeds", request: request{Command: flush}, want: "simple 0", structured: "simple 0"},
		{name: "a flush of a read-only export succeeds", request: request{Command: flush}, readOnly: true, want: "simple 0", structured: "simple 0"},
		{name: "a flush of a range is invalid", request: request{Command: flush, Length: 1}, want: "simple 22"},
		{name: "a flush that fails is an I/O error", request: request{Command: flush}, failure: errPlain, want: "simple 5", structured: "error 5 the disk is on fire"},

		{name: "a trim succeeds", request: request{Command: trim, Length: testSize}, want: "simple 0", structured: "simple 0"},
		{name: "a trim with FUA succeeds", request: request{Command: trim, Flags: fua, Length: 5}, want: "simple 0", structured: "simple 0"},
		{name: "a trim of nothing succeeds", request: request{Command: trim, Offset: 9}, failure: errPlain, want: "simple 0", structured: "simple 0"},
		{name: "a trim beyond the end is invalid", request: request{Command: trim, Offset: 1, Length: testSize}, want: "simple 22"},
		{name: "a trim of a read-only export is not permitted", request: request{Command: trim, Length: 1}, readOnly: true, want: "simple 1"},

		{name: "zeroes succeed", request: request{Command: zeroes, Offset: 4096, Length: 8192}, want: "simple 0", structured: "simple 0"},
		{name: "zeroes without a hole succeed", request: request{Command: zeroes, Flags: wire.FlagNoHole | fua, Length: 5}, want: "simple 0", structured: "simple 0"},
		{name: "fast zeroes succeed", request: request{Command: zeroes, Flags: wire.FlagFastZero, Length: 5}, want: "simple 0", structured: "simple 0"},
		{name: "fast zeroes without a hole can't be", request: request{Command: zeroes, Flags: wire.FlagFastZero | wire.FlagNoHole, Length: 5}, want: "simple 95"},
		{name: "zeroes beyond the end have no space", request: request{Command: zeroes, Offset: 1, Length: math.MaxUint32}, want: "simple 28"},
		{name: "zeroes on a read-only export are not permitted", request: request{Command: zeroes, Length: 1}, readOnly: true, want: "simple 1"},

		{name: "a status without a context is invalid", request: request{Command: status, Length: 1}, want: "simple 22"},
		{name: "a status merges equal neighbours", request: request{Command: status, Length: testSize}, contexts: both,
			structured: "status of 1: 4096x3 8192x0 1036288x3|status of 2: 4096x0 8192x1 1036288x0"},
		{name: "a status is of what was selected", request: request{Command: status, Length: testSize}, contexts: both[1:],
			structured: "status of 2: 4096x0 8192x1 1036288x0"},
		{name: "a status is cut to the range", request: request{Command: status, Offset: 5000, Length: 8000}, contexts: both[:1], structured: "status of 1: 7288x0 712x3"},
		{name: "a status of one extent goes to its end", request: request{Command: status, Flags: wire.FlagReqOne, Offset: 5000, Length: 20_000}, contexts: both,
			structured: "status of 1: 7288x0|status of 2: 7288x1"},
		{name: "a status of nothing is invalid", request: request{Command: status, Offset: 5}, contexts: both, structured: "error 22 invalid argument"},
		{name: "a status beyond the end is invalid", request: request{Command: status, Offset: 5, Length: testSize}, contexts: both, structured: "error 22 invalid argument"},
		{name: "a status that fails is an I/O error", request: request{Command: status, Length: 5}, contexts: both, failure: errPlain, structured: "error 5 the disk is on fire"},

		{name: "a cache succeeds", request: request{Command: wire.CmdCache, Offset: 5, Length: 9}, want: "simple 0", structured: "simple 0"},
		{name: "a cache of a read-only export succeeds", request: request{Command: wire.CmdCache, Length: testSize}, readOnly: true, want: "simple 0", structured: "simple 0"},
		{name: "a cache of nothing succeeds", request: request{Command: wire.CmdCache}, failure: errPlain, want: "simple 0", structured: "simple 0"},
		{name: "a cache beyond the end is invalid", request: request{Command: wire.CmdCache, Offset: 1, Length: testSize}, want: "simple 22"},
		{name: "a cache with a flag of another command is invalid", request: request{Command: wire.CmdCache, Flags: wire.FlagDF, Length: 1}, want: "simple 22"},
		{name: "a cache that fails is an I/O error", request: request{Command: wire.CmdCache, Length: 1}, failure: errPlain, want: "simple 5", structured: "error 5 the disk is on fire"},

		{name: "a payload length without extended headers is an unknown flag", request: request{Command: flush, Flags: wire.FlagPayloadLen}, want: "simple 22"},
		{name: "an unknown command is invalid", request: request{Command: 99}, want: "simple 22"},
	} {
		try := func(t *testing.T, form wire.Form, cold, alone bool, want string) {
			m := newMemory(testSize)
			_, _ = m.write([]byte("hi"), 4096, nil)
			_, _ = m.write([]byte("ho"), 8192, nil)
			m.info.ReadOnly = c.readOnly
			k := dial(t, m)
			k.enterForm(form, c.contexts...)
			if alone {
				for range aloneAfter + 1 {
					k.command(wire.Request{Command: read, Length: 1}, "")
				}
			}
			m.cold.Store(cold)
			m.setFailure(c.failure)
			flushed := m.flushes.Load()
			r := c.request
			r.Cookie = 0x1122334455667788
			var payload string
			if r.Command == write {
				payload = strings.Repeat("w", int(r.Length))
			}
			k.expect([]string{strings.Join(k.command(r, payload), "|")}, want)
			m.setFailure(nil)
			wrote := want == done(form) && r.Command != read
			if wrote && (r.Flags&fua != 0 || r.Command == flush) && m.flushes.Load() == flushed {
				t.Errorf("nothing was flushed")
			}
			if wrote && r.Command == write && string(m.bytes(int(r.Offset), len(payload))) != payload {
				t.Errorf("the data did not arrive")
			}
			if wrote && (r.Command == trim || r.Command == zeroes) && !bytes.Equal(m.bytes(int(r.Offset), int(r.Length)), make([]byte, r.Length)) {
				t.Errorf("the range is not zero")
			}
			// Whatever it was, the session lives on.
			k.expect(k.command(wire.Request{Command: flush, Cookie: 1}, ""), done(form))
		}
		for mode := range 12 {
			form, cold, alone := wire.Form(mode>>2), mode&1 != 0, mode&2 != 0
			want := c.want
			if form != wire.Simple {
				var e int
				if want = c.structured; want == "" {
					_, _ = fmt.Sscanf(c.want, "simple %d", &e)
					want = fmt.Sprintf("error %d %v", e, wire.Errno(e))
				}
				if want == "simple 0" {
					want = done(form)
				}
			} else if c.contexts != nil {
				continue
			}
			if r := c.request; r.Command == write && r.Length > maxPayloadBytes && mode != 0 {
				continue // it is refused before the modes matter, and takes its time
			}
			if form == wire.Extended && c.request.Flags&wire.FlagPayloadLen != 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s/form=%d,cold=%t,alone=%t", c.name, form, cold, alone), func(t *testing.T) {
				try(t, form, cold, alone, want)
			})
		}
	}
}

// done is how a reply without data looks in a form.
func done(form wire.Form) string {
	if form == wire.Extended {
		return `none""`
	}
	return "simple 0"
}

func TestNoReplyTellsWhatWasNotPublished(t *testing.T) {
	for _, c := range []struct {
		name        string
		request     wire.Request
		cold, alone bool
	}{
		{name: "of a write in place", request: wire.Request{Command: wire.CmdWrite, Length: 3}},
		{name: "of a large write in place", request: wire.Request{Command: wire.CmdWrite, Length: inPlaceBytes}},
		{name: "of a write by a worker", request: wire.Request{Command: wire.CmdWrite, Length: 3}, cold: true},
		{name: "of a write of a client that is alone", request: wire.Request{Command: wire.CmdWrite, Length: 3}, cold: true, alone: true},
		{name: "of a read in place", request: wire.Request{Command: wire.CmdRead, Length: 3}},
		{name: "of a read too large for a batch", request: wire.Request{Command: wire.CmdRead, Length: 2 * batchBytes}},
		{name: "of a read by a worker", request: wire.Request{Command: wire.CmdRead, Length: 3}, cold: true},
		{name: "of a status", request: wire.Request{Command: wire.CmdBlockStatus, Length: 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(4 * batchBytes)
			k := dial(t, m)
			k.enterForm(wire.Structured, wire.ContextAllocation)
			if c.alone {
				for range aloneAfter + 1 {
					k.command(wire.Request{Command: wire.CmdRead, Length: 1}, "")
				}
			}
			payload := ""
			if c.request.Command == wire.CmdWrite {
				payload = strings.Repeat("w", int(c.request.Length))
			}
			m.cold.Store(c.cold)
			k.command(c.request, payload)
			if m.staged.Load() {
				t.Errorf("a reply came before what it tells was published")
			}
			m.unwritable.Store(true)
			k.send(k.message(c.request, payload))
			k.expectClosed()
			for range m.opened.Load() - 1 {
				<-m.closed // of what the handshake opened
			}
			if torn := <-m.closed; !torn {
				t.Errorf("the client is taken for one that meant to go")
			}
		})
	}
}

// Nobody learns of it from this client, but another may see it.
func TestWhatAClientWroteThatReadsNoRepliesIsPublished(t *testing.T) {
	m := newMemory(testSize)
	k := dial(t, m)
	k.enter(true)
	for range m.opened.Load() - 1 {
		<-m.closed
	}
	if err := k.nc.(*net.UnixConn).CloseRead(); err != nil {
		t.Fatal(err)
	}
	write := wire.Request{Command: wire.CmdWrite, Length: 3}
	k.send(k.message(write, "abc"))
	for m.served.Load() == 0 {
		runtime.Gosched()
	}
	k.send(k.message(write, "def"))
	if err := k.nc.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-m.closed
	if got := string(m.bytes(0, 3)); got != "def" || m.staged.Load() {
		t.Errorf("it holds %q, and it is %v that some of it was not published", got, m.staged.Load())
	}
}

func TestSelectedContextsHoldForTheirExportOnly(t *testing.T) {
	k := dial(t, newMemory(testSize))
	k.form = wire.Structured
	k.expect(k.option(wire.OptStructuredReply, nil), "ACK")
	k.option(wire.OptSetMeta, metaData("disk", wire.ContextAllocation))
	k.expect(k.option(wire.OptSetMeta, metaData("nope", wire.ContextAllocation))[:1], `UNKNOWN nbd: no such export: "nope"`)
	k.option(wire.OptGo, goData("disk"))
	k.expect(k.command(wire.Request{Command: wire.CmdBlockStatus, Length: 1}, ""), "error 22 invalid argument")
}

func TestTransfersOfEverySizeKeepTheirBytes(t *testing.T) {
	const size = 33 << 20
	pattern := make([]byte, size)
	for i := range pattern {
		pattern[i] = byte(i ^ i>>8 ^ i>>16)
	}
	lengths := []int{1, 511, 4096, inPlaceBytes - 1, inPlaceBytes, receiveBytes - 1, receiveBytes, receiveBytes + 1,
		batchBytes, batchBytes + replyHeadroom - wire.DataChunkSize, batchBytes + replyHeadroom, 3 << 20, maxPayloadBytes}
	for _, cold := range []bool{false, true} {
		t.Run(fmt.Sprintf("cold=%t", cold), func(t *testing.T) {
			m := newMemory(size)
			m.cold.Store(cold)
			k := enter(t, m, true)
			for i, n := range lengths {
				off := uint64(7 * i)
				// All but the last byte of the payload, then the rest and the
				// read: what is received ends at every kind of place.
				message := append(wire.Request{Command: wire.CmdWrite, Offset: off, Length: uint64(n)}.Append(nil), pattern[i:i+n]...)
				k.send(message[:len(message)-1])
				k.send(message[len(message)-1:])
				k.expect(k.reply(wire.Request{Command: wire.CmdWrite}), "simple 0")
				k.send(wire.Request{Command: wire.CmdRead, Cookie: 3, Offset: off, Length: uint64(n)}.Append(nil))
				b := k.receive(wire.DataChunkSize + n)
				if !bytes.Equal(b[wire.DataChunkSize:], pattern[i:i+n]) {
					t.Errorf("%d bytes came back changed", n)
				}
			}
		})
	}
}

func TestRequestsInOneSegmentAreAllAnswered(t *testing.T) {
	k := enter(t, newMemory(testSize), false)
	var message []byte
	for i := range uint64(2000) {
		message = wire.Request{Command: wire.CmdWrite, Cookie: i, Offset: i * 8, Length: 8}.Append(message)
		message = fmt.Appendf(message, "%08d", i)
	}
	go func() { _, _ = k.nc.Write(message) }()
	for i := range uint64(2000) {
		k.expect(k.reply(wire.Request{Command: wire.CmdWrite, Cookie: i}), "simple 0")
	}
	k.expect(k.command(wire.Request{Command: wire.CmdRead, Offset: 1999 * 8, Length: 8}, ""), `simple 0 "00001999"`)
}

func TestWhatWaitsHoldsUpNobodyElse(t *testing.T) {
	m := newMemory(testSize)
	k := enter(t, m, false)
	release := m.setHold()
	flush := wire.Request{Command: wire.CmdFlush, Cookie: 1}
	fua := wire.Request{Command: wire.CmdWrite, Flags: wire.FlagFUA, Cookie: 2, Length: 2}
	k.send(flush.Append(nil))
	k.send(append(fua.Append(nil), "ab"...))
	for i := range uint64(100) {
		k.expect(k.command(wire.Request{Command: wire.CmdRead, Cookie: 100 + i, Length: 2}, ""), `simple 0 "ab"`)
	}
	release()
	got := map[string]bool{}
	for range 2 {
		got[string(k.receive(wire.SimpleSize))] = true
	}
	for cookie := range uint64(2) {
		if !got[string(wire.AppendSimple(nil, cookie+1, wire.OK))] {
			t.Errorf("no reply to %d", cookie+1)
		}
	}
}

func TestWorkHandedOverIsBounded(t *testing.T) {
	for _, c := range []struct {
		name    string
		request wire.Request
		most    int64 // that may be taken off the socket
	}{
		{"by bytes", wire.Request{Command: wire.CmdRead, Length: 8 << 20}, 64 << 20 / (8 << 20)},
		{"by number", wire.Request{Command: wire.CmdFlush}, handedCount},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(8 << 20)
				m.cold.Store(true)
				client, server := net.Pipe()
				var ended = make(chan struct{})
				go func() {
					defer close(ended)
					NewServer(m, Options{}).ServeConn(server)
				}()
				k := &talk{t: t, nc: client}
				k.hello(wire.ClientFixedNewstyle)
				k.enter(true)
				release := m.setHold()
				taken := make(chan int64)
				go func() {
					var n int64
					for n <= 2*c.most {
						if err := client.SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
							break
						}
						if _, err := client.Write(c.request.Append(nil)); err != nil {
							break
						}
						n++
					}
					taken <- n
				}()
				// One more is taken off the socket, and waits for room.
				if n := <-taken; n > c.most+1 {
					t.Errorf("%d requests were taken, more than %d", n, c.most+1)
				}
				if n := m.running.Load(); n > workerCount {
					t.Errorf("%d calls at once", n)
				}
				release()
				_ = client.Close()
				<-ended
				if torn := <-m.closed; !torn {
					t.Errorf("not torn")
				}
			})
		})
	}
}

func TestEndOfSession(t *testing.T) {
	disc := wire.Request{Command: wire.CmdDisc}.Append(nil)
	write := append(wire.Request{Command: wire.CmdWrite, Length: 4}.Append(nil), "data"...)
	for _, c := range []struct {
		name string
		send []byte
		torn bool
	}{
		{"DISC is clean", disc, false},
		{"a write and DISC in one segment are clean", append(bytes.Clone(write), disc...), false},
		{"to hang up tears", nil, true},
		{"to hang up in a header tears", write[:10], true},
		{"to hang up in a payload tears", write[:len(write)-1], true},
		{"a bad magic tears", append([]byte("????"), write[4:]...), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(testSize)
			k := enter(t, m, true)
			k.send(c.send)
			_ = k.nc.Close()
			if torn := <-m.closed; torn != c.torn {
				t.Errorf("torn: %t", torn)
			}
			if got := string(m.bytes(0, 4)); (got == "data") != (len(c.send) >= len(write)+len(disc)) {
				t.Errorf("the device holds %q", got)
			}
		})
	}
	t.Run("DISC waits for what is outstanding", func(t *testing.T) {
		m := newMemory(testSize)
		k := enter(t, m, true)
		release := m.setHold()
		k.send(append(wire.Request{Command: wire.CmdFlush, Cookie: 8}.Append(nil), disc...))
		release()
		k.expect(k.reply(wire.Request{Command: wire.CmdFlush, Cookie: 8}), "simple 0")
		k.expectClosed()
		if torn := <-m.closed; torn || m.flushes.Load() != 1 {
			t.Errorf("torn: %t, flushed %d times", torn, m.flushes.Load())
		}
	})
}

// serveOn starts a server on a listener and returns a way to dial it.
func serveOn(t *testing.T, b Backend, o Options) (s *Server, dial func() net.Conn, served <-chan error) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	s = NewServer(b, o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx)
	})
	return s, func() net.Conn {
		nc, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		return nc
	}, done
}

func TestHandshakeHasADeadline(t *testing.T) {
	for _, c := range []struct {
		name string
		send []byte
	}{
		{"for a client that says nothing", nil},
		{"for one that stops in an option", wire.AppendOption(nil, wire.OptGo, nil)[:7]},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				defer func() { _ = client.Close() }()
				begin := time.Now()
				go NewServer(newMemory(testSize), Options{HandshakeTimeout: time.Minute}).ServeConn(server)
				k := &talk{t: t, nc: client}
				k.hello(wire.ClientFixedNewstyle)
				if len(c.send) > 0 {
					k.send(c.send)
				}
				k.expectClosed()
				if d := time.Since(begin); d != time.Minute {
					t.Errorf("closed after %v", d)
				}
			})
		})
	}
	t.Run("and a session has none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			go NewServer(newMemory(testSize), Options{}).ServeConn(server)
			k := &talk{t: t, nc: client}
			k.hello(wire.ClientFixedNewstyle)
			k.enter(true)
			time.Sleep(24 * time.Hour) // of the bubble's clock
			k.expect(k.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")
			_ = client.Close()
			synctest.Wait()
		})
	})
}

func TestShutdown(t *testing.T) {
	// start returns a server with one connection that has said hello.
	start := func(t *testing.T) (*Server, *memory, *talk) {
		m := newMemory(testSize)
		client, server := net.Pipe()
		s := NewServer(m, Options{})
		go s.ServeConn(server)
		k := &talk{t: t, nc: client}
		k.hello(wire.ClientFixedNewstyle)
		return s, m, k
	}
	shutdown := func(ctx context.Context, s *Server) <-chan error {
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(ctx) }()
		synctest.Wait()
		return done
	}
	run := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	run("refuses options and ends", func(t *testing.T) {
		s, _, k := start(t)
		done := shutdown(t.Context(), s)
		k.expect(k.option(wire.OptGo, goData("disk")), "SHUTDOWN nbd: server is shutting down")
		k.expect(k.option(wire.OptAbort, nil), "ACK")
		k.expectClosed()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	run("closes an idle session, not torn", func(t *testing.T) {
		s, m, k := start(t)
		k.enter(true)
		done := shutdown(t.Context(), s)
		k.expectClosed()
		if err := <-done; err != nil || <-m.closed {
			t.Errorf("torn, or %v", err)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Errorf("the second time: %v", err)
		}
	})
	run("finishes what was received and refuses what comes", func(t *testing.T) {
		s, m, k := start(t)
		k.enter(true)
		release := m.setHold()
		flush := wire.Request{Command: wire.CmdFlush, Cookie: 1}
		k.send(flush.Append(nil))
		done := shutdown(t.Context(), s)
		k.expect(k.command(wire.Request{Command: wire.CmdWrite, Cookie: 2, Length: 4}, "late"), "error 108 server is shutting down")
		time.Sleep(time.Hour) // of the bubble's clock: it is not idle while we wait for the flush
		release()
		k.expect(k.reply(flush), "simple 0")
		k.expectClosed()
		if err := <-done; err != nil || <-m.closed || !bytes.Equal(m.bytes(0, 4), make([]byte, 4)) {
			t.Errorf("torn, or %v, or a late write", err)
		}
	})
	run("cuts off who is left when its time is over", func(t *testing.T) {
		s, m, k := start(t)
		k.enter(false)
		// A client that does not read its reply.
		k.send(wire.Request{Command: wire.CmdRead, Length: 4096}.Append(nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown: %v", err)
		}
		if d := time.Since(begin); d != time.Minute || s.Connections() != 0 || len(m.closed) != 1 {
			t.Errorf("after %v: %d connections, %d closes", d, s.Connections(), len(m.closed))
		}
	})
	t.Run("ends Serve", func(t *testing.T) {
		s, _, served := serveOn(t, newMemory(testSize), Options{})
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestOneRequestHeldUpIsTheLast(t *testing.T) {
	m := newMemory(testSize)
	k := enter(t, m, false)
	flush := wire.Request{Command: wire.CmdFlush, Cookie: 1}
	read := wire.Request{Command: wire.CmdRead, Cookie: 2, Length: 1}
	for range 2 * aloneAfter {
		k.expect(k.command(read, ""), `simple 0 "\x00"`)
	}
	// The client seemed to be alone, and is not: the flush holds the read up.
	release := m.setHold()
	k.send(flush.Append(nil))
	for m.running.Load() == 0 {
		runtime.Gosched()
	}
	k.send(read.Append(nil))
	release()
	k.expect(k.reply(flush), "simple 0")
	k.expect(k.reply(read), `simple 0 "\x00"`)
	for range 2 * aloneAfter {
		k.expect(k.command(read, ""), `simple 0 "\x00"`)
	}
	release = m.setHold()
	k.send(flush.Append(nil))
	k.expect(k.command(read, ""), `simple 0 "\x00"`)
	release()
	k.expect(k.reply(flush), "simple 0")
}

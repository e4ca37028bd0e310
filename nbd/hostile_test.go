package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// Clients that mean harm. In each test an honest client works beside them; that
// it is served is the test, and it hangs if the client is not.

// A pool is a server whose clients are connected by pipes.
type pool struct {
	t      testing.TB
	server *Server
	ended  sync.WaitGroup
	ends   []net.Conn
}

func newPool(t testing.TB, b Backend, o Options) *pool {
	p := &pool{t: t, server: NewServer(b, o)}
	return p
}

// dial connects a client.
func (p *pool) dial(client, server net.Conn) *talk {
	p.ends = append(p.ends, client)
	p.ended.Go(func() { p.server.ServeConn(server) })
	return &talk{t: p.t, nc: client}
}

func (p *pool) pipe() *talk { return p.dial(net.Pipe()) }

func (p *pool) socket() *talk { return p.dial(socketPair(p.t)) }

// end hangs all clients up, and checks that nothing is left of them.
func (p *pool) end() {
	p.t.Helper()
	for _, nc := range p.ends {
		_ = nc.Close()
	}
	p.ended.Wait()
	p.expectNothing()
}

// expectNothing checks that no connection is left and nothing is held.
func (p *pool) expectNothing() {
	p.t.Helper()
	s, b := p.server, p.server.budget
	if n := s.Connections(); n != 0 || s.settled != 0 || s.young.Len() != 0 {
		p.t.Errorf("%d connections are left, %d settled, %d in the handshake", n, s.settled, s.young.Len())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used != 0 || b.desks.Load() != 0 || b.passes.Load() != 0 || len(b.waiting) != 0 || len(b.accounts) != 0 {
		p.t.Errorf("left: %d bytes, %d desks, %d passes, %d waiting, %d accounts", b.used, b.desks.Load(), b.passes.Load(), len(b.waiting), len(b.accounts))
	}
}

// start says hello on k and takes it to the transmission phase.
func (k *talk) start() *talk {
	k.t.Helper()
	k.hello(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	k.enter(true)
	return k
}

const workOffset = 512 << 10

// work has a client write, read and flush until stop is called, which returns
// when it has at least once.
func (k *talk) work() (stop func()) {
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := uint64(1); ; n++ {
			text := fmt.Sprintf("%08d", n)
			k.expect(k.command(wire.Request{Command: wire.CmdWrite, Cookie: n, Offset: workOffset, Length: 8}, text), "simple 0")
			k.expect(k.command(wire.Request{Command: wire.CmdRead, Cookie: n, Offset: workOffset, Length: 8}, ""), fmt.Sprintf("data %d %q", workOffset, text))
			k.expect(k.command(wire.Request{Command: wire.CmdFlush, Cookie: n}, ""), "simple 0")
			select {
			case <-stopped:
				return
			default:
			}
		}
	}()
	return func() {
		close(stopped)
		<-done
	}
}

func TestOnlySettledConnectionsCount(t *testing.T) {
	s, dial, _ := serveOn(t, newMemory(testSize), Options{MaxConnections: 2})
	first := (&talk{t: t, nc: dial()}).start()
	// However many never finish their handshake, there is room for one that does.
	var silent []*talk
	for range 3 * maxHandshakes {
		k := &talk{t: t, nc: dial()}
		k.receive(wire.HelloSize)
		silent = append(silent, k)
	}
	second := (&talk{t: t, nc: dial()}).start()
	third := &talk{t: t, nc: dial()}
	third.expectClosed()
	for _, k := range []*talk{first, second} {
		k.expect(k.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")
	}
	for _, k := range silent[:2*maxHandshakes] {
		k.expectClosed() // the oldest made room
	}
	if n := s.Connections(); n > 2+maxHandshakes+1 {
		t.Errorf("%d connections", n)
	}
	k := silent[len(silent)-1]
	k.send(binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle))
	k.send(wire.AppendOption(nil, wire.OptGo, goData("disk")))
	k.expect(k.optionReplies(wire.OptGo), "POLICY "+errFull.Error())
	k.expectClosed()
	_ = first.nc.Close()
	_ = second.nc.Close()
}

func TestConnectionsLeaveDescriptorsForImages(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur+1 < limit.Max { // the runtime stops one below it
		t.Errorf("the soft limit is %d, not raised to %d", limit.Cur, limit.Max)
	}
	if n := uint64(DefaultMaxConnections()); n > minConnections && n+maxHandshakes > limit.Cur/2 {
		t.Errorf("%d connections and %d handshakes of %d descriptors", n, maxHandshakes, limit.Cur)
	}
}

func TestConnectionStormLeavesNothing(t *testing.T) {
	m := newMemory(testSize)
	m.closed = make(chan bool, 5000)
	p := newPool(t, m, Options{})
	honest := p.socket().start()
	stop := honest.work()
	hello := binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle)
	enter := wire.AppendOption(bytes.Clone(hello), wire.OptGo, goData("disk"))
	request := wire.Request{Command: wire.CmdWrite, Length: 4096}.Append(bytes.Clone(enter))
	for n := range 3000 {
		client, server := net.Pipe()
		p.ended.Go(func() { p.server.ServeConn(server) })
		say := [][]byte{nil, hello, enter[:20], enter, request, request[:len(request)-9]}[n%6]
		if len(say) > 0 {
			go func() { _, _ = io.Copy(io.Discard, client) }()
			_, _ = client.Write(say)
		}
		_ = client.Close()
	}
	stop()
	p.end()
	if opened, closed := m.opened.Load(), int64(len(m.closed)); opened != closed {
		t.Errorf("%d opened, %d closed", opened, closed)
	}
}

func TestHandshakeFloodEnds(t *testing.T) {
	many := make([]string, 3000)
	for _, c := range []struct {
		name   string
		option uint32
		data   []byte
	}{
		{"of unknown options", 77, nil},
		{"of lists", wire.OptList, nil},
		{"of metadata queries", wire.OptListMeta, metaData("disk", many...)},
		{"of probes", wire.OptInfo, goData("disk", 0, 1, 2, 3)},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(testSize)
			m.closed = make(chan bool, 2*maxOptions)
			p := newPool(t, m, Options{})
			stop := p.socket().start().work()
			k := p.socket()
			k.hello(wire.ClientFixedNewstyle)
			k.expect(k.option(wire.OptStructuredReply, nil), "ACK")
			go func() { _, _ = io.Copy(io.Discard, k.nc) }()
			say := wire.AppendOption(nil, c.option, c.data)
			sent := 0
			for err := error(nil); err == nil && sent <= 2*maxOptions; sent++ {
				if len(c.data) > 1000 && sent == 200 {
					_ = k.nc.Close() // it takes long enough
				}
				_, err = k.nc.Write(say)
			}
			if sent > 2*maxOptions {
				t.Errorf("%d options were taken", sent)
			}
			stop()
			p.end()
		})
	}
}

// A library is a Backend with very many exports.
type library struct {
	*memory
	names []string
}

func (l library) List(Client) []string { return l.names }

func TestListThatNobodyReadsIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := make([]string, 10_000)
		for i := range names {
			names[i] = fmt.Sprintf("%060d", i)
		}
		p := newPool(t, library{newMemory(testSize), names}, Options{})
		client, server := net.Pipe()
		counting := &largestWrite{Conn: server}
		k := p.dial(client, counting)
		k.hello(wire.ClientFixedNewstyle)
		k.send(wire.AppendOption(nil, wire.OptList, nil))
		k.receive(10)
		synctest.Wait()
		if n := counting.bytes.Load(); n > 2*smallBytes {
			t.Errorf("%d bytes of replies at once", n)
		}
		time.Sleep(time.Minute) // of the bubble's clock: the handshake's deadline ends it
		if _, err := io.Copy(io.Discard, k.nc); err != nil {
			t.Errorf("the connection ends with %v", err)
		}
		p.end()
	})
}

// largestWrite notes the largest write.
type largestWrite struct {
	net.Conn
	bytes atomic.Int64
}

func (w *largestWrite) Write(p []byte) (int, error) {
	w.bytes.Store(max(w.bytes.Load(), int64(len(p))))
	return w.Conn.Write(p)
}

// round is one round of work.
func (k *talk) round() {
	k.t.Helper()
	k.work()()
}

func TestReaderThatNeverReadsIsCutOff(t *testing.T) {
	for _, cold := range []bool{false, true} {
		t.Run(fmt.Sprintf("cold=%t", cold), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(8 << 20)
				m.cold.Store(cold)
				p := newPool(t, m, Options{TotalBufferBytes: MinTotalBufferBytes, ClientBufferBytes: maxPayloadBytes})
				small, large := p.pipe().start(), p.pipe().start()
				read := wire.Request{Command: wire.CmdRead, Length: 8 << 20}.Append(nil)
				var thieves []*talk
				for range 9 {
					k := p.pipe().start()
					go func() { _, _ = k.nc.Write(bytes.Repeat(read, 9)) }()
					thieves = append(thieves, k)
				}
				synctest.Wait()
				small.round()
				served := make(chan struct{})
				go func() {
					defer close(served)
					for range 3 {
						large.send(wire.Request{Command: wire.CmdRead, Length: 1 << 20}.Append(nil))
						large.receive(wire.DataChunkSize + 1<<20)
					}
				}()
				synctest.Wait()
				if isDone(served) {
					t.Errorf("there was memory enough")
				}
				small.round() // with no more than its share
				<-served
				cut := 0
				for _, k := range thieves {
					_ = k.nc.SetReadDeadline(time.Now())
					if _, err := io.Copy(io.Discard, k.nc); err == nil {
						cut++
					}
				}
				if cut == 0 {
					t.Errorf("nobody was cut off")
				}
				p.end()
				time.Sleep(time.Minute) // the watch ends
			})
		})
	}
}

func TestWriterThatDripsHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(33 << 20)
		m.closed = make(chan bool, 10)
		p := newPool(t, m, Options{TotalBufferBytes: MinTotalBufferBytes})
		small, large := p.pipe().start(), p.pipe().start()
		for range 2 { // they hold all that there is
			k := p.pipe().start()
			k.send(wire.Request{Command: wire.CmdWrite, Length: 32 << 20}.Append(nil))
			go func() {
				for err := error(nil); err == nil; time.Sleep(time.Second) {
					_, err = k.nc.Write([]byte{1})
				}
			}()
		}
		time.Sleep(time.Hour) // nobody waits: they may
		if n := p.server.Connections(); n != 4 {
			t.Errorf("%d connections", n)
		}
		small.round()
		data := strings.Repeat("y", 1<<20)
		for range 3 {
			large.expect(large.command(wire.Request{Command: wire.CmdWrite, Offset: 32 << 20, Length: 1 << 20}, data), "simple 0")
		}
		small.round()
		p.end()
		time.Sleep(time.Minute) // the watch ends
		if got := m.bytes(1<<20, 31<<20); !bytes.Equal(got, make([]byte, len(got))) {
			t.Errorf("half a write arrived")
		}
	})
}

// crowd has the budget's commands taken, by one whom nobody can blame, and
// somebody wait for them, until disperse is called.
func (p *pool) crowd() (disperse func()) {
	b := p.server.budget
	hog, waiter := b.open(nil), b.open(nil)
	hog.tryEnter(32 << 20)
	hog.tryEnter(30 << 20)
	waits := enters(waiter, 2<<20)
	synctest.Wait()
	if isDone(waits) {
		p.t.Errorf("nobody waits")
	}
	return func() {
		hog.leave(2, 62<<20)
		<-waits
		waiter.leave(1, 2<<20)
		hog.close()
		waiter.close()
		time.Sleep(time.Minute) // the watch ends
	}
}

func TestReaderThatReadsSlowlyIsServedWhileOthersWait(t *testing.T) {
	// It keeps the rule, but hardly: what it holds is 504 KiB, of which 64 KiB in
	// 30 s are 2185 bytes a second; over TLS there is a pass, and with 79 KiB it
	// is 2697; the rest is for the second, and the record, that a look falls into.
	for mode, pace := range map[TLSMode]int{TLSOff: 2400, TLSRequire: 3500} {
		t.Run(fmt.Sprintf("tls=%d", mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := certtest.New(t)
				m := newMemory(testSize)
				m.cold.Store(true)
				p := newPool(t, m, Options{TotalBufferBytes: MinTotalBufferBytes, TLS: a.Server(), TLSMode: mode})
				k := p.pipe()
				k.hello(wire.ClientFixedNewstyle)
				if mode == TLSRequire {
					k.startTLS(a.Client(""))
				}
				k.enter(true)
				const length = 512 << 10
				k.send(wire.Request{Command: wire.CmdRead, Length: length}.Append(nil))
				synctest.Wait() // in the middle of its reply
				disperse := p.crowd()
				for left := wire.DataChunkSize + length; left > 0; {
					time.Sleep(time.Second)
					n := min(left, pace)
					k.receive(n)
					left -= n
				}
				k.expect(k.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")
				disperse()
				p.end()
			})
		})
	}
}

func TestWriteWithFUALargerThanItsClientMayHoldIsServed(t *testing.T) {
	p := newPool(t, newMemory(4<<20), Options{ClientBufferBytes: 1 << 20})
	k := p.socket().start()
	for range 2 {
		data := strings.Repeat("f", 2<<20)
		k.expect(k.command(wire.Request{Command: wire.CmdWrite, Flags: wire.FlagFUA, Length: 2 << 20}, data), "simple 0")
	}
	p.end()
}

func TestWritesWithFUAThatHoldAllThereIsAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(33 << 20)
		p := newPool(t, m, Options{TotalBufferBytes: MinTotalBufferBytes})
		large := p.pipe().start()
		var writers []*talk
		for _, n := range []int{32 << 20, 32 << 20, 16 << 10, 16 << 10} {
			k := p.pipe().start()
			k.send(wire.Request{Command: wire.CmdWrite, Flags: wire.FlagFUA, Length: uint64(n)}.Append(nil))
			go func() { _, _ = k.nc.Write(make([]byte, n-1)) }()
			writers = append(writers, k)
		}
		synctest.Wait()
		if b := p.server.budget; b.used != b.commandLimit {
			t.Errorf("%d of %d bytes are held", b.used, b.commandLimit)
		}
		read := wire.Request{Command: wire.CmdRead, Length: 1 << 20}
		large.send(read.Append(nil))
		synctest.Wait()
		for _, k := range writers {
			k.send([]byte{1})
		}
		for _, k := range writers {
			k.expect(k.reply(wire.Request{Command: wire.CmdWrite}), "simple 0")
		}
		large.receive(wire.DataChunkSize + 1<<20)
		p.end()
		time.Sleep(time.Minute) // the watch ends
	})
}

func TestBufferOfALongOptionDoesNotNarrowADesk(t *testing.T) {
	client, server := net.Pipe()
	defer func() { _ = client.Close() }()
	var shutdown atomic.Bool
	in := newIntake(server, &shutdown, new(atomic.Int64))
	go func() { _, _ = client.Write(make([]byte, 10_000)) }()
	option, err := in.need(10_000)
	if err != nil {
		t.Fatal(err)
	}
	in.consume(len(option) - 100) // the rest are requests
	in.use(make([]byte, receiveBytes))
	if _, err := in.need(28); err != nil || len(in.buf) != receiveBytes || in.large != nil {
		t.Errorf("%d bytes are left of the desk, the option's buffer is kept: %t, %v", len(in.buf), in.large != nil, err)
	}
	in.release()
}

func TestSlowClientIsLeftAloneWhileNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, newMemory(2<<20), Options{})
		idle, k := p.pipe().start(), p.pipe().start()
		data := bytes.Repeat([]byte("z"), 1<<20)
		k.send(wire.Request{Command: wire.CmdWrite, Length: 1 << 20}.Append(nil))
		for piece := data; len(piece) > 0; piece = piece[64<<10:] {
			time.Sleep(24 * time.Hour)
			k.send(piece[:64<<10])
		}
		k.expect(k.reply(wire.Request{Command: wire.CmdWrite}), "simple 0")
		k.send(wire.Request{Command: wire.CmdRead, Length: 1 << 20}.Append(nil))
		time.Sleep(24 * time.Hour)
		if got := k.receive(wire.DataChunkSize + 1<<20); !bytes.Equal(got[wire.DataChunkSize:], data) {
			t.Errorf("the data changed")
		}
		idle.expect(idle.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")
		p.end()
	})
}

func TestWithoutADeskEverythingStillWorks(t *testing.T) {
	m := newMemory(testSize)
	p := newPool(t, m, Options{})
	p.server.budget.deskLimit = 0
	k := p.socket().start()
	for _, n := range []int{1, smallBytes, 20_000, inPlaceBytes, 300_000} {
		data := strings.Repeat(string(rune('a'+n%26)), n)
		k.expect(k.command(wire.Request{Command: wire.CmdWrite, Offset: 5, Length: uint64(n)}, data), "simple 0")
		k.send(wire.Request{Command: wire.CmdRead, Offset: 5, Length: uint64(n)}.Append(nil))
		if got := k.receive(wire.DataChunkSize + n); string(got[wire.DataChunkSize:]) != data {
			t.Errorf("%d bytes came back changed", n)
		}
	}
	var message []byte
	for i := range uint64(1000) {
		message = wire.Request{Command: wire.CmdWrite, Cookie: i, Offset: i * 8, Length: 8}.Append(message)
		message = fmt.Appendf(message, "%08d", i)
		message = wire.Request{Command: wire.CmdRead, Cookie: i, Offset: i * 8, Length: 8}.Append(message)
	}
	go func() { _, _ = k.nc.Write(message) }()
	for i := range uint64(1000) {
		k.expect(k.reply(wire.Request{Command: wire.CmdWrite, Cookie: i}), "simple 0")
		k.expect(k.reply(wire.Request{Command: wire.CmdRead, Cookie: i}), fmt.Sprintf("data %d %q", i*8, fmt.Sprintf("%08d", i)))
	}
	p.end()
}

func TestStatusFloodOverAFragmentedVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(8 << 20)
		for b := 0; b < len(m.dirty); b += 2 {
			m.dirty[b] = true
		}
		p := newPool(t, m, Options{TotalBufferBytes: MinTotalBufferBytes, ClientBufferBytes: 4 << 20})
		small := p.pipe().start()
		status := wire.Request{Command: wire.CmdBlockStatus, Length: 8 << 20}.Append(nil)
		for range 20 {
			k := p.pipe()
			k.hello(wire.ClientFixedNewstyle)
			k.enter(true, wire.ContextAllocation, wire.ContextDepth)
			go func() { _, _ = k.nc.Write(bytes.Repeat(status, 200)) }() // and reads nothing
		}
		synctest.Wait()
		if used := p.server.budget.used; used > 20*(4<<20+handedCount*commandBytes) {
			t.Errorf("%d bytes are held", used)
		}
		small.round()
		reader := p.pipe()
		reader.hello(wire.ClientFixedNewstyle)
		reader.enter(true, wire.ContextAllocation)
		for range 10 {
			if got := reader.command(wire.Request{Command: wire.CmdBlockStatus, Length: 8 << 20}, ""); len(got) != 1 {
				t.Fatalf("%d chunks", len(got))
			}
		}
		small.round()
		p.end()
		time.Sleep(time.Minute) // the watch ends
	})
}

func TestEveryCommandFlagAndLengthIsAnswered(t *testing.T) {
	m := newMemory(testSize)
	p := newPool(t, m, Options{})
	stop := p.socket().start().work()
	k := p.socket()
	k.hello(wire.ClientFixedNewstyle)
	k.enter(true, wire.ContextAllocation)
	cookie := uint64(1)
	for _, command := range []uint16{0, 1, 3, 4, 5, 6, 7, 8, 9, 255, 256, math.MaxUint16} {
		for flag := range 17 {
			for _, length := range []uint64{0, 1, 512, math.MaxUint32} {
				for _, offset := range []uint64{0, testSize - 1, testSize, math.MaxUint64} {
					r := wire.Request{Command: command, Flags: uint16(1 << flag >> 1), Cookie: cookie, Offset: offset, Length: length}
					var payload string
					if command == wire.CmdWrite {
						if length > 512 {
							continue // 4 GiB to be dropped; a test of its own
						}
						payload = strings.Repeat("w", int(length))
					}
					k.command(r, payload)
					cookie++
				}
			}
		}
	}
	k.expect(k.command(wire.Request{Command: wire.CmdFlush, Cookie: cookie}, ""), "simple 0")
	stop()
	p.end()
}

func TestPayloadOf4GiBIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, newMemory(testSize), Options{})
		k := p.pipe().start()
		k.send(wire.Request{Command: wire.CmdWrite, Cookie: 3, Length: math.MaxUint32}.Append(nil))
		k.send(make([]byte, 1<<20))
		synctest.Wait()
		if used := p.server.budget.used; used != 0 {
			t.Errorf("%d bytes are held for a payload that is refused", used)
		}
		p.end()
	})
}

// recorded is a whole connection of a client that does a bit of everything.
func recorded() (say []byte, writeEnds int) {
	say = binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle|wire.ClientNoZeroes)
	say = wire.AppendOption(say, wire.OptStructuredReply, nil)
	say = wire.AppendOption(say, wire.OptList, nil)
	say = wire.AppendOption(say, wire.OptSetMeta, metaData("disk", wire.ContextAllocation))
	say = wire.AppendOption(say, wire.OptInfo, goData("disk", 1, 3))
	say = wire.AppendOption(say, wire.OptGo, goData("disk"))
	say = wire.Request{Command: wire.CmdRead, Cookie: 1, Length: 4096}.Append(say)
	say = wire.Request{Command: wire.CmdWrite, Cookie: 2, Offset: 100, Length: 300}.Append(say)
	say = append(say, bytes.Repeat([]byte("w"), 300)...)
	writeEnds = len(say)
	say = wire.Request{Command: wire.CmdFlush, Cookie: 3}.Append(say)
	say = wire.Request{Command: wire.CmdBlockStatus, Cookie: 4, Length: 64 << 10}.Append(say)
	say = wire.Request{Command: wire.CmdTrim, Cookie: 5, Offset: 8192, Length: 4096}.Append(say)
	say = wire.Request{Command: wire.CmdZeroes, Cookie: 6, Offset: 8192, Length: 4096}.Append(say)
	return wire.Request{Command: wire.CmdDisc}.Append(say), writeEnds
}

func TestCloseAtEveryByteLeavesNothing(t *testing.T) {
	say, writeEnds := recorded()
	for _, cold := range []bool{false, true} {
		for n := range len(say) + 1 {
			m, _ := serveScript(t, say[:n], math.MaxUint16, cold)
			if wrote := m.bytes(100, 300)[299] == 'w'; wrote != (n >= writeEnds) || m.bytes(100, 1)[0] == 'w' != wrote {
				t.Fatalf("closed at byte %d: a write that ends at byte %d was applied: %t", n, writeEnds, wrote)
			}
			var last bool
			for len(m.closed) > 0 {
				last = <-m.closed
			}
			if n == len(say) && last {
				t.Fatalf("a clean end is torn")
			}
		}
	}
	// Over sockets, where the server may be anywhere when the end comes.
	m := newMemory(64 << 10)
	m.closed = make(chan bool, 2*len(say))
	p := newPool(t, m, Options{})
	for n := range len(say) {
		client, server := socketPair(t)
		p.ended.Go(func() { p.server.ServeConn(server) })
		_, _ = client.Write(say[:n])
		_ = client.Close()
	}
	p.end()
	if opened, closed := m.opened.Load(), int64(len(m.closed)); opened != closed {
		t.Errorf("%d opened, %d closed", opened, closed)
	}
}

func TestDeviceThatHangsHoldsUpItsOwnConnectionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := newMemory(testSize)
		release := stuck.setHold()
		p := newPool(t, shelf{"stuck": stuck, "disk": newMemory(testSize)}, Options{})
		k := p.pipe()
		k.hello(wire.ClientFixedNewstyle)
		k.option(wire.OptGo, goData("stuck"))
		for n := range uint64(2 * workerCount) {
			k.send(wire.Request{Command: wire.CmdFlush, Cookie: n}.Append(nil))
		}
		other := p.pipe().start()
		other.expect(other.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begin := time.Now()
		err := p.server.Shutdown(ctx)
		if d := time.Since(begin); d > 10*time.Second+cutGrace {
			t.Errorf("shut down after %v", d)
		}
		if !errors.Is(err, ErrHangs) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `export "stuck"`) {
			t.Errorf("shutdown: %v", err)
		}
		release()
		p.end()
	})
}

// A shelf is a Backend of several devices.
type shelf map[string]*memory

func (s shelf) List(Client) []string { return nil }

func (s shelf) Open(name string, c Client) (Device, Info, error) {
	return s[name], Info{}, nil
}

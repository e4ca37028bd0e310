//go:build !race

package nbd

// Not under the race detector, which makes everything larger.

import (
	"runtime"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

func TestIdleConnectionHoldsLittle(t *testing.T) {
	const (
		count = 10_000
		// most is what one may cost: the pipe, its two deadlines and the
		// client's end are a third of it.
		most = 16 << 10
	)
	m := newMemory(testSize)
	m.closed = make(chan bool, count+1)
	p := newPool(t, m, Options{MaxConnections: count + 1})
	stop := p.pipe().start().work()
	before := memoryInUse()
	clients := make([]*talk, count)
	for i := range clients {
		clients[i] = p.pipe().start()
	}
	expectLittle := func(when string) {
		t.Helper()
		each := (memoryInUse() - before) / count
		t.Logf("%s an idle connection costs %d bytes", when, each)
		if each > most {
			t.Errorf("%s an idle connection costs %d bytes", when, each)
		}
		if n := p.server.budget.desks.Load(); n > 1 {
			t.Errorf("%s %d desks are taken", when, n)
		}
	}
	expectLittle("after the handshake")
	data := strings.Repeat("x", 64<<10)
	for _, k := range clients[:1000] { // enough: 1000 desks are 750 MiB
		k.expect(k.command(wire.Request{Command: wire.CmdWrite, Length: uint64(len(data))}, data), "simple 0")
		k.send(wire.Request{Command: wire.CmdRead, Length: uint64(len(data))}.Append(nil))
		k.receive(wire.DataChunkSize + len(data))
		k.expect(k.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")
	}
	expectLittle("after work")
	stop()
	p.end()
}

// memoryInUse is the heap and the stacks.
func memoryInUse() int64 {
	var s runtime.MemStats
	for range 3 { // a pool gives up what it holds in two
		runtime.GC()
	}
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc + s.StackInuse)
}

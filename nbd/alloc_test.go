//go:build !race

package nbd

// Not under the race detector: there sync.Pool drops at random.

import (
	"bytes"
	"io"
	"testing"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, c := range []struct {
		name    string
		request wire.Request
		cold    bool
	}{
		{"for a read from memory", wire.Request{Command: wire.CmdRead, Length: 4096}, false},
		{"for a read from disk", wire.Request{Command: wire.CmdRead, Length: 4096}, true},
		{"for a large read", wire.Request{Command: wire.CmdRead, Length: 1 << 20}, false},
		{"for a write", wire.Request{Command: wire.CmdWrite, Length: 4096}, false},
		{"for a large write", wire.Request{Command: wire.CmdWrite, Length: 1 << 20}, false},
		{"for a write with FUA", wire.Request{Command: wire.CmdWrite, Flags: wire.FlagFUA, Length: 4096}, false},
		{"for a flush", wire.Request{Command: wire.CmdFlush}, false},
		{"for a block status", wire.Request{Command: wire.CmdBlockStatus, Length: 1 << 16}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			const depth = 4 // so that no client is alone
			m := newMemory(2 << 20)
			k := enter(t, m, true, wire.ContextAllocation)
			m.cold.Store(c.cold)
			message := c.request.Append(nil)
			if c.request.Command == wire.CmdWrite {
				message = append(message, make([]byte, c.request.Length)...)
			}
			reply := len(k.command(c.request, string(message[wire.RequestSize:])))
			if reply != 1 {
				t.Fatalf("%d chunks", reply)
			}
			replyBytes := wire.SimpleSize
			switch c.request.Command {
			case wire.CmdRead:
				replyBytes = wire.DataChunkSize + int(c.request.Length)
			case wire.CmdBlockStatus:
				replyBytes = wire.ChunkSize + 4 + 8
			}
			batch := bytes.Repeat(message, depth)
			replies := make([]byte, depth*replyBytes)
			round := func() {
				if _, err := k.nc.Write(batch); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(k.nc, replies); err != nil {
					t.Fatal(err)
				}
			}
			for range 100 {
				round()
			}
			if n := testing.AllocsPerRun(200, round); n >= 1 {
				t.Errorf("%v allocations in %d requests", n, depth)
			}
		})
	}
}

//go:build !race

package nbd

// Not under the race detector: there sync.Pool drops at random.

import (
	"bytes"
	"io"
	"testing"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// Over TLS it is crypto/tls that allocates, for each record.
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
		{"for a cache", wire.Request{Command: wire.CmdCache, Length: 1 << 16}, false},
	} {
		for form, name := range map[wire.Form]string{wire.Structured: "structured", wire.Extended: "extended"} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				m := newMemory(2 << 20)
				k := dial(t, m)
				k.enterForm(form, wire.ContextAllocation)
				m.cold.Store(c.cold)
				allocatesNothing(t, k, c.request)
			})
		}
	}
}

func allocatesNothing(t *testing.T, k *talk, r wire.Request) {
	t.Helper()
	const depth = 4 // so that no client is alone
	if chunks := len(k.command(r, payload(r))); chunks != 1 {
		t.Fatalf("%d chunks", chunks)
	}
	batch := bytes.Repeat(k.message(r, payload(r)), depth)
	replies := make([]byte, depth*answerBytes(k.form, r))
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
}

//go:build !race

package client_test

// Not under the race detector: there sync.Pool drops at random.

import (
	"testing"

	"github.com/tidemark/tidemark/nbd/client"
)

// The server is in the same process, and allocates nothing either.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, compact := range []bool{false, true} {
		k, err := client.Dialer{Compact: compact}.Dial(t.Context(), serve(t, newDisk(4<<20), "unix", t.TempDir()+"/s"))
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 1<<20)
		for name, call := range map[string]func() error{
			"a read":        func() error { _, err := k.ReadAt(p[:4096], 0); return err },
			"a large read":  func() error { _, err := k.ReadAt(p, 0); return err },
			"a write":       func() error { _, err := k.WriteAt(p[:4096], 0); return err },
			"a large write": func() error { _, err := k.WriteAt(p, 0); return err },
			"a flush":       k.Flush,
		} {
			none(t, name, func() {
				if err := call(); err != nil {
					t.Error(err)
				}
			})
		}
		for name, op := range map[string]client.Op{"reads": client.Read, "writes": client.Write} {
			const depth, rounds = 32, 20
			ended := make(chan struct{}, depth)
			var requests []*client.Request
			var left [depth]int
			for i := range depth {
				requests = append(requests, &client.Request{Op: op, Off: int64(i) << 12, Data: make([]byte, 4096), Done: func(*client.Request) bool {
					if left[i]--; left[i] > 0 {
						return true
					}
					ended <- struct{}{}
					return false
				}})
			}
			none(t, "many "+name, func() {
				for i := range left {
					left[i] = rounds
				}
				if err := k.Start(requests...); err != nil {
					t.Fatal(err)
				}
				for range depth {
					<-ended
				}
			})
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
}

func none(t *testing.T, name string, call func()) {
	t.Helper()
	for range 20 { // until all buffers are as large as they get
		call()
	}
	if n := testing.AllocsPerRun(50, call); n > 0 {
		t.Errorf("%s: %v allocations", name, n)
	}
}

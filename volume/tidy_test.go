package volume

import (
	"sync"
	"testing"

	"github.com/tidemark/tidemark/lookup"
)

// Zeros in pieces that don't fill a leaf take a dense leaf each until somebody
// tidies up, which must lose no write beside it.
func TestZerosInPiecesTakeLittleMemoryOnceTidied(t *testing.T) {
	r := newRig(t)
	v, err := r.engine.AddVolume(r.memory.Config("v", 1<<38, ScopeRequest))
	if err != nil {
		t.Fatal(err)
	}
	w := open(t)(v.Open())
	const piece = 32 << 20
	var clients sync.WaitGroup
	stop := make(chan struct{})
	clients.Go(func() { v.Tend(stop) })
	for off := int64(0); off < 1<<38; off += piece {
		if err := w.WriteZeroes(off, piece, false); err != nil {
			t.Fatal(err)
		}
		if off%(8<<30) == 0 {
			if _, err := w.WriteAt([]byte("data"), off+5*lookup.BlockSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	clients.Wait()
	if n := v.index.DenseLeaves(); n > 3*worthTidying {
		t.Errorf("%d dense leaves, and %d were to be tidied up", n, worthTidying)
	}
	v.tidy()
	if n := v.index.DenseLeaves(); n != 32 {
		t.Errorf("%d dense leaves, want the 32 with data in them", n)
	}
	if n := v.index.MemoryBytes() + v.tip().table.MemoryBytes(); n > 8<<20 {
		t.Errorf("index and table take %d bytes, want at most 8 MiB", n)
	}
	p := make([]byte, 4)
	for off := int64(0); off < 1<<38; off += 8 << 30 {
		if _, err := w.ReadAt(p, off+5*lookup.BlockSize); err != nil || string(p) != "data" {
			t.Fatalf("%q, %v at %d", p, err, off)
		}
	}
}

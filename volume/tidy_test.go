package volume

import (
	"sync"
	"testing"

	"github.com/tidemark/tidemark/lookup"
)

// Zeros in pieces that don't fill a leaf take a dense leaf each until somebody
// tidies up, which must lose no write beside it.
func TestZerosInPiecesTakeLittleMemoryOnceTidied(t *testing.T) {
	t.Run("of a new volume", func(t *testing.T) { zerosInPieces(t, false) })
	t.Run("of one whose index is blank", func(t *testing.T) { zerosInPieces(t, true) })
}

func zerosInPieces(t *testing.T, blank bool) {
	r := newRig(t)
	v, err := r.engine.AddVolume(r.memory.Config("v", 1<<38, ScopeRequest))
	if err != nil {
		t.Fatal(err)
	}
	if blank {
		v.index = lookup.NewBlankIndex() // nobody reads or writes yet
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
	for _, n := range []int64{v.index.DenseLeaves(), v.tip().table.DenseLeaves()} {
		if n > 3*worthTidying {
			t.Errorf("%d dense leaves, and %d were to be tidied up", n, worthTidying)
		}
	}
	v.fold()
	v.tip().fold()
	if n := v.index.DenseLeaves(); n != 32 && !blank || n > 32 {
		t.Errorf("%d dense leaves of the index, want the 32 with data in them, or fewer if it knows of fewer", n)
	}
	if n := v.tip().table.DenseLeaves(); n != 32 {
		t.Errorf("%d dense leaves of the table, want the 32 with data in them", n)
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

// Beyond the limit the index forgets, beside clients, and what they read is the same.
func TestTheIndexesOfAllVolumesStayWithinTheirLimit(t *testing.T) {
	const leaves, most = 48, 8
	r := newRig(t)
	r.engine.LimitIndexes(most * lookup.DenseLeafBytes)
	stop := make(chan struct{})
	var clients, tending sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		v, err := r.engine.AddVolume(r.memory.Config(name, leaves<<26, ScopeRequest))
		if err != nil {
			t.Fatal(err)
		}
		tending.Go(func() { v.Tend(stop) })
		w := open(t)(v.Open())
		for b := range lookup.BlockNum(leaves) {
			writeBlock(t, w, b<<14+1, 'o')
		}
		r.preserve(PreserveOptions{}, v).wait(t)
		for b := range lookup.BlockNum(leaves) {
			writeBlock(t, w, b<<14+2, 'n')
		}
		await(t, "the index to forget", func() bool { return r.engine.indexes.over(0) == 0 })
		clients.Go(func() {
			for range 20 {
				for b := range lookup.BlockNum(leaves) {
					wantBlock(t, "a block of the older image", w, b<<14+1, 'o')
					wantBlock(t, "a block of the newer image", w, b<<14+2, 'n')
					wantBlock(t, "a block of none", w, b<<14+3, 0)
				}
			}
		})
	}
	clients.Wait()
	await(t, "the index to forget what was learnt", func() bool { return r.engine.indexes.over(0) == 0 })
	close(stop)
	tending.Wait()
	var sum int64
	for v := range r.engine.volumes {
		if err := v.CheckIndex(); err != nil {
			t.Error(err)
		}
		sum += v.index.DenseLeaves()
	}
	if n := r.engine.indexes.leaves.Load(); n != sum {
		t.Errorf("%d leaves are counted, and there are %d", n, sum)
	}
	for v := range r.engine.volumes {
		v.index.CountIn(nil)
	}
	if n := r.engine.indexes.leaves.Load(); n != 0 {
		t.Errorf("%d leaves of no volume", n)
	}
}

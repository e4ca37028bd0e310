package volume

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidemark/tidemark/lookup"
)

// fewImages gives volumes so few slots, for the rest of the test.
func fewImages(t *testing.T, n int) {
	was := maxImages
	maxImages = n
	t.Cleanup(func() { maxImages = was })
}

// reclaim takes out of preserved images what nobody sees, by itself or in a view that
// is kept, and drops those that have nothing left.
func reclaim(v *Volume, kept ...*VLUN) {
	for _, k := range v.VLUNs() {
		c := v.VLUNs()
		at := slices.Index(c, k)
		top := at + slices.IndexFunc(c[at:], func(k *VLUN) bool { return k.Live() || slices.Contains(kept, k) })
		if top == at {
			continue
		}
		smaller, left := k.Table().Clone(), false
		for x := range k.Table().Extents(0, lookup.MaxBlocks) {
			for b := x.Block; b < x.Block+lookup.BlockNum(x.Count); b++ {
				covered := slices.ContainsFunc(c[at+1:top+1], func(j *VLUN) bool { return j.Table().Get(b) != lookup.Absent })
				if left = left || !covered; covered {
					smaller.Set(b, 1, lookup.Absent)
				}
			}
		}
		if k.Table().Replace(smaller); !left {
			k.Drop()
		}
	}
}

func TestADroppedImageLeavesTheChain(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	w := open(t)(v.Open())
	for _, fill := range []byte{'a', 'b', 'c'} {
		writeBlock(t, w, 1, fill)
		if fill != 'b' {
			writeBlock(t, w, 2, fill)
		}
		r.preserve(PreserveOptions{}, v).wait(t)
	}
	writeBlock(t, w, 3, 'd')
	first, second, third, live := v.VLUNs()[0], v.VLUNs()[1], v.VLUNs()[2], v.VLUNs()[3]
	live.Drop()
	if n := len(v.VLUNs()); n != 4 {
		t.Fatalf("the live VLUN was dropped: %d are left", n)
	}
	reclaim(v, third)
	if c := v.VLUNs(); !slices.Equal(c, []*VLUN{third, live}) {
		t.Fatalf("the chain is %v", c)
	}
	for _, gone := range []*VLUN{first, second} {
		gone.Drop() // again
	}
	for at, want := range []byte{0, 'c', 'c', 'd'} {
		wantBlock(t, "the live view", w, lookup.BlockNum(at), want)
	}
	at := open(t)(third.Open())
	wantBlock(t, "the snapshot", at, 1, 'c')
	wantBlock(t, "the snapshot", at, 3, 0)
	var depths []int
	if err := w.Extents(0, 4*lookup.BlockSize, func(x Extent) bool { depths = append(depths, x.Depth); return true }); err != nil {
		t.Fatal(err)
	}
	if want := []int{0, 2, 1}; !slices.Equal(depths, want) {
		t.Errorf("depths %v, want %v", depths, want)
	}
	if err := v.CheckIndex(); err != nil {
		t.Error(err)
	}
}

func TestAVolumeHasSoManyImagesAtATimeAndAnyNumberInItsLife(t *testing.T) {
	fewImages(t, 3)
	r := newRig(t)
	v := r.volume("v")
	w := open(t)(v.Open())
	for i := range byte(50) {
		at := lookup.BlockNum(i % 2)
		writeBlock(t, w, at, 'a'+i)
		for n := 1; ; n++ {
			_, err := r.engine.Preserve([]*Volume{v}, PreserveOptions{})
			if n > 2 && errors.Is(err, ErrImageLimit) {
				break
			}
			if n > 2 || err != nil {
				t.Fatalf("preserve %d of round %d: %v", n, i, err)
			}
		}
		wantBlock(t, "the live view", w, at, 'a'+i)
		writeBlock(t, w, 0, 'A'+i)
		writeBlock(t, w, 1, 'A'+i)
		if reclaim(v); len(v.VLUNs()) != 1 {
			t.Fatalf("round %d: %d images are left", i, len(v.VLUNs()))
		}
		wantBlock(t, "the live view", w, 0, 'A'+i)
		if err := v.CheckIndex(); err != nil {
			t.Fatal(err)
		}
	}
}

// Slots come round all the time, and nobody reads another image's block.
func TestSlotsComeRoundBesideReadsAndWrites(t *testing.T) {
	fewImages(t, 5)
	const clients, each, rounds = 4, 4, 300
	r := newRig(t)
	v := r.volume("v")
	end := make(chan struct{})
	go v.Tend(end)
	var running sync.WaitGroup
	for c := range clients {
		w := open(t)(v.Open())
		running.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(c), 0))
			var holds [each]byte
			for {
				select {
				case <-end:
					return
				default:
				}
				at := rng.IntN(each)
				holds[at] = byte(1 + rng.IntN(255))
				writeBlock(t, w, lookup.BlockNum(c*each+at), holds[at])
				for i, want := range holds {
					wantBlock(t, "the live view", w, lookup.BlockNum(c*each+i), want)
				}
			}
		})
	}
	content := func(k *VLUN) string {
		w, err := k.Open()
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, clients*each*lookup.BlockSize)
		if _, err := w.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return string(p)
	}
	var kept *VLUN
	held, refused := "", 0
	for done := 0; done < rounds && !t.Failed(); {
		result, err := r.engine.Preserve([]*Volume{v}, PreserveOptions{Wait: time.Hour})
		if errors.Is(err, ErrImageLimit) {
			refused++
			kept = nil
			reclaim(v)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if done++; kept != nil && content(kept) != held {
			t.Fatalf("the snapshot of round %d changed", done)
		}
		if done%3 == 0 {
			kept = result.VLUNs[0]
			held = content(kept)
		}
		reclaim(v, kept)
	}
	close(end)
	running.Wait()
	if err := v.CheckIndex(); err != nil {
		t.Error(err)
	}
	t.Logf("refused %d times", refused)
}

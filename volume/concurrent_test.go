package volume

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemark/tidemark/lookup"
)

// TestSnapshotsOfVolumesUnderConcurrentWritersAreExact runs writers of every
// scope beside preserves that follow one another as fast as they can, and holds
// every snapshot to I1 (prefixes, also across volumes), I2 (whole processes) and
// I4 (nothing changes after the answer). The race detector watches the rest.
func TestSnapshotsOfVolumesUnderConcurrentWritersAreExact(t *testing.T) {
	const (
		preserves = 60
		chains    = 3 // writers of a chain of dependent writes over v, then w
		chainLen  = 4 // blocks of each in each volume
		sectors   = 8 // writers of 512 bytes each in one block
		jobs      = 2 // writers of whole processes
		jobLen    = 3 // blocks of each in each volume
	)
	const sectorBlock, jobBlock = chains * chainLen, chains*chainLen + 1
	r := newRig(t)
	v, w := r.volume("v"), r.volume("w")
	var stop atomic.Bool
	var writers sync.WaitGroup
	run := func(write func(n uint64) error) {
		writers.Go(func() {
			for n := uint64(1); !stop.Load(); n++ {
				if err := write(n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	live := func(v *Volume) *View { return open(t)(v.Open()) }
	for c := range chains {
		vv, ww := live(v), live(w)
		run(func(n uint64) error {
			b := c*chainLen + int(n%chainLen)
			if err := putNumber(vv, b, n); err != nil {
				return err
			}
			return putNumber(ww, b, n)
		})
	}
	for s := range sectors {
		vv := live(v)
		run(func(n uint64) error {
			_, err := vv.WriteAt(number(n, 512), sectorBlock*lookup.BlockSize+int64(s)*512)
			return err
		})
	}
	for j := range jobs {
		run(func(n uint64) error {
			p, err := r.engine.Begin(Token(fmt.Sprintf("job%d.%d", j, n)), []*Volume{v, w})
			if err != nil {
				return err
			}
			defer p.End(false)
			for i := range jobLen {
				for _, vol := range []*Volume{v, w} {
					view, err := p.Open(vol) // also late, after a cut
					if err != nil {
						return err
					}
					if err := putNumber(view, jobBlock+j*jobLen+i, n); err != nil {
						return err
					}
					_ = view.Close()
					runtime.Gosched()
				}
			}
			return nil
		})
	}

	type kept struct {
		view *View
		blk  []uint64
	}
	var mu sync.Mutex
	var all []kept
	check := func(result *Result) {
		numbers := map[*Volume][]uint64{}
		for _, k := range result.VLUNs {
			view := open(t)(k.Open())
			numbers[k.Volume()] = readNumbers(t, view)
			mu.Lock()
			all = append(all, kept{view, numbers[k.Volume()]})
			mu.Unlock()
		}
		for vol, got := range numbers {
			for c := range chains {
				wantPrefix(t, vol.name, got[c*chainLen:(c+1)*chainLen])
			}
		}
		if both := numbers[v] != nil && numbers[w] != nil; both {
			for c := range chains {
				nv, nw := newest(numbers[v][c*chainLen:(c+1)*chainLen]), newest(numbers[w][c*chainLen:(c+1)*chainLen])
				if nv != nw && nv != nw+1 {
					t.Errorf("chain %d: v holds writes to %d and w to %d: not a prefix across volumes", c, nv, nw)
				}
			}
			for j := range jobs {
				first := numbers[v][jobBlock+j*jobLen]
				for i := range jobLen {
					if a, b := numbers[v][jobBlock+j*jobLen+i], numbers[w][jobBlock+j*jobLen+i]; a != first || b != first {
						t.Errorf("job %d is torn: block %d holds %d in v and %d in w, want %d", j, i, a, b, first)
					}
				}
			}
		}
	}
	var preservers sync.WaitGroup
	for i, set := range [][]*Volume{{v, w}, {v}, {w, v}} {
		preservers.Go(func() {
			for n := range preserves {
				result, err := r.engine.Preserve(set, PreserveOptions{Wait: time.Hour})
				if err != nil {
					t.Errorf("preserver %d, preserve %d: %v", i, n, err)
					return
				}
				check(result)
			}
		})
	}
	preservers.Wait()
	stop.Store(true)
	writers.Wait()
	for i, k := range all {
		for b, n := range readNumbers(t, k.view) {
			if n != k.blk[b] {
				t.Errorf("snapshot %d changed after its answer: block %d held %d and holds %d", i, b, k.blk[b], n)
			}
		}
	}
	for _, vol := range []*Volume{v, w} {
		if err := vol.CheckIndex(); err != nil {
			t.Error(err)
		}
	}
}

// number is a piece of a block that holds a number all over.
func number(n uint64, sizeBytes int) []byte {
	p := make([]byte, sizeBytes)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
	return p
}

func putNumber(w *View, b int, n uint64) error {
	_, err := w.WriteAt(number(n, lookup.BlockSize), int64(b)*lookup.BlockSize)
	return err
}

// readNumbers reads the number of each block, and checks that no sector of it is torn.
func readNumbers(t *testing.T, w *View) []uint64 {
	t.Helper()
	p := make([]byte, w.SizeBytes())
	if _, err := w.ReadAt(p, 0); err != nil {
		t.Error(err)
	}
	numbers := make([]uint64, len(p)/lookup.BlockSize)
	for i := range numbers {
		numbers[i] = binary.LittleEndian.Uint64(p[i*lookup.BlockSize:])
	}
	for i := 0; i < len(p); i += 8 {
		if sector := i - i%512; binary.LittleEndian.Uint64(p[i:]) != binary.LittleEndian.Uint64(p[sector:]) {
			t.Errorf("the sector at %d is torn", sector)
			break
		}
	}
	return numbers
}

func newest(ring []uint64) (n uint64) {
	for _, x := range ring {
		n = max(n, x)
	}
	return n
}

// wantPrefix checks that a ring of blocks holds the writes 1 to some n, each in
// block number n modulo its length.
func wantPrefix(t *testing.T, where string, ring []uint64) {
	t.Helper()
	n := newest(ring)
	for back := range min(n, uint64(len(ring))) {
		if got := ring[(n-back)%uint64(len(ring))]; got != n-back {
			t.Errorf("%s holds write %d, but not write %d (%d is there): not a prefix", where, n, n-back, got)
		}
	}
}

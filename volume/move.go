package volume

import (
	"context"
	"math"
	"time"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// Moved tells the volume that blocks of the image of VLUN from are also in the
// image of VLUN to, the next above it, whose table says so since before: nothing
// reads them in the first any more when Moved has returned. Both are sealed, so the
// tables change by nobody else. moved has these blocks, in the states of to.
//
// It takes the lock of a few blocks at a time, never waits for one while others
// queue behind it, and holds it for memory accesses only: a request that began
// before the table of to had a block has ended then, and the index follows. If ctx
// ends first, some are still read in the first image; it may be told again.
func (v *Volume) Moved(ctx context.Context, from, to *VLUN, moved *lookup.Table) error {
	var held blocklock.Held
	for x := range moved.Extents(0, lookup.MaxBlocks) {
		for x.Count > 0 {
			n := min(x.Count, movedSpan)
			if !v.lockPatiently(ctx.Done(), &held, blocklock.Range{First: x.Block, Count: n}) {
				return ctx.Err()
			}
			v.repoint(span{x.Block, n}, from.slot, lookup.MakeEntry(to.slot, x.State))
			v.locks.Unlock(&held)
			x.Block, x.Count = x.Block+lookup.BlockNum(n), x.Count-n
		}
	}
	return nil
}

// movedSpan is how many blocks Moved locks at once: so many entries change in
// well below a microsecond a block.
const movedSpan = 256

// lockPatiently takes an exclusive lock when nobody holds, or waits for, any of it;
// false if that was not before the end.
func (v *Volume) lockPatiently(end <-chan struct{}, held *blocklock.Held, r blocklock.Range) bool {
	return v.lockWithin(math.MaxInt, end, held, r)
}

// lockWithin is lockPatiently with so many pauses; of 9, the last is of 2.56 ms.
func (v *Volume) lockWithin(pauses int, end <-chan struct{}, held *blocklock.Held, r blocklock.Range) bool {
	pause := 10 * time.Microsecond
	for !v.locks.TryLock(held, r, blocklock.Exclusive) {
		select {
		case <-end:
			return false
		case <-time.After(pause):
		}
		if pauses--; pauses == 0 {
			return false
		}
		pause = min(2*pause, 10*time.Millisecond)
	}
	return true
}

// repoint gives those blocks of a span another entry that an image has by the
// index. The caller holds their exclusive locks.
func (v *Volume) repoint(s span, slot lookup.Slot, e lookup.Entry) {
	for s.count > 0 {
		old, n := v.index.Run(s.first, s.count)
		if old.Slot() == slot {
			v.index.Set(s.first, n, e)
		}
		s.first, s.count = s.first+lookup.BlockNum(n), s.count-n
	}
}

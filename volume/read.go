package volume

import (
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
)

// ErrWouldBlock is returned by TryReadAt and TryWriteAt: to go on, the request
// would have to wait for a lock or the disk. Nothing was done.
var ErrWouldBlock = image.ErrWouldBlock

// ReadAt reads as io.ReaderAt does: io.EOF at the end of the view. What it returns
// survives the death of the server.
func (w *View) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.read(p, off, true)
	if unpublished := w.Publish(); unpublished != nil {
		return 0, unpublished
	}
	return n, err
}

// TryReadAt is ReadAt that waits for nothing: ErrWouldBlock, with the contents
// of p undefined, when it would have to. What it returns may be told when Publish has
// returned nil.
func (w *View) TryReadAt(p []byte, off int64) (int, error) { return w.read(p, off, false) }

func (w *View) read(p []byte, off int64, wait bool) (n int, err error) {
	p, end, err := w.clip(p, off)
	if err != nil || len(p) == 0 {
		return 0, err
	}
	rq := requests.Get().(*request)
	defer rq.release()
	for again := true; again; {
		if again, err = w.readOnce(rq, p, off, wait); err != nil {
			return 0, err
		}
	}
	return len(p), end
}

// readOnce is R2 for a range of bytes: under the lock of its blocks. It asks to
// be called again when the request gave up a preserve that it conflicted with.
func (w *View) readOnce(rq *request, p []byte, off int64, wait bool) (again bool, err error) {
	v := w.volume
	k, err := w.enter()
	if err != nil {
		return false, err
	}
	defer w.leave(k)
	first, count := blocks(off, int64(len(p)))
	if !v.lock(rq, first, count, blocklock.Shared, wait) {
		return false, ErrWouldBlock
	}
	defer v.locks.Unlock(&rq.held)
	if w.givesUp(k, first, count) {
		return true, nil
	}
	if err := v.readLocked(k, p, off, wait); err != nil {
		return false, err
	}
	if w.fixed == nil {
		v.countConflicts(k, first, count)
	}
	return false, nil
}

// readLocked fills p through VLUN k. The caller holds the lock of its blocks.
func (v *Volume) readLocked(k *VLUN, p []byte, off int64, wait bool) error {
	for len(p) > 0 {
		b, rest := blocks(off, int64(len(p)))
		source, state, run := v.find(k, b, rest)
		yield.Here("read: found")
		n := min(int64(len(p)), int64(run)*lookup.BlockSize-off%lookup.BlockSize)
		if state != lookup.Data {
			clear(p[:n])
		} else if err := source.readImage(p[:n], off, wait); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// find is R2: the newest image j <= k whose table has block b, and for how many
// blocks (at most limit, of which the caller holds the locks) that is so. Nobody
// has it: nil, Absent.
func (v *Volume) find(k *VLUN, b lookup.BlockNum, limit uint64) (j *VLUN, s lookup.State, run uint64) {
	e, run := v.index.Run(b, limit)
	if e.Slot() == 0 {
		return nil, lookup.Absent, run
	}
	if j := v.numbers.get(e); j != nil && j.order <= k.order {
		return j, e.State(), run
	}
	yield.Here("read: index looked")
	// An image newer than k holds it, or nobody has looked yet: the tables can tell.
	if e == lookup.Unknown {
		v.wantsWarm(b)
	}
	return (*v.chain.Load()).upTo(k).holder(b, run)
}

// holder is R2 by the tables alone, for the newest of the chain.
func (c chain) holder(b lookup.BlockNum, run uint64) (j *VLUN, s lookup.State, _ uint64) {
	for i := len(c) - 1; i >= 0; i-- {
		s, n := c[i].table.Run(b, run)
		run = min(run, n)
		if s != lookup.Absent {
			return c[i], s, run
		}
	}
	return nil, lookup.Absent, run
}

func (k *VLUN) readImage(p []byte, off int64, wait bool) (err error) {
	if first, count := blocks(off, int64(len(p))); k.unsound.Load() && k.unsynced.any(span{first, count}) {
		return fmt.Errorf("read %d bytes at %d of image %d: %w", len(p), off, k.id, ErrFailed)
	}
	if wait {
		_, err = k.Image().ReadAt(p, off)
	} else {
		_, err = k.Image().TryReadAt(p, off)
	}
	return err
}

// clip cuts a read at the end of the view, as io.ReaderAt asks.
func (w *View) clip(p []byte, off int64) (_ []byte, end error, err error) {
	if off < 0 {
		return nil, nil, w.inRange(off, 0)
	}
	if off >= w.sizeBytes {
		if len(p) == 0 {
			return nil, nil, nil
		}
		return nil, nil, io.EOF
	}
	if int64(len(p)) > w.sizeBytes-off {
		return p[:w.sizeBytes-off], io.EOF, nil
	}
	return p, nil, nil
}

// givesUp tells whether a request of a process conflicts with a preserve that
// wants to be given up then (on-conflict abort), and gives it up: the request is
// not served here, but begins again with what it is bound to now. The caller
// holds the locks of the range.
func (w *View) givesUp(k *VLUN, first lookup.BlockNum, count uint64) (givenUp bool) {
	if w.process == nil || k.Live() {
		return false
	}
	for between := range w.volume.conflicting(k, first, count) {
		givenUp = w.volume.engine.giveUp(between) || givenUp
	}
	return givenUp
}

// countConflicts counts the blocks of a range that are held by a newer image
// than k, on every preserve between the two. A write does it before it takes
// them from the newer tables. The caller holds the locks of the range.
func (v *Volume) countConflicts(k *VLUN, first lookup.BlockNum, count uint64) {
	if k.Live() {
		return
	}
	for between, n := range v.conflicting(k, first, count) {
		for _, preserved := range between {
			preserved.conflicts.Add(n)
		}
	}
}

// conflicting yields the stretches of a range that a newer image than that of k
// holds: the VLUNs from k to below the newest that does, and how many blocks.
func (v *Volume) conflicting(k *VLUN, first lookup.BlockNum, count uint64) iter.Seq2[chain, uint64] {
	return func(yield func(chain, uint64) bool) {
		c := *v.chain.Load()
		for end := first + lookup.BlockNum(count); first < end; {
			e, run := v.index.Run(first, uint64(end-first))
			newest := v.numbers.get(e)
			if newest == nil && e.Slot() != 0 {
				newest, _, run = c.holder(first, run)
			}
			if newest != nil && newest.order > k.order && !yield(c[c.older(k):c.older(newest)], run) {
				return
			}
			first += lookup.BlockNum(run)
		}
	}
}

// lock takes the lock of a range of blocks for a request.
func (v *Volume) lock(rq *request, first lookup.BlockNum, count uint64, m blocklock.Mode, wait bool) bool {
	r := blocklock.Range{First: first, Count: count}
	if !wait {
		return v.locks.TryLock(&rq.held, r, m)
	}
	v.locks.Lock(&rq.held, r, m)
	return true
}

// request is what one request needs besides its data, kept from one to the next.
type request struct {
	held    blocklock.Held
	parts   [2]part
	entries []entry
	changes []journal.Change
}

var requests = sync.Pool{New: func() any {
	return &request{entries: make([]entry, 0, 16), changes: make([]journal.Change, 0, 16)}
}}

func (rq *request) release() {
	clear(rq.entries)
	rq.entries, rq.changes = rq.entries[:0], rq.changes[:0]
	requests.Put(rq)
}

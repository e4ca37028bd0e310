package volume

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Flush makes durable every write of this volume that completed before, in
// whatever image, with its table changes (R9). A frontend serves FUA with it,
// after the write. Errors: ErrFailed, ErrEnded.
func (w *View) Flush() error {
	if w.process != nil && w.process.ended.Load() {
		return ErrEnded
	}
	return w.volume.flush()
}

// Flush is View.Flush for those who hold no view.
func (v *Volume) Flush() error { return v.flush() }

// committer lets flushes that arrive together share a commit: one that arrives
// while a commit runs waits for the next, since the running one may have passed
// its images already.
type committer struct {
	volume  *Volume
	arrived atomic.Uint64 // flushes so far

	running sync.Mutex // one commit at a time
	covered uint64     // the arrivals that the last good commit covers; under running
}

func (v *Volume) flush() error {
	c := &v.commits
	n := c.arrived.Add(1)
	c.running.Lock()
	defer c.running.Unlock()
	if c.covered >= n { // a commit began after this flush arrived, and is done
		return nil
	}
	covers := c.arrived.Load()
	if err := v.commit(); err != nil {
		return err
	}
	c.covered = covers
	return nil
}

// commit makes durable all that completed before it. The order is the proof: a
// write marks its image before its change is appended, so every change up to
// end rests on images that are clean or marked here; they are synced before the
// log says that the change is committed.
func (v *Volume) commit() error {
	if err := v.Failed(); err != nil {
		return err
	}
	end := v.log.End()
	for i, c := len(*v.chain.Load())-1, *v.chain.Load(); i >= 0; i-- {
		k := c[i]
		if i < len(c)-1 && k.State() == Sealed { // and so are all older ones (R8)
			break
		}
		if !k.dirty.Swap(false) {
			continue
		}
		if err := k.image.Sync(); err != nil {
			k.unsound.Store(true)
			return v.fail(fmt.Errorf("sync image %d: %w", k.id, err))
		}
	}
	if end > v.log.Committed() {
		if err := v.log.Commit(end); err != nil {
			return v.fail(fmt.Errorf("commit table changes: %w", err))
		}
	}
	return nil
}

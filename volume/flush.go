package volume

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/journal"
)

// Flush makes durable every write of this volume that completed before, in
// whatever image, with its table changes (R9). A frontend serves FUA with it,
// after the write. Errors: ErrFailed, which is final; ErrEnded; any other says
// that this flush promises nothing, and the next one may.
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
	yield.Here("flush: end noted")
	for i, c := len(*v.chain.Load())-1, *v.chain.Load(); i >= 0; i-- {
		k := c[i]
		if i < len(c)-1 && k.State() == Sealed { // and so are all older ones (R8)
			break
		}
		if err := k.sync(); err != nil {
			return err
		}
	}
	yield.Here("flush: synced")
	if end > v.log.Committed() {
		err := v.log.Commit(end)
		switch {
		case errors.Is(err, journal.ErrSyncFailed):
			return v.fail(fmt.Errorf("commit table changes: %w", err))
		case err != nil: // nothing was promised or lost: the next flush tries again
			return fmt.Errorf("volume %s: commit table changes: %w", v.name, err)
		}
	}
	return nil
}

// sync makes the image durable as it is. A failure is final, unless the sync
// was not even begun.
func (k *VLUN) sync() error {
	if !k.dirty.Swap(false) {
		return nil
	}
	k.unsynced.begin()
	err := k.Image().Sync()
	switch {
	case err == nil:
		k.unsynced.done()
		return nil
	case errors.Is(err, image.ErrNotBegun):
		k.dirty.Store(true)
		return fmt.Errorf("volume %s: sync image %d: %w", k.volume.name, k.id, err)
	}
	return k.syncFailed(err)
}

// SyncFailed tells the volume that a write-back or a sync of the image failed
// on another handle than its own: the kernel may tell of a failure only once.
// From then on it is as after a flush that failed; the error says so. It waits
// for a flush that runs.
func (k *VLUN) SyncFailed(cause error) error {
	k.volume.commits.running.Lock()
	defer k.volume.commits.running.Unlock()
	return k.syncFailed(cause)
}

// syncFailed makes what may be lost unreadable, and the volume take nothing
// more. commits.running is held.
func (k *VLUN) syncFailed(cause error) error {
	k.unsound.Store(true)
	return k.volume.fail(fmt.Errorf("sync image %d: %w", k.id, cause))
}

// SyncForSeal makes durable what the seal of a VLUN rests on beside its table and
// what was synced on another handle than the volume's: after a power cut the newer
// VLUNs have what it holds, or what came after. The VLUN has drained, and every
// older one is sealed. Errors are those of Flush.
//
// It is a flush only if a write through k has reached into a newer image:
//
//  1. A newer table that a crash leaves has a block only by a commit, which synced
//     the data first. So a newer VLUN reads the block in a newer image as it was
//     when its entry was made, or later; and where no newer table has it, it reads
//     what k reads.
//  2. The entry was made by a write through the newer VLUN, over all that had been
//     written through k and older ones by then (R2, R3).
//  3. A write through k that came after the entry deleted it, or stored its bytes
//     there too (R1, R3). That is what a crash must not take back. Such a write
//     said so before it left k (reach), and k has drained: it is flushed here. Of
//     an earlier life nobody knows (AddVolume): a kill may have left bytes unsynced
//     of which the journal says nothing, as no table changed.
//  4. Writes through older VLUNs than k were flushed at the seals of those (R8).
//
// The image itself is synced once more, on the volume's handle: the kernel tells
// each handle of a failed write-back by itself.
//
// Rejected: a flush always (under load the live image has thousands of dirty blocks,
// and all flushes and the next preserve wait for the disk to write them).
func (k *VLUN) SyncForSeal() error {
	v := k.volume
	if k.reached.Load() {
		return v.flush()
	}
	v.commits.running.Lock()
	defer v.commits.running.Unlock()
	if err := v.Failed(); err != nil {
		return err
	}
	return k.sync()
}

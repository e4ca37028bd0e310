package volume

import (
	"errors"
	"fmt"
	"sync"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
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

// Settle is a flush that leaves no data in the log: what that holds of images is in
// them, durably, so that its oldest part may be folded, or it be closed. Errors are
// those of Flush.
func (v *Volume) Settle() error {
	for _, k := range *v.chain.Load() {
		if v.log.Holds(k.id) > 0 {
			if err := k.syncAhead(); err != nil {
				return err
			}
		}
	}
	c := &v.commits
	c.running.Lock()
	defer c.running.Unlock()
	return v.commit(true)
}

// syncAhead syncs the image while flushes go on, so that the sync of a commit, for which
// they wait, has little to do. It promises nothing.
func (k *VLUN) syncAhead() error {
	if err := k.Image().Sync(); errors.Is(err, image.ErrSyncFailed) {
		return k.SyncFailed(err)
	}
	return nil
}

// committer lets flushes that arrive together share a commit: those that arrive while
// one runs are a batch, which the next covers, since the running one may have passed
// their images already. The first of a batch commits for all of it, and wakes the
// others at once.
//
// Rejected: a lock that each of them takes in turn, to find that it is covered (they
// wake one after the other, and who comes newly and gets the lock before them has them
// wait for his commit too).
type committer struct {
	volume *Volume

	mu      sync.Mutex
	waiting *batch // which the next commit covers; nil: nobody waits
	spare   []*batch

	running sync.Mutex // one commit at a time

	// Under running, kept from one commit to the next:
	basis journal.Basis
	told  []*VLUN // those of basis.Synced
	taken []lookup.BlockNum
	data  []byte
}

// A batch is flushes that one commit covers.
type batch struct {
	size int            // who has still to learn err; under committer.mu
	done sync.WaitGroup // for the commit
	err  error          // of it
}

func (v *Volume) flush() error {
	c := &v.commits
	b, first := c.join()
	if first {
		c.commit(b)
	} else {
		b.done.Wait()
	}
	return c.leave(b)
}

// errUnfinished is what others learn of a commit that panics.
var errUnfinished = errors.New("the commit did not end")

// commit commits for a batch.
func (c *committer) commit(b *batch) {
	defer b.done.Done()
	c.running.Lock()
	defer c.running.Unlock()
	c.depart()
	b.err = errUnfinished
	v := c.volume
	err := v.commit(false)
	if err != nil && len(c.basis.Blocks) > 0 && v.Failed() == nil { // a full disk has no room for them twice
		err = v.commit(true)
	}
	c.reset()
	b.err = err
}

// join joins the batch that waits; who is the first of it is to commit.
func (c *committer) join() (b *batch, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first = c.waiting == nil; first {
		if n := len(c.spare); n > 0 {
			c.waiting, c.spare = c.spare[n-1], c.spare[:n-1]
		} else {
			c.waiting = &batch{}
		}
		c.waiting.done.Add(1)
	}
	c.waiting.size++
	return c.waiting, first
}

// depart ends the batch that waits: who arrives from here on waits for the next commit.
func (c *committer) depart() {
	c.mu.Lock()
	c.waiting = nil
	c.mu.Unlock()
}

// leave returns how the commit of a batch ended, to each of it once.
func (c *committer) leave(b *batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := b.err
	if b.size--; b.size == 0 {
		c.spare = append(c.spare, b)
	}
	return err
}

// commit makes durable all that completed before it. The order is the proof: a
// write adds its blocks to those that are fresh before its change is appended, so
// every change up to end rests on images that have nothing fresh, or on what is found
// fresh here; that is stored in the log, or synced, before the log says that the
// change is committed. With settle, all is synced that the log holds data of. After an
// error nobody knows what is fresh: the next commit syncs. commits.running is held.
func (v *Volume) commit(settle bool) (err error) {
	if err := v.Failed(); err != nil {
		return err
	}
	v.commits.reset()
	end := v.log.End()
	changed := end > v.log.Committed()
	yield.Here("flush: end noted")
	chain := *v.chain.Load()
	for i := len(chain) - 1; i >= 0; i-- {
		k := chain[i]
		if i < len(chain)-1 && k.State() == Sealed { // and so are all older ones (R8)
			break
		}
		defer k.unlessDone(&err)
		if err := k.cover(changed, settle); err != nil {
			return err
		}
	}
	yield.Here("flush: covered")
	return v.commitLog(end)
}

// reset forgets what a commit was about, and large room.
func (c *committer) reset() {
	if cap(c.data) > keepDataBytes { // of each of a thousand volumes
		c.basis.Blocks, c.data = nil, nil
	}
	clear(c.told)
	c.basis.Synced, c.told, c.basis.Blocks, c.data = c.basis.Synced[:0], c.told[:0], c.basis.Blocks[:0], c.data[:0]
}

// keepDataBytes is what a volume keeps of the room for blocks from one commit to the next.
const keepDataBytes = 64 << 10

// unlessDone says that any block of the image may be fresh, if a commit failed that
// had taken those that were.
func (k *VLUN) unlessDone(err *error) {
	if *err != nil {
		k.fresh.addAll()
	}
}

// cover makes durable what is fresh in the image, or has the log do it with the
// commit: where that has to be synced anyway, and the sync of the image is spared
// then; or where it holds data of the image already, so that it would have to be told
// of a sync. With settle the image is synced if anything is fresh, or held.
//
// Rejected: storing all that is little. Measured, with 1 to 8 connections: where no
// table changes, a commit with a few blocks is no faster than a sync of the image.
func (k *VLUN) cover(changed, settle bool) error {
	c := &k.volume.commits
	var many bool
	c.taken, many = k.fresh.take(c.taken[:0])
	held := k.volume.log.Holds(k.id) > 0
	switch {
	case len(c.taken) == 0 && !many && !(settle && held):
		return nil
	case !many && !settle && (changed || held) && k.readTaken():
		return nil
	}
	if held {
		c.basis.Synced, c.told = append(c.basis.Synced, k.id), append(c.told, k)
	}
	return k.sync()
}

// readTaken adds the blocks that were taken to what the log is to store, each as it is
// between two writes; false, and none is added, if it would have to wait for one, or one
// can't be read.
func (k *VLUN) readTaken() bool {
	c, v := &k.volume.commits, k.volume
	rq := requests.Get().(*request)
	defer rq.release()
	before := len(c.basis.Blocks)
	for _, b := range c.taken {
		c.data = append(c.data, zeros[:]...)
		data := c.data[len(c.data)-lookup.BlockSize:]
		if !v.lock(rq, b, 1, blocklock.Shared, false) {
			c.basis.Blocks = c.basis.Blocks[:before]
			return false
		}
		_, err := k.Image().TryReadAt(data, int64(b)*lookup.BlockSize)
		k.stored.add(b)
		v.locks.Unlock(&rq.held)
		if err != nil {
			c.basis.Blocks = c.basis.Blocks[:before]
			return false
		}
		c.basis.Blocks = append(c.basis.Blocks, journal.Block{Image: k.id, Block: b, Data: data})
	}
	return true
}

// sync makes the image durable as it is. A failure is final, unless the sync
// was not even begun.
func (k *VLUN) sync() error {
	k.unsynced.begin()
	err := k.Image().Sync()
	switch {
	case err == nil:
		k.unsynced.done()
		return nil
	case errors.Is(err, image.ErrNotBegun):
		return fmt.Errorf("volume %s: sync image %d: %w", k.volume.name, k.id, err)
	}
	return k.syncFailed(err)
}

// commitLog commits the changes up to end, with what they rest on.
func (v *Volume) commitLog(end journal.LSN) error {
	c := &v.commits
	if end <= v.log.Committed() && len(c.basis.Blocks) == 0 && len(c.basis.Synced) == 0 {
		return nil
	}
	err := v.log.Commit(end, c.basis)
	switch {
	case errors.Is(err, journal.ErrSyncFailed):
		return v.fail(fmt.Errorf("commit table changes: %w", err))
	case err != nil: // nothing was promised or lost: the next flush tries again
		return fmt.Errorf("volume %s: commit table changes: %w", v.name, err)
	}
	for _, k := range c.told {
		k.stored.forget()
	}
	return nil
}

// Unsynced returns the blocks of a drained VLUN's image that may not be on the disk. It
// is to be read only.
func (k *VLUN) Unsynced() *lookup.Table {
	current := k.unsynced.current.Load() // first: a sync that begins now puts it in the place of before
	if k.unsynced.all.Load() || k.unsynced.before.Load() != nil {
		return k.table
	}
	return current
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
// The image itself is synced once more, on the volume's handle, if it was written
// since: the kernel tells each handle of a failed write-back by itself. From then on
// the log holds no data of it: nothing writes to a sealed image after a power cut.
//
// Rejected: a flush always (under load the live image has thousands of dirty blocks,
// and all flushes and the next preserve wait for the disk to write them).
func (k *VLUN) SyncForSeal() (err error) {
	v := k.volume
	if err := k.syncAhead(); err != nil {
		return err
	}
	if k.reached.Load() {
		if err := v.flush(); err != nil {
			return err
		}
	}
	v.commits.running.Lock()
	defer v.commits.running.Unlock()
	if err := v.Failed(); err != nil {
		return err
	}
	v.commits.reset()
	defer k.unlessDone(&err)
	if err := k.cover(false, true); err != nil {
		return err
	}
	return v.commitLog(v.log.Committed())
}

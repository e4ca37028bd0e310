package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// punch takes the blocks out of a sealed image that nobody can see any more.
//
// A view sees the block of an image if it is that image's VLUN or a newer one, and
// no image between has the block too. Views that count are snapshots, live
// volumes, and what has not drained or is open. In a chain, the oldest of them at
// or above the image is its ceiling: if the ceiling does not see the block, nor
// does any view above it. So a block is dead if in every chain that the image
// stands in an image up to the ceiling covers it, or there is no ceiling.
//
//  1. Dead is for ever. What covers a block can leave a table only for a write
//     that puts it into an older one that is not sealed, above this image (R1),
//     or because it is dead itself and something covers that. A clone that is
//     made meanwhile sees what its snapshot sees.
//  2. A request that reads the image's block b is over before b is found dead:
//     who covered b had its exclusive lock.
//  3. A covering entry that is not sealed is flushed before its word counts, so
//     that no crash takes it back.
//  4. Crash-safe: the records say Punched first, of every view that may lose a
//     block, and Due (what the file has beyond its table is rubbish); then the
//     table file is replaced; then the table in memory; then the storage goes;
//     then Due ends. At any point before that the next life begins again, and
//     punches all that the table has not.
//  5. It runs where seals run: a seal reads tables and sums of older images.
//
// Rejected: moving the blocks that live into the neighbour (copies what a user
// asked to delete; the more lives the dearer), reference counts a block (each
// write would pay for it).
func (s *Store) punch(ctx context.Context, id image.ID) error {
	holders, release := s.holdFiles(id)
	if len(holders) == 0 {
		return nil // gone meanwhile
	}
	defer release()
	d, k := holders[0].disk, holders[0].vlun
	img, ok := k.Image().(*sealed.Image)
	if !ok || img.Lost() != nil || s.isStuck(id) {
		return nil
	}
	s.mu.Lock()
	rec := d.sealed[k]
	was, ceilings := *rec, ceilingsLocked(holders)
	s.mu.Unlock()

	dead, live := s.findDead(k.Table(), ceilings)
	empty := live == 0 && !slices.ContainsFunc(ceilings, ceiling.own)
	if !empty && len(dead) == 0 && !was.due {
		return nil
	}
	for _, c := range ceilings {
		if err := c.flush(); err != nil {
			return err
		}
	}
	s.reclaiming.begin(id, false, deadBytes(dead))
	defer s.reclaiming.end()
	if len(dead) > 0 {
		if err := s.loseHashes(holders, ceilings); err != nil {
			return err
		}
	}
	if empty {
		err := s.dropImage(k)
		s.reclaiming.done(deadBytes(dead))
		return err
	}
	if len(dead) > 0 {
		if err := s.shrink(k, rec, dead); err != nil {
			return err
		}
	}
	punched := func(to lookup.BlockNum) {
		var before []lookup.Extent
		before, dead = upTo(dead, to)
		s.reclaiming.done(deadBytes(before))
	}
	if err := punchAbsent(ctx, img, k.Table(), k.SizeBytes(), punched); err != nil {
		return fmt.Errorf("punch image %d: %w", id, err)
	}
	s.mu.Lock()
	exact := !rec.punched
	s.mu.Unlock()
	if exact { // else the sums may be more than the table's
		if err := s.exactSums(ctx, k, rec); err != nil {
			return fmt.Errorf("punch image %d: %w", id, err)
		}
	}
	s.mu.Lock()
	rec.due = false
	s.mu.Unlock()
	return s.putLinks(d, volume.Sealed, k)
}

// holdFiles returns who holds an image, and holds the files of the first until
// release: a delete of that volume waits. One that was deleted while this waited has
// left the image to the others.
func (s *Store) holdFiles(id image.ID) (holders []holder, release func()) {
	for {
		s.mu.Lock()
		holders = s.holdersLocked(id)
		s.mu.Unlock()
		if len(holders) == 0 {
			return nil, nil
		}
		if holdersFound != nil {
			holdersFound()
		}
		d := holders[0].disk
		if d.files.Lock(); !d.deleted {
			return holders, d.files.Unlock
		}
		d.files.Unlock()
	}
}

// Tests are told when this is about to wait.
var holdersFound func()

// Reclaim asks for every image that has no name to be looked at: what was written
// since may have covered more of its blocks. It does not wait.
func (s *Store) Reclaim() {
	s.mu.Lock()
	var ids []image.ID
	for _, d := range s.byVolume {
		for _, k := range d.volume.VLUNs() {
			if d.sealed[k] != nil && d.snapshots[k] == nil {
				ids = append(ids, k.ImageID())
			}
		}
	}
	s.mu.Unlock()
	slices.Sort(ids)
	s.sealer.punch(slices.Compact(ids)...)
}

func (s *Store) reclaimAlways(every time.Duration) {
	ctx, end := s.scans.join(context.Background())
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
			s.Reclaim()
		}
	}
}

// ceiling is the part of a chain from above an image up to the oldest view that
// counts; to its end, and none, if no view counts.
type ceiling struct {
	cover []*volume.VLUN
	none  bool
}

// ceilingsLocked finds the ceiling of an image in each chain; Store.mu is held.
func ceilingsLocked(holders []holder) []ceiling {
	list := make([]ceiling, len(holders))
	for i, h := range holders {
		vluns := h.disk.volume.VLUNs()
		at := slices.Index(vluns, h.vlun)
		top := slices.IndexFunc(vluns[at:], func(k *volume.VLUN) bool { return h.disk.countsLocked(k) })
		if list[i].none = top < 0; list[i].none {
			top = len(vluns) - at - 1
		}
		list[i].cover = vluns[at+1 : at+top+1]
	}
	return list
}

// countsLocked tells whether what a VLUN sees must stay; Store.mu is held.
func (d *disk) countsLocked(k *volume.VLUN) bool {
	return d.snapshots[k] != nil || k.Needed() && !(k.Live() && d.record.Past)
}

// own tells whether the image's own view counts.
func (c ceiling) own() bool { return !c.none && len(c.cover) == 0 }

// countsAnywhereLocked tells whether what a VLUN sees must stay, for its own chain
// or another that its image stands in; Store.mu is held.
func (s *Store) countsAnywhereLocked(d *disk, k *volume.VLUN) bool {
	return d.countsLocked(k) || slices.ContainsFunc(s.holdersLocked(k.ImageID()), func(h holder) bool { return h.disk.countsLocked(h.vlun) })
}

// flush makes what covers blocks lasting.
func (c ceiling) flush() error {
	for _, k := range c.cover {
		if k.State() != volume.Sealed || k.Live() {
			return k.Volume().Flush()
		}
	}
	return nil
}

// findDead lists the blocks of a table that are covered in every chain, and counts
// the others. It takes no lock: what is covered a moment later is found the next
// time.
func (s *Store) findDead(t *lookup.Table, ceilings []ceiling) (dead []lookup.Extent, live uint64) {
	for x := range t.Extents(0, lookup.MaxBlocks) {
		dead, live = append(dead, x), live+x.Count
	}
	shortest := slices.SortedStableFunc(slices.Values(ceilings), func(a, b ceiling) int { return cmp.Compare(len(a.cover), len(b.cover)) })
	for _, c := range shortest {
		if !c.none && len(dead) > 0 { // the next one, for which there is more to do, is asked for what is left
			dead = s.sealer.joined.covered(c, dead)
		}
	}
	for _, x := range dead {
		live -= x.Count
	}
	return dead, live
}

// joined is what images without a name have together: those of a chain from one up to
// below a ceiling. When many images below one ceiling are looked at, newest first, each
// adds one table to it. It may be older than what the tables say now, as what was
// covered once is so for ever. The sealer alone uses it; it is forgotten when an image
// has been folded, and when there is nothing to punch.
//
// Rejected: to ask each table for each block (the thousandth of as many images that
// were deleted would ask for each of its blocks a thousand times).
type joined struct {
	top, first *volume.VLUN // the ceiling, which is not in it, and the oldest that is
	table      *lookup.Table
}

// covered returns those of some blocks that an image of a cover has.
func (j *joined) covered(c ceiling, some []lookup.Extent) (covered []lookup.Extent) {
	if c.own() {
		return nil
	}
	unnamed, top := c.cover[:len(c.cover)-1], c.cover[len(c.cover)-1].Table()
	tables := []*lookup.Table{j.table, top}
	if missing := j.missing(c); blocksHeld(missing) < uint64(len(some)*len(unnamed)) {
		j.join(c, missing)
		tables[0] = j.table
	} else {
		tables = tables[:0]
		for _, k := range c.cover {
			tables = append(tables, k.Table())
		}
	}
	for _, x := range some {
		for x.Count > 0 {
			has, run := haveBlock(tables, x.Block, x.Count)
			if has {
				covered = append(covered, lookup.Extent{Block: x.Block, Count: run, State: x.State})
			}
			x.Block, x.Count = x.Block+lookup.BlockNum(run), x.Count-run
		}
	}
	return covered
}

// haveBlock tells whether one of the tables has block b, and for how many blocks, at
// most limit, that is so.
func haveBlock(tables []*lookup.Table, b lookup.BlockNum, limit uint64) (has bool, run uint64) {
	run = limit
	for _, t := range tables {
		s, n := t.Run(b, run)
		run = min(run, n)
		if s != lookup.Absent {
			return true, run
		}
	}
	return false, run
}

// missing are the images that are to be joined to what there is, or to nothing, to
// have all of a cover but its last.
func (j *joined) missing(c ceiling) []*volume.VLUN {
	unnamed := c.cover[:len(c.cover)-1]
	if i := slices.Index(unnamed, j.first); j.top == c.cover[len(c.cover)-1] && i >= 0 {
		return unnamed[:i]
	}
	return unnamed
}

func (j *joined) join(c ceiling, missing []*volume.VLUN) {
	unnamed := c.cover[:len(c.cover)-1]
	if len(missing) == len(unnamed) {
		*j = joined{top: c.cover[len(unnamed)], table: lookup.NewTable()}
	}
	for _, k := range missing {
		for x := range k.Table().Extents(0, lookup.MaxBlocks) {
			j.table.Set(x.Block, x.Count, lookup.Data)
		}
	}
	j.first = unnamed[0]
}

func blocksHeld(images []*volume.VLUN) (sum uint64) {
	for _, k := range images {
		data, zero := k.Table().Counts()
		sum += data + zero
	}
	return sum
}

// deadBytesOf measures the data in blocks of an image that punch would find dead.
func (s *Store) deadBytesOf(id image.ID) int64 {
	s.mu.Lock()
	holders := s.holdersLocked(id)
	ceilings := ceilingsLocked(holders)
	s.mu.Unlock()
	if len(holders) == 0 {
		return 0
	}
	dead, _ := s.findDead(holders[0].vlun.Table(), ceilings)
	return deadBytes(dead)
}

// loseHashes records that the views below the ceiling of an image, its own first,
// have other hashes from now on than at their seals, and that its punch is due.
func (s *Store) loseHashes(holders []holder, ceilings []ceiling) error {
	for i, h := range holders {
		var changed []*volume.VLUN
		s.mu.Lock()
		for _, k := range append([]*volume.VLUN{h.vlun}, ceilings[i].cover...) {
			rec := h.disk.sealed[k]
			if s.countsAnywhereLocked(h.disk, k) {
				break // a ceiling, here or in another chain: what it covers, this view and newer ones do not see
			}
			if rec == nil {
				continue
			}
			if due := rec.due || k == h.vlun; !rec.punched || due != rec.due {
				rec.punched, rec.due = true, due
				changed = append(changed, k)
			}
		}
		s.mu.Unlock()
		if err := s.putLinks(h.disk, volume.Sealed, changed...); err != nil {
			return err // that more is called punched than is does no harm
		}
	}
	return nil
}

// shrink takes dead blocks out of a table: on the disk first.
func (s *Store) shrink(k *volume.VLUN, rec *seal, dead []lookup.Extent) error {
	s.mu.Lock()
	mark := rec.table + 1
	s.mu.Unlock()
	smaller := k.Table().Clone()
	for _, x := range dead {
		smaller.Set(x.Block, x.Count, lookup.Absent)
	}
	if err := sealed.WriteTable(s.records, imagesDir(s.dir), k.ImageID(), smaller, mark); err != nil {
		return err
	}
	s.mu.Lock()
	rec.table = mark
	s.mu.Unlock()
	k.Table().Replace(smaller)
	return nil
}

// punchAbsent gives the storage back of all that a table has not as Data, and tells
// up to which block it has. Where the disk is busy, and this slow, it pauses as long
// as it worked.
func punchAbsent(ctx context.Context, img image.Image, t *lookup.Table, sizeBytes int64, punched func(lookup.BlockNum)) error {
	begun, next := time.Now(), lookup.BlockNum(0)
	punch := func(to lookup.BlockNum) error {
		if to <= next {
			return nil
		}
		if err := img.Punch(int64(next)*lookup.BlockSize, int64(to-next)*lookup.BlockSize); err != nil {
			return err
		}
		punched(to)
		if worked := time.Since(begun); worked >= punchStep {
			_ = pause(ctx, worked) // ctx has its say below
			begun = time.Now()
		}
		return ctx.Err()
	}
	for x := range t.Extents(0, lookup.MaxBlocks) {
		if x.State != lookup.Data {
			continue
		}
		if err := punch(x.Block); err != nil {
			return err
		}
		next = x.Block + lookup.BlockNum(x.Count)
	}
	return punch(lookup.BlockNum((sizeBytes + lookup.BlockSize - 1) / lookup.BlockSize))
}

const punchStep = 10 * time.Millisecond

// pause lets time pass, for others. Its error is that of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return ctx.Err()
}

// dropImage takes an image of which nobody sees a block out of all chains, and
// removes it.
func (s *Store) dropImage(k *volume.VLUN) error {
	id, img := k.ImageID(), k.Image()
	s.chains.Lock() // no branch is made with it
	defer s.chains.Unlock()
	s.mu.Lock()
	holders := s.holdersLocked(id) // with the branches that were made since: they don't see it either
	s.mu.Unlock()
	err := s.catalog.Update(func(tx *catalog.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, h := range holders {
			if s.byVolume[h.disk.volume] != h.disk {
				continue // deleted meanwhile, with its links
			}
			if err := tx.DeleteLink(h.disk.record.ID, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop image %d: %w", id, err)
	}
	k.Table().Replace(lookup.NewTable())
	s.mu.Lock()
	for _, h := range holders { // under one hold: a chain has no image that is gone
		delete(h.disk.images, id)
		delete(h.disk.sealed, h.vlun)
		h.vlun.Drop()
	}
	s.mu.Unlock()
	if err := errors.Join(img.Close(), s.removeImage(id)); err != nil {
		return fmt.Errorf("image %d is in no chain any more, but not all of its files are gone: %w", id, err)
	}
	return nil
}

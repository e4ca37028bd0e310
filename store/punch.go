package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
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
//  5. It runs where seals run: a seal reads tables and sums of older images. Those
//     are done when the storage goes, for which nobody is kept waiting: a seal
//     goes between (idle), and a delete of the volume ends it.
//
// Rejected: moving the blocks that live into the neighbour (copies what a user
// asked to delete; the more lives the dearer), reference counts a block (each
// write would pay for it).
func (s *Store) punch(ctx context.Context, id image.ID, idle func()) error {
	if s.catalog.Failed() != nil {
		return nil // what was deleted may be there when the directory is opened again
	}
	p, err := s.takeDead(ctx, id, idle)
	if err != nil || p == nil {
		return err
	}
	defer s.reclaiming.end()
	if p.gone != nil {
		return s.remove(ctx, *p.gone, idle)
	}
	if err := p.punchAbsent(ctx, idle); errors.Is(err, fs.ErrClosed) {
		return nil // its last volume was deleted
	} else if err != nil {
		return fmt.Errorf("punch image %d: %w", id, err)
	}
	return s.endPunch(ctx, p)
}

// A punch is an image whose table has lost its dead blocks, and whose storage is still
// to go.
type punch struct {
	store *Store
	id    image.ID
	img   *sealed.Image
	vlun  *volume.VLUN // one that has it
	dead  *lookup.Table
	gone  *removal // it is in no chain any more; nil: it stays
	// all: the file may have more beyond its table: a fold or punch was cut short, or a
	// write through an older VLUN, or one that failed, has left it there before the seal.
	all bool
}

// takeDead takes its dead blocks out of the table of an image, or drops the image if
// it has no others and nobody needs its view; nil: nothing else is to be done.
func (s *Store) takeDead(ctx context.Context, id image.ID, idle func()) (*punch, error) {
	dead, err := s.findDead(ctx, id, &s.sealer.joined, idle)
	if err != nil {
		return nil, err
	}
	holders, release := s.holdFiles(id)
	if len(holders) == 0 {
		return nil, nil // gone meanwhile
	}
	defer release()
	d, k := holders[0].disk, holders[0].vlun
	img, ok := k.Image().(*sealed.Image)
	if !ok || img.Lost() != nil || s.isStuck(id) {
		return nil, nil
	}
	s.mu.Lock()
	rec := d.sealed[k]
	was, ceilings := *rec, ceilingsLocked(holders)
	s.mu.Unlock()
	found := blocksIn(dead)
	empty := found == blocksIn(k.Table()) && !slices.ContainsFunc(ceilings, ceiling.own)
	if !empty && found == 0 && !was.due {
		return nil, nil
	}
	for _, c := range ceilings {
		if err := c.flush(); err != nil {
			return nil, err
		}
	}
	p := &punch{store: s, id: id, img: img, vlun: k, dead: dead, all: was.unsure}
	s.reclaiming.begin(id, false, bytesOf(dead))
	if found > 0 {
		err = s.loseHashes(holders, ceilings)
	}
	switch {
	case err != nil:
	case empty:
		var gone []*removal
		if gone, err = s.dropImages([]*volume.VLUN{k}, func(*catalog.Tx) error { return nil }); err == nil {
			p.gone = gone[0]
		}
	case found > 0:
		s.beUnsure(rec, true)
		err = s.shrink(k, rec, dead)
	}
	if err != nil {
		s.reclaiming.end()
		return nil, err
	}
	return p, nil
}

// beUnsure says whether the file of an image may have more beyond its table than
// somebody knows.
func (s *Store) beUnsure(rec *seal, unsure bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec.unsure = unsure
}

// endPunch says that the file of an image has nothing beyond its table; that is to be
// recorded.
func (s *Store) endPunch(ctx context.Context, p *punch) error {
	holders, release := s.holdFiles(p.id)
	if len(holders) == 0 {
		return nil
	}
	defer release()
	d, k := holders[0].disk, holders[0].vlun
	s.mu.Lock()
	rec := d.sealed[k]
	exact := p.all && !rec.punched // else the sums may be more than the table's
	s.mu.Unlock()
	if exact {
		if err := s.exactSums(ctx, k, rec); err != nil {
			return fmt.Errorf("punch image %d: %w", p.id, err)
		}
	}
	again := s.sealer.isToPunch(p.id)
	s.mu.Lock()
	rec.due, rec.unsure = again, false
	s.mu.Unlock()
	s.sealer.recordEnd(p.id)
	return nil
}

// recordEnds records that punches have ended: of all images of a list that one volume
// holds first, in one commit. It returns the others.
func (s *Store) recordEnds(ids []image.ID) (others []image.ID, err error) {
	holders, release := s.holdFiles(ids[0])
	if len(holders) == 0 {
		return ids[1:], nil // gone meanwhile
	}
	defer release()
	d := holders[0].disk
	var ended []*volume.VLUN
	s.mu.Lock()
	for _, id := range ids {
		switch holders := s.holdersLocked(id); {
		case len(holders) == 0:
		case holders[0].disk != d:
			others = append(others, id)
		default:
			ended = append(ended, holders[0].vlun)
		}
	}
	s.mu.Unlock()
	if err := s.putLinks(d, volume.Sealed, ended...); err != nil {
		return others, fmt.Errorf("record that images were punched: %w", err)
	}
	return others, nil
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
	var unnamed []punching
	s.mu.Lock()
	for _, d := range s.byVolume {
		for _, k := range slices.Backward(d.volume.VLUNs()) {
			if d.sealed[k] != nil && d.snapshots[k] == nil {
				unnamed = append(unnamed, toPunch(k))
			}
		}
	}
	s.mu.Unlock()
	s.sealer.punch(unnamed...)
}

func (s *Store) reclaimAlways(every time.Duration) {
	ctx, end := s.scans.join(context.Background())
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
			if s.Reclaiming().ImagesLeft == 0 { // else whoever waits until nothing is left would wait for ever
				s.Reclaim()
			}
		}
	}
}

// ceiling is the part of a chain from above an image up to the oldest view that
// counts; to its end, and none, if no view counts.
type ceiling struct {
	image image.ID
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
		list[i].image, list[i].cover = h.vlun.ImageID(), vluns[at+1:at+top+1]
	}
	return list
}

// countsLocked tells whether what a VLUN sees must stay; Store.mu is held.
func (d *disk) countsLocked(k *volume.VLUN) bool {
	return d.snapshots[k] != nil || k.Needed() && !(k.Live() && d.record.Past)
}

// has tells whether an image is in the cover.
func (c ceiling) has(id image.ID) bool {
	_, found := slices.BinarySearchFunc(c.cover, id, byImage)
	return found
}

// own tells whether the image's own view counts.
func (c ceiling) own() bool { return !c.none && len(c.cover) == 0 }

// flush makes what covers blocks lasting.
func (c ceiling) flush() error {
	for _, k := range c.cover {
		if k.State() != volume.Sealed || k.Live() {
			return k.Volume().Flush()
		}
	}
	return nil
}

// findDead finds the blocks of an image that are covered in every chain. It takes no
// lock: what is covered a moment later is found the next time. The table is to be
// read only. idle is called between two pieces of work.
func (s *Store) findDead(ctx context.Context, id image.ID, j *joined, idle func()) (*lookup.Table, error) {
	s.mu.Lock()
	holders := s.holdersLocked(id)
	ceilings := ceilingsLocked(holders)
	s.mu.Unlock()
	if len(holders) == 0 || slices.ContainsFunc(ceilings, ceiling.own) {
		return lookup.NewTable(), nil
	}
	shortest := slices.SortedStableFunc(slices.Values(ceilings), func(a, b ceiling) int { return cmp.Compare(len(a.cover), len(b.cover)) })
	dead, share := holders[0].vlun.Table(), s.reclaimShare(idle)
	var asked []image.ID // the ceilings
	for _, c := range shortest {
		// A longer cover has a shorter one in it, whose ceiling it has: what is below an
		// image is the same in all chains.
		if c.none || slices.ContainsFunc(asked, c.has) {
			continue
		}
		covered, err := j.covered(ctx, c, dead, share)
		if err != nil {
			return nil, err
		}
		// The next one, for which there is more to do, is asked for what is left.
		dead, asked = covered, append(asked, c.cover[len(c.cover)-1].ImageID())
	}
	return dead, nil
}

// shareRuns is so many runs of tables that are looked at between two rests.
const shareRuns = 128

// joined is what images without a name have together: those of a chain from one up to
// the last below a ceiling. When many images below one ceiling are looked at, newest
// first, each adds one table to it. All chains that have the last one have the same
// images below it, so it serves all of them. It may be older than what the tables say
// now, and have images that were dropped, as what was covered once is so for ever. The
// sealer alone uses it; it is forgotten when an image has been folded, and when there is
// nothing to punch.
//
// Rejected: to ask each table for each block (the thousandth of as many images that
// were deleted would ask for each of its blocks a thousand times).
type joined struct {
	first, last image.ID // the oldest and the newest that are in it
	table       *lookup.Table
}

// covered returns those of some blocks that an image of a cover, which is not empty,
// has.
func (j *joined) covered(ctx context.Context, c ceiling, some *lookup.Table, share *share) (*lookup.Table, error) {
	unnamed, top := c.cover[:len(c.cover)-1], c.cover[len(c.cover)-1].Table()
	tables := []lookup.Runs{j.table, lookup.Ascending(top)}
	if missing := j.missing(c); blocksHeld(missing) < runsIn(some)*uint64(len(unnamed)) {
		if err := j.join(ctx, c, missing, share); err != nil {
			return nil, err
		}
		tables[0] = j.table
	} else {
		tables = tables[:0]
		for _, k := range c.cover {
			tables = append(tables, lookup.Ascending(k.Table()))
		}
	}
	covered, runs := lookup.NewTable(), 0
	for x := range some.Extents(0, lookup.MaxBlocks) {
		for x.Count > 0 {
			has, run := haveBlock(tables, x.Block, x.Count)
			if has {
				covered.Set(x.Block, run, x.State)
			}
			x.Block, x.Count = x.Block+lookup.BlockNum(run), x.Count-run
			if runs++; runs%shareRuns == 0 {
				if err := share.rest(ctx, 0); err != nil {
					return nil, err
				}
			}
		}
	}
	covered.Pack()
	return covered, nil
}

// haveBlock tells whether one of the tables has block b, and for how many blocks, at
// most limit, that is so.
func haveBlock(tables []lookup.Runs, b lookup.BlockNum, limit uint64) (has bool, run uint64) {
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
	if n := len(unnamed); n == 0 || unnamed[n-1].ImageID() != j.last || j.first <= c.image {
		return unnamed
	}
	older, _ := slices.BinarySearchFunc(unnamed, j.first, byImage)
	return unnamed[:older]
}

func (j *joined) join(ctx context.Context, c ceiling, missing []*volume.VLUN, share *share) error {
	unnamed := c.cover[:len(c.cover)-1]
	if len(missing) == len(unnamed) {
		*j = joined{last: unnamed[len(unnamed)-1].ImageID(), table: lookup.NewTable()}
	}
	for i, k := range slices.Backward(missing) {
		runs := 0
		for x := range k.Table().Extents(0, lookup.MaxBlocks) {
			j.table.Set(x.Block, x.Count, lookup.Data)
			if runs++; runs%shareRuns == 0 {
				if err := share.rest(ctx, 0); err != nil {
					*j = joined{} // it has a part of one
					return err
				}
			}
		}
		j.first = unnamed[i].ImageID()
	}
	return nil
}

func blocksHeld(images []*volume.VLUN) (sum uint64) {
	for _, k := range images {
		sum += blocksIn(k.Table())
	}
	return sum
}

// blocksIn counts the blocks that a table has.
func blocksIn(t *lookup.Table) uint64 {
	data, zero := t.Counts()
	return data + zero
}

// runsIn counts the runs of blocks that a table has.
func runsIn(t *lookup.Table) (n uint64) {
	for range t.Extents(0, lookup.MaxBlocks) {
		n++
	}
	return n
}

// bytesOf is how much data the blocks of a table are.
func bytesOf(t *lookup.Table) int64 {
	data, _ := t.Counts()
	return int64(data) * lookup.BlockSize
}

// loseHashes records that the views below the ceiling of an image, its own first,
// have other hashes from now on than at their seals, and that its punch is due.
func (s *Store) loseHashes(holders []holder, ceilings []ceiling) error {
	s.chains.RLock()
	defer s.chains.RUnlock()
	return s.recordMarking(func(tx *catalog.Tx, m *marking) error {
		counted := map[image.ID]bool{}
		for _, h := range s.holdersLocked(holders[0].vlun.ImageID()) { // who has an image of a cover has this one
			h.disk.countLocked(counted)
		}
		for i, h := range holders {
			for _, k := range append([]*volume.VLUN{h.vlun}, ceilings[i].cover...) {
				rec := h.disk.sealed[k]
				if counted[k.ImageID()] {
					break // a ceiling, here or in another chain: what it covers, this view and newer ones do not see
				}
				if rec == nil || rec.punched && (rec.due || k != h.vlun) {
					continue
				}
				m.set(rec, true, rec.due || k == h.vlun)
				if err := s.putLinkLocked(tx, h.disk, k, volume.Sealed); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// shrink takes dead blocks out of a table: on the disk first.
func (s *Store) shrink(k *volume.VLUN, rec *seal, dead *lookup.Table) error {
	s.mu.Lock()
	mark := rec.table + 1
	s.mu.Unlock()
	smaller := k.Table().Clone()
	for x := range dead.Extents(0, lookup.MaxBlocks) {
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

// punchAbsent gives the storage back of all between the Data of a table: where it
// found something dead, or everywhere.
func (p *punch) punchAbsent(ctx context.Context, idle func()) error {
	share, next := p.store.reclaimShare(idle), lookup.BlockNum(0)
	piece := func(from, to lookup.BlockNum, deadBytes int64) error {
		if err := p.img.Punch(int64(from)*lookup.BlockSize, int64(to-from)*lookup.BlockSize); err != nil {
			return err
		}
		p.store.reclaiming.done(deadBytes)
		return share.rest(ctx, 0)
	}
	before := func(to lookup.BlockNum) error {
		if to <= next {
			return nil
		}
		if p.all {
			return everyPiece(p.dead, next, to, piece)
		}
		return deadPieces(p.dead, next, to, piece)
	}
	for x := range p.vlun.Table().Extents(0, lookup.MaxBlocks) {
		if x.State != lookup.Data {
			continue
		}
		if err := before(x.Block); err != nil {
			return err
		}
		next = x.Block + lookup.BlockNum(x.Count)
	}
	return before(lookup.BlockNum((p.vlun.SizeBytes() + lookup.BlockSize - 1) / lookup.BlockSize))
}

// pieceBlocks is how many blocks are punched at once, at most.
const pieceBlocks = file.PieceRoomBytes / lookup.BlockSize

// everyPiece calls do for all from one block to another, in pieces, with how much data
// the table has there.
func everyPiece(t *lookup.Table, from, to lookup.BlockNum, do func(from, to lookup.BlockNum, dataBytes int64) error) error {
	for from < to {
		end := min(from+pieceBlocks, to)
		if err := do(from, end, dataIn(t, from, end)); err != nil {
			return err
		}
		from = end
	}
	return nil
}

// deadPieces is everyPiece for what the table has only, and less where that is strewn.
func deadPieces(t *lookup.Table, from, to lookup.BlockNum, do func(from, to lookup.BlockNum, dataBytes int64) error) error {
	begin, end, runs, blocks := from, from, 0, uint64(0)
	flush := func() error {
		if runs == 0 {
			return nil
		}
		runs, blocks = 0, 0
		return do(begin, end, dataIn(t, begin, end))
	}
	for x := range t.Extents(from, uint64(to-from)) {
		for x.Count > 0 {
			if runs == 0 {
				begin = x.Block
			}
			n := min(x.Count, pieceBlocks-blocks)
			end = x.Block + lookup.BlockNum(n)
			x.Block, x.Count = end, x.Count-n
			blocks += n
			if runs++; runs == file.PieceRuns || blocks == pieceBlocks {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// dataIn counts the data that a table has from one block to another.
func dataIn(t *lookup.Table, from, to lookup.BlockNum) (sizeBytes int64) {
	for x := range t.Extents(from, uint64(to-from)) {
		if x.State == lookup.Data {
			sizeBytes += int64(x.Count) * lookup.BlockSize
		}
	}
	return sizeBytes
}

// dropImages takes images of which nobody sees a block out of all chains, in one commit
// with what else is to be recorded. They are to be removed then.
func (s *Store) dropImages(list []*volume.VLUN, record func(*catalog.Tx) error) (gone []*removal, err error) {
	for _, k := range list {
		gone = append(gone, &removal{id: k.ImageID(), sizeBytes: k.SizeBytes(), dataBytes: dataBytes(k), open: k.Image()})
	}
	s.chains.Lock() // no branch is made with them
	defer s.chains.Unlock()
	var holders []holder // with the branches that were made since: they don't see them either
	s.mu.Lock()
	for _, k := range list {
		holders = append(holders, s.holdersLocked(k.ImageID())...)
	}
	s.mu.Unlock()
	err = s.catalog.Update(func(tx *catalog.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, h := range holders {
			if s.byVolume[h.disk.volume] != h.disk {
				continue // deleted meanwhile, with its links
			}
			if err := tx.DeleteLink(h.disk.record.ID, h.vlun.ImageID()); err != nil {
				return err
			}
		}
		return record(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("drop image %d and what was to be dropped with it: %w", list[0].ImageID(), err)
	}
	for _, k := range list {
		k.Table().Replace(lookup.NewTable())
	}
	s.mu.Lock()
	for _, h := range holders { // under one hold: a chain has no image that is gone
		delete(h.disk.images, h.vlun.ImageID())
		delete(h.disk.sealed, h.vlun)
		h.vlun.Drop()
	}
	s.mu.Unlock()
	return gone, nil
}

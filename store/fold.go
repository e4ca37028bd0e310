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

// DefaultFoldAbove is how many images without a name a volume keeps of a server
// that was told nothing else.
const DefaultFoldAbove = 64

// Limits of a server that was told nothing else: of what folding copies, and of the
// time that giving back room and folding take while clients are served.
const (
	DefaultReclaimBytesPerSecond = 64 << 20
	DefaultReclaimPercent        = 5
)

// fold bounds the number of images without a name: it copies what is left of one
// into the next image above it, so that nobody sees a block of it any more, and a
// punch drops it. No view changes, hence no hash does.
//
// lower is the image without a name, upper the next, both sealed; taken are the
// blocks that lower has and upper has not.
//
//  1. Upper is the next above lower in every chain that lower stands in, so no view
//     that counts shows lower without upper.
//  2. The record of upper says Due before a block is written to its file: what it
//     has beyond its table is rubbish, also after a crash, and is punched.
//  3. The data is synced before a sum of it counts, the sums before the table says
//     so on the disk, that before memory does. Sums that the table has no blocks for
//     harm nobody, and Due lets them be; the end of Due makes the sums exact.
//  4. The table of upper has the blocks before a reader is sent there; lower keeps
//     its own until the index of every volume has followed and every request that
//     began before has ended (Volume.Moved).
//  5. A branch made meanwhile finds the tables as they were before or after, whole:
//     that memory changes is one step under Store.chains.
//  6. A verification counts each block of a view once: none runs while tables change.
//
// Each block is read, and held against its sum; then upper shares it with lower where
// the file system can do that (XFS, btrfs), and else it is written. It goes at a limited
// rate and as its share of the time allows, and lets seals go first. What a crash or an error cuts short is
// begun again.
//
// Rejected: folding upper into lower (a name, a hash and the place in the chain
// would have to move to another file); copy_file_range where nothing can be shared (the
// block has just been read for its sum); folding into a third image (all of both is
// copied).
type fold struct {
	store        *Store
	lower, upper *volume.VLUN // in one of the chains
	rec          *seal        // of upper
	unsure       bool         // it was so before
	taken        *lookup.Table
}

// nextFold returns what is folded next: of the volume with the most images without
// a name above the limit, the one with the least data; nil if there is none.
func (s *Store) nextFold() (next *fold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.foldAbove
	if s.catalog.Failed() != nil {
		return nil
	}
	counted := s.countedLocked()
	for _, d := range s.byVolume {
		if d.namelessLocked() <= most { // most volumes, and that is quickly said
			continue
		}
		var found *fold
		chain := d.volume.VLUNs()
		spare := d.spareLocked(chain, counted)
		for _, i := range spare {
			f := &fold{store: s, lower: chain[i], upper: chain[i+1], rec: d.sealed[chain[i+1]]}
			if (found == nil || dataBytes(f.lower) < dataBytes(found.lower)) && f.possibleLocked() == nil {
				found = f
			}
		}
		if found != nil && len(spare) > most {
			next, most = found, len(spare)
		}
	}
	return next
}

// countedLocked is the images whose own views must stay, for some chain; Store.mu is
// held. To ask for each image who has it is dear with a thousand volumes.
func (s *Store) countedLocked() map[image.ID]bool {
	counted := map[image.ID]bool{}
	for _, d := range s.byVolume {
		d.countLocked(counted)
	}
	return counted
}

// countLocked adds the images of a chain whose own views must stay for it; Store.mu is
// held.
func (d *disk) countLocked(counted map[image.ID]bool) {
	for _, k := range d.volume.VLUNs() {
		if d.countsLocked(k) {
			counted[k.ImageID()] = true
		}
	}
}

// spareLocked returns the places in a chain of the sealed images that no view needs by
// itself, in no chain; Store.mu is held.
func (d *disk) spareLocked(chain []*volume.VLUN, counted map[image.ID]bool) (at []int) {
	for i, k := range chain[:len(chain)-1] {
		if d.sealed[k] != nil && k.State() == volume.Sealed && !counted[k.ImageID()] {
			at = append(at, i)
		}
	}
	return at
}

// foldsAfter is how many images are to be folded, and about how much there is to move,
// when one has been, until no volume has too many without a name: by what the images hold
// now, to which folds add.
func (s *Store) foldsAfter(now image.ID) (images int, sizeBytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts, counted := s.countedLocked(), map[image.ID]bool{now: true}
	for _, d := range s.byVolume {
		if d.namelessLocked() <= s.foldAbove {
			continue
		}
		var list []*volume.VLUN
		chain := d.volume.VLUNs()
		spare := d.spareLocked(chain, counts)
		over := len(spare) - s.foldAbove
		for _, i := range spare {
			if counted[chain[i].ImageID()] {
				over--
			} else {
				list = append(list, chain[i])
			}
		}
		slices.SortFunc(list, func(a, b *volume.VLUN) int { return cmp.Compare(dataBytes(a), dataBytes(b)) })
		for _, k := range list[:max(0, min(over, len(list)))] {
			counted[k.ImageID()] = true
			images, sizeBytes = images+1, sizeBytes+dataBytes(k)
		}
	}
	return images, sizeBytes
}

// namelessLocked counts the sealed images of a chain that have no name in it, though
// they may have one in another; Store.mu is held.
func (d *disk) namelessLocked() (n int) {
	for _, k := range d.volume.VLUNs() {
		if d.snapshots[k] == nil && d.sealed[k] != nil {
			n++
		}
	}
	return n
}

// possibleLocked returns why it can't be done, nil if it can; Store.mu is held.
func (f *fold) possibleLocked() error {
	s, chainOf := f.store, map[*disk]bool{}
	holders := s.holdersLocked(f.lower.ImageID())
	if len(holders) == 0 {
		return errFolded
	}
	for _, h := range holders {
		chain := h.disk.volume.VLUNs()
		i := slices.Index(chain, h.vlun)
		if i+1 == len(chain) || chain[i+1].ImageID() != f.upper.ImageID() || h.disk.countsLocked(h.vlun) {
			return errFolded
		}
		chainOf[h.disk] = true
	}
	for _, h := range s.holdersLocked(f.upper.ImageID()) {
		if !chainOf[h.disk] {
			return errFolded
		}
	}
	for _, k := range []*volume.VLUN{f.lower, f.upper} {
		d := s.byVolume[k.Volume()]
		if d == nil || d.sealed[k] == nil || k.State() != volume.Sealed || lost(k) || len(d.sealed[k].bad) > 0 || s.stuck[k.ImageID()] {
			return errFolded
		}
	}
	return nil
}

// errFolded: what was to be folded is not there any more as it was.
var errFolded = errors.New("the images have changed")

// orDeleted takes a closed file for that of an image whose last volume was deleted.
func orDeleted(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("%w: %w", errFolded, err)
	}
	return err
}

// run folds. idle is called between two steps.
func (f *fold) run(ctx context.Context, idle func()) error {
	s := f.store
	if err := s.reserve.spare(); err != nil {
		return err
	}
	if !s.looking.TryLock() {
		return errLooking // it may take long, and the copy would be for nothing
	}
	s.looking.Unlock()
	f.taken = missing(f.lower.Table(), f.upper.Table())
	data, _ := f.taken.Counts()
	s.reclaiming.begin(f.lower.ImageID(), true, int64(data)*lookup.BlockSize)
	defer s.reclaiming.end()
	due, err := f.begin()
	if err != nil {
		return err
	}
	if err := orDeleted(f.copy(ctx, idle)); err != nil {
		if errors.Is(err, image.ErrSyncFailed) { // none of it will succeed
			f.giveUp()
		}
		s.sealer.punch(toPunch(f.upper))
		return fmt.Errorf("fold image %d into %d: %w", f.lower.ImageID(), f.upper.ImageID(), err)
	}
	if err := f.end(ctx, due); err != nil {
		if !errors.Is(err, errLooking) && !errors.Is(err, errFolded) {
			f.giveUp()
		} else {
			s.sealer.punch(toPunch(f.upper))
		}
		return fmt.Errorf("fold image %d into %d: %w", f.lower.ImageID(), f.upper.ImageID(), err)
	}
	s.sealer.joined = joined{} // the upper image covers more than it did
	s.reclaiming.moved(bytesOf(f.taken))
	defer s.reclaiming.moved(0)
	return s.punch(ctx, f.lower.ImageID(), idle)
}

// missing are the blocks that lower has and upper has not.
func missing(lower, upper *lookup.Table) *lookup.Table {
	t := lookup.NewTable()
	for x := range lower.Extents(0, lookup.MaxBlocks) {
		for x.Count > 0 {
			s, n := upper.Run(x.Block, x.Count)
			if s == lookup.Absent {
				t.Set(x.Block, n, x.State)
			}
			x.Block, x.Count = x.Block+lookup.BlockNum(n), x.Count-n
		}
	}
	t.Pack()
	return t
}

// begin records that the file of upper is about to get blocks that its table has
// not (2), and returns whether it may have had some before.
func (f *fold) begin() (due bool, err error) {
	s := f.store
	s.chains.RLock()
	defer s.chains.RUnlock()
	err = s.recordMarking(func(tx *catalog.Tx, m *marking) error {
		if err := f.possibleLocked(); err != nil {
			return err
		}
		due, f.unsure = f.rec.due, f.rec.unsure
		if due {
			return nil
		}
		m.set(f.rec, f.rec.punched, true)
		return s.putLinkLocked(tx, s.byVolume[f.upper.Volume()], f.upper, volume.Sealed)
	})
	if err == nil {
		s.beUnsure(f.rec, true)
	}
	return due, err
}

// foldStepBlocks is how much is copied at once, wherever it lies.
const foldStepBlocks = 256

// copy writes the data of the blocks taken to the file of upper, and syncs it. Who
// rots in lower is found by the read.
func (f *fold) copy(ctx context.Context, idle func()) error {
	c := &copying{from: f.lower.Image().(*sealed.Image), to: f.upper.Image().(*sealed.Image).Image.(*file.Image), shares: true}
	share := f.store.reclaimShare(idle)
	step := func() error {
		sizeBytes := c.sizeBytes
		if err := c.writeBack(); err != nil {
			return err
		}
		f.store.reclaiming.done(sizeBytes)
		atRate := time.Duration(float64(sizeBytes) / float64(f.store.reclaimRate) * float64(time.Second))
		return share.rest(ctx, atRate)
	}
	for x := range f.taken.Extents(0, lookup.MaxBlocks) {
		for x.State == lookup.Data && x.Count > 0 {
			n := min(x.Count, foldStepBlocks-uint64(c.sizeBytes/lookup.BlockSize))
			if err := c.copy(x.Block, n); err != nil {
				return err
			}
			x.Block, x.Count = x.Block+lookup.BlockNum(n), x.Count-n
			if c.sizeBytes == foldStepBlocks*lookup.BlockSize {
				if err := step(); err != nil {
					return err
				}
			}
		}
	}
	if err := step(); err != nil {
		return err
	}
	return c.to.Sync()
}

// copying copies blocks from one image to another, in steps.
type copying struct {
	from   *sealed.Image
	to     *file.Image
	shares bool // the file system may share what is copied
	lone   lone

	// Of this step:
	sizeBytes  int64
	begin, end int64 // where it lies
	room       [foldStepBlocks * lookup.BlockSize]byte
}

// copy copies some blocks, as many as the step has room for.
func (c *copying) copy(first lookup.BlockNum, count uint64) error {
	off, data := int64(first)*lookup.BlockSize, c.room[:count*lookup.BlockSize]
	if _, err := c.from.ReadAt(data, off); err != nil {
		return err
	}
	err := errors.ErrUnsupported
	if c.shares {
		err = c.to.Clone(c.from.Image.(*file.Image), off, int64(len(data)))
		c.shares = err == nil
	}
	if errors.Is(err, errors.ErrUnsupported) {
		c.lone.reserve(c.to, off, int64(len(data)))
		_, err = c.to.WriteAt(data, off)
	}
	if err != nil {
		return err
	}
	if c.sizeBytes == 0 {
		c.begin = off
	}
	c.sizeBytes, c.end = c.sizeBytes+int64(len(data)), off+int64(len(data))
	return nil
}

// writeBack ends a step: it waits for the disk, so that what comes after it meets no
// full dirty limit. Scattered blocks are many writes, which the disk gets together.
func (c *copying) writeBack() error {
	if c.sizeBytes == 0 {
		return nil
	}
	c.sizeBytes = 0
	return c.to.WriteBack(c.begin, c.end-c.begin)
}

// errLooking: a verification runs.
var errLooking = errors.New("a snapshot is being verified; it is tried again")

// end lets upper have the blocks, for good.
func (f *fold) end(ctx context.Context, due bool) error {
	s := f.store
	if !s.looking.TryLock() { // 6
		return errLooking
	}
	defer s.looking.Unlock()
	s.mu.Lock()
	d := s.byVolume[f.upper.Volume()]
	err := f.possibleLocked()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	d.files.Lock() // a delete of the volume waits for the end of this
	defer d.files.Unlock()
	if d.deleted {
		return errFolded
	}
	both := f.upper.Table().Clone()
	for x := range f.taken.Extents(0, lookup.MaxBlocks) {
		both.Set(x.Block, x.Count, x.State)
	}
	if err := s.renewSums(ctx, f.upper, f.rec, both, sealed.Chain{
		{Table: f.taken, Sums: f.lower.Image().(*sealed.Image)},
		{Table: f.upper.Table(), Sums: f.upper.Image().(*sealed.Image)},
	}); err != nil {
		return orDeleted(err)
	}
	mark := f.rec.table + 1
	if err := sealed.WriteTable(s.records, imagesDir(s.dir), f.upper.ImageID(), both, mark); err != nil {
		return err
	}
	moves := f.show(both, mark)
	for _, m := range moves {
		if err := m.vlun.Volume().Moved(ctx, m.from, m.vlun, f.taken); err != nil {
			return err
		}
	}
	again := s.sealer.isToPunch(f.upper.ImageID())
	s.mu.Lock()
	owes := d.sealed[f.lower].due || s.sealer.isToPunch(f.lower.ImageID())
	f.rec.due, f.rec.unsure = due || again || owes, f.unsure
	s.mu.Unlock()
	if owes { // of a delete, as nobody sees some of lower's blocks any more: they may lie here now
		defer s.sealer.punch(toPunch(f.upper))
	}
	return s.putLinks(d, volume.Sealed, f.upper)
}

// move is a volume that has both images: where readers are sent from and to.
type move struct {
	holder
	from *volume.VLUN
}

// show lets the table of upper in memory have the blocks (4, 5), and returns whose
// readers are to follow.
func (f *fold) show(both *lookup.Table, mark uint64) (moves []move) {
	s := f.store
	s.chains.Lock()
	defer s.chains.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	f.rec.table = mark
	f.upper.Table().Replace(both)
	for _, h := range s.holdersLocked(f.upper.ImageID()) {
		moves = append(moves, move{h, h.disk.vlunLocked(f.lower.ImageID())})
	}
	return moves
}

// giveUp leaves the images alone until the directory is opened again: nobody knows
// what the files of upper hold beside what counts.
func (f *fold) giveUp() {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	f.store.stuck[f.upper.ImageID()] = true
}

// renewSums replaces the checksum file of a sealed image, and shows the image with
// it. Its volume's files are held.
func (s *Store) renewSums(ctx context.Context, k *volume.VLUN, rec *seal, t *lookup.Table, from sealed.Chain) error {
	id := k.ImageID()
	if err := sealed.Rewrite(ctx, sealed.Rewriting{
		FS: s.fs, Dir: imagesDir(s.dir), ID: id, SizeBytes: k.SizeBytes(), Hash: rec.hash, Table: t, From: from,
	}); err != nil {
		return err
	}
	sums, err := openSums(s.fs, s.dir, id, k.SizeBytes(), t, &seal{hash: rec.hash}) // which has no more than the table
	if err != nil {
		return err
	}
	img := k.Image().(*sealed.Image).Renewed(sums)
	s.chains.RLock() // no branch is made with the old one
	defer s.chains.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.holdersLocked(id) {
		h.disk.images[id] = img
		h.vlun.SetSealed(img)
	}
	return nil
}

// exactSums takes the sums out of a checksum file that a fold which was cut short
// has left in it: its table has none of their blocks.
func (s *Store) exactSums(ctx context.Context, k *volume.VLUN, rec *seal) error {
	sums, err := sealed.OpenSums(s.fs, imagesDir(s.dir), k.ImageID(), false)
	if err != nil {
		return err
	}
	defer func() { _ = sums.Close() }() // only read
	if data, _ := k.Table().Counts(); sums.DataBlocks() == data {
		return nil
	}
	return s.renewSums(ctx, k, rec, k.Table(), sealed.Chain{{Table: k.Table(), Sums: sums}})
}

// isStuck tells whether the files of an image are left alone.
func (s *Store) isStuck(id image.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stuck[id]
}

package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// folding bounds the number of images without a name: it copies what is left of some,
// each into the next image above it, so that nobody sees a block of them any more, and
// drops them. No view changes, hence no hash does.
//
// Of each fold, lower is the image without a name, upper the next, both sealed; taken
// are the blocks that lower has and upper has not.
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
//     began before has ended (Volume.Moved). Then it has none that anybody sees.
//  5. A branch made meanwhile finds the tables as they were before or after, whole:
//     that memory changes is one step under Store.chains.
//  6. A verification counts each block of a view once: none runs while tables change.
//  7. Several folds, whose images are all different ones, share the two commits: the one
//     of 2, and the one at the end, which drops each lower and says what upper is now.
//
// Each block is read, and held against its sum; then upper shares it with lower where
// the file system can do that (XFS, btrfs), and else it is written. It goes at a limited
// rate and as its share of the time allows, and lets seals go first. What a crash or an error cuts short is
// begun again.
//
// Rejected: folding upper into lower (a name, a hash and the place in the chain
// would have to move to another file); copy_file_range where nothing can be shared (the
// block has just been read for its sum); folding into a third image (all of both is
// copied); commits for each by itself (the requests beside them are slower: ADR 9).
type folding struct {
	store *Store
	disk  *disk // has all of them in its chain
	folds []*fold
	// Of folds that were left out: one failed, or one is to be done a little later.
	failed, later bool
}

type fold struct {
	lower, upper *volume.VLUN // in one of the chains
	rec          *seal        // of upper
	due, unsure  bool         // it was so before
	taken        *lookup.Table
	gone         *removal // of lower
}

// Folds are done together as long as there are no more of them, and of what their images
// hold.
const (
	foldsAtOnce     = 8
	foldAtOnceBytes = 256 << 20
)

// nextFolds returns what is folded next: of the volume with the most images without
// a name above the limit, those with the least data, as far as they are different ones;
// nil if there is none.
func (s *Store) nextFolds() (next *folding) {
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
		chain := d.volume.VLUNs()
		spare := d.spareLocked(chain, counted)
		if len(spare) <= most {
			continue
		}
		if g := s.cheapestLocked(d, chain, spare); len(g.folds) > 0 {
			next, most = g, len(spare)
		}
	}
	return next
}

// cheapestLocked chooses among the spare images of a chain, of which there are too many;
// Store.mu is held.
func (s *Store) cheapestLocked(d *disk, chain []*volume.VLUN, spare []int) *folding {
	g, used, sizeBytes := &folding{store: s, disk: d}, map[int]bool{}, int64(0)
	slices.SortStableFunc(spare, func(i, j int) int { return cmp.Compare(dataBytes(chain[i]), dataBytes(chain[j])) })
	over := len(spare) - s.foldAbove
	for _, i := range spare {
		f := &fold{lower: chain[i], upper: chain[i+1], rec: d.sealed[chain[i+1]]}
		if over == 0 || len(g.folds) == foldsAtOnce {
			break
		}
		if g.possibleLocked(f) != nil {
			continue
		}
		if over--; used[i] || used[i+1] {
			continue // its turn comes, with what it holds then
		}
		if sizeBytes += dataBytes(f.lower) + dataBytes(f.upper); len(g.folds) > 0 && sizeBytes > foldAtOnceBytes {
			break
		}
		used[i], used[i+1] = true, true
		g.folds = append(g.folds, f)
	}
	return g
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
// when some have been, until no volume has too many without a name: by what the images hold
// now, to which folds add.
func (s *Store) foldsAfter(done map[image.ID]bool) (images int, sizeBytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts, counted := s.countedLocked(), map[image.ID]bool{}
	maps.Copy(counted, done)
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

// possibleLocked returns why a fold can't be done, nil if it can; Store.mu is held.
func (g *folding) possibleLocked(f *fold) error {
	s, chainOf := g.store, map[*disk]bool{}
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
func (g *folding) run(ctx context.Context, idle func()) error {
	s := g.store
	if err := s.reserve.spare(); err != nil {
		return err
	}
	if !s.looking.TryLock() {
		return errLooking // it may take long, and the copies would be for nothing
	}
	s.looking.Unlock()
	for _, f := range g.folds {
		f.taken = missing(f.lower.Table(), f.upper.Table())
	}
	s.reclaiming.begin(g.folds[0].lower.ImageID(), true, bytesOf(g.folds[0].taken))
	defer s.reclaiming.end()
	if err := g.begin(); err != nil {
		return err
	}
	g.each(func(f *fold) error { return orDeleted(g.copy(ctx, f, idle)) })
	stuck := false
	g.each(func(f *fold) (err error) {
		if stuck {
			return errFailedBeside // it might for the same reason, and be stuck too
		}
		idle()
		stuck, err = g.show(ctx, f)
		return err
	})
	if err := g.drop(); err != nil {
		return err
	}
	g.remove(ctx, idle)
	return ctx.Err()
}

// each does a step of each fold. One that fails is left out from then on, and told; what
// was written to its upper image is punched, if that can still succeed.
func (g *folding) each(step func(*fold) error) {
	g.folds = slices.DeleteFunc(g.folds, func(f *fold) bool {
		err := step(f)
		switch {
		case err == nil:
			return false
		case errors.Is(err, errLooking), errors.Is(err, errFolded), errors.Is(err, errFailedBeside):
			g.later = true
		case errors.Is(err, context.Canceled):
		default:
			g.failed = true
			g.store.logger.Error("bound the number of images without a name; it is tried again later",
				"image", f.lower.ImageID(), "into", f.upper.ImageID(), "err", err)
		}
		if errors.Is(err, image.ErrSyncFailed) { // none of it will succeed
			g.giveUp(f)
		}
		g.store.sealer.punch(toPunch(f.upper))
		return true
	})
}

// errFailedBeside: another fold has failed at its end.
var errFailedBeside = errors.New("another one has failed")

// missing are the blocks that lower has and upper has not.
func missing(lower, upper *lookup.Table) *lookup.Table {
	t, in := lookup.NewTable(), lookup.Ascending(upper)
	for x := range lower.Extents(0, lookup.MaxBlocks) {
		for x.Count > 0 {
			s, n := in.Run(x.Block, x.Count)
			if s == lookup.Absent {
				t.Set(x.Block, n, x.State)
			}
			x.Block, x.Count = x.Block+lookup.BlockNum(n), x.Count-n
		}
	}
	t.Pack()
	return t
}

// begin records that the files of the upper images are about to get blocks that their
// tables have not (2).
func (g *folding) begin() error {
	s := g.store
	s.chains.RLock()
	defer s.chains.RUnlock()
	var begun []*fold
	err := s.recordMarking(func(tx *catalog.Tx, m *marking) error {
		begun = nil // it may run again
		for _, f := range g.folds {
			if g.possibleLocked(f) != nil {
				continue
			}
			begun = append(begun, f)
			if f.due, f.unsure = f.rec.due, f.rec.unsure; f.due {
				continue
			}
			m.set(f.rec, f.rec.punched, true)
			if err := s.putLinkLocked(tx, s.byVolume[f.upper.Volume()], f.upper, volume.Sealed); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if g.folds = begun; len(begun) == 0 {
		return errFolded
	}
	for _, f := range begun {
		s.beUnsure(f.rec, true)
	}
	return nil
}

// foldStepBlocks is how much is copied at once, wherever it lies.
const foldStepBlocks = 256

// copy writes the data of the blocks taken to the file of upper, and syncs it. Who
// rots in lower is found by the read.
func (g *folding) copy(ctx context.Context, f *fold, idle func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.store.reclaiming.begin(f.lower.ImageID(), true, bytesOf(f.taken))
	c := &copying{from: f.lower.Image().(*sealed.Image), to: f.upper.Image().(*sealed.Image).Image.(*file.Image), shares: true}
	share := g.store.reclaimShare(idle)
	step := func() error {
		sizeBytes := c.sizeBytes
		if err := c.writeBack(); err != nil {
			return err
		}
		g.store.reclaiming.done(sizeBytes)
		atRate := time.Duration(float64(sizeBytes) / float64(g.store.reclaimRate) * float64(time.Second))
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

// show lets an upper image have the blocks in sums and table, on the disk and then in
// memory, and sends readers there. If it fails in that, the image is stuck.
func (g *folding) show(ctx context.Context, f *fold) (stuck bool, err error) {
	s, d := g.store, g.disk
	d.files.Lock() // a delete of the volume waits for the end of this
	defer d.files.Unlock()
	if d.deleted {
		return false, errFolded
	}
	if !s.looking.TryLock() { // 6
		return false, errLooking
	}
	defer s.looking.Unlock()
	s.mu.Lock()
	err = g.possibleLocked(f)
	s.mu.Unlock()
	if err != nil {
		return false, err
	}
	both := f.upper.Table().Clone()
	for x := range f.taken.Extents(0, lookup.MaxBlocks) {
		both.Set(x.Block, x.Count, x.State)
	}
	if err := g.showBoth(ctx, f, both); err != nil {
		g.giveUp(f)
		return true, err
	}
	return false, nil
}

// showBoth is show when nothing is in its way: an error of it leaves nobody sure of what
// the files of the upper image hold.
func (g *folding) showBoth(ctx context.Context, f *fold, both *lookup.Table) error {
	s := g.store
	if err := s.renewSums(ctx, f.upper, f.rec, both, sealed.Chain{
		{Table: f.taken, Sums: f.lower.Image().(*sealed.Image)},
		{Table: f.upper.Table(), Sums: f.upper.Image().(*sealed.Image)},
	}); err != nil {
		return err
	}
	mark := f.rec.table + 1
	if err := sealed.WriteTable(s.records, imagesDir(s.dir), f.upper.ImageID(), both, mark); err != nil {
		return err
	}
	for _, m := range g.replace(f, both, mark) {
		if err := m.vlun.Volume().Moved(ctx, m.from, m.vlun, f.taken); err != nil {
			return err
		}
	}
	return nil
}

// move is a volume that has both images: where readers are sent from and to.
type move struct {
	holder
	from *volume.VLUN
}

// replace lets the table of upper in memory have the blocks (4, 5), and returns whose
// readers are to follow.
func (g *folding) replace(f *fold, both *lookup.Table, mark uint64) (moves []move) {
	s := g.store
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

// drop takes the lower images, of which nobody sees a block any more, out of all chains,
// and records what the upper ones are now (7). Where it fails they stay, and a punch may
// still find that nobody sees them.
func (g *folding) drop() error {
	s, d := g.store, g.disk
	if len(g.folds) == 0 {
		return nil
	}
	d.files.Lock()
	defer d.files.Unlock()
	if d.deleted {
		g.folds, g.later = nil, true
		return nil
	}
	s.sealer.joined = joined{} // the upper images cover more than they did
	lower := make([]*volume.VLUN, len(g.folds))
	var owing []punching
	for i, f := range g.folds {
		lower[i] = f.lower
		again := s.sealer.isToPunch(f.upper.ImageID())
		s.mu.Lock()
		owes := d.sealed[f.lower].due || s.sealer.isToPunch(f.lower.ImageID())
		f.rec.due, f.rec.unsure = f.due || again || owes, f.unsure
		s.mu.Unlock()
		if owes { // of a delete, as nobody sees some of lower's blocks any more: they may lie here now
			owing = append(owing, toPunch(f.upper))
		}
	}
	gone, err := s.dropImages(lower, func(tx *catalog.Tx) error {
		for _, f := range g.folds {
			if err := s.putLinkLocked(tx, d, f.upper, volume.Sealed); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for _, f := range g.folds {
			owing = append(owing, toPunch(f.lower), toPunch(f.upper))
		}
	}
	s.sealer.punch(owing...)
	for i, image := range gone {
		g.folds[i].gone = image
	}
	return err
}

// remove removes the files of the lower images.
func (g *folding) remove(ctx context.Context, idle func()) {
	s := g.store
	defer s.reclaiming.moved(0)
	for _, f := range g.folds {
		s.reclaiming.moved(bytesOf(f.taken))
		s.reclaiming.begin(f.lower.ImageID(), false, f.gone.dataBytes)
		s.sealer.gaveBack(f.lower.ImageID(), s.remove(ctx, *f.gone, idle))
	}
}

// giveUp leaves the images alone until the directory is opened again: nobody knows
// what the files of upper hold beside what counts.
func (g *folding) giveUp(f *fold) {
	g.store.mu.Lock()
	defer g.store.mu.Unlock()
	g.store.stuck[f.upper.ImageID()] = true
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

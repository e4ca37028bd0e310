package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// removeOrphan removes an image, in the background if it takes up much.
func (s *Store) removeOrphan(id image.ID) error {
	first, err := file.Open(s.fs, imagesDir(s.dir), id, file.Options{SizeBytes: 1}) // all but the largest have no other segment
	if err == nil {
		var sizeBytes int64
		sizeBytes, err = first.Allocated()
		if err = errors.Join(err, first.Close()); err == nil && sizeBytes > s.atOnceBytes {
			s.sealer.remove(removal{id: id, dataBytes: sizeBytes})
			return nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) { // its other segments are there
		err = nil
	}
	return errors.Join(err, file.Remove(s.fs, imagesDir(s.dir), id, file.Options{}))
}

// removeOrphans removes files that no record refers to: images made ahead, and
// what a create or a delete left when it was cut short. The catalog is durable,
// so nothing can refer to them any more.
func (s *Store) removeOrphans(state catalog.State) error {
	images, volumes := map[image.ID]bool{}, map[string]bool{}
	for _, v := range state.Volumes {
		volumes[path.Base(volumeDir(s.dir, v.ID))] = true
		for _, l := range v.Chain {
			images[l.Image] = true
		}
	}
	found, err := file.List(s.fs, imagesDir(s.dir))
	if err != nil {
		return err
	}
	removed := 0
	for _, id := range found {
		if !images[id] {
			if err := s.removeOrphan(id); err != nil {
				return err
			}
			removed++
		}
	}
	beside, halves, err := sealed.List(s.fs, imagesDir(s.dir))
	if err != nil {
		return err
	}
	for _, id := range beside {
		if !images[id] {
			if err := sealed.Remove(s.fs, imagesDir(s.dir), id); err != nil {
				return err
			}
			removed++
		}
	}
	for _, name := range halves {
		if err := s.fs.Remove(name); err != nil {
			return err
		}
		removed++
	}
	if removed > 0 {
		s.note("removed %d image files that belong to no volume (made ahead, or left by a command that was cut short)", removed)
		if err := s.fs.SyncDir(imagesDir(s.dir)); err != nil {
			return err
		}
	}
	dirs, err := s.fs.ReadDir(volumesDir(s.dir))
	if err != nil {
		return err
	}
	for _, name := range dirs {
		if _, err := strconv.ParseUint(name, 16, 64); err != nil || volumes[name] {
			continue
		}
		if err := s.removeVolumeDir(path.Join(volumesDir(s.dir), name)); err != nil {
			return err
		}
		s.note("removed the journal of volume ID %s, which is not in the catalog", name)
	}
	return nil
}

// recoverVolumes recovers all volumes: those that share images one after the other,
// and others beside each other, since each waits for the disk most of the time. A few
// are not worth it, and come in order.
func (s *Store) recoverVolumes(all []catalog.VolumeState) error {
	const few, atOnce = 16, 32
	families := familiesOf(all)
	var g errgroup.Group
	if g.SetLimit(atOnce); len(families) < few {
		g.SetLimit(1)
	}
	for _, family := range families {
		g.Go(func() error {
			for _, v := range family {
				if err := s.recoverVolume(v); err != nil {
					return fmt.Errorf("volume %s: %w", v.Name, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// familiesOf parts volumes such that no two families share an image. In each the order
// stays.
func familiesOf(all []catalog.VolumeState) (families [][]catalog.VolumeState) {
	elder := make([]int, len(all)) // an earlier volume of the same family, or the volume itself
	eldest := func(i int) int {
		for elder[i] != i {
			i = elder[i]
		}
		return i
	}
	first := map[image.ID]int{} // volume that has it
	for i, v := range all {
		elder[i] = i
		for _, l := range v.Chain {
			if j, there := first[l.Image]; there {
				a, b := eldest(i), eldest(j)
				elder[max(a, b)] = min(a, b)
			} else {
				first[l.Image] = i
			}
		}
	}
	at := map[int]int{} // place of a family, by its eldest
	for i, v := range all {
		e := eldest(i)
		if e == i {
			at[e] = len(families)
			families = append(families, nil)
		}
		families[at[e]] = append(families[at[e]], v)
	}
	return families
}

// recoverVolume opens the images of a volume, replays its journal, and says
// what became of the snapshots that had not been sealed.
func (s *Store) recoverVolume(v catalog.VolumeState) error {
	d := &disk{images: map[image.ID]image.Image{}}
	unsealed := map[image.ID]*file.Image{}
	var ids []image.ID
	var own []*catalog.Link // those that have their tables beside them
	tables := map[image.ID]*lookup.Table{}
	for i, l := range v.Chain {
		if other := s.sharedImage(l); other != nil {
			d.images[l.Image], tables[l.Image] = other.Image(), other.Table()
			continue
		}
		img, err := file.Open(s.fs, imagesDir(s.dir), l.Image, file.Options{SizeBytes: l.SizeBytes})
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("its image %d is missing: %w", l.Image, err)
			}
			return errors.Join(err, d.close(s.heldElsewhere(d)))
		}
		d.images[l.Image] = img
		if !l.Sealed { // else it is durable since its seal
			unsealed[l.Image] = img
		}
		if l.Table == 0 {
			ids = append(ids, l.Image)
		} else {
			own = append(own, &v.Chain[i])
		}
	}
	if err := s.readTables(own, tables); err != nil {
		return errors.Join(err, d.close(s.heldElsewhere(d)))
	}
	j, rec, err := journal.Open(journal.Options{
		FS: s.records, Dir: volumeDir(s.dir, v.ID), VolumeID: uint64(v.ID), Images: ids, SegmentBytes: s.journals,
		StoreBlock: func(b journal.Block) error {
			return each(unsealed, func(img *file.Image) error {
				return s.reserve.drawing(func() error { // what was flushed had its place
					_, err := img.WriteAt(b.Data, int64(b.Block)*lookup.BlockSize)
					return err
				}, nil)
			})(b.Image)
		},
		SyncImage: each(unsealed, (*file.Image).Sync),
		DropImage: each(unsealed, (*file.Image).DropCache),
	})
	if err != nil {
		return errors.Join(err, d.close(s.heldElsewhere(d)))
	}
	maps.Copy(tables, rec.Tables)
	for _, n := range rec.Notes {
		s.note("volume %s: %s", v.Name, n)
	}
	if rec.SyncFailed {
		s.note("volume %s: a sync of it had failed: it is as after a power cut, with all that was flushed before, and takes writes again", v.Name)
	}
	chain := make([]volume.Link, len(v.Chain))
	for i, l := range v.Chain {
		state := volume.Sealing
		if l.Sealed {
			state = volume.Sealed
			if _, shared := d.images[l.Image].(*sealed.Image); !shared {
				if d.images[l.Image], err = s.recoverSums(l, d.images[l.Image], tables[l.Image]); err != nil {
					return errors.Join(err, j.Close(), d.close(s.heldElsewhere(d)))
				}
			}
		}
		chain[i] = volume.Link{ID: l.Image, Image: d.images[l.Image], Table: tables[l.Image], SizeBytes: l.SizeBytes, State: state}
	}
	d, err = s.addDisk(v.Volume, j, d.images, chain)
	if err != nil {
		return err
	}
	return s.recoverSnapshots(d, v.Chain, rec.Drained)
}

// readTables reads the tables of sealed images, as many at once as there are processors:
// of a volume written everywhere they are a gibibyte. The links get the marks that they
// have.
func (s *Store) readTables(of []*catalog.Link, tables map[image.ID]*lookup.Table) error {
	read := make([]*lookup.Table, len(of))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, l := range of {
		g.Go(func() error {
			t, mark, err := sealed.ReadTable(s.fs, imagesDir(s.dir), l.Image, l.Table)
			if err == nil && mark > l.Table && !l.Due {
				err = fmt.Errorf("%w: the table of image %d was written %d times, and %d are recorded", catalog.ErrCorrupt, l.Image, mark, l.Table)
			}
			read[i], l.Table = t, mark
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, l := range of {
		tables[l.Image] = read[i]
	}
	return nil
}

// sharedImage is the VLUN of a volume that was recovered before and has the image
// too, or nil.
func (s *Store) sharedImage(l catalog.Link) *volume.VLUN {
	if l.Table == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if holders := s.holdersLocked(l.Image); len(holders) > 0 {
		return holders[0].vlun
	}
	return nil
}

// each does something with those images that are in the map.
func each(images map[image.ID]*file.Image, do func(*file.Image) error) func(image.ID) error {
	return func(id image.ID) error {
		if img := images[id]; img != nil {
			return do(img)
		}
		return nil
	}
}

// recoverSums joins a sealed image and its checksum file. Where that is lost or
// damaged, or the disk refuses it, the volume opens all the same, and reads of the
// image fail until the file can be read, or has been made anew (sealAgain).
func (s *Store) recoverSums(l catalog.Link, bare image.Image, t *lookup.Table) (image.Image, error) {
	rec, err := recoveredSeal(l)
	if err != nil {
		return bare, err
	}
	if len(rec.bad) > 0 {
		s.note("image %d: blocks from %d on are known not to hold what was sealed; reads of them fail", l.Image, rec.bad[0].Block)
	}
	sums, err := openSums(s.fs, s.dir, l.Image, l.SizeBytes, t, rec)
	if err == nil {
		return sealed.New(bare, sums, s.sums, s.metRot), nil
	}
	if !errors.Is(err, image.ErrCorrupt) && !errors.Is(err, syscall.EIO) {
		return bare, err
	}
	s.note("image %d: its sums can't be used, so reads of it fail until they are made anew: %v", l.Image, err)
	return sealed.Lost(bare, l.Image, err), nil
}

func recoveredSeal(l catalog.Link) (*seal, error) {
	hash, err := sealed.ParseHash(l.Hash)
	if err != nil {
		return nil, fmt.Errorf("%w: image %d: %w", catalog.ErrCorrupt, l.Image, err)
	}
	return &seal{hash: hash, scrubbed: l.Scrubbed, read: l.Scrubbed, bad: l.Bad, table: l.Table, punched: l.Punched, due: l.Due, unsure: true}, nil
}

// recoverSnapshots takes the snapshots over from the catalog. One that still
// drained, or that a power cut met before its seal, is interrupted: it holds all
// that was flushed.
func (s *Store) recoverSnapshots(d *disk, chain []catalog.Link, drained map[image.ID]bool) error {
	var interrupted []*volume.VLUN
	vluns := d.volume.VLUNs()
	s.mu.Lock()
	for i, l := range chain {
		if l.Sealed {
			d.sealed[vluns[i]] = s.recoveredOnceLocked(l)
		} else if l.Table > 0 {
			d.founded[vluns[i]] = true
		}
		if l.Snapshot == nil {
			continue
		}
		snap, err := recoveredSnapshot(l)
		if err != nil {
			s.mu.Unlock()
			return err
		}
		d.snapshots[vluns[i]] = snap
		if !l.Sealed && l.Snapshot.State == volume.Draining.String() && !drained[l.Image] {
			snap.consistency, snap.torn, snap.waiting = volume.ConsistencyInterrupted, snap.waiting, nil
			interrupted = append(interrupted, vluns[i])
			s.note("snapshot %s@%s had not been sealed: it holds all that was flushed, and is marked interrupted", d.record.Name, snap.name)
		}
	}
	s.mu.Unlock()
	if err := s.putLinks(d, volume.Sealing, interrupted...); err != nil {
		return err
	}
	var due []punching
	s.mu.Lock()
	for _, k := range slices.Backward(vluns) {
		if rec := d.sealed[k]; rec != nil && rec.due && !lost(k) {
			due = append(due, toPunch(k))
		}
	}
	s.mu.Unlock()
	s.sealer.punch(due...)
	return nil
}

// sealRecovered has all sealed that is not. It comes when every volume is there: an image
// may stand in the chains of many.
func (s *Store) sealRecovered() {
	s.mu.Lock()
	disks := slices.SortedFunc(maps.Values(s.byVolume), func(a, b *disk) int { return cmp.Compare(a.record.ID, b.record.ID) })
	s.mu.Unlock()
	for _, d := range disks {
		vluns := d.volume.VLUNs()
		for _, k := range vluns[:len(vluns)-1] {
			if _, ok := k.Image().(*sealed.Image); !ok || lost(k) {
				s.sealer.enqueue(k)
			}
		}
	}
}

// recoveredOnceLocked is what is recorded of a sealed image: the same for all that
// have it. Store.mu is held.
func (s *Store) recoveredOnceLocked(l catalog.Link) *seal {
	if l.Table > 0 {
		for _, h := range s.holdersLocked(l.Image) {
			if rec := h.disk.sealed[h.vlun]; rec != nil {
				return rec
			}
		}
	}
	rec, _ := recoveredSeal(l) // recoverSums has said what is wrong
	return rec
}

func recoveredSnapshot(l catalog.Link) (*snapshot, error) {
	r := l.Snapshot
	consistency, err := volume.ParseConsistency(r.Consistency)
	if err != nil {
		return nil, err
	}
	snap := &snapshot{
		name: r.Name, cut: r.Cut, cutTime: r.CutTime, drain: r.Drain, consistency: consistency,
		marks: recoveredMarks(r),
		torn:  r.Torn, waiting: r.Waiting, conflicts: r.Conflicts, verified: r.Verified, wrongHash: r.WrongHash, drill: r.Drill, settled: make(chan struct{}),
	}
	if l.Sealed {
		snap.settle()
	}
	return snap, nil
}

// putLinks records VLUNs in the catalog as memory has them, in the state given.
func (s *Store) putLinks(d *disk, state volume.State, vluns ...*volume.VLUN) error {
	if len(vluns) == 0 {
		return nil
	}
	s.chains.RLock()
	defer s.chains.RUnlock()
	return s.catalog.Update(func(tx *catalog.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range vluns {
			if err := s.putLinkLocked(tx, d, k, state); err != nil {
				return err
			}
		}
		return nil
	})
}

// putLinkLocked records a VLUN, and the VLUNs of other volumes that have its image
// too: what is known of that is recorded with each. Store.mu is held.
func (s *Store) putLinkLocked(tx *catalog.Tx, d *disk, k *volume.VLUN, state volume.State) error {
	if d.images[k.ImageID()] == nil {
		return nil // dropped meanwhile
	}
	if d.sealed[k] == nil && !d.founded[k] { // it stands in one chain
		if s.byVolume[d.volume] != d {
			return nil // deleted meanwhile
		}
		return tx.PutLink(d.link(k, state))
	}
	for _, h := range s.holdersLocked(k.ImageID()) {
		if err := tx.PutLink(h.disk.link(h.vlun, state)); err != nil {
			return err
		}
	}
	return nil
}

// link is the record of a VLUN in a state; one that is sealed stays so, whatever
// else is recorded of it. Store.mu is held.
func (d *disk) link(k *volume.VLUN, state volume.State) catalog.Link {
	l := catalog.Link{Volume: d.record.ID, Image: k.ImageID(), SizeBytes: k.SizeBytes()}
	if d.founded[k] { // so it has drained, whatever is to be recorded
		l.Table, state = 1, volume.Sealing
	}
	if rec := d.sealed[k]; rec != nil {
		state = volume.Sealed
		rec.record(&l)
	}
	if snap := d.snapshots[k]; snap != nil {
		l.Snapshot = &catalog.Snapshot{
			Name: snap.name, Cut: snap.cut, CutTime: snap.cutTime, State: state.String(),
			Consistency: snap.consistency.String(), Drain: snap.drain, Conflicts: snap.conflicts + k.Conflicts(),
			Torn: snap.torn, Waiting: snap.waiting, Verified: snap.verified, WrongHash: snap.wrongHash, Drill: snap.drill,
		}
		snap.marks.record(l.Snapshot)
	}
	return l
}

// recordDrained says in the catalog which snapshots are exact though not
// sealed. Of a volume that is flushed that stays true over a power cut.
func (s *Store) recordDrained() (err error) {
	for _, d := range s.byVolume {
		if d.volume.Flush() != nil {
			continue // the close says why
		}
		var drained []*volume.VLUN
		vluns := d.volume.VLUNs()
		for _, k := range vluns[:len(vluns)-1] {
			if k.State() == volume.Sealing {
				drained = append(drained, k)
			}
		}
		err = errors.Join(err, s.putLinks(d, volume.Sealing, drained...))
	}
	return err
}

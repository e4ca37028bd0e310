package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/volume"
)

// found lets branches rest on a snapshot that has drained and is not sealed. Its seal
// reads all that it holds, for the checksums; whoever wants a clone need not wait for
// that. An image is founded when, as by its seal, it is durable and has its table beside
// it, and the catalog says so: then it may stand in many chains. What is still to be done
// for that is in proportion to what was written and not flushed.
//
//  1. Images are founded in the order of their chain, as they are sealed (R8): below one
//     are only such that are founded or sealed, above one that is neither none is.
//  2. It stays Sealing in every chain that it stands in, and nobody asks for checksums
//     that it has not. Its seal ends that in all of them, with one commit.
//  3. Whoever deletes a volume lets another that has the image seal it (sealElsewhere).
//  4. A crash before the record leaves a table file that the seal writes again.
//  5. What one link says of a seal counts for all links of the image (agree): a preserve
//     may have recorded one of them when the seal's own commit was still to come.
//
// Rejected: a clone whose flushes flush the snapshot's volume too until that is done (one
// volume's promise would hang on another's journal); founding every snapshot before it
// is sealed (one more commit of the catalog for each).
func (s *Store) found(ctx context.Context, full string) error {
	s.mu.Lock()
	d, k, _, err := s.snapshotLocked(full)
	if err == nil {
		err = s.finishedLocked(full)
	}
	switch {
	case err != nil:
	case s.closed:
		err = ErrClosed
	case k.State() == volume.Draining: // it is another than a moment ago
		err = fmt.Errorf("snapshot %s is %w", full, ErrDraining)
	default:
		s.preserves.Add(1) // a close waits
		defer s.preserves.Done()
	}
	if err != nil {
		s.mu.Unlock()
		return err
	}
	chain := d.volume.VLUNs()
	s.mu.Unlock()
	for _, j := range chain {
		if err := s.foundImage(ctx, d, j); err != nil {
			return fmt.Errorf("make snapshot %s durable: %w", full, err)
		}
		if j == k {
			break
		}
	}
	return nil
}

func (s *Store) foundImage(ctx context.Context, d *disk, k *volume.VLUN) error {
	select {
	case <-k.Drained(): // and what is known of that is there to be recorded
	case <-ctx.Done():
		return ctx.Err()
	}
	d.founding.Lock() // else it may be about to be taken back
	done := s.isFounded(d, k)
	d.founding.Unlock()
	if done {
		return nil
	}
	if err := s.writeBackUnsynced(ctx, d, k); err != nil {
		return err
	}
	d.founding.Lock()
	defer d.founding.Unlock()
	s.mu.Lock()
	gone := s.byVolume[d.volume] != d
	s.mu.Unlock()
	switch {
	case gone:
		return fmt.Errorf("volume %s %w", d.record.Name, ErrNotFound)
	case s.isFounded(d, k):
		return nil
	}
	if err := s.fasten(d, k); err != nil {
		return err
	}
	if err := s.recordFounded(d, k); err != nil {
		return err
	}
	s.leaveJournal(d, k)
	return nil
}

func (s *Store) recordFounded(d *disk, k *volume.VLUN) error {
	s.chains.RLock() // no branch is made with it before that is durable
	defer s.chains.RUnlock()
	err := s.catalog.Update(func(tx *catalog.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		d.founded[k] = true
		return s.putLinkLocked(tx, d, k, volume.Sealing)
	})
	if err != nil {
		s.mu.Lock()
		delete(d.founded, k)
		s.mu.Unlock()
	}
	return err
}

// agree lets all links of an image be sealed if one is.
func agree(volumes []catalog.VolumeState) {
	sealedAs := map[image.ID]catalog.Link{}
	for _, v := range volumes {
		for _, l := range v.Chain {
			if l.Sealed {
				sealedAs[l.Image] = l
			}
		}
	}
	for _, v := range volumes {
		for i, l := range v.Chain {
			as, is := sealedAs[l.Image]
			if !is || l.Sealed {
				continue
			}
			as.Volume, as.Snapshot = l.Volume, l.Snapshot
			if as.Snapshot != nil {
				as.Snapshot.State = volume.Sealed.String()
			}
			v.Chain[i] = as
		}
	}
}

// isFounded tells whether branches may rest on an image; it may be sealed too.
func (s *Store) isFounded(d *disk, k *volume.VLUN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.foundedLocked(k)
}

// foundedLocked is isFounded; Store.mu is held.
func (d *disk) foundedLocked(k *volume.VLUN) bool { return d.founded[k] || k.State() == volume.Sealed }

// writeBackUnsynced writes back, gently, what of an image may not be on the disk: of a
// large one that was flushed that is little.
func (s *Store) writeBackUnsynced(ctx context.Context, d *disk, k *volume.VLUN) (err error) {
	s.mu.Lock()
	work := d.ctx
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(work, cancel)()
	defer func() {
		if err != nil && work.Err() != nil {
			err = fmt.Errorf("volume %s is %w: it is being deleted", d.record.Name, ErrInUse)
		}
	}()
	img, err := file.Open(vfs.Labelled{FS: s.fs, Label: "found"}, imagesDir(s.dir), k.ImageID(), file.Options{SizeBytes: k.SizeBytes()})
	if err != nil {
		return err
	}
	err = writeBack(ctx, img, k.Unsynced(), wholeShare())
	if errors.Is(err, image.ErrSyncFailed) { // the kernel tells each handle, or the first that asks
		err = k.SyncFailed(err)
	}
	return errors.Join(err, img.Close())
}

// foundedBelow lists the images below one in its chain that are founded, and that nobody
// seals by themselves.
func (s *Store) foundedBelow(k *volume.VLUN) (list []*volume.VLUN) {
	unsealed := s.sealer.unsealed()
	s.mu.Lock()
	defer s.mu.Unlock()
	awaited := map[image.ID]bool{}
	for _, j := range unsealed {
		if d := s.byVolume[j.Volume()]; j != k && d != nil && d.ctx.Err() == nil { // else it is being deleted
			awaited[j.ImageID()] = true
		}
	}
	d := s.byVolume[k.Volume()]
	for _, j := range k.Volume().VLUNs() {
		if j == k || d == nil {
			break
		}
		if d.founded[j] && !awaited[j.ImageID()] {
			list = append(list, j)
		}
	}
	return list
}

// sealElsewhere has the images of a volume that was deleted sealed that it shared and
// that are not sealed yet.
func (s *Store) sealElsewhere(d *disk) {
	var heirs []*volume.VLUN
	s.mu.Lock()
	for _, k := range d.volume.VLUNs() {
		if !d.founded[k] {
			continue
		}
		if others := s.holdersLocked(k.ImageID()); len(others) > 0 {
			heirs = append(heirs, others[0].vlun)
		}
	}
	s.mu.Unlock()
	for _, k := range heirs {
		s.sealer.enqueue(k)
	}
}

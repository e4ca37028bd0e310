package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// Clone makes a volume that begins as a snapshot is, and shares its images: it
// copies nothing, and what either needs stays when the other is deleted. It waits
// until the snapshot is sealed. Errors: ErrInvalid, ErrNotFound, ErrExists,
// ErrDraining, ErrNoSpace, ctx's.
func (s *Store) Clone(ctx context.Context, full, name string) (VolumeInfo, error) {
	if err := checkName("volume", name); err != nil {
		return VolumeInfo{}, err
	}
	if err := s.sealedSoon(ctx, full); err != nil {
		return VolumeInfo{}, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if _, err := s.disk(name); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = fmt.Errorf("volume %s %w: choose another name for the clone", name, ErrExists)
		}
		return VolumeInfo{}, err
	}
	d, k, err := s.branchable(full)
	if err != nil {
		return VolumeInfo{}, err
	}
	record := catalog.Volume{Name: name, SizeBytes: k.SizeBytes(), Scope: d.record.Scope, Created: time.Now().UTC()}
	b, err := s.branch(d, k, record, nil)
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("clone %s: %w", full, err)
	}
	return s.volumeInfo(b), nil
}

// Sealed describes a snapshot when it is sealed: it waits for the seal of one that
// has drained. Errors: ErrInvalid, ErrNotFound, ErrDraining, ctx's.
func (s *Store) Sealed(ctx context.Context, full string) (SnapshotInfo, error) {
	if err := s.sealedSoon(ctx, full); err != nil {
		return SnapshotInfo{}, err
	}
	return s.Snapshot(full)
}

// sealedSoon waits for the seal of a snapshot that has drained.
func (s *Store) sealedSoon(ctx context.Context, full string) error {
	info, err := s.Snapshot(full)
	switch {
	case err != nil:
		return err
	case info.State == volume.Draining:
		return fmt.Errorf("snapshot %s is %w: it waits for %v", full, ErrDraining, info.WaitsFor)
	case info.State == volume.Sealing:
		return s.WaitSealed(ctx, full)
	}
	return nil
}

// branchable returns a sealed snapshot.
func (s *Store) branchable(full string) (*disk, *volume.VLUN, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, k, _, err := s.snapshotLocked(full)
	if err == nil && k.State() != volume.Sealed {
		err = fmt.Errorf("snapshot %s is %w or being sealed", full, ErrDraining)
	}
	return d, k, err
}

// branch makes a volume whose chain is that of d up to k, with a tip of its own.
// The record says what else it is.
// Its files come first and its record last: what has no record when the directory
// is opened is removed. If past is not nil, it loses its name to the branch in the
// same step. Store.admin is held.
func (s *Store) branch(d *disk, k *volume.VLUN, record catalog.Volume, past *disk) (*disk, error) {
	if err := s.reserve.spare(); err != nil {
		return nil, err
	}
	if err := s.catalog.Update(func(tx *catalog.Tx) (err error) {
		record.ID, err = tx.NewVolumeID()
		return err
	}); err != nil {
		return nil, err
	}
	next, err := s.spares.take(1)
	if err != nil {
		return nil, err
	}
	defer s.spares.refill()
	tip := next[0]
	s.chains.Lock() // what is known of the images stays as it is recorded until the branch is their holder too
	defer s.chains.Unlock()
	s.mu.Lock()
	x := d.sharedLocked(k)
	s.mu.Unlock()
	j, err := s.createJournal(record.ID, tip.ID)
	if err == nil {
		err = s.catalog.Update(func(tx *catalog.Tx) error { return s.putBranch(tx, record, x, tip.ID, past) })
	}
	if err != nil {
		return nil, errors.Join(err, s.undoCreate(record.ID, j, tip, errors.Is(err, catalog.ErrFailed)))
	}
	x.images[tip.ID] = tip.Image
	x.chain = append(x.chain, volume.Link{ID: tip.ID, Image: tip.Image, Table: lookup.NewTable(), SizeBytes: record.SizeBytes})
	b, err := s.addDisk(record, j, x.images, x.chain)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, rec := range x.seals {
		b.sealed[b.volume.VLUNs()[i]] = rec
	}
	if past != nil {
		past.record.Past = true
	}
	return b, nil
}

// shared is what a branch takes over from the chain below it.
type shared struct {
	chain  []volume.Link
	images map[image.ID]image.Image
	seals  []*seal // one a link
}

// sharedLocked is the chain of d up to k; Store.mu is held.
func (d *disk) sharedLocked(k *volume.VLUN) (x shared) {
	x.images = map[image.ID]image.Image{}
	for _, below := range d.chainLocked() {
		x.chain = append(x.chain, volume.Link{
			ID: below.ImageID(), Image: below.Image(), Table: below.Table(), SizeBytes: below.SizeBytes(), State: volume.Sealed,
		})
		x.images[below.ImageID()] = below.Image()
		x.seals = append(x.seals, d.sealed[below])
		if below == k {
			break
		}
	}
	return x
}

// putBranch records a branch.
func (s *Store) putBranch(tx *catalog.Tx, record catalog.Volume, x shared, tip image.ID, past *disk) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if past != nil {
		old := past.record
		old.Past = true
		if err := tx.PutVolume(old); err != nil {
			return err
		}
	}
	if err := tx.PutVolume(record); err != nil {
		return err
	}
	for i, l := range x.chain {
		link := catalog.Link{Volume: record.ID, Image: l.ID, SizeBytes: l.SizeBytes}
		x.seals[i].record(&link)
		if err := tx.PutLink(link); err != nil {
			return err
		}
	}
	return tx.PutLink(catalog.Link{Volume: record.ID, Image: tip, SizeBytes: record.SizeBytes})
}

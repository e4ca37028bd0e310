package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/volume"
)

// DeleteSnapshot takes the name of a snapshot away, durably, and returns: nothing
// is copied. Blocks that nobody can see any more give their room back in the
// background (punch); the others stay where they lie, in an image without a
// name. Errors: ErrInvalid, ErrNotFound, ErrDraining; ErrInUse if a client has it
// open or it is being verified; ErrHeld, ErrClock.
func (s *Store) DeleteSnapshot(full string) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	d, k, info, err := s.deletable(full)
	if err != nil {
		return err
	}
	if err := s.mayGo(info); err != nil {
		return err
	}
	due, err := s.nameless(d, k)
	switch {
	case errors.Is(err, volume.ErrBusy):
		return fmt.Errorf("snapshot %s is %w: a client has it open; disconnect it first", full, ErrInUse)
	case err != nil:
		return fmt.Errorf("delete snapshot %s: %w", full, err)
	}
	s.mu.Lock()
	empty := d.emptyPastLocked()
	s.mu.Unlock()
	if empty {
		return s.deleteBranch(d, nil)
	}
	s.sealer.punch(due...)
	return nil
}

// emptyPastLocked tells whether a volume is a past that nobody can see any more;
// Store.mu is held.
func (d *disk) emptyPastLocked() bool { return d.record.Past && len(d.snapshots) == 0 }

// dropEmptyPasts deletes those whose last snapshot was deleted by an earlier life of the
// server, which came no further.
func (s *Store) dropEmptyPasts() {
	s.admin.Lock()
	defer s.admin.Unlock()
	s.mu.Lock()
	var empty []*disk
	for _, d := range s.byVolume {
		if d.emptyPastLocked() {
			empty = append(empty, d)
		}
	}
	s.mu.Unlock()
	for _, d := range empty {
		if err := s.deleteBranch(d, nil); err != nil {
			s.note("what a rollback of volume %s left, and nobody can see, can't be deleted: %v", d.record.Name, err)
		}
	}
}

func (s *Store) deletable(full string) (d *disk, k *volume.VLUN, info SnapshotInfo, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, k, snap, err := s.snapshotLocked(full)
	switch {
	case err != nil:
		return nil, nil, info, err
	case k.State() == volume.Draining:
		return nil, nil, info, fmt.Errorf("snapshot %s is %w: it waits for %v; delete it when they have ended", full, ErrDraining, d.waitsForLocked(k))
	case snap.verifying != nil:
		return nil, nil, info, fmt.Errorf("snapshot %s is %w: it is being verified", full, ErrInUse)
	}
	return d, k, s.snapshotInfoLocked(d, k, snap), s.finishedLocked(full)
}

// nameless takes the name of a VLUN away, on the disk and then in memory. Nobody
// records anything of a sealed image between the two: it would bring the name back.
func (s *Store) nameless(d *disk, k *volume.VLUN) (due []image.ID, err error) {
	s.chains.Lock()
	defer s.chains.Unlock()
	err = k.Retire(func() error {
		return s.catalog.Update(func(tx *catalog.Tx) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.dropName(tx, d, k, &due)
		})
	})
	if err != nil {
		return nil, err
	}
	yield.Here("delete: recorded")
	if nameDropped != nil {
		nameDropped()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.forget(k)
	return due, nil
}

// Tests do something between the two.
var nameDropped func()

// dropName records that a VLUN has no name any more, and of which images that may
// make blocks invisible: its own, and those below it that no other name protects.
// Store.mu is held.
func (s *Store) dropName(tx *catalog.Tx, d *disk, k *volume.VLUN, due *[]image.ID) error {
	snap := d.snapshots[k]
	delete(d.snapshots, k)
	defer func() { d.snapshots[k] = snap }() // until it is durable
	chain := d.volume.VLUNs()
	for i := slices.Index(chain, k); i >= 0 && d.snapshots[chain[i]] == nil; i-- {
		rec := d.sealed[chain[i]]
		if rec == nil {
			if err := tx.PutLink(d.link(chain[i], chain[i].State())); err != nil {
				return err
			}
			continue // when it is sealed, it is its turn
		}
		rec.due = true
		*due = append(*due, chain[i].ImageID())
		if err := s.putLinkLocked(tx, d, chain[i], volume.Sealed); err != nil {
			return err
		}
	}
	return nil
}

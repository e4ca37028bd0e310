package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tidemark/tidemark/catalog"
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
	d, k, err := s.deletable(full)
	if err != nil {
		return err
	}
	due, err := s.nameless(d, k)
	switch {
	case errors.Is(err, volume.ErrBusy):
		return viewedError(full)
	case err != nil:
		return fmt.Errorf("delete snapshot %s: %w", full, err)
	}
	s.mu.Lock()
	empty := d.emptyPastLocked()
	s.mu.Unlock()
	if empty {
		err = s.deleteBranch(d, nil)
	}
	s.sealer.punch(due...)
	return err
}

// Deletable is nil if DeleteSnapshot would delete each of some snapshots now, and
// deletes none. Errors: ErrInvalid if one is named twice; else those of
// DeleteSnapshot, for the first that could not be deleted.
func (s *Store) Deletable(fulls ...string) error {
	for i, full := range fulls {
		if slices.Contains(fulls[:i], full) {
			return fmt.Errorf("%w: snapshot %s is named twice", ErrInvalid, full)
		}
		_, k, err := s.deletable(full)
		if err != nil {
			return err
		}
		if k.Viewed() {
			return viewedError(full)
		}
	}
	return nil
}

func viewedError(full string) error {
	return fmt.Errorf("snapshot %s is %w: a client has it open; disconnect it first", full, ErrInUse)
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

// deletable finds a snapshot that may be deleted, unless a client has it open.
func (s *Store) deletable(full string) (*disk, *volume.VLUN, error) {
	s.mu.Lock()
	d, k, info, err := s.releasedLocked(full)
	s.mu.Unlock()
	if err == nil {
		err = s.mayGo(info)
	}
	return d, k, err
}

// releasedLocked finds a snapshot that nothing of the store works with; Store.mu is
// held.
func (s *Store) releasedLocked(full string) (d *disk, k *volume.VLUN, info SnapshotInfo, err error) {
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
func (s *Store) nameless(d *disk, k *volume.VLUN) (due []punching, err error) {
	s.chains.Lock()
	defer s.chains.Unlock()
	err = k.Retire(func() error {
		return s.recordMarking(func(tx *catalog.Tx, m *marking) (err error) {
			due, err = s.dropName(tx, m, d, k)
			return err
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
// make blocks invisible. Store.mu is held.
func (s *Store) dropName(tx *catalog.Tx, m *marking, d *disk, k *volume.VLUN) (due []punching, err error) {
	snap := d.snapshots[k]
	delete(d.snapshots, k)
	defer func() { d.snapshots[k] = snap }() // until it is durable
	for _, j := range d.unprotectedLocked(k) {
		state := j.State()
		if rec := d.sealed[j]; rec != nil { // else, when it is sealed it is its turn
			m.set(rec, rec.punched, true)
			due, state = append(due, toPunch(j)), volume.Sealed
		}
		if err := s.putLinkLocked(tx, d, j, state); err != nil {
			return nil, err
		}
	}
	return due, nil
}

// unprotectedLocked lists a VLUN and those below it, newest first, down to one that has
// a name: when there was one last, it was the ceiling (punch) of all of them. Store.mu is
// held.
func (d *disk) unprotectedLocked(k *volume.VLUN) (list []*volume.VLUN) {
	chain := d.volume.VLUNs()
	for i := slices.Index(chain, k); i >= 0 && d.snapshots[chain[i]] == nil; i-- {
		list = append(list, chain[i])
	}
	return list
}

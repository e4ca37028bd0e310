package store

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/volume"
)

// DeleteSnapshots takes the names of snapshots away, durably and in one step, and
// returns: nothing is copied. Blocks that nobody can see any more give their room back
// in the background (punch); the others stay where they lie, in images without a name.
// All go or none. Errors: ErrInvalid, also if one is named twice; ErrNotFound,
// ErrDraining; ErrInUse if a client has one open or it is being verified; ErrHeld,
// ErrClock.
func (s *Store) DeleteSnapshots(fulls ...string) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	named, err := s.deletable(fulls...)
	if err != nil {
		return err
	}
	due, err := s.nameless(named...)
	if err != nil {
		return fmt.Errorf("delete %s: %w", count(len(fulls), "snapshot", "snapshots"), err)
	}
	s.sealer.punch(due...)
	return s.dropEmptyPasts(disksOf(named)...)
}

// Deletable is nil if DeleteSnapshots would delete these now, and deletes none. Errors:
// as DeleteSnapshots, for the first that could not be deleted.
func (s *Store) Deletable(fulls ...string) error {
	_, err := s.deletable(fulls...)
	return err
}

func viewedError(full string) error {
	return fmt.Errorf("snapshot %s is %w: a client has it open; disconnect it first", full, ErrInUse)
}

// emptyPastLocked tells whether a volume is a past that nobody can see any more;
// Store.mu is held.
func (d *disk) emptyPastLocked() bool { return d.record.Past && len(d.snapshots) == 0 }

// dropEmptyPasts deletes those of some volumes that are. Store.admin is held.
func (s *Store) dropEmptyPasts(disks ...*disk) (err error) {
	for _, d := range disks {
		s.mu.Lock()
		empty := d.emptyPastLocked()
		s.mu.Unlock()
		if empty {
			err = errors.Join(err, s.deleteBranch(d, nil))
		}
	}
	return err
}

// deletable finds snapshots that may be deleted.
func (s *Store) deletable(fulls ...string) ([]holder, error) {
	named := make([]holder, 0, len(fulls))
	for i, full := range fulls {
		if slices.Contains(fulls[:i], full) {
			return nil, fmt.Errorf("%w: snapshot %s is named twice", ErrInvalid, full)
		}
		s.mu.Lock()
		d, k, info, err := s.releasedLocked(full)
		s.mu.Unlock()
		if err == nil {
			err = s.mayGo(info)
		}
		if err == nil && k.Viewed() {
			err = viewedError(full)
		}
		if err != nil {
			return nil, err
		}
		named = append(named, holder{d, k})
	}
	return named, nil
}

// dropForgottenPasts deletes those whose last snapshot was deleted by an earlier life of
// the server, which came no further.
func (s *Store) dropForgottenPasts() {
	s.admin.Lock()
	defer s.admin.Unlock()
	s.mu.Lock()
	disks := slices.Collect(maps.Values(s.byVolume))
	s.mu.Unlock()
	for _, d := range disks {
		if err := s.dropEmptyPasts(d); err != nil {
			s.note("what a rollback of volume %s left, and nobody can see, can't be deleted: %v", d.record.Name, err)
		}
	}
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

// nameless takes names away, on the disk and then in memory. Nobody records anything of
// a sealed image between the two: it would bring a name back.
func (s *Store) nameless(named ...holder) (due []punching, err error) {
	s.chains.Lock()
	defer s.chains.Unlock()
	err = retire(named, func() error {
		return s.recordMarking(func(tx *catalog.Tx, m *marking) (err error) {
			due, err = s.dropNames(tx, m, named)
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
	for _, h := range named {
		h.disk.forget(h.vlun)
	}
	return due, nil
}

// Tests do something between the two.
var nameDropped func()

// retire lets nobody open VLUNs that are about to lose their names.
func retire(named []holder, record func() error) error {
	vluns := make([]*volume.VLUN, len(named))
	for i, h := range named {
		vluns[i] = h.vlun
	}
	err := volume.Retire(record, vluns...)
	if errors.Is(err, volume.ErrBusy) { // it was not, a moment ago
		return fmt.Errorf("a snapshot is %w: a client has just opened it", ErrInUse)
	}
	return err
}

// dropNames records that VLUNs have no names any more, and of which images that may
// make blocks invisible. Store.mu is held.
func (s *Store) dropNames(tx *catalog.Tx, m *marking, named []holder) (due []punching, err error) {
	snaps := make([]*snapshot, len(named))
	for i, h := range named {
		snaps[i] = h.disk.snapshots[h.vlun]
		delete(h.disk.snapshots, h.vlun)
	}
	defer func() { // until it is durable
		for i, h := range named {
			h.disk.snapshots[h.vlun] = snaps[i]
		}
	}()
	for _, h := range unprotectedLocked(named) {
		state := h.vlun.State()
		if rec := h.disk.sealed[h.vlun]; rec != nil { // else, when it is sealed it is its turn
			m.set(rec, rec.punched, true)
			due, state = append(due, toPunch(h.vlun)), volume.Sealed
		}
		if err := s.putLinkLocked(tx, h.disk, h.vlun, state); err != nil {
			return nil, err
		}
	}
	return due, nil
}

// unprotectedLocked lists VLUNs and those below each, newest first, down to one that has
// a name: when there was one last, it was the ceiling (punch) of all of them. Store.mu is
// held.
func unprotectedLocked(from []holder) (list []holder) {
	listed := map[*volume.VLUN]bool{}
	for _, h := range from {
		chain := h.disk.volume.VLUNs()
		for i := slices.Index(chain, h.vlun); i >= 0 && h.disk.snapshots[chain[i]] == nil && !listed[chain[i]]; i-- {
			list, listed[chain[i]] = append(list, holder{h.disk, chain[i]}), true
		}
	}
	return list
}

// disksOf lists whose VLUNs some are, each once.
func disksOf(holders []holder) (disks []*disk) {
	for _, h := range holders {
		if !slices.Contains(disks, h.disk) {
			disks = append(disks, h.disk)
		}
	}
	return disks
}

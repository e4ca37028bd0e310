package store

import (
	"fmt"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/volume"
)

// A held volume lasts as long as whoever holds it: the clone of a drill, and a new
// volume while it is filled. DropHeld deletes it, or else the next Open of the data
// directory.

// BeginVolume makes an empty volume, as CreateVolume, that is held until KeepVolume.
func (s *Store) BeginVolume(name string, sizeBytes int64, scope volume.Scope) (VolumeInfo, error) {
	return s.newVolume(name, sizeBytes, scope, true)
}

// KeepVolume lets a held volume last, with what was flushed of it. Errors: ErrNotFound;
// ErrInvalid for one that nobody holds; ErrNoSpace.
func (s *Store) KeepVolume(name string) (VolumeInfo, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	d, err := s.heldDisk(name)
	if err != nil {
		return VolumeInfo{}, err
	}
	s.mu.Lock()
	branches := s.branchesLocked(name) // a rollback to a snapshot of an older one is to last too
	s.mu.Unlock()
	err = s.catalog.Update(func(tx *catalog.Tx) error {
		for _, b := range branches {
			record := b.record
			record.Held = false
			if err := tx.PutVolume(record); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("keep volume %s: %w", name, err)
	}
	s.mu.Lock()
	for _, b := range branches {
		b.record.Held = false
	}
	s.mu.Unlock()
	return s.volumeInfo(d), nil
}

// DropHeld deletes a held volume, with all that was made of it, and disconnects who
// has it open. Errors: ErrNotFound; ErrInvalid for one that nobody holds; ErrInUse if
// a client's request hangs.
func (s *Store) DropHeld(name string) error {
	d, err := s.heldDisk(name)
	if err != nil {
		return err
	}
	d.volume.Evict(evictGrace)
	return s.DeleteVolume(name, true)
}

func (s *Store) heldDisk(name string) (*disk, error) {
	d, err := s.disk(name)
	if err == nil && !s.held(d) {
		err = fmt.Errorf("%w: volume %s is held by nobody", ErrInvalid, name)
	}
	return d, err
}

func (s *Store) held(d *disk) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.record.Held
}

// dropHeld deletes the volumes whose holders the last life of the server did not see
// the end of.
func (s *Store) dropHeld() {
	for _, v := range s.Volumes() {
		if _, err := s.heldDisk(v.Name); err != nil {
			continue
		}
		if err := s.DeleteVolume(v.Name, true); err != nil {
			s.note("volume %s, of a drill or an import that was cut short, can't be deleted: %v", v.Name, err)
			continue
		}
		s.note("deleted volume %s, of a drill or an import that was cut short", v.Name)
	}
}

package store

import (
	"fmt"
	"slices"
)

// Deletable is nil if DeleteSnapshot would delete each of some snapshots now, and
// deletes none. Errors: ErrInvalid if one is named twice; else those of
// DeleteSnapshot, for the first that could not be deleted.
func (s *Store) Deletable(fulls ...string) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	for i, full := range fulls {
		if slices.Contains(fulls[:i], full) {
			return fmt.Errorf("%w: snapshot %s is named twice", ErrInvalid, full)
		}
		_, k, info, err := s.deletable(full)
		switch {
		case err != nil:
			return err
		case k.Viewed():
			return fmt.Errorf("snapshot %s is %w: a client has it open; disconnect it first", full, ErrInUse)
		}
		if err := s.mayGo(info); err != nil {
			return err
		}
	}
	return nil
}

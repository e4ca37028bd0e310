package store

import (
	"slices"

	"github.com/tidemark/tidemark/catalog"
)

// A marking is what a step is about to record of sealed images: that their views may
// lack blocks (punched), or their files have more than their tables (due). Where it can't
// be recorded it is taken back: nobody may rest on what only memory says.
type marking []marked

type marked struct {
	rec          *seal
	punched, due bool // as it was
}

// set says so of a sealed image; Store.mu is held.
func (m *marking) set(rec *seal, punched, due bool) {
	*m = append(*m, marked{rec, rec.punched, rec.due})
	rec.punched, rec.due = punched, due
}

// undo takes all of it back; Store.mu is held.
func (m marking) undo() {
	for _, x := range slices.Backward(m) {
		x.rec.punched, x.rec.due = x.punched, x.due
	}
}

// recordMarking runs a step, with Store.mu held, that records what it marks.
func (s *Store) recordMarking(step func(*catalog.Tx, *marking) error) error {
	var m marking
	err := s.catalog.Update(func(tx *catalog.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		m.undo() // it runs again, after a full disk
		m = nil
		return step(tx, &m)
	})
	if err != nil {
		s.mu.Lock()
		m.undo()
		s.mu.Unlock()
	}
	return err
}

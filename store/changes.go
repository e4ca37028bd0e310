package store

import (
	"fmt"
	"slices"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// Changes tells where a snapshot may differ from an older one of the same volume,
// from lookup tables, for as long as it is open: it holds the older one, and its
// caller the snapshot, so the images of both stay. To open it costs nothing that
// grows with the volume. Any number of goroutines may ask it.
//
// Rejected: one table of all changes, made when it is opened (the tables have it
// already; a client could ask for many).
type Changes struct {
	base      *volume.View
	tables    []*lookup.Table // a block that is in one of them may differ
	from, end lookup.BlockNum // and all of these, which the older one had not
}

// Changes opens a snapshot's changes since an older one. Both are VOLUME@SNAPSHOT.
// Errors: ErrInvalid, ErrNotFound, ErrDraining.
func (s *Store) Changes(from, to string) (*Changes, error) {
	older, newer, sizes, err := s.diffed(from, to)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	_, k, base, err := s.snapshotLocked(from)
	_, _, snap, err2 := s.snapshotLocked(to)
	s.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case err2 != nil:
		return nil, err2
	case base.cut >= snap.cut:
		return nil, fmt.Errorf("%w: %s is not older than %s", ErrInvalid, from, to)
	case newer[len(newer)-1].State() == volume.Draining || older[len(older)-1].State() == volume.Draining:
		return nil, fmt.Errorf("%s or %s is %w: what it will hold is not yet known", from, to, ErrDraining)
	}
	c := &Changes{from: blocksOf(sizes[0]), end: blocksOf(sizes[1])}
	if sizes[0]%lookup.BlockSize != 0 && sizes[1] > sizes[0] {
		c.from-- // the rest of the last block is new
	}
	for _, k := range unshared(older, newer) {
		c.tables = append(c.tables, k.Table())
	}
	if c.base, err = k.Open(); err != nil {
		return nil, fmt.Errorf("snapshot %s %w: it was deleted", from, ErrNotFound)
	}
	return c, nil
}

// blocksOf is how many blocks a size takes.
func blocksOf(sizeBytes int64) lookup.BlockNum {
	return lookup.BlockNum((sizeBytes + lookup.BlockSize - 1) / lookup.BlockSize)
}

// Older lists the snapshots of the same volume, oldest first, since which a
// snapshot's changes can be opened. Errors: ErrInvalid, ErrNotFound.
func (s *Store) Older(full string) (names []string, err error) {
	volumeName, _, err := splitSnapshot(full)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, k, snap, err := s.snapshotLocked(full)
	if err != nil || k.State() == volume.Draining {
		return nil, err
	}
	var found []*snapshot
	for _, d := range s.branchesLocked(volumeName) {
		for k, other := range d.snapshots {
			if k.State() != volume.Draining && other.cut < snap.cut {
				found = append(found, other)
			}
		}
	}
	slices.SortFunc(found, func(a, b *snapshot) int { return int(min(max(int64(a.cut)-int64(b.cut), -1), 1)) })
	for _, other := range found {
		names = append(names, volumeName+"@"+other.name)
	}
	return names, nil
}

// Close lets the older snapshot go. Nobody may ask any more.
func (c *Changes) Close() error { return c.base.Close() }

// Extents yields consecutive stretches of a range until yield returns false: those
// that may have changed, and those that have not. Neighbours may be alike. Its cost
// is that of the tables' entries in the range.
func (c *Changes) Extents(off, lengthBytes int64, yield func(lengthBytes int64, changed bool) bool) {
	first, end := lookup.BlockNum(off/lookup.BlockSize), blocksOf(off+lengthBytes)
	w := walk{c, end, make([]stretch, len(c.tables))}
	for b := first; b < end; {
		changed, to := w.at(b)
		n := min(int64(to)*lookup.BlockSize-off, lengthBytes)
		if !yield(n, changed) {
			return
		}
		b, off, lengthBytes = to, off+n, lengthBytes-n
	}
}

// walk goes through the tables side by side, and looks at each of their runs once.
type walk struct {
	*Changes
	limit   lookup.BlockNum
	current []stretch // by table
}

// stretch is a run of a table, as far as its end matters.
type stretch struct {
	end     lookup.BlockNum
	changed bool
}

// at tells whether block b may have changed, and up to where that is so.
func (w *walk) at(b lookup.BlockNum) (changed bool, to lookup.BlockNum) {
	to = w.limit
	if w.from < w.end {
		if b >= w.from {
			return true, to
		}
		to = min(to, w.from)
	}
	for i := range w.current {
		c := &w.current[i]
		if c.end <= b {
			state, n := w.tables[i].Run(b, uint64(w.limit-b))
			*c = stretch{b + lookup.BlockNum(n), state != lookup.Absent}
		}
		if c.changed {
			return true, min(c.end, to)
		}
	}
	for _, c := range w.current {
		to = min(to, c.end)
	}
	return false, to
}

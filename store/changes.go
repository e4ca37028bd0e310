package store

import (
	"fmt"
	"slices"

	"github.com/tidemark/tidemark/lookup"
)

// Changes tells where a snapshot may differ from an older one of the same volume,
// from lookup tables, for as long as it is open: it holds both open, and what their
// tables said when it was opened. To open it costs nothing that grows with the volume.
// Any number of goroutines may ask it.
//
// Rejected: one table of all changes, made when it is opened (the tables have it
// already; a client could ask for many); to ask the tables as they are when they are
// asked (a fold could take a block from one that is still to be asked to one that has
// been).
type Changes struct {
	views
	tables []lookup.Runs // a block that is in one of them may differ
}

// Changes opens a snapshot's changes since an older one. Both are VOLUME@SNAPSHOT.
// Errors: ErrInvalid, ErrNotFound, ErrDraining.
func (s *Store) Changes(from, to string) (*Changes, error) {
	if _, _, err := splitSnapshot(to); err != nil {
		return nil, err
	}
	c, err := s.compare(from, to)
	if err != nil {
		return nil, err
	}
	if c.from.snap.cut >= c.to.snap.cut {
		c.close()
		return nil, fmt.Errorf("%w: %s is not older than %s", ErrInvalid, from, to)
	}
	return &Changes{views: c.views, tables: slices.Concat(c.older, c.newer)}, nil
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
	if err != nil || s.finalLocked(full, k) != nil {
		return nil, err
	}
	var found []*snapshot
	for _, d := range s.branchesLocked(volumeName) {
		for k, other := range d.snapshots {
			if other.cut < snap.cut && s.finalLocked(volumeName+"@"+other.name, k) == nil {
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

// Close lets the snapshots go. Nobody may ask any more.
func (c *Changes) Close() error {
	c.views.close()
	return nil
}

// Extents yields consecutive stretches of a range until yield returns false: those
// that may have changed, and those that have not, in turn. Its cost is that of asking
// each table once, and then of their entries in the range.
func (c *Changes) Extents(off, lengthBytes int64, yield func(lengthBytes int64, changed bool) bool) {
	first, end := lookup.BlockNum(off/lookup.BlockSize), blocksOf(off+lengthBytes)
	told := func(to lookup.BlockNum, changed bool) (more bool) {
		n := min(int64(to)*lookup.BlockSize-off, lengthBytes)
		if n <= 0 {
			return true
		}
		off, lengthBytes = off+n, lengthBytes-n
		return yield(n, changed)
	}
	for w := newWalk(c.tables, first, end); lengthBytes > 0; {
		from, to := w.next()
		if !told(from, false) || !told(to, true) {
			return
		}
	}
}

// walk goes through tables side by side up to a block, and looks at each of their
// entries once, or not at all where others cover it.
type walk struct {
	end    lookup.BlockNum
	places []cursor // a heap: the one with the next entry is the first
}

func newWalk(tables []lookup.Runs, from, end lookup.BlockNum) *walk {
	w := &walk{end: end}
	for _, t := range tables {
		c := cursorOf(t)
		if c.seek(from, end); c.first < end {
			w.places = append(w.places, c)
		}
	}
	for i := len(w.places) / 2; i > 0; i-- {
		w.sink(i - 1)
	}
	return w
}

// next returns the next stretch that the tables have together without a gap; an empty
// one at the end when there is none.
func (w *walk) next() (from, to lookup.BlockNum) {
	if len(w.places) == 0 {
		return w.end, w.end
	}
	next := &w.places[0]
	from = next.first
	for to = from; next.first <= to && next.first < w.end; w.sink(0) {
		to = max(to, next.last)
		next.seek(to, w.end)
	}
	return from, to
}

// sink puts a place in order with those that follow it in the heap.
func (w *walk) sink(i int) {
	for least := i; ; i = least {
		for child := 2*i + 1; child <= 2*i+2 && child < len(w.places); child++ {
			if w.places[child].first < w.places[least].first {
				least = child
			}
		}
		if least == i {
			return
		}
		w.places[i], w.places[least] = w.places[least], w.places[i]
	}
}

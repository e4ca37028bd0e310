package store

import (
	"iter"
	"slices"

	"github.com/tidemark/tidemark/lookup"
)

// DiffExtent is a range of blocks that may differ.
type DiffExtent struct {
	OffsetBytes, LengthBytes int64
	// Data: the newer side has data there; else it reads zeros.
	Data bool
}

// Diff lists, in ascending order, where a volume's state to may differ from its
// snapshot from: the blocks that were written or trimmed since the images that
// both share, also if to what they were. It reads no data, only the tables of the
// images that are not shared: its cost is that of what changed. Where a rollback lies
// between, it looks in the shared ones for what only the older side has written. to is a
// snapshot of the same volume, or the volume, of which it is some moment's state. It
// holds the snapshots open until it ends. Errors: ErrInvalid, ErrNotFound, ErrDraining;
// else those of each.
func (s *Store) Diff(from, to string, each func(DiffExtent) error) error {
	c, err := s.compare(from, to)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.to.disk.volume.Publish(); err != nil { // what the tables of a live volume say
		return err
	}
	for x := range c.differences().Extents(0, lookup.MaxBlocks) {
		off := int64(x.Block) * lookup.BlockSize
		if off >= c.to.sizeBytes {
			return nil // cut off: images are larger than what they were made for
		}
		e := DiffExtent{off, min(int64(x.Count)*lookup.BlockSize, c.to.sizeBytes-off), x.State == lookup.Data}
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

// differences makes a table of the blocks that may differ, in the states of the newer
// side, where a block that no image has is Zero.
func (c *comparison) differences() *lookup.Table {
	changed, rest := lookup.NewTable(), lookup.NewTable()
	for _, t := range c.newer { // the newest that has a block comes last, and is right
		for x := range entries(t) {
			changed.Set(x.Block, x.Count, x.State)
		}
	}
	for _, t := range c.older {
		for x := range entries(t) {
			rest.Set(x.Block, x.Count, lookup.Zero)
		}
	}
	for _, t := range slices.Backward(append(slices.Clone(c.shared), changed)) {
		for x := range common(rest, t) {
			changed.Set(x.Block, x.Count, x.State)
			rest.Set(x.Block, x.Count, lookup.Absent)
		}
	}
	for x := range entries(rest) {
		changed.Set(x.Block, x.Count, x.State)
	}
	return changed
}

// entries yields the runs of a table that are not absent, in ascending order.
func entries(t lookup.Runs) iter.Seq[lookup.Extent] {
	return func(yield func(lookup.Extent) bool) {
		c := cursorOf(t)
		for c.seek(0, lookup.MaxBlocks); c.first < lookup.MaxBlocks; c.seek(c.last, lookup.MaxBlocks) {
			if !yield(lookup.Extent{Block: c.first, Count: uint64(c.last - c.first), State: c.state}) {
				return
			}
		}
	}
}

// common yields what a table has of the blocks that another has, in ascending order.
// Its cost is that of the one with fewer runs: each leads past those of the other that
// meet none. Blocks that were yielded may be set meanwhile.
func common(of, in lookup.Runs) iter.Seq[lookup.Extent] {
	return func(yield func(lookup.Extent) bool) {
		x, y := cursorOf(of), cursorOf(in)
		for b := lookup.BlockNum(0); b < lookup.MaxBlocks; {
			x.seek(b, lookup.MaxBlocks)
			y.seek(b, lookup.MaxBlocks)
			b = max(b, x.first, y.first)
			end := min(x.last, y.last)
			if b >= end {
				continue
			}
			if !yield(lookup.Extent{Block: b, Count: uint64(end - b), State: y.state}) {
				return
			}
			b = end
		}
	}
}

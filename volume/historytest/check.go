package historytest

import (
	"errors"
	"fmt"
	"slices"
)

// Check decides whether the rules allow a history. The error says all that is
// wrong with it.
func (h *History) Check() error {
	wrong := []error{h.checkBytes(), h.checkConstancy(), h.checkLive()}
	var cuts []*cut
	for _, p := range h.Preserves {
		if !p.named() {
			continue
		}
		c, err := h.decide(p)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		cuts = append(cuts, c)
		wrong = append(wrong, h.checkConflicts(c))
	}
	if err := errors.Join(wrong...); err != nil {
		return err // without all cuts nobody knows who is bound to what
	}
	return h.checkViews(cuts)
}

// checkBytes looks for bytes in reads and snapshots that nobody wrote there.
func (h *History) checkBytes() error {
	seen := func(who string, vol, first int, got []Stamp) error {
		for i, n := range got {
			if n == torn {
				return fmt.Errorf("%s: sector %d of volume %d is torn", who, first+i, vol)
			}
			if n != 0 && h.writer(n, vol, first+i) == nil {
				return fmt.Errorf("%s: sector %d of volume %d holds what nobody wrote there (%d)", who, first+i, vol, n)
			}
		}
		return nil
	}
	for _, o := range h.Ops {
		if err := seen(o.String(), o.Volume, o.First, o.Got); err != nil {
			return err
		}
	}
	for _, p := range h.Preserves {
		for vol, final := range p.Final {
			if err := seen("snapshot "+p.Name, vol, 0, final); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkConstancy holds the reads of a snapshot from when it was exact on against
// what it holds at the end (I4).
func (h *History) checkConstancy() error {
	for _, o := range h.Ops {
		p := o.View
		if p == nil || !p.named() || o.Call < p.Exact || o.ofFirstCut() {
			continue
		}
		if final := p.Final[o.Volume][o.First:][:o.Count]; !slices.Equal(o.Got, final) {
			return fmt.Errorf("snapshot %v changed after it was exact: it holds %v at the end, and\n\t%v", p, final, o)
		}
	}
	return nil
}

// checkConflicts holds the conflicts that a snapshot reports against those that
// there surely were, and those that there may have been at most.
func (h *History) checkConflicts(c *cut) error {
	for _, vol := range c.Volumes {
		var sure, possible uint64
		for _, o := range h.Ops {
			if o.Volume != vol || o.View != nil || !c.mayBeIn(o) {
				continue
			}
			for b, end := o.blocks(); b < end; b++ {
				if h.mayConflict(c, o, b) {
					possible++
				}
				if o.Process != nil && o.Return != never && !c.mayBeOut(o) && h.conflicts(c, o, b) {
					sure++
				}
			}
		}
		got := c.Conflicts[vol]
		switch {
		case got > possible:
			return fmt.Errorf("snapshot %s counts %d conflicts on volume %d, and there were at most %d", c.Name, got, vol, possible)
		case c.Crossing != Stayed:
		case got < sure:
			return fmt.Errorf("snapshot %s counts %d conflicts on volume %d, and there were at least %d", c.Name, got, vol, sure)
		case sure > 0 && c.ConflictsAbort && c.Outcome == Complete:
			return fmt.Errorf("snapshot %s was to be given up at a conflict, and stands with %d on volume %d", c.Name, sure, vol)
		}
	}
	return nil
}

// touches tells whether a write changes something in a block.
func (o *Op) touches(vol, b int) bool {
	first, end := o.blocks()
	return o.Kind != Read && o.Volume == vol && first <= b && b < end
}

// mayConflict tells whether a newer image may have held block b when o came.
func (h *History) mayConflict(c *cut, o *Op, b int) bool {
	return slices.ContainsFunc(h.Ops, func(w *Op) bool {
		return w != o && w.touches(o.Volume, b) && c.mayBeOut(w) && w.Call < o.Return
	})
}

// conflicts tells whether a newer image held block b for certain when o came:
// somebody from after the cut had written it, and nobody from before it had
// taken it back.
func (h *History) conflicts(c *cut, o *Op, b int) bool {
	return slices.ContainsFunc(h.Ops, func(w *Op) bool {
		return w.touches(o.Volume, b) && !c.mayBeIn(w) && w.before(o.Span) &&
			!slices.ContainsFunc(h.Ops, func(v *Op) bool {
				return v != o && v.Kind != Read && v.Volume == o.Volume && v.coversBlock(b) && c.mayBeIn(v) &&
					v.Return > w.Call && v.Call < o.Return
			})
	})
}

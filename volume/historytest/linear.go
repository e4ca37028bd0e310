package historytest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// blockPatience is how long the search for an order of a block's operations may
// take before its sectors are looked at one by one, which has no limit.
const blockPatience = 2 * time.Second

// checkLive holds every sector of the live view to be a linearizable register.
// It knows nothing of VLUNs: it is what a client of request scope may rely on.
func (h *History) checkLive() error {
	register := porcupine.Model{
		Init: func() any { return Stamp(0) },
		Step: func(state, input, output any) (bool, any) {
			switch o := input.(*Op); {
			case o.Kind == Read:
				return output.(Stamp) == state.(Stamp), state
			case o.Kind == Write:
				return true, o.Stamp
			default:
				return true, Stamp(0)
			}
		},
	}
	for vol := range h.Volumes {
		for sector := range h.Sectors {
			var ops []porcupine.Operation
			var shown []*Op
			for _, o := range h.Ops {
				if o.Volume != vol || !o.covers(sector) || o.Kind == Read && (o.Process != nil || o.View != nil) {
					continue
				}
				var got any
				if o.Kind == Read {
					got = o.Got[sector-o.First]
				}
				// One without an answer that never took effect is one that did
				// after everything else: its Return is the end of time.
				ops = append(ops, porcupine.Operation{Input: o, Output: got, Call: int64(o.Call), Return: int64(o.Return)})
				shown = append(shown, o)
			}
			if result := porcupine.CheckOperationsTimeout(register, ops, 0); result != porcupine.Ok {
				return fmt.Errorf("sector %d of the live view of volume %d is no linearizable register (%v):%s", sector, vol, result, list(shown))
			}
		}
	}
	return nil
}

// maxViews bounds the VLUNs of one volume in a history: its snapshots, and the
// live one.
const maxViews = 12

// views is what the sectors of a block hold in each VLUN, by its place among the
// cuts.
type views [maxViews][blockSectors]Stamp

// bound is an op at some sectors of one block: the VLUNs that it may be bound to,
// as bits.
type bound struct {
	*Op
	first, count int // the sectors that are looked at
	to           uint16
}

// checkViews holds every block to be a row of registers, one for each VLUN. The
// cuts say to which an op may be bound. Where many may be bound to either side of
// a cut, a block has too many possible rows; then its sectors are looked at one
// by one.
func (h *History) checkViews(cuts []*cut) error {
	for vol := range h.Volumes {
		chain := slices.DeleteFunc(slices.Clone(cuts), func(c *cut) bool { return !c.has(vol) })
		slices.SortFunc(chain, func(a, b *cut) int { return int(a.CutBy - b.CutBy) })
		if len(chain) >= maxViews {
			return fmt.Errorf("history of %d snapshots of a volume, at most %d can be checked", len(chain), maxViews-1)
		}
		for first := 0; first < h.Sectors; first += blockSectors {
			result, err := h.checkRow(vol, first, blockSectors, chain, blockPatience)
			if result == porcupine.Unknown {
				err = h.checkSectors(vol, first, chain)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSectors holds each sector of a block to be a row of registers by itself.
func (h *History) checkSectors(vol, first int, chain []*cut) error {
	for sector := first; sector < first+blockSectors; sector++ {
		if _, err := h.checkRow(vol, sector, 1, chain, 0); err != nil {
			return err
		}
	}
	return nil
}

// checkRow holds sectors of one block to be a row of registers together.
func (h *History) checkRow(vol, first, count int, chain []*cut, limit time.Duration) (porcupine.CheckResult, error) {
	rows := (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{views{}} },
		Step: func(state, input, _ any) []any { return input.(bound).step(state.(views)) },
	}).ToModel()
	var ops []porcupine.Operation
	var shown []*Op
	for _, o := range h.Ops {
		if o.Volume != vol || first+count <= o.First || o.First+o.Count <= first {
			continue
		}
		if to := h.bindings(o, chain); to != 0 {
			ops = append(ops, porcupine.Operation{Input: bound{o, first, count, to}, Call: int64(o.Call), Return: int64(o.Return)})
			shown = append(shown, o)
		}
	}
	result := porcupine.CheckOperationsTimeout(rows, ops, limit)
	if result == porcupine.Ok {
		return result, nil
	}
	var names []string
	for _, c := range chain {
		names = append(names, fmt.Sprintf("%s[%d, %d]", c.Name, c.at.Call, c.at.Return))
	}
	return result, fmt.Errorf("sectors %d+%d of volume %d: no order of their operations explains what they read through the VLUNs %v (%v):%s\nof the preserves%s",
		first, count, vol, names, result, list(shown), list(h.Preserves))
}

// bindings returns to which of the cuts' VLUNs, or the live one after them, an op
// may be bound; none if that can't be said.
func (h *History) bindings(o *Op, chain []*cut) (to uint16) {
	if o.View != nil {
		if o.ofFirstCut() {
			return 0
		}
		for i, c := range chain {
			if c.Preserve == o.View {
				return 1 << i
			}
		}
		return 0 // of one that was given up
	}
	if o.Kind == Read && h.mayMissCuts(o) {
		return 0
	}
	for i, c := range chain {
		if c.mayBeIn(o) {
			to |= 1 << i
		}
		if !c.mayBeOut(o) {
			return to
		}
	}
	return to | 1<<len(chain)
}

// mayMissCuts tells whether a read may be bound to a VLUN without a name: that of
// a preserve that was given up, or of the first cut of a degraded one. It then
// sees nothing of who was bound to a younger VLUN, and no snapshot says who that
// was. A write there changes all VLUNs that have a name as one that is bound to
// the next of them does.
func (h *History) mayMissCuts(o *Op) bool {
	begun := o.Call
	if o.Process != nil {
		begun = o.Process.Call
	}
	return slices.ContainsFunc(h.Preserves, func(p *Preserve) bool {
		return p.has(o.Volume) && (p.Outcome == Aborted || p.Crossing != Stayed) &&
			begun <= p.CutBy && !o.before(p.Span) && !p.before(o.Span)
	})
}

// step returns what the row may be after the op; nothing if it can't come now.
func (o bound) step(now views) (next []any) {
	from := max(o.First, o.first)
	to := min(o.First+o.Count, o.first+o.count)
	if o.Kind != Read && o.Return == never {
		next = append(next, now)
	}
	for k := range now {
		if o.to>>k&1 == 0 {
			continue
		}
		if o.Kind == Read {
			if slices.Equal(now[k][from-o.first:to-o.first], o.Got[from-o.First:to-o.First]) {
				return []any{now}
			}
			continue
		}
		stamp := o.Stamp
		if o.Kind == Zero {
			stamp = 0
		}
		after := now
		for j := k; j < maxViews; j++ { // the newest write wins in every younger view
			for s := from; s < to; s++ {
				after[j][s-o.first] = stamp
			}
		}
		next = append(next, after)
	}
	return next
}

// list shows operations or preserves, a line each.
func list[T fmt.Stringer](all []T) string {
	var b strings.Builder
	for _, o := range all {
		fmt.Fprintf(&b, "\n\t%v", o)
	}
	return b.String()
}

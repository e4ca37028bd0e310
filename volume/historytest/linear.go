package historytest

import (
	"fmt"
	"iter"
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

// maxViews bounds the preserves of one volume in a history, with its live view.
const maxViews = 12

// maxRows bounds its VLUNs: a degraded preserve leaves two.
const maxRows = 2 * maxViews

// views is what the sectors of a block hold in each VLUN, by its place among the
// cuts.
type views [maxRows][blockSectors]Stamp

// bound is an op at some sectors of one block: the VLUNs that it may be bound to,
// as bits.
type bound struct {
	*Op
	first, count int // the sectors that are looked at
	to           uint32
}

// checkViews holds every block to be a row of registers, one for each VLUN. The
// cuts say to which an op may be bound.
func (h *History) checkViews(cuts []*cut) error {
	for vol := range h.Volumes {
		preserves := 0
		for _, p := range h.Preserves {
			if p.has(vol) {
				preserves++
			}
		}
		if preserves >= maxViews {
			return fmt.Errorf("history of %d preserves of a volume, at most %d can be checked", preserves, maxViews-1)
		}
		named := slices.DeleteFunc(slices.Clone(cuts), func(c *cut) bool { return !c.has(vol) })
		slices.SortFunc(named, func(a, b *cut) int { return int(a.CutBy - b.CutBy) })
		nameless := h.nameless(vol, named)
		for first := 0; first < h.Sectors; first += blockSectors {
			if err := h.checkBlock(vol, first, named, nameless); err != nil {
				return err
			}
		}
	}
	return nil
}

// nameless returns the cuts of a volume whose VLUNs have no name.
func (h *History) nameless(vol int, named []*cut) (list []*cut) {
	for _, p := range h.Preserves {
		if p.has(vol) && p.Outcome == Aborted {
			list = append(list, &cut{Preserve: p, history: h, at: Span{p.Call, p.CutBy}, nameless: true, left: p.Return})
		}
	}
	for _, second := range named {
		if second.Crossing != Stayed {
			at := Span{second.Call, second.at.Return}
			list = append(list, &cut{Preserve: second.Preserve, history: h, at: at, nameless: true, left: at.Return})
		}
	}
	return list
}

// checkBlock holds a block to be a row of registers for some order of the cuts.
// Where many ops may be bound to either side of a cut, it has too many possible
// rows. Then reads that may be bound to a VLUN without a name are left out; and if
// that does not do, its sectors are looked at one by one.
func (h *History) checkBlock(vol, first int, named, nameless []*cut) (wrong error) {
	shown := slices.DeleteFunc(slices.Clone(nameless), func(c *cut) bool {
		return !slices.ContainsFunc(h.Ops, func(o *Op) bool {
			return o.Volume == vol && o.overlaps(first, blockSectors) && c.mayShow(o)
		})
	}) // of the others nothing is seen
	result, until := porcupine.Illegal, time.Now().Add(blockPatience)
	for chain := range chains(named, shown) {
		limit := max(time.Until(until), time.Millisecond)
		if result, wrong = h.checkRow(vol, first, blockSectors, chain, nil, limit); result != porcupine.Illegal {
			break
		}
	}
	if result == porcupine.Unknown && len(shown) > 0 {
		result, wrong = h.checkRow(vol, first, blockSectors, named, shown, blockPatience)
	}
	if result == porcupine.Unknown {
		return h.checkSectors(vol, first, named, shown)
	}
	return wrong
}

// chains goes through the orders that cuts may have come in. When the first cut of a
// degraded preserve was made is not known; it is tried in every place that its
// command leaves it.
func chains(named, nameless []*cut) iter.Seq[[]*cut] {
	chain := slices.Clone(named)
	var firsts []*cut
	for _, c := range nameless {
		if c.Outcome == Aborted {
			chain = append(chain, c)
		} else {
			firsts = append(firsts, c)
		}
	}
	slices.SortFunc(chain, func(a, b *cut) int { return int(a.CutBy - b.CutBy) })
	return func(yield func([]*cut) bool) { placeAll(firsts, chain, yield) }
}

// mayShow tells whether an op is a read that may show what a nameless cut's VLUN
// holds, and no younger one.
func (c *cut) mayShow(o *Op) bool {
	if o.View != nil {
		return o.View == c.Preserve && o.Early
	}
	return o.Kind == Read && c.mayHold(o) && c.mayBeOut(o)
}

// placeAll yields the chain with the first cuts in all places that they may have:
// each before the second cut of its preserve.
func placeAll(firsts, chain []*cut, yield func([]*cut) bool) (more bool) {
	if len(firsts) == 0 {
		return yield(chain)
	}
	c := firsts[0]
	i := slices.IndexFunc(chain, func(d *cut) bool { return d.Preserve == c.Preserve })
	for ; i >= 0; i-- {
		if !placeAll(firsts[1:], slices.Insert(slices.Clone(chain), i, c), yield) {
			return false
		}
		if i > 0 && chain[i-1].at.Return < c.at.Call { // that one was made before the command
			break
		}
	}
	return true
}

// checkSectors holds each sector of a block to be a row of registers by itself.
func (h *History) checkSectors(vol, first int, chain, without []*cut) error {
	for sector := first; sector < first+blockSectors; sector++ {
		if _, err := h.checkRow(vol, sector, 1, chain, without, 0); err != nil {
			return err
		}
	}
	return nil
}

// checkRow holds sectors of one block to be a row of registers together. Reads that
// may be bound to the VLUNs of some cuts are left out.
func (h *History) checkRow(vol, first, count int, chain, without []*cut, limit time.Duration) (porcupine.CheckResult, error) {
	rows := (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{views{}} },
		Step: func(state, input, _ any) []any { return input.(bound).step(state.(views)) },
	}).ToModel()
	var ops []porcupine.Operation
	var shown []*Op
	for _, o := range h.Ops {
		if o.Volume != vol || !o.overlaps(first, count) || slices.ContainsFunc(without, func(c *cut) bool { return c.mayShow(o) }) {
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
		name := c.Name
		if c.nameless {
			name = "(" + name + ")"
		}
		names = append(names, fmt.Sprintf("%s[%d, %d]", name, c.at.Call, c.at.Return))
	}
	return result, fmt.Errorf("sectors %d+%d of volume %d: no order of their operations explains what they read through the VLUNs %v (%v):%s\nof the preserves%s",
		first, count, vol, names, result, list(shown), list(h.Preserves))
}

// bindings returns to which of the cuts' VLUNs, or the live one after them, an op
// may be bound.
func (h *History) bindings(o *Op, chain []*cut) (to uint32) {
	if o.View != nil {
		for i, c := range chain {
			if c.Preserve == o.View && (o.Early || !c.nameless) {
				to |= 1 << i
			}
		}
		return to
	}
	for i, c := range chain {
		if c.mayHold(o) {
			to |= 1 << i
		}
		if !c.mayBeOut(o) {
			return to
		}
	}
	return to | 1<<len(chain)
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
		for j := k; j < maxRows; j++ { // the newest write wins in every younger view
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

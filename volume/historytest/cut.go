package historytest

import (
	"fmt"
	"math/bits"
	"slices"
)

// unit is what is in a snapshot whole or not at all: an *Op or a *Process.
type unit any

// cut is what is known of the instant of a preserve's cut, and of who is in it.
//
// A set of units can be all that came before one instant if and only if it is
// closed under "was over before one of them began"; so to look for the instant
// is to look for the set (I1). Of the units known to be in, the latest call
// bounds the instant from below; of those known to be out, the earliest return
// does from above. Between, the units that hold the instant may be either.
//
// A nameless cut is that of a preserve that was given up, or the first one of a
// degraded one. Nobody is known to be in or out, and processes leave it between two
// of their requests.
type cut struct {
	*Preserve
	history  *History
	at       Span // the instant lies in it
	in, out  map[unit]*Op
	nameless bool
	left     Time // of a nameless one: from then on nobody was bound to its VLUN
}

// unit returns to which unit of the preserve an op belongs, and the span in which
// it was bound: to before the cut or to after it.
func (h *History) unit(o *Op, p *Preserve) (unit, Span) {
	switch {
	case o.Process == nil:
		return o, o.Span
	case p.Crossing == Stayed:
		return o.Process, o.Process.Span
	case p.Crossing == DidCross && !h.heldByOther(o, p):
		return o, o.Span
	}
	// It crossed, or another preserve kept it whole.
	return o, Span{o.Process.Call, o.Return}
}

// heldByOther tells whether a preserve other than p may be what the process of an
// op is bound to.
func (h *History) heldByOther(o *Op, p *Preserve) bool {
	return slices.ContainsFunc(h.Preserves, func(e *Preserve) bool {
		return e != p && e.Outcome != Nothing && e.has(o.Volume) && !e.before(o.Process.Span) && e.Call <= p.Return
	})
}

// unit is History.unit, also for a nameless cut.
func (c *cut) unit(o *Op) (unit, Span) {
	if c.nameless && o.Process != nil {
		return o, Span{o.Process.Call, o.Return}
	}
	return c.history.unit(o, c.Preserve)
}

// mayBeIn tells whether an op may be bound to the cut's VLUN or an older one.
func (c *cut) mayBeIn(o *Op) bool {
	u, bound := c.unit(o)
	return c.out[u] == nil && bound.Call <= c.at.Return
}

// mayBeOut tells whether an op may be bound to what came after the cut.
func (c *cut) mayBeOut(o *Op) bool {
	u, bound := c.unit(o)
	return c.in[u] == nil && bound.Return >= c.at.Call
}

// mayHold tells whether an op may be bound to the cut's VLUN itself, for all that
// this cut knows.
func (c *cut) mayHold(o *Op) bool {
	return c.mayBeIn(o) && !(c.nameless && o.Call > c.left)
}

// decide finds out whether a snapshot is a cut: whether an instant explains every
// sector of every volume of the preserve.
func (h *History) decide(p *Preserve) (*cut, error) {
	c := &cut{Preserve: p, history: h, at: Span{p.Call, p.CutBy}, in: map[unit]*Op{}, out: map[unit]*Op{}}
	units := map[unit]*group{}
	for _, o := range h.Ops {
		if o.Kind != Read && p.has(o.Volume) {
			u, bound := h.unit(o, p)
			g := units[u]
			if g == nil {
				g = &group{bound: bound}
				units[u] = g
			}
			g.ops = append(g.ops, o)
		}
	}
	for _, vol := range p.Volumes {
		for sector, n := range p.Final[vol] {
			if n == 0 {
				continue
			}
			last := h.writer(n, vol, sector)
			if last == nil {
				return nil, fmt.Errorf("snapshot %s: sector %d of volume %d holds what nobody wrote there (%d)", p.Name, sector, vol, n)
			}
			u, _ := h.unit(last, p)
			c.in[u] = last
			for _, o := range h.Ops { // had one of these been in, it would show
				if o.Kind != Read && o.Volume == vol && o.covers(sector) && last.before(o.Span) && o.Return != never {
					u, _ := h.unit(o, p)
					c.out[u] = o
				}
			}
		}
	}
	if err := c.narrow(units); err != nil {
		return nil, err
	}
	return c, c.explainZeros(units)
}

// group is the writes of one unit.
type group struct {
	bound Span
	ops   []*Op
}

// narrow bounds the instant by who is in and who is out.
func (c *cut) narrow(units map[unit]*group) error {
	var latestIn, earliestOut *Op
	for u, o := range c.in {
		if out := c.out[u]; out != nil {
			return fmt.Errorf("snapshot %v tears a process: it holds\n\t%v\nand not\n\t%v", c.Preserve, o, out)
		}
		if units[u].bound.Call > c.at.Call {
			c.at.Call, latestIn = units[u].bound.Call, o
		}
	}
	for u, o := range c.out {
		if units[u].bound.Return < c.at.Return {
			c.at.Return, earliestOut = units[u].bound.Return, o
		}
	}
	if c.at.Call > c.at.Return {
		return fmt.Errorf("snapshot %v is no cut: it holds\n\t%v\nand not, though that was over before,\n\t%v", c.Preserve, latestIn, earliestOut)
	}
	return nil
}

// explainZeros looks for an instant, and for who is in of the units that hold it,
// such that every sector that reads zeros may: who else wrote there is out, or
// over before a Zero that is in began.
//
// The instants to try are where a unit begins or ends. At each, of the units that
// may be either, a Zero that stands alone is best taken in (it is not known to
// be out, so it spoils no sector that holds data), and a Write that stands alone
// is best left out (it is seen nowhere); only of those that do both every choice
// is tried.
func (c *cut) explainZeros(units map[unit]*group) error {
	moments := []Time{c.at.Call, c.at.Return}
	for _, g := range units {
		for _, m := range []Time{g.bound.Call, g.bound.Return} {
			if c.at.Call < m && m < c.at.Return {
				moments = append(moments, m)
			}
		}
	}
	slices.Sort(moments)
	var unexplained error
	for _, m := range slices.Compact(moments) {
		var both []*group
		members := map[*Op]bool{}
		join := func(g *group, in bool) {
			for _, o := range g.ops {
				members[o] = in
			}
		}
		for u, g := range units {
			switch {
			case c.in[u] != nil || g.bound.Return < m:
				join(g, true)
			case c.out[u] != nil || g.bound.Call > m:
			case g.all(Zero):
				join(g, true)
			case !g.all(Write):
				both = append(both, g)
			}
		}
		for choice := range 1 << len(both) { // as many as processes were begun at one moment: few
			for i, g := range both {
				join(g, choice>>i&1 == 1)
			}
			if unexplained = c.zerosWith(members); unexplained == nil {
				return nil
			}
		}
	}
	return unexplained
}

func (g *group) all(k Kind) bool {
	return !slices.ContainsFunc(g.ops, func(o *Op) bool { return o.Kind != k })
}

// zerosWith tells which sector reads zeros and may not, if exactly these ops are
// in the snapshot.
func (c *cut) zerosWith(members map[*Op]bool) error {
	for _, vol := range c.Volumes {
		for first := 0; first < len(c.Final[vol]); first += 64 {
			var zeros uint64
			for i, n := range c.Final[vol][first:min(first+64, len(c.Final[vol]))] {
				if n == 0 {
					zeros |= 1 << i
				}
			}
			for ; zeros != 0; zeros &= zeros - 1 {
				if o := c.mustShow(members, vol, first+bits.TrailingZeros64(zeros)); o != nil {
					return fmt.Errorf("snapshot %v, if in [%d, %d]: sector %d of volume %d reads zeros, and should show\n\t%v", c.Preserve, c.at.Call, c.at.Return, first+bits.TrailingZeros64(zeros), vol, o)
				}
			}
		}
	}
	return nil
}

// mustShow returns a Write of the members that shows at a sector unless another
// Write does; nil if zeros may be there.
func (c *cut) mustShow(members map[*Op]bool, vol, sector int) (shows *Op) {
	var here []*Op
	for o, in := range members {
		if in && o.Volume == vol && o.covers(sector) {
			here = append(here, o)
		}
	}
	spoiled := func(by Span) *Op { // a zero of then is overwritten for certain
		for _, o := range here {
			if o.Kind == Write && o.Return != never && by.before(o.Span) {
				return o
			}
		}
		return nil
	}
	if shows = spoiled(Span{-1, -1}); shows == nil {
		return nil
	}
	for _, o := range here {
		if o.Kind == Zero && spoiled(o.Span) == nil {
			return nil
		}
	}
	return shows
}

// writer returns who wrote a stamp at a place; nil if nobody did.
func (h *History) writer(n Stamp, vol, sector int) *Op {
	i, found := slices.BinarySearchFunc(h.Ops, n, func(o *Op, n Stamp) int { return int(o.Stamp) - int(n) })
	if found && h.Ops[i].Kind == Write && h.Ops[i].Volume == vol && h.Ops[i].covers(sector) {
		return h.Ops[i]
	}
	return nil
}

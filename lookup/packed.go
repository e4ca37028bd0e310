package lookup

import (
	"fmt"
	"iter"
	"slices"
)

// packed is a table that nobody sets blocks in any more, as its runs of Data and
// of Zero in ascending order: 8 bytes each, where a leaf would take 4 KiB for a
// single block. A thousand snapshots that hold a few scattered blocks each fit in
// memory so. A run:
//
//	63-28  first block
//	27-2   blocks, less 1; a longer run is several
//	 1-0   state
type packed []uint64

const (
	packedCountBits = 26
	packedMaxBlocks = 1 << packedCountBits
	packedBytes     = 8
)

func (p packed) first(i int) BlockNum { return BlockNum(p[i] >> (packedCountBits + stateBits)) }
func (p packed) count(i int) uint64   { return p[i]>>stateBits%packedMaxBlocks + 1 }
func (p packed) end(i int) BlockNum   { return p.first(i) + BlockNum(p.count(i)) }
func (p packed) state(i int) State    { return State(p[i] & (1<<stateBits - 1)) }

// add puts a run behind all others.
func (p packed) add(b BlockNum, n uint64, s State) packed {
	if last := len(p) - 1; last >= 0 && s == p.state(last) && b == p.end(last) {
		b, n, p = p.first(last), n+p.count(last), p[:last]
	}
	for n > 0 && s != Absent {
		part := min(n, packedMaxBlocks)
		p = append(p, uint64(b)<<(packedCountBits+stateBits)|(part-1)<<stateBits|uint64(s))
		b, n = b+BlockNum(part), n-part
	}
	return p
}

// from returns the first run that ends behind block b, len(p) if none does.
func (p packed) from(b BlockNum) int {
	low, high := 0, len(p) // runs before low end at or before b, those from high on behind it
	for low < high {
		if middle := (low + high) / 2; p.end(middle) <= b {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// Run is Table.Run.
func (p packed) Run(b BlockNum, limit uint64) (State, uint64) {
	i := p.from(b)
	if i == len(p) {
		return Absent, limit
	}
	if first := p.first(i); b < first {
		return Absent, min(limit, uint64(first-b))
	}
	s, n := p.state(i), uint64(p.end(i)-b)
	for i++; n < limit && i < len(p) && p.first(i) == b+BlockNum(n) && p.state(i) == s; i++ {
		n += p.count(i)
	}
	return s, min(n, limit)
}

// extents is Table.Extents.
func (p packed) extents(from BlockNum, n uint64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		end, i := from+BlockNum(n), p.from(from)
		for {
			for i < len(p) && p.end(i) <= from {
				i++
			}
			if i == len(p) || p.first(i) >= end {
				return
			}
			from = max(from, p.first(i))
			s, run := p.Run(from, uint64(end-from))
			if !yield(Extent{from, run, s}) {
				return
			}
			if from += BlockNum(run); from == end {
				return
			}
		}
	}
}

// Pack gives back what memory a table can do without, from the moment on from
// which nobody sets blocks in it: see Table, 5. Readers go on meanwhile. One
// goroutine may call Pack or Replace at a time.
func (t *Table) Pack() {
	if p, ok := t.pack(); ok {
		t.become(p)
	}
}

// Replace makes a table that nobody sets blocks in any more say what another says,
// which is given away. Of a block that differs, a reader meanwhile sees the one or
// the other, as with a Set whose locks it does not hold.
func (t *Table) Replace(with *Table) {
	data, zero := with.Counts()
	if p, ok := with.pack(); ok {
		t.become(p)
	} else {
		t.root.Store(with.root.Load())
		t.packed.Store(nil)
	}
	t.count[Data].Store(data)
	t.count[Zero].Store(zero)
}

// Runs says of each block which state it has; see Table.Run.
type Runs interface {
	Run(b BlockNum, limit uint64) (State, uint64)
}

// Frozen returns what a table that nobody sets blocks in any more says now: that stays
// so whatever Pack and Replace do to the table. It shares the runs or leaves, so it
// costs next to nothing. It needs no lock.
func (t *Table) Frozen() Runs {
	for {
		forms := t.forms.Load()
		if p := t.packed.Load(); p != nil {
			return p
		}
		leaves := NewTable()
		leaves.root.Store(t.root.Load())
		if t.forms.Load() == forms { // else the root may be gone for runs
			return leaves
		}
	}
}

func (t *Table) become(p packed) {
	t.packed.Store(&p)
	t.forms.Add(1)
	t.root.Store(nil)
}

// pack returns a table's runs, unless its leaves take less.
func (t *Table) pack() (p packed, ok bool) {
	if old := t.packed.Load(); old != nil {
		return *old, true
	}
	most := t.MemoryBytes() / packedBytes
	for x := range t.Extents(0, MaxBlocks) {
		if p = p.add(x.Block, x.Count, x.State); int64(len(p)) > most {
			return nil, false
		}
	}
	return slices.Clip(p), true
}

// unpacked returns t, or a copy of it with leaves.
func (t *Table) unpacked() *Table {
	p := t.packed.Load()
	if p == nil {
		return t
	}
	c := NewTable()
	for i := range *p {
		c.Set(p.first(i), p.count(i), p.state(i))
	}
	return c
}

func (t *Table) mustNotBePacked() {
	if t.packed.Load() != nil {
		panic("lookup: Set in a table that was packed")
	}
}

// builder makes a table of runs that come in ascending order: packed as long as
// that takes less than leaves would.
type builder struct {
	runs   packed
	mixed  int      // leaves that are not all of one state
	last   BlockNum // the last of them ends here
	leaves *Table   // nil: still packed
}

// set is Table.Set, behind all blocks that were set before.
func (m *builder) set(b BlockNum, n uint64, s State) {
	if m.leaves != nil {
		m.leaves.Set(b, n, s)
		return
	}
	if m.runs = m.runs.add(b, n, s); s == Absent {
		return
	}
	if end := b + BlockNum(n); b%LeafBlocks != 0 || end%LeafBlocks != 0 {
		if b >= m.last {
			m.mixed++
		}
		m.last = max(m.last, (end+LeafBlocks-1)/LeafBlocks*LeafBlocks)
	}
	if len(m.runs)*packedBytes > packedLeastBytes+m.mixed*leafBytes {
		m.leaves = m.table().unpacked()
	}
}

// leaf sets all blocks of a leaf.
func (m *builder) leaf(b BlockNum, l *leaf) {
	for i := uint64(0); i < LeafBlocks && m.leaves == nil; {
		s := l.get(i)
		n := l.stretch(i, LeafBlocks-i, s)
		m.set(b+BlockNum(i), n, s)
		i += n
	}
	if m.leaves != nil { // also if it has become so in the middle
		var d delta
		c := m.leaves.makeCell(b)
		l = l.folded()
		d.replace(c.Load(), l)
		c.Store(l)
		m.leaves.add(&d)
	}
}

// packedLeastBytes is what is packed whatever leaves would take.
const packedLeastBytes = 64 << 10

func (m *builder) table() *Table {
	if m.leaves != nil {
		return m.leaves
	}
	t := NewTable()
	runs := slices.Clone(m.runs)
	t.packed.Store(&runs)
	for i := range runs {
		t.count[runs.state(i)].Add(runs.count(i))
	}
	return t
}

// String says which form the table has, and how large; for the messages of tests.
func (t *Table) String() string {
	data, zero := t.Counts()
	form := "leaves"
	if t.packed.Load() != nil {
		form = "runs"
	}
	return fmt.Sprintf("table of %d data and %d zero blocks in %s of %d bytes", data, zero, form, t.MemoryBytes())
}

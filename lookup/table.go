package lookup

import (
	"iter"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"github.com/tidemark/tidemark/internal/yield"
)

// Table is the lookup table of one image: two bits a block, sparse.
//
// It must answer Get in a few nanoseconds while the writers of other blocks,
// also of blocks in the same word, change it; and it must take a Set of
// terabytes for a write-zeroes. Three levels: root, mid, leaf. The leaf of a
// stretch never written is nil; a leaf all of one state is a sentinel that all
// tables share; any other leaf is dense.
//
//  1. A block's bits are changed only under the block's exclusive lock, so its
//     holder sees them still. Neighbours in the word may change at any time: a
//     word is changed by one atomic addition of (new bits - old bits) of the
//     blocks held, which borrows nothing from and carries nothing into the
//     rest of the word.
//  2. A leaf pointer leaves nil or a sentinel by compare-and-swap to a dense
//     leaf that says the same of every block. Of writers that race here one
//     wins, the others use its leaf, and no block has changed by it.
//  3. A dense leaf leaves its place only in a Set that covers the leaf from end
//     to end. Its caller holds all locks of the leaf, so no other Set is between
//     loading the pointer and changing a word, and no change is lost. Or in a Fold,
//     under the same locks.
//  4. Sentinels are never written.
//  5. A table that nobody sets blocks in any more may be packed: its runs are
//     published, then forms is counted, then the leaves go. Who looked at leaves
//     and finds the count as it was before has seen leaves; else it looks again.
//
// Rejected: a mutex a leaf (a lock more on each write, shared by neighbours,
// which R5's exact ranges are there to avoid); copy-on-write leaves (4 KiB
// copied for two bits).
type Table struct {
	radix[tableCell]
	packed atomic.Pointer[packed] // nil: leaves
	forms  atomic.Uint64          // how often it was packed
	_      [64]byte               // counts change with each new block: keep them off the root's cache line
	count  [4]atomic.Uint64
	dense  atomic.Int64 // leaves
}

type tableCell = atomic.Pointer[leaf]

// leaf holds LeafBlocks states, 32 in a word, the lowest bits first.
type leaf [leafWords]uint64

const (
	stateBits  = 2
	wordBlocks = 64 / stateBits
	leafWords  = LeafBlocks / wordBlocks
	lowBits    = 0x5555_5555_5555_5555 // the low bit of each block of a word
)

// pattern is a word whose blocks all have the state.
var pattern = [...]uint64{Absent: 0, Data: lowBits, Zero: lowBits << 1}

// uniform holds the sentinels; that of Absent is nil.
var uniform = [...]*leaf{Absent: nil, Data: newLeaf(Data), Zero: newLeaf(Zero)}

func newLeaf(s State) *leaf {
	l := new(leaf)
	if s != Absent {
		for i := range l {
			l[i] = pattern[s]
		}
	}
	return l
}

// uniformState tells whether l is nil or a sentinel, and of which state.
func uniformState(l *leaf) (State, bool) {
	switch l {
	case nil:
		return Absent, true
	case uniform[Data]:
		return Data, true
	case uniform[Zero]:
		return Zero, true
	}
	return Absent, false
}

// NewTable returns a table in which every block is Absent.
func NewTable() *Table { return new(Table) }

// Get returns the state of block b. The caller holds the lock of b.
func (t *Table) Get(b BlockNum) State {
	c := t.cell(b)
	if c == nil {
		if t.packed.Load() == nil && t.root.Load() == nil {
			return Absent
		}
		s, _ := t.Run(b, 1)
		return s
	}
	l := c.Load()
	if l == nil {
		return Absent
	}
	return l.get(uint64(b % LeafBlocks))
}

func (l *leaf) get(i uint64) State {
	w := atomic.LoadUint64(&l[i/wordBlocks%leafWords])
	return State(w >> (i % wordBlocks * stateBits) & 3)
}

// Run returns the state of block b and how many blocks from b on have it: the
// longest run, at least 1 and at most limit, which is at least 1. The caller
// holds the locks of all limit blocks. The cost is that of the leaves passed:
// nothing for a stretch without leaves, one pointer for a uniform leaf, a word
// for 32 blocks in a dense one.
func (t *Table) Run(b BlockNum, limit uint64) (State, uint64) {
	for {
		forms := t.forms.Load()
		if p := t.packed.Load(); p != nil {
			return p.Run(b, limit)
		}
		if s, n := t.leafRun(b, limit); t.forms.Load() == forms {
			return s, n
		}
	}
}

// leafRun is Run in leaves.
func (t *Table) leafRun(b BlockNum, limit uint64) (State, uint64) {
	s := Absent
	if c := t.cell(b); c != nil {
		if l := c.Load(); l != nil {
			s = l.get(uint64(b % LeafBlocks))
		}
	}
	n := uint64(1)
	for n < limit {
		most := limit - n
		got, to := t.stretch(b+BlockNum(n), most, s)
		n += got
		if got < to {
			break
		}
	}
	return s, n
}

// stretch returns how many blocks from b on have state s, looking no further
// than the end of a leaf or, where there is none, of the gap: to blocks.
func (t *Table) stretch(b BlockNum, limit uint64, s State) (got, to uint64) {
	if to = t.unwritten(b, limit); to > 0 {
		if s != Absent {
			return 0, to
		}
		return to, to
	}
	i := uint64(b % LeafBlocks)
	to = min(limit, LeafBlocks-i)
	c := t.cell(b)
	if c == nil {
		return 0, to // it has changed its form meanwhile: Run looks again, or the run is shorter than it might be
	}
	l := c.Load()
	if u, ok := uniformState(l); ok {
		if s != u {
			return 0, to
		}
		return to, to
	}
	return l.stretch(i, to, s), to
}

func (l *leaf) stretch(i, limit uint64, s State) uint64 {
	n := uint64(0)
	for n < limit {
		in := (i + n) % wordBlocks
		diff := (atomic.LoadUint64(&l[(i+n)/wordBlocks]) ^ pattern[s]) >> (in * stateBits)
		if diff != 0 {
			return min(limit, n+uint64(bits.TrailingZeros64(diff))/stateBits)
		}
		n += wordBlocks - in
	}
	return limit
}

// Set gives n blocks from b on the state s. The caller holds their exclusive
// locks. Set allocates when it makes a leaf or what is above one, and panics if
// the range ends past MaxBlocks, or if the table was packed.
func (t *Table) Set(b BlockNum, n uint64, s State) {
	mustLieInVolume(b, n)
	t.mustNotBePacked()
	var d delta
	for n > 0 {
		done := min(n, LeafBlocks-uint64(b%LeafBlocks))
		if c := t.cell(b); c != nil {
			setLeaf(c, uint64(b%LeafBlocks), done, s, &d)
		} else if s == Absent {
			done = t.unwritten(b, n)
		} else {
			setLeaf(t.makeCell(b), uint64(b%LeafBlocks), done, s, &d)
		}
		b += BlockNum(done)
		n -= done
	}
	t.add(&d)
}

// delta is by how much a Set changes the number of blocks of each state, and of dense
// leaves.
type delta struct {
	blocks [3]int64
	leaves int64
}

// replace counts a whole leaf that takes the place of another.
func (d *delta) replace(old, now *leaf) {
	data, zero := old.counts()
	d.blocks[Data] -= data
	d.blocks[Zero] -= zero
	data, zero = now.counts()
	d.blocks[Data] += data
	d.blocks[Zero] += zero
	if _, ok := uniformState(old); !ok {
		d.leaves--
	}
	if _, ok := uniformState(now); !ok {
		d.leaves++
	}
}

func (l *leaf) counts() (data, zero int64) {
	switch s, ok := uniformState(l); {
	case ok && s == Data:
		return LeafBlocks, 0
	case ok && s == Zero:
		return 0, LeafBlocks
	case ok:
		return 0, 0
	}
	for i := range l {
		w := atomic.LoadUint64(&l[i])
		data += int64(bits.OnesCount64(w & lowBits))
		zero += int64(bits.OnesCount64(w &^ lowBits))
	}
	return data, zero
}

func (t *Table) add(d *delta) {
	if n := d.blocks[Data]; n != 0 {
		t.count[Data].Add(uint64(n))
	}
	if n := d.blocks[Zero]; n != 0 {
		t.count[Zero].Add(uint64(n))
	}
	if d.leaves != 0 {
		t.dense.Add(d.leaves)
	}
}

func setLeaf(c *tableCell, i, n uint64, s State, d *delta) {
	l := c.Load()
	was, isUniform := uniformState(l)
	switch {
	case isUniform && was == s:
		return
	case n == LeafBlocks:
		d.replace(l, uniform[s])
		c.Store(uniform[s])
		return
	case isUniform:
		dense := newLeaf(was)
		yield.Here("table: before a leaf")
		if c.CompareAndSwap(l, dense) {
			l = dense
			d.leaves++
		} else {
			l = c.Load() // a neighbour's, dense: see Table, 2
		}
	}
	l.set(i, n, s, d)
}

func (l *leaf) set(i, n uint64, s State, d *delta) {
	for n > 0 {
		in := i % wordBlocks
		k := min(n, wordBlocks-in)
		mask := ^uint64(0) >> (64 - k*stateBits) << (in * stateBits)
		w := &l[i/wordBlocks%leafWords]
		old, now := atomic.LoadUint64(w)&mask, pattern[s]&mask
		if old != now {
			yield.Here("table: before a word")
			atomic.AddUint64(w, now-old)
			d.blocks[Data] -= int64(bits.OnesCount64(old & lowBits))
			d.blocks[Zero] -= int64(bits.OnesCount64(old &^ lowBits))
			d.blocks[s] += int64(k)
		}
		i += k
		n -= k
	}
}

// Fold makes the leaf that begins at block b cost nothing, if all its blocks have the
// same state. The caller holds the exclusive locks of all of them.
func (t *Table) Fold(b BlockNum) {
	if c := t.cell(b); c != nil {
		if l := c.Load(); l != nil {
			if folded := l.folded(); folded != l {
				c.Store(folded)
				t.dense.Add(-1) // it says the same of every block
			}
		}
	}
}

// DenseLeaves is how many leaves hold a state for each block, 4 KiB each, of a table that
// is not packed. It needs no lock.
func (t *Table) DenseLeaves() int64 { return t.dense.Load() }

// Dense yields the first block of each of them, in ascending order. It needs no lock.
func (t *Table) Dense() iter.Seq[BlockNum] {
	return func(yield func(BlockNum) bool) {
		for b, c := range t.cells() {
			if _, ok := uniformState(c.Load()); !ok && !yield(b) {
				return
			}
		}
	}
}

// Counts returns how many blocks are Data and how many Zero: exact when nobody
// writes, else some moment's value of each. It needs no lock and costs two loads.
func (t *Table) Counts() (data, zero uint64) {
	return t.count[Data].Load(), t.count[Zero].Load()
}

// Extents yields, in ascending order, the maximal runs of Data and of Zero among
// n blocks from block from on. It needs no lock: of a block that is written
// meanwhile it gives the state before or after.
func (t *Table) Extents(from BlockNum, n uint64) iter.Seq[Extent] {
	if p := t.packed.Load(); p != nil {
		return p.extents(from, n)
	}
	return func(yield func(Extent) bool) {
		for n > 0 {
			s, run := t.Run(from, n)
			if s != Absent && !yield(Extent{from, run, s}) {
				return
			}
			from += BlockNum(run)
			n -= run
		}
	}
}

// Clone returns a copy, in which every leaf that is all of one state costs
// nothing. It needs no lock: of a block that is written meanwhile the copy has
// the state before or after. Blocks may be set in the copy, whatever t is.
func (t *Table) Clone() *Table {
	if u := t.unpacked(); u != t {
		return u
	}
	c := NewTable()
	var d delta
	for b, from := range t.cells() {
		if l := from.Load().still(); l != nil {
			c.makeCell(b).Store(l)
			d.replace(nil, l)
		}
	}
	c.add(&d)
	return c
}

// still returns a copy of l that no writer changes, folded if it is uniform.
func (l *leaf) still() *leaf {
	if _, ok := uniformState(l); ok {
		return l
	}
	c := new(leaf)
	for i := range l {
		c[i] = atomic.LoadUint64(&l[i])
	}
	return c.folded()
}

// folded returns l, or the sentinel that says the same.
func (l *leaf) folded() *leaf {
	s := State(l[0] & 3)
	if l.stretch(0, LeafBlocks, s) == LeafBlocks {
		return uniform[s]
	}
	return l
}

// MemoryBytes returns the memory that the table holds. It needs no lock and
// looks at every leaf pointer.
func (t *Table) MemoryBytes() int64 {
	size := int64(unsafe.Sizeof(*t)) + t.memoryBytes()
	if p := t.packed.Load(); p != nil {
		size += int64(unsafe.Sizeof(*p)) + p.sizeBytes()
	}
	for _, c := range t.cells() {
		if _, ok := uniformState(c.Load()); !ok {
			size += int64(unsafe.Sizeof(leaf{}))
		}
	}
	return size
}

package lookup

import (
	"iter"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/tidemark/tidemark/internal/yield"
)

// Slot stands for an image of a volume; 0 for none. It says nothing of its age.
type Slot uint16

// MaxSlot bounds how many images a volume has at a time.
const MaxSlot Slot = 1<<15 - 2

// Entry says who holds a block: the slot of the newest image that does, and
// whether it is Zero there. 0: nobody holds it.
type Entry uint16

// Unknown is the entry of a block of which the index does not say who holds it: ask
// the tables. Its slot is above that of every image.
const Unknown = Entry(MaxSlot+1)<<1 | 1

// MakeEntry returns the entry of a block that the image in slot holds in state
// s: 0 for Absent or slot 0. It panics for a slot past MaxSlot, which would read
// as another image's.
func MakeEntry(slot Slot, s State) Entry {
	if slot > MaxSlot {
		panic("lookup: slot past MaxSlot")
	}
	if slot == 0 || s == Absent {
		return 0
	}
	return Entry(slot)<<1 | Entry(s-Data)
}

// Slot returns the slot of the image that holds the block, 0 if none does.
func (e Entry) Slot() Slot { return Slot(e >> 1) }

// State returns the block's state in that image; Absent if none holds it.
func (e Entry) State() State {
	if e == 0 {
		return Absent
	}
	return Data + State(e&1)
}

// Index gives for each block of a volume the entry of the newest image that
// holds it, so that a read costs the same at one image and at a thousand.
//
// The leaf is one value for a uniform stretch, or dense: an entry a block. An index
// may begin blank, Unknown everywhere: then it costs nothing to make for a chain of
// any length, and what is asked for is learnt. What takes too much memory is forgotten.
//
//  1. An element of a dense leaf is guarded by the lock of its block alone.
//     Elements are separate variables: neighbours' writers don't meet.
//  2. A uniform leaf's value is written only by a Set that covers the leaf end
//     to end, whose caller holds all its locks: it is guarded by any of them.
//  3. A leaf becomes dense by compare-and-swap from nil, with all elements set
//     to the uniform value: of writers that race here one wins, the others use
//     its leaf, and no block has changed by it. It becomes uniform as in 2,
//     or by Fold under the same locks.
//  4. What a leaf holds is entry XOR blank: so a leaf that was never made says what
//     the index began with.
//  5. A leaf is Unknown as a whole, or not at all: a Set of some blocks of one that is
//     changes nothing. The tables say it too, and where writes are scattered and
//     nobody reads, leaves would be made for nothing.
type Index struct {
	radix[indexCell]
	blank Entry        // 0 or Unknown
	dense atomic.Int64 // leaves; changed under counting

	counting sync.Mutex
	total    *atomic.Int64
}

type indexCell struct {
	dense   atomic.Pointer[entries]
	uniform Entry // of all blocks while dense is nil
}

type entries [LeafBlocks]Entry

// NewIndex returns an index in which nobody holds any block.
func NewIndex() *Index { return new(Index) }

// NewBlankIndex returns an index that knows of no block who holds it.
func NewBlankIndex() *Index { return &Index{blank: Unknown} }

// Get returns the entry of block b. The caller holds the lock of b.
func (x *Index) Get(b BlockNum) Entry { return x.raw(b) ^ x.blank }

// raw is what a leaf holds of b: see Index, 4.
func (x *Index) raw(b BlockNum) Entry {
	c := x.cell(b)
	if c == nil {
		return 0
	}
	if l := c.dense.Load(); l != nil {
		return l[b%LeafBlocks]
	}
	return c.uniform
}

// Run returns the entry of block b and how many blocks from b on have it: the
// longest run, at least 1 and at most limit, which is at least 1. The caller
// holds the locks of all limit blocks.
func (x *Index) Run(b BlockNum, limit uint64) (Entry, uint64) {
	e := x.raw(b)
	n := uint64(1)
	for n < limit {
		got, to := x.stretch(b+BlockNum(n), limit-n, e)
		n += got
		if got < to {
			break
		}
	}
	return e ^ x.blank, n
}

// stretch is as Table.stretch, for what a leaf holds.
func (x *Index) stretch(b BlockNum, limit uint64, e Entry) (got, to uint64) {
	if to = x.unwritten(b, limit); to > 0 {
		if e != 0 {
			return 0, to
		}
		return to, to
	}
	i := uint64(b % LeafBlocks)
	to = min(limit, LeafBlocks-i)
	c := x.cell(b)
	l := c.dense.Load()
	if l == nil {
		if c.uniform != e {
			return 0, to
		}
		return to, to
	}
	for k, have := range l[i : i+to] {
		if have != e {
			return uint64(k), to
		}
	}
	return to, to
}

// Set gives n blocks from b on the entry e. The caller holds their exclusive
// locks, and says Unknown of whole leaves only. Set allocates when it makes a leaf or
// what is above one, and panics if the range ends past MaxBlocks.
func (x *Index) Set(b BlockNum, n uint64, e Entry) {
	mustLieInVolume(b, n)
	e ^= x.blank
	for n > 0 {
		done := min(n, LeafBlocks-uint64(b%LeafBlocks))
		if c := x.cell(b); c != nil {
			x.count(c.set(uint64(b%LeafBlocks), done, e, Unknown^x.blank))
		} else if e == 0 {
			done = x.unwritten(b, n)
		} else if done == LeafBlocks || x.blank != Unknown {
			x.count(x.makeCell(b).set(uint64(b%LeafBlocks), done, e, Unknown^x.blank))
		}
		b += BlockNum(done)
		n -= done
	}
}

// set returns how many more leaves are dense now. unknown is what the leaf holds where
// nothing is known.
func (c *indexCell) set(i, n uint64, e, unknown Entry) (made int64) {
	l := c.dense.Load()
	switch {
	case n == LeafBlocks:
		c.uniform = e
		if l != nil {
			c.dense.Store(nil)
			made--
		}
		return made
	case l == nil && (c.uniform == e || c.uniform == unknown):
		return 0
	case l == nil:
		l = new(entries)
		l.fill(0, LeafBlocks, c.uniform)
		yield.Here("index: before a leaf")
		if made = 1; !c.dense.CompareAndSwap(nil, l) {
			l, made = c.dense.Load(), 0 // a neighbour's: see Index, 3
		}
	}
	l.fill(i, n, e)
	return made
}

func (l *entries) fill(i, n uint64, e Entry) {
	part := l[i : i+n]
	for k := range part {
		part[k] = e
	}
}

func (x *Index) count(made int64) {
	if made == 0 {
		return
	}
	x.counting.Lock()
	defer x.counting.Unlock()
	x.dense.Add(made)
	if x.total != nil {
		x.total.Add(made)
	}
}

// CountIn lets total count the dense leaves too, until nil is set. It needs no lock.
func (x *Index) CountIn(total *atomic.Int64) {
	x.counting.Lock()
	defer x.counting.Unlock()
	if x.total != nil {
		x.total.Add(-x.dense.Load())
	}
	if x.total = total; total != nil {
		total.Add(x.dense.Load())
	}
}

// DenseLeafBytes is what a dense leaf takes.
const DenseLeafBytes = LeafBlocks * 2

// DenseLeaves is how many leaves hold an entry for each block. It needs no lock.
func (x *Index) DenseLeaves() int64 { return x.dense.Load() }

// Dense yields the first block of each of them, in ascending order. It needs no lock.
func (x *Index) Dense() iter.Seq[BlockNum] {
	return func(yield func(BlockNum) bool) {
		for b, c := range x.cells() {
			if c.dense.Load() != nil && !yield(b) {
				return
			}
		}
	}
}

// Fold makes the leaf that begins at block b one value, if all its blocks have the
// same. The caller holds the exclusive locks of all of them.
func (x *Index) Fold(b BlockNum) {
	c := x.cell(b)
	if c == nil {
		return
	}
	l := c.dense.Load()
	if l == nil {
		return
	}
	if !l.uniform() {
		return
	}
	c.uniform = l[0]
	c.dense.Store(nil)
	x.count(-1)
}

// Forget makes the leaf that begins at block b cost nothing: of its blocks nobody knows
// who holds them. The caller holds the exclusive locks of all of them.
func (x *Index) Forget(b BlockNum) { x.Set(b, LeafBlocks, Unknown) }

// Layer is the table of an image, and the slot that stands for the image.
type Layer struct {
	Slot  Slot
	Table *Table
}

// Learn makes the leaf that begins at block b say who holds its blocks, from the
// tables, as Rebuild. It does nothing if that is known. The caller holds the exclusive
// locks of all of them.
func (x *Index) Learn(b BlockNum, layers []Layer) {
	if x.Get(b) != Unknown {
		return
	}
	l := new(entries)
	for _, y := range layers {
		for ext := range y.Table.Extents(b, LeafBlocks) {
			l.fill(uint64(ext.Block-b), ext.Count, MakeEntry(y.Slot, ext.State))
		}
	}
	if l.uniform() {
		x.Set(b, LeafBlocks, l[0])
		return
	}
	for i := range l {
		l[i] ^= x.blank
	}
	x.makeCell(b).dense.Store(l)
	x.count(1)
}

func (l *entries) uniform() bool {
	for _, e := range l {
		if e != l[0] {
			return false
		}
	}
	return true
}

// Rebuild derives the index of a volume from the tables of its images, oldest first.
// The newest table that has a block wins. It needs no lock if nobody writes to the
// tables.
func Rebuild(layers []Layer) *Index {
	x := NewIndex()
	for _, y := range layers {
		for ext := range y.Table.Extents(0, MaxBlocks) {
			x.Set(ext.Block, ext.Count, MakeEntry(y.Slot, ext.State))
		}
	}
	return x
}

// MemoryBytes returns the memory that the index holds. It needs no lock and
// looks at every leaf pointer.
func (x *Index) MemoryBytes() int64 {
	size := int64(unsafe.Sizeof(*x)) + x.memoryBytes()
	for _, c := range x.cells() {
		if c.dense.Load() != nil {
			size += int64(unsafe.Sizeof(entries{}))
		}
	}
	return size
}

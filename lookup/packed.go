package lookup

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"
)

// packed is a table that nobody sets blocks in any more, as its runs of Data and of
// Zero in ascending order. A leaf would take 4 KiB for a single block: a thousand
// snapshots that hold a few scattered blocks each fit in memory so, and so do those
// of a volume that was written at random everywhere, with 13 bits for a block.
//
// 256 runs make a chunk. Its first blocks lie there by the code of Elias and Fano (S.
// Vigna, Quasi-succinct indices, 2013), as their distances from the first: the low bits
// of each side by side, the high bits as one bit string, in which the i-th run of high
// bits h sets bit h+i. So a block is found without decoding what comes before it: the
// place of the h-th zero tells how many runs lie below h.
//
// A chunk, from a word on:
//
//	low bits of each run, then how many blocks it has, less 1, then,
//	if the chunk is mixed, its state less 1: all of fixed width, without gaps
//	high bits, from the next word on
type packed struct {
	heads []chunkHead
	at    []uint32 // the word where the chunk begins
	words []uint64
	last  int // runs in the last chunk; the others have chunkRuns
}

// chunkHead says what a chunk begins with and how it lies:
//
//	63-28  first block of the first run
//	27-22  width of the low bits
//	21-17  width of a number of blocks
//	 1-0   the state of all runs; Absent: it is mixed
type chunkHead uint64

const (
	chunkRuns      = 256
	packedMaxCount = 1 << 26 // a longer run is several

	headFirstAt, headLowAt, headCountAt = 28, 22, 17
)

func (h chunkHead) first() BlockNum { return BlockNum(h >> headFirstAt) }
func (h chunkHead) low() uint       { return uint(h >> headLowAt & 63) }
func (h chunkHead) count() uint     { return uint(h >> headCountAt & 31) }
func (h chunkHead) state() State    { return State(h & (1<<stateBits - 1)) }

// run is a run of a packed table.
type run struct {
	first BlockNum
	count uint64
	state State
}

func (r run) end() BlockNum { return r.first + BlockNum(r.count) }

// walk is a place in a packed table: a run, and what it takes to go on from it.
type walk struct {
	packed *packed
	number int // of the chunk; of one more than there are at the end
	i      int // of the run in the chunk
	bit    uint
	chunk
	run
}

// begin returns the first run.
func (p *packed) begin() walk {
	w := walk{packed: p}
	w.enter(0)
	return w
}

// from returns the first run that ends behind block b.
func (p *packed) from(b BlockNum) walk {
	low, high := 0, len(p.heads) // chunks before low begin at or before b, those from high on behind it
	for low < high {
		if middle := (low + high) / 2; p.heads[middle].first() <= b {
			low = middle + 1
		} else {
			high = middle
		}
	}
	if low == 0 {
		return p.begin()
	}
	w := walk{packed: p, number: low - 1, chunk: p.chunk(low - 1)}
	w.i, w.bit = w.chunk.last(uint64(b - w.head.first()))
	if w.run = w.chunk.run(w.i, w.bit); w.end() <= b {
		w.next()
	}
	return w
}

// ended tells whether the walk is past the last run.
func (w *walk) ended() bool { return w.number == len(w.packed.heads) }

// next goes on to the next run.
func (w *walk) next() {
	if w.i++; w.i == int(w.runs) {
		w.enter(w.number + 1)
		return
	}
	w.bit = w.chunk.next(w.bit + 1)
	w.run = w.chunk.run(w.i, w.bit)
}

// enter goes to the first run of a chunk.
func (w *walk) enter(number int) {
	if w.number = number; w.ended() {
		return
	}
	w.i, w.chunk = 0, w.packed.chunk(number)
	w.bit = w.chunk.next(0)
	w.run = w.chunk.run(0, w.bit)
}

// says is Table.Run, of a block that this run, and none before it, may have.
func (w *walk) says(b BlockNum, limit uint64) (State, uint64) {
	if w.ended() {
		return Absent, limit
	}
	if b < w.first {
		return Absent, min(limit, uint64(w.first-b))
	}
	s, n := w.state, uint64(w.end()-b)
	if n >= limit {
		return s, limit
	}
	for on := *w; n < limit; n += on.count {
		if on.next(); on.ended() || on.first != b+BlockNum(n) || on.state != s {
			break
		}
	}
	return s, min(n, limit)
}

// runsOf is how many runs a chunk has.
func (p *packed) runsOf(chunk int) int {
	if chunk == len(p.heads)-1 {
		return p.last
	}
	return chunkRuns
}

// chunk is the words of a chunk, and where they say what.
func (p *packed) chunk(i int) chunk {
	c := chunk{head: p.heads[i], words: p.words[p.at[i]:]}
	if i+1 < len(p.at) {
		c.words = p.words[p.at[i]:p.at[i+1]]
	}
	c.runs = uint(p.runsOf(i))
	c.countAt = c.runs * c.head.low()
	c.stateAt = c.countAt + c.runs*c.head.count()
	fixed := c.stateAt
	if c.head.state() == Absent {
		fixed += c.runs
	}
	c.high = c.words[(fixed+63)/64:]
	return c
}

type chunk struct {
	head             chunkHead
	words, high      []uint64
	runs             uint
	countAt, stateAt uint // bits
}

// field returns the i-th number of so many bits of those that begin at a bit.
func (c *chunk) field(i int, at, width uint) uint64 {
	if width == 0 {
		return 0
	}
	at += uint(i) * width
	v := c.words[at/64] >> (at % 64)
	if at%64+width > 64 {
		v |= c.words[at/64+1] << (64 - at%64)
	}
	return v & (1<<width - 1)
}

// last returns the last run that begins at or before a distance from the first, and
// at which bit it is.
func (c *chunk) last(dist uint64) (i int, bit uint) {
	low := c.head.low()
	i, bit = c.zero(dist >> low)
	for dist &= 1<<low - 1; c.isSet(bit) && c.field(i, 0, low) <= dist; {
		i, bit = i+1, bit+1
	}
	return i - 1, c.before(bit)
}

func (c *chunk) isSet(bit uint) bool {
	return bit/64 < uint(len(c.high)) && c.high[bit/64]>>(bit%64)&1 == 1
}

// before returns the last bit set below one, which there is.
func (c *chunk) before(bit uint) uint {
	i, w := bit/64, uint64(0)
	if bit%64 > 0 {
		w = c.high[i] & (1<<(bit%64) - 1)
	}
	for w == 0 {
		i--
		w = c.high[i]
	}
	return i*64 + uint(bits.Len64(w)) - 1
}

// zero returns how many runs have high bits below h, and at which bit those that have
// h begin.
func (c *chunk) zero(h uint64) (runs int, bit uint) {
	left := h // zeros to pass
	for i, w := range c.high {
		if zeros := uint64(bits.OnesCount64(^w)); left > zeros {
			left -= zeros
			continue
		}
		if left == 0 { // i is 0
			return 0, 0
		}
		bit = uint(i)*64 + nth(^w, left) + 1
		return int(bit) - int(h), bit
	}
	return int(c.runs), uint(len(c.high)) * 64
}

// next returns the first bit set from one on, which there is.
func (c *chunk) next(bit uint) uint {
	w := c.high[bit/64] >> (bit % 64)
	for w == 0 {
		bit = (bit/64 + 1) * 64
		w = c.high[bit/64]
	}
	return bit + uint(bits.TrailingZeros64(w))
}

// nth returns which bit of w is its n-th that is set, n from 1; it has so many.
func nth(w, n uint64) uint {
	at := uint(0)
	for half := uint(32); half >= 1; half /= 2 {
		if ones := uint64(bits.OnesCount64(w & (1<<half - 1))); n > ones {
			n, w, at = n-ones, w>>half, at+half
		}
	}
	return at
}

// run returns the i-th, whose high bits end at a bit.
func (c *chunk) run(i int, bit uint) run {
	r := run{
		first: c.head.first() + BlockNum(uint64(bit-uint(i))<<c.head.low()|c.field(i, 0, c.head.low())),
		count: c.field(i, c.countAt, c.head.count()) + 1,
		state: c.head.state(),
	}
	if r.state == Absent {
		r.state = Data + State(c.field(i, c.stateAt, 1))
	}
	return r
}

// Run is Table.Run.
func (p *packed) Run(b BlockNum, limit uint64) (State, uint64) {
	w := p.from(b)
	return w.says(b, limit)
}

// Ascending returns what says the same as r, and much sooner if the blocks asked for
// come in ascending order. One goroutine may ask it. Of a table that is packed it says
// what it was then.
func Ascending(r Runs) Runs {
	if t, ok := r.(*Table); ok {
		if p := t.packed.Load(); p != nil {
			r = p
		}
	}
	if p, ok := r.(*packed); ok {
		return &ascent{walk: walk{packed: p}}
	}
	return r
}

// ascent is where in a packed table who asks last was.
type ascent struct {
	walk
	began bool
	asked BlockNum
}

// Run is Table.Run.
func (a *ascent) Run(b BlockNum, limit uint64) (State, uint64) {
	if !a.began || b < a.asked {
		a.walk = a.packed.from(b)
	}
	a.began, a.asked = true, b
	for steps := 0; !a.ended() && a.end() <= b; steps++ {
		if steps == nearRuns {
			a.walk = a.packed.from(b)
			break
		}
		a.next()
	}
	return a.says(b, limit)
}

// nearRuns is how many runs are passed one by one before the next is looked for: as
// long as that takes.
const nearRuns = 16

// extents is Table.Extents.
func (p *packed) extents(from BlockNum, n uint64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		end, x := from+BlockNum(n), Extent{}
		for w := p.from(from); !w.ended(); w.next() {
			first, last := max(w.first, from), min(w.end(), end)
			if first >= last {
				break
			}
			if x.Count > 0 && x.State == w.state && x.Block+BlockNum(x.Count) == first {
				x.Count += uint64(last - first)
				continue
			}
			if x.Count > 0 && !yield(x) {
				return
			}
			x = Extent{first, uint64(last - first), w.state}
		}
		if x.Count > 0 {
			yield(x)
		}
	}
}

// sizeBytes is what its chunks take in memory.
func (p *packed) sizeBytes() int64 {
	return int64(8*len(p.heads) + 4*len(p.at) + 8*len(p.words))
}

// packer makes a packed table of runs that come in ascending order.
type packer struct {
	packed
	open   []run     // a chunk at most, the last of which may grow
	blocks [3]uint64 // of each state
}

// add puts a run behind all others.
func (p *packer) add(b BlockNum, n uint64, s State) {
	if s == Absent || n == 0 {
		return
	}
	p.blocks[s] += n
	if i := len(p.open) - 1; i >= 0 && s == p.open[i].state && b == p.open[i].end() {
		b, n, p.open = p.open[i].first, n+p.open[i].count, p.open[:i]
	}
	for n > 0 {
		if len(p.open) == chunkRuns {
			p.close()
		}
		part := min(n, packedMaxCount)
		p.open = append(p.open, run{b, part, s})
		b, n = b+BlockNum(part), n-part
	}
}

// close makes a chunk of the runs that are open.
func (p *packer) close() {
	list := p.open
	if len(list) == 0 {
		return
	}
	first, last := list[0].first, list[len(list)-1].first
	low := uint(max(0, bits.Len64(uint64(last-first)/uint64(len(list)))-1))
	var most uint64
	state := list[0].state
	for _, r := range list {
		most = max(most, r.count-1)
		if r.state != state {
			state = Absent // mixed
		}
	}
	count := uint(bits.Len64(most))

	p.heads = append(p.heads, chunkHead(first)<<headFirstAt|chunkHead(low)<<headLowAt|chunkHead(count)<<headCountAt|chunkHead(state))
	p.at = append(p.at, uint32(len(p.words))) // 32 GiB for one table
	w := bitWriter{words: p.words}
	for _, r := range list {
		w.put(uint64(r.first-first)&(1<<low-1), low)
	}
	for _, r := range list {
		w.put(r.count-1, count)
	}
	for _, r := range list {
		if state == Absent {
			w.put(uint64(r.state-Data), 1)
		}
	}
	w.align()
	high := uint64(last-first)>>low + uint64(len(list)) // bits
	at := len(w.words)
	w.words = append(w.words, make([]uint64, (high+63)/64)...)
	for i, r := range list {
		bit := uint64(r.first-first)>>low + uint64(i)
		w.words[at+int(bit/64)] |= 1 << (bit % 64)
	}
	p.words, p.last, p.open = w.words, len(list), list[:0]
}

// bitWriter appends numbers to words, the low bits first.
type bitWriter struct {
	words []uint64
	word  uint64
	used  uint
}

func (w *bitWriter) put(v uint64, width uint) {
	w.word |= v << w.used
	if w.used+width >= 64 {
		w.words = append(w.words, w.word)
		w.word = v >> (64 - w.used)
		w.used -= 64
	}
	w.used += width
}

func (w *bitWriter) align() {
	if w.used > 0 {
		w.words = append(w.words, w.word)
		w.word, w.used = 0, 0
	}
}

// done returns what was made of the runs, in about as much memory as it needs. No more
// may be added.
func (p *packer) done() *packed {
	p.close()
	return &packed{slices.Clone(p.heads), slices.Clone(p.at), slices.Clone(p.words), p.last}
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
		t.dense.Store(with.DenseLeaves())
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

func (t *Table) become(p *packed) {
	t.packed.Store(p)
	t.forms.Add(1)
	t.root.Store(nil)
	t.dense.Store(0)
}

// pack returns a table's runs, unless its leaves take less.
func (t *Table) pack() (p *packed, ok bool) {
	if old := t.packed.Load(); old != nil {
		return old, true
	}
	most := t.MemoryBytes()
	var m packer
	for x := range t.Extents(0, MaxBlocks) {
		if m.add(x.Block, x.Count, x.State); m.sizeBytes() > most {
			return nil, false
		}
	}
	return m.done(), true
}

// unpacked returns t, or a copy of it with leaves.
func (t *Table) unpacked() *Table {
	p := t.packed.Load()
	if p == nil {
		return t
	}
	c := NewTable()
	for w := p.begin(); !w.ended(); w.next() {
		c.Set(w.first, w.count, w.state)
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
	runs   packer
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
	if m.runs.add(b, n, s); s == Absent {
		return
	}
	if end := b + BlockNum(n); b%LeafBlocks != 0 || end%LeafBlocks != 0 {
		if b >= m.last {
			m.mixed++
		}
		m.last = max(m.last, (end+LeafBlocks-1)/LeafBlocks*LeafBlocks)
	}
	if m.runs.sizeBytes() > packedLeastBytes+int64(m.mixed)*leafBytes {
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
	t.packed.Store(m.runs.done())
	for s, n := range m.runs.blocks {
		t.count[s].Store(n)
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

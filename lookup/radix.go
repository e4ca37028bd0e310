package lookup

import (
	"iter"
	"sync"
	"sync/atomic"
	"unsafe"
)

// LeafBlocks is how many blocks a leaf covers, 64 MiB. A Set that covers a leaf
// from end to end stores one word or pointer for it, whatever was there.
const LeafBlocks = 1 << leafBits

const (
	leafBits  = 14
	midBits   = 9
	midLeaves = 1 << midBits
	midBlocks = LeafBlocks * midLeaves // 32 GiB
	maxLeaves = MaxBlocks / LeafBlocks
	maxMids   = MaxBlocks / midBlocks
)

// radix is the sparse upper part that Table and Index share: root, mids, and in
// a mid one cell C for each leaf. A zero cell is a leaf never written.
//
// A mid once installed stays where it is, so the address of a cell is good for
// ever. Readers take no lock; installing a mid does, and so does growing the
// root: a mid put into the old root while it is copied would be lost.
type radix[C any] struct {
	root atomic.Pointer[[]atomic.Pointer[mid[C]]]
	grow sync.Mutex
}

type mid[C any] [midLeaves]C

// cell returns the cell of the leaf that holds b, nil where there is no mid.
func (r *radix[C]) cell(b BlockNum) *C {
	m := r.mid(b)
	if m == nil {
		return nil
	}
	return &m[b>>leafBits%midLeaves]
}

func (r *radix[C]) mid(b BlockNum) *mid[C] {
	root := r.root.Load()
	if root == nil || b/midBlocks >= BlockNum(len(*root)) {
		return nil
	}
	return (*root)[b/midBlocks].Load()
}

// makeCell returns the cell of the leaf that holds b and installs what is
// missing above it.
func (r *radix[C]) makeCell(b BlockNum) *C {
	m := r.mid(b)
	if m == nil {
		m = r.makeMid(int(b / midBlocks))
	}
	return &m[b>>leafBits%midLeaves]
}

func (r *radix[C]) makeMid(i int) *mid[C] {
	r.grow.Lock()
	defer r.grow.Unlock()
	root := r.root.Load()
	if root == nil || i >= len(*root) {
		root = grown(root, i+1)
		r.root.Store(root)
	}
	m := (*root)[i].Load()
	if m == nil {
		m = new(mid[C])
		(*root)[i].Store(m)
	}
	return m
}

// grown returns a copy of the root with room for n mids, at least doubled so
// that a volume filled from its start copies each pointer about once.
func grown[C any](root *[]atomic.Pointer[mid[C]], n int) *[]atomic.Pointer[mid[C]] {
	var old []atomic.Pointer[mid[C]]
	if root != nil {
		old = *root
	}
	roots := make([]atomic.Pointer[mid[C]], max(n, min(2*len(old), maxMids)))
	for i := range old {
		roots[i].Store(old[i].Load())
	}
	return &roots
}

// end returns the first block past the root: nothing at or after it was ever
// set.
func (r *radix[C]) end() BlockNum {
	root := r.root.Load()
	if root == nil {
		return 0
	}
	return BlockNum(len(*root)) * midBlocks
}

// unwritten returns how many blocks from b on, at most limit, lie where no mid
// is, b among them; 0 if b has a mid.
func (r *radix[C]) unwritten(b BlockNum, limit uint64) uint64 {
	if b >= r.end() {
		return limit
	}
	if r.mid(b) != nil {
		return 0
	}
	return min(limit, uint64(midBlocks-b%midBlocks))
}

// cells yields the cell of every leaf that has a mid, with its first block, in
// ascending order.
func (r *radix[C]) cells() iter.Seq2[BlockNum, *C] {
	return func(yield func(BlockNum, *C) bool) {
		for b := BlockNum(0); b < r.end(); b += midBlocks {
			m := r.mid(b)
			if m == nil {
				continue
			}
			for i := range m {
				if !yield(b+BlockNum(i)*LeafBlocks, &m[i]) {
					return
				}
			}
		}
	}
}

// memoryBytes returns the memory of root and mids.
func (r *radix[C]) memoryBytes() int64 {
	var m mid[C]
	size := int64(r.end()/midBlocks) * int64(unsafe.Sizeof(&m))
	for b := BlockNum(0); b < r.end(); b += midBlocks {
		if r.mid(b) != nil {
			size += int64(unsafe.Sizeof(m))
		}
	}
	return size
}

// mustLieInVolume panics for a range that no volume can have. A request is
// checked against the size of its volume long before it comes here, so this is
// a mistake in the program; going on would allocate without bound.
func mustLieInVolume(b BlockNum, n uint64) {
	if n > MaxBlocks || b > MaxBlocks-BlockNum(n) {
		panic("lookup: range ends past MaxBlocks")
	}
}

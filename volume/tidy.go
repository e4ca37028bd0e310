package volume

import (
	"math/rand/v2"
	"sync/atomic"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// indexes is what the indexes of all volumes take.
type indexes struct {
	leaves atomic.Int64 // dense ones
	most   int64        // as many as there may be; 0: any number
}

// LimitIndexes bounds the memory that the indexes of all volumes take together: beyond
// it, leaves at random are forgotten, of the volume that has the most (Tend does it).
// Their reads ask the tables, an image after the other, until they are learnt again.
// It is said before the first volume is there; 0 is no limit.
func (e *Engine) LimitIndexes(sizeBytes int64) {
	e.indexes.most = (sizeBytes + lookup.DenseLeafBytes - 1) / lookup.DenseLeafBytes
}

// over is by how many leaves there are too many, with so many more.
func (x *indexes) over(more int64) int64 {
	if x.most == 0 {
		return 0
	}
	return max(0, x.leaves.Load()+more-x.most)
}

// spare is how many leaves are forgotten beyond what is needed, so that it need not be
// done for each.
func (x *indexes) spare() int64 { return x.most / 16 }

// wantsTidying asks for tidy when as many leaves were made since the last time as are
// worth a look, or there are too many.
func (v *Volume) wantsTidying() {
	if v.worthTidying() || v.engine.indexes.over(0) > 0 {
		v.askToTidy()
	}
}

func (v *Volume) worthTidying() bool {
	return v.index.DenseLeaves() >= v.tidied.Load()+worthTidying
}

func (v *Volume) askToTidy() {
	select {
	case v.untidy <- struct{}{}:
	default:
	}
}

// tidy gives memory back that the index and the tables took for stretches written in
// pieces, and need no more now that all of a stretch is in one state: zeros over
// terabytes would take half a gibibyte for each. If that is not enough, it has leaves
// forgotten. It waits for nobody, and makes a request wait for microseconds at most.
func (v *Volume) tidy() {
	if v.worthTidying() {
		v.fold()
	}
	x := &v.engine.indexes
	over := x.over(0)
	if over == 0 {
		return
	}
	if largest := v.engine.largestIndex(); largest != nil && largest.index.DenseLeaves() > v.index.DenseLeaves() {
		largest.askToTidy()
	} else {
		v.forget(over + x.spare())
	}
}

func (v *Volume) fold() {
	var held blocklock.Held
	for b := range v.index.Dense() {
		if !v.locks.TryLock(&held, blocklock.Range{First: b, Count: lookup.LeafBlocks}, blocklock.Exclusive) {
			continue // it is being written: its turn may come
		}
		v.index.Fold(b)
		for _, k := range *v.chain.Load() {
			if k.State() != Sealed {
				k.table.Fold(b)
			}
		}
		v.locks.Unlock(&held)
	}
	v.tidied.Store(v.index.DenseLeaves())
}

// forget forgets so many leaves at random, but for those in use.
func (v *Volume) forget(leaves int64) {
	var held blocklock.Held
	left := v.index.DenseLeaves()
	for b := range v.index.Dense() {
		chosen := rand.Int64N(max(1, left)) < leaves //nolint:gosec // no secret
		left--
		if !chosen || !v.locks.TryLock(&held, blocklock.Range{First: b, Count: lookup.LeafBlocks}, blocklock.Exclusive) {
			continue
		}
		v.index.Forget(b)
		v.locks.Unlock(&held)
		leaves--
	}
	v.tidied.Store(min(v.tidied.Load(), v.index.DenseLeaves()))
}

// largestIndex returns the volume with the most dense leaves, nil if there is none.
func (e *Engine) largestIndex() (largest *Volume) {
	e.mu.Lock()
	defer e.mu.Unlock()
	most := int64(-1)
	for v := range e.volumes {
		if n := v.index.DenseLeaves(); n > most {
			largest, most = v, n
		}
	}
	return largest
}

// worthTidying is a number of leaves: 32 MiB in the index, for up to 64 GiB.
const worthTidying = 1024

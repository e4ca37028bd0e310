package volume

import (
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// indexes is what the indexes of all volumes take.
type indexes struct {
	leaves atomic.Int64 // dense ones
	most   int64        // as many as there may be; 0: any number
}

// LimitIndexes has the indexes of all volumes together keep within so much memory: beyond
// it leaves at random are forgotten, of each volume as many as it has in proportion (by
// Tend). Their reads ask the tables, an image after the other, until they are learnt again.
// It is said before the first volume is there; 0 is no limit.
func (e *Engine) LimitIndexes(sizeBytes int64) {
	if sizeBytes > 0 {
		e.indexes.most = (sizeBytes-1)/lookup.DenseLeafBytes + 1
	}
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
func (v *Volume) wantsTidying(k *VLUN) {
	if v.worthTidying() || k.worthTidying() || v.engine.indexes.over(0) > 0 {
		v.askToTidy()
	}
}

func (v *Volume) worthTidying() bool {
	return v.index.DenseLeaves() >= v.tidied.Load()+worthTidying
}

func (k *VLUN) worthTidying() bool {
	return k.table.DenseLeaves() >= k.tidied.Load()+worthTidying
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
// forgotten. It waits for nobody, and makes a request wait for microseconds at most. If
// there are still too many, it is to be asked for again.
func (v *Volume) tidy() (again bool) {
	x := &v.engine.indexes
	over := x.over(0) > 0
	if v.worthTidying() || over {
		v.fold()
	}
	for _, k := range *v.chain.Load() {
		if k.State() != Sealed && k.worthTidying() {
			k.fold()
		}
	}
	if n := x.over(0); n > 0 {
		v.engine.forget(n + x.spare())
	}
	return x.over(0) > 0
}

func (v *Volume) fold() {
	v.alone(v.index.Dense(), v.index.Fold)
	v.tidied.Store(v.index.DenseLeaves())
}

func (k *VLUN) fold() {
	k.volume.alone(k.table.Dense(), func(b lookup.BlockNum) {
		if k.State() != Sealed { // it was drained since, and may be packed
			k.table.Fold(b)
		}
	})
	k.tidied.Store(k.table.DenseLeaves())
}

// alone does something with leaves under their locks, but for those that somebody uses:
// their turn may come.
func (v *Volume) alone(leaves iter.Seq[lookup.BlockNum], do func(lookup.BlockNum)) {
	var held blocklock.Held
	for b := range leaves {
		if v.locks.TryLock(&held, blocklock.Range{First: b, Count: lookup.LeafBlocks}, blocklock.Exclusive) {
			do(b)
			v.locks.Unlock(&held)
		}
	}
}

// forget forgets so many leaves.
func (e *Engine) forget(leaves int64) {
	e.mu.Lock()
	volumes := slices.Collect(maps.Keys(e.volumes))
	e.mu.Unlock()
	left := int64(0)
	for _, v := range volumes {
		left += v.index.DenseLeaves()
	}
	for _, v := range volumes {
		v.alone(func(yield func(lookup.BlockNum) bool) {
			for b := range v.index.Dense() {
				if rand.Int64N(max(1, left)) < leaves && !yield(b) { //nolint:gosec // no secret
					return
				}
				left--
			}
		}, func(b lookup.BlockNum) {
			v.index.Forget(b)
			leaves--
		})
		v.tidied.Store(min(v.tidied.Load(), v.index.DenseLeaves()))
	}
}

// worthTidying is a number of leaves: 32 MiB in the index, for up to 64 GiB.
const worthTidying = 1024

// tidyAgain is how long leaves that were in use are left alone.
const tidyAgain = 10 * time.Millisecond

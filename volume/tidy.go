package volume

import (
	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// wantsTidying asks for tidy when as many leaves were made since the last time as are
// worth a look.
func (v *Volume) wantsTidying() {
	if v.index.DenseLeaves() < v.tidied.Load()+worthTidying {
		return
	}
	select {
	case v.untidy <- struct{}{}:
	default:
	}
}

// tidy gives memory back that the index and the tables took for stretches written in
// pieces, and need no more now that all of a stretch is in one state: zeros over
// terabytes would take half a gibibyte for each. It waits for nobody, and makes a
// request wait for microseconds at most.
func (v *Volume) tidy() {
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

// worthTidying is a number of leaves: 32 MiB in the index, for up to 64 GiB.
const worthTidying = 1024

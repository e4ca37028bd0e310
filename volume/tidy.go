package volume

import (
	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// Tidy gives memory back that the index and the tables took for stretches written in
// pieces, and need no more now that all of a stretch is in one state: zeros over
// terabytes would take half a gibibyte for each. It does nothing until as many leaves
// were made since the last time as are worth a look. One goroutine calls it at a
// time; it waits for nobody, and makes a request wait for microseconds at most.
func (v *Volume) Tidy() {
	if v.index.DenseLeaves() < v.tidied+worthTidying {
		return
	}
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
	v.tidied = v.index.DenseLeaves()
}

// worthTidying is a number of leaves: 32 MiB in the index, for up to 64 GiB.
const worthTidying = 1024

package volume

import (
	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// newIndex is blank for a chain that holds something: to make one from a thousand
// tables would take seconds, and memory for what may never be read. A clone is a
// matter of milliseconds by this, and so is a volume of a directory that is opened.
func newIndex(c chain) *lookup.Index {
	for _, k := range c {
		if data, zero := k.table.Counts(); data+zero > 0 {
			return lookup.NewBlankIndex()
		}
	}
	return lookup.NewIndex()
}

// wantsWarm asks for the leaf of a block to be learnt. Until then its reads ask the
// tables.
func (v *Volume) wantsWarm(b lookup.BlockNum) {
	select {
	case v.cold <- b / lookup.LeafBlocks * lookup.LeafBlocks:
	default: // the next read asks again
	}
}

// Tend lets the index learn what is asked for, and gives back the memory that it
// needs no more, until the end. One goroutine runs it; without one, the volume works
// all the same. Each leaf of 64 MiB is locked when nobody holds or waits for a block
// of it, for about 0.1 us an image of the chain.
func (v *Volume) Tend(end <-chan struct{}) {
	var held blocklock.Held
	var layers []lookup.Layer
	for {
		var b lookup.BlockNum
		select {
		case <-end:
			return
		case <-v.untidy:
			v.tidy()
			continue
		case b = <-v.cold:
		}
		if !v.lockPatiently(end, &held, blocklock.Range{First: b, Count: lookup.LeafBlocks}) {
			return
		}
		layers = (*v.chain.Load()).layers(layers[:0])
		v.index.Learn(b, layers)
		v.locks.Unlock(&held)
	}
}

package volume

import (
	"math/rand/v2"
	"time"

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
// tables. Where another leaf has to be forgotten for it, one ask in many is heard: so
// what is read often is learnt, and a scan costs little.
func (v *Volume) wantsWarm(b lookup.BlockNum) {
	if x := &v.engine.indexes; x.over(x.spare()+1) > 0 && rand.Uint32N(heardOf) > 0 { //nolint:gosec // no secret
		return
	}
	select {
	case v.cold <- b / lookup.LeafBlocks * lookup.LeafBlocks:
	default: // the next read asks again
	}
}

// heardOf asks for a leaf one is heard when there is no more room. To learn it costs
// about as much as that many reads without it.
const heardOf = 16

// Tend lets the index learn what is asked for, and gives back the memory that it
// needs no more, until the end. One goroutine runs it; without one, the volume works
// all the same. Each leaf of 64 MiB is locked when nobody holds or waits for a block
// of it, for about 0.4 us an image of the chain.
func (v *Volume) Tend(end <-chan struct{}) {
	var held blocklock.Held
	var layers []lookup.Layer
	for {
		var b lookup.BlockNum
		select {
		case <-end:
			return
		case <-v.untidy:
			if v.tidy() {
				time.AfterFunc(tidyAgain, v.askToTidy)
			}
			continue
		case b = <-v.cold:
		}
		if !v.lockWithin(9, end, &held, blocklock.Range{First: b, Count: lookup.LeafBlocks}) {
			continue // the next read asks again
		}
		layers = (*v.chain.Load()).layers(layers[:0])
		v.index.Learn(b, layers)
		v.locks.Unlock(&held)
		v.wantsTidying(v.tip())
	}
}

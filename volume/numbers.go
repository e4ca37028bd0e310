package volume

import (
	"slices"
	"sync/atomic"

	"github.com/tidemark/tidemark/lookup"
)

// maxImages is how many images a volume has at most at a time. Tests have fewer.
var maxImages = int(lookup.MaxSlot)

// numbers are the slots of a volume's index, and the VLUNs that they stand for. They
// are dealt in turn, and come round: so a slot is used again, when the image that had
// it has been dropped, as late as can be.
//
// Who looks an entry up holds the lock of its block, since before it found the entry:
//
//  1. The VLUN of an entry was put here before the entry was made: before it stood in
//     the chain, and so before any request went through it.
//  2. No entry of a VLUN is left when that is dropped: it has no block that anybody
//     sees, so another image has each (Moved, and writes, change the entry under the
//     lock of the block). Of a volume that was rolled back nobody reads the live view,
//     and its entries may be of none; it is cut no more, so they are of nobody else.
type numbers struct {
	vluns atomic.Pointer[[]*VLUN] // by slot; replaced, never changed
	dealt lookup.Slot             // the last one; guarded by Engine.mu
}

// get returns the VLUN of an entry; nil if it has none, or is Unknown.
func (n *numbers) get(e lookup.Entry) *VLUN {
	vluns := *n.vluns.Load()
	if slot := int(e.Slot()); slot < len(vluns) {
		return vluns[slot]
	}
	return nil
}

// dealLocked gives slots to VLUNs, for which there are enough. Engine.mu is held.
func (n *numbers) dealLocked(vluns ...*VLUN) {
	list := slices.Clone(*n.vluns.Load())
	for _, k := range vluns {
		for taken := true; taken; {
			n.dealt = n.dealt%lookup.Slot(maxImages) + 1
			taken = int(n.dealt) < len(list) && list[n.dealt] != nil
		}
		k.slot = n.dealt
		list = append(list, make([]*VLUN, max(0, int(k.slot)+1-len(list)))...)
		list[k.slot] = k
	}
	n.vluns.Store(&list)
}

// freeLocked takes back the slot of a VLUN; Engine.mu is held.
func (n *numbers) freeLocked(k *VLUN) {
	list := slices.Clone(*n.vluns.Load())
	list[k.slot] = nil
	n.vluns.Store(&list)
}

// Drop takes a preserved VLUN out of its chain, whose image is in no record of the
// volume any more and whose table is empty, since nobody could see a block of it.
// Nothing is read or written through it any more. It does nothing to a VLUN that is
// live, or still drains.
func (k *VLUN) Drop() {
	v := k.volume
	v.engine.mu.Lock()
	defer v.engine.mu.Unlock()
	c := *v.chain.Load()
	if i := slices.Index(c, k); i >= 0 && i < len(c)-1 && k.isDrained() {
		shorter := slices.Concat(c[:i], c[i+1:])
		v.chain.Store(&shorter)
		v.numbers.freeLocked(k)
		k.retired = true
	}
}

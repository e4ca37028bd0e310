package volume

import (
	"fmt"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// CheckIndex compares the index, which is derived, with one rebuilt from the
// tables, which are the truth. It holds the locks of all blocks: writes wait
// for it, so it is for tests and offline checks. The error names the first
// block that differs.
func (v *Volume) CheckIndex() error {
	var held blocklock.Held
	v.locks.Lock(&held, blocklock.Range{Count: lookup.MaxBlocks}, blocklock.Shared)
	defer v.locks.Unlock(&held)
	rebuilt := lookup.Rebuild((*v.chain.Load()).layers(nil))
	for b := lookup.BlockNum(0); b < lookup.MaxBlocks; {
		have, n := v.index.Run(b, uint64(lookup.MaxBlocks-b))
		want, m := rebuilt.Run(b, n)
		if have != want && have != lookup.Unknown {
			return fmt.Errorf("volume %s: the index has block %d as %v of slot %d, the tables as %v of slot %d",
				v.name, b, have.State(), have.Slot(), want.State(), want.Slot())
		}
		b += lookup.BlockNum(min(n, m))
	}
	return nil
}

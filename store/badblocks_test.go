package store

import (
	"math/rand/v2"
	"testing"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/lookup"
)

// While there are few runs the set is exact; then it holds more, never less.
func TestASetOfBadBlocksForgetsNoneAndStaysSmall(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, space := range []uint64{100, 250, 100000} {
		var set badBlocks
		want := map[lookup.BlockNum]bool{}
		for range 2000 {
			r := catalog.Run{Block: lookup.BlockNum(rng.Uint64N(space)), Count: 1 + rng.Uint64N(3)}
			for i := range lookup.BlockNum(r.Count) {
				want[r.Block+i] = true
			}
			set.add(r)
			set.addBlock(r.Block)
			if len(set) > catalog.MostBadRuns {
				t.Fatalf("%d runs", len(set))
			}
			for i := range set {
				if i > 0 && (set[i].Block <= set[i-1].Block || set.gap(i) == 0) {
					t.Fatalf("runs %v and %v", set[i-1], set[i])
				}
			}
		}
		for b := range lookup.BlockNum(space + 5) {
			if want[b] && !set.has(b) {
				t.Fatalf("block %d of %d is forgotten", b, space)
			}
			if space <= 250 && set.has(b) != want[b] { // too few for the bound
				t.Fatalf("block %d of %d: %v", b, space, set.has(b))
			}
		}
	}
}

package historytest

import (
	"flag"
	"testing"

	"github.com/tidemark/tidemark/internal/yield"
)

// Histories says how many histories a test makes, and from which seed on.
type Histories struct {
	rounds *int
	seed   *uint64
}

// Flags defines -history.rounds, with its default, and -history.seed for a test
// binary; it is called once, before flags are parsed.
func Flags(rounds int) Histories {
	return Histories{
		flag.Int("history.rounds", rounds, "how many histories of concurrent clients are made and checked"),
		flag.Uint64("history.seed", 1, "the seed of the first; each next is one more"),
	}
}

// Number is how many histories Test makes.
func (h Histories) Number() int { return *h.rounds }

// Test makes and checks the histories, each over a Target of its own, which open
// returns with a function that closes it.
func (h Histories) Test(t *testing.T, open func(Load) (target Target, closeTarget func())) {
	t.Helper()
	for seed := *h.seed; seed < *h.seed+uint64(*h.rounds); seed++ {
		load := RandomLoad(seed)
		target, closeTarget := open(load)
		history, wrong := Run(target, load, seed)
		if err := history.Check(); err != nil || wrong != nil {
			t.Fatalf("seed %d (-history.seed %d -history.rounds 1, yield points %v), load %+v:\n%v\n%v", seed, seed, yield.Enabled, load, wrong, err)
		}
		closeTarget()
	}
}

package volume_test

import (
	"flag"
	"testing"

	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/volume/historytest"
)

var (
	historyRounds = flag.Int("history.rounds", 60, "how many histories of concurrent clients are made and checked")
	historySeed   = flag.Uint64("history.seed", 1, "the seed of the first; each next is one more")
)

// Clients of every scope write, read, trim and preserve at once; what they saw
// must be what the rules allow. See historytest.
func TestHistoryOfConcurrentClientsOfTheEngineIsOneTheRulesAllow(t *testing.T) {
	for seed := *historySeed; seed < *historySeed+uint64(*historyRounds); seed++ {
		load := historytest.RandomLoad(seed)
		target, err := historytest.NewEngine(load.VolumeNames(), load.SizeBytes())
		if err != nil {
			t.Fatal(err)
		}
		history, wrong := historytest.Run(target, load, seed)
		if err := history.Check(); err != nil || wrong != nil {
			t.Fatalf("seed %d (-history.seed %d -history.rounds 1, yield points %v), load %+v:\n%v\n%v", seed, seed, yield.Enabled, load, wrong, err)
		}
	}
	for _, p := range []yield.Point{ // a point that nobody passes proves nothing
		"enter: counted", "enter: bound checked", "write: before an entry", "write: before a part in a newer image",
		"read: index looked", "cut: published", "drain: own ended", "process: raised", "flush: end noted",
		"lock: before its wait", "unlock: before a wake", "table: before a word",
	} {
		if yield.Enabled && *historyRounds >= 20 && yield.Visits(p) == 0 {
			t.Errorf("nobody came to %q in %d histories", p, *historyRounds)
		}
	}
}

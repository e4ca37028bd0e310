package volume_test

import (
	"testing"

	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/volume/historytest"
)

var histories = historytest.Flags(60)

// Clients of every scope write, read, trim and preserve at once; what they saw
// must be what the rules allow. See historytest.
func TestHistoryOfConcurrentClientsOfTheEngineIsOneTheRulesAllow(t *testing.T) {
	histories.Test(t, func(load historytest.Load) (historytest.Target, func()) {
		target, err := historytest.NewEngine(load.VolumeNames(), load.SizeBytes())
		if err != nil {
			t.Fatal(err)
		}
		return target, func() {}
	})
	for _, p := range []yield.Point{ // a point that nobody passes proves nothing
		"enter: counted", "enter: bound checked", "write: before an entry", "write: before a part in a newer image",
		"read: index looked", "cut: published", "drain: own ended", "process: raised", "flush: end noted",
		"lock: before its wait", "unlock: before a wake", "table: before a word",
	} {
		if yield.Enabled && histories.Number() >= 20 && yield.Visits(p) == 0 {
			t.Errorf("nobody came to %q in %d histories", p, histories.Number())
		}
	}
}

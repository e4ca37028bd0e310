package cli

import "testing"

func TestTheLargerAHeapIsTheSmallerAPartOfItMayBeGarbage(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live    uint64
		percent int
	}{{0, 25}, {4 * mib, 200}, {16 * mib, 200}, {32 * mib, 100}, {64 * mib, 50}, {256 * mib, 12}, {600 * mib, 12}, {1 << 40, 12}} {
		if got := gcPercent(c.live); got != c.percent {
			t.Errorf("%d MiB live: %d %%, want %d", c.live/mib, got, c.percent)
		}
	}
}

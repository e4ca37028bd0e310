package lookup

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// someRuns makes some runs in ascending order: gaps and lengths are drawn by the caller's
// functions.
func someRuns(count int, gap, length func() uint64, state func() State) (list []run) {
	at := BlockNum(0)
	for range count {
		r := run{at + BlockNum(gap()), length(), state()}
		if r.end() > MaxBlocks {
			break
		}
		list, at = append(list, r), r.end()
	}
	return list
}

// plain is what packed is, as one would write it down first.
type plain []run

func (p plain) Run(b BlockNum, limit uint64) (s State, n uint64) {
	for _, r := range p {
		switch {
		case r.end() <= b:
		case n == 0 && r.first > b:
			return Absent, min(limit, uint64(r.first-b))
		case n == 0:
			s, n = r.state, uint64(r.end()-b)
		case n >= limit || r.first != b+BlockNum(n) || r.state != s:
			return s, min(n, limit)
		default:
			n += r.count
		}
	}
	if n == 0 {
		return Absent, limit
	}
	return s, min(n, limit)
}

func TestPackedRunsSayWhatTheyWereMadeOf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	upTo := func(n uint64) func() uint64 { return func() uint64 { return 1 + rng.Uint64N(n) } }
	one := func() uint64 { return 1 }
	none := func() uint64 { return 0 }
	rarely := func(seldom, often func() uint64) func() uint64 {
		return func() uint64 {
			if rng.IntN(100) == 0 {
				return seldom()
			}
			return often()
		}
	}
	data := func() State { return Data }
	zero := func() State { return Zero }
	both := func() State { return Data + State(rng.IntN(2)) }
	for name, c := range map[string]struct {
		gap, length func() uint64
		state       func() State
	}{
		"lone blocks at random":         {upTo(2000), one, data},
		"every other block":             {one, one, data},
		"zeros at random":               {upTo(300), upTo(5), zero},
		"both, side by side":            {none, upTo(3), both},
		"both, at random":               {upTo(50), upTo(50), both},
		"one far away, now and then":    {rarely(upTo(1<<30), upTo(10)), one, data},
		"one very long, now and then":   {upTo(10), rarely(upTo(1<<29), one), data},
		"all far away":                  {upTo(1 << 29), upTo(1 << 27), both},
		"from block 0, without a gap":   {none, upTo(100), data},
		"longer than a run can be, all": {upTo(3), func() uint64 { return packedMaxCount*2 + 1 }, data},
	} {
		t.Run(name, func(t *testing.T) {
			for _, count := range []int{0, 1, 2, chunkRuns - 1, chunkRuns, chunkRuns + 1, 3*chunkRuns + 7} {
				list := someRuns(count, c.gap, c.length, c.state)
				var m packer
				for _, r := range list {
					m.add(r.first, r.count, r.state)
				}
				mustSay(t, rng, m.done(), list)
			}
		})
	}
}

func mustSay(t *testing.T, rng *rand.Rand, p *packed, want plain) {
	t.Helper()
	places := []BlockNum{0, MaxBlocks - 1}
	for i, r := range want {
		if len(want) > chunkRuns && rng.IntN(8) > 0 && i%chunkRuns > 1 { // the model is slow
			continue
		}
		places = append(places, r.first, r.end()-1, r.first+BlockNum(rng.Uint64N(r.count)))
		if r.first > 0 {
			places = append(places, r.first-1)
		}
		if r.end() < MaxBlocks {
			places = append(places, r.end())
		}
	}
	ascending := Ascending(p)
	for _, b := range places {
		limit := 1 + rng.Uint64N(uint64(MaxBlocks-b))
		s, n := p.Run(b, limit)
		ws, wn := want.Run(b, limit)
		if as, an := ascending.Run(b, limit); as != ws || an != wn {
			t.Fatalf("of %d runs, in order: Run(%d, %d) = %v, %d, want %v, %d", len(want), b, limit, as, an, ws, wn)
		}
		if s != ws || n != wn {
			t.Fatalf("of %d runs: Run(%d, %d) = %v, %d, want %v, %d", len(want), b, limit, s, n, ws, wn)
		}
	}
	for range 20 {
		b := places[rng.IntN(len(places))]
		limit := uint64(MaxBlocks - b)
		if rng.IntN(2) == 0 {
			limit = 1 + rng.Uint64N(limit)
		}
		var list []Extent
		for at := b; at < b+BlockNum(limit); {
			s, n := want.Run(at, uint64(b-at)+limit)
			if s != Absent {
				list = append(list, Extent{at, n, s})
			}
			at += BlockNum(n)
		}
		if got := slices.Collect(p.extents(b, limit)); !slices.Equal(got, list) {
			t.Fatalf("of %d runs: extents(%d, %d) = %v, want %v", len(want), b, limit, got, list)
		}
	}
}

// scattered is a table of one block in a thousand of 1 TiB, each at random: what a
// snapshot holds of a volume written everywhere if there are a thousand.
func scattered() *Table {
	rng, t := rand.New(rand.NewPCG(3, 4)), NewTable()
	for range 1 << 28 / 1000 {
		t.Set(BlockNum(rng.Uint64N(1<<28)), 1, Data)
	}
	return t
}

func TestABlockAtRandomTakesThirteenBitsPacked(t *testing.T) {
	table := scattered()
	table.Pack()
	data, _ := table.Counts()
	if bits := float64(table.MemoryBytes()) * 8 / float64(data); bits > 13 {
		t.Errorf("%v: %.1f bits a block", table, bits)
	}
}

func BenchmarkPacked(b *testing.B) {
	table := scattered()
	b.Run("Pack", func(b *testing.B) {
		for b.Loop() {
			table.pack()
		}
	})
	table.Pack()
	b.Run("Get", func(b *testing.B) {
		for n := BlockNum(0); b.Loop(); n += 1<<20 + 77 {
			table.Get(n % (1 << 28))
		}
	})
	b.Run("Run of every block that it has, and one beside it", func(b *testing.B) {
		asked := Ascending(table)
		for b.Loop() {
			for x := range table.Extents(0, MaxBlocks) {
				asked.Run(x.Block, 1)
				asked.Run(x.Block+1, 1)
			}
		}
	})
	b.Run("a leaf", func(b *testing.B) {
		for n := BlockNum(0); b.Loop(); n += 77 * LeafBlocks {
			for range table.Extents(n%(1<<28), LeafBlocks) {
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			for range table.Extents(0, MaxBlocks) {
			}
		}
	})
	b.Log(fmt.Sprint(table))
}

package lookup

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// anyRange draws ranges that start and end at, near and away from the borders of
// words, leaves and mids, in a few far places of a large volume.
func anyRange(t *rapid.T) (BlockNum, uint64) {
	place := rapid.SampledFrom([]BlockNum{0, LeafBlocks, 3 * LeafBlocks, midBlocks, 5 * midBlocks, MaxBlocks - LeafBlocks}).Draw(t, "place")
	off := rapid.OneOf(rapid.SampledFrom([]int{0, 1, 31, 32, LeafBlocks - 1}), rapid.IntRange(0, LeafBlocks-1)).Draw(t, "off")
	n := rapid.OneOf(rapid.SampledFrom([]uint64{1, 31, 32, 33, LeafBlocks, 2*LeafBlocks + 5}), rapid.Uint64Range(1, 200)).Draw(t, "n")
	b := place - min(place, LeafBlocks)*BlockNum(rapid.IntRange(0, 1).Draw(t, "before")) + BlockNum(off)
	return b, min(n, uint64(MaxBlocks-b))
}

// modelRun is Run over a plain map.
func modelRun[V comparable](m map[BlockNum]V, b BlockNum, limit uint64) (V, uint64) {
	n := uint64(1)
	for n < limit && m[b+BlockNum(n)] == m[b] {
		n++
	}
	return m[b], n
}

func TestATableAnswersLikeAPlainMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, model := NewTable(), map[BlockNum]State{}
		var want [3]uint64 // blocks in each state
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				if n := len(slices.Collect(table.Dense())); int64(n) != table.DenseLeaves() {
					t.Fatalf("%d dense leaves, and it counts %d", n, table.DenseLeaves())
				}
				if data, zero := table.Counts(); data != want[Data] || zero != want[Zero] {
					t.Fatalf("Counts = %d, %d, want %d, %d", data, zero, want[Data], want[Zero])
				}
			},
			"set": func(t *rapid.T) {
				b, n := anyRange(t)
				s := rapid.SampledFrom([]State{Absent, Data, Zero}).Draw(t, "state")
				table.Set(b, n, s)
				for i := range BlockNum(n) {
					want[model[b+i]]--
					want[s]++
					if model[b+i] = s; s == Absent {
						delete(model, b+i)
					}
				}
			},
			"run": func(t *rapid.T) {
				b, n := anyRange(t)
				s, run := table.Run(b, n)
				if ws, wrun := modelRun(model, b, n); s != ws || run != wrun || table.Get(b) != ws {
					t.Fatalf("Run(%d, %d) = %v, %d, want %v, %d", b, n, s, run, ws, wrun)
				}
			},
			"clone": func(*rapid.T) { table = table.Clone() },
			"fold": func(t *rapid.T) {
				b, _ := anyRange(t)
				table.Fold(b / LeafBlocks * LeafBlocks)
			},
			"code": func(t *rapid.T) { table = mustDecode(t, mustEncode(t, table)) },
			"pack": func(t *rapid.T) {
				if packed, err := DecodePacked(bytes.NewReader(mustEncode(t, table))); err != nil || !slices.Equal(slices.Collect(packed.Extents(0, MaxBlocks)), slices.Collect(table.Extents(0, MaxBlocks))) {
					t.Fatalf("%v decodes to %v, %v", table, packed, err)
				}
				b, n := anyRange(t)
				was := table.Clone()
				want := slices.Collect(table.Extents(b, n))
				table.Pack()
				if got := slices.Collect(table.Extents(b, n)); !slices.Equal(got, want) {
					t.Fatalf("Extents(%d, %d) of the packed table = %v, want %v", b, n, got, want)
				}
				if s, run := table.Run(b, n); s != table.Get(b) {
					t.Fatalf("Run = %v, %d", s, run)
				} else if ws, wrun := was.Run(b, n); s != ws || run != wrun {
					t.Fatalf("Run(%d, %d) of the packed table = %v, %d, want %v, %d", b, n, s, run, ws, wrun)
				}
				if !bytes.Equal(mustEncode(t, table), mustEncode(t, was)) {
					t.Fatal("a packed table encodes in another way")
				}
				other := NewTable()
				other.Replace(table)
				table = other.Clone()
			},
			"extents": func(t *rapid.T) {
				got := map[BlockNum]State{}
				last := Extent{}
				for e := range table.Extents(0, MaxBlocks) {
					if e.Block == last.Block+BlockNum(last.Count) && e.State == last.State || e.State == Absent {
						t.Fatalf("%v follows %v: not a maximal run", e, last)
					}
					for i := range BlockNum(e.Count) {
						got[e.Block+i] = e.State
					}
					last = e
				}
				if !maps.Equal(got, model) {
					t.Fatal("Extents differ from the model")
				}
			},
		})
	})
}

func TestAnIndexAnswersLikeAPlainMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, model := NewIndex(), map[BlockNum]Entry{}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				b, n := anyRange(t)
				e := rapid.SampledFrom([]Entry{0, MakeEntry(1, Data), MakeEntry(1, Zero), MakeEntry(MaxSlot, Zero)}).Draw(t, "entry")
				x.Set(b, n, e)
				for i := range BlockNum(n) {
					model[b+i] = e
				}
			},
			"fold": func(t *rapid.T) {
				b, _ := anyRange(t)
				x.Fold(b / LeafBlocks * LeafBlocks)
				if n := int64(len(slices.Collect(x.Dense()))); n != x.DenseLeaves() {
					t.Fatalf("DenseLeaves = %d, and there are %d", x.DenseLeaves(), n)
				}
			},
			"run": func(t *rapid.T) {
				b, n := anyRange(t)
				e, run := x.Run(b, n)
				if we, wrun := modelRun(model, b, n); e != we || run != wrun || x.Get(b) != we {
					t.Fatalf("Run(%d, %d) = %v, %d, want %v, %d", b, n, e, run, we, wrun)
				}
			},
		})
	})
}

func TestARebuiltIndexHoldsTheNewestTableOfEachBlock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tables := make([]*Table, rapid.IntRange(0, 5).Draw(t, "images"))
		model := map[BlockNum]Entry{}
		for i := range tables {
			if rapid.IntRange(0, 4).Draw(t, "gap") == 0 {
				continue
			}
			tables[i] = NewTable()
			for range rapid.IntRange(0, 4).Draw(t, "sets") {
				b, n := anyRange(t)
				s := rapid.SampledFrom([]State{Data, Zero}).Draw(t, "state")
				tables[i].Set(b, n, s)
				for k := range BlockNum(n) {
					model[b+k] = MakeEntry(Slot(i+1), s)
				}
			}
		}
		var layers []Layer
		for i, table := range tables {
			if table != nil {
				layers = append(layers, Layer{Slot(i + 1), table})
			}
		}
		x := Rebuild(layers)
		if rapid.Bool().Draw(t, "learnt") {
			x = NewBlankIndex()
			if e, n := x.Run(5, 1<<30); e != Unknown || n != 1<<30 {
				t.Fatalf("a blank index: %v, %d", e, n)
			}
			before, seen := rapid.Uint64().Draw(t, "before"), 0
			for b := range model {
				if uint64(b)*before>>63 == 1 {
					leaf, want := b/LeafBlocks*LeafBlocks, model[b]
					if x.Get(leaf) == Unknown {
						want = Unknown
					}
					x.Set(b, 1, model[b])
					if e := x.Get(b); e != want {
						t.Fatalf("block %d: %v, want %v", b, e, want)
					}
				}
				if seen++; seen%4096 == 0 {
					x.Forget(b / LeafBlocks * LeafBlocks)
				}
				x.Learn(b/LeafBlocks*LeafBlocks, layers)
			}
		}
		for b, want := range model {
			if x.Get(b) != want {
				t.Fatalf("block %d: slot %d %v, want slot %d %v", b, x.Get(b).Slot(), x.Get(b).State(), want.Slot(), want.State())
			}
		}
		held := uint64(0)
		for b := BlockNum(0); b < MaxBlocks; {
			e, n := x.Run(b, uint64(MaxBlocks-b))
			if e != 0 && e != Unknown {
				held += n
			}
			b += BlockNum(n)
		}
		if held != uint64(len(model)) {
			t.Fatalf("the index holds %d blocks, want %d", held, len(model))
		}
	})
}

func TestAnEntryGivesBackItsSlotAndState(t *testing.T) {
	for slot := range MaxSlot + 1 {
		for _, s := range []State{Absent, Data, Zero} {
			want, wantState := slot, s
			if slot == 0 || s == Absent {
				want, wantState = 0, Absent
			}
			if e := MakeEntry(slot, s); e.Slot() != want || e.State() != wantState {
				t.Fatalf("MakeEntry(%d, %v) gives slot %d, %v", slot, s, e.Slot(), e.State())
			}
		}
	}
}

// Each writer owns every fourth block, so that all write in every word (every
// other round in one word only) and race to make each leaf dense. Between
// rounds, with all locks free, one writer sets whole leaves. The race detector
// watches the plain entries of the Index.
func TestNeighboursInOneLeafLoseNoChange(t *testing.T) {
	const writers, leaves = 4, 3
	table, x := NewTable(), NewIndex()
	model := make([]State, leaves*LeafBlocks)
	for round := range 12 {
		first := BlockNum(round%3) * midBlocks // also a mid that nobody has made
		whole := State(round / 3 % 3)
		table.Set(first, leaves*LeafBlocks, whole)
		x.Set(first, leaves*LeafBlocks, MakeEntry(7, whole))
		for i := range model {
			model[i] = whole
		}
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(w)))
				for range 5000 {
					span := len(model)
					if round%2 == 1 {
						span = wordBlocks // all in one word
					}
					i := rng.IntN(span/writers)*writers + w
					s := State(rng.IntN(3))
					b := first + BlockNum(i)
					if table.Get(b) != model[i] || x.Get(b).State() != model[i] {
						t.Errorf("block %d: table %v, index %v, want %v", b, table.Get(b), x.Get(b).State(), model[i])
						return
					}
					table.Set(b, 1, s)
					x.Set(b, 1, MakeEntry(7, s))
					model[i] = s
				}
			})
		}
		wg.Go(func() { // those that need no lock
			table.Counts()
			table.MemoryBytes()
			x.MemoryBytes()
			mustDecode(t, mustEncode(t, table.Clone()))
			mustDecode(t, mustEncode(t, table))
		})
		wg.Wait()
		for i, want := range model {
			if b := first + BlockNum(i); table.Get(b) != want || x.Get(b).State() != want {
				t.Fatalf("round %d, block %d: table %v, index %v, want %v", round, b, table.Get(b), x.Get(b).State(), want)
			}
		}
		var want [3]uint64
		for e := range table.Extents(0, MaxBlocks) {
			want[e.State] += e.Count
		}
		if data, zero := table.Counts(); data != want[Data] || zero != want[Zero] {
			t.Fatalf("round %d: Counts = %d, %d, want %d, %d", round, data, zero, want[Data], want[Zero])
		}
	}
}

func TestAVolumeSetInLargePiecesTakesLittleMemory(t *testing.T) {
	const volume, piece = 1 << 29, 1 << 20 // 2 TiB by 4 GiB
	table, x := NewTable(), NewIndex()
	for _, s := range []State{Zero, Data} {
		for b := BlockNum(0); b < volume; b += piece {
			table.Set(b, piece, s)
			x.Set(b, piece, MakeEntry(1, s))
		}
	}
	if s, n := table.Run(0, MaxBlocks); s != Data || n != volume {
		t.Errorf("Run = %v, %d", s, n)
	}
	if e, n := x.Run(0, MaxBlocks); e != MakeEntry(1, Data) || n != volume {
		t.Errorf("Run = %v, %d", e, n)
	}
	if got := table.MemoryBytes(); got > 512<<10 {
		t.Errorf("the table takes %d bytes", got)
	}
	if got := x.MemoryBytes(); got > 1<<20+64<<10 {
		t.Errorf("the index takes %d bytes", got)
	}
	table.Set(0, volume, Absent)
	if data, zero := table.Counts(); data != 0 || zero != 0 {
		t.Errorf("Counts = %d, %d after all is absent", data, zero)
	}
}

func TestACloneFoldsLeavesThatBecameUniform(t *testing.T) {
	table := NewTable()
	for b := range BlockNum(LeafBlocks) {
		table.Set(b, 1, Data)
	}
	clone := table.Clone()
	if saved := table.MemoryBytes() - clone.MemoryBytes(); saved != leafBytes {
		t.Errorf("the clone saves %d bytes, want %d", saved, leafBytes)
	}
	clone.Set(5, 1, Zero)
	if table.Get(5) != Data || clone.Get(5) != Zero || NewTable().Get(5) != Absent {
		t.Error("a change to the clone shows elsewhere")
	}
	if got := slices.Collect(clone.Extents(4, 3)); !slices.Equal(got, []Extent{{4, 1, Data}, {5, 1, Zero}, {6, 1, Data}}) {
		t.Errorf("Extents = %v", got)
	}
}

func TestARangePastTheLargestVolumePanics(t *testing.T) {
	for _, r := range []struct {
		b BlockNum
		n uint64
	}{{MaxBlocks, 1}, {MaxBlocks - 1, 2}, {1 << 63, 1}, {0, 1 << 63}, {1, 1<<64 - 1}} {
		for name, set := range map[string]func(){
			"table": func() { NewTable().Set(r.b, r.n, Data) },
			"index": func() { NewIndex().Set(r.b, r.n, 2) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s took blocks %d+%d", name, r.b, r.n)
					}
				}()
				set()
			}()
		}
	}
}

func TestGetAndSetDoNotAllocate(t *testing.T) {
	table, x := NewTable(), NewIndex()
	table.Set(0, 1, Data)
	x.Set(0, 1, 2)
	s := Data
	if n := testing.AllocsPerRun(100, func() {
		s ^= Data ^ Zero
		table.Set(3, 40, s)
		x.Set(3, 40, MakeEntry(9, s))
		if st, _ := table.Run(0, 100); st != table.Get(0) || x.Get(3).State() != s {
			t.Error("wrong state")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTable(b *testing.B) {
	sparse := NewTable() // every other word of each leaf differs
	for n := BlockNum(0); n < 1<<20; n += 64 {
		sparse.Set(n, 32, Data)
	}
	full := sparse.Clone()
	full.Set(0, 1<<20, Data)
	b.Run("Get", func(b *testing.B) {
		for n := BlockNum(0); b.Loop(); n += 4099 {
			sparse.Get(n % (1 << 20))
		}
	})
	b.Run("Set one again", func(b *testing.B) {
		for n := BlockNum(0); b.Loop(); n += 4099 {
			full.Set(n%(1<<20), 1, Data)
		}
	})
	b.Run("Set one anew", func(b *testing.B) {
		s := Data
		for n := BlockNum(0); b.Loop(); n += 4099 {
			if sparse.Set(n%(1<<20), 1, s); n%(1<<20) == 0 {
				s ^= Data
			}
		}
	})
	b.Run("Run 32 MiB dense", func(b *testing.B) {
		dense := NewTable()
		dense.Set(1, 3*LeafBlocks, Data)
		for b.Loop() {
			dense.Run(LeafBlocks/2, 8192)
		}
	})
	b.Run("Run 4 GiB uniform", func(b *testing.B) {
		for b.Loop() {
			full.Run(0, 1<<20)
		}
	})
	b.Run("Set 4 GiB", func(b *testing.B) {
		s := Data
		for b.Loop() {
			full.Set(0, 1<<20, s)
			s ^= Data ^ Zero
		}
	})
}

func BenchmarkIndex(b *testing.B) {
	x := NewIndex()
	x.Set(1, 1<<20-2, MakeEntry(3, Data))
	x.Set(1<<19, 1, 0)
	b.Run("Get", func(b *testing.B) {
		for n := BlockNum(0); b.Loop(); n += 4099 {
			x.Get(n % (1 << 20))
		}
	})
	b.Run("Set one", func(b *testing.B) {
		for n := BlockNum(0); b.Loop(); n += 4099 {
			x.Set(n%LeafBlocks, 1, 6)
		}
	})
	b.Run("Run 128 KiB dense", func(b *testing.B) {
		for b.Loop() {
			x.Run(64, 32)
		}
	})
	b.Run("Run 32 MiB dense", func(b *testing.B) {
		for b.Loop() {
			x.Run(64, 8192)
		}
	})
}

func TestAReaderOfATableThatIsPackedMeanwhileSeesWhatItHolds(t *testing.T) {
	for range 200 {
		table := NewTable()
		for b := range BlockNum(40) {
			table.Set(b*LeafBlocks/2+7, 3, Data)
		}
		var readers sync.WaitGroup
		for range 2 {
			readers.Go(func() {
				for b := range BlockNum(40) {
					if s, n := table.Run(b*LeafBlocks/2+7, 9); s != Data || n != 3 {
						t.Errorf("Run = %v, %d, want data, 3", s, n)
					}
					if table.Get(b*LeafBlocks/2+7) != Data {
						t.Error("Get: not data")
					}
				}
			})
		}
		table.Pack()
		readers.Wait()
	}
}

func TestAThousandScatteredBlocksTakeThreeKilobytesPacked(t *testing.T) {
	table := NewTable()
	for b := range BlockNum(1000) {
		table.Set(b*LeafBlocks, 1, Data)
	}
	table.Pack()
	if n := table.MemoryBytes(); n > 3_000 {
		t.Errorf("%v: want at most 3,000 bytes", table)
	}
	table.Replace(NewTable())
	if data, zero := table.Counts(); data+zero > 0 || table.MemoryBytes() > 500 {
		t.Errorf("%v: want nothing", table)
	}
}

func TestZerosInHalvesOfLeavesCostNothingOnceFolded(t *testing.T) {
	x, table := NewIndex(), NewTable()
	for b := BlockNum(0); b < 100*LeafBlocks; b += LeafBlocks / 2 {
		x.Set(b, LeafBlocks/2, MakeEntry(1, Zero))
		table.Set(b, LeafBlocks/2, Zero)
	}
	if x.DenseLeaves() != 100 {
		t.Errorf("%d dense leaves, want 100", x.DenseLeaves())
	}
	for b := range x.Dense() {
		x.Fold(b)
		table.Fold(b)
	}
	if x.DenseLeaves() != 0 || x.MemoryBytes()+table.MemoryBytes() > 64<<10 {
		t.Errorf("%d dense leaves, %d and %d bytes", x.DenseLeaves(), x.MemoryBytes(), table.MemoryBytes())
	}
	if e, n := x.Run(0, 200*LeafBlocks); e != MakeEntry(1, Zero) || n != 100*LeafBlocks {
		t.Errorf("Run = %v, %d", e, n)
	}
}

// says writes down what of the first so many blocks a table has.
func says(t Runs, blocks uint64) (text string) {
	for b := uint64(0); b < blocks; {
		s, n := t.Run(BlockNum(b), blocks-b)
		text, b = text+fmt.Sprint(b, s, n, " "), b+n
	}
	return text
}

func TestWhatIsFrozenStaysAsTheTableIsPackedAndReplaced(t *testing.T) {
	const blocks = 3 * LeafBlocks
	scattered, dense := NewTable(), NewTable()
	scattered.Set(LeafBlocks, 5, Data)
	for b := BlockNum(0); b < blocks; b += 3 {
		dense.Set(b, 1, Zero)
	}
	table, want := NewTable(), []string{}
	table.Set(7, 3, Data)
	var frozen []Runs
	for _, change := range []func(){
		func() {},
		table.Pack,
		func() { table.Replace(dense) },
		func() { table.Replace(scattered) },
		func() { table.Replace(NewTable()) },
	} {
		change()
		want, frozen = append(want, says(table, blocks)), append(frozen, table.Frozen())
	}
	for i, f := range frozen {
		if got := says(f, blocks); got != want[i] {
			t.Errorf("what was frozen after %d changes says %.99s, and then %.99s", i, want[i], got)
		}
	}
}

func TestATableThatIsPackedMeanwhileIsFrozenWhole(t *testing.T) {
	for range 100 {
		table := NewTable()
		for b := range BlockNum(6) {
			table.Set(b*LeafBlocks/2+7, 3, Data)
		}
		want := says(table, 3*LeafBlocks)
		var readers sync.WaitGroup
		for range 2 {
			readers.Go(func() {
				for range 10 {
					if got := says(table.Frozen(), 3*LeafBlocks); got != want {
						t.Errorf("frozen: %s", got)
					}
				}
			})
		}
		table.Pack()
		readers.Wait()
	}
}

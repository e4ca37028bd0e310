package blocklock

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/tidemark/tidemark/lookup"
)

const (
	region = 1 << regionBits
	wide   = 1 << 32 // 16 TiB: every shard
)

// request is one caller in a script: what it asks for and when it got it.
type request struct {
	Held
	Range
	Mode
	got bool
}

func ask(first lookup.BlockNum, count uint64, m Mode) *request {
	return &request{Range: Range{first, count}, Mode: m}
}

func TestARequestWaitsForEarlierConflictsOnly(t *testing.T) {
	for name, c := range map[string]struct {
		asked []*request // in this order, all held until the check
		want  []bool     // who has got its range
	}{
		"shared ranges overlap": {
			[]*request{ask(0, 9, Shared), ask(3, 9, Shared), ask(0, wide, Shared)}, []bool{true, true, true}},
		"an exclusive range waits for a shared one": {
			[]*request{ask(0, 9, Shared), ask(8, 1, Exclusive)}, []bool{true, false}},
		"neighbouring blocks don't wait": {
			[]*request{ask(5, 1, Exclusive), ask(6, 1, Exclusive), ask(0, 5, Exclusive), ask(7, wide, Exclusive)}, []bool{true, true, true, true}},
		"a blocked block holds up no other": {
			[]*request{ask(5, 1, Exclusive), ask(5, 1, Exclusive), ask(4, 1, Exclusive), ask(6, 1, Shared)}, []bool{true, false, true, true}},
		"shared does not overtake a waiting exclusive": {
			[]*request{ask(0, 1, Shared), ask(0, 1, Exclusive), ask(0, 1, Shared)}, []bool{true, false, false}},
		"nor in the second region of a range that waits in the first": {
			[]*request{ask(0, 1, Shared), ask(0, 2*region, Exclusive), ask(2*region-1, 1, Shared)}, []bool{true, false, false}},
		"nor where it is wide": {
			[]*request{ask(9*region, 1, Shared), ask(0, wide, Exclusive), ask(wide-1, 1, Shared), ask(wide, 1, Shared)}, []bool{true, false, false, true}},
		"two in the same shard far apart don't wait": {
			[]*request{ask(0, 1, Exclusive), ask(region*shardCount*shardCount, 1, Exclusive)}, []bool{true, true}},
		"an empty range waits for nobody": {
			[]*request{ask(0, wide, Exclusive), ask(7, 0, Exclusive)}, []bool{true, true}},
		"a range to the end of all numbers": {
			[]*request{ask(1, math.MaxUint64, Exclusive), ask(math.MaxUint64, 1, Shared), ask(0, 1, Exclusive)}, []bool{true, false, true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := New()
				release := make(chan struct{})
				waiting := 0
				for _, r := range c.asked {
					go func() {
						table.Lock(&r.Held, r.Range, r.Mode)
						r.got = true
						<-release
						table.Unlock(&r.Held)
					}()
					synctest.Wait()
				}
				for i, r := range c.asked {
					if r.got != c.want[i] {
						t.Errorf("request %d got its range: %v, want %v", i, r.got, c.want[i])
					}
					if !c.want[i] {
						waiting++
					}
				}
				if table.Waiting() != waiting {
					t.Errorf("Waiting = %d, want %d", table.Waiting(), waiting)
				}
				close(release)
				synctest.Wait()
				for i, r := range c.asked {
					if !r.got {
						t.Errorf("request %d never got its range", i)
					}
				}
				mustBeEmpty(t, table)
			})
		})
	}
}

func mustBeEmpty(t *testing.T, table *Table) {
	t.Helper()
	if table.Waiting() != 0 {
		t.Errorf("Waiting = %d at the end", table.Waiting())
	}
	for i := range table.shards {
		if table.shards[i].head != nil || table.shards[i].tail != nil {
			t.Errorf("shard %d is not empty at the end", i)
		}
	}
}

func TestExclusiveRequestsForABlockAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New()
		var first Held
		table.Lock(&first, Range{3, 1}, Exclusive)
		var order []int // guarded by the lock of block 3
		for i := range 20 {
			count := []uint64{1, region, wide}[i%3]
			go func() {
				var h Held
				table.Lock(&h, Range{3, count}, Exclusive)
				order = append(order, i)
				table.Unlock(&h)
			}()
			synctest.Wait()
		}
		table.Unlock(&first)
		synctest.Wait()
		if len(order) != 20 || !slices.IsSorted(order) {
			t.Errorf("served in the order %v", order)
		}
	})
}

func TestTryLockTakesWhatLockWouldNotWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New()
		var reader, writer, h Held
		table.Lock(&reader, Range{10, 10}, Shared)
		go func() {
			table.Lock(&writer, Range{15, 3 * region}, Exclusive)
		}()
		synctest.Wait()
		for name, c := range map[string]struct {
			r    Range
			m    Mode
			want bool
		}{
			"shared with the reader":           {Range{10, 5}, Shared, true},
			"exclusive against the reader":     {Range{10, 1}, Exclusive, false},
			"shared against the waiting":       {Range{15, 1}, Shared, false},
			"far end of the waiting":           {Range{14 + 3*region, 1}, Shared, false},
			"past the end of the waiting":      {Range{15 + 3*region, 1}, Exclusive, true},
			"wide against the waiting":         {Range{20, wide}, Exclusive, false},
			"wide past the end of the waiting": {Range{15 + 3*region, wide}, Exclusive, true},
			"before the reader":                {Range{0, 10}, Exclusive, true},
		} {
			for range 2 { // a failure leaves no trace, nor does a success once unlocked
				if got := table.TryLock(&h, c.r, c.m); got != c.want {
					t.Errorf("%s: %v, want %v", name, got, c.want)
				} else if got {
					table.Unlock(&h)
				}
			}
		}
		table.Unlock(&reader)
		synctest.Wait()
		table.Unlock(&writer)
		mustBeEmpty(t, table)
	})
}

// Plain counters, one a block, are the model: writers change theirs, readers
// read them, and the race detector finds two that hold a block at once. The
// blocks lie on both sides of borders between regions, and ranges of every kind
// of width cross each other; a cycle would hang the test.
func TestRandomLoadExcludesAndEnds(t *testing.T) {
	const workers, turns = 8, 1500
	var blocks []lookup.BlockNum
	for r := lookup.BlockNum(0); r < 200; r += 5 {
		blocks = append(blocks, r*region, r*region+1, (r+1)*region-1)
	}
	counters := make([]int, len(blocks))
	added := make([]int, workers)
	table := New()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			var h Held
			for range turns {
				from := rng.IntN(len(blocks))
				to := min(len(blocks)-1, from+[]int{0, 0, 1, 3, 12, len(blocks)}[rng.IntN(6)])
				r := Range{blocks[from], uint64(blocks[to]-blocks[from]) + 1}
				m := Mode(rng.IntN(2))
				if rng.IntN(4) > 0 {
					table.Lock(&h, r, m)
				} else if !table.TryLock(&h, r, m) {
					continue
				}
				for i := from; i <= to; i++ {
					if m == Exclusive {
						counters[i]++
						added[w]++
					} else if counters[i] < 0 {
						t.Error("a counter is negative")
					}
				}
				table.Unlock(&h)
			}
		})
	}
	wg.Wait()
	sum, want := 0, 0
	for _, n := range counters {
		sum += n
	}
	for _, n := range added {
		want += n
	}
	if sum != want {
		t.Errorf("the counters add up to %d, want %d", sum, want)
	}
	mustBeEmpty(t, table)
}

func TestEveryBlockOfARangeHasItsShard(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 3))
	for range 2000 {
		from := lookup.BlockNum(rng.Uint64N(1 << 23))
		n := rng.Uint64N(200)
		set := shardsOf(from*region+region-1, (from+lookup.BlockNum(n))*region)
		want := uint64(0)
		for r := from; r <= from+lookup.BlockNum(n); r++ {
			want |= shardsOf(r*region, r*region)
		}
		if set&want != want || n < shardCount && set != want {
			t.Fatalf("regions %d+%d: shards %x, want %x", from, n, set, want)
		}
	}
}

func TestAHeldServesOneLockAtATime(t *testing.T) {
	table := New()
	var h Held
	mustPanic := func(what string, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%s did not panic", what)
			}
		}()
		f()
	}
	mustPanic("Unlock of nothing", func() { table.Unlock(&h) })
	table.Lock(&h, Range{1, 1}, Shared)
	mustPanic("a second Lock", func() { table.Lock(&h, Range{2, 1}, Shared) })
	mustPanic("a second TryLock", func() { table.TryLock(&h, Range{2, 1}, Shared) })
	table.Unlock(&h)
	mustPanic("a second Unlock", func() { table.Unlock(&h) })
	mustBeEmpty(t, table)
}

func TestLockingDoesNotAllocate(t *testing.T) {
	table := New()
	h, other := new(Held), new(Held)
	turn, done := make(chan struct{}), make(chan struct{})
	go func() { // is always the second at block 0
		for range turn {
			table.Lock(other, Range{0, 1}, Exclusive)
			table.Unlock(other)
			done <- struct{}{}
		}
	}()
	defer close(turn)
	contend := func() {
		table.Lock(h, Range{0, 1}, Exclusive)
		turn <- struct{}{}
		for table.Waiting() == 0 { // until it has its place behind us
			runtime.Gosched()
		}
		table.Unlock(h)
		<-done
	}
	contend()
	for name, f := range map[string]func(){
		"a block": func() { table.Lock(h, Range{7, 1}, Shared); table.Unlock(h) },
		"over a border": func() {
			table.Lock(h, Range{region - 1, 2}, Exclusive)
			table.Unlock(h)
		},
		"wide, again": func() { table.Lock(h, Range{0, wide}, Exclusive); table.Unlock(h) },
		"contended":   contend,
	} {
		f()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkLock(b *testing.B) {
	for name, r := range map[string]Range{
		"a block": {7, 1}, "over a border": {region - 1, 2}, "4 GiB": {0, 1 << 20},
	} {
		b.Run(name, func(b *testing.B) {
			table, h := New(), new(Held)
			for b.Loop() {
				table.Lock(h, r, Exclusive)
				table.Unlock(h)
			}
		})
	}
	for _, holders := range []int{8, 32, 128} {
		b.Run(fmt.Sprintf("beside %d in its region", holders), func(b *testing.B) {
			table, h := New(), new(Held)
			for i := range holders {
				table.Lock(new(Held), Range{lookup.BlockNum(i), 1}, Exclusive)
			}
			for b.Loop() {
				table.Lock(h, Range{region - 1, 1}, Exclusive)
				table.Unlock(h)
			}
		})
	}
	for name, stride := range map[string]lookup.BlockNum{
		"goroutines in regions of their own": region, "goroutines in one region": 1, "goroutines at one block": 0,
	} {
		b.Run(name, func(b *testing.B) {
			table := New()
			var mu sync.Mutex
			n := lookup.BlockNum(0)
			b.RunParallel(func(pb *testing.PB) {
				mu.Lock()
				block := n * stride
				n++
				mu.Unlock()
				h := new(Held)
				for pb.Next() {
					table.Lock(h, Range{block, 1}, Exclusive)
					table.Unlock(h)
				}
			})
		})
	}
}

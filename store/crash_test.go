package store_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
	"github.com/tidemark/tidemark/volume/volumetest"
)

var (
	crashRounds = flag.Int("crash.rounds", 0, "crashes at each operation of the fixed workload, and 16 as many of each random one; 0: one at each fourth operation (third of a fold), and 16")
	crashSeeds  = flag.Uint64("crash.seeds", 2, "random workloads that are crashed")
	crashFirst  = flag.Uint64("crash.first", 1, "seed of the first random workload")
)

// failedSeeds are random workloads that found something once. They always run.
var failedSeeds = []uint64{}

const (
	// crashShards is how many parts of the work run beside each other.
	crashShards = 2
	// crashDepth is how many crashes follow one another: the second falls in the
	// recovery from the first or in what is done after it, and so on.
	crashDepth = 3
)

// A workload crashes at every operation on the disk that it makes: the power is
// cut, and the disk keeps some of what was not synced, all or nothing; or the
// process is killed. The store is opened on what is left, and held to I4 and I6
// and to every command that was acknowledged before; it goes on, and may crash
// again.
func TestACrashAtAnyOperationLosesNothingThatWasFlushedSealedOrAcknowledged(t *testing.T) {
	for shard := range crashShards {
		t.Run(fmt.Sprint("operations from ", shard), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := begin(t)
				defer l.Close()
				everything(l)
				crashEverywhere(l, shard)
			})
		})
	}
}

// Random workloads crash at some of their operations. One that fails is run again
// by -crash.first SEED -crash.seeds 1, and its seed belongs in failedSeeds.
func TestACrashOfARandomWorkloadLosesNothingThatWasFlushedSealedOrAcknowledged(t *testing.T) {
	seeds := failedSeeds
	for i := range *crashSeeds {
		seeds = append(seeds, *crashFirst+i)
	}
	for shard := range crashShards {
		t.Run(fmt.Sprint("seeds from ", shard), func(t *testing.T) {
			t.Parallel()
			for i := shard; i < len(seeds); i += crashShards {
				synctest.Test(t, func(t *testing.T) { crashAtRandom(t, seeds[i]) })
			}
		})
	}
}

// Whoever made the data directory may have died before it was durable.
func TestAPowerCutLeavesADirectoryThatADeadServerMade(t *testing.T) {
	const dir = "a/b/data"
	sim := vfs.NewSim(memoryDir(t))
	open := func(sim *vfs.Sim) *store.Store {
		s, err := store.Open(dir, store.Options{FS: sim})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close(context.Background()) })
		return s
	}
	open(sim)
	for at := range sim.Ops() {
		life := sim.KillAt(at, nil)
		if _, err := open(life).CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		if _, err := open(life.PowerCut(life.Ops(), nil)).Volume("v"); err != nil {
			t.Errorf("killed before operation %d, and a power cut after the create: %v", at, err)
		}
	}
}

func crashEverywhere(l *life, shard int) {
	l.t.Helper()
	stride := crashShards
	if *crashRounds == 0 {
		stride *= 4
	}
	for _, moment := range l.Moments() {
		for at := moment.From; at < moment.To; at++ {
			if at%stride != shard {
				continue
			}
			for round := range max(*crashRounds, 1) {
				rng := rand.New(rand.NewPCG(uint64(at), uint64(round)))
				l.crash(moment, at, crashKind(rng.IntN(2)), rng, 1+rng.IntN(8)/7)
			}
		}
	}
}

func crashAtRandom(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := begin(t)
	defer l.Close()
	l.Logf("random workload, seed %d", seed)
	for i := range 1 + rng.IntN(3) {
		l.Create(i, int64(1+rng.IntN(8))*4096+int64(rng.IntN(2))*3*512)
	}
	for range 20 + rng.IntN(41) {
		l.Step(rng)
	}
	l.Works(l.store) // nothing waits any more: time passes for all lives alike
	for range 16 * max(*crashRounds, 1) {
		l.crashSomewhere(rng, crashDepth)
	}
}

// life is a store between two crashes, and the model of what it must hold.
type life struct {
	*volumetest.Machine
	*trace
	store *simStore
}

// begin makes a store on an empty disk.
func begin(t *testing.T) *life {
	t.Helper()
	dir := memoryDir(t)
	s, err := newSimStore(vfs.NewSim(dir))
	if err != nil {
		t.Fatal(err)
	}
	l := &life{store: s, trace: &trace{t: t}}
	l.Machine = volumetest.New(l.trace, s)
	l.Record()
	return l
}

// memoryDir returns a directory for the files of bbolt, in memory where there is
// such a thing: it syncs each commit.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tidemark-crash-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

type crashKind int

const (
	powerCut crashKind = iota
	kill
)

// crashSomewhere crashes at an operation since the life began, or at its end, in
// each step that has any as likely as in the others.
func (l *life) crashSomewhere(rng *rand.Rand, depth int) {
	l.t.Helper()
	moments := slices.DeleteFunc(slices.Clone(l.Moments()), func(m *volumetest.Moment) bool {
		return m.From == m.To && m.To < l.store.Ops()
	})
	moment := moments[rng.IntN(len(moments))]
	steps := moment.To - moment.From // at To the next step's first operation may be half done
	if moment.To == l.store.Ops() {
		steps++
	}
	l.crash(moment, moment.From+rng.IntN(steps), crashKind(rng.IntN(2)), rng, depth)
}

// crash ends the life before an operation of a moment, and begins the next one,
// which does a few steps and crashes too, if depth says so. This life stays as
// it is.
func (l *life) crash(moment *volumetest.Moment, at int, how crashKind, rng *rand.Rand, depth int) {
	l.t.Helper()
	defer l.forget(len(l.lines))
	keeps := rng
	if rng.IntN(4) == 0 {
		keeps = nil
	}
	sim := l.store.sim
	next := &life{trace: l.trace, store: &simStore{}}
	if how == kill {
		l.Logf("KILL before operation %d of %d", at, sim.Ops())
		next.store.sim = sim.KillAt(at, keeps)
	} else {
		l.Logf("POWER CUT before operation %d of %d", at, sim.Ops())
		next.store.sim = sim.PowerCut(at, keeps)
	}
	ops := next.store.sim.Ops()
	if err := next.store.Reopen(); err != nil {
		l.Fatalf("open: %v", err)
	}
	defer func() { _ = next.store.Close() }()
	if how == kill {
		next.Machine = moment.Outlived(l.trace, next.store, ops)
	} else {
		next.Machine = moment.Survived(l.trace, next.store)
	}
	next.Record()
	for range rng.IntN(4) {
		next.Step(rng)
	}
	switch { // what costs most comes seldom
	case depth > 1:
		next.Works(next.store)
		next.crashSomewhere(rng, depth-1)
	case rng.IntN(8) == 0:
		next.Works(next.store)
	case rng.IntN(2) == 0:
		next.mustCheck()
	}
}

// mustCheck closes the store and checks what is on the disk.
func (l *life) mustCheck() {
	l.t.Helper()
	if err := l.store.Close(); err != nil {
		l.Fatalf("close: %v", err)
	}
	if findings, err := l.store.Check(); err != nil || len(findings) > 0 {
		l.Fatalf("check: %q, %v; want nothing found", findings, err)
	}
}

// trace is a testing.T that tells how it came to a failure, and nothing else.
type trace struct {
	t     *testing.T
	lines []string
}

func (r *trace) Helper() {}

func (r *trace) Logf(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *trace) Fatalf(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("%s\n%s", strings.Join(r.lines, "\n"), fmt.Sprintf(format, args...))
}

// forget drops all lines but the first n.
func (r *trace) forget(n int) { r.lines = r.lines[:n] }

// everything does a bit of everything that writes.
func everything(m *life) {
	s := m.store
	const block, sector = 4096, 512
	wait := volumetest.Command{Wait: time.Hour}
	abort := volumetest.Command{Wait: time.Minute, OnTimeout: volume.TimeoutAbort}
	degrade := volumetest.Command{Wait: 2 * time.Minute, OnTimeout: volume.TimeoutDegrade}

	v := m.Create(0, 6*block)
	w := m.Create(1, 4*block+3*sector)
	live, other := m.Open(v), m.Open(w)
	write := func(h *volumetest.Handle, off, n int64) { m.Write(h, off, n, false) }
	zero := func(h *volumetest.Handle, off, n int64, noHole bool) { m.Zero(h, off, n, noHole) }
	flush := func(h *volumetest.Handle) { m.Flush(h) }
	preserve := func(c volumetest.Command, disks ...*volumetest.Disk) { m.Preserve(disks, c) }

	write(live, 0, 3*block) // before anything is preserved
	write(other, block, block+700)
	flush(live)
	write(live, block+100, 50)
	write(live, 4*block, block)
	zero(live, 2*block, block, false)

	p := m.Begin([]*volumetest.Disk{v, w})
	old, oldOther := m.OpenProcess(p, v), m.OpenProcess(p, w)
	preserve(wait, v, w) // waits for the process
	write(live, 0, block)
	write(old, 0, block) // deletes the entry above
	write(live, block, 2*block)
	write(old, block+1000, 3000) // parts, into both images
	write(oldOther, 3*block, block+sector)
	flush(old)
	write(live, 0, 100)
	zero(old, block, block, true)
	zero(live, 5*block, block, false)
	write(old, 5*block+sector, 2*sector) // a zero entry becomes data
	m.Resize(w, 6*block)
	wide := m.Open(w)
	write(wide, 4*block, 2*block)
	flush(wide)
	m.End(p, false) // the snapshots are exact, and are sealed
	m.Checkpoint(s, v)
	write(live, 2*block, 2*block)
	write(wide, 0, block/2)

	q := m.Begin([]*volumetest.Disk{v})
	old = m.OpenProcess(q, v)
	preserve(abort, v, w)
	write(live, 3*block, block)
	write(old, 3*block+sector, sector)
	m.Pass(90 * time.Second) // given up: the process goes on in the live volume
	write(old, 0, 2*block)
	flush(live)
	m.Checkpoint(s, v)
	preserve(degrade, w, v)
	write(old, 4*block, sector)
	write(live, 4*block+sector, sector)
	m.Pass(3 * time.Minute) // the second cut
	write(old, 4*block, block)
	flush(old)
	preserve(wait, v)
	write(live, block, block)
	m.Checkpoint(s, v)
	m.End(q, true)
	write(wide, 5*block, 300)
	m.Reopen(s, false)
	live = m.Open(v)
	write(live, 0, 2*block) // nothing drains: only the recovery makes it durable
	m.Kill(s)
	live = m.Open(v)
	write(live, 0, block) // where an entry is already
	m.Kill(s)
	live = m.Open(v)
	flush(live) // covers what the dead server had written
	write(live, 0, 100)
	flush(live)
}

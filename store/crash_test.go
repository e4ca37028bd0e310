package store_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/volume"
	"github.com/tidemark/tidemark/volume/volumetest"
)

var crashRounds = flag.Int("crash.rounds", 1, "random states of the disk that are tried after each power cut, and cuts of each recovery")

// crashShards is how many parts of the work run beside each other.
const crashShards = 2

// The power is cut at every operation on the disk that a workload makes. Of what
// was not synced then, the disk keeps nothing once, and some of it in each
// round. The store is opened on what is left, and held to I4 and I6 and to every
// command that was acknowledged before the cut; its recovery is cut as well.
func TestAPowerCutAtAnyOperationLosesNothingThatWasFlushedSealedOrAcknowledged(t *testing.T) {
	for shard := range crashShards {
		t.Run(fmt.Sprintf("every operation of %d, from the %d.", crashShards, shard), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { cutEverywhere(t, shard) })
		})
	}
}

func cutEverywhere(t *testing.T, shard int) {
	run, moments := crashWorkload(t)
	sim := run.sim
	for _, moment := range moments {
		for at := moment.From; at < moment.To; at++ {
			if at%crashShards != shard {
				continue
			}
			for round := range 1 + *crashRounds {
				seed := uint64(round)
				if round > 0 {
					seed += uint64(at) * 1000
				}
				t.Logf("cut at operation %d, seed %d", at, seed)
				cutAndCheck(t, sim, at, seed, moment, *crashRounds)
			}
		}
	}
}

// cutAndCheck cuts the power of a disk, opens the store on what is left and
// checks it; and does so again at some operations of that, as often as deeper
// says.
func cutAndCheck(t *testing.T, sim *vfs.Sim, at int, seed uint64, moment *volumetest.Moment, deeper int) {
	t.Helper()
	s, err := newSimStore(sim.PowerCut(at, random(seed)))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	defer func() { _ = s.Close() }()
	moment.Survived(t, s)
	choose := rand.New(rand.NewPCG(seed, uint64(at)))
	for range deeper {
		t.Logf("and in the recovery from that")
		cutAndCheck(t, s.sim, choose.IntN(s.Ops()+1), choose.Uint64N(3), moment, 0)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if findings, err := s.Check(); err != nil || len(findings) > 0 {
		t.Fatalf("check: %q, %v; want nothing found", findings, err)
	}
}

// crashWorkload runs a bit of everything that writes, and returns what a power
// cut may leave at each moment of it.
func crashWorkload(t *testing.T) (*simStore, []*volumetest.Moment) {
	s, err := newSimStore(vfs.NewSim(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	m := volumetest.New(t, s)
	var moments []*volumetest.Moment
	step := func() { moments = append(moments, m.Moment(s)) }
	const block, sector = 4096, 512
	wait := volumetest.Command{Wait: time.Hour}
	abort := volumetest.Command{Wait: time.Minute, OnTimeout: volume.TimeoutAbort}
	degrade := volumetest.Command{Wait: 2 * time.Minute, OnTimeout: volume.TimeoutDegrade}

	v := m.Create(0, 6*block)
	step()
	w := m.Create(1, 4*block+3*sector)
	step()
	live, other := m.Open(v), m.Open(w)
	write := func(h *volumetest.Handle, off, n int64) { m.Write(h, off, n, false); step() }
	zero := func(h *volumetest.Handle, off, n int64, noHole bool) { m.Zero(h, off, n, noHole); step() }
	flush := func(h *volumetest.Handle) { m.Flush(h); step() }
	preserve := func(c volumetest.Command, disks ...*volumetest.Disk) { m.Preserve(disks, c); step() }

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
	step()
	wide := m.Open(w)
	write(wide, 4*block, 2*block)
	flush(wide)
	m.End(p, false) // the snapshots are exact, and are sealed
	step()
	m.Checkpoint(s, v)
	step()
	write(live, 2*block, 2*block)
	write(wide, 0, block/2)

	q := m.Begin([]*volumetest.Disk{v})
	old = m.OpenProcess(q, v)
	preserve(abort, v, w)
	write(live, 3*block, block)
	write(old, 3*block+sector, sector)
	m.Pass(90 * time.Second) // given up: the process goes on in the live volume
	step()
	write(old, 0, 2*block)
	flush(live)
	m.Checkpoint(s, v)
	step()
	preserve(degrade, w, v)
	write(old, 4*block, sector)
	write(live, 4*block+sector, sector)
	m.Pass(3 * time.Minute) // the second cut
	step()
	write(old, 4*block, block)
	flush(old)
	preserve(wait, v)
	write(live, block, block)
	m.Checkpoint(s, v)
	step()
	m.End(q, true)
	step()
	write(wide, 5*block, 300)
	m.Reopen(s, false)
	step()
	live = m.Open(v)
	write(live, 0, 2*block) // nothing drains: only the recovery makes it durable
	m.Kill(s)
	step()
	live = m.Open(v)
	write(live, 0, block) // where an entry is already
	m.Kill(s)
	step()
	live = m.Open(v)
	flush(live) // covers what the dead server had written
	write(live, 0, 100)
	flush(live)
	return s, moments
}

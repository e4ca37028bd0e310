package e2e

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// TestAKilledServerLosesNoAcknowledgedWriteAndNoAcknowledgedPreserve kills the
// server in the middle of writes and preserves, -e2e.rounds times over the same
// data directory. Nothing is flushed but by each 64th write of a chain.
func TestAKilledServerLosesNoAcknowledgedWriteAndNoAcknowledgedPreserve(t *testing.T) {
	endUnderLoad(t, *rounds, func(s *server) error {
		_ = s.end(syscall.SIGKILL) // says that it was killed
		return nil
	})
}

// TestAServerThatIsToldToStopUnderLoadLosesNothing: it must exit with 0, which
// it does only within its --shutdown-timeout.
func TestAServerThatIsToldToStopUnderLoadLosesNothing(t *testing.T) {
	endUnderLoad(t, 3, func(s *server) error { return s.end(syscall.SIGTERM) })
}

// TestFioFindsWhatItWroteBeforeTheServerWasKilled lets fio write one half of a
// volume, ranges of many sizes at random, none flushed, while another fio keeps
// the server busy on the other half, in a third of -e2e.rounds. When the first is done the server is killed;
// after its start fio must find every block as it was written last.
func TestFioFindsWhatItWroteBeforeTheServerWasKilled(t *testing.T) {
	s := newServer(t)
	s.create("16MiB", "v")
	for round := range (*rounds + 2) / 3 {
		busy := command(t, "fio", s.fioJob("--offset=8M", "--size=8M", "--rw=randwrite", "--bs=4k", "--time_based", "--runtime=1h")...)
		if err := busy.Start(); err != nil {
			t.Fatal(err)
		}
		job := func(number int) []string { // what it writes says where, and in which round
			return s.fioJob("--size=8M", "--rw=randwrite", "--bsrange=512-32k", "--iodepth=1",
				"--verify=pattern", fmt.Sprintf("--verify_pattern=0x%08x%%o", number))
		}
		run(t, "fio", append(job(round+1), "--do_verify=0")...)
		s.kill()
		if err := busy.Wait(); err == nil {
			t.Fatal("fio did not miss its server")
		}
		s.check()
		s.start()
		run(t, "fio", append(job(round+1), "--verify_only")...)
		if r := attempt(t, "fio", append(job(round), "--verify_only")...); r.code == 0 {
			t.Fatal("fio finds what it did not write in this round")
		}
	}
}

// fioJob is fio's job on volume v.
func (s *server) fioJob(options ...string) []string {
	return append([]string{"--name=job", "--ioengine=nbd", "--uri=" + s.uri("v"), "--allrandrepeat=1"}, options...)
}

// endUnderLoad ends the server round after round, at some number of acknowledged
// writes and beside preserves that follow each other at once, and looks at what
// is there at the next start.
func endUnderLoad(t *testing.T, rounds int, end func(*server) error) {
	const seed = 20
	random := rand.New(rand.NewPCG(seed, seed))
	s := newServer(t)
	s.create(chainVolumeSize, chainVolumes...)
	chains := newChains()
	var all []kept
	writes := uint64(0)
	for round := range rounds {
		l := startLoad(t, s, chains, 100+random.Uint64N(2000))
		ended := make(chan error, 1)
		go func() {
			select {
			case <-l.reached:
			case <-l.over: // too early, which the server's log may explain
			}
			ended <- end(s)
		}()
		mine := s.preserveUntilItEnds(chains, round)
		if err := <-ended; err != nil {
			t.Fatalf("the server ended with %v", err)
		}
		<-l.over // the server is gone, and each chain meets that in its next write
		if errs := l.stop(); len(errs) != len(chains) {
			t.Errorf("%d chains outlived the server", len(chains)-len(errs))
		}
		writes += l.acked.Load()
		s.check()
		s.start()
		s.mustHaveAll(chains)
		for _, k := range mine {
			s.mustHold(chains, k)
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
		all = append(all, mine...)
	}
	t.Logf("%d writes, %d preserves", writes, len(all))
	s.stop()
	s.check()
	s.start()
	s.mustHaveAll(chains)
	for _, k := range all {
		s.mustHold(chains, k)
	}
}

// preserveUntilItEnds preserves until a preserve fails, which only the end of
// the server may cause, and returns those that were acknowledged.
func (s *server) preserveUntilItEnds(chains []*chain, round int) (all []kept) {
	s.t.Helper()
	c := s.client()
	for i := 0; ; i++ {
		name := fmt.Sprintf("p%d-%d", round, i)
		k, err := preserveChains(chains, name, func() error { return preserve(s.t.Context(), c, name) })
		if err != nil {
			if reason := api.Detail(err).GetReason(); reason != tidemarkv1.Reason_REASON_UNSPECIFIED && reason != tidemarkv1.Reason_REASON_CLOSED {
				s.t.Errorf("preserve %s: %v", name, err)
			}
			return all
		}
		all = append(all, k)
	}
}

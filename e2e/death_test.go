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

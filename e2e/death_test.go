package e2e

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
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

// endUnderLoad ends the server round after round, during a preserve after some
// number of acknowledged writes, and looks at what is there at the next start.
func endUnderLoad(t *testing.T, rounds int, end func(*server) error) {
	const seed = 20
	random := rand.New(rand.NewPCG(seed, seed))
	s := newServer(t)
	s.create("1MiB", chainVolumes...)
	chains := newChains()
	var all []kept
	for round := range rounds {
		l := startLoad(t, s, chains)
		goal := total(chains) + 100 + random.Uint64N(2000)
		ended := make(chan error, 1)
		for i := 0; ; i++ {
			last := total(chains) >= goal
			if last {
				go func() { ended <- end(s) }()
			}
			k, code := s.preserveChains(chains, fmt.Sprintf("p%d-%d", round, i))
			switch {
			case code == 0: // acknowledged, if just so
				all = append(all, k)
			case !last || code != 7:
				t.Fatalf("preserve: exit code %d", code)
			}
			if last {
				break
			}
		}
		if err := <-ended; err != nil {
			t.Fatalf("the server ended with %v", err)
		}
		if errs := l.stop(); len(errs) != len(chains) {
			t.Errorf("%d chains outlived the server", len(chains)-len(errs))
		}
		s.check()
		s.start()
		s.mustHaveAll(chains)
		for _, k := range all {
			s.mustHold(chains, k)
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	t.Logf("%d writes, %d preserves", total(chains), len(all))
	s.stop()
	s.check()
}

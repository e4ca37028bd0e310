package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/nbd/client"
)

// A chain writes the numbers 1, 2, 3... one after the other, each only after the
// one before was acknowledged, over the slots of two volumes and over several
// connections. So number n is overwritten by n+slots, and what any cut of both
// volumes holds must be all of 1..n for some n (I1): in each slot the largest
// number up to n that belongs there.
//
// A chain of sectors writes parts of blocks that it shares with the other ones;
// a chain of blocks writes whole blocks of its own.
type chain struct {
	id     int
	blocks bool

	begun, acked atomic.Uint64 // numbers
}

const (
	slots      = 16
	chainCount = 6 // half of sectors, half of blocks

	chainVolumeSize  = "512KiB"
	chainVolumeBytes = 512 << 10
)

var chainVolumes = []string{"db", "wal"}

func newChains() []*chain {
	chains := make([]*chain, chainCount)
	for i := range chains {
		chains[i] = &chain{id: i, blocks: i >= chainCount/2}
	}
	return chains
}

// place is where a slot lies.
func (c *chain) place(slot uint64) (volume int, off, lengthBytes int64) {
	volume, block := int(slot%2), int64(slot/2)
	if c.blocks {
		return volume, (block + int64(c.id+1)*slots) * 4096, 4096
	}
	return volume, block*4096 + int64(c.id)*512, 512
}

// stamp fills p with a number of the chain.
func (c *chain) stamp(p []byte, n uint64) {
	for ; len(p) > 0; p = p[16:] {
		binary.LittleEndian.PutUint64(p, uint64(c.id+1))
		binary.LittleEndian.PutUint64(p[8:], n)
	}
}

// write goes on from the number that was acknowledged last until ctx ends (nil)
// or a write fails, and counts. connections are those of each volume.
func (c *chain) write(ctx context.Context, connections [2][]*client.Client, count func()) error {
	for n := c.acked.Load() + 1; ctx.Err() == nil; n++ {
		volume, off, lengthBytes := c.place(n % slots)
		to := connections[volume][n/slots%uint64(len(connections[volume]))]
		p := make([]byte, lengthBytes)
		c.stamp(p, n)
		c.begun.Store(n)
		write := to.WriteAt
		if n%64 == 0 {
			write = to.WriteFUA
		}
		if _, err := write(p, off); err != nil {
			return fmt.Errorf("chain %d, number %d: %w", c.id, n, err)
		}
		c.acked.Store(n)
		count()
	}
	return nil
}

// held finds the n for which the volumes' contents hold all of 1..n.
func (c *chain) held(contents [2][]byte) (n uint64, err error) {
	var found [slots]uint64
	for slot := range uint64(slots) {
		volume, off, lengthBytes := c.place(slot)
		p := contents[volume][off : off+lengthBytes]
		found[slot] = binary.LittleEndian.Uint64(p[8:])
		want := make([]byte, lengthBytes)
		if found[slot] > 0 {
			c.stamp(want, found[slot])
		}
		if !bytes.Equal(p, want) {
			return 0, fmt.Errorf("chain %d, slot %d holds %d in a part only", c.id, slot, found[slot])
		}
		n = max(n, found[slot])
	}
	for slot, got := range found {
		want := uint64(0)
		if first := n - (n+slots-uint64(slot))%slots; first <= n {
			want = first // 0 is no number: nothing was written
		}
		if got != want {
			return 0, fmt.Errorf("chain %d holds %d, but in slot %d there is %d where %d was acknowledged before %d began: %v", c.id, n, slot, got, want, n, found)
		}
	}
	return n, nil
}

// A load is all chains at work.
type load struct {
	reached chan struct{} // closed at the goal
	over    chan struct{} // closed when all chains have ended
	acked   atomic.Uint64
	cancel  context.CancelFunc
	done    sync.WaitGroup
	mu      sync.Mutex
	errs    []error
}

// startLoad starts all chains over connections that they share, three a volume.
// The goal is a number of acknowledged writes, of all chains together.
func startLoad(t *testing.T, s *server, chains []*chain, goal uint64) *load {
	t.Helper()
	var connections [2][]*client.Client
	for i, name := range chainVolumes {
		for range 3 {
			connections[i] = append(connections[i], s.dial(name))
		}
	}
	l := &load{reached: make(chan struct{}), over: make(chan struct{})}
	count := func() {
		if l.acked.Add(1) == goal {
			close(l.reached)
		}
	}
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(t.Context())
	for _, c := range chains {
		l.done.Go(func() {
			if err := c.write(ctx, connections, count); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.errs = append(l.errs, err)
			}
		})
	}
	go func() {
		l.done.Wait()
		close(l.over)
	}()
	t.Cleanup(func() { l.stop() })
	return l
}

// stop ends the load and returns what had ended it before.
func (l *load) stop() []error {
	l.cancel()
	<-l.over
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.errs
}

// both reads both volumes' live views, or both snapshots of one preserve.
func (s *server) both(suffix string) (contents [2][]byte) {
	s.t.Helper()
	for i, name := range chainVolumes {
		contents[i] = s.content(name + suffix)
	}
	return contents
}

// A kept is an acknowledged preserve of both volumes and what it must hold:
// at least what was acknowledged before the command, at most what had begun
// when it answered.
type kept struct {
	name            string
	atLeast, atMost []uint64
}

// preserveChains preserves both volumes and says what the snapshots must hold.
func preserveChains(chains []*chain, name string, preserve func() error) (kept, error) {
	k := kept{name: name}
	for _, c := range chains {
		k.atLeast = append(k.atLeast, c.acked.Load())
	}
	err := preserve()
	for _, c := range chains {
		k.atMost = append(k.atMost, c.begun.Load())
	}
	return k, err
}

// preserve preserves both volumes through the API, which takes less time than a
// command.
func preserve(ctx context.Context, c api.Client, name string) error {
	_, err := c.Preserve(ctx, &tidemarkv1.PreserveRequest{
		Volumes: chainVolumes, Name: name, Wait: durationpb.New(api.DefaultWait),
	})
	return err
}

// mustHold checks both snapshots of a preserve.
func (s *server) mustHold(chains []*chain, k kept) {
	s.t.Helper()
	contents := s.both("@" + k.name)
	for i, c := range chains {
		n, err := c.held(contents)
		switch {
		case err != nil:
			s.t.Errorf("snapshot %s: %v", k.name, err)
		case n < k.atLeast[i] || n > k.atMost[i]:
			s.t.Errorf("snapshot %s, chain %d: it holds %d, not within %d and %d", k.name, c.id, n, k.atLeast[i], k.atMost[i])
		}
	}
}

// mustHaveAll checks that the live views hold all that was acknowledged, and no
// more than had begun. The chains go on from there.
func (s *server) mustHaveAll(chains []*chain) {
	s.t.Helper()
	contents := s.both("")
	for _, c := range chains {
		n, err := c.held(contents)
		switch {
		case err != nil:
			s.t.Errorf("live: %v", err)
		case n < c.acked.Load() || n > c.begun.Load():
			s.t.Errorf("live, chain %d: it holds %d; %d was acknowledged, %d had begun", c.id, n, c.acked.Load(), c.begun.Load())
		}
		c.acked.Store(n)
	}
}

func TestAChainFindsWhatIsMissingTornOrLate(t *testing.T) {
	c := newChains()[chainCount-1]
	holding := func(numbers ...uint64) (contents [2][]byte) {
		contents = [2][]byte{make([]byte, chainVolumeBytes), make([]byte, chainVolumeBytes)}
		for _, n := range numbers {
			volume, off, lengthBytes := c.place(n % slots)
			c.stamp(contents[volume][off:off+lengthBytes], n)
		}
		return contents
	}
	upTo := func(n uint64) (numbers []uint64) {
		for i := range n {
			numbers = append(numbers, i+1)
		}
		return numbers
	}
	torn := holding(upTo(5)...)
	_, off, lengthBytes := c.place(4)
	clear(torn[0][off+lengthBytes-512 : off+lengthBytes])
	for _, test := range []struct {
		name     string
		contents [2][]byte
		n        uint64
		whole    bool
	}{
		{"nothing", holding(), 0, true},
		{"the first", holding(1), 1, true},
		{"less than a round", holding(upTo(7)...), 7, true},
		{"several rounds", holding(upTo(53)...), 53, true},
		{"a hole in the first round", holding(1, 2, 4), 0, false},
		{"a hole in a later round", holding(append(upTo(51), 53)...), 0, false},
		{"a round too old", holding(append(upTo(20), 40)...), 0, false},
		{"a torn block", torn, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if n, err := c.held(test.contents); n != test.n || (err == nil) != test.whole {
				t.Errorf("held %d, %v", n, err)
			}
		})
	}
}

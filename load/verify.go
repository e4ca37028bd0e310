package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/nbd/client"
)

// A block is written with a filler that all have alike and that does not
// compress, and at the beginning of each sector a stamp: where it is in the
// export (64 bits, little endian), and the number of the write (64), counted from
// a number of this run. So neither a lost write, nor one that went elsewhere, nor
// half of one, nor data of another run passes for what should be there.
const (
	sectorBytes = 512
	stampBytes  = 16
)

func newFiller(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) //nolint:gosec // it must only not compress
	return b
}

func stamp(block []byte, off int64, number uint64) {
	for at := 0; at < len(block); at += sectorBytes {
		binary.LittleEndian.PutUint64(block[at:], uint64(off+int64(at)))
		binary.LittleEndian.PutUint64(block[at+8:], number)
	}
}

// differs says where and how a block is not what a write of a run left there.
func differs(block, filler []byte, off int64, run uint64, write uint32) string {
	for at := 0; at < len(block); at += sectorBytes {
		sector, place := block[at:at+sectorBytes], off+int64(at)
		where, number := binary.LittleEndian.Uint64(sector), binary.LittleEndian.Uint64(sector[8:])
		switch {
		case where == uint64(place) && number == run+uint64(write) && bytes.Equal(sector[stampBytes:], filler[at+stampBytes:at+sectorBytes]):
			continue
		case bytes.Count(sector, []byte{0}) == len(sector):
			return fmt.Sprintf("the sector at %d is zeros", place)
		case number-run-1 >= math.MaxUint32:
			return fmt.Sprintf("the sector at %d was not written by this run", place)
		case where != uint64(place):
			return fmt.Sprintf("the sector at %d was written to %d", place, where)
		case number != run+uint64(write):
			return fmt.Sprintf("the sector at %d is of write %d of its connection, not of the last there, %d", place, number-run, write)
		}
		return fmt.Sprintf("the sector at %d is damaged", place)
	}
	return ""
}

// verify reads every block back that was written, Depth at a time.
func verify(ctx context.Context, streams []*stream, o *Options) (blocks int64, err error) {
	checkers := make([]*checker, len(streams))
	all := int64(0)
	for i, s := range streams {
		checkers[i] = newChecker(s)
		all += checkers[i].blocks
	}
	for _, c := range checkers {
		c.begin()
	}
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	report := func() {
		o.Progress(Progress{Elapsed: o.Warmup + o.Duration, Requests: answered(streams), Verifying: true, Verified: checked(checkers), ToVerify: all})
	}
	stop := ctx.Done()
	for _, c := range checkers {
		for running := true; running; {
			select {
			case <-c.ended:
				running = false
			case <-ticker.C:
				report()
			case <-stop:
				stop = nil
				for _, c := range checkers {
					_ = c.stream.client.Abort() // its requests end with an error then
				}
			}
		}
	}
	report()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return checked(checkers), verdict(checkers, all)
}

func checked(checkers []*checker) (blocks int64) {
	for _, c := range checkers {
		blocks += c.right.Load()
	}
	return blocks
}

func verdict(checkers []*checker, all int64) error {
	wrong, first := int64(0), ""
	for _, c := range checkers {
		if c.err != nil {
			return c.err
		}
		wrong += c.wrong
		if first == "" {
			first = c.first
		}
	}
	if wrong > 0 {
		return fmt.Errorf("load: %w: %d of %d blocks do not hold what was written last: %s", ErrWrongData, wrong, all, first)
	}
	return nil
}

// A checker reads back what a stream wrote.
type checker struct {
	stream *stream
	filler []byte
	blocks int64 // that were written
	right  atomic.Int64

	mu       sync.Mutex
	position int64
	inFlight int
	wrong    int64
	first    string // what is wrong with the first
	err      error
	ended    chan struct{}
}

func newChecker(s *stream) *checker {
	c := &checker{stream: s, filler: newFiller(s.options.Seed, s.options.BlockBytes), ended: make(chan struct{})}
	for _, write := range s.last {
		if write > 0 {
			c.blocks++
		}
	}
	return c
}

func (c *checker) begin() {
	var requests []*client.Request
	c.mu.Lock()
	for range c.stream.slots {
		r := &client.Request{Op: client.Read, Data: make([]byte, c.stream.options.BlockBytes), Done: c.done}
		if c.next(r) {
			requests = append(requests, r)
		}
	}
	if len(requests) == 0 {
		close(c.ended)
	}
	c.mu.Unlock()
	if err := c.stream.client.Start(requests...); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.err = fmt.Errorf("load: verify: %w", err)
		if len(requests) > 0 {
			close(c.ended)
		}
	}
}

// next has a request read the next block that was written; false if there is none.
func (c *checker) next(r *client.Request) bool {
	last := c.stream.last
	for c.position < int64(len(last)) && last[c.position] == 0 {
		c.position++
	}
	if c.err != nil || c.position == int64(len(last)) {
		return false
	}
	r.Off = c.stream.offset(c.position)
	c.position++
	c.inFlight++
	return true
}

func (c *checker) done(r *client.Request) (again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight--
	c.look(r)
	again = c.next(r)
	if c.inFlight == 0 {
		close(c.ended)
	}
	return again
}

func (c *checker) look(r *client.Request) {
	if r.Err != nil {
		if c.err == nil {
			c.err = fmt.Errorf("load: verify: read of %d bytes at %d: %w", len(r.Data), r.Off, r.Err)
		}
		return
	}
	s := c.stream
	write := s.last[r.Off/int64(s.options.BlockBytes)-s.first]
	how := differs(r.Data, c.filler, r.Off, s.run, write)
	if how == "" {
		c.right.Add(1)
		return
	}
	c.wrong++
	if c.first == "" {
		c.first = how
	}
}

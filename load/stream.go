package load

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/nbd/client"
)

// A stream keeps the slots of one connection busy. It has no goroutine: a slot's
// next request is chosen when the last one has ended, on the goroutine on which
// the client receives, and goes out with the others that ended at the same time.
// With a rate, slots that are free wait in idle, and a pacer sends them off.
//
// A slot goes through: next -> in flight -> done -> next ..., until next says
// that the run is over. When none is in flight then, ended is closed.
type stream struct {
	client  *client.Client
	options *Options
	first   int64 // block of the export at which its part begins
	blocks  int64 // of its part
	run     uint64
	began   time.Time
	fail    func(error)

	answered atomic.Int64

	mu        sync.Mutex
	random    *rand.Rand
	slots     []slot
	inFlight  int   // and one for the pacer
	position  int64 // of Sequential
	unflushed int   // writes since the last flush
	written   uint32
	last      []uint32      // for Verify: by block, which of the writes was the last; 0: none
	stopped   time.Duration // when stop was called; 0: it was not
	over      bool
	schedule  schedule
	reads     *Stats // nil, as the other two, if there are none by the options
	writes    *Stats
	flushes   *Stats

	ended chan struct{}
}

// A slot is one request at a time.
type slot struct {
	stream  *stream
	request client.Request
	start   time.Duration // since began; with a rate when it was due
	block   int64         // of the stream's part
	write   uint32        // which of the stream's writes
	in, out []byte
}

func newStream(c *client.Client, o *Options, index int, blocks int64, filler []byte, run uint64) *stream {
	s := &stream{
		client: c, options: o, first: int64(index) * blocks, blocks: blocks, run: run,
		random: rand.New(rand.NewPCG(o.Seed, uint64(index))), //nolint:gosec // a workload that can be repeated
		slots:  make([]slot, o.Depth),
		ended:  make(chan struct{}),
	}
	s.schedule = newSchedule(o, index)
	if o.ReadPercent > 0 {
		s.reads = newStats()
	}
	if o.ReadPercent < 100 {
		s.writes = newStats()
	}
	if o.FlushEvery > 0 {
		s.flushes = newStats()
	}
	if o.Verify {
		s.last = make([]uint32, blocks)
	}
	for i := range s.slots {
		p := &s.slots[i]
		p.stream = s
		p.block = -1
		p.request.Done = p.done
		p.request.FUA = o.FUA
		if o.ReadPercent > 0 {
			p.in = make([]byte, o.BlockBytes)
		}
		if o.ReadPercent < 100 {
			p.out = append([]byte(nil), filler...)
		}
	}
	return s
}

// begin starts the stream; fail is told the first error.
func (s *stream) begin(began time.Time, fail func(error)) {
	s.began, s.fail = began, fail
	if s.schedule.everyNanos > 0 {
		s.schedule.idle = make([]*slot, 0, len(s.slots))
		for i := range s.slots {
			s.schedule.idle = append(s.schedule.idle, &s.slots[i])
		}
		s.inFlight++
		go s.pace()
		return
	}
	var requests []*client.Request
	s.mu.Lock()
	for i := range s.slots {
		if s.next(&s.slots[i], 0) {
			requests = append(requests, &s.slots[i].request)
		}
	}
	s.mu.Unlock()
	s.start(requests)
}

// start sends requests that next has chosen.
func (s *stream) start(requests []*client.Request) {
	if err := s.client.Start(requests...); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.inFlight -= len(requests)
		s.failed(fmt.Errorf("load: send requests: %w", err))
		s.settle()
	}
}

// done is called when the slot's request has ended.
func (p *slot) done(*client.Request) (again bool) {
	s := p.stream
	now := time.Since(s.began)
	s.answered.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight--
	s.record(p, now)
	if again = s.next(p, now); !again {
		s.settle()
	}
	return again
}

// record takes down how the slot's request ended.
func (s *stream) record(p *slot, now time.Duration) {
	stats, bytes := s.reads, len(p.in)
	switch p.request.Op {
	case client.Write:
		stats, bytes = s.writes, len(p.out)
	case client.Flush:
		stats, bytes = s.flushes, 0
	}
	if err := p.request.Err; err != nil {
		if !s.abandoned(now) {
			stats.Errors++
			s.failed(p.describe(err))
		}
		return
	}
	if p.request.Op == client.Write && s.last != nil {
		s.last[p.block] = p.write
	}
	if p.start >= s.options.Warmup {
		stats.add(now-p.start, bytes)
	}
}

// abandoned tells whether requests that fail do so because they were given up.
func (s *stream) abandoned(now time.Duration) bool { return s.stopped > 0 && now >= s.stopped+grace }

func (p *slot) describe(err error) error {
	what := "read"
	switch p.request.Op {
	case client.Write:
		what = "write"
	case client.Flush:
		return fmt.Errorf("load: flush: %w", err)
	}
	return fmt.Errorf("load: %s of %d bytes at %d: %w", what, len(p.request.Data), p.request.Off, err)
}

// failed ends the run. The caller holds mu, so that others hear of it later.
func (s *stream) failed(err error) {
	s.over = true
	s.fail(err)
}

// next gives a free slot its next request; false if there is none, or not yet.
func (s *stream) next(p *slot, now time.Duration) bool {
	if s.over || now >= s.options.Warmup+s.options.Duration {
		s.over = true
		return false
	}
	p.start = now
	if s.schedule.everyNanos > 0 {
		p.start = s.schedule.due()
		if p.start > now {
			s.schedule.rest(p)
			return false
		}
	}
	s.schedule.count++
	s.inFlight++
	s.choose(p)
	return true
}

// choose makes the slot's next request.
func (s *stream) choose(p *slot) {
	r, o := &p.request, s.options
	p.block = -1 // of what has ended
	switch {
	case o.FlushEvery > 0 && s.unflushed >= o.FlushEvery:
		s.unflushed = 0
		r.Op = client.Flush
		return
	case o.ReadPercent == 100, o.ReadPercent > 0 && s.random.IntN(100) < o.ReadPercent:
		p.block = s.nextBlock()
		r.Op, r.Data = client.Read, p.in
	default:
		s.unflushed++
		s.written++
		if s.written == 0 { // it stands for none
			s.written = 1
		}
		p.block, p.write = s.nextFree(), s.written
		r.Op, r.Data = client.Write, p.out
		stamp(r.Data, s.offset(p.block), s.run+uint64(p.write))
	}
	r.Off = s.offset(p.block)
}

func (s *stream) offset(block int64) int64 { return (s.first + block) * int64(s.options.BlockBytes) }

func (s *stream) nextBlock() int64 {
	if s.options.Pattern == Random {
		return s.random.Int64N(s.blocks)
	}
	block := s.position
	if s.position++; s.position == s.blocks {
		s.position = 0
	}
	return block
}

// nextFree is a block that no other slot uses, if it matters: of two writes of
// one block in flight, nobody could say which is the last.
func (s *stream) nextFree() int64 {
	block := s.nextBlock()
	for s.last != nil && s.taken(block) {
		if block++; block == s.blocks {
			block = 0
		}
	}
	return block
}

func (s *stream) taken(block int64) bool {
	for i := range s.slots {
		if s.slots[i].block == block {
			return true
		}
	}
	return false
}

// stop has the stream end when what is in flight has.
func (s *stream) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.stopped = time.Since(s.began)
	s.settle()
}

// settle closes ended when the run is over and nothing is in flight. The caller
// holds mu.
func (s *stream) settle() {
	if !s.over {
		return
	}
	s.schedule.wake()
	if s.inFlight > 0 {
		return
	}
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

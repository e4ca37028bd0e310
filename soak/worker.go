package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/nbd/client"
)

const (
	sectorBytes   = 512
	regionBytes   = 8 << 20
	regionSectors = regionBytes / sectorBytes
	workers       = 4 // of a volume at most, each with a region of its own
	volumeBytes   = workers*regionBytes + pairBytes
	mostSectors   = 128 // of one request
)

// seq numbers the writes of a worker, from 1.
type seq uint64

// content is what a sector holds: the number of the write, and whether that
// made it zero.
type content struct {
	seq  seq
	zero bool
}

// worker writes to its region of a volume and knows what must be there: one
// request at a time, so that only one is uncertain when the server ends.
type worker struct {
	server  *server
	volume  string
	scope   string // "request", "session" or "process"
	off     int64  // of the region
	rolling *gate
	done    *counts
	random  *rand.Rand

	mu      sync.Mutex // for those who look at a cut; the worker alone changes
	issued  seq
	acked   []content
	zeroed  []seq // the last write of zeros that was issued, by sector
	pending *request
	rolled  *bounds // of the snapshot that the region was rolled back to, until it is read
}

type request struct {
	first, count int // sectors of the region
	content
}

// bounds of what a cut may hold of a worker's region: at least what had been
// acknowledged before the command, at most what had been issued at its answer.
type bounds struct {
	least  []content
	issued seq
	zeroed []seq
}

func newWorker(v *generation, volume, scope string, i int) *worker {
	return &worker{
		server: v.server, volume: volume, scope: scope, off: int64(i) * regionBytes, rolling: &v.rolling, done: v.done,
		random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		acked:  slices.Repeat([]content{{zero: true}}, regionSectors), zeroed: make([]seq, regionSectors),
	}
}

func (w *worker) least() *bounds {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &bounds{least: slices.Clone(w.acked)}
}

func (w *worker) most(b *bounds) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.issued, b.zeroed = w.issued, slices.Clone(w.zeroed)
}

// allow tells whether a sector may hold what was found.
func (b *bounds) allow(sector int, found content) bool {
	least := b.least[sector]
	if found.zero {
		return least.zero || least.seq == 0 || b.zeroed[sector] > least.seq
	}
	return found.seq >= least.seq && found.seq <= b.issued
}

// rollBack tells the worker, which waits at the gate, that its region holds what a
// snapshot holds.
func (w *worker) rollBack(b *bounds) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked, w.rolled, w.pending = slices.Clone(b.least), b, nil
}

// run works until ctx ends, through the ends of the server, each time with a
// look at all that it wrote.
func (w *worker) run(ctx context.Context) error {
	for ctx.Err() == nil {
		times, err := w.rolling.wait(ctx)
		if err != nil {
			return nil // its time is over
		}
		c, end, err := w.begin(ctx)
		if err != nil && w.rolling.count() != times {
			continue // it was refused meanwhile
		}
		if err != nil {
			return w.unlessOver(ctx, err)
		}
		if w.rolling.count() == times { // else it may be connected to either state
			err = w.settle(c)
		} else {
			err = errRolledBack
		}
		if err == nil {
			err = w.work(ctx, c)
		}
		if end != nil {
			end()
		}
		_ = c.Close() // an end of the server closed it already
		var wrong *wrongError
		if errors.As(err, &wrong) {
			return err
		}
	}
	return nil
}

var errRolledBack = errors.New("the volume is rolled back")

func (w *worker) unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// begin connects, under a process of the worker's own if that is its scope.
func (w *worker) begin(ctx context.Context) (c *client.Client, end func(), err error) {
	export := w.volume + ":" + w.scope
	for w.scope == "process" {
		token := fmt.Sprintf("soak-%016x", w.random.Uint64())
		err := w.server.call(ctx, func(ctx context.Context, a api.Client) error {
			// Whether a call that is cut off begins a process nobody knows.
			_, err := a.BeginProcess(context.WithoutCancel(ctx), &tidemarkv1.BeginProcessRequest{Volumes: []string{w.volume}, Token: token})
			return err
		}, func(err error) bool { return reason(err) == tidemarkv1.Reason_REASON_EXISTS })
		if err != nil {
			return nil, nil, fmt.Errorf("begin a process: %w", err)
		}
		export = w.volume + ":process:" + token
		end = func() { // fails if the server ended meanwhile, and the process with it
			_, _ = w.server.client().EndProcess(context.WithoutCancel(ctx), &tidemarkv1.EndProcessRequest{Token: token})
		}
		c, err := w.server.open(ctx, export)
		var refused *client.RefusedError
		if errors.As(err, &refused) {
			continue // the server ended between the two, and the process with it
		}
		if err != nil { // its time is over
			end()
			return nil, nil, err
		}
		w.done.processes.Add(1)
		return c, end, err
	}
	c, err = w.server.open(ctx, export)
	w.done.sessions.Add(1)
	return c, nil, err
}

// settle reads the whole region. What was acknowledged is there; a request that
// was cut off by the end of a server may be, sector by sector. After a rollback it is
// what the snapshot may hold.
func (w *worker) settle(c *client.Client) error {
	data := make([]byte, regionBytes)
	if _, err := c.ReadAt(data, w.off); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.acked {
		found, err := w.parse(data[i*sectorBytes:][:sectorBytes], i)
		if err != nil {
			return err
		}
		want := w.acked[i]
		p := w.pending
		switch {
		case w.rolled != nil && w.rolled.allow(i, found):
			w.acked[i] = found
		case w.rolled != nil:
			return w.wrong(i, "the volume, rolled back, holds %v; acknowledged before the snapshot was %v, issued until then %d", found, want, w.rolled.issued)
		case found == want || found.zero && want.zero:
		case p != nil && i >= p.first && i < p.first+p.count && (found == p.content || found.zero && p.zero):
			w.acked[i] = p.content
		default:
			return w.wrong(i, "the volume holds %v, acknowledged was %v, pending %v", found, want, p)
		}
	}
	w.pending, w.rolled = nil, nil
	return nil
}

// work issues some requests on one connection.
func (w *worker) work(ctx context.Context, c *client.Client) error {
	for range 50 + w.random.IntN(200) {
		if ctx.Err() != nil {
			return nil
		}
		if err := w.request(c); err != nil {
			return err
		}
		pause(ctx, time.Duration(w.random.IntN(4))*time.Millisecond)
	}
	return nil
}

func (w *worker) request(c *client.Client) error {
	first := w.random.IntN(regionSectors)
	if w.random.IntN(2) == 0 {
		first = first / 8 % 64 * 8 // blocks that are hot
	}
	count := min(1+w.random.IntN(16), regionSectors-first)
	if w.random.IntN(16) == 0 {
		count = min(1+w.random.IntN(mostSectors), regionSectors-first)
	}
	off, length := w.off+int64(first)*sectorBytes, int64(count)*sectorBytes
	switch kind := w.random.IntN(16); {
	case kind < 5:
		w.done.reads.Add(1)
		return w.read(c, first, count)
	case kind == 5:
		w.done.flushes.Add(1)
		return c.Flush()
	case kind < 8:
		w.done.trims.Add(1)
		r := w.issue(first, count, true)
		err := c.Trim(off, length)
		if kind == 7 {
			err = c.WriteZeroes(off, length, w.random.IntN(2) == 0)
		}
		return w.answered(r, err)
	default:
		w.done.writes.Add(1)
		r := w.issue(first, count, false)
		data := make([]byte, length)
		for i := range count {
			stampSector(data[i*sectorBytes:][:sectorBytes], uint64(w.off)/sectorBytes+uint64(first+i), r.seq)
		}
		write := c.WriteAt
		if kind == 15 {
			write = c.WriteFUA
		}
		_, err := write(data, off)
		return w.answered(r, err)
	}
}

func (w *worker) read(c *client.Client, first, count int) error {
	data := make([]byte, count*sectorBytes)
	if _, err := c.ReadAt(data, w.off+int64(first)*sectorBytes); err != nil {
		return err
	}
	for i := range count {
		found, err := w.parse(data[i*sectorBytes:][:sectorBytes], first+i)
		if err != nil {
			return err
		}
		if want := w.acked[first+i]; found != want && !(found.zero && want.zero) {
			return w.wrong(first+i, "a read finds %v, written was %v", found, want)
		}
	}
	return nil
}

func (w *worker) issue(first, count int, zero bool) *request {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.issued++
	w.pending = &request{first, count, content{w.issued, zero}}
	if zero {
		for i := range count {
			w.zeroed[first+i] = w.issued
		}
	}
	return w.pending
}

func (w *worker) answered(r *request, err error) error {
	if err != nil {
		return err // pending stays
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rolled != nil {
		return errRolledBack // the answer was on its way
	}
	for i := range r.count {
		w.acked[r.first+i] = r.content
	}
	w.pending = nil
	return nil
}

// stampSector makes a sector its place and the number of its write, over and over.
func stampSector(sector []byte, place uint64, n seq) {
	for b := sector; len(b) > 0; b = b[16:] {
		binary.LittleEndian.PutUint64(b, place)
		binary.LittleEndian.PutUint64(b[8:], uint64(n))
	}
}

func (w *worker) parse(sector []byte, i int) (content, error) {
	place, n := binary.LittleEndian.Uint64(sector), seq(binary.LittleEndian.Uint64(sector[8:]))
	zero := place == 0 && n == 0
	for b := sector; len(b) > 0; b = b[16:] {
		if binary.LittleEndian.Uint64(b) != place || seq(binary.LittleEndian.Uint64(b[8:])) != n {
			return content{}, w.wrong(i, "a sector is torn: %x", sector)
		}
	}
	if !zero && (place != uint64(w.off)/sectorBytes+uint64(i) || n == 0) {
		return content{}, w.wrong(i, "a sector holds what was written to sector %d", place)
	}
	return content{n, zero}, nil
}

// wrongError is a wrong byte: the end of the run.
type wrongError struct{ text string }

func (e *wrongError) Error() string { return e.text }

func (w *worker) wrong(i int, format string, args ...any) error {
	return &wrongError{fmt.Sprintf("WRONG DATA: volume %s, sector %d: ", w.volume, int(w.off/sectorBytes)+i) + fmt.Sprintf(format, args...)}
}

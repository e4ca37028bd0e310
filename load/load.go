// Package load drives an NBD server with a stream of requests, and records how
// long each took.
package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tidemark/tidemark/nbd/client"
)

// Pattern is the order in which blocks are used.
type Pattern uint8

// The patterns.
const (
	Random Pattern = iota
	Sequential
)

// Options say what Run does. A field that is zero and has a default is that.
type Options struct {
	ReadPercent int // of the requests, the others write: 100 reads, 0 writes
	Pattern     Pattern
	BlockBytes  int   // of a request, a multiple of 512; default 4096
	RegionBytes int64 // from the beginning of the export; default all of it
	Depth       int   // requests in flight on a connection; default 1
	Connections int   // each with a part of the region of its own; default 1
	FlushEvery  int   // a flush after so many writes of a connection; 0: never
	FUA         bool  // each write is durable when it is answered
	Seed        uint64

	// Rate is how many requests are due in a second, over all connections; 0: as
	// many as the server takes. A request's latency counts from when it was due,
	// so that one that had to wait behind slow ones counts as slow: a client that
	// leaves out what it could not send in time hides the worst.
	Rate float64

	Warmup   time.Duration // before Duration; not measured
	Duration time.Duration

	// Verify has every block that was written read back after the run.
	Verify bool

	// Progress, if it is set, is told now and then how far the run is.
	Progress func(Progress)

	sleep func(time.Duration) // default: precisely
}

// Progress is how far a run is.
type Progress struct {
	Elapsed   time.Duration // of warm-up and duration
	Requests  int64         // answered until now
	Verifying bool          // the requests are done, and read back are
	Verified  int64         // of
	ToVerify  int64         // blocks
}

// An OptionError says which options don't fit each other or the export.
type OptionError struct{ text string }

func (e *OptionError) Error() string { return e.text }

func unfit(format string, args ...any) error { return &OptionError{fmt.Sprintf(format, args...)} }

// ErrWrongData is what Run's error wraps when a block does not hold what was
// written there last.
var ErrWrongData = errors.New("wrong data")

// Run opens the connections, has each keep Depth requests in flight for the
// duration, and waits for the last. What began during the duration is in the
// result, whenever it ended: a server that hangs at the end is not let off.
//
// The first request that fails ends the run, as does ctx. The result has what
// was measured until then, beside the error; that of ctx is its cause.
func Run(ctx context.Context, dial func(context.Context) (*client.Client, error), o Options) (Result, error) {
	o.fillIn()
	if err := o.check(); err != nil {
		return Result{}, err
	}
	clients, err := dialAll(ctx, dial, o.Connections)
	if err != nil {
		return Result{}, err
	}
	defer func() {
		for _, c := range clients {
			_ = c.Close() // all that counts was answered
		}
	}()
	streams, err := o.streams(clients)
	if err != nil {
		return Result{}, err
	}
	r, err := drive(ctx, streams, &o)
	if err == nil && o.Verify {
		r.Verified, err = verify(ctx, streams, &o)
	}
	return r, err
}

func (o *Options) fillIn() {
	if o.BlockBytes == 0 {
		o.BlockBytes = 4096
	}
	if o.Depth == 0 {
		o.Depth = 1
	}
	if o.Connections == 0 {
		o.Connections = 1
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.sleep == nil {
		o.sleep = sleepPrecisely
	}
}

const (
	maxDepth       = 4096
	maxConnections = 256
	maxMemoryBytes = 1 << 30 // of all buffers; of what Verify remembers
)

func (o *Options) check() error {
	switch {
	case o.ReadPercent < 0 || o.ReadPercent > 100:
		return unfit("a share of %d %% reads: it must be from 0 to 100", o.ReadPercent)
	case o.BlockBytes < 0 || o.BlockBytes%sectorBytes != 0:
		return unfit("a block size of %d bytes: it must be a multiple of %d", o.BlockBytes, sectorBytes)
	case o.RegionBytes < 0:
		return unfit("a region of %d bytes: it must be more than nothing", o.RegionBytes)
	case o.Depth < 0 || o.Depth > maxDepth:
		return unfit("a depth of %d: it must be from 1 to %d", o.Depth, maxDepth)
	case o.Connections < 0 || o.Connections > maxConnections:
		return unfit("%d connections: it must be from 1 to %d", o.Connections, maxConnections)
	case int64(o.BlockBytes) > maxMemoryBytes/int64(o.Depth*o.Connections):
		return unfit("%d requests in flight of %d bytes take more than %d MiB", o.Depth*o.Connections, o.BlockBytes, maxMemoryBytes>>20)
	case o.FlushEvery < 0:
		return unfit("a flush every %d writes: it must be 0 (never) or more", o.FlushEvery)
	case !(o.Rate >= 0 && o.Rate <= 1e9):
		return unfit("a rate of %g requests a second: it must be from 0 (as fast as it can) to 1e9", o.Rate)
	case o.Warmup < 0 || o.Duration <= 0:
		return unfit("a duration of %v after %v: it must be more than 0, and 0 or more", o.Duration, o.Warmup)
	case o.ReadPercent == 100 && (o.Verify || o.FUA || o.FlushEvery > 0):
		return unfit("reads alone leave nothing to verify, to flush, or to write with FUA")
	}
	return nil
}

func dialAll(ctx context.Context, dial func(context.Context) (*client.Client, error), count int) ([]*client.Client, error) {
	clients := make([]*client.Client, count)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range clients {
		g.Go(func() (err error) {
			clients[i], err = dial(ctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		for _, c := range clients {
			if c != nil {
				_ = c.Abort() // the error that counts is that of the other
			}
		}
		return nil, err
	}
	return clients, nil
}

// streams gives each connection its part of the region.
func (o *Options) streams(clients []*client.Client) ([]*stream, error) {
	first, region := clients[0], o.RegionBytes
	if region == 0 {
		region = first.SizeBytes()
	}
	blocks := region / int64(o.BlockBytes) / int64(o.Connections)
	switch {
	case o.ReadPercent < 100 && first.ReadOnly():
		return nil, unfit("the export is read-only")
	case region > first.SizeBytes():
		return nil, unfit("the region has %d bytes, the export %d", region, first.SizeBytes())
	case int64(o.BlockBytes) > first.MaxBytes():
		return nil, unfit("a block size of %d bytes: the server takes requests of up to %d", o.BlockBytes, first.MaxBytes())
	case blocks < int64(o.Depth):
		return nil, unfit("%d bytes have fewer than %d blocks, one for each request in flight", region, o.Depth*o.Connections)
	case o.Verify && blocks > maxMemoryBytes/4/int64(o.Connections):
		return nil, unfit("to verify more than %d blocks takes more than %d MiB of memory; give a smaller region", maxMemoryBytes/4, maxMemoryBytes>>20)
	}
	filler := newFiller(o.Seed, o.BlockBytes)
	run := rand.Uint64() //nolint:gosec // to tell this run's blocks from those of another, not a secret
	streams := make([]*stream, len(clients))
	for i, c := range clients {
		streams[i] = newStream(c, o, i, blocks, filler, run)
	}
	return streams, nil
}

// grace is how long requests in flight are waited for after ctx.
const grace = time.Second

// progressEvery is how often Options.Progress is called.
const progressEvery = 200 * time.Millisecond

// drive runs the streams to their end.
func drive(ctx context.Context, streams []*stream, o *Options) (Result, error) {
	failing, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	began := time.Now()
	for _, s := range streams {
		s.begin(began, fail)
	}
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	report := func() {
		o.Progress(Progress{Elapsed: min(time.Since(began), o.Warmup+o.Duration), Requests: answered(streams)})
	}
	stop := failing.Done()
	var giveUp <-chan time.Time
	for _, s := range streams {
		for running := true; running; {
			select {
			case <-s.ended:
				running = false
			case <-ticker.C:
				report()
			case <-stop:
				stop = nil
				for _, s := range streams {
					s.stop()
				}
				timer := time.NewTimer(grace)
				defer timer.Stop()
				giveUp = timer.C
			case <-giveUp:
				for _, s := range streams {
					_ = s.client.Abort() // its requests end with an error then
				}
			}
		}
	}
	report()
	return result(streams, o), context.Cause(failing)
}

func answered(streams []*stream) (requests int64) {
	for _, s := range streams {
		requests += s.answered.Load()
	}
	return requests
}

package main

import (
	"context"
	"errors"
	"time"

	"github.com/tidemark/tidemark/load"
	"github.com/tidemark/tidemark/nbd/client"
)

// lightSteps run the core workloads with this repository's client: where fio has a
// processor for itself and is the limit, a lighter client tells servers apart.
func (b *bench) lightSteps() []step {
	return b.lineUp(lineup{"light", "unix", b.runLoad, fillBytes, workload.isCore})
}

// runLoad runs a workload with this repository's client, and returns what runFio
// does.
func (b *bench) runLoad(ctx context.Context, s *server, w workload) (map[string]float64, error) {
	used := coresUsed(ctx, s.process, seconds(b.ramp+b.runtime*0.1), seconds(b.ramp+b.runtime*0.9))
	o := load.Options{
		ReadPercent: w.readPercent, BlockBytes: w.blockBytes, RegionBytes: b.sizeBytes, Depth: w.depth, Connections: w.jobs,
		Warmup: seconds(b.ramp), Duration: seconds(b.runtime),
	}
	if w.flushes {
		o.FlushEvery = 1
	}
	r, err := load.Run(ctx, func(ctx context.Context) (*client.Client, error) { return s.dial(ctx, s.uri) }, o)
	if err != nil {
		return nil, err
	}
	all, timed := r.Total(), r.Writes
	switch {
	case r.Flushes.Requests > 0:
		timed = r.Flushes
	case r.Reads.Requests > 0:
		timed = r.Reads
	}
	if all.Requests == 0 {
		return nil, errors.New("nothing was answered in the time there was")
	}
	values := map[string]float64{
		"iops":           r.PerSecond(all.Requests),
		"bytesPerSecond": r.PerSecond(all.Bytes),
		"meanMicros":     micros(timed.Mean()),
		"p50Micros":      micros(timed.Percentile(50)),
		"p99Micros":      micros(timed.Percentile(99)),
		"p999Micros":     micros(timed.Percentile(99.9)),
		"maxMicros":      micros(timed.Max()),
	}
	addCPU(values, <-used)
	return values, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// fillTLS is fill over TLS, in requests of the same size.
func (b *bench) fillTLS(ctx context.Context, s *server) error {
	c, err := s.dial(ctx, s.uri)
	if err != nil {
		return err
	}
	piece := make([]byte, fillBytes)
	for i := range piece {
		piece[i] = byte(i)
	}
	for offset := int64(0); offset < b.sizeBytes && err == nil; offset += int64(len(piece)) {
		_, err = c.WriteAt(piece, offset)
	}
	return errors.Join(err, c.Close())
}

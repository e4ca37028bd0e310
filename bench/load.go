package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tidemark/tidemark/nbd/client"
)

// runLoad runs a workload with this repository's client, and returns what runFio
// does. The client shares the machine with the server, and takes more of it than
// fio: its ratios are smaller than those of fio would be, for all servers.
func (b *bench) runLoad(ctx context.Context, s *server, w workload) (map[string]float64, error) {
	begin := time.Now().Add(seconds(b.ramp))
	end := begin.Add(seconds(b.runtime))
	used := coresUsed(ctx, s.process, seconds(b.ramp+b.runtime*0.1), seconds(b.ramp+b.runtime*0.9))
	took := make([][]time.Duration, w.jobs*w.depth)
	g, ctx := errgroup.WithContext(ctx)
	for job := range w.jobs {
		c, err := s.dial(ctx, s.uri)
		if err != nil {
			return nil, errors.Join(err, g.Wait())
		}
		defer func() { _ = c.Close() }() // the server has answered all that was sent
		for i := range w.depth {
			g.Go(func() (err error) {
				took[job*w.depth+i], err = requests(ctx, c, w, begin, end)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	values := summary(slices.Concat(took...), b.runtime)
	values["bytesPerSecond"] = values["iops"] * float64(w.blockBytes)
	addCPU(values, <-used)
	return values, nil
}

// requests sends one after the other until the end, and returns what those took
// that ended after the begin; a write with its flush is one.
func requests(ctx context.Context, c *client.Client, w workload, begin, end time.Time) (took []time.Duration, err error) {
	block := make([]byte, w.blockBytes)
	blocks := c.SizeBytes() / int64(w.blockBytes)
	for ctx.Err() == nil {
		sent := time.Now()
		offset := rand.Int64N(blocks) * int64(w.blockBytes)
		if rand.IntN(100) < w.readPercent {
			_, err = c.ReadAt(block, offset)
		} else if _, err = c.WriteAt(block, offset); err == nil && w.flushes {
			err = c.Flush()
		}
		if err != nil {
			return nil, err
		}
		now := time.Now()
		if now.After(end) {
			return took, nil
		}
		if now.After(begin) {
			took = append(took, now.Sub(sent))
		}
	}
	return nil, ctx.Err()
}

func summary(took []time.Duration, runtime float64) map[string]float64 {
	slices.Sort(took)
	micros := make([]float64, len(took))
	sum := 0.0
	for i, d := range took {
		micros[i] = float64(d) / float64(time.Microsecond)
		sum += micros[i]
	}
	return map[string]float64{
		"iops": float64(len(took)) / runtime, "meanMicros": sum / float64(max(1, len(took))),
		"p50Micros": percentile(micros, 0.5), "p99Micros": percentile(micros, 0.99), "p999Micros": percentile(micros, 0.999),
		"maxMicros": percentile(micros, 1),
	}
}

// fillTLS is fill over TLS, in requests of the same size.
func (b *bench) fillTLS(ctx context.Context, s *server) error {
	c, err := s.dial(ctx, s.uri)
	if err != nil {
		return err
	}
	piece := make([]byte, 64<<10)
	for i := range piece {
		piece[i] = byte(i)
	}
	for offset := int64(0); offset < b.sizeBytes && err == nil; offset += int64(len(piece)) {
		_, err = c.WriteAt(piece, offset)
	}
	return errors.Join(err, c.Close())
}

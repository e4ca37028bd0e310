package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tidemark/tidemark/nbd/client"
)

const (
	verifyBytes = 64 << 10 // of a request
	writers     = 8
)

// verifySteps preserve in the middle of writes, and look at what is in the snapshot.
// The servers of the other sections are verified when these end.
func (b *bench) verifySteps() []step {
	return []step{{"verify a snapshot taken in the middle of writes", 3 * b.verifyTakes(1), func(ctx context.Context) error {
		s, err := b.startFilled(ctx, peers[0], "unix", fillBytes)
		if err != nil {
			return err
		}
		return errors.Join(b.verifySnapshot(ctx, s), s.end())
	}}}
}

// verifyTakes is about how long some servers take to be verified.
func (b *bench) verifyTakes(servers int) time.Duration {
	return seconds(float64(servers) * 3 * float64(b.sizeBytes) / (1 << 30))
}

// verifyServer writes a pattern over all of a volume and reads it back.
func (b *bench) verifyServer(ctx context.Context, s *server, what string) error {
	err := s.writePattern(ctx, 1, func(int64, bool) {})
	if err == nil {
		err = s.readPattern(ctx, s.uri, func(int64) (oldest, newest uint64) { return 1, 1 })
	}
	if err != nil {
		return fatal{fmt.Errorf("%s does not hold what was written, %s: %w", s.name, what, err)}
	}
	return b.add(record{Section: "verify", Case: what, Peer: s.name})
}

// verifySnapshot preserves twice: a volume that rests, and one that is being
// overwritten. In the second snapshot a write that was answered before the
// preserve began is there, one that began after its answer is not, and every other
// is there whole or not at all.
func (b *bench) verifySnapshot(ctx context.Context, s *server) error {
	if err := s.writePattern(ctx, 1, func(int64, bool) {}); err != nil {
		return err
	}
	if err := s.snapshot(ctx, 1); err != nil {
		return err
	}
	pieces := b.sizeBytes / verifyBytes
	before, after := make([]atomic.Bool, pieces), make([]atomic.Bool, pieces) // the preserve: answered, begun
	var began, ended atomic.Bool
	var done atomic.Int64
	g, within := errgroup.WithContext(ctx)
	middle := make(chan struct{})
	g.Go(func() error {
		return s.writePattern(within, 2, func(piece int64, answered bool) {
			if !answered {
				after[piece].Store(ended.Load())
				return
			}
			before[piece].Store(!began.Load())
			if done.Add(1) == pieces/2 {
				close(middle)
			}
		})
	})
	g.Go(func() error {
		select {
		case <-middle:
		case <-within.Done():
			return within.Err()
		}
		began.Store(true)
		err := s.snapshot(within, 2)
		ended.Store(true)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return b.readSnapshots(ctx, s, before, after)
}

func (b *bench) readSnapshots(ctx context.Context, s *server, before, after []atomic.Bool) error {
	for _, look := range []struct {
		what, export string
		holds        func(piece int64) (oldest, newest uint64)
	}{
		{"the snapshot of a volume that rested", "v@p1", func(int64) (uint64, uint64) { return 1, 1 }},
		{"the snapshot in the middle of writes", "v@p2", func(piece int64) (oldest, newest uint64) {
			oldest, newest = 1, 2
			if before[piece].Load() {
				oldest = 2
			}
			if after[piece].Load() {
				newest = 1
			}
			return oldest, newest
		}},
		{"the volume after both", "v", func(int64) (uint64, uint64) { return 2, 2 }},
	} {
		if err := s.readPattern(ctx, s.place.uri(look.export), look.holds); err != nil {
			return fatal{fmt.Errorf("%s: %w", look.what, err)}
		}
		if err := b.add(record{Section: "verify", Case: look.what, Peer: s.name}); err != nil {
			return err
		}
	}
	return nil
}

// pattern is what a generation writes into a piece: each 4 KiB of it says which.
func pattern(piece int64, generation uint64) []byte {
	block := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(piece)), generation)
	return bytes.Repeat(block, verifyBytes/len(block))
}

// writePattern writes a generation into all pieces, and flushes. note is called
// before a piece is sent and when it is answered.
func (s *server) writePattern(ctx context.Context, generation uint64, note func(piece int64, answered bool)) error {
	return s.eachPiece(ctx, s.uri, func(c *client.Client, piece int64) error {
		note(piece, false)
		_, err := c.WriteAt(pattern(piece, generation), piece*verifyBytes)
		note(piece, true)
		return err
	}, (*client.Client).Flush)
}

// readPattern reads all pieces: each must be, as a whole, of one of the generations
// that it may be of.
func (s *server) readPattern(ctx context.Context, uri string, holds func(piece int64) (oldest, newest uint64)) error {
	return s.eachPiece(ctx, uri, func(c *client.Client, piece int64) error {
		got := make([]byte, verifyBytes)
		if _, err := c.ReadAt(got, piece*verifyBytes); err != nil {
			return err
		}
		oldest, newest := holds(piece)
		for generation := oldest; generation <= newest; generation++ {
			if bytes.Equal(got, pattern(piece, generation)) {
				return nil
			}
		}
		return fmt.Errorf("at %d: not what generations %d to %d wrote", piece*verifyBytes, oldest, newest)
	}, func(*client.Client) error { return nil })
}

// eachPiece calls do for the pieces of an export, several at a time.
func (s *server) eachPiece(ctx context.Context, uri string, do func(*client.Client, int64) error, last func(*client.Client) error) error {
	c, err := s.dial(ctx, uri)
	if err != nil {
		return err
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range writers {
		g.Go(func() error {
			for ctx.Err() == nil {
				piece := next.Add(1) - 1
				if piece >= s.place.sizeBytes/verifyBytes {
					return nil
				}
				if err := do(c, piece); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return errors.Join(g.Wait(), last(c), c.Close())
}

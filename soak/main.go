// Command soak lets a real server live a long, hard day and looks at what becomes
// of it: clients of every scope write and check what they wrote, volumes and groups
// are preserved every second and on schedules, snapshots are read back, verified,
// cloned, drilled, held, sent as streams, rolled back to under clients, and deleted
// with their volumes, the server scrubs, is stopped and killed, and other clients
// behave badly. In the second half the server is let live, and its memory,
// goroutines, file descriptors and the disk that it takes must stay flat.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

type options struct {
	duration time.Duration
	groups   int
	program  string
	dir      string
}

func main() {
	var o options
	flag.DurationVar(&o.duration, "duration", time.Hour, "how `LONG` it lasts")
	flag.IntVar(&o.groups, "groups", 2, "`NUMBER` of groups in use at a time, each of two volumes")
	flag.StringVar(&o.program, "program", "bin/tidemark", "the server's `PROGRAM`")
	flag.StringVar(&o.dir, "dir", "", "`DIRECTORY` to work in; a temporary one if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

// counts are what was done; the report shows them.
type counts struct {
	reads, writes, trims, flushes, sessions, processes, pairs            atomic.Int64
	preserves, aborted, snapshotsRead, pairsRead, verified               atomic.Int64
	clones, drills, holds, refused, streams, rollbacks, scheduled, letGo atomic.Int64
	generations, kills, stops, attacks                                   atomic.Int64
}

func run(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "tidemark-soak-"); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				err = os.RemoveAll(o.dir)
			} else {
				err = fmt.Errorf("%w (all is left in %s)", err, o.dir)
			}
		}()
	}
	if o.program, err = filepath.Abs(o.program); err != nil {
		return err
	}
	var done counts
	s := &server{program: o.program, dir: o.dir}
	if err := s.start(ctx); err != nil {
		return err
	}
	w := &watch{server: s}
	err = live(ctx, s, w, o, &done)
	if err == nil {
		err = s.stop()
	} else {
		err = errors.Join(err, s.kill())
	}
	if err == nil {
		err = s.check()
	}
	return errors.Join(err, w.report(os.Stdout, &done), w.flat())
}

// live runs everything at once, for the duration. The first half has ends and
// starts of the server in it; the second is one life.
func live(ctx context.Context, s *server, w *watch, o options, done *counts) error {
	ctx, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.endAndStart(ctx, o.duration/2, done) })
	g.Go(func() error { return w.run(ctx, o.duration) })
	g.Go(func() error { return attack(ctx, s, done) })
	for i := range o.groups {
		g.Go(func() error {
			for generation := 0; ctx.Err() == nil; generation++ {
				name := fmt.Sprintf("v%d-%d", i, generation)
				if err := liveAGeneration(ctx, s, name, done); err != nil {
					return fmt.Errorf("volumes %s: %w", name, err)
				}
				done.generations.Add(1)
			}
			return nil
		})
	}
	return g.Wait()
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

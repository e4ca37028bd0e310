package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	goalPreserveP50 = 3.0  // ms
	goalPreserveP99 = 15.0 // ms
	preserveEvery   = 100 * time.Millisecond
	underLoad       = ", random writes at depth 32" // ends the names of the cases with a load
)

// preserveSteps preserve volumes of all sizes, and many at once, with no load and
// with writes to one of them.
func (b *bench) preserveSteps() (steps []step) {
	for _, loaded := range []bool{false, true} {
		for _, c := range []struct {
			volumes, count int
			sizeGiB        int64
			size           string
		}{{1, 300, 1, "1 GiB"}, {1, 300, 1 << 10, "1 TiB"}, {1, 300, 16 << 10, "16 TiB"}, {10, 200, 1, "1 GiB"}, {100, 100, 1, "1 GiB"}} {
			name := fmt.Sprintf("%d x %s", c.volumes, c.size)
			if loaded {
				name += underLoad
			}
			takes := b.fillTakes() + time.Duration(c.count)*(preserveEvery+10*time.Millisecond) + seconds(float64(c.volumes)/20)
			steps = append(steps, step{"preserve " + name, takes, func(ctx context.Context) error {
				return b.preserves(ctx, name, c.volumes, c.count, c.sizeGiB<<30, loaded)
			}})
		}
	}
	return steps
}

// preserves has one server preserve volumes every so often; each takes a write
// between, so that there is something to keep.
func (b *bench) preserves(ctx context.Context, name string, volumes, count int, sizeBytes int64, loaded bool) (err error) {
	p, err := b.newPlace("unix")
	if err != nil {
		return err
	}
	p.sizeBytes = sizeBytes
	s, err := b.run(ctx, peers[0], p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	names := []string{"v"}
	for i := range volumes - 1 {
		names = append(names, otherVolume(i))
		if err := s.create(ctx, names[i+1], sizeBytes); err != nil {
			return err
		}
	}
	loadEnded := make(chan error, 1)
	syncs := "fsync" // what the values are named by
	if loaded {
		load, endLoad := context.WithCancel(ctx)
		go func() {
			defer close(loadEnded)
			_, err := output(load, "fio", workloadNamed("random write, depth 32").fioArgs(s.uri, b.size, 0, 3600)...)
			loadEnded <- err
		}()
		defer func() {
			endLoad()
			for range loadEnded { // ended from outside: its error says nothing
			}
		}()
		if err := awaitData(ctx, s.files, loadEnded); err != nil {
			return err
		}
		syncs = "loadedFsync"
	}
	fsync, err := fsyncMillis(p.file("fsync"))
	if err != nil {
		return err
	}
	var millis []float64
	for i := range count {
		if err := pause(ctx, preserveEvery); err != nil {
			return err
		}
		if !loaded {
			if err := s.writeBlocks(ctx, []int{i}); err != nil {
				return err
			}
		}
		took, err := s.preserve(ctx, i, names...)
		if err != nil {
			return err
		}
		millis = append(millis, took.Seconds()*1e3)
	}
	select {
	case err := <-loadEnded:
		return fmt.Errorf("the load ended before the preserves did: %w", err)
	default:
	}
	slices.Sort(millis)
	return b.add(record{Section: "preserve", Case: name, Peer: "tidemark", Values: map[string]float64{
		"p50Millis": percentile(millis, 0.5), "p99Millis": percentile(millis, 0.99), "maxMillis": percentile(millis, 1), "preserves": float64(count),
		syncs + "P50Millis": percentile(fsync, 0.5), syncs + "P99Millis": percentile(fsync, 0.99),
	}})
}

// awaitData returns when one of the files that a pattern names holds data, for then
// the load beside it has begun.
func awaitData(ctx context.Context, pattern string, loadEnded <-chan error) error {
	for {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			if held, err := holdsData(file); err != nil || held {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-loadEnded:
			return fmt.Errorf("the load ended before it wrote anything: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// holdsData tells whether there is more in a file than a hole.
func holdsData(name string) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	_, err = unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	return err == nil, err
}

// fsyncMillis is what this disk takes for a sync of 4 KiB, in order, and removes the
// file that it tried with.
func fsyncMillis(name string) (millis []float64, err error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(name)) }()
	block := make([]byte, 4096)
	for i := range 200 {
		begin := time.Now()
		if _, err := f.WriteAt(block, int64(i%16)*4096); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		millis = append(millis, time.Since(begin).Seconds()*1e3)
	}
	slices.Sort(millis)
	return millis, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/nbd/client"
)

// What the directory of section scale holds.
const (
	scaleSnapshots = 1000
	scaleBlocks    = 1000 // written before each
	scaleVolumes   = 1000
	scaleBytes     = 1 << 40
	scaleTimes     = 5  // of each command
	scaleDeletes   = 50 // in one command
)

// bigVolume is one of 16 TiB.
const bigVolume, bigBytes = "big", 16 << 40

const (
	goalOpenSeconds   = 2.0
	goalMemoryMiB     = 1024.0
	goalCommandMillis = 100.0 // half of them, with the start of the program
)

// scaleGoal is the most that a value of a case may be, 0 if that is not said.
func scaleGoal(name, value string) float64 {
	switch {
	case value == "MiB":
		return goalMemoryMiB
	case name == "open":
		return goalOpenSeconds
	case value == "p50Millis" && !strings.HasPrefix(name, "list") && name != idleCommand:
		return goalCommandMillis
	}
	return 0
}

// idleCommand is what others are to be held against.
const idleCommand = "a command that does nothing"

// scaleSteps make a large directory and do with it what people do.
func (b *bench) scaleSteps() []step {
	var s *server
	on := func(run func(context.Context, *server) error) func(context.Context) error {
		return func(ctx context.Context) error {
			if s == nil {
				return nil // said before
			}
			return run(ctx, s)
		}
	}
	return []step{
		{"scale: clone before the seal", scaleTimes * b.fillTakes(), b.cloneUnsealed},
		{"scale: make a large directory", seconds(320), func(ctx context.Context) (err error) {
			s, err = b.largeDirectory(ctx)
			return err
		}},
		{"scale: open it", seconds(20), on(b.reopen)},
		{"scale: commands", seconds(20), on(b.scaleCommands)},
		{"scale: delete its snapshots", seconds(300), on(b.deleteAll)},
		{"scale: end", seconds(5), on(func(context.Context, *server) error { return s.end() })},
	}
}

// cloneUnsealed clones a full volume as soon as it is preserved, when all of it has
// yet to be read for the checksums of its snapshot; and tells how long that takes.
func (b *bench) cloneUnsealed(ctx context.Context) (err error) {
	s, err := b.startFilled(ctx, peers[0], "unix", fillBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	var clone, sealed []float64
	for i := range scaleTimes {
		snapshot := "v@s" + strconv.Itoa(i)
		if i > 0 {
			if err := b.fill(ctx, s, fillBytes); err != nil {
				return err
			}
		}
		if err := s.flush(ctx); err != nil {
			return err
		}
		if _, err := s.tidemark(ctx, "preserve", "v", "--name", "s"+strconv.Itoa(i)); err != nil {
			return err
		}
		begin := time.Now()
		if _, err := s.tidemark(ctx, "clone", snapshot, "c"+strconv.Itoa(i)); err != nil {
			return err
		}
		clone = append(clone, time.Since(begin).Seconds()*1e3)
		if _, err := s.tidemark(ctx, "preserve", "v", "--name", "t"+strconv.Itoa(i), "--until", "sealed"); err != nil { // waits for the older one too
			return err
		}
		sealed = append(sealed, time.Since(begin).Seconds())
	}
	slices.Sort(clone)
	slices.Sort(sealed)
	return errors.Join(
		b.add(record{Section: "scale", Case: fmt.Sprintf("clone of a full volume of %s just preserved", b.size), Peer: "tidemark", Values: map[string]float64{
			"p50Millis": percentile(clone, 0.5), "maxMillis": percentile(clone, 1)}}),
		b.add(record{Section: "scale", Case: "until that snapshot is sealed", Peer: "tidemark", Values: map[string]float64{"seconds": percentile(sealed, 0.5)}}))
}

func (s *server) flush(ctx context.Context) error {
	c, err := client.Dial(ctx, s.uri)
	if err != nil {
		return err
	}
	return errors.Join(c.Flush(), c.Close())
}

func (b *bench) largeDirectory(ctx context.Context) (*server, error) {
	p, err := b.newPlace("unix")
	if err != nil {
		return nil, err
	}
	p.sizeBytes, p.flags = scaleBytes, []string{"--scrub-every", "0"}
	s, err := b.run(ctx, peers[0], p)
	if err != nil {
		return nil, err
	}
	for i := range scaleVolumes {
		if err := s.create(ctx, otherVolume(i), scaleBytes); err != nil {
			return nil, errors.Join(err, s.end())
		}
	}
	if err := s.scatter(ctx, scaleSnapshots, scaleBlocks); err != nil {
		return nil, errors.Join(err, s.end())
	}
	if err := s.makeBig(ctx); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, b.scaleMemory(s, "memory with all of it made")
}

// makeBig makes the volume of 16 TiB with a snapshot.
func (s *server) makeBig(ctx context.Context) error {
	if err := s.create(ctx, bigVolume, bigBytes); err != nil {
		return err
	}
	_, err := s.tidemark(ctx, "preserve", bigVolume, "--name", "s0", "--until", "sealed")
	return err
}

// reopen starts the server again, on what the disk cache still has.
func (b *bench) reopen(ctx context.Context, s *server) error {
	for range scaleTimes {
		if err := s.process.stop(); err != nil {
			return err
		}
		begin := time.Now()
		if err := s.again(ctx); err != nil {
			return err
		}
		if err := b.add(record{Section: "scale", Case: "open", Peer: "tidemark", Values: map[string]float64{"seconds": time.Since(begin).Seconds()}}); err != nil {
			return err
		}
	}
	return b.scaleMemory(s, "memory after the open")
}

// scaleMemory is what the server has in memory of its own, not of files.
func (b *bench) scaleMemory(s *server, name string) error {
	mib, err := s.memoryMiB()
	if err != nil {
		return err
	}
	return b.add(record{Section: "scale", Case: name, Peer: "tidemark", Values: map[string]float64{"MiB": mib}})
}

func (s *server) memoryMiB() (float64, error) {
	text := fieldOf(filepath.Join("/proc", strconv.Itoa(s.process.pid), "status"), "RssAnon")
	kib, err := strconv.ParseFloat(strings.TrimSuffix(text, " kB"), 64)
	if err != nil {
		return 0, fmt.Errorf("memory of the server: %q: %w", text, err)
	}
	return kib / 1024, nil
}

// mostMemory looks at it until ctx ends, and returns the largest.
func (s *server) mostMemory(ctx context.Context) float64 {
	most := 0.0
	for pause(ctx, 200*time.Millisecond) == nil {
		if mib, err := s.memoryMiB(); err == nil {
			most = max(most, mib)
		}
	}
	return most
}

func (b *bench) scaleCommands(ctx context.Context, s *server) error {
	for _, c := range []struct {
		name string
		args func(i string) []string
	}{
		{idleCommand, func(string) []string { return []string{"version"} }},
		{"preserve", func(i string) []string { return []string{"preserve", "v", "--name", "n" + i, "--until", "sealed"} }},
		{"clone of the newest snapshot", func(i string) []string { return []string{"clone", "v@last", "c" + i} }},
		{"clone of the oldest snapshot", func(i string) []string { return []string{"clone", "v@s0", "d" + i} }},
		{"rollback to the newest snapshot", func(i string) []string { return []string{"rollback", "v@last", "--keep", "k" + i} }},
		{"diff of nothing", func(string) []string { return []string{"snapshot", "diff", "v@n0", "v@n1"} }},
		{"preserve of 16 TiB", func(i string) []string {
			return []string{"preserve", bigVolume, "--name", "n" + i, "--until", "sealed"}
		}},
		{"clone of 16 TiB", func(i string) []string { return []string{"clone", bigVolume + "@s0", "b" + i} }},
		{"rollback of 16 TiB", func(i string) []string { return []string{"rollback", bigVolume + "@s0", "--keep", "k" + i} }},
		{"diff of nothing, of 16 TiB", func(string) []string { return []string{"snapshot", "diff", bigVolume + "@n0", bigVolume + "@n1"} }},
		{"list of the snapshots", func(string) []string { return []string{"snapshot", "list", "v"} }},
		{"list of the volumes", func(string) []string { return []string{"volume", "list"} }},
	} {
		millis, err := s.commandMillis(ctx, c.args)
		if err != nil {
			return err
		}
		if err := b.add(record{Section: "scale", Case: c.name, Peer: "tidemark", Values: map[string]float64{
			"p50Millis": percentile(millis, 0.5), "maxMillis": percentile(millis, 1),
		}}); err != nil {
			return err
		}
	}
	return b.scaleMemory(s, "memory with the clones")
}

// deleteAll deletes the snapshots in random order, and waits until what they leave
// is given back and folded.
func (b *bench) deleteAll(ctx context.Context, s *server) error {
	watched, end := context.WithCancel(ctx)
	defer end()
	most := make(chan float64, 1)
	go func() { most <- s.mostMemory(watched) }()
	begin := time.Now()
	for some := range slices.Chunk(rand.Perm(scaleSnapshots), scaleDeletes) {
		args := []string{"snapshot", "delete"}
		for _, i := range some {
			args = append(args, fmt.Sprintf("v@s%d", i))
		}
		if _, err := s.tidemark(ctx, args...); err != nil {
			return err
		}
	}
	deleted := time.Since(begin)
	if _, err := s.tidemark(ctx, "snapshot", "delete", "v@last", "--wait"); err != nil {
		return err
	}
	end()
	files, err := os.ReadDir(s.place.file("data/images"))
	if err != nil {
		return err
	}
	return errors.Join(
		b.add(record{Section: "scale", Case: fmt.Sprintf("delete of %d snapshots", scaleSnapshots), Peer: "tidemark", Values: map[string]float64{"seconds": deleted.Seconds()}}),
		b.add(record{Section: "scale", Case: "until all is given back and folded", Peer: "tidemark", Values: map[string]float64{"seconds": time.Since(begin).Seconds(), "files": float64(len(files))}}),
		b.add(record{Section: "scale", Case: "memory at its largest meanwhile", Peer: "tidemark", Values: map[string]float64{"MiB": <-most}}))
}

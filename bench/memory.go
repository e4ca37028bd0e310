package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/load"
	"github.com/tidemark/tidemark/nbd/client"
)

// Section memory has a volume of which every block was written, in random order, with
// a snapshot after each part of it: the most that tables and indexes have to say of a
// volume without a block that was written twice. It writes zeros, which take no room
// on the disk and as much in memory as data.
const (
	memoryBlocks    = 1 << memoryBits // 1 TiB
	memorySnapshots = 1000
	memoryBits      = 28
	memoryDepth     = 256
)

// diffOfTwo has much to tell: it is held against no goal.
const diffOfTwo = "diff of two snapshots that follow each other, as JSON"

func (b *bench) memorySteps() []step {
	var s *server
	return []step{
		{"memory: write every block of a volume", seconds(3000), func(ctx context.Context) (err error) {
			s, err = b.writtenEverywhere(ctx)
			return err
		}},
		{"memory: what it is like then", seconds(120), func(ctx context.Context) error {
			if s == nil {
				return nil // said before
			}
			return errors.Join(b.writtenCommands(ctx, s), s.end())
		}},
	}
}

func (b *bench) writtenEverywhere(ctx context.Context) (s *server, err error) {
	p, err := b.newPlace("unix")
	if err != nil {
		return nil, err
	}
	p.sizeBytes, p.flags = memoryBlocks*4096, []string{"--scrub-every", "0"}
	if s, err = b.run(ctx, peers[0], p); err != nil {
		return nil, err
	}
	watched, end := context.WithCancel(ctx)
	defer end()
	most := make(chan float64, 1)
	go func() { most <- s.mostMemory(watched) }()
	begin, next := time.Now(), int64(0)
	for i := range memorySnapshots {
		last := memoryBlocks * int64(i+1) / memorySnapshots
		if err := s.zeroBlocks(ctx, next, last); err != nil {
			return nil, errors.Join(err, s.end())
		}
		next = last
		if _, err := s.tidemark(ctx, "preserve", "v", "--name", "s"+strconv.Itoa(i), "--until", "sealed"); err != nil {
			return nil, errors.Join(err, s.end())
		}
	}
	took := time.Since(begin)
	end()
	return s, errors.Join(
		b.addMemory("memory at its largest, while it is written and preserved", "MiB", <-most),
		b.addMemory("until all was written and sealed", "seconds", took.Seconds()))
}

func (b *bench) addMemory(name, value string, v float64) error {
	return b.add(record{Section: "memory", Case: name, Peer: "tidemark", Values: map[string]float64{value: v}})
}

// anyBlock is the i-th block in an order that looks random and has each once.
func anyBlock(i int64) int64 {
	const mask = memoryBlocks - 1
	x := uint64(i)
	for _, odd := range []uint64{0x9e3779b1, 0x85ebca6b, 0xc2b2ae35} {
		x = x * odd & mask
		x ^= x >> (memoryBits / 2)
	}
	return int64(x)
}

// zeroBlocks writes zeros over the blocks from the first to before the last of that
// order.
func (s *server) zeroBlocks(ctx context.Context, first, last int64) error {
	c, err := client.Dial(ctx, s.uri)
	if err != nil {
		return err
	}
	slots := int64(min(memoryDepth, last-first))
	requests, ended := make([]*client.Request, slots), make(chan error, slots)
	next := first
	for i := range requests {
		requests[i] = &client.Request{Op: client.Zero, Length: 4096, Off: anyBlock(next) * 4096, Done: func(r *client.Request) bool {
			if r.Err != nil || next == last {
				ended <- r.Err
				return false
			}
			r.Off, next = anyBlock(next)*4096, next+1 // Done runs on one goroutine
			return true
		}}
		next++
	}
	if err := c.Start(requests...); err != nil {
		return errors.Join(err, c.Close())
	}
	for range slots {
		err = errors.Join(err, <-ended)
	}
	return errors.Join(err, c.Close())
}

// writtenCommands measures what a volume like that makes of an open, of reads, and of
// commands.
func (b *bench) writtenCommands(ctx context.Context, s *server) error {
	if err := s.process.stop(); err != nil {
		return err
	}
	begin := time.Now()
	if err := s.again(ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	mib, err := s.memoryMiB()
	if err := errors.Join(err, b.addMemory("open", "seconds", took.Seconds()), b.addMemory("memory after an open", "MiB", mib)); err != nil {
		return err
	}
	watched, end := context.WithCancel(ctx)
	defer end()
	most := make(chan float64, 1)
	go func() { most <- s.mostMemory(watched) }()
	if err := b.readsEverywhere(ctx, s); err != nil {
		return err
	}
	for _, c := range []struct {
		name string
		args func(i string) []string
	}{
		{"preserve", func(i string) []string { return []string{"preserve", "v", "--name", "n" + i, "--until", "sealed"} }},
		{"clone of the newest snapshot", func(i string) []string { return []string{"clone", "v@s999", "c" + i} }},
		{"clone of the oldest snapshot", func(i string) []string { return []string{"clone", "v@s0", "d" + i} }},
		{"rollback to the newest snapshot", func(i string) []string { return []string{"rollback", "v@s999", "--keep", "k" + i} }},
		{"diff of nothing", func(string) []string { return []string{"snapshot", "diff", "v@n0", "v@n1"} }},
		{diffOfTwo, func(string) []string { return []string{"snapshot", "diff", "v@s500", "v@s501", "--json"} }},
	} {
		millis, err := s.commandMillis(ctx, c.args)
		if err != nil {
			return err
		}
		if err := b.addMemory(c.name, "p50Millis", percentile(millis, 0.5)); err != nil {
			return err
		}
	}
	end()
	return b.addMemory("memory with random reads", "MiB", <-most)
}

// readsEverywhere measures random reads of that volume, and of one whose index takes
// nothing.
func (b *bench) readsEverywhere(ctx context.Context, s *server) error {
	rate, err := readRate(ctx, s.uri)
	if err != nil {
		return err
	}
	if err := errors.Join(b.addMemory("random reads of all of it, depth 32", "perSecond", rate), s.create(ctx, "one", memoryBlocks*4096)); err != nil {
		return err
	}
	uri := strings.Replace(s.uri, "/v?", "/one?", 1)
	c, err := client.Dial(ctx, uri)
	if err != nil {
		return err
	}
	if err := errors.Join(c.WriteZeroes(0, memoryBlocks*4096, false), c.Close()); err != nil {
		return err
	}
	if rate, err = readRate(ctx, uri); err != nil {
		return err
	}
	return b.addMemory("the same of a volume in one image", "perSecond", rate)
}

// commandMillis runs a command a few times, and returns how long each took, sorted.
func (s *server) commandMillis(ctx context.Context, args func(i string) []string) (millis []float64, err error) {
	for i := range scaleTimes {
		begin := time.Now()
		if _, err := s.tidemark(ctx, args(strconv.Itoa(i))...); err != nil {
			return nil, err
		}
		millis = append(millis, time.Since(begin).Seconds()*1e3)
	}
	slices.Sort(millis)
	return millis, nil
}

// readRate is of random reads over all of an export, a while after they began.
func readRate(ctx context.Context, uri string) (perSecond float64, err error) {
	dial := func(ctx context.Context) (*client.Client, error) { return client.Dial(ctx, uri) }
	r, err := load.Run(ctx, dial, load.Options{ReadPercent: 100, Depth: 32, Warmup: 20 * time.Second, Duration: 10 * time.Second})
	if err != nil {
		return 0, fmt.Errorf("random reads: %w", err)
	}
	return float64(r.Reads.Requests) / r.Took.Seconds(), nil
}

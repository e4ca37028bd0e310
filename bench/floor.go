package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	floorRequests = 50_000 // of each kind, in each round
	floorFlushes  = 1000
)

// floorSteps measure what no server can do without: moving the bytes.
func (b *bench) floorSteps() []step {
	return []step{
		{"floor: system calls of a request", seconds(2 + 5*float64(b.rounds)), b.floor},
		{"allocations of a request", seconds(30), b.allocations},
	}
}

// floor is the CPU of one thread for a 4 KiB transfer between page cache and
// memory, and for 32 of them through a unix socket; and the time that passes with a
// write to a place that is there, and to one that is new.
func (b *bench) floor(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "floor")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	full := filepath.Join(dir, "full")
	if err := writeAll(full, b.sizeBytes); err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	for round := range b.rounds {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The empty files stay to the end: the pages of one that is removed would be
		// those that the next gets, and not be new to the machine.
		empty := filepath.Join(dir, fmt.Sprintf("empty%d", round))
		values, err := b.floorRound(full, empty)
		if err == nil {
			err = socketFloor(values)
		}
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		if err := b.add(record{Section: "floor", Case: "system calls", Round: round, Values: values}); err != nil {
			return err
		}
	}
	return nil
}

// writeAll makes a file that is full, in pieces as large as those that fill volumes.
func writeAll(name string, sizeBytes int64) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	piece := make([]byte, fillBytes)
	for offset := int64(0); offset < sizeBytes && err == nil; offset += int64(len(piece)) {
		_, err = file.WriteAt(piece, offset)
	}
	return errors.Join(err, file.Close())
}

// floorRound reads and writes a full file, and writes to files that it makes: each
// place once, so that in those each is a page that is new to the page cache, and a
// block to allocate.
func (b *bench) floorRound(full, empty string) (map[string]float64, error) {
	values := make(map[string]float64)
	block := make([]byte, 4096)
	block[0] = 1 // no file system takes it for a hole
	parts := [][]byte{block}
	read := func(fd int, offset int64) error {
		_, err := unix.Preadv2(fd, parts, offset, unix.RWF_NOWAIT)
		if errors.Is(err, unix.EAGAIN) { // the page was evicted
			_, err = unix.Preadv2(fd, parts, offset, 0)
		}
		return err
	}
	write := func(fd int, offset int64) error {
		_, err := unix.Pwritev2(fd, parts, offset, 0)
		return err
	}
	flushed := func(fd int, offset int64) error {
		if err := write(fd, offset); err != nil {
			return err
		}
		return unix.Fdatasync(fd)
	}
	for _, l := range []struct {
		file         string
		one          func(fd int, offset int64) error
		most         int
		cpu, elapsed string // the names of the values
	}{
		{full, read, floorRequests, "preadMicros", ""},
		{full, write, floorRequests, "pwriteMicros", "writeThereMicros"},
		{empty, write, floorRequests, "pwriteNewMicros", "writeNewMicros"},
		{full, flushed, floorFlushes, "", "flushThereMicros"},
		{empty + "-flushed", flushed, floorFlushes, "", "flushNewMicros"},
	} {
		took, err := eachPlace(l.file, b.sizeBytes, randomPlaces(b.sizeBytes, l.most), l.one)
		if err != nil {
			return nil, err
		}
		if l.cpu != "" {
			values[l.cpu] = took.cpuMicros
		}
		if l.elapsed != "" {
			values[l.elapsed] = took.micros
		}
	}
	return values, nil
}

// randomPlaces are blocks of a file in random order, none of them twice, and no more
// than some.
func randomPlaces(sizeBytes int64, most int) []int {
	places := rand.Perm(int(sizeBytes / 4096))
	return places[:min(most, len(places))]
}

// eachPlace calls one for blocks of a file, which it makes if there is none. When it
// begins, nothing waits to be written to the disk, and what the file holds is in
// memory.
func eachPlace(name string, sizeBytes int64, places []int, one func(fd int, offset int64) error) (took spent, err error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return spent{}, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	fd := int(file.Fd())
	if err := errors.Join(file.Truncate(sizeBytes), unix.Syncfs(fd), preRead(name)); err != nil {
		return spent{}, err
	}
	return threadTime(len(places), func(i int) error { return one(fd, int64(places[i])*4096) })
}

// socketFloor has one end send 32 messages of 4 KiB and a header at a time, and the
// other receive as many, and counts what each end's thread takes for one.
func socketFloor(values map[string]float64) error {
	const batch, messageBytes = 32, 16 + 4096
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	rounds := floorRequests / batch
	sent := make(chan error, 1)
	go func() {
		buffer := make([]byte, batch*messageBytes)
		took, err := threadTime(rounds, func(int) error { return writeFull(ends[0], buffer) })
		values["sendMicros"] = took.cpuMicros / batch
		sent <- errors.Join(err, unix.Close(ends[0]))
	}()
	buffer := make([]byte, batch*messageBytes)
	took, err := threadTime(rounds, func(int) error { return readFull(ends[1], buffer) })
	err = errors.Join(err, unix.Close(ends[1]), <-sent)
	values["receiveMicros"] = took.cpuMicros / batch
	return err
}

// writeFull writes all of p, also when a signal of Go's scheduler ends a call early.
func writeFull(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func readFull(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Read(fd, p)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// spent is what one call took, of many: of the thread's CPU, and in all.
type spent struct{ cpuMicros, micros float64 }

// threadTime is what the calling thread spends on each of n calls.
func threadTime(n int, one func(i int) error) (spent, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := time.Now()
	before, err := threadCPU()
	for i := 0; i < n && err == nil; i++ {
		err = one(i)
	}
	if err != nil {
		return spent{}, err
	}
	after, err := threadCPU()
	each := func(d time.Duration) float64 { return micros(d) / float64(n) }
	return spent{cpuMicros: each(after - before), micros: each(time.Since(begin))}, err
}

func threadCPU() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano()), err
}

var benchmarkLine = regexp.MustCompile(`(?m)^BenchmarkRequests/(\S+?)(?:-\d+)?\s.*?([\d.]+) ns/op.*?(\d+) allocs/op`)

// allocations runs the tests and benchmarks of package nbd that count them.
func (b *bench) allocations(ctx context.Context) error {
	if _, err := output(ctx, "go", "test", "-count=1", "-run", "TestSteadyStateAllocatesNothing", "./nbd"); err != nil {
		return fmt.Errorf("requests allocate, says a test: %w", err)
	}
	out, err := output(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkRequests$/^(read|write)=4k$/^depth=(1|32)$", "./nbd")
	if err != nil {
		return err
	}
	found := benchmarkLine.FindAllStringSubmatch(string(out), -1)
	if len(found) == 0 {
		return fmt.Errorf("no benchmark in what go test printed: %.300q", out)
	}
	for _, f := range found {
		nanos, err := strconv.ParseFloat(f[2], 64)
		allocations, countErr := strconv.ParseFloat(f[3], 64)
		if err := errors.Join(err, countErr); err != nil {
			return err
		}
		if err := b.add(record{Section: "floor", Case: f[1], Values: map[string]float64{"nanos": nanos, "allocations": allocations}}); err != nil {
			return err
		}
	}
	return nil
}

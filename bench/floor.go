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

	"golang.org/x/sys/unix"
)

const floorRequests = 200_000

// floorSteps measure what no server can do without: moving the bytes.
func (b *bench) floorSteps() []step {
	return []step{
		{"floor: system calls of a request", seconds(10), b.floor},
		{"allocations of a request", seconds(60), b.allocations},
	}
}

// floor is the CPU of one thread for a 4 KiB transfer between page cache and
// memory, and for 32 of them through a unix socket.
func (b *bench) floor(context.Context) error {
	values := make(map[string]float64)
	file, err := os.Create(filepath.Join(b.dir, "floor"))
	if err != nil {
		return err
	}
	piece := make([]byte, 64<<10)
	for offset := int64(0); offset < b.sizeBytes && err == nil; offset += int64(len(piece)) {
		_, err = file.WriteAt(piece, offset)
	}
	block := [][]byte{make([]byte, 4096)}
	random := func() int64 { return rand.Int64N(b.sizeBytes/4096) * 4096 }
	for name, one := range map[string]func() error{
		"preadMicros":  func() error { _, err := unix.Preadv2(int(file.Fd()), block, random(), unix.RWF_NOWAIT); return err },
		"pwriteMicros": func() error { _, err := unix.Pwritev2(int(file.Fd()), block, random(), 0); return err },
	} {
		if err == nil {
			values[name], err = threadMicros(floorRequests, one)
		}
	}
	err = errors.Join(err, file.Close(), os.Remove(file.Name()))
	if err == nil {
		err = socketFloor(values)
	}
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	return b.add(record{Section: "floor", Case: "system calls", Values: values})
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
		micros, err := threadMicros(rounds, func() error { _, err := unix.Write(ends[0], buffer); return err })
		values["sendMicros"] = micros / batch
		sent <- errors.Join(err, unix.Close(ends[0]))
	}()
	buffer := make([]byte, batch*messageBytes)
	micros, err := threadMicros(rounds, func() error { return readFull(ends[1], buffer) })
	err = errors.Join(err, unix.Close(ends[1]), <-sent)
	values["receiveMicros"] = micros / batch
	return err
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

// threadMicros is the CPU time of the calling thread for each of n calls.
func threadMicros(n int, one func() error) (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := threadCPU()
	for range n {
		if err == nil {
			err = one()
		}
	}
	if err != nil {
		return 0, err
	}
	after, err := threadCPU()
	return float64(after-before) / 1e3 / float64(n), err
}

func threadCPU() (nanoseconds int64, err error) {
	var t unix.Timespec
	err = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return t.Nano(), err
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

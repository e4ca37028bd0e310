package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFloorMeasuresEachKindInEachRound(t *testing.T) {
	b := newBench(options{size: "1m", rounds: 2}, t.TempDir())
	if err := b.floor(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(b.records) != b.rounds {
		t.Fatalf("%d records of %d rounds", len(b.records), b.rounds)
	}
	for _, name := range []string{
		"preadMicros", "pwriteMicros", "pwriteNewMicros", "sendMicros", "receiveMicros",
		"writeThereMicros", "writeNewMicros", "flushThereMicros", "flushNewMicros",
	} {
		if values := results(b.records).values(name); len(values) != b.rounds || slices.Min(values) <= 0 {
			t.Errorf("%s: %v", name, values)
		}
	}
	if left, err := os.ReadDir(b.dir); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

// What is written to an empty file is new only if no place is written twice.
func TestEachPlaceOfAnEmptyFileIsWrittenOnce(t *testing.T) {
	const sizeBytes = 1 << 20
	name := filepath.Join(t.TempDir(), "empty")
	calls := 0
	write := func(fd int, offset int64) error {
		calls++
		was := make([]byte, 4096)
		if _, err := unix.Pread(fd, was, offset); err != nil {
			return err
		}
		if slices.Max(was) > 0 {
			t.Errorf("%d was written before", offset)
		}
		_, err := unix.Pwrite(fd, bytes.Repeat([]byte{1}, 4096), offset)
		return err
	}
	if _, err := eachPlace(name, sizeBytes, randomPlaces(sizeBytes, floorRequests), write); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil || calls != sizeBytes/4096 || len(text) != sizeBytes || slices.Min(text) != 1 {
		t.Errorf("%d writes leave %d bytes, %v", calls, len(text), err)
	}
	if n := len(randomPlaces(sizeBytes, 7)); n != 7 {
		t.Errorf("%d places where 7 are wanted", n)
	}
}

// The disk is measured beside the load, and so not before that has begun.
func TestALoadHasBegunWhenAFileHoldsData(t *testing.T) {
	dir := t.TempDir()
	file, pattern := filepath.Join(dir, "1.img"), filepath.Join(dir, "*.img")
	if err := sparse(file, 1<<20); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	why := errors.New("no such export")
	ended <- why
	if err := awaitData(context.Background(), pattern, ended); !errors.Is(err, why) {
		t.Errorf("a load that ended before it wrote: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := awaitData(ctx, pattern, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("nothing was written, and nobody waits: %v", err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{1}, 1<<19)
	if err := errors.Join(err, f.Close(), awaitData(ctx, pattern, ended)); err != nil {
		t.Errorf("data was written: %v", err)
	}
}

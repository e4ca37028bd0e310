package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A section is a part of the page that can be measured by itself.
type section struct {
	name, about string
	steps       func(*bench) []step
}

// sections come in the order in which they run. Their steps are planned before
// anything runs, so that it is known how long all will take.
var sections = []section{
	{"floor", "what the machine takes for a request, and for writes to new places; allocations of a request", (*bench).floorSteps},
	{"throughput", "every workload, over unix sockets and TCP, beside all peers", (*bench).throughputSteps},
	{"large", "writes over what was written in requests of 1 MiB", (*bench).largeSteps},
	{"light", "the core workloads with a client that takes less CPU than fio", (*bench).lightSteps},
	{"tls", "the core workloads over TLS", (*bench).tlsSteps},
	{"after", "rates in the second before and after a snapshot", (*bench).afterSteps},
	{"stalls", "the latency of requests near snapshots and apart from them", (*bench).stallSteps},
	{"chain", "reads from a volume with a thousand snapshots", (*bench).chainSteps},
	{"preserve", "the time that a preserve takes", (*bench).preserveSteps},
	{"scale", "a directory with a thousand snapshots and a thousand volumes: times of commands, memory", (*bench).scaleSteps},
	{"memory", "memory of a volume of 1 TiB of which every block was written, with a thousand snapshots", (*bench).memorySteps},
	{"verify", "what was written is there, and in the snapshots what was there", (*bench).verifySteps},
}

// asked tells whether a section takes so long that it runs only if it is asked for.
func (s section) asked() bool { return s.name == "memory" }

// sectionNames are those of a run that is told nothing, or all.
func sectionNames(all bool) (names []string) {
	for _, s := range sections {
		if all || !s.asked() {
			names = append(names, s.name)
		}
	}
	return names
}

// A step is a piece of the work, with a guess of how long it takes. An error of it
// becomes a record; those that end everything are wrapped in fatal.
type step struct {
	name  string
	takes time.Duration
	run   func(context.Context) error
}

// fatal is an error after which the bench has failed: what it measures loses data.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

func duration(steps []step) (sum time.Duration) {
	for _, s := range steps {
		sum += s.takes
	}
	return sum
}

// bench is one run of the program.
type bench struct {
	options
	dir       string // temporary
	sizeBytes int64
	records   []record
	kept      *os.File // records are written as they come
	processes []*process
}

func newBench(o options, dir string) *bench {
	size, _ := parseSize(o.size) // checked
	return &bench{options: o, dir: dir, sizeBytes: size}
}

// measure runs the sections that are asked for, and goes on after what fails.
func (b *bench) measure(ctx context.Context) (err error) {
	if b.program, err = filepath.Abs(b.program); err != nil {
		return err
	}
	if b.keep != "" {
		if err := os.MkdirAll(filepath.Dir(b.keep), 0o755); err != nil {
			return err
		}
		if b.kept, err = os.Create(b.keep); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.kept.Close()) }()
	}
	m, err := b.describe(ctx)
	if err != nil {
		return err
	}
	if err := b.add(record{Section: "machine", Text: m}); err != nil {
		return err
	}
	var steps []step
	for _, s := range sections {
		if slices.Contains(strings.Split(b.sections, ","), s.name) {
			steps = append(steps, s.steps(b)...)
		}
	}
	failed := b.runSteps(ctx, steps)
	return errors.Join(failed, b.add(record{Section: "end", Text: map[string]string{"date": now(), "load": loadAverage()}}))
}

// runSteps runs one after the other, and tells how far it is.
func (b *bench) runSteps(ctx context.Context, steps []step) error {
	var failed error
	begin, total, planned := time.Now(), duration(steps), time.Duration(0)
	for i, s := range steps {
		left := total - planned
		if planned > time.Minute { // by then it is known how good the guesses are
			left = time.Duration(float64(left) * float64(time.Since(begin)) / float64(planned))
		}
		fmt.Fprintf(os.Stderr, "%d/%d, %v left: %s\n", i+1, len(steps), left.Round(time.Second), s.name)
		err := s.run(ctx)
		if ctx.Err() != nil {
			return errors.Join(failed, ctx.Err())
		}
		planned += s.takes
		if err == nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "  failed: %v\n", err)
		if err := b.add(record{Section: "failed", Case: s.name, Failed: err.Error()}); err != nil {
			return err
		}
		if f := (fatal{}); errors.As(err, &f) {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	return failed
}

// peerWanted tells whether -peers leaves a peer in, of which Tidemark is none.
func (b *bench) peerWanted(name string) bool {
	return name == "tidemark" || regexp.MustCompile(b.peers).MatchString(name)
}

// wanted tells whether -only and -peers leave a workload on a peer in.
func (b *bench) wanted(workload, peer string) bool {
	return b.peerWanted(peer) && regexp.MustCompile(b.only).MatchString(workload)
}

// parseSize takes what fio takes for 64m or 1g.
func parseSize(text string) (int64, error) {
	units := map[byte]int64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}
	digits, unit := text, int64(1)
	if n := len(text); n > 0 && units[text[n-1]] > 0 {
		digits, unit = text[:n-1], units[text[n-1]]
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n < 1 || n*unit%(1<<20) != 0 {
		return 0, fmt.Errorf("-size %q: it must be a number of MiB, such as 64m or 1g", text)
	}
	return n * unit, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

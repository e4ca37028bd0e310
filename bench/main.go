// Command bench measures Tidemark beside other NBD servers, on this machine, in one
// interleaved run, and writes docs/benchmarks.md from what it measured. README.md
// in its directory says what was learned about measuring.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	rounds, stallRounds, stallCount int
	runtime, ramp                   float64 // seconds
	only, peers                     string
	sections                        string
	size                            string
	dir, program, out               string
	keep, render                    string
	quick                           bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 3, "`NUMBER` of rounds; in each, every server runs every workload once")
	f.Float64Var(&o.runtime, "runtime", 2.2, "`SECONDS` that a run is measured")
	f.Float64Var(&o.ramp, "ramp", 0.7, "`SECONDS` that it runs before")
	f.StringVar(&o.only, "only", "", "`REGEXP` of the workloads to run; all if empty")
	f.StringVar(&o.peers, "peers", "", "`REGEXP` of the peers beside Tidemark; all if empty")
	f.StringVar(&o.size, "size", "1g", "`SIZE` of the volumes, all of which is touched")
	f.StringVar(&o.dir, "dir", os.TempDir(), "`DIRECTORY` to make a temporary one in: its disk is what is measured")
	f.StringVar(&o.program, "program", "bin/tidemark", "Tidemark's `PROGRAM`")
	f.StringVar(&o.out, "out", "docs", "`DIRECTORY` for benchmarks.md and benchmarks/*.svg; if empty, the page is printed and not written")
	f.StringVar(&o.keep, "keep", "", "`FILE` for the raw results, a JSON object a line (default OUT/benchmarks/results.json)")
	f.StringVar(&o.render, "render", "", "run nothing; make the page from these `FILES` of raw results, a list with commas")
	f.StringVar(&o.sections, "sections", strings.Join(sectionNames(false), ","), "what to measure, a `LIST` with commas; see below")
	f.IntVar(&o.stallRounds, "stall-rounds", 3, "`NUMBER` of rounds of each load with snapshots beside it")
	f.IntVar(&o.stallCount, "stall-count", 50, "`NUMBER` of snapshots in each of them, a quarter of it where they come every 2 s")
	f.BoolVar(&o.quick, "quick", false, "Tidemark beside nbdkit's file plugin, few workloads; prints, writes no file")
	f.Usage = func() { usage(f) }
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.quick {
		o.sections, o.peers, o.only, o.out, o.runtime = "throughput", "^nbdkit file$", quickWorkloads, "", 2
	}
	if o.keep == "" && o.out != "" {
		o.keep = filepath.Join(o.out, "benchmarks", "results.json")
	}
	return o, o.check()
}

func (o options) check() error {
	for _, name := range strings.Split(o.sections, ",") {
		if !slices.Contains(sectionNames(true), name) {
			return fmt.Errorf("-sections: there is no %q", name)
		}
	}
	for _, pattern := range []string{o.only, o.peers} {
		if _, err := regexp.Compile(pattern); err != nil {
			return fmt.Errorf("-only, -peers: %w", err)
		}
	}
	if o.rounds < 1 || o.stallRounds < 1 || o.stallCount < 4 || o.runtime <= 0 || o.ramp < 0 {
		return errors.New("-rounds and -stall-rounds must be 1 or more, -stall-count 4 or more, -runtime more than 0")
	}
	_, err := parseSize(o.size)
	return err
}

// usage tells how long each section takes with the flags as they are by default.
func usage(f *flag.FlagSet) {
	w := f.Output()
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) } // there is nobody else to tell
	say("usage: go run ./bench [FLAGS]\n\n")
	f.PrintDefaults()
	say("\nsections, and how long each takes about on a quiet machine with the default flags:\n")
	o, err := parse(nil)
	if err != nil {
		return
	}
	var all time.Duration
	b := newBench(o, "")
	for _, s := range sections {
		long := duration(s.steps(b))
		about := s.about
		if s.asked() {
			about += "; only if it is named"
		} else {
			all += long
		}
		say("  %-11s %3.0f min  %s\n", s.name, long.Minutes(), about)
	}
	say("  %-11s %3.0f min\n", "the others", all.Minutes())
}

// run measures, or reads what was measured, and makes the page of it.
func run(ctx context.Context, o options) error {
	if o.render != "" {
		var records []record
		for _, file := range strings.Split(o.render, ",") {
			more, err := readRecords(file)
			if err != nil {
				return err
			}
			records = append(records, more...)
		}
		return publish(o.out, records)
	}
	dir, err := os.MkdirTemp(o.dir, "tidemark-bench-")
	if err != nil {
		return err
	}
	b := newBench(o, dir)
	err = errors.Join(b.measure(ctx), b.stopAll(), os.RemoveAll(dir))
	if ctx.Err() != nil {
		return err // half a run is kept, and makes no page
	}
	return errors.Join(err, publish(o.out, b.records)) // with what failed in it
}

// publish writes the page and its plots, or prints the page.
func publish(out string, records []record) error {
	if out == "" {
		_, err := fmt.Print(page(records, nil))
		return err
	}
	dir := filepath.Join(out, "benchmarks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	plots, err := plotAll(dir, records)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "benchmarks.md"), []byte(page(records, plots)), 0o644)
}

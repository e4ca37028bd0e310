package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// throughputSteps run every workload over unix sockets, and the core workloads
// over TCP.
func (b *bench) throughputSteps() []step {
	all := func(workload) bool { return true }
	steps := b.lineUp(lineup{"throughput", "unix", b.runFio, fillBytes, all})
	if !b.quick {
		steps = append(steps, b.lineUp(lineup{"throughput", "tcp", b.runFio, fillBytes, workload.isCore})...)
	}
	return steps
}

// largeSteps run the workloads that write over what was written in large requests, as
// copies and imports are.
func (b *bench) largeSteps() []step {
	return b.lineUp(lineup{"large", "unix", b.runFio, largeBytes, func(w workload) bool { return w.readPercent == 0 }})
}

// A lineup is what peers run in turn.
type lineup struct {
	section, over string
	measure       func(context.Context, *server, workload) (map[string]float64, error)
	requestBytes  int // that volumes are filled in
	runs          func(workload) bool
}

// lineUp starts peers over one transport (all of them in the section throughput, else
// those that serve TCP too) and has them run workloads in turn, in one order and then in
// the other, so that what else goes on in the machine meets all of them alike.
func (b *bench) lineUp(l lineup) (steps []step) {
	servers := make(map[string]*server)
	var entered []peer
	where := "over " + l.over
	if l.section != "throughput" {
		where += " (" + l.section + ")"
	}
	for _, p := range peers {
		if !slices.Contains(strings.Fields(p.over), l.over) || l.section != "throughput" && !strings.Contains(p.over, "tcp") || !b.peerWanted(p.name) {
			continue
		}
		entered = append(entered, p)
		steps = append(steps, step{"start " + p.name + " " + where, b.fillTakes(), func(ctx context.Context) error {
			s, err := b.startFilled(ctx, p, l.over, l.requestBytes)
			if err != nil {
				return err
			}
			servers[p.name] = s
			return b.add(record{Section: "commands", Over: l.over, Peer: p.name, Text: map[string]string{"commands": s.commands()}})
		}})
	}
	for round := range b.rounds {
		for _, w := range workloads {
			for _, p := range entered {
				if !b.wanted(w.name, p.name) || !l.runs(w) || p.after && !w.core {
					continue
				}
				steps = append(steps, step{fmt.Sprintf("%s, %s %s", w.name, p.name, where), b.runTakes(), func(ctx context.Context) error {
					s := servers[p.name]
					if s == nil {
						return nil // the page has why it did not start
					}
					if err := s.prepare(ctx); err != nil {
						return err
					}
					values, err := l.measure(ctx, s, w)
					if err != nil {
						return err
					}
					return b.add(record{Section: l.section, Case: w.name, Over: l.over, Peer: p.name, Round: round, Values: values})
				}})
			}
		}
		slices.Reverse(entered)
	}
	steps = append(steps, step{"verify and stop those " + where, b.verifyTakes(len(entered)), func(ctx context.Context) (err error) {
		for _, p := range peers {
			s := servers[p.name]
			if s == nil {
				continue
			}
			if p.keeps && strings.Contains(b.sections, "verify") {
				err = errors.Join(err, b.verifyServer(ctx, s, "after the workloads "+where))
			}
			err = errors.Join(err, s.end())
		}
		return err
	}})
	return steps
}

// startFilled starts a peer whose volume is full, by requests of so many bytes.
func (b *bench) startFilled(ctx context.Context, p peer, over string, requestBytes int, flags ...string) (*server, error) {
	where, err := b.newPlace(over)
	if err != nil {
		return nil, err
	}
	where.flags = flags
	if where.tls != "" {
		if err := makeCertificates(where.tls); err != nil {
			return nil, err
		}
	}
	s, err := b.run(ctx, p, where)
	if err != nil || p.after {
		return s, err
	}
	if where.tls != "" {
		return s, b.fillTLS(ctx, s)
	}
	return s, b.fill(ctx, s, requestBytes)
}

// prepare has a run begin where all others begin: nothing waits to be written to
// the disk, all that it may read is in memory, and what is after a snapshot is so.
func (s *server) prepare(ctx context.Context) error {
	if s.fresh != nil {
		if err := s.fresh(ctx); err != nil {
			return fmt.Errorf("%s: make it fresh again: %w", s.name, err)
		}
	}
	dir, err := os.Open(s.place.dir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // it was opened to name the file system
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	files, err := filepath.Glob(s.files)
	for _, file := range files {
		err = errors.Join(err, preRead(file))
	}
	return err
}

// preRead brings what a file holds into memory: page cache is evicted within
// minutes, and a run without it is six times slower. Holes are left out.
func preRead(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	for end := int64(0); ; {
		begin, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // no more of it
		}
		if err != nil {
			return fmt.Errorf("%s: look for data: %w", name, err)
		}
		if end, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("%s: look for a hole: %w", name, err)
		}
		if _, err := io.Copy(io.Discard, io.NewSectionReader(f, begin, end-begin)); err != nil {
			return err
		}
	}
}

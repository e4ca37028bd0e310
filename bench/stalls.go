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
	"time"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// A sideLoad is what goes on while snapshots are taken.
type sideLoad struct {
	workload
	rateIOPS int      // 0: as fast as it can
	flags    []string // of the server
	others   int      // volumes preserved together with it
	ready    func(context.Context, *server) error
	command  func(ctx context.Context, s *server, number int) error // nil: a snapshot
	gone     bool                                                   // tell how many images went meanwhile
}

const (
	goalStall      = 1.2 // near/apart of a preserve, over that of the control
	goalBusyStall  = 1.5 // the same while a scrub or many volumes keep the server busy
	goalAfterWrite = 0.9
	goalAfterFlush = 0.8
	leadSeconds    = 3
	otherVolumes   = 20
)

var (
	write1  = sideLoad{workload: workloadNamed("random write, depth 1")}
	write32 = sideLoad{workload: workloadNamed("random write, depth 32")}
	flush1  = sideLoad{workload: workloadNamed("write and flush, depth 1")}
)

func steadyLoad() sideLoad {
	l := write32
	l.name, l.rateIOPS = "random write, 2000 a second", 2000
	return l
}

// scrubLoad has a full snapshot read by the scrub all the time: 1 GiB takes the
// period. The snapshots that are taken seal meanwhile, as they do everywhere.
func scrubLoad() sideLoad {
	l := write32
	l.name += ", while snapshots are scrubbed"
	l.flags = []string{"--scrub-every", "1m", "--scrub-rate", "20MiB"}
	l.ready = func(ctx context.Context, s *server) error {
		_, err := s.tidemark(ctx, "preserve", "v", "--name", "scrubbed", "--until", "sealed")
		return err
	}
	return l
}

func crowdLoad() sideLoad {
	l := write32
	l.name += fmt.Sprintf(", with %d more volumes in the cut", otherVolumes)
	l.others = otherVolumes
	l.ready = func(ctx context.Context, s *server) (err error) {
		for i := range otherVolumes {
			err = errors.Join(err, s.create(ctx, otherVolume(i), s.place.sizeBytes))
		}
		return err
	}
	return l
}

const whileDeleted = ", while snapshots are deleted and folded"

// deletesAtOnce is how many snapshots each command of deleteLoad deletes; or there is
// one command, which deletes manyDeleted.
const (
	deletesAtOnce = 4
	manyDeleted   = 1000
)

// deletedBlocks are written before each of those snapshots; or so few that some are
// folded and gone before the load ends.
const (
	deletedBlocks    = 2000
	deletedFewBlocks = 100
)

// deleteLoad has snapshots that each hold some scattered blocks deleted, in random
// order, and what they leave folded as soon as it can be.
func (b *bench) deleteLoad(snapshots, atOnce, blocks int) sideLoad {
	l := write32
	if l.name += whileDeleted; blocks != deletedBlocks {
		l.name += fmt.Sprintf(", of %d blocks each", blocks)
	}
	if atOnce != deletesAtOnce {
		l.name += fmt.Sprintf(", %d at once", atOnce)
	}
	l.flags = []string{"--fold-above", "1", "--reclaim-every", "1s"}
	l.gone = true
	order := rand.Perm(snapshots)
	l.ready = func(ctx context.Context, s *server) error {
		return s.scatter(ctx, snapshots, blocks)
	}
	l.command = func(ctx context.Context, s *server, number int) error {
		var names []string
		for _, i := range order[number*atOnce:][:atOnce] {
			names = append(names, fmt.Sprintf("v@s%d", i))
		}
		_, err := s.client.DeleteSnapshots(ctx, &tidemarkv1.DeleteSnapshotsRequest{Names: names})
		return err
	}
	return l
}

// scatter makes snapshots of a volume with so many random blocks written before
// each, and waits until they are sealed.
func (s *server) scatter(ctx context.Context, snapshots, blocks int) error {
	of := int(s.place.sizeBytes / 4096)
	for i := range snapshots {
		list := make([]int, blocks)
		for j := range list {
			list[j] = rand.IntN(of)
		}
		if err := s.writeBlocks(ctx, list); err != nil {
			return err
		}
		preserve := []string{"preserve", "v", "--name", fmt.Sprintf("s%d", i)}
		if i%scatterSealed == 0 { // ext4 may fail a sync when very many scattered blocks wait for their write-back
			preserve = append(preserve, "--until", "sealed")
		}
		if _, err := s.tidemark(ctx, preserve...); err != nil {
			return err
		}
	}
	_, err := s.tidemark(ctx, "preserve", "v", "--name", "last", "--until", "sealed")
	return err
}

// scatterSealed is after how many snapshots scatter waits for the seals.
const scatterSealed = 5

func otherVolume(i int) string { return "other" + strconv.Itoa(i) }

// afterSteps take one snapshot of a full volume under load, again and again: of a
// new one each time, for it is the first that costs most.
func (b *bench) afterSteps() (steps []step) {
	for round := range max(3, b.stallRounds) {
		for _, l := range []sideLoad{write32, flush1} {
			for _, p := range []peer{peers[0], storageDaemon} {
				if b.wanted(l.name, p.name) {
					steps = append(steps, b.besideStep("after", p, l, 2, 1, round, p.name))
				}
			}
		}
	}
	return steps
}

// control is no command at all where the others have one: what a busy machine does to
// requests by itself is not laid at a preserve's door. Commands go over a connection that
// stays, as they do to a peer: no process that begins beside the load is counted either.
const control = "control"

// stallSteps take many snapshots beside a load, and the control as often.
func (b *bench) stallSteps() (steps []step) {
	for round := range b.stallRounds {
		cells := []struct {
			l     sideLoad
			every float64
			count int
			with  []string
		}{
			{write1, 0.5, b.stallCount, []string{control, "tidemark"}}, {write1, 2, b.stallCount / 4, []string{control, "tidemark"}},
			{write32, 0.5, b.stallCount, []string{control, "tidemark"}}, {write32, 2, b.stallCount / 4, []string{control, "tidemark"}},
			{steadyLoad(), 0.5, b.stallCount, []string{control, "tidemark"}}, {steadyLoad(), 2, b.stallCount / 4, []string{control, "tidemark"}},
			{scrubLoad(), 0.5, b.stallCount, []string{control, "tidemark"}}, {crowdLoad(), 0.5, b.stallCount, []string{control, "tidemark"}},
			{write1, 2, max(4, b.stallCount/8), []string{storageDaemon.name}}, {write32, 2, max(4, b.stallCount/8), []string{storageDaemon.name}},
			{b.deleteLoad(b.stallCount, deletesAtOnce, deletedBlocks), 0.5, b.stallCount / deletesAtOnce, []string{control, "tidemark"}},
			{b.deleteLoad(b.stallCount, deletesAtOnce, deletedFewBlocks), 0.5, b.stallCount / deletesAtOnce, []string{control, "tidemark"}},
			{b.deleteLoad(manyDeleted, manyDeleted, deletedFewBlocks), 8, 1, []string{control, "tidemark"}},
		}
		for _, c := range cells {
			if round%2 == 1 {
				slices.Reverse(c.with)
			}
			for _, with := range c.with {
				p := peers[0]
				if with == storageDaemon.name {
					p = storageDaemon
				}
				if b.wanted(c.l.name, p.name) {
					steps = append(steps, b.besideStep("stalls", p, c.l, c.every, c.count, round, with))
				}
			}
		}
	}
	return steps
}

// besideStep starts a server with a full volume, and runs a load with snapshots, or
// the control, beside it.
func (b *bench) besideStep(section string, p peer, l sideLoad, every float64, count, round int, with string) step {
	takes := b.fillTakes() + seconds(leadSeconds+float64(count)*every+3)
	what := fmt.Sprintf("%s, every %v s", l.name, every)
	return step{fmt.Sprintf("%s: %s, %s", section, what, with), takes, func(ctx context.Context) (err error) {
		s, err := b.startFilled(ctx, p, "unix", fillBytes, l.flags...)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.end()) }()
		var others []string
		for i := range l.others {
			others = append(others, otherVolume(i))
		}
		if l.ready != nil {
			if err := l.ready(ctx, s); err != nil {
				return err
			}
		}
		if err := s.prepare(ctx); err != nil {
			return err
		}
		command := func(number int) error { return s.snapshot(ctx, number, others...) }
		if l.command != nil {
			command = func(number int) error { return l.command(ctx, s, number) }
		}
		if with == control {
			command = func(int) error { return nil }
		}
		images, err := filepath.Glob(s.files)
		if err != nil {
			return err
		}
		requests, spans, err := b.beside(ctx, s, l, every, count, command)
		if err != nil {
			return err
		}
		values, err := sortRequests(requests, spans, every)
		if err != nil {
			return err
		}
		values["commands"] = float64(count)
		if left, err := filepath.Glob(s.files); l.gone && with != control && err == nil {
			values["imagesGone"] = float64(len(images) - len(left))
		}
		r := record{Section: section, Case: what, Peer: with, Round: round, Values: values}
		if section == "after" {
			r.Case, r.Series = l.name, around(requests, spans[0])
		}
		return errors.Join(b.add(r), b.add(record{Section: "commands", Over: section, Peer: s.name, Text: map[string]string{"commands": s.commands()}}))
	}}
}

// beside runs a load, and a command every so often, and returns fio's log of
// requests and when the commands ran.
func (b *bench) beside(ctx context.Context, s *server, l sideLoad, every float64, count int, command func(number int) error) ([]request, []span, error) {
	logs := s.place.file("latency")
	args := append(l.fioArgs(s.uri, b.size, 0, leadSeconds+float64(count)*every+2),
		"--log_unix_epoch=1", "--write_lat_log="+logs, "--disable_clat=1", "--disable_slat=1")
	if l.rateIOPS > 0 {
		args = append(args, "--rate_iops="+strconv.Itoa(l.rateIOPS))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := output(ctx, "fio", args...)
		ended <- err
	}()
	begin := time.Now()
	var spans []span
	for i := range count {
		due := begin.Add(seconds(leadSeconds + float64(i)*every))
		if err := pause(ctx, time.Until(due)); err != nil {
			return nil, nil, err
		}
		before := unixSeconds()
		if err := command(i); err != nil {
			return nil, nil, fmt.Errorf("command %d: %w", i, err)
		}
		spans = append(spans, span{before, unixSeconds()})
	}
	if err := <-ended; err != nil {
		return nil, nil, err
	}
	files, err := filepath.Glob(logs + "_lat*.log")
	if err != nil || len(files) != 1 {
		return nil, nil, fmt.Errorf("%d latency logs of fio: %w", len(files), err)
	}
	log, err := os.Open(files[0])
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = log.Close() }() // nothing was written
	requests, err := parseLog(log)
	return requests, spans, err
}

func unixSeconds() float64 { return float64(time.Now().UnixNano()) / 1e9 }

package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark/tidemark/keep"
	"github.com/tidemark/tidemark/volume"
)

// Driller runs the programs that look at clones in the drills of schedules. Its
// methods may be called from any goroutine.
type Driller interface {
	// Check tells why a program can't be run. Errors: ErrInvalid, with what is allowed.
	Check(program string) error
	// Programs returns the names of those that can be run now, sorted.
	Programs() []string
	// Drill runs a program over the clone of a snapshot, VOLUME@SNAPSHOT, and returns
	// what came of it, but for the time. An error says that nothing did: the program
	// can't be run, or ctx has ended, and then it returns soon.
	Drill(ctx context.Context, program, snapshot, clone string) (Drill, error)
}

// noDriller runs nothing.
type noDriller struct{}

func (noDriller) Programs() []string { return nil }

func (noDriller) Check(program string) error {
	return fmt.Errorf("%w: drill %q: the server was given no programs; start it with serve --drills DIR", ErrInvalid, program)
}

func (d noDriller) Drill(_ context.Context, program, _, _ string) (Drill, error) {
	return Drill{}, d.Check(program)
}

// DrilledSnapshot is a snapshot, VOLUME@SNAPSHOT, and what came of its last drill,
// without the output.
type DrilledSnapshot struct {
	Name  string
	Drill Drill
}

// drills is what a schedule has to do with them; guarded by Store.mu, but for what
// never changes.
type drills struct {
	drillEvery  keep.Every         // zero: of each snapshot
	wanted      bool               // it is to be looked whether one is due
	drilling    bool               // that is being done, until the last has ended
	cancel      context.CancelFunc // ends it; nil before the first
	drillFailed string
}

// drilled is a snapshot that is being drilled, and for which schedule.
type drilled struct {
	by       *schedule
	snapshot string
}

// readDrill reads what a schedule's record says of drills. One may be due as soon as
// there is the schedule: what the last life of the server did not come to, or the
// first, of a snapshot that is there.
func (x *schedule) readDrill() error {
	r := x.record
	switch {
	case r.Drill == "" && r.DrillEvery != "":
		return fmt.Errorf("%w: drill every %q: give the drill too", ErrInvalid, r.DrillEvery)
	case r.Drill == "":
		return nil
	}
	x.wanted = true
	if err := checkName("drill", r.Drill); err != nil || r.DrillEvery == "" {
		return err
	}
	every, err := keep.ParseEvery(r.DrillEvery)
	if err != nil {
		return fmt.Errorf("%w: drill %w", ErrInvalid, err)
	}
	x.drillEvery = every
	return nil
}

// end ends a drill that runs; Store.mu is held.
func (d *drills) end() {
	if d.cancel != nil {
		d.cancel()
	}
}

// startDrillsLocked makes the drills of a schedule that are due, beside everything
// else: no snapshot is late for one. While they run, what comes due is left out.
// Store.mu is held.
func (s *Store) startDrillsLocked(ctx context.Context, x *schedule) {
	x.wanted = false
	if x.record.Drill == "" || x.drilling {
		return
	}
	x.drilling = true
	ctx, x.cancel = context.WithCancel(ctx)
	s.schedules.running.Go(func() { s.runDrills(ctx, x) })
}

// runDrills drills the volumes of a schedule, one after the other. What failed is told
// once, until it works again; but each drill that its program has failed is told.
func (s *Store) runDrills(ctx context.Context, x *schedule) {
	volumes, err := s.VolumesOf(x.record.Target)
	for _, name := range volumes {
		if ctx.Err() != nil {
			break
		}
		if failed := s.drillVolume(ctx, x, name); !errors.Is(failed, ErrNotFound) { // it went meanwhile
			err = errors.Join(err, failed)
		}
	}
	s.mu.Lock()
	ended := ctx.Err() != nil
	x.end()
	first := x.drillFailed == ""
	if x.drilling, x.drillFailed = false, ""; err != nil && !ended {
		x.drillFailed = err.Error()
	}
	failed := x.drillFailed
	s.mu.Unlock()
	if failed != "" && first {
		s.logger.Error("no drill; it is tried again at the next time", "target", x.record.Target, "program", x.record.Drill, "err", err)
	}
}

// drillVolume drills the newest snapshot of a volume that a schedule has made, if that
// is due. It takes its turn when that is sealed; there may be a newer one then.
func (s *Store) drillVolume(ctx context.Context, x *schedule, name string) error {
	made, err := s.madeSoFar(x, name)
	if err != nil || len(made) == 0 {
		return err
	}
	if err := s.WaitSealed(ctx, fullOf(newestOf(made))); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case s.schedules.turn <- struct{}{}:
	}
	defer func() { <-s.schedules.turn }()
	if made, err = s.madeSoFar(x, name); err != nil {
		return err
	}
	if full := x.dueDrill(made); full != "" {
		return s.drill(ctx, x, full)
	}
	return nil
}

// madeSoFar is madeBy without what is still to come, if the clock was moved back.
func (s *Store) madeSoFar(x *schedule, name string) ([]SnapshotInfo, error) {
	made, err := s.madeBy(x, name)
	now := time.Now()
	return slices.DeleteFunc(made, func(i SnapshotInfo) bool { return i.CutTime.After(now) }), err
}

// dueDrill returns the snapshot, of those that a schedule has made of a volume, that is
// to be drilled: the newest sealed one, unless it was. If there is a time for drills,
// that must have come between the cut of the last one drilled and its own. So it is
// the snapshots that say what is due, and a restart neither repeats nor loses a drill.
func (x *schedule) dueDrill(made []SnapshotInfo) string {
	made = slices.DeleteFunc(made, func(i SnapshotInfo) bool { return i.State != volume.Sealed })
	if len(made) == 0 {
		return ""
	}
	newest := newestOf(made)
	made = slices.DeleteFunc(made, func(i SnapshotInfo) bool { return i.Drill == nil })
	switch {
	case len(made) > 0 && newest.Drill != nil:
		return ""
	case len(made) > 0 && x.record.DrillEvery != "" && !x.drillEvery.Due(newestOf(made).CutTime, newest.CutTime):
		return ""
	}
	return fullOf(newest)
}

func newestOf(list []SnapshotInfo) SnapshotInfo {
	return slices.MaxFunc(list, func(a, b SnapshotInfo) int { return a.CutTime.Compare(b.CutTime) })
}

func fullOf(i SnapshotInfo) string { return i.Volume + "@" + i.Name }

// drill makes one drill. What comes of it when ctx has ended is not recorded: the
// program may have failed by that alone.
func (s *Store) drill(ctx context.Context, x *schedule, full string) error {
	if err := s.driller.Check(x.record.Drill); err != nil { // before there is a clone for it
		return err
	}
	s.setDrilled(drilled{x, full})
	defer s.setDrilled(drilled{})
	_, clone, err := s.BeginDrill(ctx, full)
	if err != nil {
		return err
	}
	defer s.dropDrill(clone.Name)
	result, err := s.driller.Drill(ctx, x.record.Drill, full, clone.Name)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if _, err := s.RecordDrill(full, result); err != nil {
		return err
	}
	if result.ExitCode != 0 {
		s.logger.Error("a drill failed: see tidemark snapshot show", "snapshot", full, "program", x.record.Drill, "exitCode", result.ExitCode)
	}
	return nil
}

func (s *Store) setDrilled(d drilled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.schedules.drilled = d
}

func (s *Store) dropDrill(clone string) {
	if err := s.DropHeld(clone); err != nil && !errors.Is(err, ErrNotFound) {
		s.logger.Warn("the clone of a drill stays until the next start; delete it", "volume", clone, "err", err)
	}
}

// keptForDrills is how many snapshots of each volume stay for neededByDrills, beside
// what the policy keeps and what is being drilled.
const keptForDrills = 2

// neededByDrills tells whether a snapshot stays, of those that the schedule has made of
// a volume, though the policy lets it go: it is being drilled; or, if the schedule has
// drills, it is the newest that was drilled, so that it is known when the next is due
// and what came of this one; or the newest that passed.
func (s *Store) neededByDrills(x *schedule, made []SnapshotInfo, at int) bool {
	s.mu.Lock()
	now := s.schedules.drilled.snapshot
	s.mu.Unlock()
	switch info := made[at]; {
	case fullOf(info) == now:
		return true
	case x.record.Drill == "" || info.Drill == nil:
		return false
	default:
		newer := func(i SnapshotInfo) bool { return i.Drill != nil && i.CutTime.After(info.CutTime) }
		newerPassed := func(i SnapshotInfo) bool { return newer(i) && i.Drill.ExitCode == 0 }
		return !slices.ContainsFunc(made, newer) || info.Drill.ExitCode == 0 && !slices.ContainsFunc(made, newerPassed)
	}
}

// drilledLocked lists the newest snapshot of each volume that the schedule of a target
// has made and that was drilled; Store.mu is held.
func (s *Store) drilledLocked(target string) (list []DrilledSnapshot) {
	newest := map[string]*snapshot{}
	for _, d := range s.byVolume {
		since := s.sinceLocked(target, d.record.Name)
		for _, snap := range d.snapshots {
			if last := newest[d.record.Name]; snap.schedule == target && snap.drill != nil && !snap.cutTime.Before(since) && (last == nil || snap.cutTime.After(last.cutTime)) {
				newest[d.record.Name] = snap
			}
		}
	}
	for name, snap := range newest {
		last := DrilledSnapshot{name + "@" + snap.name, Drill(*snap.drill)}
		last.Drill.Output = ""
		list = append(list, last)
	}
	slices.SortFunc(list, func(a, b DrilledSnapshot) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

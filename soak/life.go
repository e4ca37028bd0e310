package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/stream"
)

// lookBack looks at a snapshot at a time, of all ages, and does something with it.
func (v *generation) lookBack(ctx context.Context) error {
	for ctx.Err() == nil {
		pause(ctx, rand.N(2*time.Second))
		v.mu.Lock()
		var k *kept
		if len(v.kept) > 0 {
			k = v.kept[rand.IntN(len(v.kept))]
		}
		v.mu.Unlock()
		if k == nil {
			continue
		}
		if err := v.look(ctx, k); err != nil {
			return err
		}
		acts := []func(context.Context, *kept) error{v.letGo, v.letGo, v.letGo, v.clone, v.drill, v.hold, v.copyOut, v.rollBack, v.lookAtSchedules}
		if err := acts[rand.IntN(len(acts))](ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// look reads a snapshot over NBD, and has the server verify it.
func (v *generation) look(ctx context.Context, k *kept) error {
	if err := v.read(ctx, k, k.of); err != nil {
		return err
	}
	for _, volume := range k.volumes {
		if err := v.verify(ctx, k.of(volume)); err != nil {
			return err
		}
	}
	return nil
}

// read reads what must hold what a snapshot holds: of each volume of it what export
// names. What can't be read since the server ended is not looked at.
func (v *generation) read(ctx context.Context, k *kept, export func(volume string) string) error {
	var pairs [][]byte
	for _, volume := range k.volumes {
		pair, err := v.readOne(ctx, k, volume, export(volume))
		var wrong *wrongError
		if errors.As(err, &wrong) {
			return err
		}
		if err != nil {
			return nil
		}
		pairs = append(pairs, pair)
	}
	v.done.snapshotsRead.Add(1)
	if !k.whole || !v.holdsProcessesWhole(ctx, k) {
		return nil
	}
	v.done.pairsRead.Add(1)
	return alike(pairs[0], pairs[1], export(v.a)+" and "+export(v.b))
}

func (v *generation) readOne(ctx context.Context, k *kept, volume, export string) (pair []byte, err error) {
	c, err := v.server.open(ctx, export)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, &wrongError{fmt.Sprintf("LOST: %s was made, and is refused: %v", export, err)}
	}
	defer func() { _ = c.Close() }()
	data := make([]byte, regionBytes)
	for w, b := range k.bounds {
		if w.volume != volume {
			continue
		}
		if _, err := c.ReadAt(data, w.off); err != nil {
			return nil, err
		}
		for sector := range regionSectors {
			found, err := w.parse(data[sector*sectorBytes:][:sectorBytes], sector)
			if err != nil {
				return nil, err
			}
			if !b.allow(sector, found) {
				return nil, w.wrong(sector, "%s holds %v; acknowledged before it was %v, issued until its answer %d", export, found, b.least[sector], b.issued)
			}
		}
	}
	pair = make([]byte, pairBytes)
	_, err = c.ReadAt(pair, pairOff)
	return pair, err
}

// verify has the server read a snapshot from its disk. One that is not sealed yet it
// refuses.
func (v *generation) verify(ctx context.Context, name string) error {
	report, err := api.Verify(ctx, v.server.client(), name, func(int64, int64) {})
	if err == nil && report.GetCorrupt() != "" {
		return &wrongError{fmt.Sprintf("WRONG DATA: verify of %s: %v", name, report)}
	}
	if err == nil {
		v.done.verified.Add(1)
	}
	if err := unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING); err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	return nil
}

// letGo deletes a snapshot. One that somebody has open, or holds, stays.
func (v *generation) letGo(ctx context.Context, k *kept) error {
	v.mu.Lock()
	v.kept = slices.DeleteFunc(v.kept, func(other *kept) bool { return other == k })
	v.mu.Unlock()
	for _, volume := range k.volumes {
		_, err := v.server.client().DeleteSnapshots(ctx, &tidemarkv1.DeleteSnapshotsRequest{Names: []string{k.of(volume)}})
		if err == nil {
			v.done.letGo.Add(1)
		}
		if err := unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING, tidemarkv1.Reason_REASON_IN_USE, tidemarkv1.Reason_REASON_HELD, tidemarkv1.Reason_REASON_NOT_FOUND); err != nil {
			return fmt.Errorf("delete snapshot %s: %w", k.of(volume), err)
		}
	}
	return nil
}

// hold holds a snapshot for some seconds, and finds that it can't be deleted.
func (v *generation) hold(ctx context.Context, k *kept) error {
	name, until := k.of(k.volumes[0]), time.Now().Add(3*time.Second).UTC().Truncate(time.Second)
	_, err := v.server.client().HoldSnapshot(ctx, &tidemarkv1.HoldSnapshotRequest{Name: name, Until: until.Format(time.RFC3339)})
	if err != nil {
		return unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING, tidemarkv1.Reason_REASON_INVALID) // that end had passed meanwhile
	}
	v.held = until
	v.done.holds.Add(1)
	for ctx.Err() == nil {
		_, err := v.server.client().DeleteSnapshots(ctx, &tidemarkv1.DeleteSnapshotsRequest{Names: []string{name}})
		switch {
		case err == nil && time.Now().Before(until):
			return &wrongError{fmt.Sprintf("NOT HELD: %s was deleted before %v", name, until)}
		case err == nil, reason(err) == tidemarkv1.Reason_REASON_NOT_FOUND: // the second: a server that ended had done it
			return v.letGo(ctx, k)
		case reason(err) == tidemarkv1.Reason_REASON_HELD:
			v.done.refused.Add(1)
		case unless(ctx, err) != nil:
			return fmt.Errorf("delete %s, which was held: %w", name, err)
		}
		pause(ctx, 300*time.Millisecond)
	}
	return nil
}

// clone clones a snapshot, reads the clone, and deletes it.
func (v *generation) clone(ctx context.Context, k *kept) (err error) {
	if err := v.sweep(ctx); err != nil {
		return err
	}
	name := func(string) string { return v.a + ".c" }
	if len(k.volumes) == 1 {
		_, err = v.server.client().CloneVolume(ctx, &tidemarkv1.CloneVolumeRequest{Snapshot: k.of(k.volumes[0]), Name: v.a + ".c"})
	} else {
		name = func(volume string) string { return v.a + ".c-" + volume }
		_, err = v.server.client().CloneGroup(ctx, &tidemarkv1.CloneGroupRequest{Snapshot: k.of(v.group), Name: v.a + ".c"})
	}
	if err != nil {
		if err := unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING); err != nil {
			return fmt.Errorf("clone %s of %v: %w", k.name, k.volumes, err)
		}
		return nil
	}
	v.done.clones.Add(1)
	if err := v.read(ctx, k, name); err != nil {
		return err
	}
	return v.sweep(ctx)
}

// drill reads the clone of a drill, writes to it, and has the result recorded.
func (v *generation) drill(ctx context.Context, k *kept) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the clone goes with the stream
	volume := k.volumes[rand.IntN(len(k.volumes))]
	hold, err := v.server.client().HoldDrill(ctx, &tidemarkv1.HoldDrillRequest{Name: k.of(volume)})
	if err != nil || !hold.Receive() {
		if hold != nil {
			err = errors.Join(err, hold.Err(), hold.Close())
		}
		return unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING)
	}
	clone := hold.Msg().GetVolume().GetName()
	life := v.server.life()
	if _, err := v.readOne(ctx, k, volume, clone); err != nil {
		var wrong *wrongError
		if errors.As(err, &wrong) && v.server.life() == life { // else it rightly is refused
			return err
		}
		return nil
	}
	if c, err := v.server.open(ctx, clone); err == nil {
		_, _ = c.WriteAt(make([]byte, regionBytes), 0) // fails if the server ends
		_ = c.Close()
	}
	r, err := v.server.client().EndDrill(ctx, &tidemarkv1.EndDrillRequest{
		Snapshot: k.of(volume), Volume: clone,
		Result: &tidemarkv1.Drill{Took: durationpb.New(time.Second), Command: "soak", ExitCode: int32(rand.IntN(2))},
	})
	if err == nil && r.GetSnapshot().GetDrill().GetCommand() != "soak" {
		return &wrongError{fmt.Sprintf("LOST: the drill of %s is not recorded: %v", k.of(volume), r)}
	}
	if err == nil {
		v.done.drills.Add(1)
	}
	if reason(err) == tidemarkv1.Reason_REASON_NOT_FOUND && v.server.life() != life {
		return nil
	}
	return unless(ctx, err)
}

// copyOut sends a snapshot as a stream into a new volume, and then what an other one
// has that it has not; the copy must hold what they hold.
func (v *generation) copyOut(ctx context.Context, k *kept) error {
	if err := v.sweep(ctx); err != nil {
		return err
	}
	volume, copied := k.volumes[0], v.a+".x"
	v.mu.Lock()
	states := []*kept{k}
	for _, other := range v.kept {
		if other != k && slices.Contains(other.volumes, volume) && len(states) < 3 {
			states = append(states, other)
		}
	}
	v.mu.Unlock()
	since := ""
	for _, state := range states {
		err := v.send(ctx, state.of(volume), since, copied)
		var wrong *wrongError
		if errors.As(err, &wrong) {
			return err
		}
		if err != nil {
			if err := unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING); err != nil {
				return fmt.Errorf("%s since %q into %s: %w", state.of(volume), since, copied, err)
			}
			break
		}
		v.done.streams.Add(1)
		if _, err := v.readOne(ctx, state, volume, copied); err != nil {
			if errors.As(err, &wrong) {
				return err
			}
			break
		}
		since = state.of(volume)
	}
	return v.sweep(ctx)
}

// send is tidemark export --since | tidemark import --apply.
func (v *generation) send(ctx context.Context, snapshot, since, to string) error {
	server := v.server.client()
	r, w := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, _, err := api.ExportStream(ctx, server, snapshot, since, w, func(int64) {}, func(int64) {})
		_ = w.CloseWithError(err) // never fails
		return err
	})
	g.Go(func() error {
		_, err := api.Apply(ctx, server, to, r)
		_ = r.CloseWithError(err) // never fails
		if errors.Is(err, stream.ErrCorrupt) {
			return &wrongError{fmt.Sprintf("WRONG DATA: the stream of %s since %q: %v", snapshot, since, err)}
		}
		return err
	})
	return g.Wait()
}

// rollBack rolls the volumes of a snapshot back to it, under their clients. It is
// tried again until somebody says that it is done: nobody could tell else what the
// volumes hold.
func (v *generation) rollBack(ctx context.Context, k *kept) error {
	v.rolling.close()
	defer v.rolling.reopen()
	until := ctx
	ctx = context.WithoutCancel(ctx)
	for try := 0; ; try++ {
		before := fmt.Sprintf("%s-before-%08x", k.name, rand.Uint32())
		var err error
		if len(k.volumes) == 1 {
			_, err = v.server.client().RollbackVolume(ctx, &tidemarkv1.RollbackVolumeRequest{Snapshot: k.of(k.volumes[0]), Keep: before, Disconnect: true})
		} else {
			_, err = v.server.client().RollbackGroup(ctx, &tidemarkv1.RollbackGroupRequest{Snapshot: k.of(v.group), Keep: before, Disconnect: true})
		}
		switch {
		case err == nil:
			if try == 0 { // else it may hold what it was rolled back to
				present := v.least(before, k.volumes)
				present.whole = false
				v.keep(present)
			}
			for w, b := range k.bounds {
				w.rollBack(b)
			}
			v.done.rollbacks.Add(1)
			return v.read(until, k, func(volume string) string { return volume })
		case try == 0 && !gone(err), try == 600:
			return unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING, tidemarkv1.Reason_REASON_IN_USE)
		case unless(ctx, err, tidemarkv1.Reason_REASON_DRAINING, tidemarkv1.Reason_REASON_IN_USE) != nil:
			return fmt.Errorf("roll back to %s of %v: %w", k.name, k.volumes, err)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// lookAtSchedules finds no more snapshots of a schedule than it keeps, one that it is
// about to delete, and those that are verified here; they are in order, and its drills
// pass.
func (v *generation) lookAtSchedules(ctx context.Context, _ *kept) error {
	target := "group:" + v.group
	if rand.IntN(2) == 0 {
		target = v.a
	}
	schedule, err := v.server.client().GetSchedule(ctx, &tidemarkv1.GetScheduleRequest{Target: target})
	if err != nil {
		return unless(ctx, err)
	}
	for _, d := range schedule.GetSchedule().GetDrilled() {
		if d.GetDrill().GetExitCode() != 0 {
			return &wrongError{fmt.Sprintf("FAILED: the drill of %s: %v", d.GetName(), d.GetDrill())}
		}
	}
	list, err := v.server.client().ListSnapshots(ctx, &tidemarkv1.ListSnapshotsRequest{Volume: v.a})
	if err != nil {
		return unless(ctx, err)
	}
	made := slices.DeleteFunc(list.GetSnapshots(), func(s *tidemarkv1.Snapshot) bool { return s.GetSchedule() != target })
	if most := int(schedule.GetSchedule().GetMost()) + 3; len(made) > most {
		return &wrongError{fmt.Sprintf("NOT LET GO: %d snapshots of %s made on a schedule that keeps %d: %v", len(made), v.a, most, made)}
	}
	if len(made) == 0 {
		return nil
	}
	v.done.scheduled.Add(1)
	s := made[rand.IntN(len(made))]
	err = v.verify(ctx, s.GetVolume()+"@"+s.GetName())
	if reason(err) == tidemarkv1.Reason_REASON_NOT_FOUND { // let go meanwhile
		return nil
	}
	return err
}

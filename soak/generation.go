package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// generation is what lives at one time: two volumes and the group of both, their
// clients, and the snapshots that must hold what these wrote.
type generation struct {
	server      *server
	done        *counts
	a, b, group string
	workers     []*worker
	pair        *pair
	rolling     gate // closed while volumes are rolled back

	held time.Time // the last end of a hold

	mu   sync.Mutex
	kept []*kept
}

// kept is a snapshot, of one cut of a volume or of both, with what it must hold.
type kept struct {
	name    string
	volumes []string
	bounds  map[*worker]*bounds // of those that write to these volumes
	whole   bool                // both sides of the pair are alike in it, if it holds processes whole
}

// of is the snapshot of one volume, as it is addressed.
func (k *kept) of(volume string) string { return volume + "@" + k.name }

// liveAGeneration creates two volumes, has them written to and preserved for about a
// minute, on schedules too, and deletes them with all that was made of them.
func liveAGeneration(ctx context.Context, s *server, name string, done *counts) error {
	v := &generation{server: s, done: done, a: name, b: name + ".b", group: name + ".g"}
	for i, scope := range []string{"request", "request", "session", "process"} {
		v.workers = append(v.workers, newWorker(v, v.a, scope, i))
	}
	for i, scope := range []string{"request", "session"} {
		v.workers = append(v.workers, newWorker(v, v.b, scope, i))
	}
	v.pair = newPair(v)
	if err := v.create(ctx); err != nil {
		return err
	}
	if err := v.use(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	return v.delete(ctx)
}

func (v *generation) volumes() []string { return []string{v.a, v.b} }

func (v *generation) create(ctx context.Context) error {
	create := func(command func(context.Context, api.Client) error) error {
		return v.server.call(ctx, command, func(err error) bool { return reason(err) == tidemarkv1.Reason_REASON_EXISTS })
	}
	for _, name := range v.volumes() {
		if err := create(func(ctx context.Context, a api.Client) error {
			_, err := a.CreateVolume(ctx, &tidemarkv1.CreateVolumeRequest{Name: name, SizeBytes: volumeBytes})
			return err
		}); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	if err := create(func(ctx context.Context, a api.Client) error {
		_, err := a.CreateGroup(ctx, &tidemarkv1.CreateGroupRequest{Name: v.group, Volumes: v.volumes(), Default: true})
		return err
	}); err != nil {
		return fmt.Errorf("create the group: %w", err)
	}
	for _, r := range []*tidemarkv1.SetScheduleRequest{
		{Target: v.a, Every: "3s", Keep: "9s:3s,30s:10s"},
		{Target: "group:" + v.group, Every: "7s", Keep: "14s:7s", Drill: drillProgram},
	} {
		if err := create(func(ctx context.Context, a api.Client) error {
			_, err := a.SetSchedule(ctx, r)
			return err
		}); err != nil {
			return fmt.Errorf("schedule: %w", err)
		}
	}
	return nil
}

func (v *generation) use(ctx context.Context) error {
	during, cancel := context.WithTimeout(ctx, 40*time.Second+rand.N(40*time.Second))
	defer cancel()
	g, during := errgroup.WithContext(during)
	for _, w := range v.workers {
		g.Go(func() error { return w.run(during) })
	}
	g.Go(func() error { return v.pair.run(during) })
	g.Go(func() error { return v.preserves(during) })
	g.Go(func() error { return v.lookBack(during) })
	return g.Wait()
}

// preserves preserves one volume or both about every second, in every way.
func (v *generation) preserves(ctx context.Context) error {
	for n := 0; ctx.Err() == nil; n++ {
		pause(ctx, rand.N(2*time.Second))
		r := &tidemarkv1.PreserveRequest{
			Name: fmt.Sprintf("s%d", n), Wait: durationpb.New(rand.N(3 * time.Second)),
			OnTimeout:   tidemarkv1.OnTimeout(1 + rand.IntN(2)), // abort or degrade
			OnConflict:  tidemarkv1.OnConflict(1 + rand.IntN(2)),
			UntilSealed: rand.IntN(4) == 0,
		}
		volumes := v.volumes()
		if i := rand.IntN(4); i < 2 {
			volumes = volumes[i : i+1]
			r.Volumes = volumes
		} else {
			r.Groups = []string{v.group}
		}
		if err := v.preserve(ctx, r, volumes); err != nil {
			return err
		}
	}
	return nil
}

func (v *generation) preserve(ctx context.Context, r *tidemarkv1.PreserveRequest, volumes []string) error {
	v.rolling.pass.RLock() // what is in it is not to be guessed while volumes are rolled back
	defer v.rolling.pass.RUnlock()
	k := v.least(r.GetName(), volumes)
	_, err := v.server.client().Preserve(ctx, r)
	if err == nil {
		v.keep(k)
		v.done.preserves.Add(1)
		return nil
	}
	if reason(err) == tidemarkv1.Reason_REASON_ABORTED {
		v.done.aborted.Add(1)
	}
	// A degraded one may have an older preserve to wait for, whose processes go on
	// writing to both: what it holds in the end is not known here.
	if err := unless(ctx, err, tidemarkv1.Reason_REASON_ABORTED, tidemarkv1.Reason_REASON_DRAINING); err != nil {
		return fmt.Errorf("preserve %s of %v: %w", k.name, volumes, err)
	}
	return nil
}

// least begins a snapshot: what is acknowledged now it must hold.
func (v *generation) least(name string, volumes []string) *kept {
	k := &kept{name: name, volumes: volumes, bounds: map[*worker]*bounds{}}
	k.whole = len(volumes) == 2 && v.pair.isWhole()
	for _, w := range v.workers {
		for _, volume := range volumes {
			if w.volume == volume {
				k.bounds[w] = w.least()
			}
		}
	}
	return k
}

// keep ends it: what is not issued now it can't hold.
func (v *generation) keep(k *kept) {
	k.whole = k.whole && v.pair.isWhole()
	for w, b := range k.bounds {
		w.most(b)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kept = append(v.kept, k)
}

// delete deletes the volumes and all that was made of them. What is held stays until
// the end of its hold, and its volume with it.
func (v *generation) delete(ctx context.Context) error {
	for _, name := range v.volumes() {
		if err := v.server.deleteVolume(ctx, name); err != nil {
			return err
		}
	}
	if ctx.Err() == nil && time.Now().Before(v.held) {
		return &wrongError{fmt.Sprintf("NOT HELD: the volumes %v are deleted, and a snapshot was held until %v", v.volumes(), v.held)}
	}
	return v.sweep(ctx)
}

// sweep deletes what was made of the volumes, and what a server that ended left of it.
// The clone of a drill goes by itself, also one of a schedule.
func (v *generation) sweep(ctx context.Context) error {
	for range 600 {
		list, err := v.server.client().ListVolumes(ctx, &tidemarkv1.ListVolumesRequest{})
		if err != nil {
			if err := unless(ctx, err); err != nil || ctx.Err() != nil {
				return err
			}
			pause(ctx, 50*time.Millisecond)
			continue
		}
		drilled := false
		for _, volume := range list.GetVolumes() {
			name := volume.GetName()
			switch {
			case strings.HasPrefix(name, v.a+"-drill-"), strings.HasPrefix(name, v.b+"-drill-"):
				drilled = true
			case strings.HasPrefix(name, v.a+".") && name != v.b:
				if err := v.server.deleteVolume(ctx, name); err != nil {
					return err
				}
			}
		}
		if !drilled {
			return nil
		}
		pause(ctx, 100*time.Millisecond)
	}
	if ctx.Err() != nil {
		return nil
	}
	return &wrongError{"LEFT: the clones of drills of " + v.a + " do not go"}
}

// deleteVolume deletes a volume as soon as nobody uses or holds it.
func (s *server) deleteVolume(ctx context.Context, name string) error {
	err := s.call(ctx, func(ctx context.Context, a api.Client) (err error) {
		for range 600 { // the ends of connections, preserves and holds are on their way
			_, err = a.DeleteVolume(ctx, &tidemarkv1.DeleteVolumeRequest{Name: name, WithSnapshots: true})
			if r := reason(err); r != tidemarkv1.Reason_REASON_IN_USE && r != tidemarkv1.Reason_REASON_HELD {
				break
			}
			pause(ctx, 50*time.Millisecond)
		}
		return err
	}, func(err error) bool { return reason(err) == tidemarkv1.Reason_REASON_NOT_FOUND })
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	return nil
}

// gate is closed while what the volumes hold is not known.
type gate struct {
	pass  sync.RWMutex // held to write by who rolls back, to read by who must not meet it
	mu    sync.Mutex
	times int           // how often it was closed
	open  chan struct{} // nil: it is open
}

func (g *gate) close() {
	g.pass.Lock()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.times++
	g.open = make(chan struct{})
}

func (g *gate) reopen() {
	g.mu.Lock()
	close(g.open)
	g.open = nil
	g.mu.Unlock()
	g.pass.Unlock()
}

// wait returns when it is open, and how often it had been closed; or ctx's error.
func (g *gate) wait(ctx context.Context) (times int, err error) {
	for {
		g.mu.Lock()
		times, open := g.times, g.open
		g.mu.Unlock()
		if open == nil {
			return times, ctx.Err()
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-open:
		}
	}
}

// count is how often it was closed.
func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.times
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// generationOf is the life of one volume: created, written to and preserved for
// about a minute, its snapshots read back, and deleted with them.
func generationOf(ctx context.Context, s *server, name string, done *counts) error {
	if err := s.call(ctx, func(ctx context.Context, a api.Client) error {
		_, err := a.CreateVolume(ctx, &tidemarkv1.CreateVolumeRequest{Name: name, SizeBytes: volumeBytes})
		return err
	}, func(err error) bool { return reason(err) == tidemarkv1.Reason_REASON_EXISTS }); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	v := &volume{server: s, name: name, done: done}
	for i, scope := range [workers]string{"request", "request", "session", "process"} {
		v.workers = append(v.workers, newWorker(s, name, scope, i, done))
	}
	if err := v.use(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	if err := s.deleteVolume(ctx, name+"-clone"); err != nil && reason(err) != tidemarkv1.Reason_REASON_NOT_FOUND {
		return err
	}
	return s.deleteVolume(ctx, name)
}

func (s *server) deleteVolume(ctx context.Context, name string) error {
	return s.call(ctx, func(ctx context.Context, a api.Client) (err error) {
		for range 200 { // the ends of connections, and of preserves, are on their way
			_, err = a.DeleteVolume(ctx, &tidemarkv1.DeleteVolumeRequest{Name: name, WithSnapshots: true})
			if reason(err) != tidemarkv1.Reason_REASON_IN_USE {
				break
			}
			pause(ctx, 50*time.Millisecond)
		}
		return err
	}, func(err error) bool { return reason(err) == tidemarkv1.Reason_REASON_NOT_FOUND })
}

type volume struct {
	server  *server
	name    string
	workers []*worker
	done    *counts

	mu   sync.Mutex
	kept []*kept
}

// kept is a snapshot with what it must hold, worker by worker.
type kept struct {
	name    string
	workers []bounds
}

// bounds of what a cut may hold of a worker's region: at least what had been
// acknowledged before the command, at most what had been issued at its answer.
type bounds struct {
	least  []content
	issued seq
	zeroed []seq
}

func (v *volume) use(ctx context.Context) error {
	during, cancel := context.WithTimeout(ctx, 40*time.Second+rand.N(40*time.Second))
	defer cancel()
	g, during := errgroup.WithContext(during)
	for _, w := range v.workers {
		g.Go(func() error { return w.run(during) })
	}
	g.Go(func() error { return v.preserves(during) })
	g.Go(func() error { return v.readBack(during) })
	return g.Wait()
}

// preserves preserves the volume about every second, in every way.
func (v *volume) preserves(ctx context.Context) error {
	for n := 0; ctx.Err() == nil; n++ {
		pause(ctx, rand.N(2*time.Second))
		r := &tidemarkv1.PreserveRequest{
			Volumes: []string{v.name}, Name: fmt.Sprintf("s%d", n), Wait: durationpb.New(rand.N(3 * time.Second)),
			OnTimeout:   tidemarkv1.OnTimeout(1 + rand.IntN(2)), // abort or degrade
			OnConflict:  tidemarkv1.OnConflict(1 + rand.IntN(2)),
			UntilSealed: rand.IntN(4) == 0,
		}
		k := &kept{name: v.name + "@" + r.GetName()}
		for _, w := range v.workers {
			k.workers = append(k.workers, w.least())
		}
		_, err := v.server.client().Preserve(ctx, r)
		switch {
		case err == nil:
			for i, w := range v.workers {
				w.most(&k.workers[i])
			}
			v.mu.Lock()
			v.kept = append(v.kept, k)
			v.mu.Unlock()
			v.done.preserves.Add(1)
		case over(ctx, err):
		case reason(err) == tidemarkv1.Reason_REASON_ABORTED:
			v.done.aborted.Add(1)
		case !gone(err):
			return fmt.Errorf("preserve %s: %w", k.name, err)
		}
	}
	return nil
}

func (w *worker) least() bounds {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bounds{least: append([]content(nil), w.acked...)}
}

func (w *worker) most(b *bounds) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.issued, b.zeroed = w.issued, append([]seq(nil), w.zeroed...)
}

// readBack reads a snapshot at a time, of all ages, over NBD and by verify; clones
// some, and deletes some.
func (v *volume) readBack(ctx context.Context) error {
	for ctx.Err() == nil {
		pause(ctx, rand.N(3*time.Second))
		v.mu.Lock()
		var k *kept
		if len(v.kept) > 0 {
			k = v.kept[rand.IntN(len(v.kept))]
		}
		v.mu.Unlock()
		if k == nil {
			continue
		}
		err := v.readSnapshot(ctx, k)
		var wrong *wrongError
		if errors.As(err, &wrong) {
			return err
		}
		if err := v.verify(ctx, k.name); err != nil {
			return err
		}
		switch rand.IntN(6) {
		case 0:
			err = v.clone(ctx, k)
		case 1, 2:
			err = v.letGo(ctx, k)
		default:
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clone clones a snapshot, reads the clone, and deletes it. One that a server left
// that died goes first.
func (v *volume) clone(ctx context.Context, k *kept) error {
	name := v.name + "-clone"
	_, err := v.server.client().DeleteVolume(ctx, &tidemarkv1.DeleteVolumeRequest{Name: name})
	if err == nil || reason(err) == tidemarkv1.Reason_REASON_NOT_FOUND {
		_, err = v.server.client().CloneVolume(ctx, &tidemarkv1.CloneVolumeRequest{Snapshot: k.name, Name: name})
	}
	if err == nil {
		var wrong *wrongError
		if err := v.readSnapshot(ctx, &kept{name: name, workers: k.workers}); errors.As(err, &wrong) {
			return err
		}
		_, err = v.server.client().DeleteVolume(ctx, &tidemarkv1.DeleteVolumeRequest{Name: name})
		v.done.clones.Add(1)
	}
	if err == nil || over(ctx, err) || gone(err) || reason(err) == tidemarkv1.Reason_REASON_DRAINING || reason(err) == tidemarkv1.Reason_REASON_IN_USE {
		return nil
	}
	return fmt.Errorf("clone %s: %w", k.name, err)
}

// letGo deletes a snapshot.
func (v *volume) letGo(ctx context.Context, k *kept) error {
	v.mu.Lock()
	v.kept = slices.DeleteFunc(v.kept, func(other *kept) bool { return other == k })
	v.mu.Unlock()
	_, err := v.server.client().DeleteSnapshot(ctx, &tidemarkv1.DeleteSnapshotRequest{Name: k.name})
	if err == nil {
		v.done.letGo.Add(1)
	}
	if err == nil || over(ctx, err) || gone(err) || reason(err) == tidemarkv1.Reason_REASON_DRAINING || reason(err) == tidemarkv1.Reason_REASON_IN_USE || reason(err) == tidemarkv1.Reason_REASON_NOT_FOUND {
		return nil
	}
	return fmt.Errorf("delete snapshot %s: %w", k.name, err)
}

func (v *volume) readSnapshot(ctx context.Context, k *kept) error {
	c, err := v.server.open(ctx, k.name)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return &wrongError{fmt.Sprintf("LOST: snapshot %s was made, and is refused: %v", k.name, err)}
	}
	defer func() { _ = c.Close() }()
	data := make([]byte, regionBytes)
	for i, w := range v.workers {
		if _, err := c.ReadAt(data, w.off); err != nil {
			return err
		}
		b := &k.workers[i]
		for sector := range b.least {
			found, err := w.parse(data[sector*sectorBytes:][:sectorBytes], sector)
			if err != nil {
				return err
			}
			least := b.least[sector]
			ok := found.seq >= least.seq && found.seq <= b.issued
			if found.zero {
				ok = least.zero || least.seq == 0 || b.zeroed[sector] > least.seq
			}
			if !ok {
				return w.wrong(sector, "snapshot %s holds %v; acknowledged before it was %v, issued until its answer %d", k.name, found, least, b.issued)
			}
		}
	}
	v.done.snapshotsRead.Add(1)
	return nil
}

// verify has the server read the snapshot from its disk. One that is not sealed
// yet it refuses.
func (v *volume) verify(ctx context.Context, name string) error {
	stream, err := v.server.client().VerifySnapshot(ctx, &tidemarkv1.VerifySnapshotRequest{Name: name})
	if err != nil {
		return nil // no server at the moment
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		r := stream.Msg().GetReport()
		if r == nil {
			continue
		}
		if r.GetCorrupt() != "" {
			return &wrongError{fmt.Sprintf("WRONG DATA: verify of %s: %v", name, r)}
		}
		v.done.verified.Add(1)
	}
	if err := stream.Err(); err != nil && !over(ctx, err) && !gone(err) && reason(err) != tidemarkv1.Reason_REASON_DRAINING {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	return nil
}

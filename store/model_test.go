package store_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
	"github.com/tidemark/tidemark/volume/volumetest"
)

func TestTheStoreDoesWhatTheModelDoesThroughRestartsAndPowerCuts(t *testing.T) {
	volumetest.Run(t, func(rt *rapid.T) volumetest.Target {
		s, err := newSimStore(vfs.NewSim(t.TempDir()))
		if err != nil {
			rt.Fatalf("open: %v", err)
		}
		return s
	})
}

// simStore is a Store on a simulated disk as a target of the model.
type simStore struct {
	*store.Store
	sim *vfs.Sim
}

var _ volumetest.Restarter = (*simStore)(nil)

const dataDir = "data"

func newSimStore(sim *vfs.Sim) (*simStore, error) {
	s := &simStore{sim: sim}
	return s, s.Reopen()
}

func (s *simStore) Reopen() (err error) {
	s.Store, err = store.Open(dataDir, store.KeepUnnamed(store.Options{FS: s.sim, MaxDraining: volumetest.MaxDraining}))
	return err
}

func (s *simStore) Close() error {
	if s.Store == nil { // it could not be opened
		return nil
	}
	return s.Store.Close(context.Background())
}

// Kill leaves the old Store to find that nothing works any more.
func (s *simStore) Kill() error {
	dead := s.Store
	s.sim = s.sim.Kill()
	_ = dead.Close(context.Background())
	return s.Reopen()
}

func (s *simStore) PowerCut(at int, seed uint64) error {
	after := s.sim.PowerCut(at, random(seed))
	dead := s.Store
	s.sim.Kill()
	_ = dead.Close(context.Background())
	s.sim = after
	return s.Reopen()
}

func (s *simStore) Aside(at int, seed uint64) (volumetest.Restarter, error) {
	return newSimStore(s.sim.PowerCut(at, random(seed)))
}

// random returns nil for 0: a power cut that keeps nothing it may lose.
func random(seed uint64) *rand.Rand {
	if seed == 0 {
		return nil
	}
	return rand.New(rand.NewPCG(seed, 0))
}

func (s *simStore) Ops() int { return s.sim.Ops() }

func (s *simStore) Check() ([]string, error) {
	r, err := store.Check(dataDir, s.sim, store.CheckOptions{})
	return r.Findings, err
}

func (s *simStore) Scrub() (findings []string, err error) {
	r, err := s.Store.Scrub(context.Background())
	return r.Snapshots, err
}

func (s *simStore) Create(name string, sizeBytes int64) error {
	_, err := s.CreateVolume(name, sizeBytes, volume.ScopeRequest)
	return err
}

func (s *simStore) Delete(name string) error {
	err := s.DeleteVolume(name, true)
	if errors.Is(err, store.ErrInUse) {
		return volume.ErrBusy
	}
	return err
}

func (s *simStore) Resize(name string, sizeBytes int64) error {
	_, err := s.ResizeVolume(name, sizeBytes)
	return err
}

func (s *simStore) Open(export string) (*volume.View, error) { return s.OpenView(export) }

func (s *simStore) Begin(token string, volumes []string) error {
	_, err := s.BeginProcess(volumes, token)
	return err
}

func (s *simStore) End(token string, torn bool) error {
	_, err := s.EndProcess(token, torn)
	return err
}

func (s *simStore) Preserve(c volumetest.Command) volumetest.Answer {
	r, err := s.Store.Preserve(context.Background(), store.PreserveRequest{
		Volumes: c.Volumes, Name: c.Name, Wait: c.Wait, OnTimeout: c.OnTimeout, OnConflict: c.OnConflict,
	})
	for is, means := range map[error]error{
		store.ErrAborted: volumetest.ErrAborted, store.ErrDraining: volumetest.ErrDraining,
		store.ErrExists: volumetest.ErrExists, volume.ErrDrainingLimit: volume.ErrDrainingLimit,
	} {
		if errors.Is(err, is) {
			err = means
		}
	}
	a := volumetest.Answer{Err: err, Waited: r.ProcessesWaited, CutTime: r.CutTime}
	for _, info := range r.Snapshots {
		a.Snapshots = append(a.Snapshots, snapshot(info))
	}
	return a
}

func (s *simStore) Snapshots(name string) (list []volumetest.Snapshot, err error) {
	infos, err := s.Store.Snapshots(name)
	for _, info := range infos {
		list = append(list, snapshot(info))
	}
	return list, err
}

func snapshot(info store.SnapshotInfo) volumetest.Snapshot {
	return volumetest.Snapshot{
		Name: info.Name, State: info.State, Consistency: info.Consistency,
		Conflicts: info.Conflicts, Torn: info.Torn, SizeBytes: info.SizeBytes,
	}
}

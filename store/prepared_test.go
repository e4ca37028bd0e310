package store_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// Until its cut a preserve that is being prepared is nowhere to be seen: its name
// would stand for the live VLUN, which still changes.
func TestASnapshotIsShownFromItsCutOnNotFromItsPrepare(t *testing.T) {
	var s *store.Store
	var preparing atomic.Bool
	looks := map[vfs.OpKind]int{}
	look := func(op vfs.Op) error {
		if !preparing.CompareAndSwap(true, false) { // and not in what look does itself
			return nil
		}
		view := openView(t, s, "v")
		if vluns := view.Volume().VLUNs(); len(vluns) > 1 {
			return nil // the cut is made or about to be: no more looks
		} else if vluns[0].Cut() {
			t.Errorf("at %v %s the VLUN is cut, and its volume has no other", op.Kind, op.Name)
		}
		looks[op.Kind]++
		list, err := s.Snapshots("v")
		if err != nil || len(list) > 0 {
			t.Errorf("at %v %s the list has %v (%v)", op.Kind, op.Name, list, err)
		}
		if names := s.Exports(); !slices.Equal(names, []string{"v"}) {
			t.Errorf("at %v %s the exports are %v", op.Kind, op.Name, names)
		}
		if _, err := s.Snapshot("v@s"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("at %v %s the snapshot: %v, want %v", op.Kind, op.Name, err, store.ErrNotFound)
		}
		if _, err := s.OpenView("v@s"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("at %v %s its export: %v, want %v", op.Kind, op.Name, err, store.ErrNotFound)
		}
		preparing.Store(true)
		return nil
	}
	s, err := store.Open(dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: look}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	if _, err := s.CreateVolume("v", 16*lookup.BlockSize, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	s.AwaitSpares() // whose operations would be looked at in place of the preserve's
	preparing.Store(true)
	if _, err := s.Preserve(context.Background(), store.PreserveRequest{Volumes: []string{"v"}, Name: "s", Wait: time.Hour}); err != nil {
		t.Fatal(err)
	}
	preparing.Store(false)
	if looks[vfs.OpSync] == 0 { // of the log: what follows it is the cut
		t.Errorf("nobody looked between the record of the preserve and its cut, only at %v", looks)
	}
	if list, err := s.Snapshots("v"); err != nil || len(list) != 1 {
		t.Errorf("after the answer the list has %v (%v), want the snapshot", list, err)
	}
}

// Images are made ahead behind a commit of the catalog, which may take long.
func TestAPreserveWaitsForNoImagesThatAreMadeAhead(t *testing.T) {
	s, commit := stoppedStore(t, func(op vfs.Op) bool { return op.Kind == vfs.OpCommitted })
	s.AwaitSpares()
	commit.armed.Store(true)
	for _, name := range []string{"one", "two", "three"} {
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: name, Wait: time.Minute}); err != nil {
			t.Error(err)
		}
		<-commit.reached
	}
	close(commit.open)
}

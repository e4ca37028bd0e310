package store_test

import (
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func TestANewVolumeIsHeldUntilItIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := grouped(t, dir, store.Options{})
	for _, name := range []string{"kept", "dropped", "left"} {
		if _, err := s.BeginVolume(name, 1<<20, volume.ScopeSession); err != nil {
			t.Fatal(err)
		}
		put(t, s, 'x', name)
	}
	// What is left behind by a rollback is kept with it.
	mustSeal(t, s, "old", "kept")
	put(t, s, 'y', "kept")
	mustSeal(t, s, "new", "kept")
	back := func(snapshot string) {
		if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: snapshot, Discard: true}); err != nil {
			t.Fatal(err)
		}
	}
	back("kept@old")
	if info, err := s.KeepVolume("kept"); err != nil || info.Name != "kept" || info.Scope != volume.ScopeSession {
		t.Errorf("%+v, %v", info, err)
	}
	back("kept@new")
	w := attend(t, s, "dropped", false)
	if err := s.DropHeld("dropped"); err != nil {
		t.Error(err)
	}
	if _, err := w.WriteAt([]byte{'!'}, 0); err == nil {
		t.Error("who had the volume open still writes")
	}
	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"to make one that is there": {second(s.BeginVolume("a", 1<<20, volume.ScopeRequest)), store.ErrExists},
		"to keep it again":          {second(s.KeepVolume("kept")), store.ErrInvalid},
		"to drop what is kept":      {s.DropHeld("kept"), store.ErrInvalid},
		"to drop it again":          {s.DropHeld("dropped"), store.ErrNotFound},
		"to keep what was dropped":  {second(s.KeepVolume("dropped")), store.ErrNotFound},
		"to drop another volume":    {s.DropHeld("a"), store.ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = openWith(t, dir, store.Options{})
	if got := len(s.Volumes()); got != 4 || letters(t, s, "kept", "kept@old") != "yx" {
		t.Errorf("after a reopen %d volumes, want 4: %q", got, s.Recovery())
	}
}

// The server may die at any operation: the volume is there as it was kept, or not at all.
func TestACrashLeavesNoVolumeThatIsHalfFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := vfs.NewSim(memoryDir(t))
		s := grouped(t, "data", store.Options{FS: sim})
		from := sim.Ops()
		if _, err := s.BeginVolume("new", 1<<20, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		put(t, s, 'x', "new")
		filled := sim.Ops()
		if _, err := s.KeepVolume("new"); err != nil {
			t.Fatal(err)
		}
		kept := sim.Ops()
		put(t, s, 'y', "a")
		for at := from; at <= sim.Ops(); at++ {
			disk := sim.PowerCut(at, nil)
			if at%2 == 0 {
				disk = sim.KillAt(at, nil)
			}
			s, err := store.Open("data", store.Options{FS: disk})
			if err != nil {
				t.Fatalf("crash at %d: %v", at, err)
			}
			_, err = s.Volume("new")
			switch {
			case err == nil && at <= filled, err != nil && at >= kept:
				t.Errorf("crash at %d: %v; it was full at %d, and kept at %d: %q", at, err, filled, kept, s.Recovery())
			case err == nil && letters(t, s, "new") != "x":
				t.Errorf("crash at %d: other bytes", at)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

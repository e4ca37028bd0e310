package store_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// unbranched is a store whose group g was preserved as s, and written to since, and
// fails to make the directory of the last branch of its rollback, when the present
// state is kept. Before that it calls before.
func unbranched(t *testing.T, before func(*store.Store)) (s *store.Store, failing *atomic.Int32) {
	t.Helper()
	failing = new(atomic.Int32)
	s = grouped(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpMkdir && failing.Add(-1) == 0 {
			before(s)
			return syscall.EMFILE
		}
		return nil
	}}})
	put(t, s, 'x', "a", "b")
	preserveGroup(t, s, "s")
	put(t, s, 'y', "a", "b")
	return s, failing
}

func TestARollbackThatFailsLeavesNoSnapshot(t *testing.T) {
	for name, discard := range map[string]bool{"and keeps": false, "and discards": true} {
		t.Run(name, func(t *testing.T) {
			s, failing := unbranched(t, func(*store.Store) {})
			defer closeStore(t, s)
			before := s.Exports()
			r := store.RollbackRequest{Snapshot: "g@s", Keep: "k", Discard: discard}
			failing.Store(2)
			if report, err := s.RollbackGroup(t.Context(), r, nil); !errors.Is(err, syscall.EMFILE) || len(report.Kept) > 0 {
				t.Errorf("it kept %q: %v", report.Kept, err)
			}
			if got := strings.Join(s.Exports(), " "); got != strings.Join(before, " ") {
				t.Errorf("there is %s, want %q", got, before)
			}
			if got := letters(t, s, "a", "b"); got != "yy" {
				t.Errorf("a and b hold %q", got)
			}
			put(t, s, 'z', "a", "b") // nothing stays frozen
			noError(t, second(s.RollbackGroup(t.Context(), r, nil)))
			if got := letters(t, s, "a", "b"); got != "xx" {
				t.Errorf("a and b hold %q after another try", got)
			}
		})
	}
}

func TestARollbackThatFailsNamesTheSnapshotThatItCanNotDelete(t *testing.T) {
	for name, discard := range map[string]bool{"and keeps": false, "and discards": true} {
		t.Run(name, func(t *testing.T) {
			var w *volume.View
			s, failing := unbranched(t, func(s *store.Store) { w = openView(t, s, "a@k") })
			defer closeStore(t, s)
			failing.Store(2)
			report, err := s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@s", Keep: "k", Discard: discard}, nil)
			if !errors.Is(err, syscall.EMFILE) || errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "a@k") || strings.Contains(err.Error(), "b@k") {
				t.Errorf("it says %v", err)
			}
			if len(report.Kept) != 1 || report.Kept[0] != "a@k" {
				t.Errorf("it kept %q", report.Kept)
			}
			if got := letters(t, s, "a", "b", "a@k"); got != "yyy" {
				t.Errorf("a, b and a@k hold %q", got)
			}
			if err := second(s.Snapshot("b@k")); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("b@k: %v", err)
			}
			noError(t, w.Close())
			noError(t, s.DeleteSnapshots("a@k"))
		})
	}
}

// A client may have opened what is to be discarded.
func TestARollbackDiscardsNoSnapshotThatIsOpen(t *testing.T) {
	var s *store.Store
	var w *volume.View
	armed := new(atomic.Bool)
	s = grouped(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpMkdir && armed.Swap(false) {
			w = openView(t, s, "b@k")
		}
		return nil
	}}})
	defer closeStore(t, s)
	put(t, s, 'x', "a", "b")
	preserveGroup(t, s, "s")
	put(t, s, 'y', "a", "b")
	armed.Store(true)
	r := store.RollbackRequest{Snapshot: "g@s", Keep: "k", Discard: true}
	if _, err := s.RollbackGroup(t.Context(), r, nil); !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "b@k") {
		t.Errorf("it says %v", err)
	}
	if got := letters(t, s, "a", "b", "b@k"); got != "yyy" {
		t.Errorf("a, b and b@k hold %q", got)
	}
	if err := second(s.Snapshot("a@k")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a@k: %v", err)
	}
	noError(t, w.Close())
	noError(t, s.DeleteSnapshots("b@k"))
	noError(t, second(s.RollbackGroup(t.Context(), r, nil)))
	if got := letters(t, s, "a", "b"); got != "xx" {
		t.Errorf("a and b hold %q", got)
	}
}

// A crash finds the volumes as they were, without a snapshot of that, or rolled back with
// one.
func TestACrashOfARollbackLeavesItDoneOrNotBegun(t *testing.T) {
	sim := vfs.NewSim(memoryDir(t))
	s := grouped(t, dataDir, store.Options{FS: sim})
	defer closeStore(t, s)
	put(t, s, 'x', "a", "b")
	preserveGroup(t, s, "s")
	put(t, s, 'y', "a", "b")
	from := sim.Ops()
	noError(t, second(s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@s", Keep: "k"}, nil)))
	to := sim.Ops()
	outcomes := map[string]int{}
	for at := from; at <= to; at++ {
		disk := sim.KillAt(at, nil)
		if at%2 == 0 {
			disk = sim.PowerCut(at, rand.New(rand.NewPCG(1, uint64(at))))
		}
		for range 2 { // and once more
			s := openWith(t, dataDir, store.Options{FS: disk})
			got := letters(t, s, "a", "b")
			if exports := strings.Join(s.Exports(), " "); strings.Contains(exports, "@k") {
				got += " kept " + letters(t, s, "a@k", "b@k")
			}
			outcomes[got]++
			if got != "yy" && got != "xx kept yy" || at == to && got == "yy" {
				t.Errorf("crash at operation %d: a and b hold %s", at, got)
			}
			s.Reclaim()
			if n := s.DeadBlocks(); n > 0 {
				t.Errorf("crash at operation %d: %d blocks that nobody sees are left", at, n)
			}
			closeStore(t, s)
		}
	}
	if len(outcomes) != 2 {
		t.Errorf("a crash left %v", outcomes)
	}
}

// A crash finds the volumes as they were, or rolled back and what was discarded gone:
// also with all that a rollback before had left.
func TestACrashOfARollbackThatDiscardsLeavesNothingOfWhatItDiscards(t *testing.T) {
	sim := vfs.NewSim(memoryDir(t))
	s := grouped(t, dataDir, store.Options{FS: sim})
	put(t, s, 'x', "a", "b")
	preserveGroup(t, s, "s")
	discard := func() (from, to int) {
		t.Helper()
		put(t, s, 'y', "a", "b")
		from = sim.Ops()
		report, err := s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@s", Keep: "k", Discard: true}, nil)
		if err != nil || len(report.Kept) > 0 || len(report.Volumes) != 2 {
			t.Fatalf("%+v, %v", report, err)
		}
		to = sim.Ops()
		s.AwaitPunches()
		return from, to
	}
	crash := func(disk *vfs.Sim, at int, done bool) {
		t.Helper()
		s := openWith(t, dataDir, store.Options{FS: disk})
		defer closeStore(t, s)
		exports := strings.Join(s.Exports(), " ")
		switch got := letters(t, s, "a", "b"); {
		case (got == "xx" || got == "yy" && !done) && !strings.Contains(exports, "@k"):
		default:
			t.Errorf("crash at operation %d: a and b hold %q, and there is %s", at, got, exports)
		}
		if got := letters(t, s, "a@s", "b@s"); got != "xx" {
			t.Errorf("crash at operation %d: a@s and b@s hold %q", at, got)
		}
		s.Reclaim()
		if n := s.DeadBlocks(); n > 0 {
			t.Errorf("crash at operation %d: %d blocks that nobody sees are left", at, n)
		}
	}
	for range 2 { // the second time the volumes have no snapshot of their own
		from, to := discard()
		for at := from; at < to; at++ {
			if at%2 == 0 {
				crash(sim.KillAt(at, nil), at, false)
				continue
			}
			crash(sim.PowerCut(at, rand.New(rand.NewPCG(1, uint64(at)))), at, false)
		}
		crash(sim.PowerCut(to, nil), to, true)
		for _, name := range []string{"a", "b"} {
			if n := s.Branches(name); n != 2 {
				t.Errorf("%s has %d branches, want 2", name, n)
			}
		}
	}
	if n := s.DeadBlocks(); n > 0 {
		t.Errorf("%d blocks that nobody sees are left", n)
	}
	if got := letters(t, s, "a", "b", "a@s", "b@s"); got != "xxxx" {
		t.Errorf("a, b, a@s and b@s hold %q", got)
	}
	closeStore(t, s)
	if r, err := store.Check(dataDir, sim, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
		t.Errorf("check: %q, %v", r.Findings, err)
	}
}

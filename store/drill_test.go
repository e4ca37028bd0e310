package store_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func TestADrillIsOfTheNewestSnapshotAndIsRecordedOnIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := grouped(t, dir, store.Options{})
	if _, _, err := s.BeginDrill(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a drill of a volume without a snapshot: %v", err)
	}
	put(t, s, 'x', "a")
	mustSeal(t, s, "one", "a")
	put(t, s, 'y', "a")
	mustSeal(t, s, "two", "a")
	put(t, s, 'z', "a")
	snapshot, clone, err := s.BeginDrill(t.Context(), "a")
	if err != nil || snapshot != "a@two" || !strings.HasPrefix(clone.Name, "a-drill-") || letters(t, s, clone.Name) != "y" {
		t.Fatalf("%s, %+v, %v", snapshot, clone, err)
	}
	put(t, s, '!', clone.Name)
	mustSeal(t, s, "of-clone", clone.Name)
	long := store.Drill{Took: time.Second, Command: strings.Repeat("é", 1000), ExitCode: 3, Output: "lost" + strings.Repeat("é", 3000) + "\x01\xff<end>"}
	info, err := s.RecordDrill(snapshot, long)
	if err != nil || info.Drill == nil || time.Since(info.Drill.Time) > time.Hour {
		t.Fatalf("%+v, %v", info.Drill, err)
	}
	if d := info.Drill; len(d.Command) != 1024 || len(d.Output) > 4096 || !strings.HasSuffix(d.Output, "é\x01<end>") || !utf8.ValidString(d.Output) || d.ExitCode != 3 || d.Took != time.Second {
		t.Errorf("%+v", d)
	}
	w := attend(t, s, clone.Name, false)
	if err := s.DropHeld(clone.Name); err != nil {
		t.Error(err)
	}
	if _, err := w.WriteAt([]byte{'!'}, 0); err == nil {
		t.Error("who had the clone open still writes")
	}
	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"to drop it again":                {s.DropHeld(clone.Name), store.ErrNotFound},
		"to drop a volume":                {s.DropHeld("a"), store.ErrInvalid},
		"to record on no snapshot":        {second(s.RecordDrill("a@none", long)), store.ErrNotFound},
		"to drill an unknown snapshot":    {third(s.BeginDrill(t.Context(), "a@none")), store.ErrNotFound},
		"to drill an unknown volume":      {third(s.BeginDrill(t.Context(), "none")), store.ErrNotFound},
		"to drill what is no name at all": {third(s.BeginDrill(t.Context(), "@")), store.ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := store.Check(dir, nil, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
		t.Errorf("check: %q, %v", r.Findings, err)
	}
	s = openWith(t, dir, store.Options{})
	if again, err := s.Snapshot("a@two"); err != nil || again.Drill == nil || *again.Drill != *info.Drill {
		t.Errorf("after a reopen %+v, %v", again.Drill, err)
	}
	if one, err := s.Snapshot("a@one"); err != nil || one.Drill != nil || letters(t, s, "a@two", "a") != "yz" {
		t.Errorf("%+v, %v", one.Drill, err)
	}
}

// Right after a preserve its snapshot is not sealed, and one after that may drain.
func TestADrillIsOfTheNewestSnapshotThatHasDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, seal, _ := foundedStore(t)
		defer func() {
			close(seal.open)
			closeStore(t, s)
		}()
		writeTo(t, s, "v", 1, 'b')
		p, err := s.BeginProcess([]string{"v"}, "")
		noError(t, err)
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "two", OnTimeout: volume.TimeoutKeep}); !errors.Is(err, store.ErrDraining) {
			t.Fatalf("a preserve that leaves its snapshot draining: %v", err)
		}
		drill := func(want string, first byte) {
			t.Helper()
			snapshot, clone, err := s.BeginDrill(t.Context(), "v")
			if err != nil || snapshot != want {
				t.Fatalf("it is of %s, %v; want %s", snapshot, err, want)
			}
			wantBlock(t, s, clone.Name, 1, first)
			noError(t, s.DropHeld(clone.Name))
		}
		drill("v@one", 'a')
		noError(t, second(s.EndProcess(p.Token, false)))
		synctest.Wait() // it is known that nobody is left
		drill("v@two", 'b')
		if info, err := s.Snapshot("v@two"); err != nil || info.State != volume.Sealing {
			t.Errorf("v@two is %v, %v; want %v", info.State, err, volume.Sealing)
		}
	})
}

func third[A, B any](_ A, _ B, err error) error { return err }

func TestTheCloneOfADrillOfALongNameHasAName(t *testing.T) {
	s := openWith(t, filepath.Join(t.TempDir(), "data"), store.Options{})
	name := strings.Repeat("v", 63)
	if _, err := s.CreateVolume(name, 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	mustSeal(t, s, "s", name)
	if _, clone, err := s.BeginDrill(t.Context(), name); err != nil || len(clone.Name) != 63 || !strings.HasPrefix(clone.Name, "vvv") {
		t.Errorf("%+v, %v", clone, err)
	}
}

// The server may die at any operation of a drill: then no clone is left, and what was
// recorded is.
func TestACrashLeavesNoCloneOfADrill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := vfs.NewSim(memoryDir(t))
		s := grouped(t, "data", store.Options{FS: sim})
		put(t, s, 'x', "a")
		mustSeal(t, s, "s", "a")
		from := sim.Ops()
		snapshot, clone, err := s.BeginDrill(t.Context(), "a@s")
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, 'y', clone.Name)
		if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: snapshot}); err != nil {
			t.Fatal(err)
		}
		mustSeal(t, s, "more", clone.Name)
		if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: clone.Name + "@more", Keep: "k"}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.RecordDrill(snapshot, store.Drill{Command: "c"}); err != nil {
			t.Fatal(err)
		}
		recorded := sim.Ops()
		if err := s.DropHeld(clone.Name); err != nil {
			t.Fatal(err)
		}
		for at := from; at <= sim.Ops(); at += 3 {
			disk := sim.PowerCut(at, nil)
			if at%2 == 0 {
				disk = sim.KillAt(at, nil)
			}
			s, err := store.Open("data", store.Options{FS: disk})
			if err != nil {
				t.Fatalf("crash at %d: %v", at, err)
			}
			if list := s.Volumes(); len(list) != 3 {
				t.Errorf("crash at %d: %d volumes, want 3: %q", at, len(list), s.Recovery())
			}
			info, err := s.Snapshot("a@s")
			if err != nil || at >= recorded && (info.Drill == nil || info.Drill.Command != "c") {
				t.Errorf("crash at %d: %+v, %v", at, info.Drill, err)
			}
			if letters(t, s, "a", "a@s") != "xx" {
				t.Errorf("crash at %d: other bytes", at)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

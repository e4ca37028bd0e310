package store_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// What is told before a delete is what the delete itself would say.
func TestWhetherSnapshotsCanBeDeletedIsToldBeforeOneIs(t *testing.T) {
	s := openWith(t, t.TempDir(), store.Options{})
	createVolume(t, s, "v")
	for _, name := range []string{"free", "held", "locked", "open", "compared"} {
		mustSeal(t, s, name, "v")
	}
	noError(t, second(s.HoldSnapshot(t.Context(), "v@held", "")))
	noError(t, second(s.HoldSnapshot(t.Context(), "v@locked", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))))
	openView(t, s, "v@open")
	changes, err := s.Changes("v@free", "v@compared")
	noError(t, err)
	noError(t, second(s.BeginProcess([]string{"v"}, "p")))
	_, err = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "draining", OnTimeout: volume.TimeoutKeep})
	if !errors.Is(err, store.ErrDraining) {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"v@held": store.ErrHeld, "v@locked": store.ErrHeld, "v@open": store.ErrInUse, "v@compared": store.ErrInUse,
		"v@draining": store.ErrDraining, "v@none": store.ErrNotFound, "none@free": store.ErrNotFound, "v": store.ErrInvalid,
	} {
		told, is := s.Deletable(name), s.DeleteSnapshots(name)
		if !errors.Is(told, want) || told.Error() != is.Error() || strings.Contains(told.Error(), "\n") {
			t.Errorf("%s: it tells %v, and a delete says %v; want %v", name, told, is, want)
		}
	}
	noError(t, changes.Close())
	for _, c := range []struct {
		names []string
		want  error
	}{
		{[]string{"v@free", "v@compared"}, nil},
		{[]string{"v@free", "v@compared", "v@held"}, store.ErrHeld},
		{[]string{"v@free", "v@compared", "v@free"}, store.ErrInvalid},
		{nil, nil},
	} {
		if err := s.Deletable(c.names...); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.names, err, c.want)
		}
	}
	if list, err := s.Snapshots("v"); len(list) != 6 || err != nil {
		t.Errorf("now there are %+v, %v", list, err)
	}
}

func TestWhetherASnapshotCanBeDeletedIsToldWhileAnotherIsBeing(t *testing.T) {
	s, commit := stoppedStore(t, func(op vfs.Op) bool { return op.Kind == vfs.OpCommitted })
	for _, name := range []string{"one", "two"} {
		mustSeal(t, s, name, "v")
	}
	commit.armed.Store(true)
	deleted := make(chan error, 1)
	go func() { deleted <- s.DeleteSnapshots("v@one") }()
	<-commit.reached
	noError(t, s.Deletable("v@two"))
	close(commit.open)
	noError(t, <-deleted)
}

func TestOfManySnapshotsAllAreDeletedInOneStepOrNone(t *testing.T) {
	var commits, fails atomic.Int32
	s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpCommitted && commits.Add(1) == fails.Load() {
			return syscall.ENOSPC
		}
		return nil
	}}})
	createVolume(t, s, "v")
	fulls := []string{"v@one", "v@two", "v@three"}
	for i, full := range append(fulls, "v@four") {
		w := openView(t, s, "v")
		write(t, w, int64(i)*lookup.BlockSize, byte('a'+i))
		noError(t, w.Close())
		mustSeal(t, s, strings.TrimPrefix(full, "v@"), "v")
	}
	s.AwaitPunches()
	s.AwaitSpares()
	want := func(n int, when string) {
		t.Helper()
		if list, err := s.Snapshots("v"); err != nil || len(list) != n {
			t.Fatalf("%s there are %+v, %v", when, list, err)
		}
	}

	noError(t, second(s.HoldSnapshot(t.Context(), "v@three", "")))
	if err := s.DeleteSnapshots(fulls...); !errors.Is(err, store.ErrHeld) {
		t.Fatal(err)
	}
	want(4, "with one held")
	noError(t, second(s.ReleaseSnapshot("v@three")))

	for _, when := range []int32{1, 2} { // before the catalog runs what is to be recorded, and after it
		fails.Store(commits.Load() + when)
		if err := s.DeleteSnapshots(fulls...); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		want(4, "after a commit that failed")
		for _, full := range fulls {
			noError(t, openView(t, s, full).Close())
		}
	}

	release := s.HoldPunches()
	begun := commits.Load()
	noError(t, s.DeleteSnapshots("v@four"))
	one := commits.Load()
	noError(t, s.DeleteSnapshots(fulls...))
	if many := commits.Load() - one; many != one-begun {
		t.Errorf("the catalog is asked %d times for all of them, and %d for one", many, one-begun)
	}
	want(0, "in the end")
	release()
	s.AwaitPunches()
	if dead := s.DeadBlocks(); dead > 0 {
		t.Errorf("%d blocks that nobody sees are left", dead)
	}
	noError(t, s.Close(t.Context()))
}

func TestNobodyOpensASnapshotThatIsBeingDeletedWithOthers(t *testing.T) {
	s, commit := stoppedStore(t, func(op vfs.Op) bool { return op.Kind == vfs.OpCommitted })
	for _, name := range []string{"one", "two"} {
		mustSeal(t, s, name, "v")
	}
	s.AwaitPunches()
	s.AwaitSpares()
	commit.armed.Store(true)
	deleted := make(chan error, 1)
	go func() { deleted <- s.DeleteSnapshots("v@one", "v@two") }()
	<-commit.reached
	for _, full := range []string{"v@one", "v@two"} {
		if w, err := s.OpenView(full); err == nil {
			t.Errorf("%s is opened: %v", full, w)
		}
	}
	close(commit.open)
	noError(t, <-deleted)
}

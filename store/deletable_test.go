package store_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
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
		told, is := s.Deletable(name), s.DeleteSnapshot(name)
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
	go func() { deleted <- s.DeleteSnapshot("v@one") }()
	<-commit.reached
	noError(t, s.Deletable("v@two"))
	close(commit.open)
	noError(t, <-deleted)
}

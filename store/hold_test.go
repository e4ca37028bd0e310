package store_test

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// heldStore is a store with a volume v and its sealed snapshots a and b.
func heldStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s := openStore(t, dir)
	createVolume(t, s, "v")
	mustPreserve(t, s, "a", "v")
	mustPreserve(t, s, "b", "v")
	return s
}

// wantErr holds an error to its kind, and to one line.
func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) || got != nil && strings.Contains(got.Error(), "\n") {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func hold(s *store.Store, t *testing.T, full, until string) error {
	t.Helper()
	_, err := s.HoldSnapshot(t.Context(), full, until)
	return err
}

func TestAHeldSnapshotIsNotDeletedUntilItIsReleased(t *testing.T) {
	dir := path.Join(t.TempDir(), "data")
	s := heldStore(t, dir)
	wantErr(t, "hold", hold(s, t, "v@a", ""), nil)
	wantErr(t, "hold again", hold(s, t, "v@a", ""), nil)
	for range 2 {
		wantErr(t, "delete", s.DeleteSnapshots("v@a"), store.ErrHeld)
		wantErr(t, "delete the volume", s.DeleteVolume("v", true), store.ErrHeld)
		if info := snapshotInfo(t, s, "v@a"); !info.Held || !info.HeldUntil.IsZero() {
			t.Errorf("it is %+v", info)
		}
		closeStore(t, s)
		s = openStore(t, dir)
	}
	wantErr(t, "delete another", s.DeleteSnapshots("v@b"), nil)
	if _, err := s.Clone(t.Context(), "v@a", "c"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "delete a clone", s.DeleteVolume("c", true), nil)
	if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@a", Discard: true}); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "delete after a rollback", s.DeleteSnapshots("v@a"), store.ErrHeld)
	wantErr(t, "delete the volume after a rollback", s.DeleteVolume("v", true), store.ErrHeld)
	for range 2 {
		info, err := s.ReleaseSnapshot("v@a")
		if err != nil || info.Held {
			t.Errorf("released: %+v, %v", info, err)
		}
	}
	wantErr(t, "delete at last", s.DeleteSnapshots("v@a"), nil)
	wantErr(t, "hold what is gone", hold(s, t, "v@a", ""), store.ErrNotFound)
	_, err := s.ReleaseSnapshot("v@a")
	wantErr(t, "release what is gone", err, store.ErrNotFound)
	wantErr(t, "delete the volume at last", s.DeleteVolume("v", true), nil)
}

func TestAHoldUntilADateOnlyEverGetsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := heldStore(t, path.Join(memoryDir(t), "data"))
		defer closeStore(t, s)
		for _, c := range []struct {
			until string
			want  error
			ends  string
		}{
			{"1999-12-31", store.ErrInvalid, "0001-01-01"}, // past
			{"2000-01-01", store.ErrInvalid, "0001-01-01"}, // just now
			{"soon", store.ErrInvalid, "0001-01-01"},
			{"10d", nil, "2000-01-11"},
			{"9d", store.ErrHeld, "2000-01-11"},
			{"1h", store.ErrHeld, "2000-01-11"},
			{"2000-01-11", nil, "2000-01-11"},
			{"1999-01-01", store.ErrInvalid, "2000-01-11"},
			{"2000-01-21T00:00:00Z", nil, "2000-01-21"},
			{"2000-01-21T00:00:00+01:00", store.ErrHeld, "2000-01-21"}, // an hour earlier
			{"", nil, "2000-01-21"},                                    // besides
		} {
			wantErr(t, "hold until "+c.until, hold(s, t, "v@a", c.until), c.want)
			if got := snapshotInfo(t, s, "v@a").HeldUntil.Format(time.DateOnly); got != c.ends {
				t.Errorf("hold until %s: it ends %s, want %s", c.until, got, c.ends)
			}
		}
		for range 2 { // long before, and a second before
			_, err := s.ReleaseSnapshot("v@a")
			wantErr(t, "release", err, store.ErrHeld)
			if info := snapshotInfo(t, s, "v@a"); !info.Held {
				t.Error("a release that was refused has ended a hold")
			}
			wantErr(t, "delete", s.DeleteSnapshots("v@a"), store.ErrHeld)
			wantErr(t, "delete the volume", s.DeleteVolume("v", true), store.ErrHeld)
			time.Sleep(time.Until(time.Date(2000, 1, 20, 23, 59, 59, 0, time.UTC)))
		}
		time.Sleep(2 * time.Second)
		wantErr(t, "delete while it is held without a date", s.DeleteSnapshots("v@a"), store.ErrHeld)
		if info, err := s.ReleaseSnapshot("v@a"); err != nil || info.Held || !info.HeldUntil.IsZero() {
			t.Errorf("released: %+v, %v", info, err)
		}
		wantErr(t, "delete when all is over", s.DeleteSnapshots("v@a"), nil)
		if n := len(cuts(t, s, "v")); n != 1 {
			t.Errorf("%d snapshots are left", n)
		}
	})
}

func TestWithTheClockMovedBackNoHoldIsJudged(t *testing.T) {
	dir := path.Join(memoryDir(t), "data")
	synctest.Test(t, func(t *testing.T) {
		s := heldStore(t, dir)
		mustPreserve(t, s, "c", "v")
		wantErr(t, "hold", hold(s, t, "v@a", "10d"), nil)
		wantErr(t, "hold", hold(s, t, "v@c", "100d"), nil)
		time.Sleep(20 * 24 * time.Hour)
		wantErr(t, "delete, which looks at the clock", s.DeleteSnapshots("v@c"), store.ErrHeld)
		closeStore(t, s)
	})
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 again
		s := openStore(t, dir)
		defer closeStore(t, s)
		time.Sleep(19 * 24 * time.Hour)
		refused := func() {
			t.Helper()
			wantErr(t, "delete what is held", s.DeleteSnapshots("v@c"), store.ErrClock)
			wantErr(t, "delete what was held", s.DeleteSnapshots("v@a"), store.ErrClock)
			wantErr(t, "delete the volume", s.DeleteVolume("v", true), store.ErrClock)
			wantErr(t, "hold for a time", hold(s, t, "v@b", "30d"), store.ErrClock)
			_, err := s.ReleaseSnapshot("v@a")
			wantErr(t, "release", err, store.ErrClock)
		}
		refused()
		time.Sleep(24*time.Hour - 6*time.Minute)
		refused()
		wantErr(t, "hold without a date", hold(s, t, "v@b", ""), nil)
		_, err := s.ReleaseSnapshot("v@b")
		wantErr(t, "release what has no date", err, nil)
		time.Sleep(2 * time.Minute) // a little is let pass
		wantErr(t, "delete what is held", s.DeleteSnapshots("v@c"), store.ErrHeld)
		wantErr(t, "delete what was held", s.DeleteSnapshots("v@a"), nil)
	})
}

func TestWhatStillDrainsIsNeitherHeldNorLabelled(t *testing.T) {
	s := heldStore(t, path.Join(t.TempDir(), "data"))
	p, err := s.BeginProcess([]string{"v"}, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "c", OnTimeout: volume.TimeoutKeep, Labels: map[string]string{"k": "v"}})
	wantErr(t, "preserve", err, store.ErrDraining)
	wantErr(t, "hold", hold(s, t, "v@c", "1d"), store.ErrDraining)
	_, err = s.LabelSnapshot(t.Context(), "v@c", nil, []string{"k"})
	wantErr(t, "label", err, store.ErrDraining)
	if info := snapshotInfo(t, s, "v@c"); info.Held || info.Labels["k"] != "v" {
		t.Errorf("it is %+v", info)
	}
	if _, err := s.EndProcess(p.Token, false); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "seal", s.WaitSealed(t.Context(), "v@c"), nil)
	wantErr(t, "hold when it has drained", hold(s, t, "v@c", "1d"), nil)
}

func TestLabelsAreSetAndRemovedAndStay(t *testing.T) {
	dir := path.Join(t.TempDir(), "data")
	s := heldStore(t, dir)
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "c", Wait: time.Minute, Labels: map[string]string{"k": "v", "why": "an upgrade, à la carte"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LabelSnapshot(t.Context(), "v@c", map[string]string{"k": "w", "empty": ""}, []string{"why", "none"}); err != nil {
		t.Fatal(err)
	}
	many := map[string]string{}
	for i := range store.MaxLabels - 1 {
		many[fmt.Sprint("n", i)] = "v"
	}
	for what, bad := range map[string]map[string]string{
		"no key": {"": "v"}, "a key with a space": {"a b": "v"}, "a key that ends with a hyphen": {"a-": "v"}, "a long key": {strings.Repeat("k", 64): "v"},
		"a value of two lines": {"k": "a\nb"}, "a value that is no text": {"k": "\xff"}, "a long value": {"k": strings.Repeat("v", 256)},
		"too many in all": many,
	} {
		_, err := s.LabelSnapshot(t.Context(), "v@c", bad, nil)
		wantErr(t, what, err, store.ErrInvalid)
		if len(bad) == 1 {
			_, err = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "d", Labels: bad})
			wantErr(t, what, err, store.ErrInvalid)
		}
	}
	for range 2 {
		want := map[string]string{"k": "w", "empty": ""}
		if info := snapshotInfo(t, s, "v@c"); !maps.Equal(info.Labels, want) || !info.Labelled(want) || info.Labelled(map[string]string{"k": "v"}) || info.Labelled(map[string]string{"none": ""}) {
			t.Errorf("it has the labels %v, want %v", info.Labels, want)
		}
		closeStore(t, s)
		s = openStore(t, dir)
	}
	if n := len(cuts(t, s, "v")); n != 3 {
		t.Errorf("%d snapshots, want 3: one that was refused was made", n)
	}
}

// A scrub records the image of a snapshot too: it must not bring back old marks.
func TestMarksStayWhileTheImageIsRecordedBeside(t *testing.T) {
	dir := path.Join(memoryDir(t), "data")
	s := heldStore(t, dir)
	done := make(chan error, 1)
	go func() {
		var err error
		for range 30 {
			_, scrubbed := s.Scrub(t.Context())
			err = errors.Join(err, scrubbed)
		}
		done <- err
	}()
	for i := range 30 {
		if _, err := s.LabelSnapshot(t.Context(), "v@a", map[string]string{"n": fmt.Sprint(i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "hold", hold(s, t, "v@a", "1d"), nil)
	wantErr(t, "scrub", <-done, nil)
	closeStore(t, s)
	s = openStore(t, dir)
	if info := snapshotInfo(t, s, "v@a"); info.Labels["n"] != "29" || info.HeldUntil.IsZero() {
		t.Errorf("it is %+v", info)
	}
}

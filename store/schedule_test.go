package store_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/keep"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

var keepDays = flag.Int("keep.days", 35, "how many days of hourly snapshots are lived; 400 for a whole year")

// The bubble of a synctest begins on 2000-01-01, at midnight in UTC.

func setSchedule(t *testing.T, s *store.Store, target, every, keep string) store.ScheduleInfo {
	t.Helper()
	info, err := s.SetSchedule(target, store.ScheduleSettings{Every: every, Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func createVolume(t *testing.T, s *store.Store, name string) {
	t.Helper()
	if _, err := s.CreateVolume(name, 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
}

// pass lets a time go by, and all that is due then be done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// cuts are the times of a volume's snapshots, without seconds.
func cuts(t *testing.T, s *store.Store, name string) (times []string) {
	t.Helper()
	list, err := s.Snapshots(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		times = append(times, info.CutTime.UTC().Format("01-02 15:04"))
	}
	return times
}

func wantCuts(t *testing.T, s *store.Store, name string, want ...string) {
	t.Helper()
	if got := cuts(t, s, name); !slices.Equal(got, want) {
		t.Errorf("%s has snapshots of %q, want %q", name, got, want)
	}
}

func TestAScheduleMakesSnapshotsOnTheClockAndLetsThemGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, path.Join(memoryDir(t), "data"))
		defer closeStore(t, s)
		createVolume(t, s, "v")
		createVolume(t, s, "w")
		pass(20 * time.Minute)
		info := setSchedule(t, s, "v", "1h", "2h:1h,1d:6h")
		if info.Next.UTC().Format("15:04") != "01:00" || !info.Last.IsZero() || info.Snapshots != 0 || info.Most != 9 {
			t.Errorf("a new schedule is %+v", info)
		}
		mustPreserve(t, s, "mine", "v")
		pass(time.Hour)
		wantCuts(t, s, "v", "01-01 00:20", "01-01 01:00")
		list, _ := s.Snapshots("v")
		if x := list[1]; x.Name != "20000101T010000.000Z" || x.Schedule != "v" || list[0].Schedule != "" {
			t.Errorf("it made %+v beside %+v", x, list[0])
		}
		pass(6 * time.Hour)
		wantCuts(t, s, "v", "01-01 00:20", "01-01 01:00", "01-01 05:00", "01-01 06:00", "01-01 07:00")
		pass(24 * time.Hour)
		wantCuts(t, s, "v", "01-01 00:20", "01-01 06:00", "01-01 12:00", "01-01 18:00", "01-02 00:00", "01-02 05:00", "01-02 06:00", "01-02 07:00")
		if info, err := s.Schedule("v"); err != nil || info.Snapshots != 7 || info.Failed != "" || info.Last.UTC().Format("15:04") != "07:00" || info.Next.UTC().Format("15:04") != "08:00" {
			t.Errorf("the schedule is %+v, %v", info, err)
		}
		wantCuts(t, s, "w")
		if err := s.RemoveSchedule("v"); err != nil {
			t.Fatal(err)
		}
		pass(24 * time.Hour)
		if n := len(cuts(t, s, "v")); n != 8 {
			t.Errorf("%d snapshots after the schedule is gone, want the 8 that were there", n)
		}
		if err := s.RemoveSchedule("v"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("removed again: %v", err)
		}
	})
}

// Each of its snapshots can be cloned as one of the group, for which they must be of
// one cut. What one volume can't let go the others do.
func TestAScheduleOfAGroupMakesOneCutAndLetsEachVolumeGoByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := grouped(t, path.Join(memoryDir(t), "data"), store.Options{})
		defer closeStore(t, s)
		setSchedule(t, s, "group:g", "1h", "2h:1h")
		setSchedule(t, s, "a", "1h", "1h:1h") // of which that of the group deletes nothing
		pass(90 * time.Minute)
		noError(t, s.RemoveSchedule("a"))
		list, err := s.Snapshots("b")
		noError(t, err)
		if len(list) != 1 || list[0].Schedule != "group:g" {
			t.Fatalf("b has %+v", list)
		}
		first := list[0].Name
		noError(t, second(s.CloneGroup(t.Context(), "g@"+first, "one", nil)))
		noError(t, second(s.HoldSnapshot(t.Context(), "a@"+first, "")))
		noError(t, second(s.ChangeGroup("g", []string{"c"}, nil, nil)))
		pass(4 * time.Hour)
		wantCuts(t, s, "a", "01-01 01:00", "01-01 01:00", "01-01 03:00", "01-01 04:00", "01-01 05:00")
		wantCuts(t, s, "b", "01-01 03:00", "01-01 04:00", "01-01 05:00")
		wantCuts(t, s, "c", "01-01 03:00", "01-01 04:00", "01-01 05:00")
		list, err = s.Snapshots("c")
		noError(t, err)
		for i, info := range list {
			noError(t, second(s.CloneGroup(t.Context(), "g@"+info.Name, fmt.Sprint("try", i), nil)))
		}
		if info, err := s.Schedule("group:g"); err != nil || info.Snapshots != 10 || info.Most != 4 || info.Failed != "" {
			t.Errorf("the schedule is %+v, %v", info, err)
		}
		mustPreserve(t, s, "now", "a") // of one volume alone
		mustPreserve(t, s, "now", "b", "c")
		if err := second(s.CloneGroup(t.Context(), "g@now", "mixed", nil)); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("of two cuts: %v", err)
		}
	})
}

// While a group has its schedule, that lets go what it made also on a volume that has
// left the group: but nothing that a group of the same name made before.
func TestAScheduleOfAGroupLetsGoWhatItMadeOfAVolumeThatHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := path.Join(memoryDir(t), "data")
		s := grouped(t, dir, store.Options{})
		every := store.ScheduleSettings{Every: "1h", Keep: "3h:1h"}
		setSchedule(t, s, "group:g", every.Every, every.Keep)
		pass(3*time.Hour + time.Minute)
		noError(t, second(s.ChangeGroup("g", nil, []string{"b"}, nil)))
		mustPreserve(t, s, "mine", "b")
		wantCuts(t, s, "b", "01-01 01:00", "01-01 02:00", "01-01 03:00", "01-01 03:01")
		closeStore(t, s)
		s = openStore(t, dir)
		defer func() { closeStore(t, s) }()
		pass(3*time.Hour + time.Minute)
		wantCuts(t, s, "b", "01-01 03:00", "01-01 03:01")
		wantCuts(t, s, "a", "01-01 03:00", "01-01 04:00", "01-01 05:00", "01-01 06:00")
		if p, err := s.PreviewSchedule("group:g", store.ScheduleSettings{Every: "1h", Keep: "1h:1h"}); err != nil || len(p.Expired) != 2 || p.Expired[1] != "a@20000101T040000.000Z" {
			t.Errorf("a preview of another policy: %q, %v", p.Expired, err)
		}
		if info, err := s.Schedule("group:g"); err != nil || info.Snapshots != 5 || info.Failed != "" {
			t.Errorf("the schedule is %+v, %v", info, err)
		}
		noError(t, s.DeleteVolume("b", true))
		pass(time.Hour)
		if info, err := s.Schedule("group:g"); err != nil || info.Failed != "" {
			t.Errorf("when the volume is deleted the schedule is %+v, %v", info, err)
		}

		noError(t, s.DeleteGroup("g", nil))
		pass(3 * time.Hour)
		want := cuts(t, s, "a")
		noError(t, second(s.CreateGroup("g", []string{"c"}, false)))
		setSchedule(t, s, "group:g", every.Every, every.Keep)
		pass(3 * time.Hour)
		wantCuts(t, s, "a", want...)
		closeStore(t, s)
		s = openStore(t, dir)
		pass(3 * time.Hour)
		wantCuts(t, s, "a", want...)
		wantCuts(t, s, "c", "01-01 13:00", "01-01 14:00", "01-01 15:00", "01-01 16:00")
		if info, err := s.Schedule("group:g"); err != nil || info.Snapshots != 4 {
			t.Errorf("the schedule of another group is %+v, %v", info, err)
		}
	})
}

func TestAScheduleOutlivesTheServerAndCatchesUpWithOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := path.Join(memoryDir(t), "data")
		s := openStore(t, dir)
		createVolume(t, s, "v")
		createVolume(t, s, "new")
		setSchedule(t, s, "v", "1h", "1d:1h")
		pass(90 * time.Minute)
		wantCuts(t, s, "v", "01-01 01:00")
		closeStore(t, s)

		pass(10 * time.Minute) // nothing is missed
		s = openStore(t, dir)
		pass(time.Second)
		wantCuts(t, s, "v", "01-01 01:00")
		pass(30 * time.Minute)
		wantCuts(t, s, "v", "01-01 01:00", "01-01 02:00")
		setSchedule(t, s, "new", "1d", "1w:1d")
		closeStore(t, s)

		pass(50 * time.Hour) // all are missed
		s = openStore(t, dir)
		defer closeStore(t, s)
		synctest.Wait()
		wantCuts(t, s, "v", "01-03 04:10")
		wantCuts(t, s, "new", "01-03 04:10")
		pass(time.Hour)
		wantCuts(t, s, "v", "01-03 04:10", "01-03 05:00")
	})
}

func TestAScheduleGoesOnWhenTheClockWasMovedBack(t *testing.T) {
	dir := path.Join(memoryDir(t), "data")
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, dir)
		createVolume(t, s, "v")
		pass(20 * 24 * time.Hour)
		setSchedule(t, s, "v", "1h", "1h:1h")
		pass(90 * time.Minute)
		wantCuts(t, s, "v", "01-21 01:00")
		closeStore(t, s)
	})
	synctest.Test(t, func(t *testing.T) { // it is 01-01 again
		s := openStore(t, dir)
		defer closeStore(t, s)
		if info, err := s.Schedule("v"); err != nil || info.Next.UTC().Format("01-02 15:04") != "01-01 01:00" {
			t.Errorf("it is %+v, %v", info, err)
		}
		pass(3*time.Hour + time.Minute)
		wantCuts(t, s, "v", "01-21 01:00", "01-01 02:00", "01-01 03:00") // what is still to come stays
	})
}

func TestAScheduleThatWasSetSurvivesAPowerCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := vfs.NewSim(memoryDir(t))
		s, err := store.Open("data", store.Options{FS: sim})
		if err != nil {
			t.Fatal(err)
		}
		createVolume(t, s, "v")
		mustPreserve(t, s, "a", "v")
		setSchedule(t, s, "v", "1h", "1d:1h")
		if _, err := s.HoldSnapshot(t.Context(), "v@a", "30d"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.LabelSnapshot(t.Context(), "v@a", map[string]string{"k": "v"}, nil); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		disk := sim.PowerCut(sim.Ops(), nil)
		closeStore(t, s)
		s, err = store.Open("data", store.Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		defer closeStore(t, s)
		if err := s.DeleteSnapshots("v@a"); !errors.Is(err, store.ErrHeld) {
			t.Errorf("deleted: %v", err)
		}
		if info, err := s.Snapshot("v@a"); err != nil || info.Labels["k"] != "v" {
			t.Errorf("%+v, %v", info, err)
		}
		pass(time.Hour)
		wantCuts(t, s, "v", "01-01 00:00", "01-01 01:00", "01-01 02:00")
		if info, err := s.Schedule("v"); err != nil || info.Snapshots != 2 {
			t.Errorf("%+v, %v", info, err)
		}
	})
}

func TestTheNameKeepsItsScheduleOverARollbackAndTakesItAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := path.Join(memoryDir(t), "data")
		s := openStore(t, dir)
		createVolume(t, s, "v")
		setSchedule(t, s, "v", "1h", "3h:1h")
		pass(90 * time.Minute)
		if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@20000101T010000.000Z", Keep: "before"}); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		wantCuts(t, s, "v", "01-01 01:00", "01-01 01:30", "01-01 02:00")
		pass(3 * time.Hour) // also what the past has is let go
		wantCuts(t, s, "v", "01-01 01:30", "01-01 02:00", "01-01 03:00", "01-01 04:00", "01-01 05:00")
		closeStore(t, s)
		s = openStore(t, dir)
		if _, err := s.Schedule("v"); err != nil {
			t.Error(err)
		}
		if err := s.DeleteVolume("v", true); err != nil {
			t.Fatal(err)
		}
		if list := s.Schedules(); len(list) > 0 {
			t.Errorf("the volume is gone, and there is %+v", list)
		}
		createVolume(t, s, "v")
		pass(2 * time.Hour)
		closeStore(t, s)
		s = openStore(t, dir)
		defer closeStore(t, s)
		if list := s.Schedules(); len(list) > 0 {
			t.Errorf("the volume is gone, and there is %+v", list)
		}
		wantCuts(t, s, "v")
	})
}

func TestRetentionLeavesWhatIsHeldOpenOrDrainingForLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, path.Join(memoryDir(t), "data"))
		defer closeStore(t, s)
		createVolume(t, s, "v")
		setSchedule(t, s, "v", "1h", "1h:1h")
		pass(65 * time.Minute)
		first, _ := s.Snapshots("v")
		if _, err := s.HoldSnapshot(t.Context(), "v@"+first[0].Name, "6h"); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		list, _ := s.Snapshots("v")
		w, err := s.OpenView("v@" + list[1].Name)
		if err != nil {
			t.Fatal(err)
		}
		pass(3 * time.Hour)
		wantCuts(t, s, "v", "01-01 01:00", "01-01 02:00", "01-01 04:00", "01-01 05:00")
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		wantCuts(t, s, "v", "01-01 01:00", "01-01 05:00", "01-01 06:00")
		pass(2 * time.Hour)
		wantCuts(t, s, "v", "01-01 07:00", "01-01 08:00")
		if info, err := s.Schedule("v"); err != nil || info.Failed != "" {
			t.Errorf("%+v, %v", info, err)
		}
	})
}

// What had a hold is not judged with the clock moved back, and nothing else waits for it.
func TestRetentionLeavesWhatWasHeldForLaterWhenTheClockWasMovedBack(t *testing.T) {
	dir := path.Join(memoryDir(t), "data")
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, dir)
		createVolume(t, s, "v")
		setSchedule(t, s, "v", "1h", "1h:1h")
		pass(time.Hour)
		noError(t, s.RemoveSchedule("v"))
		noError(t, hold(s, t, "v@20000101T010000.000Z", "10d"))
		mustPreserve(t, s, "mine", "v")
		noError(t, hold(s, t, "v@mine", "100d"))
		pass(20 * 24 * time.Hour)
		wantErr(t, "delete, which looks at the clock", s.DeleteSnapshots("v@mine"), store.ErrHeld)
		closeStore(t, s)
	})
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01 again
		s := openStore(t, dir)
		defer closeStore(t, s)
		pass(15 * 24 * time.Hour)
		setSchedule(t, s, "v", "1h", "1h:1h")
		pass(4 * time.Hour)
		wantCuts(t, s, "v", "01-01 01:00", "01-01 01:00", "01-16 03:00", "01-16 04:00")
		if info, err := s.Schedule("v"); err != nil || info.Failed != "" {
			t.Errorf("the schedule is %+v, %v", info, err)
		}
		pass(5 * 24 * time.Hour)
		wantCuts(t, s, "v", "01-01 01:00", "01-21 03:00", "01-21 04:00")
	})
}

// lines keeps the lines of a log.
type lines struct{ bytes.Buffer }

func (l *lines) count(text string) int { return strings.Count(l.String(), text) }

// A preserve of a schedule that is given up, or for which there is no room, leaves no
// snapshot, image or file behind; it is told once, and tried again.
func TestAScheduledPreserveThatFailsLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		var full atomic.Bool
		sim := vfs.NewSim(memoryDir(t))
		s, err := store.Open("data", store.Options{
			Logger: slog.New(slog.NewTextHandler(&log, nil)), ReclaimEvery: time.Minute, ReserveBytes: 1 << 20, // as serve has them
			FS: vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
				if full.Load() && (op.Kind == vfs.OpCommitted || op.Kind == vfs.OpFree) {
					return syscall.ENOSPC
				}
				return nil
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer closeStore(t, s)
		createVolume(t, s, "v")
		setSchedule(t, s, "v", "1h", "1d:1h")
		synctest.Wait()
		files := func() int { // with those made ahead, which may be fewer on a full disk
			names, err := sim.ReadDir("data/images")
			if err != nil {
				t.Fatal(err)
			}
			return len(names)
		}
		before := files()
		nothing := func(what string) {
			t.Helper()
			wantCuts(t, s, "v")
			if v, err := s.Volume("v"); err != nil || v.Snapshots != 0 || v.Images != 1 || files() > before {
				t.Errorf("%s: %+v, %v, and %d files of images, not %d", what, v, err, files(), before)
			}
		}

		p, err := s.BeginProcess([]string{"v"}, "")
		if err != nil {
			t.Fatal(err)
		}
		pass(time.Hour + 30*time.Second)
		if info, err := s.Schedule("v"); err != nil || info.Snapshots != 1 || info.Failed != "" {
			t.Errorf("while it waits it is %+v, %v", info, err) // its snapshot drains
		}
		pass(time.Minute)
		for range 2 {
			info, err := s.Schedule("v")
			if err != nil || !strings.Contains(info.Failed, "aborted") || !info.Last.IsZero() {
				t.Errorf("after its deadline it is %+v, %v", info, err)
			}
			pass(time.Hour)
		}
		if n := log.count("aborted"); n != 1 {
			t.Errorf("the failure was told %d times:\n%s", n, &log)
		}
		if _, err := s.EndProcess(p.Token, false); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Minute)
		nothing("given up")

		full.Store(true)
		pass(time.Hour)
		nothing("no room")
		if info, err := s.Schedule("v"); err != nil || !strings.Contains(info.Failed, "no space") {
			t.Errorf("without room it is %+v, %v", info, err)
		}
		full.Store(false)
		pass(time.Hour)
		if info, err := s.Schedule("v"); err != nil || info.Failed != "" || info.Snapshots != 1 {
			t.Errorf("at last it is %+v, %v", info, err)
		}
	})
}

func TestACloseDoesNotWaitForWhatAScheduleWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := path.Join(memoryDir(t), "data")
		s := openStore(t, dir)
		createVolume(t, s, "v")
		setSchedule(t, s, "v", "1h", "1d:1h")
		if _, err := s.BeginProcess([]string{"v"}, ""); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour + time.Second)
		before := time.Now()
		closeStore(t, s)
		if took := time.Since(before); took >= 30*time.Second {
			t.Errorf("the close took %v", took)
		}
		s = openStore(t, dir)
		defer closeStore(t, s)
		if list, err := s.Snapshots("v"); err != nil || len(list) != 1 || list[0].Schedule != "v" || len(list[0].Torn) != 1 {
			t.Errorf("it left %+v, %v", list, err)
		}
	})
}

// What of holds, labels and schedules was acknowledged is there after a crash at any
// operation, and what was on its way is there or not.
func TestACrashLosesNoHoldLabelOrSchedule(t *testing.T) {
	sim := vfs.NewSim(memoryDir(t))
	s, err := store.Open("data", store.Options{FS: sim})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(t.Context()) })
	createVolume(t, s, "v")
	mustPreserve(t, s, "a", "v")
	state := func(s *store.Store) string {
		a := snapshotInfo(t, s, "v@a")
		text := fmt.Sprint(a.Held, a.HeldUntil, a.Labels)
		for _, x := range s.Schedules() {
			text += x.Target + x.Every + x.Keep
		}
		return text
	}
	type moment struct {
		ops   int
		state string
	}
	moments := []moment{{sim.Ops(), state(s)}}
	for _, change := range []func() error{
		func() error { return hold(s, t, "v@a", "") },
		func() error { return hold(s, t, "v@a", "2999-01-01") },
		func() error {
			_, err := s.SetSchedule("v", store.ScheduleSettings{Every: "@yearly", Keep: "1y:1d"})
			return err
		},
		func() error {
			_, err := s.LabelSnapshot(t.Context(), "v@a", map[string]string{"k": "v"}, nil)
			return err
		},
		func() error {
			_, err := s.SetSchedule("v", store.ScheduleSettings{Every: "@monthly", Keep: "1y:1mo"})
			return err
		},
		func() error { return hold(s, t, "v@a", "2999-01-02") },
		func() error { _, err := s.LabelSnapshot(t.Context(), "v@a", nil, []string{"k"}); return err },
		func() error { return s.RemoveSchedule("v") },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		moments = append(moments, moment{sim.Ops(), state(s)})
	}
	for i, last := range moments[:len(moments)-1] {
		next := moments[i+1]
		for at := last.ops; at < next.ops; at++ {
			for _, disk := range []*vfs.Sim{sim.KillAt(at, nil), sim.PowerCut(at, nil)} {
				after, err := store.Open("data", store.Options{FS: disk})
				if err != nil {
					t.Fatal(err)
				}
				if got := state(after); got != last.state && got != next.state {
					t.Errorf("crash at operation %d, after change %d: %s, want %s or %s", at, i, got, last.state, next.state)
				}
				wantErr(t, "close", after.Close(t.Context()), nil)
			}
		}
	}
	t.Logf("%d operations", moments[len(moments)-1].ops-moments[0].ops)
}

// What has no successor stays, unless room is what it lacks.
func TestAScheduleThatCannotPreserveDeletesNothingButOnAFullDisk(t *testing.T) {
	onDiskOf(t, 4<<20, func(d *fullDisk) {
		setSchedule(t, d.Store, "v", "1h", "2h:1h")
		pass(4*time.Hour + time.Minute)
		made := []string{"01-01 02:00", "01-01 03:00", "01-01 04:00"}
		wantCuts(t, d.Store, "v", made...)
		p, err := d.BeginProcess([]string{"v"}, "")
		d.want("begin a process", err, nil)
		pass(4*time.Hour + time.Minute)
		wantCuts(t, d.Store, "v", made...)
		_, err = d.EndProcess(p.Token, false)
		d.want("end it", err, nil)
		d.quota.SetFree(0)
		pass(time.Hour)
		wantCuts(t, d.Store, "v", made[2])
		if info, err := d.Schedule("v"); err != nil || !strings.Contains(info.Failed, "too little room") {
			t.Errorf("on a full disk it is %+v, %v", info, err)
		}
	})
}

func TestAScheduleWaitsForNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, path.Join(memoryDir(t), "data"))
		defer closeStore(t, s)
		createVolume(t, s, "a")
		createVolume(t, s, "b")
		setSchedule(t, s, "a", "10s", "1h:10s")
		setSchedule(t, s, "b", "10s", "1h:10s")
		p, err := s.BeginProcess([]string{"a"}, "")
		if err != nil {
			t.Fatal(err)
		}
		pass(55 * time.Second)
		if n := len(cuts(t, s, "b")); n != 5 {
			t.Errorf("b has %d snapshots while a waits, want 5", n)
		}
		if _, err := s.EndProcess(p.Token, false); err != nil {
			t.Fatal(err)
		}
		pass(20 * time.Second)
		if n := len(cuts(t, s, "a")); n != 3 {
			t.Errorf("a has %d snapshots, want the one that waited and two", n)
		}
	})
}

func TestAPreviewOfAScheduleChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, path.Join(memoryDir(t), "data"))
		defer closeStore(t, s)
		createVolume(t, s, "v")
		setSchedule(t, s, "v", "1h", "1d:1h")
		pass(5*time.Hour + time.Minute)
		list, _ := s.Snapshots("v")
		if _, err := s.HoldSnapshot(t.Context(), "v@"+list[1].Name, ""); err != nil {
			t.Fatal(err)
		}
		p, err := s.PreviewSchedule("v", store.ScheduleSettings{Every: "30 2 * * *", Keep: "1h:1h"})
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"v@20000101T010000.000Z", "v@20000101T030000.000Z"}; !slices.Equal(p.Expired, want) {
			t.Errorf("it would delete %q, want %q", p.Expired, want)
		}
		if len(p.Next) != 5 || p.Next[4].UTC().Format(time.DateTime) != "2000-01-06 02:30:00" {
			t.Errorf("it would be due at %v", p.Next)
		}
		if info, err := s.Schedule("v"); err != nil || info.Every != "1h" || info.Snapshots != 5 {
			t.Errorf("the schedule is %+v, %v", info, err)
		}
	})
}

func TestAScheduleThatCannotBeIsRefused(t *testing.T) {
	s := openStore(t, path.Join(t.TempDir(), "data"))
	createVolume(t, s, "v")
	for _, c := range []struct {
		target, every, keep string
		want                error
	}{
		{"v", "often", "1d:1h", store.ErrInvalid},
		{"v", "1h", "all", store.ErrInvalid},
		{"", "1h", "1d:1h", store.ErrInvalid},
		{"group:g", "1h", "1d:1h", store.ErrNotFound},
		{"none", "1h", "1d:1h", store.ErrNotFound},
	} {
		if _, err := s.SetSchedule(c.target, store.ScheduleSettings{Every: c.every, Keep: c.keep}); !errors.Is(err, c.want) {
			t.Errorf("schedule of %q every %q, keep %q: %v, want %v", c.target, c.every, c.keep, err, c.want)
		}
		if _, err := s.PreviewSchedule(c.target, store.ScheduleSettings{Every: c.every, Keep: c.keep}); !errors.Is(err, c.want) {
			t.Errorf("preview of %q every %q, keep %q: %v, want %v", c.target, c.every, c.keep, err, c.want)
		}
	}
	if list := s.Schedules(); len(list) > 0 {
		t.Errorf("there is %+v", list)
	}
}

// Hourly snapshots for weeks, or more than a year, over a server that is restarted now
// and then: what is left is what the policy keeps of all, and never more than its bound.
func TestATimeOfHourlySnapshotsEndsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := path.Join(memoryDir(t), "data")
		folding := store.Options{FoldAbove: 4}
		s := openWith(t, dir, folding)
		defer func() { closeStore(t, s) }()
		createVolume(t, s, "v")
		const text = "24h:1h,30d:1d,1y:1mo"
		most := setSchedule(t, s, "v", "1h", text).Most
		policy, err := keep.ParsePolicy(text)
		if err != nil {
			t.Fatal(err)
		}
		var all []time.Time
		for d := range *keepDays {
			w := openView(t, s, "v")
			write(t, w, int64(d%200)*4096, byte('a'+d%26))
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			for range 24 {
				time.Sleep(time.Hour)
				all = append(all, time.Now().Truncate(time.Hour).UTC())
			}
			synctest.Wait()
			if n := len(cuts(t, s, "v")); n > most {
				t.Fatalf("after %d days there are %d snapshots, more than %d", d, n, most)
			}
			if d%15 == 14 {
				closeStore(t, s)
				s = openWith(t, dir, folding)
			}
		}
		var want []string
		expired := policy.Expired(all, time.Now())
		for i, at := range all {
			if !slices.Contains(expired, i) {
				want = append(want, at.Format("01-02 15:04"))
			}
		}
		wantCuts(t, s, "v", want...)
		s.Reclaim()
		s.AwaitPunches()
		v, err := s.Volume("v")
		if err != nil || v.Images > v.Snapshots+folding.FoldAbove+2 { // the live one, and the one below it
			t.Errorf("%d images for %d snapshots, %v", v.Images, v.Snapshots, err)
		}
		t.Logf("%d snapshots and %d images are left", v.Snapshots, v.Images)
	})
}

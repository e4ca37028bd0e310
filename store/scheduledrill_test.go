package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
)

// driller is a store.Driller that runs nothing: it takes a time, and says what it is
// told to say.
type driller struct {
	takes  time.Duration
	code   func(snapshot string) int         // nil: all pass
	during func(snapshot, clone string)      // called when one begins
	fails  func(snapshot string) (err error) // nil: all can be run

	mu            sync.Mutex
	begun         []*string // "01-01 01:00 VOLUME@SNAPSHOT", and whether it was cut short
	running, most int
}

func (d *driller) Programs() []string { return nil }

func (d *driller) Check(program string) error {
	if program != "check" {
		return fmt.Errorf("%w: drill %q: there is check", store.ErrInvalid, program)
	}
	return nil
}

func (d *driller) Drill(ctx context.Context, program, snapshot, clone string) (store.Drill, error) {
	what := shortly(time.Now()) + " " + drilledShort(snapshot)
	d.mu.Lock()
	d.begun = append(d.begun, &what)
	d.running++
	d.most = max(d.most, d.running)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.running--
	}()
	if d.fails != nil {
		if err := d.fails(snapshot); err != nil {
			return store.Drill{}, err
		}
	}
	if d.during != nil {
		d.during(snapshot, clone)
	}
	select {
	case <-ctx.Done():
		d.mu.Lock()
		what += " cut short"
		d.mu.Unlock()
		return store.Drill{}, ctx.Err()
	case <-time.After(d.takes):
	}
	result := store.Drill{Took: d.takes, Command: program, Output: "seen " + snapshot}
	if d.code != nil {
		result.ExitCode = d.code(snapshot)
	}
	return result, nil
}

// want tells whether these and no others were made, and forgets them.
func (d *driller) want(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	var got []string
	for _, what := range d.begun {
		got = append(got, *what)
	}
	if !slices.Equal(got, want) {
		t.Errorf("drills of %q, want %q", got, want)
	}
	d.begun = nil
}

func shortly(at time.Time) string { return at.UTC().Format("01-02 15:04") }

// drilledShort writes VOLUME@20000102T150405.000Z as VOLUME@01-02 15:04.
func drilledShort(full string) string {
	volumeName, name, _ := strings.Cut(full, "@")
	at, err := time.Parse("20060102T150405.000Z", name)
	if err != nil {
		return full
	}
	return volumeName + "@" + shortly(at)
}

func setDrills(t *testing.T, s *store.Store, target string, set store.ScheduleSettings) {
	t.Helper()
	set.Drill = "check"
	if _, err := s.SetSchedule(target, set); err != nil {
		t.Fatal(err)
	}
}

// results are the snapshots of a volume that were drilled, and how.
func results(t *testing.T, s *store.Store, name string) (list []string) {
	t.Helper()
	infos, err := s.Snapshots(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if i.Drill != nil {
			list = append(list, fmt.Sprintf("%s: %d", shortly(i.CutTime), i.Drill.ExitCode))
		}
	}
	return list
}

func wantResults(t *testing.T, s *store.Store, name string, want ...string) {
	t.Helper()
	if got := results(t, s, name); !slices.Equal(got, want) {
		t.Errorf("%s has drills of %q, want %q", name, got, want)
	}
}

func wantVolumes(t *testing.T, s *store.Store, want ...string) {
	t.Helper()
	var got []string
	for _, v := range s.Volumes() {
		got = append(got, v.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("there are volumes %q, want %q", got, want)
	}
}

// failsAt is a program that fails for snapshots whose name has one of the texts.
func failsAt(texts ...string) func(string) int {
	return func(snapshot string) int {
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(snapshot, text) }) {
			return 3
		}
		return 0
	}
}

func TestEachSnapshotOfAScheduleIsDrilledAndWhatCameOfItIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		d := &driller{takes: time.Minute, code: failsAt("T0200")}
		s := openWith(t, path.Join(memoryDir(t), "data"), store.Options{Driller: d, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		defer closeStore(t, s)
		createVolume(t, s, "v")
		createVolume(t, s, "w")
		put(t, s, 'x', "v")
		d.during = func(_, clone string) {
			if got := letters(t, s, clone); got != "x" {
				t.Errorf("the clone reads %q", got)
			}
			put(t, s, 'y', clone)
		}
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		setSchedule(t, s, "w", "1h", "1d:1h")
		mustSeal(t, s, "mine", "v")
		pass(time.Hour)
		if info, err := s.Schedule("v"); err != nil || info.Drilling != "v@20000101T010000.000Z" || info.Drilled != nil || info.Most != 28 {
			t.Errorf("while it is drilled it is %+v, %v", info, err)
		}
		pass(2*time.Hour + 2*time.Minute)
		d.want(t, "01-01 01:00 v@01-01 01:00", "01-01 02:00 v@01-01 02:00", "01-01 03:00 v@01-01 03:00")
		wantResults(t, s, "v", "01-01 01:00: 0", "01-01 02:00: 3", "01-01 03:00: 0")
		wantResults(t, s, "w")
		wantVolumes(t, s, "v", "w")
		if i := snapshotInfo(t, s, "v@20000101T020000.000Z"); i.Drill.Command != "check" || i.Drill.Took != time.Minute || shortly(i.Drill.Time) != "01-01 02:01" || !strings.Contains(i.Drill.Output, "seen v@") {
			t.Errorf("recorded is %+v", i.Drill)
		}
		info, err := s.Schedule("v")
		if err != nil || info.Drilling != "" || info.DrillFailed != "" || len(info.Drilled) != 1 {
			t.Fatalf("it is %+v, %v", info, err)
		}
		if last := info.Drilled[0]; last.Name != "v@20000101T030000.000Z" || last.Drill.ExitCode != 0 || last.Drill.Output != "" {
			t.Errorf("the last drill is %+v", last)
		}
		if n := log.count("exitCode=3"); n != 1 || log.count("T020000") != 1 || log.count("program=check") != 1 {
			t.Errorf("the one that failed was told %d times:\n%s", n, &log)
		}
		if letters(t, s, "v@20000101T020000.000Z", "v") != "xx" {
			t.Error("what a program wrote is in a snapshot")
		}
	})
}

func TestADrillWithATimeOfItsOwnIsDueWhenThatHasCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := path.Join(memoryDir(t), "data")
		d := &driller{}
		s := openWith(t, dir, store.Options{Driller: d})
		createVolume(t, s, "v")
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1w:1h", DrillEvery: "30 0 * * *"})
		pass(26 * time.Hour)
		d.want(t, "01-01 01:00 v@01-01 01:00", "01-02 01:00 v@01-02 01:00")
		closeStore(t, s)
		pass(22*time.Hour + 40*time.Minute) // its time comes while no server runs
		s = openWith(t, dir, store.Options{Driller: d})
		defer closeStore(t, s)
		pass(5 * time.Hour)
		d.want(t, "01-03 00:40 v@01-03 00:40")
	})
}

func TestARestartNeitherRepeatsNorLosesADrill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := path.Join(memoryDir(t), "data")
		d := &driller{takes: 10 * time.Minute}
		s := openWith(t, dir, store.Options{Driller: d})
		createVolume(t, s, "v")
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		pass(time.Hour + 15*time.Minute)
		d.want(t, "01-01 01:00 v@01-01 01:00")
		closeStore(t, s)
		s = openWith(t, dir, store.Options{Driller: d})
		pass(30 * time.Minute)
		d.want(t)

		pass(20 * time.Minute) // in the midst of one
		before := time.Now()
		closeStore(t, s)
		if took := time.Since(before); took > time.Second {
			t.Errorf("the close took %v", took)
		}
		d.want(t, "01-01 02:00 v@01-01 02:00 cut short")
		s = openWith(t, dir, store.Options{Driller: d})
		if lines := s.Recovery(); slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "drill") }) {
			t.Errorf("the close left a clone: %q", lines)
		}
		wantResults(t, s, "v", "01-01 01:00: 0")
		pass(15 * time.Minute)
		d.want(t, "01-01 02:05 v@01-01 02:00")
		wantResults(t, s, "v", "01-01 01:00: 0", "01-01 02:00: 0")

		s.EndSchedules() // as a server does that takes leave
		pass(3 * time.Hour)
		closeStore(t, s)
		s = openWith(t, dir, store.Options{Driller: d})
		defer closeStore(t, s)
		pass(time.Minute) // the snapshot that is due comes first
		d.want(t, "01-01 05:20 v@01-01 05:20")
	})
}

func TestNoSnapshotIsLateForADrillAndWhatComesDueMeanwhileIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driller{takes: 150 * time.Minute}
		s := openWith(t, path.Join(memoryDir(t), "data"), store.Options{Driller: d})
		defer closeStore(t, s)
		createVolume(t, s, "v")
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		pass(8 * time.Hour)
		wantCuts(t, s, "v", "01-01 01:00", "01-01 02:00", "01-01 03:00", "01-01 04:00", "01-01 05:00", "01-01 06:00", "01-01 07:00", "01-01 08:00")
		d.want(t, "01-01 01:00 v@01-01 01:00", "01-01 04:00 v@01-01 04:00", "01-01 07:00 v@01-01 07:00")
		wantResults(t, s, "v", "01-01 01:00: 0", "01-01 04:00: 0")
	})
}

func TestDrillsOfAllSchedulesAreOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driller{takes: 15 * time.Minute}
		s := openWith(t, path.Join(memoryDir(t), "data"), store.Options{Driller: d})
		defer closeStore(t, s)
		for _, name := range []string{"a", "b", "c"} {
			createVolume(t, s, name)
			setDrills(t, s, name, store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		}
		pass(24 * time.Hour)
		for _, name := range []string{"a", "b", "c"} {
			if n := len(results(t, s, name)); n < 20 {
				t.Errorf("%s was drilled %d times", name, n)
			}
		}
		if d.most != 1 {
			t.Errorf("%d ran at once", d.most)
		}
	})
}

func TestWhatWasDrilledLastAndWhatPassedLastAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driller{takes: time.Minute, code: failsAt("T0600", "T0800", "T1000")}
		s := openWith(t, path.Join(memoryDir(t), "data"), store.Options{Driller: d})
		defer closeStore(t, s)
		createVolume(t, s, "v")
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1h:1h", DrillEvery: "2h"})
		pass(time.Hour + 5*time.Minute)
		wantCuts(t, s, "v", "01-01 01:00")
		pass(3 * time.Hour) // 01:00 and 02:00 have passed
		wantCuts(t, s, "v", "01-01 02:00", "01-01 03:00", "01-01 04:00")
		pass(5 * time.Hour) // 04:00 has passed; the last is that of 08:00
		wantCuts(t, s, "v", "01-01 04:00", "01-01 08:00", "01-01 09:00")
		wantResults(t, s, "v", "01-01 04:00: 0", "01-01 08:00: 3")
		pass(2 * time.Hour)
		wantCuts(t, s, "v", "01-01 04:00", "01-01 10:00", "01-01 11:00")
		wantResults(t, s, "v", "01-01 04:00: 0", "01-01 10:00: 3")
		if info, err := s.Schedule("v"); err != nil || info.Most != 5 || info.Snapshots > info.Most {
			t.Errorf("it is %+v, %v", info, err)
		}

		with := store.ScheduleSettings{Every: "1h", Keep: "1h:1h", Drill: "check"}
		if p, err := s.PreviewSchedule("v", with); err != nil || len(p.Expired) > 0 {
			t.Errorf("with drills it would delete %q, %v", p.Expired, err)
		}
		without := with
		without.Drill = ""
		p, err := s.PreviewSchedule("v", without)
		if err != nil || len(p.Expired) != 1 || drilledShort(p.Expired[0]) != "v@01-01 04:00" {
			t.Errorf("without drills it would delete %q, %v", p.Expired, err)
		}
		if _, err := s.SetSchedule("v", without); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		wantCuts(t, s, "v", "01-01 11:00", "01-01 12:00")
	})
}

func TestWhatIsBeingDrilledIsNotLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driller{takes: 5*time.Hour + time.Minute}
		s := openWith(t, path.Join(memoryDir(t), "data"), store.Options{Driller: d})
		defer closeStore(t, s)
		createVolume(t, s, "v")
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1h:1h"})
		pass(6 * time.Hour)
		wantCuts(t, s, "v", "01-01 01:00", "01-01 05:00", "01-01 06:00")
		pass(6*time.Hour + 30*time.Minute) // the last result is there until the next is
		wantResults(t, s, "v", "01-01 01:00: 0", "01-01 07:00: 0")
		pass(time.Hour)
		wantResults(t, s, "v", "01-01 07:00: 0")
		wantCuts(t, s, "v", "01-01 07:00", "01-01 12:00", "01-01 13:00")
	})
}

func TestTheVolumesOfAGroupAreDrilledOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driller{takes: 10 * time.Minute, code: failsAt("b@")}
		s := grouped(t, path.Join(memoryDir(t), "data"), store.Options{Driller: d})
		defer closeStore(t, s)
		setDrills(t, s, "group:g", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		pass(90 * time.Minute)
		d.want(t, "01-01 01:00 a@01-01 01:00", "01-01 01:10 b@01-01 01:00")
		wantResults(t, s, "a", "01-01 01:00: 0")
		wantResults(t, s, "b", "01-01 01:00: 3")
		info, err := s.Schedule("group:g")
		if err != nil || len(info.Drilled) != 2 || info.Drilled[0].Drill.ExitCode != 0 || info.Drilled[1].Drill.ExitCode != 3 {
			t.Errorf("it is %+v, %v", info, err)
		}
		wantVolumes(t, s, "a", "b", "c")
	})
}

// What goes while it is drilled takes nothing with it: no clone is left, and it is no
// failure.
func TestWhatGoesWhileItIsDrilledLeavesNothing(t *testing.T) {
	set := store.ScheduleSettings{Every: "1h", Keep: "1d:1h", Drill: "check"}
	for what, c := range map[string]struct {
		target string
		do     func(s *store.Store, snapshot string) error
		begun  []string // drills, until half an hour later
		after  []string // volumes
	}{
		"the schedule": {"a", func(s *store.Store, _ string) error { return s.RemoveSchedule("a") },
			[]string{"01-01 01:00 a@01-01 01:00 cut short"}, []string{"a", "b", "c"}},
		"the schedule, for another": {"a", func(s *store.Store, _ string) error { _, err := s.SetSchedule("a", set); return err },
			[]string{"01-01 01:00 a@01-01 01:00 cut short", "01-01 01:05 a@01-01 01:00"}, []string{"a", "b", "c"}},
		"the snapshot": {"a", func(s *store.Store, snapshot string) error { return s.DeleteSnapshots(snapshot) },
			[]string{"01-01 01:00 a@01-01 01:00"}, []string{"a", "b", "c"}},
		"the volume": {"a", func(s *store.Store, _ string) error { return s.DeleteVolume("a", true) },
			[]string{"01-01 01:00 a@01-01 01:00 cut short"}, []string{"b", "c"}},
		"a volume of the group": {"group:g", func(s *store.Store, _ string) error { return s.DeleteVolume("a", true) },
			[]string{"01-01 01:00 a@01-01 01:00", "01-01 01:10 b@01-01 01:00"}, []string{"b", "c"}},
		"the group": {"group:g", func(s *store.Store, _ string) error { return s.DeleteGroup("g", nil) },
			[]string{"01-01 01:00 a@01-01 01:00 cut short"}, []string{"a", "b", "c"}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				d := &driller{takes: 10 * time.Minute}
				dir := path.Join(memoryDir(t), "data")
				s := grouped(t, dir, store.Options{Driller: d, Logger: slog.New(slog.NewTextHandler(&log, nil))})
				setDrills(t, s, c.target, set)
				pass(time.Hour + 5*time.Minute)
				if err := c.do(s, "a@20000101T010000.000Z"); err != nil {
					t.Fatal(err)
				}
				pass(30 * time.Minute)
				d.want(t, c.begun...)
				wantVolumes(t, s, c.after...)
				for _, x := range s.Schedules() {
					if x.DrillFailed != "" || x.Drilling != "" {
						t.Errorf("it is %+v", x)
					}
				}
				if log.count("level") > 0 {
					t.Errorf("it was told:\n%s", &log)
				}
				closeStore(t, s)
				if r, err := store.Check(dir, nil, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
					t.Errorf("check: %q, %v", r.Findings, err)
				}
			})
		})
	}
}

func TestADrillThatCannotBeMadeIsToldOnceAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		broken := errors.New("no such program any more")
		d := &driller{fails: func(string) error { return broken }}
		dir := path.Join(memoryDir(t), "data")
		s := openWith(t, dir, store.Options{Driller: d, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		createVolume(t, s, "v")
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		pass(2*time.Hour + time.Minute)
		d.want(t, "01-01 01:00 v@01-01 01:00", "01-01 02:00 v@01-01 02:00")
		if info, err := s.Schedule("v"); err != nil || info.DrillFailed != broken.Error() || info.Failed != "" || info.Drilled != nil {
			t.Errorf("it is %+v, %v", info, err)
		}
		if n := log.count(broken.Error()); n != 1 {
			t.Errorf("it was told %d times:\n%s", n, &log)
		}
		wantVolumes(t, s, "v")
		closeStore(t, s)
		s = openWith(t, dir, store.Options{}) // of a server without programs
		synctest.Wait()
		if info, err := s.Schedule("v"); err != nil || !strings.Contains(info.DrillFailed, "serve --drills") {
			t.Errorf("it is %+v, %v", info, err)
		}
		closeStore(t, s)
		d.fails = nil
		s = openWith(t, dir, store.Options{Driller: d})
		defer closeStore(t, s)
		synctest.Wait()
		d.want(t, "01-01 02:01 v@01-01 02:00")
		if info, err := s.Schedule("v"); err != nil || info.DrillFailed != "" || len(info.Drilled) != 1 {
			t.Errorf("it is %+v, %v", info, err)
		}
	})
}

func TestADrillThatCannotBeIsRefused(t *testing.T) {
	with := openWith(t, path.Join(t.TempDir(), "data"), store.Options{Driller: &driller{}})
	without := openStore(t, path.Join(t.TempDir(), "data"))
	for what, c := range map[string]struct {
		in         *store.Store
		drill, say string
		every      string
	}{
		"without programs":     {without, "check", "serve --drills", ""},
		"an unknown one":       {with, "none", "there is check", ""},
		"elsewhere":            {with, "../check", "allowed are 1 to 63", ""},
		"hidden":               {with, ".check", "allowed are 1 to 63", ""},
		"too long":             {with, strings.Repeat("c", 64), "allowed are 1 to 63", ""},
		"when, and not what":   {with, "", "give the drill too", "1d"},
		"at a time that isn't": {with, "check", "allowed are a period", "often"},
	} {
		if _, err := c.in.Volume("v"); err != nil {
			createVolume(t, c.in, "v")
		}
		set := store.ScheduleSettings{Every: "1h", Keep: "1d:1h", Drill: c.drill, DrillEvery: c.every}
		for _, err := range []error{second(c.in.SetSchedule("v", set)), second(c.in.PreviewSchedule("v", set))} {
			if !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("%s: %v, want one that says %q", what, err, c.say)
			}
		}
		if list := c.in.Schedules(); len(list) > 0 {
			t.Errorf("%s: there is %+v", what, list)
		}
	}
}

func TestDrillsGoOnWhenTheClockWasMovedBack(t *testing.T) {
	dir := path.Join(memoryDir(t), "data")
	d := &driller{}
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, dir, store.Options{Driller: d})
		createVolume(t, s, "v")
		pass(20 * 24 * time.Hour)
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		pass(90 * time.Minute)
		closeStore(t, s)
	})
	d.want(t, "01-21 01:00 v@01-21 01:00")
	synctest.Test(t, func(t *testing.T) { // it is 01-01 again
		s := openWith(t, dir, store.Options{Driller: d})
		defer closeStore(t, s)
		pass(2*time.Hour + time.Minute)
		d.want(t, "01-01 01:00 v@01-01 01:00", "01-01 02:00 v@01-01 02:00")
	})
}

// The server may die at any operation of a drill of a schedule: then no clone is left,
// and it is made again unless it was recorded.
func TestACrashLeavesNoCloneOfAScheduledDrill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := vfs.NewSim(memoryDir(t))
		d := &driller{takes: time.Minute}
		s, err := store.Open("data", store.Options{FS: sim, Driller: d})
		if err != nil {
			t.Fatal(err)
		}
		createVolume(t, s, "v")
		from := sim.Ops() // from before there is the schedule
		d.during = func(_, clone string) { put(t, s, 'y', clone) }
		setDrills(t, s, "v", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		pass(time.Hour + 5*time.Minute)
		wantResults(t, s, "v", "01-01 01:00: 0")
		to := sim.Ops()
		for at := from; at <= to; at += 3 {
			disk := sim.PowerCut(at, nil)
			if at%2 == 0 {
				disk = sim.KillAt(at, nil)
			}
			again := &driller{}
			s, err := store.Open("data", store.Options{FS: disk, Driller: again})
			if err != nil {
				t.Fatalf("crash at %d: %v", at, err)
			}
			pass(time.Second)
			if list := s.Volumes(); len(list) != 1 {
				t.Errorf("crash at %d: %d volumes: %q", at, len(list), s.Recovery())
			}
			if x := s.Schedules(); len(x) == 1 && len(results(t, s, "v")) == 0 {
				t.Errorf("crash at %d: not drilled: %+v", at, x)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		closeStore(t, s)
		t.Logf("%d operations", to-from)
	})
}

package store_test

import (
	"errors"
	"path"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// staying is a store with a volume v of session scope, whose client never leaves.
func staying(t *testing.T, dir string) (*store.Store, *volume.View) {
	t.Helper()
	s := openStore(t, dir)
	noError(t, second(s.CreateVolume("v", 16*lookup.BlockSize, volume.ScopeSession)))
	w := openView(t, s, "v")
	write(t, w, 0, 'a')
	return s, w
}

func TestAScheduleOfAVolumeWhoseClientStaysDoesWhatItWasToldThen(t *testing.T) {
	for _, c := range []struct {
		name        string
		set         store.ScheduleSettings
		cut, failed string // after the first time that it was due
	}{
		{"nothing", store.ScheduleSettings{}, "", "after 1m0s these had not ended"},
		{"to give up", store.ScheduleSettings{Wait: new(5 * time.Second), OnTimeout: volume.TimeoutAbort}, "", "after 5s these had not ended"},
		{"to degrade", store.ScheduleSettings{OnTimeout: volume.TimeoutDegrade}, "01:01:00", ""},
		{"to degrade after a while", store.ScheduleSettings{Wait: new(5 * time.Second), OnTimeout: volume.TimeoutDegrade}, "01:00:05", ""},
		{"to degrade at once", store.ScheduleSettings{Wait: new(time.Duration), OnTimeout: volume.TimeoutDegrade}, "01:00:00", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, w := staying(t, path.Join(memoryDir(t), "data"))
				defer closeStore(t, s)
				c.set.Every, c.set.Keep = "1h", "1d:1h"
				noError(t, second(s.SetSchedule("v", c.set)))
				pass(62 * time.Minute)
				info, err := s.Schedule("v")
				if err != nil || !strings.Contains(info.Failed, c.failed) || (info.Failed == "") != (c.failed == "") {
					t.Errorf("it failed: %q, %v; want %q", info.Failed, err, c.failed)
				}
				if c.failed != "" && !strings.HasSuffix(info.Failed, "give more --wait, or --on-timeout degrade, to tidemark schedule set") {
					t.Errorf("it failed: %q; want what helps at the end", info.Failed)
				}
				list, err := s.Snapshots("v")
				noError(t, err)
				switch {
				case c.cut == "":
					if len(list) > 0 {
						t.Errorf("there is %+v", list)
					}
				case len(list) != 1:
					t.Errorf("there is %+v, want one snapshot", list)
				default:
					snap := list[0]
					if snap.CutTime.UTC().Format(time.TimeOnly) != c.cut || snap.Consistency != volume.ConsistencyRequest || snap.Schedule != "v" || len(snap.Torn) > 0 {
						t.Errorf("the snapshot is %+v, want one of %s, with every request whole", snap, c.cut)
					}
				}
				write(t, w, lookup.BlockSize, 'b') // it stays
				noError(t, w.Close())
				pass(time.Hour)
				if info, err := s.Schedule("v"); err != nil || info.Failed != "" {
					t.Errorf("when the client has left: %q, %v", info.Failed, err)
				}
			})
		})
	}
}

func TestAScheduleWaitsAsLongAsItWasTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, path.Join(memoryDir(t), "data"))
		defer closeStore(t, s)
		createVolume(t, s, "v")
		noError(t, second(s.SetSchedule("v", store.ScheduleSettings{Every: "1h", Keep: "1d:1h", Wait: new(3 * time.Hour)})))
		noError(t, second(s.BeginProcess([]string{"v"}, "p")))
		pass(3 * time.Hour) // what is due meanwhile is left out
		noError(t, second(s.EndProcess("p", false)))
		pass(time.Minute)
		wantCuts(t, s, "v", "01-01 01:00")
		if list, err := s.Snapshots("v"); err != nil || len(list) != 1 || list[0].Consistency != volume.ConsistencyProcess {
			t.Errorf("%+v, %v; want a snapshot with the process whole", list, err)
		}
	})
}

func TestHowAScheduleWaitsOutlivesTheServer(t *testing.T) {
	dir := path.Join(t.TempDir(), "data")
	for _, c := range []struct {
		name      string
		set       store.ScheduleSettings
		wait      time.Duration
		onTimeout volume.OnTimeout
	}{
		{"nobody said", store.ScheduleSettings{}, time.Minute, volume.TimeoutAbort},
		{"the default", store.ScheduleSettings{Wait: new(time.Minute), OnTimeout: volume.TimeoutAbort}, time.Minute, volume.TimeoutAbort},
		{"not at all", store.ScheduleSettings{Wait: new(time.Duration), OnTimeout: volume.TimeoutDegrade}, 0, volume.TimeoutDegrade},
		{"for long", store.ScheduleSettings{Wait: new(90 * time.Minute)}, 90 * time.Minute, volume.TimeoutAbort},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.set.Every, c.set.Keep = "@yearly", "10y:1y"
			s := openStore(t, dir)
			if _, err := s.Volume("v"); errors.Is(err, store.ErrNotFound) {
				createVolume(t, s, "v")
			}
			set, err := s.SetSchedule("v", c.set)
			noError(t, err)
			closeStore(t, s)
			s = openStore(t, dir)
			defer closeStore(t, s)
			got, err := s.Schedule("v")
			noError(t, err)
			for what, x := range map[string]store.ScheduleInfo{"set": set, "read": got} {
				if x.Wait == nil || *x.Wait != c.wait || x.OnTimeout != c.onTimeout {
					t.Errorf("as it was %s it waits for %v, and then %v; want %v and %v", what, x.Wait, x.OnTimeout, c.wait, c.onTimeout)
				}
			}
		})
	}
}

func TestAScheduleThatWouldDrainForEverIsRefused(t *testing.T) {
	s := openStore(t, path.Join(t.TempDir(), "data"))
	createVolume(t, s, "v")
	for what, set := range map[string]store.ScheduleSettings{
		"a negative wait": {Every: "1h", Keep: "1d:1h", Wait: new(-time.Second)},
		"keep":            {Every: "1h", Keep: "1d:1h", OnTimeout: volume.TimeoutKeep},
	} {
		if err := second(s.SetSchedule("v", set)); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("a schedule with %s: %v, want %v", what, err, store.ErrInvalid)
		}
		if err := second(s.PreviewSchedule("v", set)); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("a preview with %s: %v, want %v", what, err, store.ErrInvalid)
		}
	}
	if list := s.Schedules(); len(list) > 0 {
		t.Errorf("there is %+v", list)
	}
}

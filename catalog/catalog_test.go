package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
)

func mustOpen(t testing.TB, fsys vfs.FS, name string) *Catalog {
	t.Helper()
	c, err := Open(fsys, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustLoad(t testing.TB, c *Catalog) State {
	t.Helper()
	state, err := c.Load()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func mustUpdate(t testing.TB, c *Catalog, change func(*Tx) error) {
	t.Helper()
	if err := c.Update(change); err != nil {
		t.Fatal(err)
	}
}

// addVolume makes a volume with a chain of one image.
func addVolume(tx *Tx, name string) error {
	v, err := tx.NewVolumeID()
	if err != nil {
		return err
	}
	i, err := tx.NewImageID()
	if err != nil {
		return err
	}
	created := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	err = tx.PutVolume(Volume{ID: v, Name: name, SizeBytes: 1 << 30, Scope: "request", Created: created})
	return errors.Join(err, tx.PutLink(Link{Volume: v, Image: i, SizeBytes: 1 << 30}))
}

// preserve makes a snapshot of each volume and a new tip.
func preserve(tx *Tx, name string, volumes ...VolumeState) error {
	cut, err := tx.NewCutID()
	if err != nil {
		return err
	}
	for _, v := range volumes {
		old := v.Chain[len(v.Chain)-1]
		old.Snapshot = &Snapshot{
			Name: name, Cut: cut, CutTime: time.Date(2024, 6, 7, 8, 9, 10, 0, time.UTC), State: "draining",
			Consistency: "process", Drain: 3 * time.Millisecond, Conflicts: 4, Torn: []string{"t"}, Waiting: []string{"w", "x"},
		}
		i, err := tx.NewImageID()
		if err := errors.Join(err, tx.PutLink(old), tx.PutLink(Link{Volume: v.ID, Image: i, SizeBytes: v.SizeBytes})); err != nil {
			return err
		}
	}
	return nil
}

// mustHave is the record of a link as it is now.
func mustHave(t *testing.T, tx *Tx, l Link) Link {
	t.Helper()
	key := linkKey(l.Volume, l.Image)
	if _, err := decode(key, tx.bucket.Get(key), &l); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestACatalogComesBackAsItWasCommitted(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog")
	c := mustOpen(t, vfs.OS{}, name)
	mustUpdate(t, c, func(tx *Tx) error { return errors.Join(addVolume(tx, "a"), addVolume(tx, "b"), addVolume(tx, "c")) })
	first := mustLoad(t, c)
	if len(first.Volumes) != 3 || len(first.DirID) != 32 || first.FormatVersion != 2 {
		t.Fatalf("got %+v", first)
	}
	mustUpdate(t, c, func(tx *Tx) error { return preserve(tx, "s", first.Volumes[:2]...) })
	mustUpdate(t, c, func(tx *Tx) error { return tx.DeleteVolume(first.Volumes[2].ID) })
	grown := first.Volumes[0].Volume
	grown.SizeBytes *= 2
	mustUpdate(t, c, func(tx *Tx) error { return tx.PutVolume(grown) })
	daily := Schedule{Target: "a", Every: "1d", Keep: "30d:1d", Since: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)}
	mustUpdate(t, c, func(tx *Tx) error {
		tx.Saw(daily.Since)
		hourly, gone, group := daily, daily, daily
		hourly.Every, gone.Target, group.Target = "1h", "b", "group:g"
		group.Drill, group.DrillEvery = "check", "1w"
		group.Wait, group.OnTimeout = new(time.Duration), ScheduleDegrades
		return errors.Join(tx.PutSchedule(hourly), tx.PutSchedule(daily), tx.PutSchedule(gone), tx.PutSchedule(group), tx.DeleteSchedule("b"), tx.DeleteSchedule("never"))
	})
	mustUpdate(t, c, func(tx *Tx) error {
		tx.Saw(daily.Since.Add(-time.Hour)) // it does not go back
		held := mustHave(t, tx, first.Volumes[0].Chain[0])
		held.Snapshot.Schedule, held.Snapshot.Labels, held.Snapshot.Held, held.Snapshot.HeldUntil = "a", map[string]string{"k": "v", "e": ""}, true, daily.Since
		return tx.PutLink(held)
	})
	mustUpdate(t, c, func(tx *Tx) error {
		return errors.Join(tx.PutGroup(Group{Name: "g", Volumes: []string{"a"}}), tx.PutGroup(Group{Name: "gone", Volumes: []string{"b"}}))
	})
	mustUpdate(t, c, func(tx *Tx) error {
		return errors.Join(tx.PutGroup(Group{Name: "g", Volumes: []string{"a", "b"}, Default: true}), tx.DeleteGroup("gone"))
	})
	want := mustLoad(t, c)
	if len(want.Groups) != 1 || !reflect.DeepEqual(want.Groups[0], Group{Name: "g", Volumes: []string{"a", "b"}, Default: true}) {
		t.Errorf("got %+v", want.Groups)
	}
	if chain := want.Volumes[0].Chain; len(want.Volumes) != 2 || len(chain) != 2 ||
		chain[0].SizeBytes != 1<<30 || chain[1].SizeBytes != 2<<30 || chain[0].Snapshot.Cut != want.Volumes[1].Chain[0].Snapshot.Cut {
		t.Fatalf("got %+v", want)
	}
	if x := want.Schedules[1]; x.Wait == nil || *x.Wait != 0 || x.OnTimeout != ScheduleDegrades {
		t.Errorf("got %+v", x)
	}
	if s := want.Volumes[0].Chain[0].Snapshot; len(want.Schedules) != 2 || want.Schedules[0] != daily || want.Schedules[1].Target != "group:g" || want.Schedules[1].Drill != "check" || want.Schedules[1].DrillEvery != "1w" ||
		!want.Seen.Equal(daily.Since) || s.Labels["k"] != "v" || !s.Held || !s.HeldUntil.Equal(daily.Since) || s.Schedule != "a" {
		t.Fatalf("got %+v, %+v", want, s)
	}

	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("a second Close returned %v", err)
	}
	if wrong, err := Check(vfs.OS{}, name); err != nil || wrong != nil {
		t.Errorf("Check of a sound catalog returned %q, %v", wrong, err)
	}
	if got := mustLoad(t, mustOpen(t, vfs.OS{}, name)); !reflect.DeepEqual(got, want) {
		t.Errorf("after a reopen: %+v\nwant %+v", got, want)
	}
}

func TestAnIDIsNeverDrawnTwice(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog")
	seen := make(map[image.ID]bool)
	drawn := func(tx *Tx) error {
		id, err := tx.NewImageID()
		if id == 0 || seen[id] {
			t.Errorf("image id %d was drawn again", id)
		}
		seen[id] = true
		return err
	}
	refused := errors.New("refused")
	for range 2 {
		c := mustOpen(t, vfs.OS{}, name)
		mustUpdate(t, c, drawn) // an id alone is a change too
		if err := c.Update(func(tx *Tx) error { return errors.Join(drawn(tx), refused) }); !errors.Is(err, refused) {
			t.Errorf("Update returned %v, not the error of its function", err)
		}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := c.Update(drawn); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnUpdateThatWouldNotLoadIsRefusedAndChangesNothing(t *testing.T) {
	c := mustOpen(t, vfs.OS{}, filepath.Join(t.TempDir(), "catalog"))
	mustUpdate(t, c, func(tx *Tx) error { return errors.Join(addVolume(tx, "a"), addVolume(tx, "b")) })
	want := mustLoad(t, c)
	a, tip := want.Volumes[0].Volume, want.Volumes[0].Chain[0]
	link := func(change func(*Link)) func(*Tx) error {
		return func(tx *Tx) error {
			l := tip
			change(&l)
			return tx.PutLink(l)
		}
	}
	volume := func(change func(*Volume)) func(*Tx) error {
		return func(tx *Tx) error {
			v := a
			change(&v)
			return tx.PutVolume(v)
		}
	}
	for what, change := range map[string]func(*Tx) error{
		"a volume id never drawn":        volume(func(v *Volume) { v.ID = 99 }),
		"a volume without a name":        volume(func(v *Volume) { v.Name = "" }),
		"a volume name taken":            volume(func(v *Volume) { v.Name = "b" }),
		"a volume of no size":            volume(func(v *Volume) { v.SizeBytes = 0 }),
		"a volume of an unknown scope":   volume(func(v *Volume) { v.Scope = "explicit" }),
		"a volume without an image":      func(tx *Tx) error { return tx.DeleteLink(a.ID, tip.Image) },
		"a deletion of no volume":        func(tx *Tx) error { return tx.DeleteVolume(99) },
		"a deletion of no link":          func(tx *Tx) error { return tx.DeleteLink(a.ID, 99) },
		"a group without a name":         func(tx *Tx) error { return tx.PutGroup(Group{Volumes: []string{"a"}}) },
		"a group without a volume":       func(tx *Tx) error { return tx.PutGroup(Group{Name: "g"}) },
		"a group out of order":           func(tx *Tx) error { return tx.PutGroup(Group{Name: "g", Volumes: []string{"b", "a"}}) },
		"a group with a volume twice":    func(tx *Tx) error { return tx.PutGroup(Group{Name: "g", Volumes: []string{"a", "a"}}) },
		"a deletion of no group":         func(tx *Tx) error { return tx.DeleteGroup("g") },
		"a link of no volume":            link(func(l *Link) { l.Volume = 99 }),
		"an image id never drawn":        link(func(l *Link) { l.Image = 99 }),
		"an image of no size":            link(func(l *Link) { l.SizeBytes = -1 }),
		"a sealed tip":                   link(func(l *Link) { l.Sealed = true }),
		"a cut id never drawn":           link(func(l *Link) { l.Snapshot = &Snapshot{Name: "s", Cut: 99, State: "sealed"} }),
		"a snapshot without a name":      link(func(l *Link) { l.Snapshot = &Snapshot{Cut: 1, State: "sealed"} }),
		"a snapshot of an unknown state": link(func(l *Link) { l.Snapshot = &Snapshot{Name: "s", Cut: 1, State: "open"} }),
		"a label without a key": link(func(l *Link) {
			l.Snapshot = &Snapshot{Name: "s", Cut: 1, State: "sealed", Labels: map[string]string{"": "v"}}
		}),
		"a schedule of nothing":         func(tx *Tx) error { return tx.PutSchedule(Schedule{Every: "1h", Keep: "1d:1h"}) },
		"a schedule that is never due":  func(tx *Tx) error { return tx.PutSchedule(Schedule{Target: "a", Every: "never", Keep: "1d:1h"}) },
		"a schedule that keeps nothing": func(tx *Tx) error { return tx.PutSchedule(Schedule{Target: "a", Every: "1h"}) },
		"a drill that is never due": func(tx *Tx) error {
			return tx.PutSchedule(Schedule{Target: "a", Every: "1h", Keep: "1d:1h", Drill: "check", DrillEvery: "never"})
		},
		"a drill of nothing": func(tx *Tx) error {
			return tx.PutSchedule(Schedule{Target: "a", Every: "1h", Keep: "1d:1h", DrillEvery: "1w"})
		},
		"a drill by what is elsewhere": func(tx *Tx) error {
			return tx.PutSchedule(Schedule{Target: "a", Every: "1h", Keep: "1d:1h", Drill: "../check"})
		},
		"a drill by what is hidden": func(tx *Tx) error {
			return tx.PutSchedule(Schedule{Target: "a", Every: "1h", Keep: "1d:1h", Drill: ".check"})
		},
		"a schedule that waits for less than nothing": func(tx *Tx) error {
			return tx.PutSchedule(Schedule{Target: "a", Every: "1h", Keep: "1d:1h", Wait: new(-time.Second)})
		},
		"a schedule that leaves snapshots draining": func(tx *Tx) error {
			return tx.PutSchedule(Schedule{Target: "a", Every: "1h", Keep: "1d:1h", OnTimeout: "keep"})
		},
		"a drill that printed too much": func(tx *Tx) error {
			cut, err := tx.NewCutID()
			l := tip
			l.Snapshot = &Snapshot{Name: "s", Cut: cut, State: "sealed", Drill: &Drill{Output: strings.Repeat("x", MostDrillOutputBytes+1)}}
			return errors.Join(err, tx.PutLink(l))
		},
		"a snapshot without an image newer": func(tx *Tx) error {
			cut, err := tx.NewCutID()
			l := tip
			l.Snapshot = &Snapshot{Name: "s", Cut: cut, State: "draining"}
			return errors.Join(err, tx.PutLink(l))
		},
	} {
		t.Run(what, func(t *testing.T) {
			if err := c.Update(change); err == nil || errors.Is(err, ErrFailed) {
				t.Errorf("Update returned %v", err)
			}
			if got := mustLoad(t, c); !reflect.DeepEqual(got, want) {
				t.Errorf("it left %+v", got)
			}
		})
	}
}

func TestLoadFindsChainsThatCannotBe(t *testing.T) {
	next := counters{NextVolume: 3, NextImage: 9, NextCut: 3}
	v1 := Volume{ID: 1, Name: "a", SizeBytes: 4096, Scope: "request"}
	v2 := Volume{ID: 2, Name: "b", SizeBytes: 4096, Scope: "session"}
	l := func(v VolumeID, i image.ID, sealed bool, name string) Link {
		l := Link{Volume: v, Image: i, SizeBytes: 4096}
		if sealed {
			l.Sealed, l.Hash, l.Table = true, strings.Repeat("0", 64), 1
		}
		if name != "" {
			l.Snapshot = &Snapshot{Name: name, Cut: 1, State: "sealed"}
		}
		return l
	}
	sameName := v2
	sameName.Name = "a"
	past := v1
	past.Past = true
	staged := sameName
	staged.Staged = true
	both := staged
	both.Past = true
	x := func(target, every string) Schedule { return Schedule{Target: target, Every: every, Keep: "1d:1h"} }
	sound := []Link{l(1, 1, false, ""), l(2, 2, false, "")}
	for what, test := range map[string]struct {
		volumes []Volume
		links   []Link
		want    []string // one each; none: it loads
		more    []any    // groups and schedules
	}{
		"groups that are well": {[]Volume{v1, v2}, sound, nil, []any{
			Group{Name: "g", Volumes: []string{"a", "b"}, Default: true}, Group{Name: "h", Volumes: []string{"a"}},
		}},
		"groups that are not": {[]Volume{v1, v2}, sound, []string{`"a" follows "b"`, `no volume has the name "c"`, `"g" and "h": both are the default of volume "a"`, `"i": it has no volume`}, []any{
			Group{Name: "f", Volumes: []string{"b", "a"}}, Group{Name: "g", Volumes: []string{"a", "c"}, Default: true}, Group{Name: "h", Volumes: []string{"a"}, Default: true}, Group{Name: "i"},
		}},
		"all is well":            {[]Volume{v1, v2}, []Link{l(1, 1, true, "s"), l(1, 2, true, ""), l(1, 4, false, "t"), l(1, 5, false, ""), l(2, 3, false, "")}, nil, nil},
		"a volume name twice":    {[]Volume{v1, sameName}, []Link{l(1, 1, false, ""), l(2, 2, false, "")}, []string{`both have the name "a"`}, nil},
		"one is still to come":   {[]Volume{v1, staged}, []Link{l(1, 1, false, ""), l(2, 2, false, "")}, nil, nil},
		"past and still to come": {[]Volume{both}, []Link{l(2, 2, false, "")}, []string{"it is past, and still being received"}, nil},
		"no image":               {[]Volume{v1, v2}, []Link{l(2, 2, false, "")}, []string{"volume 1: it has no image"}, nil},
		"links of no volume":     {[]Volume{v2}, []Link{l(1, 1, false, ""), l(2, 2, false, ""), l(3, 3, false, "")}, []string{"image 1: no volume 1", "image 3: no volume 3"}, nil},
		"the tip is a snapshot":  {[]Volume{v1}, []Link{l(1, 1, false, "s")}, []string{"it has no tip"}, nil},
		"the tip is sealed":      {[]Volume{v1}, []Link{l(1, 1, true, "")}, []string{"it has no tip"}, nil},
		"sealed out of order":    {[]Volume{v1}, []Link{l(1, 1, false, "s"), l(1, 2, true, "t"), l(1, 3, false, "")}, []string{"image 2 is sealed, the older 1 is not"}, nil},
		"a snapshot name twice":  {[]Volume{v1}, []Link{l(1, 1, true, "s"), l(1, 2, true, "s"), l(1, 3, false, "")}, []string{`images 1 and 2 both have the name "s"`}, nil},
		"schedules":              {[]Volume{v1}, []Link{l(1, 1, false, "")}, nil, []any{x("a", "1h"), x("group:g", "1h")}},
		"a schedule of no volume, one of a past and one that is never due": {
			[]Volume{past, v2}, []Link{l(1, 1, false, ""), l(2, 2, false, "")},
			[]string{"schedule of a: no such volume", `schedule of b: every "never"`, "schedule of none: no such volume"},
			[]any{x("a", "1h"), x("b", "never"), x("none", "1h")},
		},
		"an id never drawn": {[]Volume{v1}, []Link{l(1, 9, false, "")}, []string{"image 9: the id was never drawn"}, nil},
		"a size below one":  {[]Volume{v1}, []Link{{Volume: 1, Image: 1}}, []string{"image 1: its size is 0 bytes"}, nil},
	} {
		t.Run(what, func(t *testing.T) {
			m := meta{counters: next}
			var records []record
			add := func(key []byte, body any) {
				value, err := encode(key, body)
				if err != nil {
					t.Fatal(err)
				}
				records = append(records, record{key, value})
				if crc, err := verify(key, value); err == nil && len(key) > 1 {
					m.Records++
					m.Sum += uint64(crc)
				}
			}
			for _, link := range test.links {
				add(linkKey(link.Volume, link.Image), link)
			}
			for _, v := range test.volumes {
				add(volumeKey(v.ID), v)
			}
			for _, x := range test.more {
				switch x := x.(type) {
				case Schedule:
					add(scheduleKey(x.Target), x)
				case Group:
					add(groupKey(x.Name), x)
				}
			}
			add(metaKey, m)
			_, _, err := decodeState(records, 0)
			var got []string
			if err != nil {
				got = findings(err)
			}
			if len(got) != len(test.want) {
				t.Fatalf("got %q, want %q", got, test.want)
			}
			for i := range got {
				if !strings.Contains(got[i], test.want[i]) || !errors.Is(err, ErrCorrupt) {
					t.Errorf("got %q, want %q", got[i], test.want[i])
				}
			}
		})
	}
}

// Random changes, thousands of records: bbolt splits, merges and moves pages,
// and readPages must take every file that it makes (a false alarm would keep a
// sound data directory shut) and read the same there.
func TestThePageWalkAgreesWithBbolt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	name := filepath.Join(t.TempDir(), "catalog")
	c := mustOpen(t, vfs.OS{}, name)
	for round := range 60 {
		state := mustLoad(t, c)
		mustUpdate(t, c, func(tx *Tx) error {
			for n := range 10 {
				if len(state.Volumes) < 10 {
					if err := addVolume(tx, fmt.Sprintf("v%d-%d-%s", round, n, strings.Repeat("x", rng.IntN(50)))); err != nil {
						return err
					}
					continue
				}
				at := rng.IntN(len(state.Volumes))
				v := state.Volumes[at]
				state.Volumes = append(state.Volumes[:at:at], state.Volumes[at+1:]...) // each once
				var err error
				switch roll := rng.IntN(20); {
				case roll == 0:
					err = tx.DeleteVolume(v.ID)
				case roll < 6:
					for _, l := range v.Chain[:len(v.Chain)-1] {
						if rng.IntN(3) > 0 {
							err = errors.Join(err, tx.DeleteLink(l.Volume, l.Image))
						}
					}
				default:
					for s := range rng.IntN(40) {
						v.Chain[len(v.Chain)-1].Snapshot = nil
						if err := preserve(tx, fmt.Sprintf("s%d-%d-%s", round, s, strings.Repeat("y", rng.IntN(60))), v); err != nil {
							return err
						}
						v.Chain = append(v.Chain, Link{Volume: v.ID, Image: tx.meta.NextImage - 1, SizeBytes: v.SizeBytes})
					}
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		file, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		walked, _, err := readPages(file)
		if err != nil {
			t.Fatalf("round %d: the walk says %v", round, err)
		}
		if got := boltRecords(t, c.db); !reflect.DeepEqual(got, walked) {
			t.Fatalf("round %d: the walk reads other records than bbolt", round)
		}
		if round%15 == 14 {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			c = mustOpen(t, vfs.OS{}, name)
		}
	}
	links := 0
	for _, v := range mustLoad(t, c).Volumes {
		links += len(v.Chain)
	}
	if links < 500 {
		t.Errorf("only %d links at the end: the tree was never deep", links)
	}
}

func boltRecords(t *testing.T, db *bolt.DB) (records []record) {
	t.Helper()
	err := db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucketName)).ForEach(func(key, value []byte) error {
			records = append(records, record{bytes.Clone(key), bytes.Clone(value)})
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestAPowerCutLeavesTheStateBeforeOrAfterACommit(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	if err := errors.Join(sim.MkdirAll("data", 0o700), sim.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, sim, "data/catalog")
	type moment struct {
		begun, done int // operations in the log
		state       State
	}
	history := []moment{{0, sim.Ops(), mustLoad(t, c)}}
	step := func(change func(*Tx) error) {
		begun := sim.Ops()
		mustUpdate(t, c, change)
		history = append(history, moment{begun, sim.Ops(), mustLoad(t, c)})
	}
	step(func(tx *Tx) error { return errors.Join(addVolume(tx, "a"), addVolume(tx, "b")) })
	for n := range 12 {
		volumes := history[len(history)-1].state.Volumes
		step(func(tx *Tx) error { return preserve(tx, fmt.Sprintf("s%d", n), volumes...) })
	}
	step(func(tx *Tx) error { return tx.DeleteVolume(1) })

	for at := range sim.Ops() + 1 {
		for seed := range uint64(4) {
			cut := sim.PowerCut(at, rand.New(rand.NewPCG(seed, 0)))
			if err := cut.MkdirAll("data", 0o700); err != nil {
				t.Fatal(err)
			}
			again, err := Open(cut, "data/catalog")
			if err != nil {
				t.Fatalf("cut %d, seed %d: %v", at, seed, err)
			}
			got := mustLoad(t, again)
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			legal := at < history[0].done && len(got.Volumes) == 0 // not there yet, made anew
			for i, m := range history {
				superseded := i+1 < len(history) && at >= history[i+1].done
				legal = legal || m.begun <= at && !superseded && reflect.DeepEqual(got, m.state)
			}
			if !legal {
				t.Fatalf("cut %d, seed %d: it left %d volumes, neither the state before nor after", at, seed, len(got.Volumes))
			}
		}
	}
}

func TestAFailedCommitIsFinal(t *testing.T) {
	eio := errors.New("input/output error")
	for what, fail := range map[string]func(c *Catalog, failNow *int){
		"after the commit":  func(_ *Catalog, failNow *int) { *failNow = 3 },
		"within the commit": func(c *Catalog, _ *int) { c.db.MaxSize = 1 },
	} {
		t.Run(what, func(t *testing.T) {
			failNow := 0 // at the how manyth call from now
			faulty := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
				if op.Kind != vfs.OpCommitted || failNow == 0 {
					return nil
				}
				if failNow--; failNow == 0 {
					return eio
				}
				return nil
			}}
			name := filepath.Join(t.TempDir(), "catalog")
			c := mustOpen(t, faulty, name)
			mustUpdate(t, c, func(tx *Tx) error { return addVolume(tx, "a") })
			before := mustLoad(t, c)
			fail(c, &failNow)
			if err := c.Update(func(tx *Tx) error {
				for range 1000 { // enough that the file must grow
					i, err := tx.NewImageID()
					if err := errors.Join(err, tx.PutLink(Link{Volume: 1, Image: i, SizeBytes: 4096})); err != nil {
						return err
					}
				}
				return nil
			}); !errors.Is(err, ErrFailed) {
				t.Fatalf("Update returned %v", err)
			}
			if err := c.Update(func(*Tx) error { t.Error("a later Update ran"); return nil }); !errors.Is(err, ErrFailed) {
				t.Errorf("a later Update returned %v", err)
			}
			if _, err := c.Load(); !errors.Is(err, ErrFailed) {
				t.Errorf("a later Load returned %v", err)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			after := mustLoad(t, mustOpen(t, vfs.OS{}, name))
			if !reflect.DeepEqual(after, before) && len(after.Volumes[0].Chain) != 1001 {
				t.Errorf("half of the commit is there: %d images", len(after.Volumes[0].Chain))
			}
		})
	}
}

func TestFaultOfAFullDiskBeforeACommitIsNotFinal(t *testing.T) {
	full := false
	faulty := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
		if full && op.Kind == vfs.OpCommitted {
			return syscall.ENOSPC
		}
		return nil
	}}
	c := mustOpen(t, faulty, filepath.Join(t.TempDir(), "catalog"))
	full = true
	if err := c.Update(func(*Tx) error { t.Error("it ran"); return nil }); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrFailed) {
		t.Errorf("Update returned %v, want %v and no failure for good", err, syscall.ENOSPC)
	}
	full = false
	mustUpdate(t, c, func(tx *Tx) error { return addVolume(tx, "a") })
}

func TestAFailingOpenLeavesNoFileOpen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog")
	first := mustOpen(t, vfs.OS{}, name)
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := open()
	if _, err := Open(vfs.OS{}, name); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("a second Open returned %v, want %v", err, vfs.ErrLocked)
	}
	if after := open(); after != before {
		t.Errorf("%d files are open, and %d were before", after, before)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

func TestRoomForACommitIsSetAsideBeforeIt(t *testing.T) {
	c := mustOpen(t, vfs.OS{}, filepath.Join(t.TempDir(), "catalog"))
	mustUpdate(t, c, func(tx *Tx) error { return addVolume(tx, "a") })
	sizeBytes, err := c.file.Size()
	if err != nil {
		t.Fatal(err)
	}
	if allocated, err := c.file.Allocated(); err != nil || allocated < sizeBytes+leastRoomBytes {
		t.Errorf("%d bytes are allocated, %v; want those of the file, %d, and %d more", allocated, err, sizeBytes, leastRoomBytes)
	}
}

func TestOpenRefusesWhatItCannotServe(t *testing.T) {
	t.Run("a catalog of a later version", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "catalog")
		if err := mustOpen(t, vfs.OS{}, name).Close(); err != nil {
			t.Fatal(err)
		}
		db, err := openBolt(name)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bolt.Tx) error {
			bucket := tx.Bucket([]byte(bucketName))
			value := append([]byte(nil), bucket.Get(metaKey)...)
			value[versionPosition]++
			sealEnvelope(metaKey, value)
			return bucket.Put(metaKey, value)
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(vfs.OS{}, name); !errors.Is(err, ErrFormat) {
			t.Errorf("Open returned %v", err)
		}
		if wrong, err := Check(vfs.OS{}, name); err != nil || len(wrong) != 1 {
			t.Errorf("Check returned %q, %v", wrong, err)
		}
	})
	t.Run("an empty file", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "catalog")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(vfs.OS{}, name); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Open returned %v", err)
		}
	})
	t.Run("a catalog that is open", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "catalog")
		mustOpen(t, vfs.OS{}, name)
		if _, err := Open(vfs.OS{}, name); !errors.Is(err, vfs.ErrLocked) {
			t.Errorf("Open returned %v", err)
		}
	})
	t.Run("a directory that is missing", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "no", "catalog")
		if _, err := Open(vfs.OS{}, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open returned %v", err)
		}
		if _, err := Check(vfs.OS{}, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Check returned %v", err)
		}
	})
	t.Run("a temporary file that a crash left is no hindrance", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "catalog")
		if err := os.WriteFile(name+vfs.TempSuffix, []byte("half made"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := mustLoad(t, mustOpen(t, vfs.OS{}, name)); len(got.Volumes) != 0 {
			t.Errorf("got %+v", got)
		}
	})
}

package catalog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
)

// appendPreserve is a preserve with images that were drawn before.
func appendPreserve(tx Links, name string, volumes ...VolumeState) error {
	cut, err := tx.NewCutID()
	if err != nil {
		return err
	}
	for i := range volumes {
		old := volumes[i].Chain[len(volumes[i].Chain)-1]
		tip := Link{Volume: old.Volume, Image: old.Image + 1, SizeBytes: old.SizeBytes}
		old.Snapshot = &Snapshot{
			Name: name, Cut: cut, CutTime: time.Date(2024, 6, 7, 8, 9, 10, 0, time.UTC), State: "draining", Consistency: "process",
		}
		if err := errors.Join(tx.PutLink(old), tx.PutLink(tip)); err != nil {
			return err
		}
		volumes[i].Chain = append(volumes[i].Chain[:len(volumes[i].Chain)-1:len(volumes[i].Chain)-1], old, tip)
	}
	return nil
}

// addSpaced makes a volume whose images after the first are drawn already.
func addSpaced(tx *Tx, name string, images int) error {
	if err := addVolume(tx, name); err != nil {
		return err
	}
	for range images {
		if _, err := tx.NewImageID(); err != nil {
			return err
		}
	}
	return nil
}

func mustAppend(t testing.TB, c *Catalog, change func(Links) error) {
	t.Helper()
	if err := c.Append(change); err != nil {
		t.Fatal(err)
	}
}

// simCatalog is a catalog in data of a simulated disk.
func simCatalog(t *testing.T) (*vfs.Sim, *Catalog) {
	t.Helper()
	sim := vfs.NewSim(t.TempDir())
	if err := errors.Join(sim.MkdirAll("data", 0o700), sim.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	return sim, mustOpen(t, sim, "data/catalog")
}

// What was appended is there after a power cut at any moment from its return on, and
// all or nothing of it before, whether an Update came after it or not.
func TestAPowerCutLeavesTheStateBeforeOrAfterAnAppend(t *testing.T) {
	sim, c := simCatalog(t)
	reference := mustOpen(t, vfs.OS{}, filepath.Join(t.TempDir(), "catalog")) // the same by Updates
	type moment struct {
		begun, done int // operations in the log
		state       State
	}
	var history []moment
	step := func(do func(c *Catalog) error) {
		begun := sim.Ops()
		if err := do(c); err != nil {
			t.Fatal(err)
		}
		done := sim.Ops()
		if err := do(reference); err != nil {
			t.Fatal(err)
		}
		state := mustLoad(t, reference)
		state.DirID = ""
		history = append(history, moment{begun, done, state})
	}
	update := func(change func(*Tx) error) { step(func(c *Catalog) error { return c.Update(change) }) }
	var volumes []VolumeState
	append_ := func(n int) {
		begin := volumes
		step(func(c *Catalog) error {
			volumes = append([]VolumeState(nil), begin...)
			change := func(tx Links) error { return appendPreserve(tx, fmt.Sprintf("s%d", n), volumes...) }
			if c == reference {
				return c.Update(func(tx *Tx) error { return change(tx) })
			}
			return c.Append(change)
		})
	}
	update(func(tx *Tx) error { return errors.Join(addSpaced(tx, "a", 20), addSpaced(tx, "b", 20)) })
	volumes = history[0].state.Volumes
	for n := range 9 {
		append_(n)
		if n%3 == 2 {
			update(func(tx *Tx) error { return addVolume(tx, fmt.Sprintf("other%d", n)) })
		}
	}
	append_(9)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	inLog := 0
	for at := history[0].done; at <= sim.Ops(); at++ {
		for seed := range uint64(4) {
			cut := sim.PowerCut(at, rand.New(rand.NewPCG(seed, 0)))
			if wrong, err := Check(cut, "data/catalog"); err != nil || wrong != nil {
				t.Fatalf("cut %d, seed %d: Check returned %q, %v", at, seed, wrong, err)
			}
			again, err := Open(cut, "data/catalog")
			if err != nil {
				t.Fatalf("cut %d, seed %d: %v", at, seed, err)
			}
			if again.log.isPending() {
				inLog++
			}
			got := mustLoad(t, again)
			got.DirID = ""
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			legal := false
			for i, m := range history {
				superseded := i+1 < len(history) && at >= history[i+1].done
				legal = legal || m.begun <= at && !superseded && reflect.DeepEqual(got, m.state)
			}
			if !legal {
				t.Fatalf("cut %d, seed %d: neither the state before nor after", at, seed)
			}
		}
	}
	if inLog == 0 {
		t.Error("no cut left anything in the log alone")
	}
}

func TestWhatAnOpenFindsInTheLogIsOnTheDisk(t *testing.T) {
	sim, c := simCatalog(t)
	mustUpdate(t, c, func(tx *Tx) error { return addSpaced(tx, "a", 3) })
	volumes := mustLoad(t, c).Volumes
	begun := sim.Ops()
	mustAppend(t, c, func(tx Links) error { return appendPreserve(tx, "s", volumes...) })
	open := func(at int) (*vfs.Sim, *Catalog) {
		killed := sim.KillAt(at, rand.New(rand.NewPCG(1, 1)))
		return killed, mustOpen(t, killed, "data/catalog")
	}
	unsynced := 0 // kills after the write and before its sync
	for at := begun; at <= sim.Ops(); at++ {
		_, shown := open(at)
		want := mustLoad(t, shown)
		killed, opened := open(at) // and loads nothing, which would be a commit
		if opened.log.isPending() && at < sim.Ops() {
			unsynced++
		}
		for seed := range uint64(4) {
			cut := killed.PowerCut(killed.Ops(), rand.New(rand.NewPCG(seed, 2)))
			if got := mustLoad(t, mustOpen(t, cut, "data/catalog")); !reflect.DeepEqual(got, want) {
				t.Errorf("killed at %d, seed %d: the chain has %d images, and %d were shown", at, seed, len(got.Volumes[0].Chain), len(want.Volumes[0].Chain))
			}
		}
	}
	if unsynced == 0 {
		t.Error("no kill came between the write and its sync")
	}
}

func TestAnAppendLeavesWhatTheOwnerBeforeAppended(t *testing.T) {
	db, log := killedCatalog(t, 3)
	name := put(t, db, log)
	c := mustOpen(t, vfs.OS{}, name) // and loads nothing, which would be a commit
	cut := uint64(0)
	mustAppend(t, c, func(tx Links) (err error) {
		cut, err = tx.NewCutID()
		return errors.Join(err, tx.PutLink(Link{Volume: 1, Image: 5, SizeBytes: 1 << 30}))
	})
	if cut < 4 {
		t.Errorf("the cut has the id %d, and 3 was drawn", cut)
	}
	again, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if log, err = os.ReadFile(name + logSuffix); err != nil {
		t.Fatal(err)
	}
	if got := mustLoad(t, mustOpen(t, vfs.OS{}, put(t, again, log))); len(got.Volumes[0].Chain) != 5 {
		t.Errorf("the chain has %d images, want 5", len(got.Volumes[0].Chain))
	}
}

// killedCatalog is the files of a catalog whose owner died after so many appends.
func killedCatalog(t *testing.T, appends int) (db, log []byte) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "catalog")
	c := mustOpen(t, vfs.OS{}, name)
	mustUpdate(t, c, func(tx *Tx) error { return addSpaced(tx, "a", 10) })
	volumes := mustLoad(t, c).Volumes
	for n := range appends {
		mustAppend(t, c, func(tx Links) error { return appendPreserve(tx, fmt.Sprint("s", n), volumes...) })
	}
	db, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if log, err = os.ReadFile(name + logSuffix); err != nil {
		t.Fatal(err)
	}
	return db, log
}

// put makes the files again, in a new directory.
func put(t *testing.T, db, log []byte) (name string) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "catalog")
	err := os.WriteFile(name, db, 0o600)
	if log != nil {
		err = errors.Join(err, os.WriteFile(name+logSuffix, log, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestNoFlippedBitOfTheLogLosesOrChangesAnything(t *testing.T) {
	db, log := killedCatalog(t, 2)
	last, _, err := verifyFile(put(t, db, nil))
	if err != nil {
		t.Fatal(err)
	}
	want, err := framesOf(append([]byte(nil), log...), last)
	if err != nil || len(want) != 2 {
		t.Fatalf("%d frames, %v; want 2", len(want), err)
	}
	log = log[:6*logUnitBytes] // two that are not used
	for at := range log {
		if log[at] == 0 && at%257 != 0 { // of the zeros behind the frames a few are enough
			continue
		}
		for bit := range 8 {
			log[at] ^= 1 << bit
			got, err := framesOf(append([]byte(nil), log...), last)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("byte %d, bit %d: %d frames, %v", at, bit, len(got), err)
			}
			log[at] ^= 1 << bit
		}
	}
}

func TestALogThatIsNotWholeIsRefused(t *testing.T) {
	db, log := killedCatalog(t, 3)
	gap := append([]byte(nil), log...)
	clear(gap[2*logUnitBytes : 4*logUnitBytes]) // both of the second frame
	for what, c := range map[string]struct {
		log  []byte
		says string
	}{
		"missing":        {nil, "is missing"},
		"short":          {log[:logUnitBytes], "has 4096 bytes"},
		"without a part": {gap, "and not frame 2"},
	} {
		t.Run(what, func(t *testing.T) {
			name := put(t, db, c.log)
			wrong, err := Check(vfs.OS{}, name)
			if err != nil || len(wrong) != 1 || !strings.Contains(wrong[0], c.says) {
				t.Errorf("Check returned %q, %v", wrong, err)
			}
			if _, err := Open(vfs.OS{}, name); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Open returned %v", err)
			}
		})
	}
	t.Run("the last frame in one place is enough", func(t *testing.T) {
		clear(log[5*logUnitBytes : 6*logUnitBytes])
		if got := mustLoad(t, mustOpen(t, vfs.OS{}, put(t, db, log))); len(got.Volumes[0].Chain) != 4 {
			t.Errorf("the chain has %d images, want 4", len(got.Volumes[0].Chain))
		}
	})
}

func TestACloseLeavesNoLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog")
	c := mustOpen(t, vfs.OS{}, name)
	mustUpdate(t, c, func(tx *Tx) error { return addSpaced(tx, "a", 3) })
	volumes := mustLoad(t, c).Volumes
	mustAppend(t, c, func(tx Links) error { return appendPreserve(tx, "s", volumes...) })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Append(func(Links) error { t.Error("it ran"); return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Append after Close returned %v", err)
	}
	if _, err := os.Stat(name + logSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log: %v", err)
	}
	if got := mustLoad(t, mustOpen(t, vfs.OS{}, name)); len(got.Volumes[0].Chain) != 2 {
		t.Errorf("the chain has %d images, want 2", len(got.Volumes[0].Chain))
	}
}

func TestAnAppendThatDoesNotFitOrCannotBeWrittenIsCommitted(t *testing.T) {
	for what, c := range map[string]struct {
		fail func(op vfs.Op) error
		pad  int // bytes of the snapshot's name
	}{
		"larger than the log": {func(vfs.Op) error { return nil }, logBytes / 2},
		"a failed write": {func(op vfs.Op) error {
			if op.Kind == vfs.OpWrite {
				return syscall.EIO
			}
			return nil
		}, 0},
		"a failed sync": {func(op vfs.Op) error {
			if op.Kind == vfs.OpSync {
				return syscall.EIO
			}
			return nil
		}, 0},
	} {
		t.Run(what, func(t *testing.T) {
			failing := false
			fsys := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
				if !failing || !strings.HasSuffix(op.Name, logSuffix) {
					return nil
				}
				return c.fail(op)
			}}
			name := filepath.Join(t.TempDir(), "catalog")
			cat := mustOpen(t, fsys, name)
			mustUpdate(t, cat, func(tx *Tx) error { return addSpaced(tx, "a", 9) })
			volumes := mustLoad(t, cat).Volumes
			failing = true
			for n := range 3 {
				before := append([]VolumeState(nil), volumes...)
				mustAppend(t, cat, func(tx Links) error {
					volumes = append([]VolumeState(nil), before...) // it may run again
					return appendPreserve(tx, fmt.Sprint(n, strings.Repeat("x", c.pad)), volumes...)
				})
				if cat.log.isPending() {
					t.Fatal("it is not committed")
				}
			}
			db, err := os.ReadFile(name) // and needs no log
			if err != nil {
				t.Fatal(err)
			}
			if got := mustLoad(t, mustOpen(t, vfs.OS{}, put(t, db, make([]byte, logBytes)))); len(got.Volumes[0].Chain) != 4 {
				t.Errorf("the chain has %d images, want 4", len(got.Volumes[0].Chain))
			}
		})
	}
}

func TestAFullLogIsCommittedAndUsedAgain(t *testing.T) {
	c := mustOpen(t, vfs.OS{}, filepath.Join(t.TempDir(), "catalog"))
	mustUpdate(t, c, func(tx *Tx) error { return addSpaced(tx, "a", 500) })
	volumes := mustLoad(t, c).Volumes
	commits := 0
	for n := range 300 {
		before := append([]VolumeState(nil), volumes...)
		mustAppend(t, c, func(tx Links) error {
			volumes = append([]VolumeState(nil), before...)
			return appendPreserve(tx, fmt.Sprint("s", n), volumes...)
		})
		if !c.log.isPending() {
			commits++
		}
	}
	if most := 300*2*logUnitBytes/logBytes + 1; commits == 0 || commits > most {
		t.Errorf("%d of 300 appends were commits, want 1 to %d", commits, most)
	}
	if got := mustLoad(t, c); len(got.Volumes[0].Chain) != 301 {
		t.Errorf("the chain has %d images, want 301", len(got.Volumes[0].Chain))
	}
}

func TestWithoutRoomForALogACatalogDoesWithoutOne(t *testing.T) {
	full := true
	fsys := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
		if full && op.Kind == vfs.OpWrite && strings.HasSuffix(op.Name, logSuffix) {
			return syscall.ENOSPC
		}
		return nil
	}}
	name := filepath.Join(t.TempDir(), "catalog")
	c := mustOpen(t, fsys, name)
	mustUpdate(t, c, func(tx *Tx) error { return addSpaced(tx, "a", 3) })
	volumes := mustLoad(t, c).Volumes
	mustAppend(t, c, func(tx Links) error { return appendPreserve(tx, "s", volumes...) })
	if c.log.isPending() {
		t.Error("an append is pending, and there is no log")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	full = false
	if got := mustLoad(t, mustOpen(t, fsys, name)); len(got.Volumes[0].Chain) != 2 {
		t.Errorf("the chain has %d images, want 2", len(got.Volumes[0].Chain))
	}
}

func TestAppendRefusesWhatWouldNotLoad(t *testing.T) {
	c := mustOpen(t, vfs.OS{}, filepath.Join(t.TempDir(), "catalog"))
	mustUpdate(t, c, func(tx *Tx) error { return addSpaced(tx, "a", 3) })
	before := mustLoad(t, c)
	tip := before.Volumes[0].Chain[0]
	named := tip
	named.Snapshot = &Snapshot{Name: "s", Cut: 1, State: "draining", Consistency: "process"}
	for what, change := range map[string]func(Links) error{
		"a volume that is not there": func(tx Links) error { return tx.PutLink(Link{Volume: 7, Image: 2, SizeBytes: 4096}) },
		"an image never drawn":       func(tx Links) error { return tx.PutLink(Link{Volume: 1, Image: 99, SizeBytes: 4096}) },
		"a cut never drawn":          func(tx Links) error { return tx.PutLink(named) },
		"a tip with a name": func(tx Links) error {
			_, err := tx.NewCutID()
			return errors.Join(err, tx.PutLink(named))
		},
		"an error of its own": func(Links) error { return errors.New("no") },
	} {
		if err := c.Append(change); err == nil || errors.Is(err, ErrFailed) {
			t.Errorf("%s: Append returned %v", what, err)
		}
		if got := mustLoad(t, c); !reflect.DeepEqual(got, before) {
			t.Errorf("%s: it changed something", what)
		}
	}
}

// Appends and Updates beside each other: each is there, and where both put the same
// link it is the last one's.
func TestAppendsBesideUpdatesKeepTheirOrder(t *testing.T) {
	name := filepath.Join(t.TempDir(), "catalog")
	c := mustOpen(t, vfs.OS{}, name)
	mustUpdate(t, c, func(tx *Tx) error { return addSpaced(tx, "a", 400) })
	volumes := mustLoad(t, c).Volumes
	var mu sync.Mutex // what the functions see, as the store's own lock
	const each = 150
	drain := time.Duration(0)
	at := -1 // the newest snapshot's link, once it is appended
	var workers sync.WaitGroup
	workers.Go(func() {
		for n := range each {
			again := false
			if err := c.Append(func(tx Links) error {
				mu.Lock()
				defer mu.Unlock()
				if chain := volumes[0].Chain; again {
					chain = chain[:len(chain)-1]
					chain[len(chain)-1].Snapshot = nil
					volumes[0].Chain = chain
				}
				again = true
				return appendPreserve(tx, fmt.Sprint("s", n), volumes...)
			}); err != nil {
				t.Error(err)
			}
			mu.Lock()
			at = len(volumes[0].Chain) - 2
			mu.Unlock()
		}
	})
	workers.Go(func() {
		for range each {
			if err := c.Update(func(tx *Tx) error {
				mu.Lock()
				defer mu.Unlock()
				if at < 0 {
					return nil
				}
				drain++
				link := &volumes[0].Chain[at]
				snapshot := *link.Snapshot
				snapshot.Drain = drain
				link.Snapshot = &snapshot
				return tx.PutLink(*link)
			}); err != nil {
				t.Error(err)
			}
		}
	})
	workers.Wait()
	got := mustLoad(t, c).Volumes[0].Chain
	if len(got) != each+1 {
		t.Fatalf("the chain has %d images, want %d", len(got), each+1)
	}
	for i, l := range got {
		if !reflect.DeepEqual(l, volumes[0].Chain[i]) {
			t.Fatalf("image %d is\n%+v, want\n%+v", i, l, volumes[0].Chain[i])
		}
	}
}

func FuzzDecodeFrame(f *testing.F) {
	whole := frame{number: 3, next: counters{2, 3, 4}, records: []record{{linkKey(1, 2), []byte("value")}, {[]byte("k"), nil}}}
	f.Add(whole.encode("id"))
	f.Add([]byte(frameMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := decodeFrame("id", b)
		if !ok {
			return
		}
		again, ok := decodeFrame("id", got.encode("id"))
		if !ok || !reflect.DeepEqual(got, again) {
			t.Errorf("%+v was written as %+v", got, again)
		}
	})
}

package journal

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// contents of a journal's files, by name.
func contents(t testing.TB, o Options) map[string]string {
	t.Helper()
	names, err := o.FS.ReadDir(o.Dir)
	must(t, err)
	all := map[string]string{}
	for _, name := range names {
		all[name] = string(readFile(t, o, o.Dir+"/"+name))
	}
	return all
}

// closed makes a journal of images 1 and 2 that was closed: image 1 has block 1 and
// is drained.
func closed(t testing.TB, o Options) {
	t.Helper()
	j := create(t, o)
	must(t, j.Commit(appendTo(t, j, data(1, 1)), Basis{}))
	must(t, j.MarkDrained(1))
	must(t, j.Close())
}

func TestAClosedJournalRestsUntilItIsWrittenTo(t *testing.T) {
	o := simOptions("a", 1, 2)
	closed(t, o)
	before := contents(t, o)
	quiet := func(op vfs.Op) error {
		switch op.Kind {
		case vfs.OpWrite, vfs.OpTruncate, vfs.OpSync, vfs.OpSyncDir, vfs.OpRename, vfs.OpRemove:
			return fmt.Errorf("%s of %s", op.Kind, op.Name)
		}
		return nil
	}
	for i, boot := range []string{"a", "a", "b", "b", "c"} {
		watched := o.underBoot(boot)
		hook := failing(&watched)
		*hook = quiet
		j, r := reopen(t, watched)
		if wantHeld(t, r.Tables[1], 1); !r.Clean || r.SyncFailed || r.Drained[1] != (boot == "a") || len(r.Notes) > 0 {
			t.Fatalf("open %d: recovered %+v", i, r)
		}
		if lsn, err := j.Append(nil); j.Ready() || lsn != 1 || err != nil || j.End() != 1 || j.Committed() != 1 {
			t.Fatalf("open %d: ready %v, LSN %d, %v", i, j.Ready(), lsn, err)
		}
		j.AddImage(3)
		if j.NeedsCheckpoint() || j.Overdue() {
			t.Fatalf("open %d: a checkpoint is needed", i)
		}
		must(t, errors.Join(j.Commit(1, Basis{}), j.Checkpoint()))
		if i%2 == 0 { // else it is killed
			must(t, j.Close())
			if _, err := j.Append([]Change{data(1, 2)}); !errors.Is(err, ErrClosed) {
				t.Fatalf("append after close: %v", err)
			}
		}
		if after := contents(t, o); !maps.Equal(after, before) {
			t.Fatalf("open %d: the files have changed from %q to %q", i, before, after)
		}
	}

	o = o.underBoot("c")
	j, _ := reopen(t, o)
	if lsn := appendTo(t, j, data(2, 2)); lsn != 2 || !j.Ready() {
		t.Fatalf("LSN %d, ready %v", lsn, j.Ready())
	}
	if names := segmentFiles(t, o); !slices.Equal(names, []string{"journal-00000003"}) {
		t.Fatalf("segments %v", names)
	}
	must(t, j.MarkDrained(2))
	_, r := reopen(t, copyOf(t, o).underBoot("c"))
	if wantHeld(t, r.Tables[2], 2); r.Clean || !r.SameBoot || !r.Drained[2] || r.Drained[1] {
		t.Fatalf("after a kill: recovered %+v", r)
	}
	must(t, j.Commit(2, Basis{}))
	must(t, j.Close())
	_, r = reopen(t, o.underBoot("d"))
	wantHeld(t, r.Tables[1], 1)
	if wantHeld(t, r.Tables[2], 2); !r.Clean {
		t.Fatalf("after a close: recovered %+v", r)
	}
}

// What drains while it rests is known after a kill, under the boot ID of the rest.
func TestMarksWakeNoJournalThatRestsAsLongAsThereIsRoom(t *testing.T) {
	o := simOptions("a", 1, 2)
	closed(t, o)
	o = o.underBoot("b")
	before := contents(t, o)
	watched := o
	hook := failing(&watched)
	j, _ := reopen(t, watched)
	*hook = func(op vfs.Op) error {
		if op.Kind == vfs.OpSync || op.Kind == vfs.OpSyncDir {
			return fmt.Errorf("%s of %s", op.Kind, op.Name)
		}
		return nil
	}
	if err := j.MarkDrained(3); !errors.Is(err, ErrUnknownImage) {
		t.Fatalf("mark of an image that is not in the chain: %v", err)
	}
	marked := map[image.ID]bool{}
	for id := image.ID(2); len(marked) < mostDrained; id++ {
		j.AddImage(id)
		must(t, j.MarkDrained(id))
		o.Images, marked[id] = append(o.Images, id), true
		_, r := reopen(t, copyOf(t, o).underBoot("b"))
		if j.Ready() || !r.Clean || !maps.Equal(r.Drained, marked) {
			t.Fatalf("ready %v, after a kill: recovered %+v", j.Ready(), r)
		}
	}
	for name, content := range contents(t, o) {
		if name != witnessFile && content != before[name] {
			t.Fatalf("%s has changed", name)
		}
	}
	for _, boot := range []string{"a", "c"} { // under which the rest has no marks
		_, r := reopen(t, copyOf(t, o).underBoot(boot))
		if len(r.Drained) > 0 && (boot != "a" || !maps.Equal(r.Drained, map[image.ID]bool{1: true})) {
			t.Fatalf("under boot ID %s: recovered %+v", boot, r)
		}
	}

	must(t, j.RemoveImage(2)) // which makes room
	j.AddImage(99)
	must(t, j.MarkDrained(99))
	o.Images[1], marked[99] = 99, true
	if delete(marked, 2); j.Ready() {
		t.Fatal("a mark that has room has begun a life")
	}
	*hook = nil
	j.AddImage(100)
	must(t, j.MarkDrained(100))
	o.Images, marked[100] = append(o.Images, 100), true
	_, r := reopen(t, copyOf(t, o).underBoot("b"))
	if !j.Ready() || !maps.Equal(r.Drained, marked) {
		t.Fatalf("ready %v, after a kill: recovered %+v", j.Ready(), r)
	}
	must(t, j.Close())
	_, r = reopen(t, o.underBoot("b"))
	if !maps.Equal(r.Drained, marked) {
		t.Fatalf("after a close: recovered %+v", r)
	}
}

func TestMarksOfARestCountNoMoreWhenASyncHasFailed(t *testing.T) {
	for _, boot := range []string{"a", "b"} {
		for _, begins := range []bool{false, true} {
			o := simOptions("a", 1, 2)
			closed(t, o)
			o = o.underBoot(boot)
			j, _ := reopen(t, o)
			must(t, j.MarkDrained(2))
			if begins {
				appendTo(t, j, data(1, 2))
			}
			must(t, j.MarkFailed())
			j, r := reopen(t, o)
			if !r.SyncFailed || len(r.Drained) > 0 {
				t.Fatalf("boot ID %s, begins %v: recovered %+v", boot, begins, r)
			}
			must(t, j.Close())
			if _, r := reopen(t, o); !r.Clean || len(r.Drained) > 0 {
				t.Fatalf("boot ID %s, begins %v, and closed: recovered %+v", boot, begins, r)
			}
		}
	}
}

// A mark that is damaged claims less, and the check finds it.
func TestDamagedMarksOfARestAreToldAndLost(t *testing.T) {
	o := simOptions("a", 1, 2)
	closed(t, o)
	j, _ := reopen(t, o)
	must(t, j.MarkDrained(2))
	whole := readFile(t, o, witnessName(o.Dir))
	for at := witnessBytes; at < len(whole); at++ {
		broken := slices.Clone(whole)
		broken[at] ^= 4
		for _, file := range [][]byte{broken, whole[:at]} {
			if isZero(file[witnessBytes:]) {
				continue
			}
			writeFile(t, o, witnessName(o.Dir), file)
			if findings := Check(o); len(findings) != 1 || !strings.Contains(findings[0], errNoMarks.Error()) {
				t.Fatalf("byte %d: check finds %q", at, findings)
			}
			again := copyOf(t, o).underBoot("a")
			j, r := reopen(t, again)
			if wantHeld(t, r.Tables[1], 1); !r.Clean || r.Drained[2] || len(r.Notes) != 1 {
				t.Fatalf("byte %d: recovered %+v", at, r)
			}
			appendTo(t, j, data(1, 2)) // the next life mends it
			if findings := Check(again); len(findings) > 0 {
				t.Fatalf("byte %d, when a life has begun: check finds %q", at, findings)
			}
		}
	}
}

// What a rest would keep from being renewed or removed is reason enough to begin.
func TestAJournalThatIsNotWholeDoesNotRest(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(*testing.T, Options)
	}{
		{"no witness", remove(witnessFile)},
		{"a damaged witness", func(t *testing.T, o Options) {
			b := readFile(t, o, witnessName(o.Dir))
			b[witnessBytes/2] ^= 1
			writeFile(t, o, witnessName(o.Dir), b)
		}},
		{"an empty witness", truncate(witnessFile, 0)},
		{"a segment that counts no longer", func(t *testing.T, o Options) {
			writeFile(t, o, segmentName(o.Dir, 1), []byte("old"))
		}},
		{"half a table file", func(t *testing.T, o Options) {
			writeFile(t, o, tableName(o.Dir, 1)+vfs.TempSuffix, nil)
		}},
		{"the table of an image that was removed", func(t *testing.T, o Options) {
			must(t, writeTable(&o, 9, lookup.NewTable(), 1))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := simOptions("a", 1, 2)
			closed(t, o)
			c.damage(t, o)
			j, r := reopen(t, o)
			if wantHeld(t, r.Tables[1], 1); !j.Ready() || !r.Clean {
				t.Fatalf("ready %v, recovered %+v", j.Ready(), r)
			}
			all := contents(t, o)
			if len(all) != 4 || all["journal-00000003"] == "" || len(all[witnessFile]) != witnessBytes+marksBytes {
				t.Fatalf("files %q", slices.Sorted(maps.Keys(all)))
			}
		})
	}
}

// restingRig has done a bit of everything, was closed and opened, and rests.
func restingRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, t.TempDir())
	r.must(r.script())
	r.must(r.close())
	r.mark()
	if r.j.Ready() {
		t.Fatal("it does not rest")
	}
	return r
}

// wake writes to a journal that rests, one step at a time.
func (r *rig) wake() []func() error {
	return []func() error{
		func() error { return r.append([]Change{data(1, 3), data(2, 1)}) },
		func() error { return r.append([]Change{data(2, 2)}) },
		func() error { return r.commit([]Change{data(2, 3)}) },
		func() error { return r.markDrained(2) },
	}
}

func (r *rig) doAll(steps []func() error) func() error {
	return func() error {
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
			r.mark()
		}
		return nil
	}
}

func TestAPowerCutAroundTheFirstAppendKeepsWhatWasCommitted(t *testing.T) {
	r := restingRig(t)
	first := r.sim.Ops()
	r.must(r.doAll(r.wake())())
	for at := first; at <= r.sim.Ops(); at++ {
		for seed := range uint64(3) {
			cut := r.afterCut(at, dice(seed))
			cut.recover(false, false)
			cut.mark()
			begun := cut.sim.Ops()
			cut.must(cut.doAll(cut.wake())())
			for at2 := begun + (at+int(seed))%11; at2 <= cut.sim.Ops(); at2 += 11 {
				cut.afterCut(at2, dice(seed+1)).recover(false, false)
			}
		}
	}
}

// The first to write is one that appends, or one that marks.
func TestAKillAtEveryOperationOfTheFirstWriteLosesNothing(t *testing.T) {
	for _, marks := range []bool{false, true} {
		for at := 1; ; at++ {
			r := restingRig(t)
			steps := r.wake()
			if marks {
				steps = append([]func() error{func() error { return r.markDrained(1) }}, steps...)
			}
			err := r.diesAt(at, r.doAll(steps))
			r.afterCut(r.sim.Ops(), dice(uint64(at))).recover(false, false)
			next := r.afterKill()
			next.recover(true, false)
			next.mark()
			next.must(next.doAll(next.wake())())
			next.afterCut(next.sim.Ops(), dice(uint64(at))).recover(false, false)
			next.afterKill().recover(true, false)
			if err == nil {
				break
			}
		}
	}
}

// A close that is killed at any operation, and what opens then perhaps rests: a
// power cut takes nothing of it.
func TestAPowerCutTakesNothingOfWhatRestsAfterACloseThatWasKilled(t *testing.T) {
	rested := false
	for at := 1; ; at++ {
		r := newRig(t, t.TempDir())
		r.must(r.script())
		r.must(r.settle())
		r.mark()
		r.closing = true
		err := r.diesAt(at, r.j.Close)
		next := r.afterKill()
		next.recover(true, false)
		next.mark()
		rested = rested || !next.j.Ready()
		for seed := range uint64(4) {
			next.afterCut(next.sim.Ops(), dice(seed)).recover(false, false)
		}
		if err == nil {
			break
		}
	}
	if !rested {
		t.Error("none rested")
	}
}

func TestAFaultInTheFirstWriteIsToldAndTheNextOneGoesOn(t *testing.T) {
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprintf("and is closed %v", closes), func(t *testing.T) {
			eachFault(t, func(t *testing.T, f fault) bool {
				r := restingRig(t)
				end := r.j.End()
				met := f.during(r, func() {
					err := r.append([]Change{data(1, 3)})
					r.try(f, "append", err)
					if err != nil && (r.j.End() != end || r.j.Committed() != end) {
						t.Fatalf("%v: the append failed, and the end is %d", f, r.j.End())
					}
					if closes {
						return
					}
					for i, step := range r.wake() {
						r.try(f, fmt.Sprintf("step %d", i), step())
					}
				})
				if closes {
					r.must(r.close())
				} else if !r.failed {
					r.must(r.doAll(r.wake())())
				}
				r.mark()
				for seed := range uint64(2) {
					r.afterCut(r.sim.Ops(), dice(seed)).recover(false, false)
				}
				r.outlivesTwoKills()
				return met
			})
		})
	}
}

// Blocks can be overwritten and flushed without any change of a table: so a sync of
// an image can fail while the journal rests, or just when it begins to be written.
func TestASyncThatFailsWhileAJournalRestsIsKnownToTheNextOpen(t *testing.T) {
	for _, c := range []struct {
		name string
		boot string
		late bool // the mark comes after a first write that failed, not in the middle of it
	}{
		{"in the middle, under the same boot ID", "a", false},
		{"in the middle, under another", "b", false},
		{"after it failed, under the same boot ID", "a", true},
		{"after it failed, under another", "b", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for at := 0; restFails(t, c.boot, at, c.late); at++ {
			}
		})
	}
}

// restFails marks a journal that rests as failed at the nth operation of its first
// write, or after that operation has failed; where at is 0, without a write. It
// returns false if there are not that many.
func restFails(t *testing.T, boot string, at int, late bool) bool {
	t.Helper()
	o := simOptions("a", 1, 2)
	closed(t, o)
	o = o.underBoot(boot)
	plain := o
	before, _, err := readWitness(&plain)
	must(t, err)
	hook := failing(&o)
	j, _ := reopen(t, o)
	n := 0
	*hook = func(op vfs.Op) error {
		switch {
		case op.Name == witnessName(o.Dir) && op.Kind == vfs.OpWrite:
			return nil // a mark waits for it, and one that can't be written is told
		case j.Ready():
			return nil
		}
		if n++; n != at {
			return nil
		}
		if late {
			return errFault
		}
		must(t, j.MarkFailed())
		return nil
	}
	if at > 0 {
		_, err := j.Append([]Change{data(1, 2)})
		if n < at {
			must(t, err)
			return false
		}
		if !late && !errors.Is(err, ErrSyncFailed) {
			t.Fatalf("operation %d: append: %v", at, err)
		}
	}
	*hook = nil
	if late || at == 0 {
		must(t, j.MarkFailed())
	}
	if at == 0 { // what is durable is still known
		before.failed = true
		if said, _, err := readWitness(&plain); said != before || err != nil {
			t.Fatalf("the witness says %+v, %v, want %+v", said, err, before)
		}
	}
	if _, err := j.Append([]Change{data(1, 3)}); !errors.Is(err, ErrSyncFailed) {
		t.Fatalf("append: %v", err)
	}
	if err := j.Close(); !errors.Is(err, ErrSyncFailed) {
		t.Fatalf("close: %v", err)
	}
	var dropped []image.ID
	plain.DropImage = func(id image.ID) error { dropped = append(dropped, id); return nil }
	if findings := Check(plain); len(findings) > 0 {
		t.Fatalf("check finds %q", findings)
	}
	j, r := reopen(t, plain)
	if wantHeld(t, r.Tables[1], 1); !r.SyncFailed || len(r.Drained) > 0 || !slices.Equal(dropped, plain.Images) || !j.Ready() {
		t.Fatalf("operation %d: recovered %+v, dropped %v", at, r, dropped)
	}
	appendTo(t, j, data(1, 4))
	_, r = reopen(t, plain)
	if wantHeld(t, r.Tables[1], 1, 4); r.SyncFailed {
		t.Fatal("the next life has failed too")
	}
	return true
}

func TestThoseWhoWriteFirstTogetherBeginOneLife(t *testing.T) {
	for range 20 {
		o := simOptions("a", 1, 2, 3)
		closed(t, o)
		plain := o
		hook := failing(&o)
		j, _ := reopen(t, o)
		writers := []func() error{
			func() error { return j.MarkDrained(2) },
			func() error { return j.RemoveImage(3) },
			j.Checkpoint,
			func() error { return j.Commit(j.Committed(), Basis{}) },
			func() error { _, _ = j.NeedsCheckpoint(), j.Overdue(); j.AddImage(4); return nil },
		}
		for w := range lookup.BlockNum(8) {
			writers = append(writers, func() error {
				_, err := j.Append([]Change{data(1, 10+w)})
				return err
			})
		}
		var started, all sync.WaitGroup
		started.Add(len(writers))
		*hook = func(vfs.Op) error { started.Wait(); return nil } // while the life begins, the others come
		for _, write := range writers {
			all.Go(func() {
				started.Done()
				if err := write(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		must(t, j.Commit(j.End(), Basis{}))
		plain.Images = []image.ID{1, 2, 4}
		if said, _, err := readWitness(&plain); said.life != 3 || err != nil {
			t.Fatalf("the witness says %+v, %v, want one life after the closed one", said, err)
		}
		_, r := reopen(t, plain)
		if wantHeld(t, r.Tables[1], 1, 10, 11, 12, 13, 14, 15, 16, 17); !r.Drained[2] {
			t.Fatalf("recovered %+v", r)
		}
	}
}

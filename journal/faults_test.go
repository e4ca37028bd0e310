package journal

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
)

var errFault = errors.New("fault")

// fault is what goes wrong from the nth operation on that changes the disk or
// syncs: a write comes short, a sync loses what it was to make durable, anything
// else does nothing.
type fault struct {
	from, times int
	evict       bool // a failed sync takes what is lost out of the page cache too
}

func (f fault) String() string {
	return fmt.Sprintf("%d faults from operation %d, evict %v", f.times, f.from, f.evict)
}

// during runs do under the fault, and tells whether it came to it.
func (f fault) during(r *rig, do func()) bool {
	n := 0
	r.hook = func(op vfs.Op) error {
		switch op.Kind {
		case vfs.OpOpen, vfs.OpWrite, vfs.OpTruncate, vfs.OpSync, vfs.OpSyncDir, vfs.OpRename, vfs.OpRemove:
			n++
		default:
			return nil
		}
		if n < f.from || n >= f.from+f.times || n > f.from && op.Name == witnessName(r.o.Dir) {
			return nil // a failed sync that can't be noted is beyond what a server can do
		}
		if op.Kind == vfs.OpSync {
			return vfs.LostError{Err: errors.Join(errFault, syscall.EIO), Evict: f.evict}
		}
		return vfs.ShortError{N: tornAt(op), Err: errors.Join(errFault, syscall.ENOSPC)}
	}
	do()
	r.hook = nil
	return n >= f.from
}

// try notes what a call's error means, and fails the test for one that nothing
// caused.
func (r *rig) try(f fault, what string, err error) {
	r.Helper()
	switch {
	case errors.Is(err, ErrSyncFailed):
		r.failed = true
	case err != nil && !errors.Is(err, errFault):
		r.Fatalf("%v: %s: %v", f, what, err)
	}
	r.mark()
}

// outlivesTwoKills recovers after a kill, and again after what is written then.
func (r *rig) outlivesTwoKills() {
	next := r.afterKill()
	next.recover(true, false)
	next.must(next.append([]Change{data(1, 1)}))
	next.mark()
	next.afterKill().recover(true, false)
}

func eachFault(t *testing.T, test func(t *testing.T, f fault) (met bool)) {
	for _, c := range []fault{{times: 1}, {times: 1, evict: true}, {times: 4}} {
		t.Run(fmt.Sprintf("%d times, evict %v", c.times, c.evict), func(t *testing.T) {
			for c.from = 1; test(t, c); c.from++ {
			}
		})
	}
}

func TestAFaultAtAnyOperationLosesNothingThatWasAcknowledged(t *testing.T) {
	eachFault(t, func(t *testing.T, f fault) bool {
		r := newRig(t, t.TempDir())
		met := f.during(r, func() {
			for i, step := range r.steps() {
				r.try(f, fmt.Sprintf("step %d", i), step())
			}
		})
		if !r.failed { // then it goes on as if nothing had happened
			r.must(r.append([]Change{data(1, 3)}))
			r.must(r.commit(nil))
			r.must(r.append([]Change{data(2, 3)}))
			r.must(r.j.Checkpoint())
			r.mark()
		}
		r.afterCut(r.sim.Ops(), dice(uint64(f.from))).recover(false, false)
		r.outlivesTwoKills()
		return met
	})
}

func TestAFaultAtAnyOperationOfACloseOrAnOpenLosesNothing(t *testing.T) {
	eachFault(t, func(t *testing.T, f fault) bool {
		r := newRig(t, t.TempDir())
		r.must(r.script())
		r.must(r.settle())
		r.mark()
		r.closing = true
		met := f.during(r, func() { r.try(f, "close", r.j.Close()) })
		r.afterCut(r.sim.Ops(), dice(uint64(f.from))).recover(false, false)
		r.afterKill().recover(true, false)

		r = newRig(t, t.TempDir())
		r.must(r.script())
		r = r.afterKill()
		r.mayRecover()
		met = f.during(r, func() {
			_, _, err := Open(r.o)
			r.try(f, "open", err)
		}) || met
		r.afterCut(r.sim.Ops(), dice(uint64(f.from))).recover(false, false)
		r.recover(true, false)
		return met
	})
}

func TestAfterAFailedSyncOnlyWhatWasCommittedCounts(t *testing.T) {
	eio := errors.New("EIO")
	for _, c := range []struct {
		name string
		fail func(t *testing.T, j *Journal, fault *func(vfs.Op) error)
	}{
		{"of an image", func(t *testing.T, j *Journal, _ *func(vfs.Op) error) {
			must(t, j.MarkFailed())
		}},
		{"of the journal, of which the caller tells too", func(t *testing.T, j *Journal, fault *func(vfs.Op) error) {
			failSyncs(t, j, fault, eio)
			must(t, j.MarkFailed())
		}},
		{"of the journal alone", func(t *testing.T, j *Journal, fault *func(vfs.Op) error) {
			failSyncs(t, j, fault, eio)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := simOptions("a", 1, 2)
			plain := o
			fault := failing(&o)
			j := create(t, o)
			appendTo(t, j, data(1, 1))
			must(t, j.MarkDrained(1))
			must(t, j.Commit(1, Basis{}))
			appendTo(t, j, data(1, 2))
			hole := place{1, j.cur.end, 0}
			appendTo(t, j, data(1, 5))
			appendTo(t, j, data(1, 6))
			c.fail(t, j, fault)
			_, appended := j.Append([]Change{data(1, 3)})
			for call, err := range map[string]error{
				"append": appended, "commit": j.Commit(2, Basis{}), "mark drained": j.MarkDrained(2), "checkpoint": j.Checkpoint(), "close": j.Close(),
			} {
				if !errors.Is(err, ErrSyncFailed) {
					t.Errorf("%s: %v, want ErrSyncFailed", call, err)
				}
			}
			if err := j.MarkFailed(); !errors.Is(err, ErrClosed) {
				t.Errorf("mark after close: %v, want ErrClosed", err)
			}

			// The kernel may have dropped any part of what it could not write.
			holed := copyOf(t, plain)
			b := readFile(t, holed, segmentName(holed.Dir, hole.segment))
			clear(b[hole.end:][:frameBytes])
			writeFile(t, holed, segmentName(holed.Dir, hole.segment), b)
			_, r := reopen(t, holed)
			if wantHeld(t, r.Tables[1], 1); !r.SyncFailed {
				t.Errorf("recovered %+v", r)
			}

			var dropped []image.ID
			plain.SyncImage = func(id image.ID) error { t.Errorf("image %d is synced, which proves nothing", id); return nil }
			plain.DropImage = func(id image.ID) error { dropped = append(dropped, id); return nil }
			if findings := Check(plain); len(findings) > 0 {
				t.Errorf("check finds %q", findings)
			}
			j, r = reopen(t, plain)
			if wantHeld(t, r.Tables[1], 1); !r.SyncFailed || !r.SameBoot || len(r.Drained) > 0 || r.Discarded != 3 || len(r.Notes) == 0 {
				t.Errorf("recovered %+v", r)
			}
			if !slices.Equal(dropped, []image.ID{1, 2}) {
				t.Errorf("dropped %v, want every image", dropped)
			}
			appendTo(t, j, data(1, 4))
			plain.SyncImage = func(image.ID) error { return nil }
			_, r = reopen(t, plain)
			if wantHeld(t, r.Tables[1], 1, 4); r.SyncFailed {
				t.Error("the next life has failed too")
			}
		})
	}
}

func failSyncs(t *testing.T, j *Journal, fault *func(vfs.Op) error, with error) {
	t.Helper()
	*fault = func(op vfs.Op) error {
		if op.Kind == vfs.OpSync {
			return with
		}
		return nil
	}
	if err := j.Commit(2, Basis{}); !errors.Is(err, ErrSyncFailed) || !errors.Is(err, with) {
		t.Fatalf("commit: %v", err)
	}
	*fault = nil
}

func TestAFailedSyncThatCannotBeNotedIsAnError(t *testing.T) {
	o := simOptions("a", 1)
	fault := failing(&o)
	j := create(t, o)
	*fault = func(op vfs.Op) error { return errFault }
	if err := j.MarkFailed(); !errors.Is(err, errFault) {
		t.Fatalf("mark: %v", err)
	}
	if _, err := j.Append([]Change{data(1, 1)}); !errors.Is(err, ErrSyncFailed) {
		t.Fatalf("append: %v, want ErrSyncFailed", err)
	}
}

func TestASyncThatFailsInRecoveryIsNotTriedAgain(t *testing.T) {
	for _, c := range []struct {
		name    string
		witness func(*testing.T, Options)
	}{
		{"with what the witness knows", func(*testing.T, Options) {}},
		{"with nothing that is known to be durable", remove(witnessFile)},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := simOptions("a", 1)
			j := create(t, o)
			must(t, j.Commit(appendTo(t, j, data(1, 1)), Basis{}))
			appendTo(t, j, data(1, 2))
			c.witness(t, o)
			o.SyncImage = func(image.ID) error { return image.ErrNotBegun }
			if _, _, err := Open(o); !errors.Is(err, image.ErrNotBegun) {
				t.Fatalf("open: %v", err)
			}
			o.SyncImage = func(image.ID) error { return errFault }
			if _, _, err := Open(o); !errors.Is(err, errFault) {
				t.Fatalf("open: %v", err)
			}
			o.SyncImage = func(image.ID) error { return nil }
			_, r := reopen(t, o)
			if wantHeld(t, r.Tables[1], 1); !r.SyncFailed {
				t.Fatalf("recovered %+v", r)
			}
		})
	}
}

// I5: nobody waits. A request makes appends; each operation of what runs beside
// them is stopped in turn, and an append that waited for it would wait for ever.
func TestNoAppendWaitsForWhatRunsBesideItWhereverThatIsStopped(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(j *Journal) error
		want []vfs.OpKind
	}{
		{"checkpoint", (*Journal).Checkpoint, []vfs.OpKind{vfs.OpOpen, vfs.OpSyncDir, vfs.OpRead, vfs.OpSync, vfs.OpRename, vfs.OpRemove, vfs.OpClose}},
		{"commit", func(j *Journal) error { return j.Commit(j.End(), Basis{}) }, []vfs.OpKind{vfs.OpSync}},
		{"remove image", func(j *Journal) error { return j.RemoveImage(2) }, []vfs.OpKind{vfs.OpRemove, vfs.OpSyncDir}},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen := map[vfs.OpKind]bool{}
			for n := 1; stopAt(t, n, c.do, seen); n++ {
			}
			for _, k := range c.want {
				if !seen[k] {
					t.Errorf("no %s was stopped", k)
				}
			}
		})
	}
}

// stopAt stops what do does at its nth operation, appends, and lets it go on. It
// returns false if do ends before that.
func stopAt(t *testing.T, n int, do func(*Journal) error, seen map[vfs.OpKind]bool) bool {
	t.Helper()
	o := simOptions("a", 1, 2, 3)
	hook := failing(&o)
	j := create(t, o)
	must(t, j.Commit(appendTo(t, j, data(1, 1), data(2, 1)), Basis{}))
	must(t, j.Checkpoint()) // closes a segment
	must(t, j.Commit(appendTo(t, j, data(1, 2), data(2, 2)), Basis{}))
	must(t, j.Checkpoint()) // folds it
	must(t, j.Checkpoint()) // closes the next
	must(t, j.Commit(appendTo(t, j, data(1, 3), data(2, 3)), Basis{}))
	appendTo(t, j, data(1, 4))

	stopped, goOn, done := make(chan vfs.OpKind), make(chan struct{}), make(chan error, 1)
	ours := 0
	*hook = func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite { // appends write too, and a write to the page cache waits for nothing
			return nil
		}
		if ours++; ours == n {
			stopped <- op.Kind
			<-goOn
		}
		return nil
	}
	go func() { done <- do(j) }()
	select {
	case kind := <-stopped:
		seen[kind] = true
	case err := <-done:
		must(t, err)
		return false
	}
	for range 3 {
		appendTo(t, j, data(3, 1), data(1, 9))
	}
	must(t, j.MarkDrained(3))
	j.AddImage(4)
	_, _, _, _ = j.End(), j.Committed(), j.NeedsCheckpoint(), j.Overdue()
	close(goOn)
	must(t, <-done)
	return true
}

// A failed sync of a directory may have lost its new entries, and a second sync
// of it proves nothing about them.
func TestASegmentWhoseEntryCouldNotBeSyncedIsMadeAnew(t *testing.T) {
	o := simOptions("a", 1)
	hook := failing(&o)
	j := create(t, o)
	appendTo(t, j, data(1, 1))
	*hook = func(op vfs.Op) error {
		if op.Kind == vfs.OpSyncDir {
			return errFault
		}
		return nil
	}
	if err := j.Checkpoint(); !errors.Is(err, errFault) {
		t.Fatalf("checkpoint: %v", err)
	}
	var ops []string
	*hook = func(op vfs.Op) error { ops = append(ops, op.Kind.String()+" "+op.Name); return nil }
	must(t, j.Checkpoint())
	name := segmentName(o.Dir, 2)
	if want := []string{"remove " + name, "open " + name, "syncdir " + o.Dir}; !slices.Equal(ops[:3], want) {
		t.Fatalf("operations %q, want %q first", ops, want)
	}
}

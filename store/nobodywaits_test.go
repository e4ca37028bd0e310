package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// I5: nobody waits. A command runs again and again, and each time another one of
// its operations on files is stopped where it is. Meanwhile every kind of request
// is served, through every VLUN. Nothing is timed: a request that waits for the
// command waits for ever.

func TestNoRequestWaitsForAPreserveOrASealWhereverTheyAreStopped(t *testing.T) {
	s := newStoppable(t)
	s.stopEverywhere(func(n int) {
		name := fmt.Sprintf("s%d", n)
		_, err := s.Preserve(context.Background(), store.PreserveRequest{
			Volumes: []string{"v", "w"}, Name: name, OnTimeout: volume.TimeoutKeep, // P keeps it waiting
		})
		if !errors.Is(err, store.ErrDraining) {
			t.Errorf("preserve: %v, want %v", err, store.ErrDraining)
		}
		if _, err := s.EndProcess("P", false); err != nil {
			t.Error(err)
		}
		for _, full := range []string{"v@" + name, "w@" + name} {
			if err := s.WaitSealed(context.Background(), full); err != nil {
				t.Errorf("wait for %s: %v", full, err)
			}
		}
		s.begin()
	}, "write data/catalog.db.log", "sync data/catalog.db.log",
		"open images/#.img", "syncdir data/images", "committed data/catalog.db",
		"open images/#.img (seal)", "writeback images/#.img (seal)", "sync images/#.img (seal)", "close images/#.img (seal)",
		"open images/#.sum (seal)", "write images/#.sum (seal)", "sync images/#.sum (seal)", "syncdir data/images, 2.")
}

func TestNoRequestWaitsForADeleteWhereverItIsStopped(t *testing.T) {
	s := newStoppable(t)
	s.stopEverywhere(func(n int) {
		if err := s.DeleteVolume(fmt.Sprintf("x%d", n), false); err != nil {
			t.Errorf("delete: %v", err)
		}
		s.victim(n + 1)
	}, "committed data/catalog.db", "remove images/#.img", "remove volumes/#")
}

func TestNoRequestWaitsForASnapshotsDeleteAPunchOrAFoldWhereverTheyAreStopped(t *testing.T) {
	for name, clones := range map[string]bool{"with storage that can't be shared": false, "with storage that is shared": true} {
		t.Run(name, func(t *testing.T) {
			sim := vfs.NewSim(t.TempDir())
			sim.Clones = clones
			s := newStoppableOn(t, sim, store.RemovingInPieces(store.Options{FoldAbove: 1, ReclaimPercent: 100}))
			copied := "write images/#.img"
			if clones {
				copied = "clone images/#.img"
			}
			s.unneeded(0)
			s.clone("v@d0", "c")
			s.stopEverywhere(func(n int) {
				full := fmt.Sprintf("v@d%d", n+1)
				s.unstopped(func() { s.unneeded(n + 1) })
				if err := s.DeleteSnapshots(full); err != nil {
					t.Errorf("delete %s: %v", full, err)
				}
				s.AwaitPunches()
			}, "committed data/catalog.db", "write images/#.tab.tmp", "sync images/#.tab.tmp", "rename images/#.tab.tmp",
				"punch images/#.img", "read images/#.img", copied, "writeback images/#.img", "sync images/#.img",
				"write images/#.sum.tmp", "sync images/#.sum.tmp", "rename images/#.sum.tmp", "open images/#.sum",
				"remove images/#.img", "remove images/#.sum", "remove images/#.tab")
		})
	}
}

// What hides a block is flushed before the block is punched. A flush may wait for that,
// as for the one of another client, and no other request does.
func TestReadsAndWritesGoOnBesideTheFlushOfAPunch(t *testing.T) {
	s, sync := stoppedStore(t, func(op vfs.Op) bool {
		return op.Kind == vfs.OpSync && strings.HasPrefix(path.Base(op.Name), "journal-")
	})
	snapshot := scattered(t, s)
	sync.armed.Store(true)
	if err := s.DeleteSnapshots(snapshot); err != nil {
		t.Fatal(err)
	}
	<-sync.reached
	w := openView(t, s, "v")
	write(t, w, 0, 'c')
	_, read := w.ReadAt(make([]byte, w.SizeBytes()), 0)
	trim := w.Trim(lookup.BlockSize, lookup.BlockSize)
	close(sync.open)
	if err := errors.Join(read, trim, w.Flush(), w.Close()); err != nil {
		t.Error(err)
	}
}

func TestNoRequestWaitsForACloneWhereverItIsStopped(t *testing.T) {
	s := newStoppable(t)
	s.unneeded(0)
	s.clone("v@d0", "c")
	s.stopEverywhere(func(n int) {
		clone := fmt.Sprintf("c%d", n)
		if _, err := s.Clone(context.Background(), "v@d0", clone); err != nil {
			t.Errorf("clone: %v", err)
		}
		if err := s.DeleteVolume(clone, false); err != nil {
			t.Errorf("delete the clone: %v", err)
		}
	}, "committed data/catalog.db", "mkdir volumes/#", "open #/journal-#", "sync #/journal-base.tmp", "syncdir volumes/#", "open images/#.img")
}

func TestNoRequestWaitsForARollbackOfAnotherVolumeWhereverItIsStopped(t *testing.T) {
	s := newStoppable(t)
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"x0"}, Name: "back", Wait: time.Minute, UntilSealed: true}); err != nil {
		t.Fatal(err)
	}
	s.stopEverywhere(func(n int) {
		r, err := s.Rollback(context.Background(), store.RollbackRequest{Snapshot: "x0@back", Keep: fmt.Sprintf("k%d", n), Disconnect: n%2 == 0})
		if err != nil {
			t.Errorf("rollback: %v", err)
			return
		}
		if err := s.WaitSealed(context.Background(), r.Kept); err != nil {
			t.Errorf("wait for %s: %v", r.Kept, err)
		}
		if err := s.DeleteSnapshots(r.Kept); err != nil {
			t.Errorf("delete %s: %v", r.Kept, err)
		}
	}, "write data/catalog.db.log", "sync data/catalog.db.log", "committed data/catalog.db", "mkdir volumes/#", "sync #/journal-base.tmp",
		"sync images/#.img (seal)", "remove volumes/#")
}

func TestNoRequestWaitsForACheckpointWhereverItIsStopped(t *testing.T) {
	s := newStoppable(t)
	s.stopEverywhere(func(int) {
		for round := range 2 { // what one closes the next folds
			s.unstopped(func() { // a table change to fold: the flush is a request
				view, err := s.OpenView("v")
				if err != nil {
					t.Error(err)
					return
				}
				if err := errors.Join(view.WriteZeroes(0, lookup.BlockSize, round == 0), view.Flush(), view.Close()); err != nil {
					t.Error(err)
				}
			})
			if err := s.Checkpoint("v"); err != nil {
				t.Errorf("checkpoint: %v", err)
			}
		}
	}, "open #/journal-#", "sync #/table-#.tmp", "rename #/journal-base.tmp")
}

func TestNoRequestWaitsForTheRecoveryOfAnotherDirectory(t *testing.T) {
	other := vfs.NewSim(t.TempDir())
	o, err := store.Open(dataDir, store.Options{FS: other})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close(context.Background()) })
	if _, err := o.CreateVolume("o", 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	view := openView(t, o, "o")
	write(t, view, 0, 'a')
	if err := view.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, view, 8192, 'b')

	s := newStoppable(t)
	s.stopEverywhere(func(n int) {
		dead := other.PowerCut(other.Ops(), random(uint64(n)))
		o, err := store.Open(dataDir, store.Options{FS: vfs.Fault{FS: dead, Hook: s.stop}})
		if err != nil {
			t.Errorf("open the other directory: %v", err)
			return
		}
		if err := o.Close(context.Background()); err != nil {
			t.Errorf("close the other directory: %v", err)
		}
	}, "lock data/lock", "read #/journal-#", "write #/journal-#", "sync #/journal-#", "rename #/journal-base.tmp")
}

// stoppable is a store with volumes v and w whose background can be stopped, by
// one operation at a time.
type stoppable struct {
	*store.Store
	t       *testing.T
	volumes []string // that have requests

	mu      sync.Mutex
	armed   bool
	seen    map[string]int  // operations of this run, by what they are
	stopped map[string]bool // in all runs
	sealed  map[string]bool // images that no request writes to any more
	reached chan string
	open    chan struct{} // closed: it goes on
}

func newStoppable(t *testing.T) *stoppable {
	return newStoppableOn(t, vfs.NewSim(t.TempDir()), store.Options{})
}

func newStoppableOn(t *testing.T, disk *vfs.Sim, o store.Options) *stoppable {
	s := &stoppable{t: t, volumes: []string{"v", "w"}, seen: map[string]int{}, stopped: map[string]bool{}, sealed: map[string]bool{}}
	o.FS = vfs.Fault{FS: disk, Hook: s.hook}
	var err error
	s.Store, err = store.Open(dataDir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	for _, name := range s.volumes {
		if _, err := s.CreateVolume(name, 16*lookup.BlockSize, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
	}
	s.begin()
	s.victim(0)
	return s
}

// begin begins the process P, which a preserve has to wait for.
func (s *stoppable) begin() {
	if _, err := s.BeginProcess([]string{"v", "w"}, "P"); err != nil {
		s.t.Error(err)
	}
}

// victim makes a volume for a delete, with writes that nobody flushed.
func (s *stoppable) victim(n int) {
	name := fmt.Sprintf("x%d", n)
	if _, err := s.CreateVolume(name, 16*lookup.BlockSize, volume.ScopeRequest); err != nil {
		s.t.Error(err)
		return
	}
	view, err := s.OpenView(name)
	if err != nil {
		s.t.Error(err)
		return
	}
	if _, err := view.WriteAt(make([]byte, lookup.BlockSize), 0); err != nil {
		s.t.Error(err)
	}
	if err := view.Close(); err != nil {
		s.t.Error(err)
	}
}

// unneeded makes the snapshot dN of v, of which the live volume hides one block, and
// nobody hides the other; and has it sealed.
func (s *stoppable) unneeded(n int) {
	if _, err := s.EndProcess("P", false); err != nil { // else the snapshot waits for it
		s.t.Error(err)
	}
	put := func(blocks ...int64) {
		view, err := s.OpenView("v")
		if err != nil {
			s.t.Error(err)
			return
		}
		for _, b := range blocks {
			if _, err := view.WriteAt(bytes.Repeat([]byte{byte(n + 1)}, lookup.BlockSize), b*lookup.BlockSize); err != nil {
				s.t.Error(err)
			}
		}
		if err := view.Close(); err != nil {
			s.t.Error(err)
		}
	}
	put(0, 10+int64(n%6)) // requests write to neither
	if _, err := s.Preserve(context.Background(), store.PreserveRequest{
		Volumes: []string{"v"}, Name: fmt.Sprintf("d%d", n), Wait: time.Minute, UntilSealed: true,
	}); err != nil {
		s.t.Error(err)
	}
	put(0)
	s.begin()
}

// clone makes a volume that has requests too.
func (s *stoppable) clone(full, name string) {
	s.t.Helper()
	if _, err := s.Clone(context.Background(), full, name); err != nil {
		s.t.Fatal(err)
	}
	s.volumes = append(s.volumes, name)
}

// hook stops operations that are no request's own. Requests read, write and sync
// images and journals themselves, through handles without a label, and don't
// open, replace or remove anything. They write to no image that is sealed, and sync
// none; nor do any run until something was stopped, so a read of one isn't theirs.
func (s *stoppable) hook(op vfs.Op) error {
	switch op.Kind {
	case vfs.OpRename:
		if path.Ext(op.NewName) == ".tab" {
			s.mu.Lock()
			s.sealed[strings.TrimSuffix(op.NewName, ".tab")+".img"] = true
			s.mu.Unlock()
		}
	case vfs.OpRead, vfs.OpTryRead, vfs.OpWrite, vfs.OpAllocate, vfs.OpPunch, vfs.OpZero, vfs.OpSync, vfs.OpStat:
		s.mu.Lock()
		sealed := s.sealed[op.Name]
		s.mu.Unlock()
		if op.Handle == "" && path.Ext(op.Name) != vfs.TempSuffix && path.Base(op.Name) != "catalog.db.log" && !sealed {
			return nil
		}
	}
	return s.stop(op)
}

// stop stops an operation if none like it was stopped before: one of its kind on
// such a file, as often as it had come in its run.
func (s *stoppable) stop(op vfs.Op) error {
	s.mu.Lock()
	if !s.armed {
		s.mu.Unlock()
		return nil
	}
	is := describe(op)
	s.seen[is]++
	if s.seen[is] > 1 {
		is = fmt.Sprintf("%s, %d.", is, s.seen[is])
	}
	if s.stopped[is] {
		s.mu.Unlock()
		return nil
	}
	s.armed, s.stopped[is] = false, true
	open := s.open
	s.mu.Unlock()
	s.reached <- is
	<-open
	return nil
}

// unstopped does something within a command that is not part of it.
func (s *stoppable) unstopped(do func()) {
	s.mu.Lock()
	armed := s.armed
	s.armed = false
	s.mu.Unlock()
	do()
	s.mu.Lock()
	s.armed = armed
	s.mu.Unlock()
}

// stopEverywhere runs a command until it comes to its end without reaching an
// operation at which it was not stopped before. Those of want must have been
// among them: a run in which the background did the work while nothing was to be
// stopped (unstopped) proves nothing, and another follows.
func (s *stoppable) stopEverywhere(command func(n int), want ...string) {
	s.t.Helper()
	const mostRuns = 200
	for n, stopped := 0, true; (stopped || !s.stoppedAt(want)) && n < mostRuns; n++ {
		s.mu.Lock()
		s.armed, s.seen, s.reached, s.open = true, map[string]int{}, make(chan string, 1), make(chan struct{})
		s.mu.Unlock()
		done := make(chan struct{})
		go func() { defer close(done); command(n) }()
		select {
		case <-s.reached:
			s.requests()
		case <-done:
			stopped = false
		}
		s.mu.Lock()
		s.armed = false
		s.mu.Unlock()
		close(s.open) // also for one in the background that came at the command's end
		<-done
	}
	if !s.stoppedAt(want) {
		s.t.Errorf("of %q something was stopped only at %q", want, slices.Sorted(maps.Keys(s.stopped)))
	}
}

func (s *stoppable) stoppedAt(want []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(want, func(w string) bool { return !s.stopped[w] })
}

var number = regexp.MustCompile(`[0-9a-f]{8,}`)

// describe names an operation without the numbers of images, volumes, tables and
// segments of journals.
func describe(op vfs.Op) string {
	dir, base := path.Split(op.Name)
	name := path.Base(dir) + "/" + base
	switch {
	case path.Base(dir) == "images":
		_, kind, _ := strings.Cut(base, ".")
		name = "images/#." + kind
	case path.Base(dir) == "volumes":
		name = "volumes/#"
	case path.Base(path.Dir(path.Clean(dir))) == "volumes":
		name = "#/" + number.ReplaceAllString(base, "#")
	}
	if op.Handle != "" {
		name += " (" + op.Handle + ")"
	}
	return fmt.Sprintf("%v %s", op.Kind, name)
}

// requests does every kind of request through every VLUN of the volumes.
func (s *stoppable) requests() {
	s.t.Helper()
	for _, name := range s.volumes {
		live, err := s.OpenView(name)
		if err != nil {
			s.t.Fatal(err)
		}
		s.readAndWrite(live)
		if old, err := s.OpenView(name + ":process:P"); err == nil { // P has not ended yet
			s.readAndWrite(old)
			s.read(old)
		}
		snapshots, err := s.Snapshots(name)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, snap := range snapshots {
			preserved, err := s.OpenView(name + "@" + snap.Name)
			if errors.Is(err, store.ErrNotFound) {
				continue // it is being deleted
			}
			if err != nil {
				s.t.Fatal(err)
			}
			s.read(preserved)
			_ = preserved.Close()
		}
		s.read(live)
		_ = live.Close()
	}
}

func (s *stoppable) readAndWrite(w *volume.View) {
	s.t.Helper()
	data := make([]byte, 3*lookup.BlockSize)
	_, whole := w.WriteAt(data, lookup.BlockSize)
	_, part := w.WriteAt(data[:700], 5*lookup.BlockSize+100)
	_, inline := w.TryWriteAt(data[:lookup.BlockSize], 6*lookup.BlockSize)
	if errors.Is(inline, volume.ErrWouldBlock) { // the background has a block or the journal: as a server goes on
		_, inline = w.WriteAt(data[:lookup.BlockSize], 6*lookup.BlockSize)
	}
	for _, err := range []error{whole, part, inline, w.Trim(2*lookup.BlockSize, lookup.BlockSize),
		w.WriteZeroes(8*lookup.BlockSize, 5000, true), w.Flush()} {
		if err != nil && !errors.Is(err, volume.ErrEnded) {
			s.t.Error(err)
		}
	}
}

func (s *stoppable) read(w *volume.View) {
	s.t.Helper()
	_, err := w.ReadAt(make([]byte, w.SizeBytes()), 0)
	extents := w.Extents(0, w.SizeBytes(), func(volume.Extent) bool { return true })
	for _, err := range []error{err, extents, w.Flush()} {
		if err != nil && !errors.Is(err, volume.ErrEnded) {
			s.t.Error(err)
		}
	}
}

package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// attend opens a view whose client goes when it is told to: politely, or only at once.
func attend(t *testing.T, s *store.Store, name string, polite bool) *volume.View {
	t.Helper()
	w := openView(t, s, name)
	w.OnEvict(func(now bool) {
		if polite || now {
			_ = w.CloseTorn()
		}
	})
	return w
}

func TestARollbackThatDisconnectsEndsAllUseOfItsVolumesAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := grouped(t, "data", store.Options{FS: vfs.NewSim(t.TempDir())})
		put(t, s, 'x', "a", "b", "c")
		preserveGroup(t, s, "s")
		put(t, s, 'y', "a", "b", "c")
		polite, rude := attend(t, s, "a", true), attend(t, s, "b:session", false)
		other, past := attend(t, s, "c", true), attend(t, s, "a@s", true)
		mute := openView(t, s, "b") // nobody can be told
		if _, err := s.BeginProcess([]string{"b", "c"}, "p"); err != nil {
			t.Fatal(err)
		}
		in := attend(t, s, "c:process:p", true)

		r := store.RollbackRequest{Snapshot: "g@s", Keep: "s", Disconnect: true}
		if _, err := s.RollbackGroup(t.Context(), r, nil); !errors.Is(err, store.ErrExists) {
			t.Errorf("a rollback that keeps under a name that is taken: %v", err)
		}
		write(t, polite, 4096, 'z') // and nobody was disconnected for it
		r.Keep = "k"
		if _, err := s.RollbackGroup(t.Context(), r, nil); err != nil {
			t.Fatal(err)
		}
		for what, w := range map[string]*volume.View{"a client told to go": polite, "one that did not go": rude, "one that could not be told": mute, "a process": in} {
			if _, err := w.WriteAt([]byte{'!'}, 0); err == nil {
				t.Errorf("%s still writes", what)
			}
		}
		write(t, other, 4096, 'z')
		wantByte(t, past, 0, 'x')
		if got := letters(t, s, "a", "b", "c", "a@k", "b@k"); got != "xxyyy" {
			t.Errorf("a, b, c, a@k and b@k hold %q", got)
		}
		put(t, s, 'n', "a", "b")
		if len(s.Processes()) > 0 {
			t.Errorf("processes %+v are left", s.Processes())
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWhoComesBesideARollbackIsLetInOrToldToComeAgain(t *testing.T) {
	s := grouped(t, "data", store.Options{FS: vfs.NewSim(t.TempDir())})
	preserveGroup(t, s, "s")
	ended := make(chan struct{})
	var others sync.WaitGroup
	for i := range 3 {
		others.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-ended:
					return
				default:
				}
				token := fmt.Sprintf("p-%d-%d", i, n)
				if _, err := s.BeginProcess([]string{"a", "b", "c"}, token); err == nil {
					_, _ = s.EndProcess(token, false) // the rollback may have ended it
				} else if !errors.Is(err, store.ErrInUse) {
					t.Errorf("a process: %v", err)
				}
				if w, err := s.OpenView("b"); err == nil {
					_ = w.Close()
				} else if !errors.Is(err, store.ErrInUse) {
					t.Errorf("a view: %v", err)
				}
			}
		})
	}
	for i := range 20 {
		if _, err := s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@s", Keep: fmt.Sprint("k", i), Disconnect: true}, nil); err != nil {
			t.Error(err)
		}
	}
	close(ended)
	others.Wait()
	if r, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"a", "b", "c"}}); err != nil || r.ProcessesWaited != 0 {
		t.Errorf("the preserve after it waited for %d: %v", r.ProcessesWaited, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestARollbackThatFailsAfterItHasDisconnectedLetsClientsInAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		s := grouped(t, "data", store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
			if full.Load() && op.Kind == vfs.OpCommitted {
				return errors.New("no more")
			}
			return nil
		}}})
		mustSeal(t, s, "s", "a")
		put(t, s, 'y', "a")
		w := attend(t, s, "a", true)
		synctest.Wait() // a commit that is on its way would fail for good
		full.Store(true)
		_, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "a@s", Disconnect: true})
		full.Store(false)
		if err == nil {
			t.Fatal("it did not fail")
		}
		if _, err := w.ReadAt(make([]byte, 1), 0); err == nil {
			_ = w.Close() // a client that was told goes all the same
		}
		if got := letters(t, s, "a"); got != "y" {
			t.Errorf("a holds %q", got)
		}
		put(t, s, 'z', "a")
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// Clients write, one after the other and each its own counter, and connect again when
// they are cut off. What was acknowledged before a rollback is in the snapshot that it
// keeps; nothing is after it that was not written after it.
func TestAClientThatConnectsAgainBesideRollbacksSeesNothingOfWhatWasBefore(t *testing.T) {
	s := grouped(t, filepath.Join(t.TempDir(), "data"), store.Options{})
	put(t, s, 'x', "a", "b")
	preserveGroup(t, s, "s")
	var clients sync.WaitGroup
	ended := make(chan struct{})
	for c := range 4 {
		clients.Go(func() {
			off := int64(1+c) * 4096
			for {
				select {
				case <-ended:
					return
				default:
				}
				w, err := s.OpenView("a")
				if errors.Is(err, store.ErrInUse) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				serveCounter(t, w, off)
			}
		})
	}
	for i := range 15 {
		r, err := s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@s", Keep: fmt.Sprint("k", i), Disconnect: true}, nil)
		if err != nil || len(r.Kept) != 2 {
			t.Errorf("%+v, %v", r, err)
		}
		if letters(t, s, "a", "b") != "xx" {
			t.Error("a and b are not what they were")
		}
	}
	close(ended)
	clients.Wait()
	list, err := s.Snapshots("a")
	if err != nil || len(list) != 16 {
		t.Errorf("%d snapshots, %v", len(list), err)
	}
}

// serveCounter writes 1, 2, 3 ... and reads them back until its client has to go, as a
// session does: a request runs to its end, and then the view is closed. What it
// finds first is nothing.
func serveCounter(t *testing.T, w *volume.View, off int64) {
	told := make(chan struct{}, 2)
	w.OnEvict(func(bool) {
		select {
		case told <- struct{}{}:
		default:
		}
	})
	defer func() { _ = w.CloseTorn() }()
	got := make([]byte, 1)
	for n := byte(0); n < 200; n++ {
		select {
		case <-told:
			return
		default:
		}
		if _, err := w.ReadAt(got, off); err != nil {
			return // the rollback was done with waiting
		}
		if n > 0 && got[0] != n {
			t.Errorf("at %d is %d after %d was written", off, got[0], n)
		}
		if _, err := w.WriteAt(slices.Repeat([]byte{n + 1}, 512), off); err != nil {
			return
		}
	}
	_, _ = w.WriteAt(make([]byte, 512), off)
}

package store_test

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func punches(op vfs.Op) bool { return op.Kind == vfs.OpPunch && path.Ext(op.Name) == ".img" }

// scattered leaves volume v of a store with a snapshot of which every other block is
// seen by nobody but itself.
func scattered(t *testing.T, s *store.Store) (snapshot string) {
	t.Helper()
	w := openView(t, s, "v")
	for b := range int64(40) {
		write(t, w, b*lookup.BlockSize, 'a')
	}
	preserveAs(t, s, "v", "one")
	for b := int64(0); b < 40; b += 2 {
		write(t, w, b*lookup.BlockSize, 'b')
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitSealed(t.Context(), "v@one"); err != nil {
		t.Fatal(err)
	}
	return "v@one"
}

func preserveAs(t *testing.T, s *store.Store, name, snapshot string) {
	t.Helper()
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{name}, Name: snapshot, Wait: time.Minute}); err != nil {
		t.Fatal(err)
	}
}

func TestASealGoesBetweenTwoPiecesOfAPunch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var punched, sealedAfter atomic.Int32
		punch := newStop(punches)
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
			if punches(op) {
				punched.Add(1)
			}
			if op.Handle == "seal" && punched.Load() > 0 {
				sealedAfter.CompareAndSwap(0, punched.Load())
			}
			return punch.hook(op)
		}}})
		defer closeStore(t, s)
		for _, name := range []string{"v", "w"} {
			if _, err := s.CreateVolume(name, 64*lookup.BlockSize, volume.ScopeRequest); err != nil {
				t.Fatal(err)
			}
		}
		snapshot := scattered(t, s)
		w := openView(t, s, "w")
		write(t, w, 0, 'a')
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		punch.armed.Store(true)
		if err := s.DeleteSnapshots(snapshot); err != nil {
			t.Fatal(err)
		}
		<-punch.reached
		preserveAs(t, s, "w", "two")
		synctest.Wait() // it has drained
		close(punch.open)
		s.AwaitPunches()
		if n := punched.Load(); n != 21 || sealedAfter.Load() != 1 { // the last behind all data: it is the first punch of the image
			t.Errorf("the seal went after %d of %d punches, want 1 of 21", sealedAfter.Load(), n)
		}
	})
}

func TestADeleteOfAVolumeDoesNotWaitForAPunchOfItsImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, punch := stoppedStore(t, punches)
		snapshot := scattered(t, s)
		punch.armed.Store(true)
		if err := s.DeleteSnapshots(snapshot); err != nil {
			t.Fatal(err)
		}
		<-punch.reached
		if err := s.DeleteVolume("v", true); err != nil {
			t.Error(err)
		}
		close(punch.open)
		s.AwaitPunches()
	})
}

func TestASnapshotThatIsDeletedBeforeItsSealGivesItsRoomBackAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, writeBack := sealingStore(t) // blocks 0, 2, 4, 6
		w := openView(t, s, "v")
		write(t, w, 0, 'b')
		write(t, w, 2*lookup.BlockSize, 'b')
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteSnapshots("v@one"); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			ended <- s.AwaitReclaimed(context.Background(), func(store.ReclaimInfo) {})
		}()
		close(writeBack.open)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if r := s.Reclaiming(); r.GivenBackBytes != 2*lookup.BlockSize {
			t.Errorf("%d bytes were given back, want 2 blocks", r.GivenBackBytes)
		}
	})
}

func TestAPastWithoutSnapshotsIsGoneAfterTheNextStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := openWith(t, dir, store.Options{})
	if _, err := s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	preserveAs(t, s, "v", "one")
	if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@one", Keep: "two"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"v@one", "v@two"} {
		if err := s.DeleteNameOf(name); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Branches("v"); n != 2 {
		t.Fatalf("%d branches before the restart, want 2", n)
	}
	closeStore(t, s)
	s = openWith(t, dir, store.Options{})
	defer closeStore(t, s)
	if n := s.Branches("v"); n != 1 {
		t.Errorf("%d branches after the restart, want 1", n)
	}
	if _, err := s.Volume("v"); err != nil {
		t.Error(err)
	}
}

// What a delete is about to do is recorded first, or not done.
func TestNothingIsPunchedThatIsNotRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		var punched, tables, commits atomic.Int32
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
			if punches(op) {
				punched.Add(1)
			}
			if full.Load() && op.Kind == vfs.OpCommitted && commits.Add(1)%2 == 0 { // not what comes before the change
				return syscall.ENOSPC
			}
			if full.Load() && strings.Contains(path.Base(op.Name), ".tab") {
				tables.Add(1)
			}
			return nil
		}}})
		defer closeStore(t, s)
		if _, err := s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		snapshot := scattered(t, s)
		s.AwaitSpares()
		release := s.HoldPunches()
		if err := s.DeleteSnapshots(snapshot); err != nil {
			t.Fatal(err)
		}
		full.Store(true)
		release()
		for range 3 {
			s.AwaitPunches()
			s.Reclaim()
		}
		s.AwaitPunches()
		if punched.Load() > 0 || tables.Load() > 0 {
			t.Errorf("%d punches and %d changes of a table while the catalog takes no records", punched.Load(), tables.Load())
		}
		full.Store(false)
		s.Reclaim()
		s.AwaitPunches()
		if n := punched.Load(); n != 21 {
			t.Errorf("%d punches when it does again, want 21", n)
		}
	})
}

func TestWhatAPreserveThatIsGivenUpHasSealedGivesItsRoomBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, dataDir, store.Options{FS: vfs.NewSim(t.TempDir())})
		defer closeStore(t, s)
		for _, name := range []string{"v", "w"} {
			if _, err := s.CreateVolume(name, 64*lookup.BlockSize, volume.ScopeRequest); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.BeginProcess([]string{"w"}, "p"); err != nil {
			t.Fatal(err)
		}
		v := openView(t, s, "v")
		for b := range int64(4) {
			write(t, v, b*lookup.BlockSize, 'a')
		}
		ended := make(chan error, 1)
		go func() {
			_, err := s.Preserve(context.Background(), store.PreserveRequest{Volumes: []string{"v", "w"}, Name: "s", Wait: time.Minute})
			ended <- err
		}()
		synctest.Wait()
		s.AwaitPunches() // that of v is sealed
		for b := range int64(3) {
			write(t, v, b*lookup.BlockSize, 'b')
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, store.ErrAborted) {
			t.Fatal(err)
		}
		s.AwaitPunches()
		if r := s.Reclaiming(); r.GivenBackBytes != 3*lookup.BlockSize {
			t.Errorf("%d bytes were given back, want 3 blocks", r.GivenBackBytes)
		}
	})
}

// A punch that was not recorded as ended is done again by the next life.
func TestTheEndsOfPunchesAreRecordedWhenTheServerStops(t *testing.T) {
	var punched atomic.Int64
	sim := vfs.NewSim(t.TempDir())
	o := store.Options{FoldAbove: -1, FS: vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpPunch {
			punched.Add(1)
		}
		return nil
	}}}
	s := openWith(t, dataDir, o)
	createVolume(t, s, "v")
	w := openView(t, s, "v")
	for i := range 4 {
		for b := range int64(i + 2) {
			write(t, w, b*8192, 'a')
		}
		write(t, w, int64(100+i)*4096, 'b') // which the next does not cover
		mustSeal(t, s, fmt.Sprint("s", i), "v")
	}
	noError(t, w.Close())
	release := s.HoldPunches()
	noError(t, s.DeleteSnapshots("v@s1", "v@s2"))
	release()
	s.AwaitPunches()
	if punched.Load() == 0 {
		t.Fatal("nothing was punched")
	}
	noError(t, s.Close(t.Context()))
	punched.Store(0)
	s = openWith(t, dataDir, o)
	s.AwaitPunches()
	noError(t, s.Close(t.Context()))
	if n := punched.Load(); n > 0 {
		t.Errorf("%d punches once more", n)
	}
}

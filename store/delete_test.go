package store_test

import (
	"context"
	"errors"
	"path"
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

// stop is a hook that stops one operation.
type stop struct {
	full    atomic.Bool // the catalog finds no room
	at      func(vfs.Op) bool
	armed   atomic.Bool
	seen    atomic.Int32 // operations that at tells
	reached chan struct{}
	open    chan struct{} // closed: it goes on
}

func newStop(at func(vfs.Op) bool) *stop {
	return &stop{at: at, reached: make(chan struct{}), open: make(chan struct{})}
}

func (s *stop) hook(op vfs.Op) error {
	if s.full.Load() && op.Kind == vfs.OpCommitted {
		return syscall.ENOSPC
	}
	if !s.at(op) {
		return nil
	}
	s.seen.Add(1)
	if s.armed.CompareAndSwap(true, false) {
		close(s.reached)
		<-s.open
	}
	return nil
}

func TestADeleteWhileACheckpointFlushesEndsBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flush := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpSync && path.Ext(op.Name) == ".img" })
		s, err := store.Open(dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: flush.hook}, JournalBytes: 1 << 10})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close(context.Background()) }()
		if _, err := s.CreateVolume("v", 1000*lookup.BlockSize, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		w := openView(t, s, "v")
		flush.armed.Store(true)
		for b := range int64(400) { // so many that the commit asks for another checkpoint
			write(t, w, b*lookup.BlockSize, 'a')
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		<-flush.reached
		deleted := make(chan error, 1)
		go func() { deleted <- s.DeleteVolume("v", true) }()
		synctest.Wait() // it waits for the checkpoint
		close(flush.open)
		if err := <-deleted; err != nil {
			t.Error(err)
		}
	})
}

// stoppedStore is a store with a volume v of 64 blocks, and a stop of what at tells.
func stoppedStore(t *testing.T, at func(vfs.Op) bool) (*store.Store, *stop) {
	t.Helper()
	p := newStop(at)
	s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: p.hook}})
	if _, err := s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	return s, p
}

// sealingStore is a store with a preserved volume v whose seal a hook has stopped
// at the first of four extents that are written back.
func sealingStore(t *testing.T) (*store.Store, *stop) {
	t.Helper()
	s, writeBack := stoppedStore(t, func(op vfs.Op) bool { return op.Kind == vfs.OpWriteBack && op.Handle == "seal" })
	w := openView(t, s, "v")
	for b := range int64(4) {
		write(t, w, 2*b*lookup.BlockSize, 'a')
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	writeBack.armed.Store(true)
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "one", Wait: time.Minute}); err != nil {
		t.Fatal(err)
	}
	<-writeBack.reached
	return s, writeBack
}

func TestADeleteDoesNotWaitForTheRestOfASeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, writeBack := sealingStore(t)
		s.EndWork("v")
		synctest.Wait() // the seal's context has heard of it
		deleted := make(chan error, 1)
		go func() { deleted <- s.DeleteVolume("v", true) }()
		close(writeBack.open)
		if err := <-deleted; err != nil {
			t.Error(err)
		}
		if n := writeBack.seen.Load(); n != 1 {
			t.Errorf("%d extents were written back, want no more than the one that was on its way", n)
		}
		if _, err := s.Volume("v"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the volume: %v, want %v", err, store.ErrNotFound)
		}
	})
}

func TestADeleteEndsTheWorkOnItsVolumeBeforeItWaitsForIt(t *testing.T) {
	s, writeBack := sealingStore(t)
	deleted, ends := make(chan error, 1), s.WorkEnds("v")
	go func() { deleted <- s.DeleteVolume("v", true) }()
	<-ends // while the seal stands
	close(writeBack.open)
	if err := <-deleted; err != nil {
		t.Error(err)
	}
}

func TestADeleteThatIsRefusedCostsTheVolumeNoSeal(t *testing.T) {
	s, writeBack := sealingStore(t)
	ends := s.WorkEnds("v")
	w := openView(t, s, "v")
	if err := s.DeleteVolume("v", true); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a delete while a client is connected: %v, want %v", err, store.ErrInUse)
	}
	select {
	case <-ends:
		t.Error("it ended the work on the volume")
	default:
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	close(writeBack.open)
	if err := s.WaitSealed(t.Context(), "v@one"); err != nil {
		t.Error(err)
	}
}

func TestADeleteThatFailsLetsTheSealGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, writeBack := sealingStore(t)
		s.EndWork("v")
		synctest.Wait() // the seal's context has heard of it, and all else is done
		writeBack.full.Store(true)
		close(writeBack.open)
		if err := s.DeleteVolume("v", true); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a delete that finds no room: %v, want %v", err, syscall.ENOSPC)
		}
		writeBack.full.Store(false)
		if err := s.WaitSealed(t.Context(), "v@one"); err != nil {
			t.Error(err)
		}
	})
}

// A volume that was rolled back has several branches, which go one after the other.
func TestWhoComesBesideADeleteDoesNotEndItHalfway(t *testing.T) {
	s, commit := stoppedStore(t, func(op vfs.Op) bool { return op.Kind == vfs.OpCommitted })
	preserve := store.PreserveRequest{Volumes: []string{"v"}, Name: "s", Wait: time.Minute}
	if _, err := s.Preserve(t.Context(), preserve); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@s"}); err != nil {
		t.Fatal(err)
	}
	s.AwaitPunches()
	s.AwaitSpares() // or it may be their commit that is stopped
	commit.armed.Store(true)
	deleted := make(chan error, 1)
	go func() { deleted <- s.DeleteVolume("v", true) }()
	<-commit.reached
	if w, err := s.OpenView("v"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a client: %v, %v", w, err)
	}
	if _, err := s.BeginProcess([]string{"v"}, "p"); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a process: %v", err)
	}
	preserve.Name = "late"
	if _, err := s.Preserve(t.Context(), preserve); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a preserve: %v", err)
	}
	close(commit.open)
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if _, err := s.Volume("v"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the volume: %v, want %v", err, store.ErrNotFound)
	}
}

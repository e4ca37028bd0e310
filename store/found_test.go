package store_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// foundedStore is a store over a disk, with a volume v of blocks of 'a', none of them
// flushed, and a snapshot v@one of it, of which the seal stands.
func foundedStore(t *testing.T) (*store.Store, *stop, *vfs.Sim) {
	t.Helper()
	disk := vfs.NewSim(t.TempDir())
	seal := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpOpen && op.Handle == "seal" })
	s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: disk, Hook: seal.hook}})
	noError(t, second(s.CreateVolume("v", 16*lookup.BlockSize, volume.ScopeRequest)))
	w := openView(t, s, "v")
	for b := range int64(8) {
		write(t, w, b*lookup.BlockSize, 'a')
	}
	noError(t, w.Close())
	seal.armed.Store(true)
	noError(t, second(s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "one", Wait: time.Minute})))
	<-seal.reached
	return s, seal, disk
}

// wantBlock is an error if a block of a volume does not hold a byte throughout.
func wantBlock(t *testing.T, s *store.Store, name string, block int64, want byte) {
	t.Helper()
	w := openView(t, s, name)
	got := make([]byte, lookup.BlockSize)
	noError(t, second(w.ReadAt(got, block*lookup.BlockSize)))
	noError(t, w.Close())
	if !bytes.Equal(got, bytes.Repeat([]byte{want}, len(got))) {
		t.Errorf("%s: block %d begins with %q, want %q", name, block, got[0], want)
	}
}

func writeTo(t *testing.T, s *store.Store, name string, block int64, b byte) {
	t.Helper()
	w := openView(t, s, name)
	write(t, w, block*lookup.BlockSize, b)
	noError(t, w.Flush())
	noError(t, w.Close())
}

func TestNoCloneAndNoRollbackWaitsForASeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, seal, disk := foundedStore(t)
		noError(t, second(s.Clone(t.Context(), "v@one", "c")))
		writeTo(t, s, "v", 1, 'v')
		noError(t, second(s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@one", Keep: "kept"})))
		writeTo(t, s, "c", 2, 'c')
		noError(t, second(s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"c"}, Name: "two", Wait: time.Minute})))
		noError(t, second(s.Clone(t.Context(), "c@two", "cc")))
		if info, err := s.Snapshot("v@one"); err != nil || info.State != volume.Sealing {
			t.Errorf("v@one is %v, %v; want %v", info.State, err, volume.Sealing)
		}
		reads := func() {
			t.Helper()
			wantBlock(t, s, "v@kept", 1, 'v')
			wantBlock(t, s, "v@kept", 2, 'a')
			wantBlock(t, s, "v", 1, 'a')
			wantBlock(t, s, "c", 1, 'a')
			wantBlock(t, s, "cc", 2, 'c')
			wantBlock(t, s, "cc", 3, 'a')
		}
		reads()
		_ = s.HoldPunches() // which record the same again
		close(seal.open)
		for _, name := range []string{"v@one", "v@kept", "c@two"} {
			begin := time.Now()
			noError(t, s.WaitSealed(t.Context(), name))
			if took := time.Since(begin); took > 0 {
				t.Errorf("%s is sealed %v after what it rests on", name, took)
			}
		}
		reads()
		closeStore(t, s)
		s = openWith(t, dataDir, store.Options{FS: disk})
		for _, name := range []string{"v", "c", "cc"} {
			if n := s.Unsealed(name); n > 0 {
				t.Errorf("after a restart %d images of %s are not sealed", n, name)
			}
		}
		reads()
		for _, name := range []string{"v@one", "v@kept", "c@two"} {
			noError(t, second(s.VerifySnapshot(t.Context(), name, nil)))
		}
		closeStore(t, s)
	})
}

func TestTheImagesOfAVolumeThatIsDeletedBeforeItsSnapshotIsSealedAreSealedForItsClone(t *testing.T) {
	for name, preserve := range map[string]bool{"as it is": false, "for its own snapshot": true} {
		t.Run(name, func(t *testing.T) { sealedForItsClone(t, preserve) })
	}
}

func sealedForItsClone(t *testing.T, preserve bool) {
	synctest.Test(t, func(t *testing.T) {
		s, seal, disk := foundedStore(t)
		noError(t, second(s.Clone(t.Context(), "v@one", "c")))
		if preserve {
			noError(t, second(s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"c"}, Name: "two", Wait: time.Minute})))
		}
		s.EndWork("v")
		synctest.Wait() // the seal's context has heard of it
		deleted := make(chan error, 1)
		go func() { deleted <- s.DeleteVolume("v", true) }()
		close(seal.open)
		noError(t, <-deleted)
		if preserve {
			noError(t, s.WaitSealed(t.Context(), "c@two"))
			noError(t, second(s.VerifySnapshot(t.Context(), "c@two", nil)))
		}
		s.AwaitPunches()
		if n := s.Unsealed("c"); n > 0 {
			t.Errorf("%d images of the clone are not sealed", n)
		}
		wantBlock(t, s, "c", 7, 'a')
		closeStore(t, s)
		if r, err := store.Check(dataDir, disk, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
			t.Errorf("check: %q, %v", r.Findings, err)
		}
	})
}

// What a clone was made of without a seal was not flushed by anybody else. After a power
// cut it is there, or a client of the clone would find what it never saw.
func TestAPowerCutTakesNothingFromACloneThatDidNotWaitForASeal(t *testing.T) {
	s, seal, disk := foundedStore(t)
	noError(t, second(s.Clone(t.Context(), "v@one", "c")))
	writeTo(t, s, "c", 2, 'c')
	at := disk.Ops()
	close(seal.open)
	for i := range uint64(8) {
		after := disk.PowerCut(at, rand.New(rand.NewPCG(i, 1)))
		if r, err := store.Check(dataDir, after, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
			t.Errorf("check: %q, %v", r.Findings, err)
		}
		recovered := openWith(t, dataDir, store.Options{FS: after})
		for b := range int64(8) {
			want := byte('a')
			wantBlock(t, recovered, "v@one", b, want)
			if b == 2 {
				want = 'c'
			}
			wantBlock(t, recovered, "c", b, want)
		}
		noError(t, recovered.WaitSealed(t.Context(), "v@one"))
		noError(t, recovered.DeleteVolume("v", true))
		wantBlock(t, recovered, "c", 1, 'a')
		closeStore(t, recovered)
	}
	noError(t, s.Close(context.Background()))
}

package store_test

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// What is left of a punch the next life of the server does.
func TestACloseEndsAPunchBetweenTwoPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, punch, disk := stoppedPunch(t)
		closed := make(chan error, 1)
		go func() { closed <- s.Close(context.Background()) }()
		synctest.Wait()
		close(punch.open)
		if err := <-closed; err != nil {
			t.Error(err)
		}
		if n := punch.seen.Load(); n != 1 {
			t.Errorf("%d pieces were punched, want no more than the one that was on its way", n)
		}
		s = openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: disk, Hook: punch.hook}})
		defer closeStore(t, s)
		s.AwaitPunches()
		if n := punch.seen.Load(); n < 20 {
			t.Errorf("%d pieces were punched after the next start, want all", n)
		}
	})
}

// stoppedPunch is a store over a disk, whose punch of 20 blocks, each a piece, is
// stopped at the first.
func stoppedPunch(t *testing.T) (*store.Store, *stop, *vfs.Sim) {
	t.Helper()
	punch, disk := newStop(punches), vfs.NewSim(t.TempDir())
	s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: disk, Hook: punch.hook}})
	noError(t, second(s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest)))
	snapshot := scattered(t, s)
	punch.armed.Store(true)
	noError(t, s.DeleteSnapshots(snapshot))
	<-punch.reached
	return s, punch, disk
}

func TestACloseDoesNotWaitForTheRateOfAFold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(memoryDir(t), "data")
		s := openWith(t, dir, store.Options{FoldAbove: 1, ReclaimBytesPerSecond: 1})
		layered(t, s, 1, 2, 4)
		synctest.Wait() // it has copied a block, and rests for more than an hour
		begin := time.Now()
		closeStore(t, s)
		if took := time.Since(begin); took > 0 {
			t.Errorf("the close waited for %v", took)
		}
		s = openWith(t, dir, store.Options{FoldAbove: 1})
		defer closeStore(t, s)
		s.AwaitPunches()
		if v, err := s.Volume("v"); err != nil || v.Images != 3 { // one without a name, the last snapshot's, the live one
			t.Errorf("%+v, %v; want 3 images after the next start", v, err)
		}
	})
}

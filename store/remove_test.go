package store_test

import (
	"context"
	"path"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// removingStore is a store with volumes v, with snapshots v@one and v@two of which nobody
// else sees a block, w, with a snapshot w@one, and x, with data; and a stop of the first
// piece that the removal of an image gives back.
func removingStore(t *testing.T) (*store.Store, *stop, *vfs.Sim) {
	t.Helper()
	disk := vfs.NewSim(t.TempDir())
	piece := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpPunch })
	s := openWith(t, dataDir, store.RemovingInPieces(store.Options{FS: vfs.Fault{FS: disk, Hook: piece.hook}, ReclaimPercent: 100}))
	for _, name := range []string{"v", "w", "x"} {
		noError(t, second(s.CreateVolume(name, 16*lookup.BlockSize, volume.ScopeRequest)))
		writeTo(t, s, name, 0, 'a')
	}
	mustSeal(t, s, "one", "v", "w")
	writeTo(t, s, "v", 0, 'b')
	mustSeal(t, s, "two", "v")
	writeTo(t, s, "v", 0, 'c')
	piece.armed.Store(true)
	return s, piece, disk
}

func images(t *testing.T, disk *vfs.Sim) (n int) {
	t.Helper()
	names, err := disk.ReadDir(path.Join(dataDir, "images"))
	noError(t, err)
	for _, name := range names {
		if strings.HasSuffix(name, ".img") {
			n++
		}
	}
	return n
}

func TestNoCommandWaitsForTheRemovalOfWhatASnapshotLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, piece, _ := removingStore(t)
		noError(t, s.DeleteSnapshots("v@one"))
		<-piece.reached
		if info := s.Reclaiming(); info.ImagesLeft != 1 || info.LeftBytes != lookup.BlockSize {
			t.Errorf("while it is removed, %+v is left", info)
		}
		noError(t, s.DeleteSnapshots("v@two"))
		noError(t, second(s.Clone(t.Context(), "w@one", "c")))
		noError(t, second(s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "w@one", Keep: "kept"})))
		noError(t, s.DeleteVolume("x", false))
		close(piece.open)
		s.AwaitPunches()
		if info := s.Reclaiming(); info.GivenBackBytes != 3*lookup.BlockSize {
			t.Errorf("of three images %d bytes were given back", info.GivenBackBytes)
		}
		closeStore(t, s)
	})
}

func TestAVolumeIsDeletedBeforeItsImagesAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, piece, disk := removingStore(t)
		s.AwaitSpares()
		before := images(t, disk)
		noError(t, s.DeleteVolume("x", false))
		<-piece.reached
		noError(t, second(s.CreateVolume("x", lookup.BlockSize, volume.ScopeRequest)))
		noError(t, s.DeleteVolume("w", true))
		close(piece.open)
		s.AwaitPunches()
		s.AwaitSpares()
		if after := images(t, disk); after > before-2 { // w had two, x had one and has one; spares are fewer for fewer volumes
			t.Errorf("there were %d images, and are %d", before, after)
		}
		closeStore(t, s)
	})
}

func TestARemovalThatIsCutShortIsEndedByTheNextOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, piece, disk := removingStore(t)
		noError(t, s.DeleteVolume("x", false))
		<-piece.reached
		noError(t, s.DeleteVolume("w", true)) // waits behind it
		closed := make(chan error, 1)
		go func() { closed <- s.Close(context.Background()) }()
		synctest.Wait()
		close(piece.open)
		noError(t, <-closed)
		if n := images(t, disk); n != 3+1+1 { // the newest of w had no data
			t.Errorf("%d images are left, of v, x and w", n)
		}

		again := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpPunch })
		again.armed.Store(true)
		s = openWith(t, dataDir, store.RemovingInPieces(store.Options{FS: vfs.Fault{FS: disk, Hook: again.hook}}))
		<-again.reached // the open did not wait for it
		wantBlock(t, s, "v", 0, 'c')
		close(again.open)
		s.AwaitPunches()
		noError(t, s.Close(context.Background()))
		if n := images(t, disk); n != 3 {
			t.Errorf("%d images are left, of v", n)
		}
	})
}

func TestAPunchIsOfPiecesThatAreSoonDone(t *testing.T) {
	rng := random(3)
	for _, all := range []bool{false, true} {
		dead := lookup.NewTable()
		for range 1000 {
			dead.Set(lookup.BlockNum(rng.IntN(1<<20)), 1+uint64(rng.IntN(40)), []lookup.State{lookup.Data, lookup.Zero}[rng.IntN(2)])
		}
		dead.Set(1<<20, 100_000, lookup.Data)
		const from, to = 1000, 1<<20 + 90_000
		next, sum := lookup.BlockNum(from), int64(0)
		noError(t, store.Pieces(dead, from, to, all, func(begin, end lookup.BlockNum, dataBytes int64) error {
			runs, blocks := 0, uint64(0)
			for x := range dead.Extents(begin, uint64(end-begin)) {
				runs, blocks = runs+1, blocks+x.Count
			}
			if begin < next || end <= begin || end > to || blocks*lookup.BlockSize > file.PieceRoomBytes || !all && (runs == 0 || runs > file.PieceRuns) {
				t.Errorf("a piece from %d to %d after %d, of %d runs and %d blocks", begin, end, next, runs, blocks)
			}
			if state, run := dead.Run(next, uint64(begin-next)); begin > next && (state != lookup.Absent || run < uint64(begin-next)) {
				t.Errorf("from %d to %d nothing is punched, and something is dead", next, begin)
			}
			next, sum = end, sum+dataBytes
			return nil
		}))
		want := int64(0)
		for x := range dead.Extents(from, to-from) {
			if x.State == lookup.Data {
				want += int64(x.Count) * lookup.BlockSize
			}
		}
		if sum != want || next != to {
			t.Errorf("%d bytes are punched, up to block %d; want %d, %d", sum, next, want, lookup.BlockNum(to))
		}
	}
}

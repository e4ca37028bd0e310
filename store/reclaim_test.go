package store_test

import (
	"fmt"
	"path"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func TestWhatIsLeftToGiveBackIsToldOfAllImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seal := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpWriteBack && op.Handle == "seal" })
		punch := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpPunch && path.Ext(op.Name) == ".img" })
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
			_ = seal.hook(op) // neither fails
			return punch.hook(op)
		}}})
		defer closeStore(t, s)
		if _, err := s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		preserve := func(name string) {
			if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: name}); err != nil {
				t.Fatal(err)
			}
		}
		w := openView(t, s, "v")
		for _, snapshot := range []struct {
			name   string
			blocks int64 // of them the next hides the half
		}{{"one", 20}, {"two", 10}, {"three", 5}} {
			for b := range snapshot.blocks {
				write(t, w, b*lookup.BlockSize, 'a')
			}
			preserve(snapshot.name)
		}
		s.AwaitPunches()
		write(t, w, 0, 'a')
		_ = w.Close() // it was only written to
		seal.armed.Store(true)
		preserve("four")
		<-seal.reached
		for _, name := range []string{"v@one", "v@two"} {
			if err := s.DeleteSnapshots(name); err != nil {
				t.Fatal(err)
			}
		}
		if r := s.Reclaiming(); r.ImagesLeft != 2 || r.LeftBytes != -1 || r.Left != 0 {
			t.Errorf("before anybody looked: %+v", r)
		}
		punch.armed.Store(true)
		close(seal.open)
		<-punch.reached
		if r := s.Reclaiming(); r.ImagesLeft != 2 || r.TotalBytes != 5*lookup.BlockSize || r.LeftBytes != 15*lookup.BlockSize {
			t.Errorf("at the first: %+v, want 5 blocks of it, the newer one, and 15 of all, left", r)
		}
		close(punch.open)
		s.AwaitPunches()
		if r := s.Reclaiming(); r.ImagesLeft != 0 || r.LeftBytes != 0 || r.GivenBackBytes != 15*lookup.BlockSize {
			t.Errorf("after all: %+v, want 15 blocks given back", r)
		}
	})
}

func TestWhatIsLeftToFoldIsToldOfAllImages(t *testing.T) {
	copying := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpWrite && path.Ext(op.Name) == ".img" })
	s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: copying.hook}, FoldAbove: 1})
	defer closeStore(t, s)
	if _, err := s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	w := openView(t, s, "v")
	for i, name := range []string{"one", "two", "three", "four"} {
		for b := range int64(i + 1) { // of its own
			write(t, w, (int64(i)*8+b)*lookup.BlockSize, 'a')
		}
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close() // it was only written to
	s.AwaitPunches()
	release := s.HoldPunches()
	for _, name := range []string{"v@one", "v@two", "v@three"} {
		if err := s.DeleteSnapshots(name); err != nil {
			t.Fatal(err)
		}
	}
	copying.armed.Store(true)
	release()
	<-copying.reached
	if r := s.Reclaiming(); !r.Folding || r.TotalBytes != lookup.BlockSize || r.LeftBytes != 3*lookup.BlockSize {
		t.Errorf("at the first fold: %+v, want 1 block of it, and 2 of the next, left", r)
	}
	close(copying.open)
	s.AwaitPunches()
	if r := s.Reclaiming(); r.ImagesLeft != 0 || r.LeftBytes != 0 {
		t.Errorf("after all: %+v", r)
	}
}

// layered makes a volume v with a snapshot of as many blocks of its own as each number
// says, and deletes all but the last.
func layered(t *testing.T, s *store.Store, blocks ...int64) {
	t.Helper()
	noError(t, second(s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest)))
	w := openView(t, s, "v")
	var names []string
	for i, n := range blocks {
		for b := range n {
			write(t, w, (int64(i)*16+b)*lookup.BlockSize, 'a')
		}
		names = append(names, fmt.Sprint("s", i))
		preserveAs(t, s, "v", names[i])
	}
	noError(t, w.Close())
	s.AwaitPunches()
	release := s.HoldPunches()
	for _, name := range names[:len(names)-1] {
		noError(t, s.DeleteSnapshots("v@"+name))
	}
	release()
}

// Each piece of a punch takes a second of the bubble's time.
func TestHowFastRoomIsGivenBackAndHowLongTheRestTakesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		piece := make(chan struct{})
		punch := newStop(punches)
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
			if !punches(op) {
				return nil
			}
			_ = punch.hook(op) // it does not fail
			<-piece
			<-time.After(time.Second)
			return nil
		}}})
		defer closeStore(t, s)
		noError(t, second(s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest)))
		snapshot := scattered(t, s)
		if r := s.Reclaiming(); r != (store.ReclaimInfo{}) {
			t.Errorf("with nothing to do: %+v", r)
		}
		punch.armed.Store(true)
		close(punch.open)
		noError(t, s.DeleteSnapshots(snapshot))
		<-punch.reached
		if r := s.Reclaiming(); r.BytesPerSecond != 0 || r.Left != 0 || r.LeftBytes != 20*lookup.BlockSize {
			t.Errorf("at the first of 20 blocks: %+v, want a rate that nobody knows", r)
		}
		for range 5 {
			piece <- struct{}{}
		}
		pass(time.Second) // the fifth
		want := store.ReclaimInfo{
			ImagesLeft: 1, DoneBytes: 5 * lookup.BlockSize, TotalBytes: 20 * lookup.BlockSize, LeftBytes: 15 * lookup.BlockSize,
			BytesPerSecond: lookup.BlockSize, Left: 15 * time.Second, GivenBackBytes: 5 * lookup.BlockSize,
		}
		r := s.Reclaiming()
		if want.Image = r.Image; r != want || r.Image == 0 {
			t.Errorf("after 5 of 20 blocks: %+v, want %+v", r, want)
		}
		pass(5 * time.Second) // in which nothing is done
		if r := s.Reclaiming(); r.BytesPerSecond != lookup.BlockSize/2 || r.Left != 30*time.Second {
			t.Errorf("after a rest: %+v, want half the rate", r)
		}
		close(piece)
		s.AwaitPunches()
		if r := s.Reclaiming(); r != (store.ReclaimInfo{GivenBackBytes: 20 * lookup.BlockSize}) {
			t.Errorf("after all: %+v", r)
		}
	})
}

func TestHowFastAFoldIsAndHowLongTheRestTakesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		copying := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpWrite && path.Ext(op.Name) == ".img" && op.Handle == "" })
		s := openWith(t, dataDir, store.Options{
			FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: copying.hook}, FoldAbove: 1, ReclaimBytesPerSecond: lookup.BlockSize,
		})
		defer closeStore(t, s)
		layered(t, s, 2, 4, 8, 1)
		synctest.Wait() // it has copied the first, and rests for 2 s
		r := s.Reclaiming()
		if !r.Folding || r.ImagesLeft != 2 || r.DoneBytes != 2*lookup.BlockSize || r.LeftBytes != 4*lookup.BlockSize {
			t.Errorf("at the first fold: %+v, want 2 blocks done, and 4 of the next left", r)
		}
		copying.armed.Store(true)
		<-copying.reached // with the 6 blocks that the second image has now
		r = s.Reclaiming()
		want := store.ReclaimInfo{
			ImagesLeft: 1, Image: r.Image, Folding: true, TotalBytes: 6 * lookup.BlockSize, LeftBytes: 6 * lookup.BlockSize,
			BytesPerSecond: lookup.BlockSize, Left: 6 * time.Second,
		}
		if r != want || r.Image == 0 {
			t.Errorf("at the second fold: %+v, want %+v", r, want)
		}
		close(copying.open)
		s.AwaitPunches()
		if r := s.Reclaiming(); r != (store.ReclaimInfo{}) {
			t.Errorf("after all: %+v", r)
		}
	})
}

// It would be counted twice, and a bar would go back by it.
func TestWhatWasFoldedIsNotLeftToGiveBack(t *testing.T) {
	var s *store.Store
	var left []int64
	s = openWith(t, dataDir, store.Options{FoldAbove: 1, FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpClose && path.Base(op.Name) == "0000000000000001.img" && s != nil && s.Reclaiming().ImagesLeft > 0 {
			left = append(left, s.Reclaiming().LeftBytes)
		}
		return nil
	}}})
	layered(t, s, 2, 4, 1)
	s.AwaitPunches()
	if !slices.Equal(left, []int64{0}) {
		t.Errorf("when what was folded goes, %v bytes are left, want none", left)
	}
	closeStore(t, s)
}

func TestWhoWaitsForRoomIsToldHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
			if punches(op) {
				<-time.After(time.Second) // of the bubble
			}
			return nil
		}}})
		defer closeStore(t, s)
		noError(t, second(s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest)))
		noError(t, s.DeleteSnapshots(scattered(t, s)))
		var last store.ReclaimInfo
		given := map[int64]bool{}
		noError(t, s.AwaitReclaimed(t.Context(), func(r store.ReclaimInfo) {
			if r.GivenBackBytes < last.GivenBackBytes {
				t.Errorf("%+v after %+v", r, last)
			}
			last = r
			given[r.GivenBackBytes/lookup.BlockSize] = true
		}))
		if len(given) != 21 {
			t.Errorf("it was told of %d states, want one for each of 20 blocks, and none", len(given))
		}
		if last != (store.ReclaimInfo{GivenBackBytes: 20 * lookup.BlockSize}) {
			t.Errorf("at the end: %+v", last)
		}
	})
}

func TestAnImageIsLeftUntilItsRoomIsGivenBack(t *testing.T) {
	s := openWith(t, dataDir, store.Options{FS: vfs.NewSim(t.TempDir())})
	noError(t, second(s.CreateVolume("v", 64*lookup.BlockSize, volume.ScopeRequest)))
	snapshot := scattered(t, s)
	var told []store.ReclaimInfo
	defer store.OnHoldersFound(func() { told = append(told, s.Reclaiming()) })()
	noError(t, s.DeleteSnapshots(snapshot))
	s.AwaitPunches()
	for i, r := range told {
		if r.ImagesLeft != 1 && r.GivenBackBytes < 20*lookup.BlockSize || i == 0 && r.LeftBytes != 20*lookup.BlockSize {
			t.Errorf("look %d of %d: %+v, want 1 image until all is given back, of which 20 blocks are left at first", i+1, len(told), r)
		}
	}
	if len(told) == 0 || s.Reclaiming().ImagesLeft != 0 {
		t.Errorf("%d looks, and after all: %+v", len(told), s.Reclaiming())
	}
}

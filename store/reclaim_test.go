package store_test

import (
	"fmt"
	"path"
	"testing"
	"testing/synctest"

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
			if err := s.DeleteSnapshot(name); err != nil {
				t.Fatal(err)
			}
		}
		if r := s.Reclaiming(); r.ImagesLeft != 2 || r.LeftBytes != -1 || r.Left != 0 {
			t.Errorf("before anybody looked: %+v", r)
		}
		punch.armed.Store(true)
		close(seal.open)
		<-punch.reached
		if r := s.Reclaiming(); r.ImagesLeft != 2 || r.TotalBytes != 10*lookup.BlockSize || r.LeftBytes != 15*lookup.BlockSize {
			t.Errorf("at the first: %+v, want 10 blocks of it, and 15 of all, left", r)
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
		if err := s.DeleteSnapshot(name); err != nil {
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
		noError(t, s.DeleteSnapshot("v@"+name))
	}
	release()
}

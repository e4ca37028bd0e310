package store_test

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// R8: while the older image can't be read, and so not be sealed, the younger one
// is not sealed either.
func TestASnapshotIsNotSealedBeforeTheOlderOne(t *testing.T) {
	var mu sync.Mutex
	older := "" // the image that a seal reads first
	disk := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
		if op.Kind != vfs.OpRead || op.Handle != "seal" || !strings.HasSuffix(op.Name, ".img") {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if older == "" {
			older = op.Name
		}
		if op.Name == older {
			return syscall.EIO
		}
		return nil
	}}
	s := openWith(t, filepath.Join(t.TempDir(), "data"), store.Options{FS: disk})
	if _, err := s.CreateVolume("v", 16*4096, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	w := openView(t, s, "v")
	for _, name := range []string{"one", "two"} {
		write(t, w, 0, name[0])
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: name, Wait: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"v@one", "v@two"} {
		if err := s.WaitSealed(t.Context(), name); err == nil {
			t.Errorf("%s is sealed", name)
		}
		if info := snapshotInfo(t, s, name); info.State == volume.Sealed || info.Failed == "" {
			t.Errorf("%s: %s, failed %q", name, info.State, info.Failed)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// What a sealed snapshot holds is not younger than the live volume: a write that came
// late into it, over a newer one, has its place in the live volume too, flushed or not.
func TestAPowerCutLeavesInTheLiveVolumeWhatASealedSnapshotHolds(t *testing.T) {
	sim := vfs.NewSim(memoryDir(t))
	s := openWith(t, dataDir, store.Options{FS: sim})
	createVolume(t, s, "v")
	live := openView(t, s, "v")
	if _, err := s.BeginProcess([]string{"v"}, "p"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "s", OnTimeout: volume.TimeoutKeep})
	if !errors.Is(err, store.ErrDraining) {
		t.Fatal(err)
	}
	write(t, live, 0, 'n')
	if err := live.Flush(); err != nil {
		t.Fatal(err)
	}
	old := openView(t, s, "v:process:p")
	write(t, old, 0, 'o')
	_, err = s.EndProcess("p", false)
	if err := errors.Join(err, old.Close(), s.WaitSealed(t.Context(), "v@s")); err != nil {
		t.Fatal(err)
	}

	s = openWith(t, dataDir, store.Options{FS: sim.PowerCut(sim.Ops(), nil)})
	wantByte(t, openView(t, s, "v@s"), 0, 'o')
	wantByte(t, openView(t, s, "v"), 0, 'o')
}

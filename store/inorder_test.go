package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"path"
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

// late is a write through an older VLUN to a block that the live one has written
// since, so that it reaches into the image of the live one.
type late struct {
	name   string
	before bool // the block was written before the cut too
	newer  func(live *volume.View) error
	write  func(old *volume.View) error
	rest   byte // what the live volume has at the end of the block then
}

var lates = []late{
	{"a block", false, fill('n'), fill('o'), 'o'},
	{"zeros", true, fill('n'), func(old *volume.View) error { return old.Trim(0, 4096) }, 0},
	{"part of a block", false, fill('n'), sector('o'), 'n'},
	{"part of a block that both have", true, fill('n'), sector('o'), 'n'}, // no table changes
	{"part of a block of zeros", true, func(live *volume.View) error { return live.Trim(0, 4096) }, sector('o'), 0},
}

func fill(letter byte) func(*volume.View) error { return writer(letter, 4096) }

func sector(letter byte) func(*volume.View) error { return writer(letter, 512) }

func writer(letter byte, lengthBytes int) func(*volume.View) error {
	return func(w *volume.View) error {
		_, err := w.WriteAt(bytes.Repeat([]byte{letter}, lengthBytes), 0)
		return err
	}
}

// preserve makes a volume v, begins a process P and preserves v as s, which waits for
// it then.
func (x late) preserve(t *testing.T, s *store.Store) (live, old *volume.View) {
	t.Helper()
	createVolume(t, s, "v")
	live = openView(t, s, "v")
	if x.before {
		write(t, live, 0, 'b')
	}
	if _, err := s.BeginProcess([]string{"v"}, "p"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "s", OnTimeout: volume.TimeoutKeep})
	if !errors.Is(err, store.ErrDraining) {
		t.Fatal(err)
	}
	return live, openView(t, s, "v:process:p")
}

// What a sealed snapshot holds is not younger than the live volume: a write that came
// late into it, over a newer one, has its place in the live volume too, flushed or not,
// also if it came in an earlier life of the server than the seal.
func TestAPowerCutLeavesInTheLiveVolumeWhatASealedSnapshotHolds(t *testing.T) {
	for _, x := range lates {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed before the seal: %v", x.name, killed), func(t *testing.T) {
				sim := vfs.NewSim(memoryDir(t))
				s := openWith(t, dataDir, store.Options{FS: sim})
				live, old := x.preserve(t, s)
				_, err := live.WriteAt(make([]byte, 400<<10), 100<<10) // too much for the journal to store, so that no open syncs
				if err := errors.Join(err, x.newer(live), live.Flush(), x.write(old)); err != nil {
					t.Fatal(err)
				}
				if killed {
					sim = sim.Kill()
					s = openWith(t, dataDir, store.Options{FS: sim})
				} else if _, err := s.EndProcess("p", false); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(old.Close(), s.WaitSealed(t.Context(), "v@s")); err != nil {
					t.Fatal(err)
				}
				want := make([]byte, 1)
				if _, err := openView(t, s, "v@s").ReadAt(want, 0); err != nil {
					t.Fatal(err)
				}

				s = openWith(t, dataDir, store.Options{FS: sim.PowerCut(sim.Ops(), nil)})
				wantByte(t, openView(t, s, "v@s"), 0, want[0])
				wantByte(t, openView(t, s, "v"), 0, want[0])
				wantByte(t, openView(t, s, "v"), 4095, x.rest)
			})
		}
	}
}

// A seal syncs the image that is written to now only if a write to the sealed one
// changed what that has: flushes, and the next preserve, would wait for the disk.
func TestASealSyncsTheLiveImageOnlyIfALateWriteReachedIntoIt(t *testing.T) {
	none := late{"another block", false, fill('n'), func(old *volume.View) error {
		_, err := old.WriteAt(bytes.Repeat([]byte{'o'}, 4096+512), 4096)
		return err
	}, 'n'}
	for _, x := range append([]late{none}, lates...) {
		t.Run(x.name, func(t *testing.T) {
			var mu sync.Mutex
			syncs := map[string]int{} // on handles of the volume
			disk := vfs.Fault{FS: vfs.NewSim(memoryDir(t)), Hook: func(op vfs.Op) error {
				if op.Kind == vfs.OpSync && op.Handle == "" {
					mu.Lock()
					defer mu.Unlock()
					syncs[path.Base(op.Name)]++
				}
				return nil
			}}
			s := openWith(t, dataDir, store.Options{FS: disk})
			live, old := x.preserve(t, s)
			_, err := live.WriteAt(make([]byte, 400<<10), 100<<10) // too much for the journal to store
			if err := errors.Join(err, x.newer(live), x.write(old)); err != nil {
				t.Fatal(err)
			}
			_, err = s.EndProcess("p", false)
			if err := errors.Join(err, old.Close(), s.WaitSealed(t.Context(), "v@s")); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			file := func(k *volume.VLUN) string { return fmt.Sprintf("%016x.img", uint64(k.ImageID())) }
			vluns := live.Volume().VLUNs()
			if n := syncs[file(vluns[0])]; n == 0 {
				t.Error("no sync of the sealed image on the volume's handle, which may be the one that is told of a failed write-back")
			}
			if n, want := syncs[file(vluns[1])], x.name != none.name; n > 0 != want {
				t.Errorf("%d syncs of the live image, want any: %v", n, want)
			}
		})
	}
}

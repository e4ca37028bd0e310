package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func TestOpenSyncsTheEntriesThatItMakesAndOfOthersWhatTheSystemLetsIt(t *testing.T) {
	for _, test := range []struct {
		name    string
		dir     string // of the data, below root, which is there
		unsyncs string // what can't be synced, below root
		errno   syscall.Errno
		want    error
	}{
		{"above a new directory", "new", "..", syscall.EINVAL, nil},
		{"above, read-only", "new", "..", syscall.EROFS, nil},
		{"above, without support", "new", "..", syscall.ENOTSUP, nil},
		{"above, which may not be read", "new", "..", syscall.EACCES, nil},
		{"above, with an error of the disk", "new", "..", syscall.EIO, syscall.EIO},
		{"above a directory that somebody made", ".", "..", syscall.EINVAL, nil},
		{"where the entry is made", "new", ".", syscall.EINVAL, syscall.EINVAL},
		{"where one of its entries is made", "new/data", ".", syscall.EINVAL, syscall.EINVAL},
		{"where the other is made", "new/data", "new", syscall.EACCES, syscall.EACCES},
		{"the directory itself", ".", ".", syscall.EINVAL, syscall.EINVAL},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			unsynced := filepath.Join(root, test.unsyncs)
			fsys := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
				if op.Kind == vfs.OpSyncDir && op.Name == unsynced {
					return test.errno
				}
				return nil
			}}
			s, err := store.Open(filepath.Join(root, test.dir), store.Options{FS: fsys})
			if !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if err == nil {
				if err := s.Close(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// So many that they are opened beside each other; those that share images are not.
func TestManyVolumesAndTheirClonesOpenAsTheyWere(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	s := openWith(t, dataDir, store.Options{FS: sim})
	want := map[string]byte{}
	for i := range 30 {
		name := fmt.Sprint("v", i)
		if _, err := s.CreateVolume(name, 4*lookup.BlockSize, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		w := openView(t, s, name)
		write(t, w, 0, byte('a'+i%26))
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{name}, Name: "s"}); err != nil {
			t.Fatal(err)
		}
		write(t, w, 0, byte('A'+i%26))
		_ = w.Close() // it is only read
		want[name], want[name+"@s"] = byte('A'+i%26), byte('a'+i%26)
		if i%3 > 0 {
			continue
		}
		if _, err := s.Clone(t.Context(), name+"@s", name+"-clone"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: name + "@s", Keep: "k"}); err != nil {
			t.Fatal(err)
		}
		want[name], want[name+"@k"], want[name+"-clone"] = byte('a'+i%26), byte('A'+i%26), byte('a'+i%26)
	}
	sim = sim.Kill()
	next := openWith(t, dataDir, store.Options{FS: sim})
	for name, letter := range want {
		w := openView(t, next, name)
		wantByte(t, w, 0, letter)
		_ = w.Close() // it was only read
	}
	closeStore(t, next)
	if r, err := store.Check(dataDir, sim, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
		t.Errorf("check: %v, %v", r.Findings, err)
	}
}

package store_test

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
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

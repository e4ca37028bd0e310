package store_test

import (
	"context"
	"path"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func TestTheJournalOfAVolumeThatNobodyFlushesDoesNotGrowWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const journalBytes, blocks = 1 << 10, 1000
		fsys := vfs.NewSim(t.TempDir())
		s, err := store.Open("data", store.Options{FS: fsys, JournalBytes: journalBytes})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close(context.Background()) }()
		if _, err := s.CreateVolume("v", blocks*4096, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		w, err := s.OpenView("v")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = w.Close() }()
		for b := range int64(blocks) {
			write(t, w, b*4096, 'x')
			synctest.Wait() // the checkpoint, if it was asked for, is done
			if got := segmentBytes(t, fsys); got > 2*journalBytes {
				t.Fatalf("after %d writes the segments take %d bytes", b+1, got)
			}
		}
		cut := fsys.PowerCut(fsys.Ops(), nil)
		after, err := store.Open("data", store.Options{FS: cut})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = after.Close(context.Background()) }()
		wantByte(t, openView(t, after, "v"), 0, 'x')
	})
}

// segmentBytes is how much the journals hold in segments.
func segmentBytes(t *testing.T, fsys vfs.FS) (sum int64) {
	t.Helper()
	dirs, err := fsys.ReadDir("data/volumes")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		names, err := fsys.ReadDir(path.Join("data/volumes", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if !strings.HasPrefix(name, "journal-0") {
				continue
			}
			size, err := fsys.Size(path.Join("data/volumes", dir, name))
			if err != nil {
				t.Fatal(err)
			}
			sum += size
		}
	}
	return sum
}

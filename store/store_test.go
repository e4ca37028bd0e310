package store_test

import (
	"bytes"
	"context"
	"errors"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

func openView(t *testing.T, s *store.Store, name string) *volume.View {
	t.Helper()
	w, err := s.OpenView(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func write(t *testing.T, w *volume.View, off int64, letter byte) {
	t.Helper()
	if _, err := w.WriteAt(bytes.Repeat([]byte{letter}, 4096), off); err != nil {
		t.Fatal(err)
	}
}

func wantByte(t *testing.T, w *volume.View, off int64, want byte) {
	t.Helper()
	got := make([]byte, 1)
	if _, err := w.ReadAt(got, off); err != nil || got[0] != want {
		t.Errorf("byte at %d is %q (%v), want %q", off, got, err, want)
	}
}

func mustPreserve(t *testing.T, s *store.Store, name string, volumes ...string) store.PreserveReport {
	t.Helper()
	r, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: volumes, Name: name, Wait: time.Minute, UntilSealed: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestASnapshotOutlivesTheServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, dir)
	if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	w := openView(t, s, "v")
	write(t, w, 0, 'a')
	r := mustPreserve(t, s, "one", "v")
	if len(r.Snapshots) != 1 || r.Snapshots[0].State != volume.Sealed {
		t.Fatalf("the report says %+v, want one sealed snapshot", r.Snapshots)
	}
	write(t, w, 0, 'b')
	_ = w.Close()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := store.Check(dir, nil, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
		t.Fatalf("check: %v %v", r.Findings, err)
	}

	s = openStore(t, dir)
	wantByte(t, openView(t, s, "v"), 0, 'b')
	wantByte(t, openView(t, s, "v@one"), 0, 'a')
	info, err := s.Snapshot("v@one")
	if err != nil || info.State != volume.Sealed || info.Consistency != volume.ConsistencyProcess {
		t.Errorf("the snapshot is %+v (%v), want it sealed and whole", info, err)
	}
}

func TestASecondServerIsRefusedTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	openStore(t, dir)
	if _, err := store.Open(dir, store.Options{}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a second open: %v, want %v", err, store.ErrInUse)
	}
	if _, err := store.Check(dir, nil, store.CheckOptions{}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a check beside it: %v, want %v", err, store.ErrInUse)
	}
}

func TestANameTakenOnOneVolumeChangesNone(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "data"))
	for _, name := range []string{"v", "w"} {
		if _, err := s.CreateVolume(name, 1<<20, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
	}
	mustPreserve(t, s, "one", "w")
	_, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v", "w"}, Name: "one", Wait: time.Minute})
	if !errors.Is(err, store.ErrExists) {
		t.Errorf("%v, want %v", err, store.ErrExists)
	}
	if list, _ := s.Snapshots("v"); len(list) != 0 {
		t.Errorf("v has %v, want no snapshot", list)
	}
}

func TestAVolumeInUseOrWithSnapshotsIsNotDeleted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, dir)
	if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	mustPreserve(t, s, "one", "v")
	if err := s.DeleteVolume("v", false); !errors.Is(err, store.ErrInUse) {
		t.Errorf("with a snapshot: %v, want %v", err, store.ErrInUse)
	}
	w := openView(t, s, "v")
	if err := s.DeleteVolume("v", true); !errors.Is(err, store.ErrInUse) {
		t.Errorf("with a client: %v, want %v", err, store.ErrInUse)
	}
	_ = w.Close()
	if err := s.DeleteVolume("v", true); err != nil {
		t.Error(err)
	}
	if _, err := s.Volume("v"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after the delete: %v, want %v", err, store.ErrNotFound)
	}
	if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
		t.Errorf("the name is not free again: %v", err)
	}
}

func TestExportNamesThatDoNotFitAreRefusedWithWhatIsAllowed(t *testing.T) {
	s := openStore(t, filepath.Join(t.TempDir(), "data"))
	if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	mustPreserve(t, s, "one", "v")
	for name, want := range map[string]error{
		"": store.ErrInvalid, "v:": store.ErrInvalid, "v:forever": store.ErrInvalid, "v:process": store.ErrInvalid,
		"v:process:": store.ErrInvalid, "v:process:a/b": store.ErrInvalid, "v@": store.ErrInvalid, "v@one:session": store.ErrInvalid,
		"@one": store.ErrInvalid, ":session": store.ErrInvalid, "v:process:unknown": store.ErrNotFound, "w": store.ErrNotFound,
		"v@two": store.ErrNotFound, "v": nil, "v:request": nil, "v:session": nil, "v@one": nil,
	} {
		w, err := s.OpenView(name)
		if !errors.Is(err, want) {
			t.Errorf("export %q: %v, want %v", name, err, want)
		}
		if err == nil {
			_ = w.Close()
		}
	}
}

// What one write brings into memory becomes one page of the kernel's, and a block of a
// large one is dear to write.
func TestALargeWriteIsStoredInPieces(t *testing.T) {
	const large = 256 << 10
	var piece, most int64
	s := openWith(t, filepath.Join(t.TempDir(), "data"), store.Options{FS: vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && path.Ext(op.Name) == ".img" {
			if most = max(most, op.Len); op.Off/piece != (op.Off+op.Len-1)/piece {
				t.Errorf("pieces of %d: %d bytes are written at %d", piece, op.Len, op.Off)
			}
		}
		return nil
	}}})
	defer closeStore(t, s)
	createVolume(t, s, "v")
	w := openView(t, s, "v")
	data, read := make([]byte, large), make([]byte, large)
	for _, c := range []struct {
		what       string
		pieceBytes int64
	}{{"to new blocks", 16 << 10}, {"to blocks that are there", file.PieceBytes}} {
		piece, most = c.pieceBytes, 0
		for i := range data {
			data[i] += byte(i/4096 + 1)
		}
		if _, err := w.WriteAt(data, 4096+512); err != nil {
			t.Fatal(err)
		}
		if most != c.pieceBytes {
			t.Errorf("%s: at most %d bytes are written at once, want %d", c.what, most, c.pieceBytes)
		}
		if _, err := w.ReadAt(read, 4096+512); err != nil || !bytes.Equal(read, data) {
			t.Errorf("%s: it reads otherwise: %v", c.what, err)
		}
	}
}

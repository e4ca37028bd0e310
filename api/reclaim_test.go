package api

import (
	"errors"
	"path"
	"testing"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
)

func TestWhoWaitsForRoomIsToldBeforeItIsThereAndAtTheEnd(t *testing.T) {
	told := make(chan struct{})
	c, _, s := serveStore(t, store.Options{FS: vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpPunch && path.Ext(op.Name) == ".img" {
			<-told
		}
		return nil
	}}})
	write := func(blocks int) {
		t.Helper()
		w, err := s.OpenView("v")
		if err == nil {
			_, err = w.WriteAt(make([]byte, blocks*lookup.BlockSize), 0)
			err = errors.Join(err, w.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(3)
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "s", UntilSealed: true}); err != nil {
		t.Fatal(err)
	}
	write(2) // and the third stays
	if err := s.DeleteSnapshots("v@s"); err != nil {
		t.Fatal(err)
	}
	var first, last *tidemarkv1.Reclaim
	if err := AwaitReclaim(t.Context(), c, func(r *tidemarkv1.Reclaim) {
		if first == nil {
			first = r
			close(told)
		}
		last = r
	}); err != nil {
		t.Fatal(err)
	}
	if first.GetGivenBackBytes() != 0 || first.GetLeftBytes() == 0 {
		t.Errorf("first it is told %v", first)
	}
	if last.GetImagesLeft() != 0 || last.GetLeftBytes() != 0 || last.GetGivenBackBytes() != 2*lookup.BlockSize {
		t.Errorf("at the end it is told %v, want 2 blocks given back", last)
	}
}

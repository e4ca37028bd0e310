package store_test

import (
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// A write in place is not in the page cache when it returns (J11): whoever tells of it
// puts it there.
func TestAKillTakesNoWriteThatAnybodyWasToldOf(t *testing.T) {
	for name, tell := range map[string]func(*store.Store, *volume.View) error{
		"a frontend": func(_ *store.Store, w *volume.View) error { return w.Publish() },
		"a read": func(_ *store.Store, w *volume.View) error {
			_, err := w.ReadAt(make([]byte, 4096), 0)
			return err
		},
		"the extents": func(_ *store.Store, w *volume.View) error {
			return w.Extents(0, 1<<20, func(volume.Extent) bool { return false })
		},
		"a diff": func(s *store.Store, _ *volume.View) error {
			return s.Diff("v@s", "v", func(store.DiffExtent) error { return nil })
		},
		"a preserve": func(s *store.Store, _ *volume.View) error {
			_, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "later", Wait: 1e9})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			sim := vfs.NewSim(memoryDir(t))
			s := openWith(t, dataDir, store.Options{FS: sim})
			noError(t, second(s.CreateVolume("v", 1<<20, volume.ScopeRequest)))
			noError(t, second(s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "s", Wait: 1e9, UntilSealed: true})))
			w, other := openView(t, s, "v"), openView(t, s, "v")
			noError(t, second(w.TryWriteAt([]byte("abc"), 0)))
			noError(t, tell(s, other))
			killed := sim.Kill()
			next := openWith(t, dataDir, store.Options{FS: killed})
			defer closeStore(t, next)
			got := make([]byte, 3)
			r := openView(t, next, "v")
			noError(t, second(r.ReadAt(got, 0)))
			noError(t, r.Close())
			if string(got) != "abc" {
				t.Errorf("after a kill it holds %q", got)
			}
		})
	}
}

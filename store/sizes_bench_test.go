package store_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// The time of what looks at the tables of 1,000 snapshots, each after scattered writes
// of 4 KiB.
func BenchmarkThousandSnapshots(b *testing.B) {
	const snapshots = 1000
	for _, c := range []struct {
		sizeBytes int64
		writes    int
	}{{1 << 30, 100}, {4 << 30, 1000}} {
		b.Run(fmt.Sprintf("%dGiB/%dwrites", c.sizeBytes>>30, c.writes), func(b *testing.B) {
			dir := memoryDir(b)
			s, err := store.Open(dir, store.Options{})
			noError(b, err)
			b.Cleanup(func() { _ = s.Close(b.Context()) })
			_, err = s.CreateVolume("v", c.sizeBytes, volume.ScopeRequest)
			noError(b, err)
			w, err := s.OpenView("v")
			noError(b, err)
			defer func() { noError(b, w.Close()) }()
			rng, block := rand.New(rand.NewPCG(1, 1)), make([]byte, 4096)
			for n := range snapshots {
				for range c.writes {
					_, err := w.WriteAt(block, rng.Int64N(c.sizeBytes/4096)*4096)
					noError(b, err)
				}
				_, err := s.Preserve(b.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: fmt.Sprint("s", n), Wait: time.Minute})
				noError(b, err)
			}
			noError(b, s.WaitSealed(b.Context(), fmt.Sprint("v@s", snapshots-1)))
			b.Run("list", func(b *testing.B) {
				for b.Loop() {
					_, err := s.Snapshots("v")
					noError(b, err)
				}
			})
			b.Run("sizes", func(b *testing.B) {
				for b.Loop() {
					_, err := s.Sizes("v")
					noError(b, err)
				}
			})
			b.Run("diff", func(b *testing.B) {
				for b.Loop() {
					noError(b, s.Diff("v@s0", "v", func(store.DiffExtent) error { return nil }))
				}
			})
			b.Run("changes", func(b *testing.B) {
				for b.Loop() {
					changes, err := s.Changes("v@s0", fmt.Sprint("v@s", snapshots-1))
					noError(b, err)
					changes.Extents(0, c.sizeBytes, func(int64, bool) bool { return true })
					noError(b, changes.Close())
				}
			})
		})
	}
}

func noError(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

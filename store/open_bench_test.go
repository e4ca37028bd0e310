package store_test

import (
	"fmt"
	"testing"

	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// The time to open a directory of 1,000 volumes that was closed, on the disk of the
// directory for temporary files.
func BenchmarkOpenOfThousandVolumes(b *testing.B) {
	dir := b.TempDir()
	s, err := store.Open(dir, store.Options{})
	noError(b, err)
	for n := range 1000 {
		_, err := s.CreateVolume(fmt.Sprint("v", n), 1<<30, volume.ScopeRequest)
		noError(b, err)
	}
	noError(b, s.Close(b.Context()))
	for b.Loop() {
		s, err := store.Open(dir, store.Options{})
		b.StopTimer()
		noError(b, err)
		noError(b, s.Close(b.Context()))
		b.StartTimer()
	}
}

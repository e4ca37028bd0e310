package catalog

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
)

// What a preserve waits for: the commit of one volume that has a thousand
// snapshots already.
func BenchmarkPreserveOfAThousandSnapshots(b *testing.B) {
	name := filepath.Join(b.TempDir(), "catalog")
	c := mustOpen(b, vfs.OS{}, name)
	mustUpdate(b, c, func(tx *Tx) error { return addVolume(tx, "a") })
	v := mustLoad(b, c).Volumes[0]
	grow := func(n int) {
		mustUpdate(b, c, func(tx *Tx) error {
			for range n {
				if err := preserve(tx, fmt.Sprint("s", tx.meta.NextCut), v); err != nil {
					return err
				}
				v.Chain = []Link{{Volume: v.ID, Image: tx.meta.NextImage - 1, SizeBytes: v.SizeBytes}}
			}
			return nil
		})
	}
	grow(1000)
	for b.Loop() {
		grow(1)
	}
}

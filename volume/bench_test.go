package volume

import (
	"testing"

	"github.com/tidemark/tidemark/lookup"
)

// The cost of the mechanism itself, over images in memory. None of these
// allocates in steady state.

func benchVolume(tb testing.TB) *View {
	m := &Memory{}
	v, err := New(m, 0).AddVolume(m.Config("v", 1<<30, ScopeRequest))
	if err != nil {
		tb.Fatal(err)
	}
	w, err := v.Open()
	if err != nil {
		tb.Fatal(err)
	}
	for b := range int64(1024) {
		if _, err := w.WriteAt(block('a'), b*lookup.BlockSize); err != nil {
			tb.Fatal(err)
		}
	}
	return w
}

func BenchmarkRead4KiB(b *testing.B)  { benchmark(b, (*View).TryReadAt) }
func BenchmarkWrite4KiB(b *testing.B) { benchmark(b, (*View).TryWriteAt) }

func benchmark(b *testing.B, request func(*View, []byte, int64) (int, error)) {
	w := benchVolume(b)
	b.ReportAllocs()
	b.SetBytes(lookup.BlockSize)
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, lookup.BlockSize)
		w, err := w.volume.Open()
		if err != nil {
			b.Error(err)
			return
		}
		for i := int64(0); pb.Next(); i++ {
			if _, err := request(w, p, i*7%1024*lookup.BlockSize); err != nil && err != ErrWouldBlock {
				b.Error(err)
				return
			}
		}
	})
}

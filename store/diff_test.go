package store_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/tidemark/tidemark/store"
)

// The bytes of from, with what the diff lists taken from to, are those of to: for
// any two states of a volume, also on both sides of a rollback.
func TestADiffListsAllThatDiffers(t *testing.T) {
	for seed := range uint64(8) {
		l := newLife(t, seed)
		var states []string
		for i := range 12 {
			l.write("v")
			states = append(states, l.preserve("v"))
			if i == 5 {
				back := states[2]
				r, err := l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: back})
				l.must(err)
				l.holds[r.Kept] = l.holds["v"]
				l.holds["v"] = append([]byte(nil), l.holds[back]...)
				states = append(states, r.Kept)
			}
		}
		l.write("v")
		for _, from := range states {
			for _, to := range append(states, "v") {
				got, end := append([]byte(nil), l.holds[from]...), int64(0)
				l.must(l.store.Diff(from, to, func(x store.DiffExtent) error {
					if x.OffsetBytes < end || x.LengthBytes <= 0 {
						t.Fatalf("%s to %s: %+v after %d", from, to, x, end)
					}
					end = x.OffsetBytes + x.LengthBytes
					part := got[x.OffsetBytes:end]
					if clear(part); x.Data {
						copy(part, l.holds[to][x.OffsetBytes:end])
					}
					return nil
				}))
				if string(got) != string(l.holds[to]) {
					t.Fatalf("seed %d: what differs between %s and %s is not all listed", seed, from, to)
				}
				if seed%4 == 0 {
					l.checkChanges(from, to)
				}
			}
		}
		if err := l.store.Diff(states[0], states[0], func(x store.DiffExtent) error { return errors.New("a difference") }); err != nil {
			t.Errorf("a snapshot and itself: %v", err)
		}
		l.must(l.store.Close(t.Context()))
	}
}

func TestADiffOfWhatCannotBeComparedIsRefused(t *testing.T) {
	l := newLife(t, 1)
	l.create("w")
	v, w := l.preserve("v"), l.preserve("w")
	for _, c := range []struct {
		name, from, to string
		want           error
	}{
		{"of two volumes", v, w, store.ErrInvalid},
		{"from a live volume", "v", v, store.ErrInvalid},
		{"to a snapshot that is unknown", v, "v@none", store.ErrNotFound},
		{"from a snapshot that is unknown", "v@none", "v", store.ErrNotFound},
	} {
		if err := l.store.Diff(c.from, c.to, func(store.DiffExtent) error { return nil }); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// checkChanges holds the changes of a snapshot since an older one against the diff,
// in ranges that begin and end anywhere.
func (l *lives) checkChanges(from, to string) {
	l.t.Helper()
	c, err := l.store.Changes(from, to)
	if older, e := l.store.Older(to); e == nil && slices.Contains(older, from) != (err == nil) {
		l.t.Fatalf("the changes from %s to %s: %v, and older are %q", from, to, err, older)
	}
	if err != nil {
		if !errors.Is(err, store.ErrInvalid) && !errors.Is(err, store.ErrDraining) {
			l.t.Fatal(err)
		}
		return
	}
	want := make([]bool, lifeBlocks)
	l.must(l.store.Diff(from, to, func(x store.DiffExtent) error {
		for b := x.OffsetBytes / 4096; b < (x.OffsetBytes+x.LengthBytes)/4096; b++ {
			want[b] = true
		}
		return nil
	}))
	for range 4 {
		off := l.rng.Int64N(lifeBlocks * 4096)
		length := 1 + l.rng.Int64N(lifeBlocks*4096-off)
		end := off + length
		c.Extents(off, length, func(n int64, changed bool) bool {
			if n <= 0 || n > end-off {
				l.t.Fatalf("%s to %s: %d bytes at %d of %d", from, to, n, off, end)
			}
			for n > 0 {
				if want[off/4096] != changed {
					l.t.Fatalf("%s to %s: byte %d changed: %v", from, to, off, changed)
				}
				part := min(n, 4096-off%4096)
				off, n = off+part, n-part
			}
			return true
		})
		if off != end {
			l.t.Fatalf("%s to %s: told up to %d of %d", from, to, off, end)
		}
	}
	l.must(c.Close())
}

func TestWhatIsComparedWithStays(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	a := l.preserve("v")
	_, err := l.store.ResizeVolume("v", lifeBlocks*4096+3*512)
	l.must(err)
	b := l.preserve("v")
	_, err = l.store.ResizeVolume("v", 2*lifeBlocks*4096)
	l.must(err)
	d := l.preserve("v")
	c, err := l.store.Changes(b, d)
	l.must(err)
	var told []string
	c.Extents(512, 2*lifeBlocks*4096-1024, func(n int64, changed bool) bool {
		told = append(told, fmt.Sprint(n, changed))
		return true
	})
	if want := fmt.Sprint([]string{fmt.Sprint(lifeBlocks*4096-512, false), fmt.Sprint(lifeBlocks*4096-512, true)}); fmt.Sprint(told) != want {
		t.Errorf("of a volume that grew it tells %v, want %v", told, want)
	}
	if err := l.store.DeleteSnapshot(b); !errors.Is(err, store.ErrInUse) {
		t.Errorf("delete: %v, want ErrInUse", err)
	}
	l.must(c.Close())
	l.must(l.store.DeleteSnapshot(b))
	for _, pair := range [][2]string{{d, a}, {a, a}, {a, "v"}, {"v", a}} {
		if _, err := l.store.Changes(pair[0], pair[1]); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("changes from %s to %s: %v, want ErrInvalid", pair[0], pair[1], err)
		}
	}
}

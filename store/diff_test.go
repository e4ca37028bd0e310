package store_test

import (
	"errors"
	"testing"

	"github.com/tidemark/tidemark/store"
)

// The bytes of from, with what the diff lists taken from to, are those of to: for
// any two states of a volume, also on both sides of a rollback.
func TestADiffListsAllThatDiffers(t *testing.T) {
	for seed := range uint64(20) {
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

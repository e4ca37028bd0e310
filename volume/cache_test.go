package volume

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/mem"
	"github.com/tidemark/tidemark/lookup"
)

// fetched is an image that notes what it is to prefetch.
type fetched struct {
	image.Image
	id    image.ID
	notes *[]string
}

func (f fetched) Prefetch(off, lengthBytes int64) error {
	*f.notes = append(*f.notes, fmt.Sprintf("image %d: %d at %d", f.id, lengthBytes, off))
	return f.Image.Prefetch(off, lengthBytes)
}

func TestCacheFetchesWhatTheViewWouldRead(t *testing.T) {
	const b = lookup.BlockSize
	var notes []string
	r := newRig(t)
	r.memory.NewImage = func(id image.ID) image.Image { return fetched{mem.New(), id, &notes} }
	v := r.volume("v")
	old := open(t)(v.Open())
	for n := range lookup.BlockNum(4) {
		writeBlock(t, old, n, 'a')
	}
	first := v.tip()
	r.preserve(PreserveOptions{}, v)
	live, snapshot := open(t)(v.Open()), open(t)(first.Open())
	writeBlock(t, live, 1, 'b')
	if err := live.Trim(2*b, b); err != nil {
		t.Fatal(err)
	}
	one, two := first.ImageID(), v.tip().ImageID()
	for _, c := range []struct {
		name        string
		view        *View
		off, length int64
		want        []string
	}{
		{"the live view", live, 0, 64 * b, []string{
			fmt.Sprintf("image %d: %d at 0", one, b), fmt.Sprintf("image %d: %d at %d", two, b, b), fmt.Sprintf("image %d: %d at %d", one, b, 3*b)}},
		{"a preserved view", snapshot, 0, 64 * b, []string{fmt.Sprintf("image %d: %d at 0", one, 4*b)}},
		{"parts of blocks", live, b - 10, 30, []string{fmt.Sprintf("image %d: 10 at %d", one, b-10), fmt.Sprintf("image %d: 20 at %d", two, b)}},
		{"a hole", live, 4 * b, 60 * b, nil},
		{"nothing", live, 64 * b, 0, nil},
	} {
		notes = nil
		if err := c.view.Cache(c.off, c.length); err != nil || !slices.Equal(notes, c.want) {
			t.Errorf("%s: %q (%v), want %q", c.name, notes, err, c.want)
		}
	}
	if err := live.Cache(b, 64*b); !errors.Is(err, ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
}

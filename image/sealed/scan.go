package sealed

import (
	"context"
	"fmt"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// Scan is a walk over the blocks of a sealed image that holds each against its
// sum, without the Cache.
type Scan struct {
	ID image.ID
	// Image and Sums are handles of the scan's own, best opened past the page
	// cache: what counts is what the disk has.
	Image image.Image
	Sums  *Sums
	// Lost, if not nil, says why there is no Image or no Sums: every block is bad.
	Lost  error
	Table *lookup.Table
	// Shown tells whether a view shows block b of the image, and for how many
	// blocks, at most limit, that is so; nil: it shows all.
	Shown func(b lookup.BlockNum, limit uint64) (shown bool, run uint64)
	// Pace is called with the bytes of each step, before it; nil: full speed.
	Pace func(ctx context.Context, sizeBytes int64) error
	// Block is called for each block, ascending. err is nil if it is sound, and
	// s is then its sum; it wraps image.ErrCorrupt if it or its sum is not what
	// was sealed, and is the disk's error if it can't be read.
	Block func(b lookup.BlockNum, s Sum, err error)
}

// Run walks. Its error is that of ctx or Pace; what is wrong with blocks is told
// to Block only.
func (s *Scan) Run(ctx context.Context) error {
	w := &scanning{Scan: s, ctx: ctx, blocks: Buffer(stepBlocks * lookup.BlockSize)}
	if s.Lost == nil {
		w.cursor = newCursor(s.Sums)
	}
	for x := range s.Table.Extents(0, lookup.MaxBlocks) {
		if x.State != lookup.Data {
			continue
		}
		for first, n := range steps(x.Block, x.Count) {
			if err := w.walk(first, n); err != nil {
				return err
			}
		}
	}
	return nil
}

type scanning struct {
	*Scan
	ctx    context.Context //nolint:containedctx // of the one Run that it lives for
	cursor *cursor         // nil if there are no sums
	blocks []byte
}

// walk takes n blocks, at most stepBlocks.
func (w *scanning) walk(first lookup.BlockNum, n uint64) error {
	for n > 0 {
		shown, run := true, n
		if w.Shown != nil {
			shown, run = w.Shown(first, n)
		}
		if shown {
			var err error
			if run, err = w.step(first, run); err != nil {
				return err
			}
		}
		first, n = first+lookup.BlockNum(run), n-run
	}
	return nil
}

// step takes those of n blocks whose sums lie in one page, and returns how many.
func (w *scanning) step(first lookup.BlockNum, n uint64) (uint64, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	var sums packed
	wrong := w.Lost
	if wrong == nil {
		sums, n, wrong = w.cursor.find(first, n)
	}
	if w.Pace != nil {
		if err := w.Pace(w.ctx, int64(n)*lookup.BlockSize); err != nil {
			return 0, err
		}
	}
	if wrong != nil {
		for i := range n {
			w.Block(first+lookup.BlockNum(i), 0, wrong)
		}
		return n, nil
	}
	w.read(first, int(n), sums)
	return n, nil
}

func (w *scanning) read(first lookup.BlockNum, n int, sums packed) {
	if _, err := w.Image.ReadAt(w.blocks[:n*lookup.BlockSize], int64(first)*lookup.BlockSize); err == nil {
		for i := range n {
			w.compare(first+lookup.BlockNum(i), w.blocks[i*lookup.BlockSize:][:lookup.BlockSize], sums.at(i))
		}
		return
	}
	for i := range n { // which of them?
		b, data := first+lookup.BlockNum(i), w.blocks[:lookup.BlockSize]
		if _, err := w.Image.ReadAt(data, int64(b)*lookup.BlockSize); err != nil {
			w.Block(b, 0, fmt.Errorf("block %d of image %d: %w", b, w.ID, err))
			continue
		}
		w.compare(b, data, sums.at(i))
	}
}

func (w *scanning) compare(b lookup.BlockNum, data []byte, want Sum) {
	if got := SumOf(data); got != want {
		w.Block(b, 0, badBlock(w.ID, b))
	} else {
		w.Block(b, got, nil)
	}
}

// Matches holds a checksum file against what others say of it: the table of its
// image, and the hash that was recorded when it was sealed. If it is punched, blocks
// that were sealed may have left the table.
func (s *Sums) Matches(t *lookup.Table, h Hash, sizeBytes int64, punched bool) error {
	data, _ := t.Counts()
	switch {
	case s.hash != h:
		return fmt.Errorf("%w: image %d: the hash in its checksum file is %s, that of its seal is %s", image.ErrCorrupt, s.id, s.hash, h)
	case s.dataBlocks < data, s.dataBlocks > data && !punched:
		return fmt.Errorf("%w: image %d was sealed with %d blocks, and its table has %d", image.ErrCorrupt, s.id, s.dataBlocks, data)
	case s.sizeBytes != sizeBytes:
		return fmt.Errorf("%w: image %d was sealed with a size of %d bytes, and has %d", image.ErrCorrupt, s.id, s.sizeBytes, sizeBytes)
	}
	return nil
}

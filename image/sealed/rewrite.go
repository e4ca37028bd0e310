package sealed

import (
	"context"
	"fmt"
	"io"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// Rewriting is what Rewrite makes a checksum file of: sums that other files have.
// No block is read.
type Rewriting struct {
	FS  vfs.FS
	Dir string // of the checksum file
	ID  image.ID
	// SizeBytes of the VLUN whose newest image it is, and Hash of its view.
	SizeBytes int64
	Hash      Hash
	// Table has the blocks that the file is to have sums of, where it says Data. The
	// newest layer of From that has a block gives its sum.
	Table *lookup.Table
	From  Chain
}

// Rewrite replaces the checksum file of a sealed image, durably and in one step.
// Who has it open goes on with the old one.
func Rewrite(ctx context.Context, r Rewriting) error {
	count := &writer{id: r.ID, file: nowhere{}} // the header comes first, and says how many
	err := r.pack(ctx, count)
	if err == nil {
		err = count.finish()
	}
	if err != nil {
		return fmt.Errorf("rewrite the sums of image %d: %w", r.ID, err)
	}
	h := header{id: r.ID, sizeBytes: r.SizeBytes, hash: r.Hash, dataBlocks: count.dataBlocks, pages: uint64(len(count.directory))}
	err = vfs.Replace(r.FS, sumsPath(r.Dir, r.ID), func(to io.Writer) error {
		w := &writer{id: r.ID, file: inOrder{to}}
		if err := w.writeHeader(h); err != nil {
			return err
		}
		if err := r.pack(ctx, w); err != nil {
			return err
		}
		return w.finish()
	})
	if err != nil {
		return fmt.Errorf("rewrite the sums of image %d: %w", r.ID, err)
	}
	return nil
}

func (r *Rewriting) pack(ctx context.Context, w *writer) (err error) {
	var room [stepBlocks]Sum
	from := r.From.sweep()
	for x := range r.Table.Extents(0, lookup.MaxBlocks) {
		if x.State != lookup.Data {
			continue
		}
		for first, n := range steps(x.Block, x.Count) {
			if err := ctx.Err(); err != nil {
				return err
			}
			var full error
			err := from.each(first, n, &room, func(b lookup.BlockNum, s Sum) {
				if full == nil {
					full = w.pack(b, s)
				}
			})
			if err != nil {
				return err
			}
			if full != nil {
				return full
			}
		}
	}
	return nil
}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// inOrder is for a writer whose pages come in the order of the file.
type inOrder struct{ io.Writer }

func (w inOrder) WriteAt(p []byte, _ int64) (int, error) { return w.Write(p) }

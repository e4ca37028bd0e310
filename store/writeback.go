package store

import (
	"context"
	"errors"

	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/lookup"
)

// writeBack writes the blocks of a table back to an image in steps of so much data,
// wherever it lies, and syncs it. It takes no more than its share of the time.
func writeBack(ctx context.Context, img *file.Image, t *lookup.Table, beside *share) error {
	begin, end, dataBytes, stepBytes := int64(0), int64(0), int64(0), beside.stepBytes()
	step := func() error {
		if err := ctx.Err(); err != nil || dataBytes == 0 {
			return err
		}
		dataBytes = 0
		if err := img.WriteBack(begin, end-begin); err != nil {
			return err
		}
		stepBytes = beside.stepBytes()
		return beside.rest(ctx, 0)
	}
	var lone lone
	for x := range t.Extents(0, lastBlock) {
		off, left := int64(x.Block)*lookup.BlockSize, int64(x.Count)*lookup.BlockSize
		if x.State == lookup.Data {
			lone.reserve(img, off, left)
		}
		for x.State == lookup.Data && left > 0 {
			if dataBytes == 0 {
				begin = off
			}
			n := min(left, max(stepBytes-dataBytes, lookup.BlockSize))
			off, left, dataBytes = off+n, left-n, dataBytes+n
			if end = off; dataBytes >= stepBytes {
				if err := step(); err != nil {
					return err
				}
			}
		}
	}
	if err := errors.Join(step(), ctx.Err()); err != nil {
		return err
	}
	return img.Sync()
}

// writeBackStepBytes is how much is written back at once. Blocks that lie apart take the
// kernel much of a processor, so it goes in smaller steps while there are requests.
const writeBackStepBytes = int64(4 << 20)

// stepBytes is how much is written back at once beside the requests that there are.
func (x *share) stepBytes() int64 {
	if x.busy() {
		return writeBackStepBytes / 8
	}
	return writeBackStepBytes
}

// lone reserves the room of blocks that stand alone in an image, before they are
// written back. Where none was reserved ext4 expects that a block of a large file is the
// first of many: it looks for 8 MiB in one piece, through all of a disk that has few
// such pieces left. Measured there, 4 KiB each at random places of 1 TiB: 58 us, and 16
// with the room reserved; with 1 MiB and less from one to the next it gives nothing.
type lone struct {
	endBytes int64 // of the range before
}

const (
	loneBytes    = 64 << 10
	loneGapBytes = 1 << 20
)

// reserve reserves the room of a range, if it stands alone. The ranges come in order. It
// is a hint: that there is no room the write says, or the write-back.
func (l *lone) reserve(img *file.Image, off, lengthBytes int64) {
	if lengthBytes <= loneBytes && off-l.endBytes >= loneGapBytes {
		_ = img.Reserve(off, lengthBytes)
	}
	l.endBytes = off + lengthBytes
}

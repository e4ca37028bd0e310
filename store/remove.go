package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/sealed"
)

// removal is an image that is in no chain any more, and whose files are to go. What a
// crash leaves of them the next open finds.
type removal struct {
	id        image.ID
	sizeBytes int64     // of its VLUN; 0: not known
	dataBytes int64     // that it holds
	open      io.Closer // or nil
}

// atOnceBytes is so little data that files with it are removed at once, by who has
// deleted them.
const atOnceBytes = 1 << 20

// remove gives the storage of an image back, in pieces if it is much, and then removes
// its files. No lock is held: nobody waits for the file system, and its log gets the
// pieces between what others write.
func (s *Store) remove(ctx context.Context, r removal, idle func()) (err error) {
	if r.open != nil {
		err = r.open.Close()
	}
	if r.dataBytes > s.atOnceBytes {
		err = errors.Join(err, s.free(ctx, r, idle))
		if ctx.Err() != nil {
			return err
		}
	} else {
		s.reclaiming.done(r.dataBytes)
	}
	if err = errors.Join(err, s.removeImage(r.id, r.sizeBytes)); err != nil {
		return fmt.Errorf("image %d is in no chain any more, but not all of its files are gone: %w", r.id, err)
	}
	return nil
}

// free is remove without the files.
func (s *Store) free(ctx context.Context, r removal, idle func()) error {
	img, err := file.Open(s.fs, imagesDir(s.dir), r.id, file.Options{SizeBytes: r.sizeBytes})
	if err != nil {
		return err
	}
	share := s.reclaimShare(idle)
	err = img.Free(func(sizeBytes int64) error {
		s.reclaiming.done(sizeBytes)
		return share.rest(ctx, 0)
	})
	if errors.Is(err, errors.ErrUnsupported) { // the file system can't punch: all of it goes at once
		err = nil
	}
	return errors.Join(err, img.Close())
}

// removeImage unlinks the files of an image; a size of 0 is not known.
func (s *Store) removeImage(id image.ID, sizeBytes int64) error {
	dir := imagesDir(s.dir)
	return errors.Join(file.Remove(s.fs, dir, id, file.Options{SizeBytes: sizeBytes}), sealed.Remove(s.fs, dir, id))
}

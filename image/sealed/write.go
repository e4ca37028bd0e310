package sealed

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// Sealing is what Write computes sums of: an image to which nobody writes any
// more, and what is below it.
type Sealing struct {
	FS  vfs.FS
	Dir string // of the checksum file
	ID  image.ID
	// SizeBytes of the VLUN whose newest image it is.
	SizeBytes int64
	Image     image.Image
	Table     *lookup.Table
	// Older are the sealed images below it, and Below is the hash of their view.
	Older Chain
	Below Hash
}

// Write reads every Data block of the image, in small steps, and writes the
// checksum file, durably; one that an earlier attempt left is replaced. If it
// fails, what it wrote gives its room back.
//
// The file counts only once somebody who is asked at every open says so, by the
// hash: so there is no rename. The header is written when the pages are durable,
// as the hash may be recorded already (of a file that is made anew): no crash
// leaves half of one that counts.
//
// Sums are of what the image reads then. What rots before is not found.
func Write(ctx context.Context, s Sealing) (h Hash, err error) {
	f, err := s.FS.Open(sumsPath(s.Dir, s.ID), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return Hash{}, fmt.Errorf("make the checksum file of image %d: %w", s.ID, err)
	}
	w := &writer{image: s.Image, id: s.ID, file: f, number: noPage, blocks: Buffer(stepBlocks * lookup.BlockSize)}
	h, err = s.chain(w).Hash(ctx, s.Below)
	if err == nil {
		err = w.finish(header{id: s.ID, sizeBytes: s.SizeBytes, hash: h})
	}
	if err != nil {
		err = errors.Join(err, f.Truncate(0))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.FS.SyncDir(s.Dir)
	}
	if err != nil {
		return Hash{}, fmt.Errorf("write the sums of image %d: %w", s.ID, err)
	}
	return h, nil
}

// Rehash is the hash that Write would return; it writes nothing.
func Rehash(ctx context.Context, s Sealing) (Hash, error) {
	w := &writer{image: s.Image, id: s.ID, number: noPage, blocks: Buffer(stepBlocks * lookup.BlockSize)}
	return s.chain(w).Hash(ctx, s.Below)
}

func (s Sealing) chain(w *writer) Chain {
	return append(s.Older[:len(s.Older):len(s.Older)], Layer{s.Table, w})
}

// stepBlocks is how many blocks are read at once.
const stepBlocks = 256

// writer computes sums, in ascending order, and writes each page when it is
// full.
type writer struct {
	image      image.Image
	id         image.ID
	file       vfs.File // nil: pages are not written
	dataBlocks uint64
	number     uint64 // of page
	page       sumPage
	room       [pageBytes]byte
	blocks     []byte
}

const noPage = ^uint64(0)

// Sums implements Source: with what the image reads now.
func (w *writer) Sums(first lookup.BlockNum, to []Sum) error {
	number, index := place(first)
	if number != w.number {
		if err := w.flush(); err != nil {
			return err
		}
		w.number = number
	}
	for done := 0; done < len(to); {
		n := min(stepBlocks, len(to)-done)
		data := w.blocks[:n*lookup.BlockSize]
		if _, err := w.image.ReadAt(data, int64(first)*lookup.BlockSize+int64(done)*lookup.BlockSize); err != nil {
			return err
		}
		for i := range n {
			to[done+i] = SumOf(data[i*lookup.BlockSize:][:lookup.BlockSize])
		}
		done += n
	}
	copy(w.page[index:], to)
	w.dataBlocks += uint64(len(to))
	return nil
}

func (w *writer) flush() error {
	if w.number == noPage || w.file == nil {
		return nil
	}
	w.page.encode(&w.room, w.id, w.number)
	clear(w.page[:])
	_, err := w.file.WriteAt(w.room[:], int64(1+w.number)*pageBytes)
	return err
}

func (w *writer) finish(h header) error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		return err
	}
	h.dataBlocks = w.dataBlocks
	h.encode(&w.room)
	if _, err := w.file.WriteAt(w.room[:], 0); err != nil {
		return err
	}
	return w.file.Sync()
}

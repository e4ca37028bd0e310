package sealed

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	w := &writer{image: s.Image, id: s.ID, file: f, blocks: Buffer(stepBlocks * lookup.BlockSize)}
	h, err = s.chain(w).Hash(ctx, s.Below)
	if err == nil {
		err = w.finish()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = w.writeHeader(header{id: s.ID, sizeBytes: s.SizeBytes, hash: h, dataBlocks: w.dataBlocks, pages: uint64(len(w.directory))})
	}
	if err == nil {
		err = f.Sync()
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
	w := &writer{image: s.Image, id: s.ID, blocks: Buffer(stepBlocks * lookup.BlockSize)}
	return s.chain(w).Hash(ctx, s.Below)
}

func (s Sealing) chain(w *writer) Chain {
	return append(s.Older[:len(s.Older):len(s.Older)], Layer{s.Table, w})
}

// writer computes sums, in ascending order, and writes each page when it is
// full; the directory, which is all that it keeps, comes last.
type writer struct {
	image      image.Image
	id         image.ID
	file       io.WriterAt // nil: pages are not written
	dataBlocks uint64
	packing    packing
	directory  directory
	room       page
	blocks     []byte
}

// Sums implements Source: with what the image reads now.
func (w *writer) Sums(first lookup.BlockNum, to []Sum) error {
	data := w.blocks[:len(to)*lookup.BlockSize]
	if _, err := w.image.ReadAt(data, int64(first)*lookup.BlockSize); err != nil {
		return err
	}
	for i := range to {
		to[i] = SumOf(data[i*lookup.BlockSize:][:lookup.BlockSize])
		if err := w.pack(first+lookup.BlockNum(i), to[i]); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) pack(b lookup.BlockNum, s Sum) error {
	if w.file == nil {
		return nil
	}
	w.dataBlocks++
	if w.packing.add(b, s) {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.packing.add(b, s) // a page that is empty has room
	return nil
}

func (w *writer) flush() error {
	if w.packing.empty() {
		return nil
	}
	number := len(w.directory)
	w.directory = append(w.directory, w.packing.first)
	w.packing.encode((*sumPage)(&w.room), w.id, number)
	return w.write(number)
}

// write writes the page in room, -1 as the header.
func (w *writer) write(number int) error {
	_, err := w.file.WriteAt(w.room[:], pageAt(number))
	return err
}

// finish writes what is behind the header.
func (w *writer) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	for i := range w.directory.pages() {
		w.directory.encode(&w.room, w.id, i)
		if err := w.write(w.directory.number(i)); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) writeHeader(h header) error {
	h.encode(&w.room)
	return w.write(-1)
}

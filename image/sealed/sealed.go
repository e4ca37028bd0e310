// Package sealed gives a sealed image checksums: rot in it is found, not served.
package sealed

import (
	"errors"
	"fmt"
	"sync"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// ErrSealed is returned by writes to a sealed image.
var ErrSealed = errors.New("image: sealed")

// Image is an image.Image that nobody writes to, and the sums of its blocks. A
// read returns bytes whose sums it has compared, or an error that wraps
// image.ErrCorrupt. Blocks without a sum, those that its table had not as Data
// when it was sealed, read as corrupt: nobody asks for them unless the table has
// rotted.
//
//  1. No byte is served unverified: a read that touches part of a block reads
//     all of it.
//  2. One block that is bad makes only the requests that touch it fail.
//  3. A checksum file that is lost or damaged makes the image unreadable, not
//     unverified (Lost).
//
// Sums are read when they are needed and kept in a Cache. Rejected: sums in
// memory (1 GiB of them for each TiB), and a mapping of the file (an error of
// the disk would be a signal, and a page that is not in memory would stop a
// thread of the server and not only a request).
type Image struct {
	image.Image // as it was before it was sealed
	id          image.ID
	sums        *Sums // nil if lost
	lost        error
	cache       *Cache
	corrupt     func(image.ID, lookup.BlockNum)
}

var (
	_ image.Image = (*Image)(nil)
	_ Source      = (*Image)(nil)
)

// New joins an image and its sums. The Image closes both. corrupt is called at
// each read of a block that is bad, by the reader: it must not wait.
func New(bare image.Image, s *Sums, c *Cache, corrupt func(image.ID, lookup.BlockNum)) *Image {
	return &Image{Image: bare, id: s.id, sums: s, cache: c, corrupt: corrupt}
}

// Lost is a sealed image without sums: cause, which wraps image.ErrCorrupt, is
// what every read returns.
func Lost(bare image.Image, id image.ID, cause error) *Image {
	return &Image{Image: bare, id: id, lost: cause}
}

// Lost returns why the image has no sums, nil if it has.
func (im *Image) Lost() error { return im.lost }

// CloseSums closes the checksum file and leaves the image as it was before New.
func (im *Image) CloseSums() error { return im.sums.Close() }

// ReadAt implements image.Image.
func (im *Image) ReadAt(p []byte, off int64) (n int, err error) { return im.read(p, off, true) }

// TryReadAt implements image.Image: it would have to wait also for sums that
// are not in the cache.
func (im *Image) TryReadAt(p []byte, off int64) (n int, err error) { return im.read(p, off, false) }

func (im *Image) read(p []byte, off int64, wait bool) (n int, err error) {
	if err := image.CheckRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	if im.lost != nil {
		return 0, im.lost
	}
	for n < len(p) {
		at := off + int64(n)
		b, within, rest := lookup.BlockNum(at/lookup.BlockSize), int(at%lookup.BlockSize), p[n:]
		var m int
		if within != 0 || len(rest) < lookup.BlockSize {
			m, err = im.readPart(rest, b, within, wait)
		} else {
			m, err = im.readBlocks(rest, b, wait)
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// readBlocks reads and verifies whole blocks, at the start of p: as many as fit,
// and have their sums in one page.
func (im *Image) readBlocks(p []byte, b lookup.BlockNum, wait bool) (n int, err error) {
	sums, err := im.find(b, wait)
	if err != nil {
		if errors.Is(err, image.ErrCorrupt) {
			im.corrupt(im.id, b)
		}
		return 0, err
	}
	count := min(len(p)/lookup.BlockSize, sums.count())
	p = p[:count*lookup.BlockSize]
	if wait {
		_, err = im.Image.ReadAt(p, int64(b)*lookup.BlockSize)
	} else {
		_, err = im.Image.TryReadAt(p, int64(b)*lookup.BlockSize)
	}
	if err != nil {
		return 0, err
	}
	for i := range count {
		if SumOf(p[i*lookup.BlockSize:][:lookup.BlockSize]) != sums.at(i) {
			return 0, im.bad(b + lookup.BlockNum(i))
		}
	}
	return len(p), nil
}

// readPart reads what p asks of one block, by way of all of it.
func (im *Image) readPart(p []byte, b lookup.BlockNum, within int, wait bool) (n int, err error) {
	whole := blocks.Get().(*[lookup.BlockSize]byte)
	defer blocks.Put(whole)
	if _, err := im.readBlocks(whole[:], b, wait); err != nil {
		return 0, err
	}
	return copy(p, whole[within:]), nil
}

var blocks = sync.Pool{New: func() any { return new([lookup.BlockSize]byte) }}

// find returns the sums of block b and of those that follow it in its page.
func (im *Image) find(b lookup.BlockNum, wait bool) (packed, error) {
	if number := im.sums.directory.find(b); number >= 0 {
		p, err := im.page(number, wait)
		if err != nil {
			return nil, err
		}
		if sums := p.from(b); sums != nil {
			return sums, nil
		}
	}
	return nil, badBlock(im.id, b)
}

// page returns a page of sums, verified.
func (im *Image) page(number int, wait bool) (*sumPage, error) {
	if p := im.cache.find(im.sums.opened, number); p != nil {
		return p, nil
	}
	if !wait {
		return nil, image.ErrWouldBlock
	}
	p := new(sumPage)
	if err := im.sums.load(p, number); err != nil {
		return nil, err
	}
	im.cache.add(im.sums.opened, number, p)
	return p, nil
}

func (im *Image) bad(b lookup.BlockNum) error {
	im.corrupt(im.id, b)
	return badBlock(im.id, b)
}

func badBlock(id image.ID, b lookup.BlockNum) error {
	return fmt.Errorf("%w: block %d of image %d does not hold what was sealed", image.ErrCorrupt, b, id)
}

// Sums implements Source.
func (im *Image) Sums(first lookup.BlockNum, to []Sum) error {
	if im.lost != nil {
		return im.lost
	}
	return fill(first, to, func(b lookup.BlockNum) (packed, error) { return im.find(b, true) })
}

// WriteAt implements image.Image: it is an error.
func (im *Image) WriteAt(p []byte, off int64) (n int, err error) {
	if err := image.CheckRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("write to image %d: %w", im.id, ErrSealed)
}

// Zero implements image.Image: it is an error. Punch is none, for blocks that
// nobody sees any more.
func (im *Image) Zero(off, lengthBytes int64) error {
	if err := image.CheckRange(off, lengthBytes); err != nil {
		return err
	}
	return fmt.Errorf("zero in image %d: %w", im.id, ErrSealed)
}

// Allocated implements image.Image, with the checksum file.
func (im *Image) Allocated() (sizeBytes int64, err error) {
	sizeBytes, err = im.Image.Allocated()
	if err != nil || im.sums == nil {
		return sizeBytes, err
	}
	n, err := im.sums.file.Allocated()
	return sizeBytes + n, err
}

// Close implements image.Image. The cache forgets the sums: nobody reads them
// any more.
func (im *Image) Close() error {
	err := im.Image.Close()
	if im.sums == nil {
		return err
	}
	im.forget()
	return errors.Join(err, im.sums.Close())
}

func (im *Image) forget() {
	for number := range im.sums.directory {
		im.cache.drop(im.sums.opened, number)
	}
}

// Renewed is the image with the checksum file s in the place of its own, which was
// replaced. Requests that run may go on with the old one: the file that they read, and
// nobody writes, is closed when the last of them has let it go (vfs.File).
func (im *Image) Renewed(s *Sums) *Image {
	im.forget()
	return New(im.Image, s, im.cache, im.corrupt)
}

// DataBlocks is how many blocks have a sum; 0 if the sums are lost.
func (im *Image) DataBlocks() uint64 {
	if im.sums == nil {
		return 0
	}
	return im.sums.DataBlocks()
}

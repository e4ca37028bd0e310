package sealed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// A checksum file `0123456789abcdef.sum` holds the sums of the blocks that an
// image has as Data in its table. It is pages of 4096 bytes, little endian: the
// header, pages of sums (sumPage) of blocks that ascend from one to the next, and
// the directory, which says where each begins (directory). Pages behind the
// header are numbered from 0. The header:
//
//	   0  magic "TideSums"
//	   8  u32 version 2, u32 zero
//	  16  u64 image ID
//	  24  u64 size of the VLUN in bytes
//	  32  u64 number of blocks that have a sum
//	  40  Hash of the VLUN's view, 32 bytes
//	  72  u64 number of pages of sums
//	  80  zeros
//	4092  u32 CRC-32C of bytes 0-4091
type header struct {
	id         image.ID
	sizeBytes  int64
	dataBlocks uint64
	hash       Hash
	pages      uint64
}

const (
	sumsMagic   = "TideSums"
	sumsVersion = 2
)

func (h header) encode(to *page) {
	clear(to[:])
	copy(to[:], sumsMagic)
	binary.LittleEndian.PutUint32(to[8:], sumsVersion)
	binary.LittleEndian.PutUint64(to[16:], uint64(h.id))
	binary.LittleEndian.PutUint64(to[24:], uint64(h.sizeBytes))
	binary.LittleEndian.PutUint64(to[32:], h.dataBlocks)
	copy(to[40:], h.hash[:])
	binary.LittleEndian.PutUint64(to[72:], h.pages)
	binary.LittleEndian.PutUint32(to[crcAt:], crc32.Checksum(to[:crcAt], castagnoli))
}

func decodeHeader(from *page, id image.ID) (h header, err error) {
	if string(from[:8]) != sumsMagic {
		return header{}, errors.New("no checksum file")
	}
	if crc32.Checksum(from[:crcAt], castagnoli) != binary.LittleEndian.Uint32(from[crcAt:]) {
		return header{}, errors.New("CRC mismatch in the header")
	}
	if v := binary.LittleEndian.Uint32(from[8:]); v != sumsVersion {
		return header{}, fmt.Errorf("version %d is not %d", v, sumsVersion)
	}
	h.id = image.ID(binary.LittleEndian.Uint64(from[16:]))
	h.sizeBytes = int64(binary.LittleEndian.Uint64(from[24:]))
	h.dataBlocks = binary.LittleEndian.Uint64(from[32:])
	copy(h.hash[:], from[40:])
	h.pages = binary.LittleEndian.Uint64(from[72:])
	if h.id != id {
		return header{}, fmt.Errorf("it belongs to image %d", h.id)
	}
	return h, nil
}

// directory is the first block of each page of sums. In the file it is pages
// too, of 511 entries each:
//
//	   0  up to 511 times u64: the first block of a page of sums
//	      zeros
//	4092  u32 CRC-32C (page.bind)
//
// In memory it takes 8 bytes for each page of sums: 2 MiB for 1 TiB of data, and
// 5 MiB if no block has a neighbour, beside at least 128 MiB of the image's
// table. It is read when the file is opened, not when it is first needed: so no
// request waits for it, and a file whose directory is damaged is one that is
// lost, and made anew.
type directory []lookup.BlockNum

const pageEntries = crcAt / 8

// pages returns how many pages of the file the directory takes.
func (d directory) pages() int { return (len(d) + pageEntries - 1) / pageEntries }

// part is what page i of the directory is of.
func (d directory) part(i int) directory {
	return d[i*pageEntries : min((i+1)*pageEntries, len(d))]
}

// number of a page of the directory, in the file.
func (d directory) number(i int) int { return len(d) + i }

func (d directory) encode(to *page, id image.ID, i int) {
	clear(to[:])
	for j, first := range d.part(i) {
		binary.LittleEndian.PutUint64(to[8*j:], uint64(first))
	}
	to.bind(id, d.number(i))
}

func (d directory) decode(from *page, id image.ID, i int) error {
	if !from.sound(id, d.number(i)) {
		return fmt.Errorf("%w: page %d of the directory is damaged", image.ErrCorrupt, i)
	}
	for j := range d.part(i) {
		d.part(i)[j] = lookup.BlockNum(binary.LittleEndian.Uint64(from[8*j:]))
	}
	return nil
}

// find returns the number of the page that has the sum of block b if any page
// has, -1 if b is before the first.
func (d directory) find(b lookup.BlockNum) int {
	n, end := 0, len(d) // pages before n begin at or before b, those from end on behind it
	for n < end {
		if middle := (n + end) / 2; d[middle] <= b {
			n = middle + 1
		} else {
			end = middle
		}
	}
	return n - 1
}

// Sums is an open checksum file. Any number of goroutines may use it.
type Sums struct {
	header
	directory directory
	file      vfs.File
	opened    uint64 // the number of this opening: the file may be replaced
}

var openings atomic.Uint64

// OpenSums opens the checksum file of an image; with direct to read past the
// page cache, which fails with syscall.EINVAL where the file system can't. An
// error that wraps image.ErrCorrupt says that it is missing or damaged.
func OpenSums(fsys vfs.FS, dir string, id image.ID, direct bool) (*Sums, error) {
	flag := os.O_RDONLY
	if direct {
		flag |= syscall.O_DIRECT
	}
	f, err := fsys.Open(sumsPath(dir, id), flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: image %d has lost its checksum file: %w", image.ErrCorrupt, id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the sums of image %d: %w", id, err)
	}
	s := &Sums{file: f, opened: openings.Add(1)}
	if err := s.readHeader(id); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", sumsPath(dir, id), err), f.Close())
	}
	if err := s.readDirectory(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", sumsPath(dir, id), err), f.Close())
	}
	return s, nil
}

func (s *Sums) readHeader(id image.ID) (err error) {
	room := newPage()
	if err := s.readPage(room, -1); err != nil {
		return err
	}
	if s.header, err = decodeHeader(room, id); err != nil {
		return fmt.Errorf("%w: %w", image.ErrCorrupt, err)
	}
	return nil
}

func (s *Sums) readDirectory() error {
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	if s.pages > uint64(size)/pageBytes { // before room is made for it
		return fmt.Errorf("%w: it is cut off: it has %d bytes for %d pages of sums", image.ErrCorrupt, size, s.pages)
	}
	s.directory = make(directory, s.pages)
	room := newPage()
	for i := range s.directory.pages() {
		if err := s.readPage(room, s.directory.number(i)); err != nil {
			return err
		}
		if err := s.directory.decode(room, s.id, i); err != nil {
			return err
		}
	}
	return nil
}

// Hash is that of the view whose newest image it is.
func (s *Sums) Hash() Hash { return s.hash }

// DataBlocks is how many blocks have a sum.
func (s *Sums) DataBlocks() uint64 { return s.dataBlocks }

// Close closes the file.
func (s *Sums) Close() error { return s.file.Close() }

// readPage reads a page of the file; -1 is the header. What lies behind the end
// of the file is zeros.
func (s *Sums) readPage(to *page, number int) error {
	n, err := s.file.ReadAt(to[:], pageAt(number))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(to[n:])
	return nil
}

// pageAt returns where a page lies in the file.
func pageAt(number int) int64 { return int64(1+number) * pageBytes }

// load reads a page of sums. If the file was opened to read past the page cache,
// p is of newPage.
func (s *Sums) load(p *sumPage, number int) error {
	if err := s.readPage((*page)(p), number); err != nil {
		return fmt.Errorf("read the sums of image %d: %w", s.id, err)
	}
	return p.check(s.id, number, s.directory[number])
}

// Sums implements Source.
func (s *Sums) Sums(first lookup.BlockNum, to []Sum) error {
	c := newCursor(s)
	return fill(first, to, func(b lookup.BlockNum) (packed, error) {
		sums, _, err := c.find(b, 1)
		return sums, err
	})
}

// cursor finds sums in a file for one who asks for blocks that ascend: it keeps
// a page.
type cursor struct {
	sums   *Sums
	number int // of page, -1: none
	page   *sumPage
	wrong  error // the page can't be read, or is damaged
}

func newCursor(s *Sums) *cursor { return &cursor{sums: s, number: -1, page: (*sumPage)(newPage())} }

// find returns the sums of block b and of those that follow it in its page, or
// why it has none; and of how many blocks from b on, at most limit, that is.
func (c *cursor) find(b lookup.BlockNum, limit uint64) (found packed, run uint64, err error) {
	dir := c.sums.directory
	if number := dir.find(b); number >= 0 {
		if number != c.number {
			c.number, c.wrong = number, c.sums.load(c.page, number)
		}
		if c.wrong != nil {
			if number+1 < len(dir) {
				limit = min(limit, uint64(dir[number+1]-b))
			}
			return nil, limit, c.wrong
		}
		found = c.page.from(b)
	}
	if found == nil {
		return nil, 1, badBlock(c.sums.id, b)
	}
	return found, min(limit, uint64(found.count())), nil
}

// fill is Source.Sums of one who can give the sums of a block and of some that
// follow it.
func fill(first lookup.BlockNum, to []Sum, from func(lookup.BlockNum) (packed, error)) error {
	for len(to) > 0 {
		s, err := from(first)
		if err != nil {
			return err
		}
		n := min(s.count(), len(to))
		for i := range n {
			to[i] = s.at(i)
		}
		first, to = first+lookup.BlockNum(n), to[n:]
	}
	return nil
}

const sumsSuffix = ".sum"

func sumsPath(dir string, id image.ID) string {
	return path.Join(dir, fmt.Sprintf("%016x%s", uint64(id), sumsSuffix))
}

// Buffer returns memory that begins at a multiple of 4096, as reads past the
// page cache ask.
func Buffer(sizeBytes int) []byte {
	room := make([]byte, sizeBytes+pageBytes)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(room)))) & (pageBytes - 1)
	return room[skip:][:sizeBytes:sizeBytes]
}

func newPage() *page { return (*page)(Buffer(pageBytes)) }

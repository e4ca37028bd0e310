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
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// A checksum file `0123456789abcdef.sum` holds the sums of the blocks that an
// image has as Data in its table. It is pages of 4096 bytes, little endian. The
// first is the header:
//
//	   0  magic "TideSums"
//	   8  u32 version 1, u32 zero
//	  16  u64 image ID
//	  24  u64 size of the VLUN in bytes
//	  32  u64 number of blocks that have a sum
//	  40  Hash of the VLUN's view, 32 bytes
//	  72  zeros
//	4092  u32 CRC-32C of bytes 0-4091
//
// Page 1+i is of blocks i*PageBlocks and on:
//
//	   0  PageBlocks times u32: the Sum of the block, 0 if it has none
//	4092  u32 CRC-32C of image ID, i (u64 each) and bytes 0-4091
//
// A page of blocks that have no sum is a hole. Its zeros are no valid page, nor
// is a page of another image or place.
//
// A page is one block of the disk, so that it can be read past the page cache
// and its holes cost nothing. Rejected: 1024 sums and the CRC in 4100 bytes,
// which lie across two.
type header struct {
	id         image.ID
	sizeBytes  int64
	dataBlocks uint64
	hash       Hash
}

const (
	sumsMagic   = "TideSums"
	sumsVersion = 1
	pageBytes   = 4096
	crcAt       = pageBytes - 4

	// PageBlocks is how many blocks one page of sums is of.
	PageBlocks = crcAt / 4
)

// sumPage is a page of sums, taken apart.
type sumPage [PageBlocks]Sum

func (h header) encode(to *[pageBytes]byte) {
	clear(to[:])
	copy(to[:], sumsMagic)
	binary.LittleEndian.PutUint32(to[8:], sumsVersion)
	binary.LittleEndian.PutUint64(to[16:], uint64(h.id))
	binary.LittleEndian.PutUint64(to[24:], uint64(h.sizeBytes))
	binary.LittleEndian.PutUint64(to[32:], h.dataBlocks)
	copy(to[40:], h.hash[:])
	binary.LittleEndian.PutUint32(to[crcAt:], crc32.Checksum(to[:crcAt], castagnoli))
}

func decodeHeader(from *[pageBytes]byte, id image.ID) (h header, err error) {
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
	if h.id != id {
		return header{}, fmt.Errorf("it belongs to image %d", h.id)
	}
	return h, nil
}

func pageCRC(page []byte, id image.ID, number uint64) uint32 {
	var seed [16]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(id))
	binary.LittleEndian.PutUint64(seed[8:], number)
	return crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, page)
}

func (p *sumPage) encode(to *[pageBytes]byte, id image.ID, number uint64) {
	for i, s := range p {
		binary.LittleEndian.PutUint32(to[4*i:], uint32(s))
	}
	binary.LittleEndian.PutUint32(to[crcAt:], pageCRC(to[:crcAt], id, number))
}

func (p *sumPage) decode(from *[pageBytes]byte, id image.ID, number uint64) error {
	if pageCRC(from[:crcAt], id, number) != binary.LittleEndian.Uint32(from[crcAt:]) {
		return fmt.Errorf("%w: the sums of blocks %d to %d of image %d are damaged", image.ErrCorrupt,
			number*PageBlocks, (number+1)*PageBlocks-1, id)
	}
	for i := range p {
		p[i] = Sum(binary.LittleEndian.Uint32(from[4*i:]))
	}
	return nil
}

// place returns where the sum of a block is.
func place(b lookup.BlockNum) (page uint64, index int) {
	return uint64(b) / PageBlocks, int(uint64(b) % PageBlocks)
}

// Sums is an open checksum file. Any number of goroutines may use it.
type Sums struct {
	header
	file vfs.File
}

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
	s := &Sums{file: f}
	if err := s.readHeader(id); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", sumsPath(dir, id), err), f.Close())
	}
	return s, nil
}

func (s *Sums) readHeader(id image.ID) (err error) {
	room := Buffer(pageBytes)
	if err := s.readPage(room, 0); err != nil {
		return err
	}
	if s.header, err = decodeHeader((*[pageBytes]byte)(room), id); err != nil {
		return fmt.Errorf("%w: %w", image.ErrCorrupt, err)
	}
	return nil
}

// Hash is that of the view whose newest image it is.
func (s *Sums) Hash() Hash { return s.hash }

// DataBlocks is how many blocks have a sum.
func (s *Sums) DataBlocks() uint64 { return s.dataBlocks }

// Close closes the file.
func (s *Sums) Close() error { return s.file.Close() }

// readPage fills room, a whole page, with one of the file. What lies behind its
// end is zeros.
func (s *Sums) readPage(room []byte, filePage uint64) error {
	n, err := s.file.ReadAt(room, int64(filePage)*pageBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(room[n:])
	return nil
}

// load reads the sums of one page, by way of room, an aligned page.
func (s *Sums) load(p *sumPage, number uint64, room []byte) error {
	if err := s.readPage(room, 1+number); err != nil {
		return fmt.Errorf("read the sums of image %d: %w", s.id, err)
	}
	return p.decode((*[pageBytes]byte)(room), s.id, number)
}

// Sums implements Source.
func (s *Sums) Sums(first lookup.BlockNum, to []Sum) error {
	var p sumPage
	number, index := place(first)
	if err := s.load(&p, number, Buffer(pageBytes)); err != nil {
		return err
	}
	copy(to, p[index:])
	return nil
}

// RemoveSums unlinks the checksum file of an image; none is no error.
func RemoveSums(fsys vfs.FS, dir string, id image.ID) error {
	if err := fsys.Remove(sumsPath(dir, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the sums of image %d: %w", id, err)
	}
	return nil
}

// ListSums returns the images that have a checksum file in dir, ascending.
func ListSums(fsys vfs.FS, dir string) (ids []image.ID, err error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list checksum files: %w", err)
	}
	for _, name := range names {
		digits, isSums := strings.CutSuffix(name, sumsSuffix)
		n, err := strconv.ParseUint(digits, 16, 64)
		if id := image.ID(n); isSums && err == nil && path.Base(sumsPath(dir, id)) == name {
			ids = append(ids, id)
		}
	}
	return ids, nil
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

package journal

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// All numbers on disk are little-endian; every CRC is CRC32C.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	version = 2 // of the base and the witness

	// A segment of version 2 is one whose commits have no more than the LSN.
	segmentVersion       = 3
	oldestSegmentVersion = 2
)

// segment is one file `journal-NUMBER` (eight hex digits or more): a header,
// then frames without a gap.
//
//	header, 72 bytes
//	 0  magic "TideJrnl"
//	 8  u32 version
//	12  u32 salt of the writer's life, at random; 0 in version 2
//	16  u64 volume ID
//	24  u64 number of the segment
//	32  u64 life: number of the first segment of this writer's life
//	40  u64 LSN before the first frame
//	48  [16] writer's boot ID, hashed
//	64  u32 CRC of the frame that the segment goes on from; 0 in the first of a life
//	68  u32 CRC of bytes 0-67
//
//	frame, padded with zeros to a multiple of 4 bytes
//	 0  u32 length of the payload in bytes
//	 4  u32 CRC of the frame, padding and all, without these four bytes, from the salt on
//	 8  u32 prev: CRC of the frame before, or of the header
//	12  u32 durable: the writer had synced this file at least up to here
//	16  [4] kind, exclusive-or the salt
//	20  payload
//
// The salt keeps what a client has stored (J10) from looking like a frame: a volume may
// hold a journal, or one that was made up.
//
// prev chains the frames: one that was not written right after the frame before
// it, such as an old one in its place, doesn't continue the chain. A frame that
// the chain doesn't reach can still be told from garbage, and durable then tells
// rot from a torn tail (see findRot).
//
// Zeros may follow the last frame: room for the next ones, see makeRoom. They are
// no frame.
type segment struct {
	header
	headerCRC uint32
	name      string
	file      vfs.File
	crc       uint32 // of the last frame, or of the header
	end       int64  // offset behind the last frame
	staged    []byte // the last frames, which the file has not yet (J11)
	room      int64  // offset behind the zeros that follow it, if it is larger
	stepBytes int64  // of room that is made at a time
	after     LSN    // LSN behind the last frame
	// durable is the offset up to which a sync has returned.
	durable int64
}

const (
	segmentMagic = "TideJrnl"
	segmentStem  = "journal-"
	headerBytes  = 72
	frameBytes   = 20 // of a frame without its payload
	frameAlign   = 4
	// maxPayloadBytes keeps the length of a frame within its field, and what a
	// reader must hold in memory within reason.
	maxPayloadBytes = 256 << 20
)

type header struct {
	volume uint64
	number uint64
	life   uint64
	first  LSN
	boot   bootID
	prev   uint32
	salt   uint32
}

func newSalt() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint32(b[:])
}

// bootID is the hash of what vfs.FS.BootID returns, whose length is not fixed.
type bootID [16]byte

func readBootID(fsys vfs.FS) (bootID, error) {
	text, err := fsys.BootID()
	if err != nil {
		return bootID{}, fmt.Errorf("boot ID: %w", err)
	}
	sum := sha256.Sum256([]byte(text))
	return bootID(sum[:16]), nil
}

func (h *header) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, segmentVersion)
	b = binary.LittleEndian.AppendUint32(b, h.salt)
	b = binary.LittleEndian.AppendUint64(b, h.volume)
	b = binary.LittleEndian.AppendUint64(b, h.number)
	b = binary.LittleEndian.AppendUint64(b, h.life)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.first))
	b = append(b, h.boot[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.prev)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// errNoHeader: the bytes are no whole header. A crash can leave that in a
// segment that nothing was committed in yet.
var errNoHeader = errors.New("no valid header")

func parseHeader(b []byte) (h header, crc uint32, err error) {
	if len(b) < headerBytes || string(b[:8]) != segmentMagic {
		return header{}, 0, errNoHeader
	}
	crc = binary.LittleEndian.Uint32(b[68:])
	if crc != crc32.Checksum(b[:68], castagnoli) {
		return header{}, 0, errNoHeader
	}
	salt := binary.LittleEndian.Uint32(b[12:])
	if v := binary.LittleEndian.Uint32(b[8:]); v < oldestSegmentVersion || v > segmentVersion || v == oldestSegmentVersion && salt != 0 {
		return header{}, 0, fmt.Errorf("%w %d", ErrVersion, v)
	}
	return header{
		volume: binary.LittleEndian.Uint64(b[16:]),
		number: binary.LittleEndian.Uint64(b[24:]),
		life:   binary.LittleEndian.Uint64(b[32:]),
		first:  LSN(binary.LittleEndian.Uint64(b[40:])),
		boot:   bootID(b[48:64]),
		prev:   binary.LittleEndian.Uint32(b[64:]),
		salt:   salt,
	}, crc, nil
}

func segmentName(dir string, number uint64) string {
	return path.Join(dir, fmt.Sprintf("%s%08x", segmentStem, number))
}

// segmentNumber is the reverse of segmentName for the base of a name.
func segmentNumber(base string) (uint64, bool) {
	digits, ok := strings.CutPrefix(base, segmentStem)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil && n > 0 && path.Base(segmentName("", n)) == base
}

// makeSegmentFile makes an empty file for a segment, with a durable directory
// entry: what a crash left under the name never counted.
func makeSegmentFile(o *Options, number uint64) (vfs.File, error) {
	name := segmentName(o.Dir, number)
	// A new file also if one is there: where the sync of its entry failed, a
	// second sync would prove nothing.
	if err := o.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make segment: %w", err)
	}
	f, err := o.FS.Open(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make segment: %w", err)
	}
	if err := o.FS.SyncDir(o.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("make segment %s: %w", name, err), f.Close())
	}
	return f, nil
}

// kind is four lower-case letters.
type kind [4]byte

var (
	kindChanges = kind([]byte("chng")) // changes, one after the other, see appendChange
	kindCommit  = kind([]byte("cmit")) // what a commit covers, see appendCommit
	kindDrained = kind([]byte("drnd")) // u64 image IDs
	kindNext    = kind([]byte("next")) // nothing: the segment goes on in the next one
	kindClosed  = kind([]byte("clsd")) // nothing: the journal was closed, all is in the tables
)

// salted is what stands in a frame for the kind, and the reverse.
func (k kind) salted(salt uint32) (s kind) {
	binary.LittleEndian.PutUint32(s[:], binary.LittleEndian.Uint32(k[:])^salt)
	return s
}

// plausible spares a reader the CRC of what is garbage at first sight.
func (k kind) plausible() bool {
	for _, c := range k {
		if c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}

type frame struct {
	kind    kind
	crc     uint32
	prev    uint32
	durable uint32
	payload []byte // valid until the reader's next step
	off     int64  // of the frame in its file
	end     int64
}

// beginFrame appends the room of a frame's head to b. The payload is to be
// appended next, then endFrame called with the length that b had before.
func beginFrame(b []byte) []byte {
	return append(b, make([]byte, frameBytes)...)
}

// endFrame fills in the frame that starts at b[start:] and returns its CRC.
func (h *header) endFrame(b []byte, start int, k kind, prev uint32, durable int64) ([]byte, uint32) {
	payloadBytes := len(b) - start - frameBytes
	for len(b)%frameAlign != start%frameAlign {
		b = append(b, 0)
	}
	head := b[start:]
	binary.LittleEndian.PutUint32(head[0:], uint32(payloadBytes))
	binary.LittleEndian.PutUint32(head[8:], prev)
	binary.LittleEndian.PutUint32(head[12:], uint32(min(durable, math.MaxUint32)))
	salted := k.salted(h.salt)
	copy(head[16:], salted[:])
	crc := frameCRC(head, h.salt)
	binary.LittleEndian.PutUint32(head[4:], crc)
	return b, crc
}

func frameCRC(b []byte, salt uint32) uint32 {
	return crc32.Update(crc32.Update(salt, castagnoli, b[:4]), castagnoli, b[8:])
}

// frameLen returns the length in bytes of the frame whose head is b, or false
// if b is not the head of a frame that ends within roomBytes.
func frameLen(b []byte, roomBytes int64, salt uint32) (int64, bool) {
	if len(b) < frameBytes || !kind(b[16:20]).salted(salt).plausible() {
		return 0, false
	}
	payloadBytes := int64(binary.LittleEndian.Uint32(b))
	n := (frameBytes + payloadBytes + frameAlign - 1) &^ (frameAlign - 1)
	return n, payloadBytes <= maxPayloadBytes && n <= roomBytes
}

// parseFrame returns the frame that is exactly b, if its CRC is right.
func parseFrame(b []byte, off int64, salt uint32) (frame, bool) {
	crc := binary.LittleEndian.Uint32(b[4:])
	if crc != frameCRC(b, salt) {
		return frame{}, false
	}
	return frame{
		kind:    kind(b[16:20]).salted(salt),
		crc:     crc,
		prev:    binary.LittleEndian.Uint32(b[8:]),
		durable: binary.LittleEndian.Uint32(b[12:]),
		payload: b[frameBytes : frameBytes+binary.LittleEndian.Uint32(b)],
		off:     off,
		end:     off + int64(len(b)),
	}, true
}

// appendChange: uvarint image, uvarint block, uvarint (count << 2 | state).
func appendChange(b []byte, c Change) []byte {
	b = binary.AppendUvarint(b, uint64(c.Image))
	b = binary.AppendUvarint(b, uint64(c.Block))
	return binary.AppendUvarint(b, c.Count<<2|uint64(c.State))
}

// appendCommit: u64 LSN that the commit covers. Then, where it rests on more than
// that (J10), uvarint count and as many uvarint images that were synced; and for each block uvarint image, uvarint block, and its data.
func appendCommit(b []byte, upTo LSN, on Basis) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(upTo))
	if len(on.Synced) == 0 && len(on.Blocks) == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(on.Synced)))
	for _, id := range on.Synced {
		b = binary.AppendUvarint(b, uint64(id))
	}
	for _, x := range on.Blocks {
		b = binary.AppendUvarint(b, uint64(x.Image))
		b = binary.AppendUvarint(b, uint64(x.Block))
		b = append(b, x.Data[:lookup.BlockSize]...)
	}
	return b
}

// commitment is what a commit frame says.
type commitment struct {
	upTo   LSN
	synced []image.ID
	blocks []heldBlock
}

// heldBlock is a block whose data a payload has from an offset on.
type heldBlock struct {
	image image.ID
	block lookup.BlockNum
	at    int
}

// parseCommit returns what appendCommit was given.
func parseCommit(payload []byte) (c commitment, err error) {
	const lsnBytes = 8
	if len(payload) < lsnBytes {
		return c, fmt.Errorf("%w: truncated commit", ErrCorrupt)
	}
	c.upTo = LSN(binary.LittleEndian.Uint64(payload))
	r := commitReader{rest: payload[lsnBytes:]}
	if len(r.rest) == 0 {
		return c, nil
	}
	for n := r.number(); n > 0 && !r.bad; n-- {
		c.synced = append(c.synced, image.ID(r.number()))
	}
	for len(r.rest) > 0 && !r.bad {
		x := heldBlock{image: image.ID(r.number()), block: lookup.BlockNum(r.number()), at: len(payload) - len(r.rest)}
		r.skip(lookup.BlockSize)
		r.bad = r.bad || x.image == 0 || x.block >= lookup.MaxBlocks
		c.blocks = append(c.blocks, x)
	}
	if r.bad {
		return c, fmt.Errorf("%w: damaged commit up to %d", ErrCorrupt, c.upTo)
	}
	return c, nil
}

// commitReader reads what follows the LSN; bad from the first thing on that is none.
type commitReader struct {
	rest []byte
	bad  bool
}

func (r *commitReader) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	r.skip(n)
	if n <= 0 {
		r.bad = true
	}
	return v
}

func (r *commitReader) skip(n int) {
	if n < 0 || n > len(r.rest) {
		r.bad, r.rest = true, nil
		return
	}
	r.rest = r.rest[n:]
}

func (c Change) valid() bool {
	return c.Image != 0 && c.State <= lookup.Zero && c.Count > 0 &&
		c.Block < lookup.MaxBlocks && c.Count <= uint64(lookup.MaxBlocks-c.Block)
}

// eachChange calls do for each change of a payload, up to the first error.
func eachChange(payload []byte, do func(Change) error) error {
	for len(payload) > 0 {
		var field [3]uint64
		for i := range field {
			v, n := binary.Uvarint(payload)
			if n <= 0 {
				return fmt.Errorf("%w: truncated change", ErrCorrupt)
			}
			field[i], payload = v, payload[n:]
		}
		c := Change{image.ID(field[0]), lookup.BlockNum(field[1]), field[2] >> 2, lookup.State(field[2] & 3)}
		if !c.valid() {
			return fmt.Errorf("%w: change of image %d, block %d, count %d, state %d", ErrCorrupt, c.Image, c.Block, c.Count, c.State)
		}
		if err := do(c); err != nil {
			return err
		}
	}
	return nil
}

// segmentReader follows the chain of one segment's frames.
type segmentReader struct {
	file      io.ReaderAt
	sizeBytes int64
	salt      uint32
	off       int64  // where the next frame should be
	prev      uint32 // what it should go on from
	buf       []byte // bytes of the file from bufOff on
	bufOff    int64
}

const readAheadBytes = 256 << 10

func newSegmentReader(file io.ReaderAt, sizeBytes int64, headerCRC, salt uint32) *segmentReader {
	return &segmentReader{file: file, sizeBytes: sizeBytes, salt: salt, off: headerBytes, prev: headerCRC}
}

// next returns the next frame of the chain, or false where the chain ends: off
// is then the place. The error is one of reading.
func (r *segmentReader) next() (frame, bool, error) {
	f, ok, err := r.frameAt(r.off)
	if err != nil || !ok || f.prev != r.prev {
		return frame{}, false, err
	}
	r.off, r.prev = f.end, f.crc
	return f, true, nil
}

// frameAt returns the frame at off, in the chain or not, if there is one.
func (r *segmentReader) frameAt(off int64) (frame, bool, error) {
	roomBytes := r.sizeBytes - off
	if roomBytes < frameBytes {
		return frame{}, false, nil
	}
	head, err := r.window(off, frameBytes)
	if err != nil {
		return frame{}, false, err
	}
	n, ok := frameLen(head, roomBytes, r.salt)
	if !ok {
		return frame{}, false, nil
	}
	whole, err := r.window(off, n)
	if err != nil {
		return frame{}, false, err
	}
	f, ok := parseFrame(whole, off, r.salt)
	return f, ok, nil
}

// window returns n bytes of the file from off.
func (r *segmentReader) window(off, n int64) ([]byte, error) {
	if off < r.bufOff || off+n > r.bufOff+int64(len(r.buf)) {
		want := min(max(n, readAheadBytes), r.sizeBytes-off)
		if int64(cap(r.buf)) < want {
			r.buf = make([]byte, want)
		}
		r.buf, r.bufOff = r.buf[:want], off
		if got, err := r.file.ReadAt(r.buf, off); int64(got) < want {
			r.buf = r.buf[:0]
			return nil, fmt.Errorf("read at offset %d: %w", off, err)
		}
	}
	return r.buf[off-r.bufOff:][:n], nil
}

// Package stream is the file format in which a snapshot leaves a server and gets
// into another one: whole, or as what has changed since an older snapshot. It is
// read and written from begin to end, so it goes through pipes, in bounded memory
// whatever it says.
//
// A stream is a header, frames, and an end frame that has the totals. Each is bound
// to the one before by its CRC, so one that is cut off, damaged, or put together from
// others is found at the first byte that it matters, at the latest at its end:
// only when Next has returned io.EOF was it whole. docs/stream.md says the same
// for those who read it with other programs.
package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/lookup"
)

// Conditions that a caller branches on.
var (
	// ErrCorrupt: it is no stream, or not all of one, or damaged.
	ErrCorrupt = errors.New("the stream is damaged")
	// ErrVersion: the stream is of another version than this program reads.
	ErrVersion = errors.New("the stream is of an unknown version")
)

// Magic is what every stream begins with, whatever its version.
const Magic = "tidemark stream\n"

// Version of the format that is written, and the only one that is read.
const Version = 1

// MaxDataBytes is the most data of one frame, before it is compressed.
const MaxDataBytes = 1 << 20

// maxSizeBytes bounds what a stream can be of.
const maxSizeBytes = lookup.MaxBlocks * lookup.BlockSize

// maxNameBytes is the longest name of a volume or a snapshot.
const maxNameBytes = 63

// Header says what a stream is of. On the disk, little endian:
//
//	  0  16  "tidemark stream\n"
//	 16  u16 version, 1
//	 18  u16 flags: bit 0, there is a base; the others are 0
//	 20  u32 block size, 4096
//	 24  u64 size of the state in bytes
//	 32  32  content hash of the state
//	 64  u64 size of the base in bytes; 0 if there is none
//	 72  32  content hash of the base; zeros if there is none
//	104  64  name of the volume
//	168  64  name of the snapshot
//	232  64  name of the base, a snapshot of the same volume; empty if there is none
//	296  u32 CRC-32C of bytes 0-295
//
// Names are what they were where the stream was made: a byte that says their
// length, then 63 bytes, those beyond it zero.
type Header struct {
	// Volume and Snapshot name the state.
	Volume, Snapshot string
	// SizeBytes of the state, and Hash of its content (image/sealed).
	SizeBytes int64
	Hash      sealed.Hash
	// Base is what the stream is the difference from; nil if it is all of the state.
	Base *Base
}

// Base is the state that a stream of changes begins from.
type Base struct {
	Snapshot  string
	SizeBytes int64
	Hash      sealed.Hash
}

const (
	headerBytes = 300
	hasBase     = 1 << 0
)

// frame is what leads each extent, and the end. On the disk, little endian:
//
//	 0  u8  kind: 1 data as they are, 2 data compressed with zstd, 3 a hole, 4 the end
//	 1  3   zeros
//	 4  u32 length of the body; not more than 1 MiB
//	 8  u64 number of the frame; the first has 1
//	16  u64 where the extent begins, in bytes; the end: bytes of data in all frames
//	24  u64 length of the extent in bytes; the end: bytes of holes in all frames
//	32  -   body: the data; none for a hole and the end
//	 -  u32 CRC-32C of the CRC before (of the frame before, or the header), bytes
//	        0-31, and the body
//
// Extents ascend and do not overlap. They are of whole blocks, but for the end of a
// state whose size is not. Data are at most 1 MiB, and what is compressed is one
// zstd frame that is shorter than what it is of. After the end nothing follows.
type frame struct {
	kind        byte
	bodyBytes   uint32
	number      uint64
	offsetBytes uint64
	lengthBytes uint64
}

const (
	frameBytes = 32
	crcBytes   = 4
)

const (
	plain      = 1
	compressed = 2
	hole       = 3
	end        = 4
)

// Totals are the sums of a stream's extents.
type Totals struct{ DataBytes, HoleBytes int64 }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// check says what makes a header impossible.
func (h Header) check() error {
	switch {
	case len(h.Volume) > maxNameBytes || len(h.Snapshot) > maxNameBytes:
		return fmt.Errorf("its names are longer than %d bytes", maxNameBytes)
	case h.SizeBytes <= 0 || h.SizeBytes > maxSizeBytes:
		return fmt.Errorf("its state has %d bytes", h.SizeBytes)
	case h.Base == nil:
		return nil
	case len(h.Base.Snapshot) > maxNameBytes:
		return fmt.Errorf("the name of its base is longer than %d bytes", maxNameBytes)
	case h.Base.SizeBytes <= 0 || h.Base.SizeBytes > h.SizeBytes:
		return fmt.Errorf("its base has %d bytes, its state %d", h.Base.SizeBytes, h.SizeBytes)
	}
	return nil
}

func (h Header) encode() []byte {
	b := make([]byte, 0, headerBytes)
	b = append(b, Magic...)
	b = binary.LittleEndian.AppendUint16(b, Version)
	flags, base := uint16(0), Base{}
	if h.Base != nil {
		flags, base = hasBase, *h.Base
	}
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = binary.LittleEndian.AppendUint32(b, lookup.BlockSize)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.SizeBytes))
	b = append(b, h.Hash[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(base.SizeBytes))
	b = append(b, base.Hash[:]...)
	for _, name := range []string{h.Volume, h.Snapshot, base.Snapshot} {
		b = append(b, byte(len(name)))
		b = append(b, name...)
		b = append(b, make([]byte, maxNameBytes-len(name))...)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeHeader(b *[headerBytes]byte) (h Header, err error) {
	if string(b[:len(Magic)]) != Magic {
		return h, fmt.Errorf("%w: it does not begin as one: was it made by tidemark export?", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint16(b[16:]); v != Version {
		return h, fmt.Errorf("%w: %d; this program reads %d", ErrVersion, v, Version)
	}
	if binary.LittleEndian.Uint32(b[headerBytes-crcBytes:]) != crc32.Checksum(b[:headerBytes-crcBytes], castagnoli) {
		return h, fmt.Errorf("%w: wrong CRC of its header", ErrCorrupt)
	}
	flags, block := binary.LittleEndian.Uint16(b[18:]), binary.LittleEndian.Uint32(b[20:])
	if flags&^hasBase != 0 || block != lookup.BlockSize {
		return h, fmt.Errorf("%w: flags %#x, blocks of %d bytes", ErrCorrupt, flags, block)
	}
	var base Base
	var names [3]string
	for i := range names {
		if names[i], err = decodeName(b[104+64*i:][:64]); err != nil {
			return h, err
		}
	}
	h.Volume, h.Snapshot, base.Snapshot = names[0], names[1], names[2]
	h.SizeBytes, base.SizeBytes = int64(binary.LittleEndian.Uint64(b[24:])), int64(binary.LittleEndian.Uint64(b[64:]))
	copy(h.Hash[:], b[32:])
	copy(base.Hash[:], b[72:])
	if flags&hasBase != 0 {
		h.Base = &base
	} else if base != (Base{}) {
		return h, fmt.Errorf("%w: it has a base and says that it has none", ErrCorrupt)
	}
	if err := h.check(); err != nil {
		return h, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return h, nil
}

func decodeName(b []byte) (string, error) {
	n := int(b[0])
	if n > maxNameBytes || strings.Trim(string(b[1+n:]), "\x00") != "" {
		return "", fmt.Errorf("%w: a name of %d bytes", ErrCorrupt, n)
	}
	return string(b[1 : 1+n]), nil
}

func (f frame) encode(b []byte) []byte {
	b = append(b, f.kind, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, f.bodyBytes)
	b = binary.LittleEndian.AppendUint64(b, f.number)
	b = binary.LittleEndian.AppendUint64(b, f.offsetBytes)
	return binary.LittleEndian.AppendUint64(b, f.lengthBytes)
}

func decodeFrame(b *[frameBytes]byte) (f frame, err error) {
	f = frame{
		kind: b[0], bodyBytes: binary.LittleEndian.Uint32(b[4:]), number: binary.LittleEndian.Uint64(b[8:]),
		offsetBytes: binary.LittleEndian.Uint64(b[16:]), lengthBytes: binary.LittleEndian.Uint64(b[24:]),
	}
	if b[1]|b[2]|b[3] != 0 || f.kind < plain || f.kind > end {
		return f, errors.New("no such kind")
	}
	most := uint64(0) // of the body
	switch f.kind {
	case plain:
		most = f.lengthBytes
	case compressed:
		most = f.lengthBytes - 1
	}
	switch body := uint64(f.bodyBytes); {
	case f.kind <= compressed && (f.lengthBytes == 0 || f.lengthBytes > MaxDataBytes):
		return f, fmt.Errorf("%d bytes of data", f.lengthBytes)
	case body > most || f.kind == plain && body < most || f.kind == compressed && body == 0:
		return f, fmt.Errorf("a body of %d bytes", body)
	}
	return f, nil
}

// within tells whether an extent may come behind those that end at afterBytes.
func (f frame) within(afterBytes, sizeBytes int64) bool {
	size := uint64(sizeBytes)
	return f.offsetBytes >= uint64(afterBytes) && f.offsetBytes < size && f.lengthBytes > 0 && f.lengthBytes <= size-f.offsetBytes &&
		f.offsetBytes%lookup.BlockSize == 0 && (f.lengthBytes%lookup.BlockSize == 0 || f.offsetBytes+f.lengthBytes == size)
}

// bind returns the CRC of a frame behind another's.
func bind(before uint32, parts ...[]byte) uint32 {
	var seed [crcBytes]byte
	binary.LittleEndian.PutUint32(seed[:], before)
	crc := crc32.Checksum(seed[:], castagnoli)
	for _, p := range parts {
		crc = crc32.Update(crc, castagnoli, p)
	}
	return crc
}

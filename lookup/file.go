package lookup

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrVersion says that a table file was written by a version of Tidemark that
// this one does not know.
var ErrVersion = errors.New("lookup: unknown version of a table file")

// FileHead is what a table file says beside the table. The file:
//
//	 0  magic "TideTabl"
//	 8  u32 version 2, u32 zero
//	16  u64 owner: a volume's ID, or 0 of an image that many may share
//	24  u64 image ID
//	32  u64 mark: how new the table is, in whatever its owner counts
//	40  body, as EncodeTo writes it
//	 -  u32 CRC-32C of all before
type FileHead struct{ Owner, Image, Mark uint64 }

const (
	fileMagic     = "TideTabl"
	fileVersion   = 2
	fileHeadBytes = 40
	crcBytes      = 4
	atOnceBytes   = 4 << 20 // of a file that is no larger all is in memory while it is decoded
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeFile writes a table file to w. It needs no lock, as EncodeTo. The errors
// are those of w.
func (t *Table) EncodeFile(w io.Writer, h FileHead) error {
	head := append(make([]byte, 0, fileHeadBytes), fileMagic...)
	head = binary.LittleEndian.AppendUint32(head, fileVersion)
	head = binary.LittleEndian.AppendUint32(head, 0)
	head = binary.LittleEndian.AppendUint64(head, h.Owner)
	head = binary.LittleEndian.AppendUint64(head, h.Image)
	head = binary.LittleEndian.AppendUint64(head, h.Mark)
	crc := crc32.New(castagnoli)
	both := io.MultiWriter(w, crc)
	if _, err := both.Write(head); err != nil {
		return err
	}
	if err := t.EncodeTo(both); err != nil {
		return err
	}
	_, err := w.Write(binary.LittleEndian.AppendUint32(nil, crc.Sum32()))
	return err
}

// DecodeFile reads a table file of owner and image, twice if it is large: once for its
// CRC, so that a body that rotted is never decoded, and once for the table. It returns the
// file's mark. decode is Decode or DecodePacked. Errors: ErrCorrupt, ErrVersion, file's.
func DecodeFile(file io.ReaderAt, sizeBytes int64, owner, image uint64, decode func(io.Reader) (*Table, error)) (t *Table, mark uint64, err error) {
	var head [fileHeadBytes]byte
	bodyBytes := sizeBytes - fileHeadBytes - crcBytes
	if bodyBytes < 0 {
		return nil, 0, fmt.Errorf("%w: %d bytes are too few", ErrCorrupt, sizeBytes)
	}
	if sizeBytes <= atOnceBytes {
		whole := make([]byte, sizeBytes)
		if _, err := io.ReadFull(io.NewSectionReader(file, 0, sizeBytes), whole); err != nil {
			return nil, 0, err
		}
		file = bytes.NewReader(whole)
	}
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, fileHeadBytes), head[:]); err != nil {
		return nil, 0, err
	}
	if string(head[:8]) != fileMagic {
		return nil, 0, fmt.Errorf("%w: wrong magic", ErrCorrupt)
	}
	if err := CheckCRC(file, sizeBytes); err != nil {
		return nil, 0, err
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != fileVersion || binary.LittleEndian.Uint32(head[12:]) != 0 {
		return nil, 0, fmt.Errorf("%w: %d", ErrVersion, v)
	}
	if v := binary.LittleEndian.Uint64(head[16:]); v != owner {
		return nil, 0, fmt.Errorf("%w: it belongs to volume %d, not %d", ErrCorrupt, v, owner)
	}
	if v := binary.LittleEndian.Uint64(head[24:]); v != image {
		return nil, 0, fmt.Errorf("%w: it belongs to image %d, not %d", ErrCorrupt, v, image)
	}
	body := bufio.NewReaderSize(io.NewSectionReader(file, fileHeadBytes, bodyBytes), 64<<10)
	if t, err = decode(body); err != nil {
		return nil, 0, err
	}
	if _, err := body.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("%w: bytes behind the table", ErrCorrupt)
	}
	return t, binary.LittleEndian.Uint64(head[32:]), nil
}

// CheckCRC checks that a file of so many bytes ends in the CRC-32C of all before.
func CheckCRC(file io.ReaderAt, sizeBytes int64) error {
	crc := crc32.New(castagnoli)
	if _, err := io.CopyN(crc, io.NewSectionReader(file, 0, sizeBytes), sizeBytes-crcBytes); err != nil {
		return err
	}
	var want [crcBytes]byte
	if _, err := io.ReadFull(io.NewSectionReader(file, sizeBytes-crcBytes, crcBytes), want[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(want[:]) != crc.Sum32() {
		return fmt.Errorf("%w: CRC mismatch", ErrCorrupt)
	}
	return nil
}

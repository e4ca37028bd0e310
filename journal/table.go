package journal

import (
	"bufio"
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

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// A table file `table-IMAGE` (sixteen hex digits) holds the table of one image
// with all changes up to an LSN. An image without one has an empty table there.
//
//	 0  magic "TideTabl"
//	 8  u32 version, u32 zero
//	16  u64 volume ID
//	24  u64 image ID
//	32  u64 LSN
//	40  body, as lookup.Table.EncodeTo writes it
//	 -  u32 CRC of all before
const (
	tableMagic     = "TideTabl"
	tableStem      = "table-"
	tableHeadBytes = 40
	crcBytes       = 4
)

func tableName(dir string, id image.ID) string {
	return path.Join(dir, fmt.Sprintf("%s%016x", tableStem, uint64(id)))
}

// tableImage is the reverse of tableName for the base of a name.
func tableImage(base string) (image.ID, bool) {
	digits, ok := strings.CutPrefix(base, tableStem)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return image.ID(n), err == nil && path.Base(tableName("", image.ID(n))) == base
}

func writeTable(o *Options, id image.ID, t *lookup.Table, lsn LSN) error {
	return vfs.Replace(o.FS, tableName(o.Dir, id), func(w io.Writer) error {
		return encodeTable(w, o.VolumeID, id, t, lsn)
	})
}

func encodeTable(w io.Writer, volume uint64, id image.ID, t *lookup.Table, lsn LSN) error {
	head := append(make([]byte, 0, tableHeadBytes), tableMagic...)
	head = binary.LittleEndian.AppendUint32(head, version)
	head = binary.LittleEndian.AppendUint32(head, 0)
	head = binary.LittleEndian.AppendUint64(head, volume)
	head = binary.LittleEndian.AppendUint64(head, uint64(id))
	head = binary.LittleEndian.AppendUint64(head, uint64(lsn))
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

// readTable returns an empty table and LSN 0 if the image has no file. One that
// holds less than atLeast is ErrCorrupt: it, or its place in the directory, was
// lost, or an old one has come back.
func readTable(o *Options, id image.ID, atLeast LSN) (*lookup.Table, LSN, error) {
	t, lsn, err := readAnyTable(o, id)
	if err == nil && lsn < atLeast {
		err = fmt.Errorf("%w: %s has changes up to %d, and had them up to %d: it was lost, or is an old one",
			ErrCorrupt, tableName(o.Dir, id), lsn, atLeast)
	}
	if err != nil {
		return nil, 0, err
	}
	return t, lsn, nil
}

func readAnyTable(o *Options, id image.ID) (*lookup.Table, LSN, error) {
	name := tableName(o.Dir, id)
	f, err := o.FS.Open(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return lookup.NewTable(), 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open table: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	sizeBytes, err := f.Size()
	if err != nil {
		return nil, 0, fmt.Errorf("read table %s: %w", name, err)
	}
	t, lsn, err := decodeTable(f, sizeBytes, o.VolumeID, id)
	if err != nil {
		return nil, 0, fmt.Errorf("read table %s: %w", name, err)
	}
	return t, lsn, nil
}

// decodeTable reads a file twice: once for its CRC, so that a body that rotted
// is never decoded, and once for the table, which may be large.
func decodeTable(file io.ReaderAt, sizeBytes int64, volume uint64, id image.ID) (*lookup.Table, LSN, error) {
	var head [tableHeadBytes]byte
	bodyBytes := sizeBytes - tableHeadBytes - crcBytes
	if bodyBytes < 0 {
		return nil, 0, fmt.Errorf("%w: %d bytes are too few", ErrCorrupt, sizeBytes)
	}
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, tableHeadBytes), head[:]); err != nil {
		return nil, 0, err
	}
	if string(head[:8]) != tableMagic {
		return nil, 0, fmt.Errorf("%w: wrong magic", ErrCorrupt)
	}
	if err := checkCRC(file, sizeBytes); err != nil {
		return nil, 0, err
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != version || binary.LittleEndian.Uint32(head[12:]) != 0 {
		return nil, 0, fmt.Errorf("%w %d", ErrVersion, v)
	}
	if v := binary.LittleEndian.Uint64(head[16:]); v != volume {
		return nil, 0, fmt.Errorf("%w: it belongs to volume %d, not %d", ErrCorrupt, v, volume)
	}
	if v := binary.LittleEndian.Uint64(head[24:]); v != uint64(id) {
		return nil, 0, fmt.Errorf("%w: it belongs to image %d, not %d", ErrCorrupt, v, id)
	}
	body := bufio.NewReaderSize(io.NewSectionReader(file, tableHeadBytes, bodyBytes), 64<<10)
	t, err := lookup.Decode(body)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if _, err := body.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, 0, fmt.Errorf("%w: bytes behind the table", ErrCorrupt)
	}
	return t, LSN(binary.LittleEndian.Uint64(head[32:])), nil
}

// checkCRC checks that a file ends in the CRC of what stands before.
func checkCRC(file io.ReaderAt, sizeBytes int64) error {
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

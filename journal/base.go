package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
)

// The base file `journal-base` names the first segment that counts. All changes
// before that segment are in the table files. Replacing it is the one step by
// which segments stop to count, so that they may be removed in any order.
//
// It also names the table files. One that is missing, or that holds less than
// it did when the base was written, was lost or is an old one in its place.
//
//	 0  magic "TideBase"
//	 8  u32 version, u32 zero
//	16  u64 volume ID
//	24  u64 number of the first segment
//	32  for each table file, ascending: u64 image ID, u64 LSN that it holds at least
//	 -  u32 CRC of all before
type base struct {
	first  uint64
	tables map[image.ID]LSN
}

const (
	baseFile       = "journal-base"
	baseMagic      = "TideBase"
	baseHeadBytes  = 32
	baseTableBytes = 16
	maxBaseBytes   = 64 << 20 // more tables than a chain has images
)

func baseName(dir string) string { return path.Join(dir, baseFile) }

func writeBase(o *Options, b base) error {
	return vfs.Replace(o.FS, baseName(o.Dir), func(w io.Writer) error {
		_, err := w.Write(encodeBase(o.VolumeID, b))
		return err
	})
}

func encodeBase(volume uint64, base base) []byte {
	b := append(make([]byte, 0, baseHeadBytes+len(base.tables)*baseTableBytes+crcBytes), baseMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, volume)
	b = binary.LittleEndian.AppendUint64(b, base.first)
	for _, id := range slices.Sorted(maps.Keys(base.tables)) {
		b = binary.LittleEndian.AppendUint64(b, uint64(id))
		b = binary.LittleEndian.AppendUint64(b, uint64(base.tables[id]))
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// readBase fails with fs.ErrNotExist if there is no journal in o.Dir.
func readBase(o *Options) (base, error) {
	name := baseName(o.Dir)
	f, err := o.FS.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return base{}, fmt.Errorf("open base: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	b, err := readBaseFile(f)
	if err != nil {
		return base{}, fmt.Errorf("read base %s: %w", name, err)
	}
	found, err := decodeBase(b, o.VolumeID)
	if err != nil {
		return base{}, fmt.Errorf("read base %s: %w", name, err)
	}
	return found, nil
}

func readBaseFile(f vfs.File) ([]byte, error) {
	sizeBytes, err := f.Size()
	if err != nil {
		return nil, err
	}
	if sizeBytes > maxBaseBytes {
		return nil, fmt.Errorf("%w: %d bytes are too many", ErrCorrupt, sizeBytes)
	}
	b := make([]byte, sizeBytes)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, err
	}
	return b, nil
}

func decodeBase(b []byte, volume uint64) (base, error) {
	tablesBytes := len(b) - baseHeadBytes - crcBytes
	if tablesBytes < 0 || string(b[:8]) != baseMagic {
		return base{}, fmt.Errorf("%w: no base file", ErrCorrupt)
	}
	if err := checkCRC(bytes.NewReader(b), int64(len(b))); err != nil {
		return base{}, err
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return base{}, fmt.Errorf("%w %d", ErrVersion, v)
	}
	if v := binary.LittleEndian.Uint64(b[16:]); v != volume {
		return base{}, fmt.Errorf("%w: it belongs to volume %d, not %d", ErrCorrupt, v, volume)
	}
	if tablesBytes%baseTableBytes != 0 {
		return base{}, fmt.Errorf("%w: %d bytes of tables", ErrCorrupt, tablesBytes)
	}
	found := base{first: binary.LittleEndian.Uint64(b[24:]), tables: map[image.ID]LSN{}}
	last := image.ID(0)
	for at := b[baseHeadBytes : len(b)-crcBytes]; len(at) > 0; at = at[baseTableBytes:] {
		id := image.ID(binary.LittleEndian.Uint64(at))
		if id <= last {
			return base{}, fmt.Errorf("%w: table of image %d behind that of %d", ErrCorrupt, id, last)
		}
		found.tables[id], last = LSN(binary.LittleEndian.Uint64(at[8:])), id
	}
	return found, nil
}

// hasBase tells whether there is a journal in o.Dir; an error if it can't be
// told.
func hasBase(o *Options) (bool, error) {
	_, err := readBase(o)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

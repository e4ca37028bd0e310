package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"

	"github.com/tidemark/tidemark/internal/vfs"
)

// The base file `journal-base` names the first segment that counts. All changes
// before that segment are in the table files. Replacing it is the one step by
// which segments stop to count, so that they may be removed in any order.
//
//	 0  magic "TideBase"
//	 8  u32 version, u32 zero
//	16  u64 volume ID
//	24  u64 number of the first segment
//	32  u32 CRC of bytes 0-31
const (
	baseFile  = "journal-base"
	baseMagic = "TideBase"
	baseBytes = 36
)

func baseName(dir string) string { return path.Join(dir, baseFile) }

func writeBase(o *Options, first uint64) error {
	return vfs.Replace(o.FS, baseName(o.Dir), func(w io.Writer) error {
		_, err := w.Write(encodeBase(o.VolumeID, first))
		return err
	})
}

func encodeBase(volume, first uint64) []byte {
	b := append(make([]byte, 0, baseBytes), baseMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, volume)
	b = binary.LittleEndian.AppendUint64(b, first)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// readBase fails with fs.ErrNotExist if there is no journal in o.Dir.
func readBase(o *Options) (first uint64, err error) {
	name := baseName(o.Dir)
	f, err := o.FS.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return 0, fmt.Errorf("open base: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	var room [baseBytes + 1]byte
	n, err := f.ReadAt(room[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read base %s: %w", name, err)
	}
	first, err = decodeBase(room[:n], o.VolumeID)
	if err != nil {
		return 0, fmt.Errorf("read base %s: %w", name, err)
	}
	return first, nil
}

func decodeBase(b []byte, volume uint64) (first uint64, err error) {
	if len(b) != baseBytes || string(b[:8]) != baseMagic {
		return 0, fmt.Errorf("%w: no base file", ErrCorrupt)
	}
	if err := checkCRC(bytes.NewReader(b), baseBytes); err != nil {
		return 0, err
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return 0, fmt.Errorf("%w %d", ErrVersion, v)
	}
	if v := binary.LittleEndian.Uint64(b[16:]); v != volume {
		return 0, fmt.Errorf("%w: it belongs to volume %d, not %d", ErrCorrupt, v, volume)
	}
	return binary.LittleEndian.Uint64(b[24:]), nil
}

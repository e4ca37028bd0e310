package journal

import (
	"errors"
	"fmt"
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
// with all changes up to an LSN, which is its mark (lookup.FileHead). An image
// without one has an empty table there.
const (
	tableStem = "table-"
	crcBytes  = 4
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
		return t.EncodeFile(w, lookup.FileHead{Owner: o.VolumeID, Image: uint64(id), Mark: uint64(lsn)})
	})
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
	t, lsn, err := lookup.DecodeFile(f, sizeBytes, o.VolumeID, uint64(id), lookup.Decode)
	if err != nil {
		return nil, 0, fmt.Errorf("read table %s: %w", name, ownError(err))
	}
	return t, LSN(lsn), nil
}

// ownError makes an error of package lookup one of this.
func ownError(err error) error {
	switch {
	case errors.Is(err, lookup.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case errors.Is(err, lookup.ErrVersion):
		return fmt.Errorf("%w: %w", ErrVersion, err)
	}
	return err
}

// checkCRC checks that a file ends in the CRC of what stands before.
func checkCRC(file io.ReaderAt, sizeBytes int64) error {
	return ownError(lookup.CheckCRC(file, sizeBytes))
}

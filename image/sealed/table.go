package sealed

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

// A sealed image has its table beside it, in `0123456789abcdef.tab` (layout:
// lookup.FileHead, owner 0), so that it can stand in any number of chains. The
// mark counts how often it was written: blocks that nobody sees any more leave it.

const tableSuffix = ".tab"

func tablePath(dir string, id image.ID) string {
	return path.Join(dir, fmt.Sprintf("%016x%s", uint64(id), tableSuffix))
}

// WriteTable writes the table of an image, durably. One goroutine may write that
// of an image at a time.
func WriteTable(fsys vfs.FS, dir string, id image.ID, t *lookup.Table, mark uint64) error {
	err := vfs.Replace(fsys, tablePath(dir, id), func(w io.Writer) error {
		return t.EncodeFile(w, lookup.FileHead{Image: uint64(id), Mark: mark})
	})
	if err != nil {
		return fmt.Errorf("write the table of image %d: %w", id, err)
	}
	return nil
}

// ReadTable reads the table of an image. One that is missing, damaged or older
// than atLeast is image.ErrCorrupt.
func ReadTable(fsys vfs.FS, dir string, id image.ID, atLeast uint64) (t *lookup.Table, mark uint64, err error) {
	name := tablePath(dir, id)
	f, err := fsys.Open(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%w: image %d has lost its table: %w", image.ErrCorrupt, id, err)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open the table of image %d: %w", id, err)
	}
	defer func() { _ = f.Close() }() // only read
	sizeBytes, err := f.Size()
	if err == nil {
		t, mark, err = lookup.DecodeFile(f, sizeBytes, 0, uint64(id), lookup.DecodePacked)
	}
	switch {
	case errors.Is(err, lookup.ErrCorrupt):
		return nil, 0, fmt.Errorf("%s: %w: %w", name, image.ErrCorrupt, err)
	case err != nil:
		return nil, 0, fmt.Errorf("read %s: %w", name, err)
	case mark < atLeast:
		return nil, 0, fmt.Errorf("%s: %w: it was written %d times, and this is the %dth: an old one has come back", name, image.ErrCorrupt, atLeast, mark)
	}
	return t, mark, nil
}

// Remove unlinks what was made for an image beside its data: checksums and
// table. What is missing is no error.
func Remove(fsys vfs.FS, dir string, id image.ID) (err error) {
	for _, name := range []string{sumsPath(dir, id), tablePath(dir, id)} {
		if gone := fsys.Remove(name); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove %s: %w", name, gone))
		}
	}
	return err
}

// List returns the images for which something was made in dir beside their data,
// and the files that a write which was cut short left.
func List(fsys vfs.FS, dir string) (ids []image.ID, halves []string, err error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list checksums and tables: %w", err)
	}
	for _, name := range names {
		stem, suffix := name[:len(name)-len(path.Ext(name))], path.Ext(name)
		if suffix == vfs.TempSuffix && (strings.HasSuffix(stem, tableSuffix) || strings.HasSuffix(stem, sumsSuffix)) {
			halves = append(halves, path.Join(dir, name))
			continue
		}
		n, err := strconv.ParseUint(stem, 16, 64)
		id := image.ID(n)
		if err != nil || suffix != sumsSuffix && suffix != tableSuffix || fmt.Sprintf("%016x", n) != stem {
			continue
		}
		if len(ids) == 0 || ids[len(ids)-1] != id { // names come sorted
			ids = append(ids, id)
		}
	}
	return ids, halves, nil
}

package file

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
)

// Remove unlinks the files of an image, segment 0 last, so that Open finds it
// whole or List still names what is left. It is durable after SyncDir of dir.
// An image that is not there is no error. It must not be open. The options are those
// of Open.
func Remove(fsys vfs.FS, dir string, id image.ID, o Options) error {
	numbers, err := o.segmentNumbers(fsys, dir, id)
	if err != nil {
		return fmt.Errorf("remove image %016x: %w", uint64(id), err)
	}
	for _, number := range slices.Backward(numbers) {
		if err := fsys.Remove(segmentPath(dir, id, number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove image %016x: %w", uint64(id), err)
		}
	}
	return nil
}

// List returns the ids of the images that have any file in dir, ascending:
// also those that a crash left half made or half removed.
func List(fsys vfs.FS, dir string) ([]image.ID, error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var ids []image.ID
	for _, name := range names {
		if id, _, ok := parseName(name); ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// segmentNumbers returns which segments of an image may be there, ascending: exactly
// those that are, if SizeBytes is 0.
func (o *Options) segmentNumbers(fsys vfs.FS, dir string, id image.ID) (numbers []int64, err error) {
	if o.SizeBytes > 0 {
		for n := int64(0); n*cmp.Or(o.SegmentBytes, DefaultSegmentBytes) < o.SizeBytes; n++ {
			numbers = append(numbers, n)
		}
		return numbers, nil
	}
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if nameID, number, ok := parseName(name); ok && nameID == id {
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

func segmentPath(dir string, id image.ID, number int64) string {
	return path.Join(dir, segmentName(id, number))
}

func segmentName(id image.ID, number int64) string {
	name := fmt.Sprintf("%016x.img", uint64(id))
	if number > 0 {
		name += "." + strconv.FormatInt(number, 10)
	}
	return name
}

// parseName takes a file name apart. It knows exactly the names that
// segmentName makes.
func parseName(name string) (id image.ID, number int64, ok bool) {
	digits, rest, found := strings.Cut(name, ".img")
	if !found {
		return 0, 0, false
	}
	value, err := strconv.ParseUint(digits, 16, 64)
	if err != nil {
		return 0, 0, false
	}
	if rest != "" {
		if number, err = strconv.ParseInt(strings.TrimPrefix(rest, "."), 10, 64); err != nil {
			return 0, 0, false
		}
	}
	id = image.ID(value)
	return id, number, segmentName(id, number) == name
}

package vfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
)

// TempSuffix is what Replace adds to a name for the file that it writes
// first. One that a crash left behind means nothing and may be removed.
const TempSuffix = ".tmp"

// Replace is the durable replace of a file: when it returns nil, name holds
// what write wrote, whole, also after a power cut; cut before that, it holds
// the old content or the new, whole either way. The steps are: write a
// temporary file, sync and close it, rename it over name, sync the directory.
//
// On an error the temporary file is removed and the old file stays, with one
// exception: when the last step failed, readers see the new file, and which of
// the two a power cut leaves is not known. The caller must not go on as if
// either were durable.
//
// Replaces of different names may run at the same time, of one name not.
func Replace(fsys FS, name string, write func(io.Writer) error) error {
	temp := name + TempSuffix
	if err := writeSynced(fsys, temp, write); err != nil {
		return fmt.Errorf("replace %s: %w", name, removeAfter(err, fsys, temp))
	}
	return Place(fsys, temp, name)
}

// Place is the second half of Replace, for a temporary file that something else
// wrote, synced and closed, on the file system of name: the file takes the name.
// It returns what Replace returns.
func Place(fsys FS, temp, name string) error {
	if err := fsys.Rename(temp, name); err != nil {
		return fmt.Errorf("replace %s: %w", name, removeAfter(err, fsys, temp))
	}
	if err := fsys.SyncDir(path.Dir(name)); err != nil {
		return fmt.Errorf("replace %s: sync its directory: %w", name, err)
	}
	return nil
}

func writeSynced(fsys FS, name string, write func(io.Writer) error) error {
	f, err := fsys.Open(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(io.NewOffsetWriter(f, 0), 64<<10)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// removeAfter removes what the failure err left half made. That the removal
// failed too is worth saying, and never instead of err.
func removeAfter(err error, fsys FS, name string) error {
	if removeErr := fsys.Remove(name); removeErr != nil && !errors.Is(removeErr, os.ErrNotExist) {
		return errors.Join(err, removeErr)
	}
	return err
}

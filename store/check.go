package store

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/volume"
)

// Check reads a data directory that nobody has open, holds every structure
// against every other, and returns in words what is wrong; nothing if all is
// well. It changes nothing. A nil fs is the operating system's. Errors:
// ErrInUse; ErrNotFound if it is no data directory.
func Check(dir string, fsys vfs.FS) (findings []string, err error) {
	if fsys == nil {
		fsys = vfs.OS{}
	}
	if _, err := fsys.Size(catalogName(dir)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s: %w: there is no catalog.db, so it is no data directory", dir, ErrNotFound)
		}
		return nil, err
	}
	lock, err := fsys.Lock(lockName(dir))
	if err != nil {
		if errors.Is(err, vfs.ErrLocked) {
			err = fmt.Errorf("data directory %s is %w: stop the server that has it open first", dir, ErrInUse)
		}
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	if findings, err = catalog.Check(fsys, catalogName(dir)); err != nil || len(findings) > 0 {
		return findings, err // nothing else says what should be there
	}
	c, err := catalog.Open(fsys, catalogName(dir))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	state, err := c.Load()
	if err != nil {
		return nil, err
	}
	return append(checkFiles(fsys, dir, state), checkVolumes(fsys, dir, state)...), nil
}

// checkFiles holds the images on disk against those of the chains. Images that
// no chain has are what a server that died had made ahead: the next open
// removes them, and they are no finding.
func checkFiles(fsys vfs.FS, dir string, state catalog.State) (findings []string) {
	found, err := file.List(fsys, imagesDir(dir))
	if err != nil {
		return []string{fmt.Sprintf("images: %v", err)}
	}
	owner := map[image.ID]string{}
	for _, v := range state.Volumes {
		for _, l := range v.Chain {
			if other, taken := owner[l.Image]; taken {
				findings = append(findings, fmt.Sprintf("image %d belongs to volume %s and to volume %s", l.Image, other, v.Name))
			}
			owner[l.Image] = v.Name
			if !slices.Contains(found, l.Image) {
				findings = append(findings, fmt.Sprintf("volume %s: its image %d is missing", v.Name, l.Image))
			}
		}
	}
	return findings
}

// checkVolumes holds the journals and tables against the chains.
func checkVolumes(fsys vfs.FS, dir string, state catalog.State) (findings []string) {
	for _, v := range state.Volumes {
		o := journal.Options{FS: fsys, Dir: volumeDir(dir, v.ID), VolumeID: uint64(v.ID)}
		for _, l := range v.Chain {
			o.Images = append(o.Images, l.Image)
		}
		for _, f := range journal.Check(o) {
			findings = append(findings, fmt.Sprintf("volume %s: %s", v.Name, f))
		}
		for _, l := range v.Chain {
			if l.Snapshot == nil {
				continue
			}
			where := fmt.Sprintf("snapshot %s@%s", v.Name, l.Snapshot.Name)
			if err := checkName("snapshot", l.Snapshot.Name); err != nil {
				findings = append(findings, fmt.Sprintf("%s: %v", where, err))
			}
			if _, err := volume.ParseState(l.Snapshot.State); err != nil {
				findings = append(findings, fmt.Sprintf("%s: %v", where, err))
			}
			if l.Sealed != (l.Snapshot.State == volume.Sealed.String()) {
				findings = append(findings, fmt.Sprintf("%s is %s, but its image says sealed=%v", where, l.Snapshot.State, l.Sealed))
			}
		}
	}
	return findings
}

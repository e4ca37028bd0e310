package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// CheckOptions say how much a Check looks at.
type CheckOptions struct {
	// Quick leaves the data of sealed images out.
	Quick bool
}

// CheckReport is what a Check found.
type CheckReport struct {
	// Findings say in words what is wrong; none if all is well.
	Findings []string
	// Volumes, Snapshots and Images are how many it looked at.
	Volumes, Snapshots, Images int
	// BlocksRead is how many blocks of sealed images it held against their sums.
	BlocksRead int64
	read       map[image.ID]bool // of which all is read: many chains may have it
}

func (r *CheckReport) found(format string, args ...any) {
	r.Findings = append(r.Findings, fmt.Sprintf(format, args...))
}

// Check reads a data directory that nobody has open, and holds every structure
// against every other, and every block of sealed images against its sum. It
// changes nothing. A nil fs is the operating system's. Errors: ErrInUse;
// ErrNotFound if it is no data directory.
func Check(dir string, fsys vfs.FS, o CheckOptions) (report CheckReport, err error) {
	if fsys == nil {
		fsys = vfs.OS{}
	}
	if _, err := fsys.Size(catalogName(dir)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s: %w: there is no catalog.db, so it is no data directory", dir, ErrNotFound)
		}
		return report, err
	}
	lock, err := fsys.Lock(lockName(dir))
	if err != nil {
		if errors.Is(err, vfs.ErrLocked) {
			err = fmt.Errorf("data directory %s is %w: stop the server that has it open first", dir, ErrInUse)
		}
		return report, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	if report.Findings, err = catalog.Check(fsys, catalogName(dir)); err != nil || len(report.Findings) > 0 {
		return report, err // nothing else says what should be there
	}
	c, err := catalog.Open(fsys, catalogName(dir))
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	state, err := c.Load()
	if err != nil {
		return report, err
	}
	for _, g := range state.Groups {
		if err := checkName("group", g.Name); err != nil {
			report.found("group %q: %v", g.Name, err)
		}
	}
	report.checkFiles(fsys, dir, state)
	for _, v := range state.Volumes {
		report.checkVolume(fsys, dir, v)
		report.checkSealed(fsys, dir, v, o)
	}
	return report, nil
}

// checkFiles holds the images on disk against those of the chains. Images that
// no chain has are what a server that died had made ahead: the next open
// removes them, and they are no finding.
func (r *CheckReport) checkFiles(fsys vfs.FS, dir string, state catalog.State) {
	found, err := file.List(fsys, imagesDir(dir))
	if err != nil {
		r.found("images: %v", err)
		return
	}
	owner := map[image.ID]string{}
	r.read = map[image.ID]bool{}
	for _, v := range state.Volumes {
		for _, l := range v.Chain {
			if other, taken := owner[l.Image]; taken && l.Table == 0 {
				r.found("image %d belongs to volume %s and to volume %s", l.Image, other, v.Name)
			}
			if !slices.Contains(found, l.Image) {
				r.found("volume %s: its image %d is missing", v.Name, l.Image)
			}
			if owner[l.Image] == "" {
				r.Images++
			}
			owner[l.Image] = v.Name
		}
	}
}

// checkVolume holds the journal and tables of a volume against its chain.
func (r *CheckReport) checkVolume(fsys vfs.FS, dir string, v catalog.VolumeState) {
	r.Volumes++
	for _, f := range journal.Check(journalOf(fsys, dir, v)) {
		r.found("volume %s: %s", v.Name, f)
	}
	for _, l := range v.Chain {
		if l.Snapshot == nil {
			continue
		}
		r.Snapshots++
		where := fmt.Sprintf("snapshot %s@%s", v.Name, l.Snapshot.Name)
		if err := checkName("snapshot", l.Snapshot.Name); err != nil {
			r.found("%s: %v", where, err)
		}
		if _, err := volume.ParseState(l.Snapshot.State); err != nil {
			r.found("%s: %v", where, err)
		}
		if l.Sealed != (l.Snapshot.State == volume.Sealed.String()) {
			r.found("%s is %s, but its image says sealed=%v", where, l.Snapshot.State, l.Sealed)
		}
	}
}

func journalOf(fsys vfs.FS, dir string, v catalog.VolumeState) journal.Options {
	o := journal.Options{FS: fsys, Dir: volumeDir(dir, v.ID), VolumeID: uint64(v.ID)}
	for _, l := range v.Chain {
		if l.Table == 0 {
			o.Images = append(o.Images, l.Image)
		}
	}
	return o
}

// checkSealed holds the checksum files of a volume against its tables, its
// hashes against the sums, each from the one before, and the data against both.
func (r *CheckReport) checkSealed(fsys vfs.FS, dir string, v catalog.VolumeState, o CheckOptions) {
	var chain sealed.Chain
	var hash sealed.Hash
	for _, l := range v.Chain {
		if l.Table == 0 {
			return
		}
		where := fmt.Sprintf("volume %s: image %d", v.Name, l.Image)
		if l.Snapshot != nil {
			where = fmt.Sprintf("snapshot %s@%s: image %d", v.Name, l.Snapshot.Name, l.Image)
		}
		table, _, err := sealed.ReadTable(fsys, imagesDir(dir), l.Image, l.Table)
		if err != nil {
			r.found("%s: %v", where, err)
			return // the next hash rests on it
		}
		if !l.Sealed { // and none above it
			continue
		}
		sums, err := checkSums(fsys, dir, l, table)
		if err != nil {
			r.found("%s: %v", where, err)
			return // the next hash rests on it
		}
		defer func() { _ = sums.Close() }() // only read
		chain = append(chain, sealed.Layer{Table: table, Sums: sums})
		hash, err = chain.Hash(context.Background(), hash)
		if err == nil && hash.String() != l.Hash && !l.Punched {
			err = fmt.Errorf("%w: its sums and those below make the hash %s, and %s was recorded", ErrCorrupt, hash, l.Hash)
		}
		if err != nil {
			r.found("%s: %v", where, err)
		}
		if !o.Quick && !r.read[l.Image] {
			r.read[l.Image] = true
			if err := r.checkData(fsys, dir, where, l, table); err != nil {
				r.found("%s: %v", where, err)
			}
		}
	}
}

func checkSums(fsys vfs.FS, dir string, l catalog.Link, t *lookup.Table) (*sealed.Sums, error) {
	rec, err := recoveredSeal(l)
	if err != nil {
		return nil, err
	}
	return openSums(fsys, dir, l.Image, l.SizeBytes, t, rec)
}

// checkData reads all of a sealed image. It names the first block that is bad,
// and counts the others.
func (r *CheckReport) checkData(fsys vfs.FS, dir, where string, l catalog.Link, t *lookup.Table) error {
	reading, err := openReading(fsys, dir, l.Image, l.SizeBytes, t)
	if err != nil {
		return err
	}
	var first error
	var bad int
	reading.Block = func(_ lookup.BlockNum, _ sealed.Sum, err error) {
		r.BlocksRead++
		if err != nil {
			if bad++; bad == 1 {
				first = err
			}
		}
	}
	err = errors.Join(reading.Run(context.Background()), reading.close())
	if bad > 0 {
		r.found("%s: %d of its blocks are bad, first: %v", where, bad, first)
	}
	return err
}

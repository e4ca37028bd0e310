package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// VerifySnapshot reads every block that a sealed snapshot shows from the disk,
// holds it against the checksums of its seal, and all of them against its hash.
// progress, if not nil, is called now and then. One verification of a snapshot
// runs at a time. Errors: ErrCorrupt, with a report; ErrInvalid, ErrNotFound,
// ErrDraining (it drains or is being sealed), ErrInUse, ErrClosed, ctx's; with a
// report also those of the catalog, which could not take note of it.
func (s *Store) VerifySnapshot(ctx context.Context, full string, progress func(doneBytes, totalBytes int64)) (VerifyReport, error) {
	s.looking.RLock()
	defer s.looking.RUnlock()
	v, err := s.beginVerify(full)
	if err != nil {
		return VerifyReport{}, err
	}
	ctx, end := s.scans.join(ctx)
	defer end()
	ctx, release := s.whileKept(ctx, v.disk)
	defer release()
	begun := time.Now()
	changed, err := s.endVerify(v, s.scans.why(v.disk.why(ctx, v.run(ctx, progress))))
	if err != nil {
		return VerifyReport{}, fmt.Errorf("verify %s: %w", full, err)
	}
	v.report.Took = time.Since(begun)
	if err = v.verdict(); err != nil {
		s.logger.Error("verify: the snapshot is not what was sealed", "snapshot", full, "bad blocks", v.report.BadBlocks)
	}
	return v.report, errors.Join(err, s.putLinks(v.disk, volume.Sealed, changed...))
}

// verification is one VerifySnapshot.
type verification struct {
	store *Store
	disk  *disk
	vluns []*volume.VLUN // of the view, oldest first
	hash  sealed.Hash    // recorded at the seal

	totalBytes atomic.Int64
	doneBytes  atomic.Int64
	bad        []badBlocks   // by VLUN
	images     []image.Image // by VLUN, as it was when it was read
	found      sealed.Hash
	report     VerifyReport
}

func (s *Store) beginVerify(full string) (*verification, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, k, snap, err := s.snapshotLocked(full)
	switch {
	case err != nil:
		return nil, err
	case k.State() != volume.Sealed:
		return nil, fmt.Errorf("snapshot %s is %s, and %w or being sealed: only a sealed one has checksums", full, k.State(), ErrDraining)
	case snap.verifying != nil:
		return nil, fmt.Errorf("snapshot %s is %w: it is being verified already", full, ErrInUse)
	}
	vluns := d.volume.VLUNs()
	v := &verification{store: s, disk: d, vluns: vluns[:slices.Index(vluns, k)+1], hash: d.sealed[k].hash}
	v.bad, v.images = make([]badBlocks, len(v.vluns)), make([]image.Image, len(v.vluns))
	v.report.Snapshot, v.report.Direct = full, true
	snap.verifying = v
	s.scans.running.Add(1)
	return v, nil
}

// run goes through the images of the view one by one, and reads of each what the
// view shows.
func (v *verification) run(ctx context.Context, progress func(doneBytes, totalBytes int64)) error {
	last := len(v.vluns) - 1
	for i := range v.vluns {
		v.totalBytes.Add(lookup.BlockSize * allBlocks.shown(v.vluns, i, last))
	}
	for i, k := range v.vluns {
		v.images[i] = k.Image()
		reading, err := openReading(v.store.fs, v.store.dir, k.ImageID(), k.SizeBytes(), k.Table())
		if err != nil {
			return err
		}
		v.report.Direct = v.report.Direct && reading.direct
		reading.Shown = func(b lookup.BlockNum, limit uint64) (bool, uint64) { return shownBy(v.vluns, i, last, b, limit) }
		reading.Pace = func(_ context.Context, n int64) error {
			if progress != nil {
				progress(v.doneBytes.Load(), v.totalBytes.Load())
			}
			v.doneBytes.Add(n)
			return nil
		}
		reading.Block = func(b lookup.BlockNum, sum sealed.Sum, err error) { v.block(i, b, sum, err) }
		if err := errors.Join(reading.Run(ctx), reading.close()); err != nil {
			return err
		}
	}
	if progress != nil {
		progress(v.doneBytes.Load(), v.totalBytes.Load())
	}
	v.report.ReadBytes, v.report.Hash = v.doneBytes.Load(), v.found.String()
	slices.SortFunc(v.report.Bad, func(a, b BadBlock) int { return cmp.Compare(a.OffsetBytes, b.OffsetBytes) })
	return nil
}

func (v *verification) block(i int, b lookup.BlockNum, sum sealed.Sum, err error) {
	if err == nil {
		v.found.Add(b, sum)
		return
	}
	v.bad[i].addBlock(b)
	if v.report.BadBlocks++; v.report.BadBlocks <= MostBadBlocks {
		v.report.Bad = append(v.report.Bad, BadBlock{Image: v.vluns[i].ImageID(), OffsetBytes: int64(b) * lookup.BlockSize, Why: err.Error()})
	}
}

func (v *verification) verdict() error {
	switch {
	case v.report.BadBlocks > 0:
		return fmt.Errorf("snapshot %s is %w: %d of its blocks do not hold what was sealed", v.report.Snapshot, ErrCorrupt, v.report.BadBlocks)
	case v.found != v.hash:
		return fmt.Errorf("snapshot %s is %w: its blocks are sound and its hash is %s, not %s: its tables show others than were sealed", v.report.Snapshot, ErrCorrupt, v.found, v.hash)
	}
	return nil
}

// endVerify takes the outcome over into the records and returns those that the
// catalog is to be told of. err is what cut it short.
func (s *Store) endVerify(v *verification, err error) (changed []*volume.VLUN, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := v.vluns[len(v.vluns)-1]
	snap := v.disk.snapshots[k]
	gone := snap == nil || s.byVolume[v.disk.volume] != v.disk
	if snap != nil {
		snap.verifying = nil
	}
	if gone {
		err = fmt.Errorf("the snapshot %w any more: it was deleted meanwhile", ErrNotFound)
	}
	if err == nil {
		err = v.remade()
	}
	if err != nil {
		return nil, err
	}
	changed = []*volume.VLUN{k}
	if !slices.ContainsFunc(v.vluns, lost) {
		snap.verified, snap.wrongHash = time.Now().UTC(), v.report.BadBlocks == 0 && v.found != v.hash
	}
	for i, j := range v.vluns {
		rec := v.disk.sealed[j]
		if rec == nil || lost(j) || len(rec.bad) == 0 && len(v.bad[i]) == 0 {
			continue // it was dropped; and blocks whose sums are lost may well be sound
		}
		rec.bad = rec.bad.but(v.vluns, i, v.bad[i])
		if changed = append(changed, j); j == k {
			changed = changed[1:]
		}
	}
	return changed, nil
}

// remade is ErrInUse if an image got new sums while it was read: what was found
// bad may have been sound.
func (v *verification) remade() error {
	for i, k := range v.vluns {
		if k.Image() != v.images[i] {
			return fmt.Errorf("it was %w: the checksum file of image %d was made anew meanwhile; verify it again", ErrInUse, k.ImageID())
		}
	}
	return nil
}

// but is a set after the blocks of it that the last VLUN shows have been read
// anew, and found was found.
func (s badBlocks) but(vluns []*volume.VLUN, i int, found badBlocks) (now badBlocks) {
	now = slices.Clone(found)
	for _, r := range s {
		for r.Count > 0 {
			shown, n := shownBy(vluns, i, len(vluns)-1, r.Block, r.Count)
			if own, run := vluns[i].Table().Run(r.Block, n); own == lookup.Data && !shown {
				now.add(catalog.Run{Block: r.Block, Count: run})
				n = run
			}
			r.Block, r.Count = r.Block+lookup.BlockNum(n), r.Count-n
		}
	}
	return now
}

// reading is a scan with handles of its own.
type reading struct {
	sealed.Scan
	direct bool // past the page cache
}

// openReading opens a sealed image and its sums to be read from the disk. Files
// that are lost are a matter of the scan.
func openReading(fsys vfs.FS, dir string, id image.ID, sizeBytes int64, t *lookup.Table) (*reading, error) {
	r := &reading{Scan: sealed.Scan{ID: id, Table: t}, direct: true}
	err := r.open(vfs.Labelled{FS: fsys, Label: "scan"}, dir, id, sizeBytes)
	if errors.Is(err, syscall.EINVAL) {
		r.direct = false
		err = r.open(vfs.Labelled{FS: fsys, Label: "scan"}, dir, id, sizeBytes)
	}
	return r, err
}

func (r *reading) open(fsys vfs.FS, dir string, id image.ID, sizeBytes int64) error {
	img, err := file.Open(fsys, imagesDir(dir), id, file.Options{Direct: r.direct, SizeBytes: sizeBytes})
	if errors.Is(err, fs.ErrNotExist) {
		r.Lost = err
		return nil
	}
	if err != nil {
		return err
	}
	sums, err := sealed.OpenSums(fsys, imagesDir(dir), id, r.direct)
	if errors.Is(err, image.ErrCorrupt) {
		r.Lost = err
		return img.Close()
	}
	if err != nil {
		return errors.Join(err, img.Close())
	}
	r.Image, r.Sums = img, sums
	return nil
}

func (r *reading) close() error {
	if r.Lost != nil {
		return nil
	}
	return errors.Join(r.Image.Close(), r.Sums.Close())
}

// Package file keeps an image in sparse files of a directory.
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
)

// DefaultSegmentBytes is the size of a segment file. ext4 ends 4 KiB short of
// 16 TiB; 1 TiB fits every file system in use.
const DefaultSegmentBytes = 1 << 40

// Options say how an image is laid out.
type Options struct {
	// SegmentBytes is how many bytes of the image one file holds, a multiple
	// of 4096; 0 is DefaultSegmentBytes. It is recorded nowhere: an image must
	// be opened with the size that it was created with.
	SegmentBytes int64
	// Direct opens an image to read only, past the page cache (O_DIRECT): what
	// is read is what the disk has. Buffers, offsets and lengths must then be
	// multiples of 4096. Where the file system can't, Open fails with
	// syscall.EINVAL.
	Direct bool
	// SizeBytes, if not 0, is what the image holds at most: Open and Remove ask for so
	// many segments, and do not read the directory, which may have many thousand names.
	SizeBytes int64
}

// Image is an image.Image in sparse files, its segments. Byte b of the image is
// byte b%SegmentBytes of segment b/SegmentBytes, and no byte of a file is
// anything else:
//
//	0123456789abcdef.img      segment 0, made by Create
//	0123456789abcdef.img.N    segment N = 1, 2, ... in decimal, made at its first write
//
// There is no header: the name says which image it is, whether it exists and
// belongs to anything is the catalog's to say, and which of its bytes count is
// its table's. So block and file offset agree, and a new image is ready as soon
// as its name is durable.
//
// Invariants:
//
//  1. A Sync that returns nil began after every write that it promises: a
//     segment is marked dirty after its write and unmarked before its
//     fdatasync, and Syncs take turns, so that none answers for another that
//     still runs.
//  2. The directory entry of a segment is durable no later than the first Sync
//     after it was made.
//  3. After one failure of a sync, of a directory too, or of a write-back (the
//     kernel tells each handle of a lost page once, to whichever asks first),
//     no Sync succeeds.
//
// A second Image may be opened over the same files, to write back and to sync
// in the background. It sees the segments of the time of its Open, and its
// first Sync covers all that was written to them before, through any handle;
// later ones only its own writes.
//
// Rejected: one fdatasync for every segment at each Sync. On a clean file it
// still costs a flush of the disk's cache.
type Image struct {
	fsys         vfs.FS
	dir          string
	id           image.ID
	segmentBytes int64
	openFlag     int // of segments that are there

	// segments is replaced, never changed, so that reads and writes take no
	// lock to find theirs; nil after Close.
	segments atomic.Pointer[map[int64]*segment]
	failed   atomic.Pointer[error] // of the first sync that failed, wraps image.ErrSyncFailed

	growing  sync.Mutex  // held to replace segments
	newInDir atomic.Bool // segments were made since the last SyncDir began
	syncing  sync.Mutex  // held through a Sync
}

var _ image.Image = (*Image)(nil)

// Create makes an empty image in the directory dir. It returns an error that
// wraps fs.ErrExist if there is one of this id: ids are never used twice.
//
// The image survives a power cut after SyncDir of dir, which is left to the
// caller (who may create many), or after its own first Sync.
func Create(fsys vfs.FS, dir string, id image.ID, o Options) (*Image, error) {
	im, err := newImage(fsys, dir, id, o)
	if err != nil {
		return nil, err
	}
	if _, err := im.makeSegment(0, os.O_EXCL); err != nil {
		return nil, fmt.Errorf("create image %016x: %w", uint64(id), err)
	}
	return im, nil
}

// Open opens an image made by Create. It returns an error that wraps
// fs.ErrNotExist if segment 0 is missing; any other missing segment was never
// written, and reads zeros. What the files hold counts as not yet synced: it
// may have been written by a process that died.
func Open(fsys vfs.FS, dir string, id image.ID, o Options) (*Image, error) {
	im, err := newImage(fsys, dir, id, o)
	if err != nil {
		return nil, err
	}
	if err := im.openSegments(&o); err != nil {
		return nil, errors.Join(fmt.Errorf("open image %016x: %w", uint64(id), err), im.Close())
	}
	return im, nil
}

func newImage(fsys vfs.FS, dir string, id image.ID, o Options) (*Image, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.SegmentBytes < 0 || o.SegmentBytes%4096 != 0 {
		return nil, fmt.Errorf("image %016x: segment size %d is not a positive multiple of 4096", uint64(id), o.SegmentBytes)
	}
	im := &Image{fsys: fsys, dir: dir, id: id, segmentBytes: o.SegmentBytes, openFlag: os.O_RDWR}
	if o.Direct {
		im.openFlag = os.O_RDONLY | syscall.O_DIRECT
	}
	im.segments.Store(&map[int64]*segment{})
	return im, nil
}

func (im *Image) openSegments(o *Options) error {
	numbers, err := o.segmentNumbers(im.fsys, im.dir, im.id)
	if err != nil {
		return err
	}
	segments := make(map[int64]*segment, len(numbers))
	im.segments.Store(&segments)
	for _, number := range numbers {
		f, err := im.fsys.Open(segmentPath(im.dir, im.id, number), im.openFlag, 0)
		if errors.Is(err, fs.ErrNotExist) && number > 0 {
			continue
		}
		if err != nil {
			return err
		}
		segments[number] = &segment{File: f}
		segments[number].dirty.Store(true)
	}
	if segments[0] == nil {
		return &fs.PathError{Op: "open", Path: segmentPath(im.dir, im.id, 0), Err: fs.ErrNotExist}
	}
	im.newInDir.Store(true)
	return nil
}

// ReadAt implements image.Image. A range within one segment is one pread(2),
// without allocation.
func (im *Image) ReadAt(p []byte, off int64) (n int, err error) {
	if err := image.CheckRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n < len(p) {
		seg, within, length, err := im.locate(off+int64(n), int64(len(p)-n))
		if err != nil {
			return n, err
		}
		part := p[n : n+int(length)]
		if m, err := seg.readAt(part, within); err != nil {
			return n + m, err
		}
		n += int(length)
	}
	return n, nil
}

// TryReadAt implements image.Image with preadv2(2) RWF_NOWAIT.
func (im *Image) TryReadAt(p []byte, off int64) (n int, err error) {
	if err := image.CheckRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n < len(p) {
		seg, within, length, err := im.locate(off+int64(n), int64(len(p)-n))
		if err != nil {
			return n, err
		}
		part := p[n : n+int(length)]
		if m, err := seg.tryReadAt(part, within); err != nil {
			return n + m, err
		}
		n += int(length)
	}
	return n, nil
}

// PieceBytes is how much of an image one pwrite(2) writes at most. What one brings into
// memory is a page of that size (a folio), and ext4 goes through the states of all its
// blocks, not all in the processor's caches, whenever one of them is written: 30 to 40 us
// for a block of 4 KiB in a page of 1 MiB.
const PieceBytes = 64 << 10

// WriteAt implements image.Image. A range within one piece is one pwrite(2),
// without allocation once the segment exists. A full disk is syscall.ENOSPC.
func (im *Image) WriteAt(p []byte, off int64) (n int, err error) {
	if err := image.CheckRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n < len(p) {
		seg, within, length, err := im.locateOrMake(off+int64(n), int64(len(p)-n))
		if err != nil {
			return n, err
		}
		length = min(length, PieceBytes-within%PieceBytes)
		m, err := seg.WriteAt(p[n:n+int(length)], within)
		seg.markDirty()
		if err != nil {
			return n + m, err
		}
		n += int(length)
	}
	return n, nil
}

// Punch implements image.Image.
func (im *Image) Punch(off, lengthBytes int64) error {
	return im.eachSegment(off, lengthBytes, im.locate, func(seg *segment, within, length int64) error {
		err := seg.Punch(within, length)
		seg.markDirty()
		return err
	})
}

// A piece is what is given back between two calls of rest: the file system makes who
// needs its log wait for one.
const (
	PieceRuns      = 64
	PieceRoomBytes = 64 << 20
)

// Free gives all storage back, piece by piece, and calls rest after each with how much
// it was: to remove a large file that is scattered over the disk takes a minute. It ends
// with the first error. Nobody else uses the image.
func (im *Image) Free(rest func(sizeBytes int64) error) error {
	segments := im.segments.Load()
	if segments == nil {
		return im.errClosed()
	}
	for _, seg := range *segments {
		for off := int64(0); ; {
			begin, sizeBytes := off, int64(0)
			for runs := 0; runs < PieceRuns && sizeBytes < PieceRoomBytes; runs++ {
				start, end, err := seg.Data(off)
				if err == io.EOF { //nolint:errorlint // as io.Reader
					break
				}
				if err != nil {
					return err
				}
				end = min(end, start+PieceRoomBytes-sizeBytes)
				off, sizeBytes = end, sizeBytes+end-start
			}
			if sizeBytes == 0 {
				break
			}
			if err := seg.Punch(begin, off-begin); err != nil {
				return err
			}
			if err := rest(sizeBytes); err != nil {
				return err
			}
		}
	}
	return nil
}

// Zero implements image.Image. Where the file system can't zero a range by
// itself, zeros are written.
func (im *Image) Zero(off, lengthBytes int64) error {
	return im.eachSegment(off, lengthBytes, im.locateOrMake, func(seg *segment, within, length int64) error {
		err := seg.Zero(within, length)
		if errors.Is(err, errors.ErrUnsupported) {
			err = writeZeros(seg, within, length)
		}
		seg.markDirty()
		return err
	})
}

// Reserve reserves storage for a range, which reads as before. errors.ErrUnsupported
// where the file system can't.
func (im *Image) Reserve(off, lengthBytes int64) error {
	return im.eachSegment(off, lengthBytes, im.locateOrMake, func(seg *segment, within, length int64) error {
		err := seg.Allocate(within, length)
		seg.markDirty()
		return err
	})
}

// Clone makes a range hold what the same range of another image holds, and copies
// nothing. errors.ErrUnsupported where the file system can't, or the other was never
// written to there: then the range may hold either.
func (im *Image) Clone(from *Image, off, lengthBytes int64) error {
	if err := image.CheckRange(off, lengthBytes); err != nil {
		return err
	}
	if from.segmentBytes != im.segmentBytes {
		return errors.ErrUnsupported
	}
	for lengthBytes > 0 {
		source, within, length, err := from.locate(off, lengthBytes)
		if err != nil {
			return err
		}
		if source == nil {
			return errors.ErrUnsupported
		}
		seg, _, _, err := im.locateOrMake(off, length)
		if err != nil {
			return err
		}
		err = seg.CloneRange(source.File, within, length)
		seg.markDirty()
		if err != nil {
			return err
		}
		off, lengthBytes = off+length, lengthBytes-length
	}
	return nil
}

// Prefetch implements image.Image with posix_fadvise(2).
func (im *Image) Prefetch(off, lengthBytes int64) error {
	return im.eachSegment(off, lengthBytes, im.locate, func(seg *segment, within, length int64) error {
		return seg.Prefetch(within, length)
	})
}

// WriteBack implements image.Image with sync_file_range(2). It waits for the
// disk: a caller that wants to be gentle passes small ranges. On an error no
// later Sync succeeds.
func (im *Image) WriteBack(off, lengthBytes int64) error {
	return im.eachSegment(off, lengthBytes, im.locate, func(seg *segment, within, length int64) error {
		if err := seg.WriteBack(within, length); err != nil {
			return im.fail("write back", err)
		}
		return nil
	})
}

// Sync implements image.Image with one fdatasync(2) for each segment that was
// written to, and an fsync(2) of the directory if segments are new in it. From
// its first failure on it returns that one, which wraps image.ErrSyncFailed;
// that the directory could not be opened is none (image.ErrNotBegun).
func (im *Image) Sync() error {
	im.syncing.Lock()
	defer im.syncing.Unlock()
	segments := im.segments.Load()
	if segments == nil {
		return im.errClosed()
	}
	for _, seg := range *segments {
		if im.failed.Load() == nil && seg.dirty.Swap(false) {
			if err := seg.Sync(); err != nil {
				return im.fail("sync", err)
			}
		}
	}
	if im.failed.Load() == nil && im.newInDir.Swap(false) {
		err := im.fsys.SyncDir(im.dir)
		switch {
		case vfs.NotBegun(err):
			im.newInDir.Store(true)
			return fmt.Errorf("sync directory of image %016x: %w: %w", uint64(im.id), image.ErrNotBegun, err)
		case err != nil:
			return im.fail("sync directory", err)
		}
	}
	if failed := im.failed.Load(); failed != nil {
		return *failed
	}
	return nil
}

// DropCache makes later reads ask the disk, also for what a failed sync left in
// the page cache only. It syncs what can still be synced: that a page which was
// lost once fails again is no error here, as it reads then what the disk has.
// It is for an image that nobody uses yet.
func (im *Image) DropCache() error {
	segments := im.segments.Load()
	if segments == nil {
		return im.errClosed()
	}
	for number, seg := range *segments {
		// A failed sync leaves no dirty page, so the second says whether it is so.
		err := seg.Sync()
		if err != nil {
			err = seg.Sync()
		}
		if err == nil {
			err = seg.DropCache()
		}
		if err != nil {
			return fmt.Errorf("drop the page cache of image %016x, segment %d: %w", uint64(im.id), number, err)
		}
	}
	return nil
}

// Allocated implements image.Image.
func (im *Image) Allocated() (sizeBytes int64, err error) {
	segments := im.segments.Load()
	if segments == nil {
		return 0, im.errClosed()
	}
	for _, seg := range *segments {
		n, err := seg.Allocated()
		if err != nil {
			return 0, err
		}
		sizeBytes += n
	}
	return sizeBytes, nil
}

// Close implements image.Image. It waits for calls that run, and syncs
// nothing. Any later call returns an error that wraps fs.ErrClosed.
func (im *Image) Close() error {
	im.growing.Lock()
	segments := im.segments.Swap(nil)
	im.growing.Unlock()
	if segments == nil {
		return im.errClosed()
	}
	var errs []error
	for _, seg := range *segments {
		errs = append(errs, seg.Close())
	}
	return errors.Join(errs...)
}

// locate cuts the first segment's share off a range: length bytes that begin
// at byte within of seg, which is nil if it was never written to.
func (im *Image) locate(off, lengthBytes int64) (seg *segment, within, length int64, err error) {
	segments := im.segments.Load()
	if segments == nil {
		return nil, 0, 0, im.errClosed()
	}
	within = off % im.segmentBytes
	return (*segments)[off/im.segmentBytes], within, min(lengthBytes, im.segmentBytes-within), nil
}

// locateOrMake is locate that makes the segment if it is missing.
func (im *Image) locateOrMake(off, lengthBytes int64) (seg *segment, within, length int64, err error) {
	seg, within, length, err = im.locate(off, lengthBytes)
	if seg == nil && err == nil {
		seg, err = im.makeSegment(off/im.segmentBytes, 0)
	}
	return seg, within, length, err
}

func (im *Image) makeSegment(number int64, flag int) (*segment, error) {
	im.growing.Lock()
	defer im.growing.Unlock()
	old := im.segments.Load()
	if old == nil {
		return nil, im.errClosed()
	}
	if seg := (*old)[number]; seg != nil { // made meanwhile
		return seg, nil
	}
	f, err := im.fsys.Open(segmentPath(im.dir, im.id, number), os.O_RDWR|os.O_CREATE|flag, 0o600)
	if err != nil {
		return nil, err
	}
	im.newInDir.Store(true)
	seg := &segment{File: f}
	grown := maps.Clone(*old)
	grown[number] = seg
	im.segments.Store(&grown)
	return seg, nil
}

// eachSegment calls do for each segment's share of a range, as find finds it,
// and leaves missing segments out.
func (im *Image) eachSegment(off, lengthBytes int64,
	find func(off, lengthBytes int64) (seg *segment, within, length int64, err error),
	do func(seg *segment, within, length int64) error,
) error {
	if err := image.CheckRange(off, lengthBytes); err != nil {
		return err
	}
	for lengthBytes > 0 {
		seg, within, length, err := find(off, lengthBytes)
		if err != nil {
			return err
		}
		if seg != nil {
			if err := do(seg, within, length); err != nil {
				return err
			}
		}
		off, lengthBytes = off+length, lengthBytes-length
	}
	return nil
}

// fail records the first failure of a sync for good and returns it.
func (im *Image) fail(op string, err error) error {
	err = fmt.Errorf("%s image %016x: %w: %w", op, uint64(im.id), image.ErrSyncFailed, err)
	im.failed.CompareAndSwap(nil, &err)
	return *im.failed.Load()
}

func (im *Image) errClosed() error {
	return fmt.Errorf("image %016x: %w", uint64(im.id), fs.ErrClosed)
}

// segment is one file of an image. A nil one was never written to.
type segment struct {
	vfs.File
	dirty atomic.Bool // something was written to it since its last fdatasync began
}

// markDirty is called after each change. It looks first: the flag is shared by
// all writers, and is set already nearly always. If a Sync clears it between
// look and return, that Sync's fdatasync comes after the change all the same.
func (s *segment) markDirty() {
	if !s.dirty.Load() {
		s.dirty.Store(true)
	}
}

func (s *segment) readAt(p []byte, off int64) (n int, err error) {
	if s != nil {
		n, err = s.ReadAt(p, off)
		if err != io.EOF {
			return n, err
		}
	}
	clear(p[n:])
	return len(p), nil
}

func (s *segment) tryReadAt(p []byte, off int64) (n int, err error) {
	if s != nil {
		n, err = s.TryReadAt(p, off)
		if errors.Is(err, vfs.ErrWouldBlock) {
			return n, image.ErrWouldBlock
		}
		if err != io.EOF {
			return n, err
		}
	}
	clear(p[n:])
	return len(p), nil
}

var zeros [PieceBytes]byte

func writeZeros(w io.WriterAt, off, lengthBytes int64) error {
	for lengthBytes > 0 {
		n, err := w.WriteAt(zeros[:min(lengthBytes, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, lengthBytes = off+int64(n), lengthBytes-int64(n)
	}
	return nil
}

package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// DefaultScrubBytesPerSecond leaves a disk to its clients.
const DefaultScrubBytesPerSecond = 32 << 20

// ScrubReport is the answer to Scrub.
type ScrubReport struct {
	Images    int   // read to their end
	ReadBytes int64 // from the disk
	BadBlocks int64
	// Snapshots lists who shows a bad block: VOLUME@SNAPSHOT, and for a live
	// volume its name; sorted.
	Snapshots []string
}

// Scrub reads every sealed image once from the disk and holds it against the
// checksums of its seal, now and at full speed. Errors: ErrCorrupt, with a
// report; ErrClosed, ctx's.
func (s *Store) Scrub(ctx context.Context) (report ScrubReport, err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return report, ErrClosed
	}
	s.scans.running.Add(1)
	sealed := s.sealedLocked()
	s.mu.Unlock()
	ctx, end := s.scans.join(ctx)
	defer end()
	for _, k := range sealed {
		if err = s.scrub(ctx, k, nil, &report); err != nil {
			err = fmt.Errorf("scrub image %d: %w", k.ImageID(), s.scans.why(err))
			break
		}
	}
	slices.Sort(report.Snapshots)
	report.Snapshots = slices.Compact(report.Snapshots)
	if report.BadBlocks > 0 {
		err = errors.Join(fmt.Errorf("%w: %d blocks of sealed images do not hold what was sealed", ErrCorrupt, report.BadBlocks), err)
	}
	return report, err
}

// scans is the verifying and scrubbing that runs: a Close ends it.
type scans struct {
	ctx     context.Context //nolint:containedctx // that of the store's life
	cancel  context.CancelFunc
	running sync.WaitGroup // entered under Store.mu, while the store is not closed
	wake    chan struct{}  // there is something new to scrub
	one     chan struct{}  // its one place is taken by who scrubs an image
}

func (s *Store) startScans() {
	s.scans.ctx, s.scans.cancel = context.WithCancel(context.Background())
	s.scans.wake, s.scans.one = make(chan struct{}, 1), make(chan struct{}, 1)
	s.rot = make(chan rotten, 64)
	s.scans.running.Go(s.watchRot)
}

// join returns a context that ends with the store too. end lets a Close go on.
func (c *scans) join(ctx context.Context) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		c.running.Done()
	}
}

// errDeleting is the cause of a context that a delete of the volume has ended.
var errDeleting = errors.New("a delete of the volume has begun")

// whileKept returns a context that a delete of the volume ends too, so that what
// works on its images doesn't hold their room.
func (s *Store) whileKept(ctx context.Context, d *disk) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s.mu.Lock()
	stop := context.AfterFunc(d.ctx, func() { cancel(errDeleting) })
	s.mu.Unlock()
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// why is err, or what became of the delete if that has ended ctx, of whileKept:
// ErrNotFound, or ErrInUse if it failed.
func (d *disk) why(ctx context.Context, err error) error {
	if err == nil || !errors.Is(context.Cause(ctx), errDeleting) {
		return err
	}
	d.files.Lock() // the delete holds it
	defer d.files.Unlock()
	if d.deleted {
		return fmt.Errorf("its volume %w any more: it was deleted meanwhile", ErrNotFound)
	}
	return fmt.Errorf("its volume is %w: %w", ErrInUse, errDeleting)
}

// why is err, or ErrClosed if a Close is the reason.
func (c *scans) why(err error) error {
	if err != nil && c.ctx.Err() != nil {
		return ErrClosed
	}
	return err
}

func (c *scans) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// stop ends what runs. It does nothing if nothing was started, or twice.
func (c *scans) stop() {
	if c.cancel != nil {
		c.cancel()
		c.running.Wait()
	}
}

// scrubAlways keeps to the period: of all sealed images it takes the one that was
// not read for the longest time, when its time has come. One that was never read
// is due at once: what is read then shows that the disk took what was written.
func (s *Store) scrubAlways(every time.Duration, bytesPerSecond int64) {
	ctx, end := s.scans.join(context.Background())
	defer end()
	for ctx.Err() == nil {
		k, due := s.nextToScrub(every)
		if k == nil || time.Now().Before(due) {
			var turn <-chan time.Time
			if k != nil {
				turn = time.After(time.Until(due))
			}
			select {
			case <-ctx.Done():
			case <-s.scans.wake:
			case <-turn:
			}
			continue
		}
		err := s.scrub(ctx, k, pace(bytesPerSecond), new(ScrubReport))
		deleted := errors.Is(err, ErrInUse) || errors.Is(err, ErrNotFound) // or so it began
		if err != nil && !deleted && ctx.Err() == nil {
			s.logger.Error("scrub", "image", k.ImageID(), "err", err)
		}
	}
}

// pace waits before each step as long as the step may take.
func pace(bytesPerSecond int64) func(ctx context.Context, sizeBytes int64) error {
	return func(ctx context.Context, sizeBytes int64) error {
		return pause(ctx, time.Duration(float64(sizeBytes)/float64(bytesPerSecond)*float64(time.Second)))
	}
}

// nextToScrub returns the sealed image whose turn it is, and when; nil if there
// is none.
func (s *Store) nextToScrub(every time.Duration) (next *volume.VLUN, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.sealedLocked() {
		if lost(k) {
			continue // when it has sums again, it is its turn
		}
		at := s.byVolume[k.Volume()].sealed[k].read
		if !at.IsZero() {
			at = at.Add(every)
		}
		if next == nil || at.Before(due) {
			next, due = k, at
		}
	}
	return next, due
}

// sealedLocked lists the sealed images of all volumes, by ID, each once; Store.mu
// is held.
func (s *Store) sealedLocked() (list []*volume.VLUN) {
	for v, d := range s.byVolume {
		for _, k := range v.VLUNs() {
			if d.sealed[k] != nil && k.State() == volume.Sealed {
				list = append(list, k)
			}
		}
	}
	slices.SortFunc(list, func(a, b *volume.VLUN) int { return cmp.Compare(a.ImageID(), b.ImageID()) })
	return slices.CompactFunc(list, func(a, b *volume.VLUN) bool { return a.ImageID() == b.ImageID() })
}

// scrub reads one image and takes note of what it finds: again, if it got new
// sums meanwhile. That its volume is deleted meanwhile is no error.
func (s *Store) scrub(ctx context.Context, k *volume.VLUN, pace func(context.Context, int64) error, report *ScrubReport) error {
	select {
	case s.scans.one <- struct{}{}:
		defer func() { <-s.scans.one }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	d := s.byVolume[k.Volume()]
	s.mu.Unlock()
	if d == nil {
		return nil
	}
	ctx, release := s.whileKept(ctx, d)
	defer release()
	for img := image.Image(nil); img != k.Image(); {
		img = k.Image()
		if err := d.why(ctx, s.scrubImage(ctx, d, k, img, pace, report)); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

func (s *Store) scrubImage(ctx context.Context, d *disk, k *volume.VLUN, img image.Image, pace func(context.Context, int64) error, report *ScrubReport) error {
	s.mu.Lock()
	rec := d.sealed[k]
	if rec == nil {
		s.mu.Unlock()
		return nil // it was dropped
	}
	rec.read = time.Now().UTC() // if it fails, the next turn is a period from now
	s.mu.Unlock()

	reading, err := openReading(s.fs, s.dir, k.ImageID(), k.SizeBytes(), k.Table())
	if err != nil {
		return err
	}
	var bad badBlocks
	var badCount, readBytes int64
	reading.Pace = func(ctx context.Context, n int64) error {
		readBytes += n
		if pace == nil {
			return nil
		}
		return pace(ctx, n)
	}
	reading.Block = func(b lookup.BlockNum, _ sealed.Sum, err error) {
		if err != nil && k.Table().Get(b) == lookup.Data { // else it was punched meanwhile
			bad.addBlock(b)
			badCount++
		}
	}
	if err := errors.Join(reading.Run(ctx), reading.close()); err != nil {
		return err
	}
	s.mu.Lock()
	if s.byVolume[d.volume] != d || d.sealed[k] == nil || k.Image() != img {
		s.mu.Unlock()
		return nil // nobody asks, or it may have been read without its sums
	}
	report.Images++
	report.ReadBytes += readBytes
	was, judged := bad, !lost(k)
	if judged { // else none of its blocks can be read, and they may be sound
		was = rec.bad
		rec.bad, rec.scrubbed = slices.Clone(bad), time.Now().UTC()
		rec.read = rec.scrubbed
	}
	s.mu.Unlock()
	if badCount > 0 {
		shownBy := s.showing(k.ImageID(), bad)
		report.BadBlocks += badCount
		report.Snapshots = append(report.Snapshots, shownBy...)
		if !slices.Equal(was, bad) {
			s.logger.Error("scrub: blocks are not what was sealed, reads of them fail", "volume", d.volume.Name(),
				"image", k.ImageID(), "blocks", badCount, "first", bad[0].Block, "shown by", shownBy)
		}
	}
	if !judged {
		return nil
	}
	return s.putLinks(d, volume.Sealed, k)
}

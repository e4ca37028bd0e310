package store

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/volume"
)

// ReclaimInfo says how far it is to give back the room of what was deleted.
type ReclaimInfo struct {
	// ImagesLeft counts the images that are still to be looked at, with the one that
	// is worked on. 0: nothing is left to do.
	ImagesLeft int
	// Image is worked on; 0: none.
	Image image.ID
	// Folding: what others see of it is moved into its neighbour; else what nobody
	// sees is punched.
	Folding bool
	// DoneBytes of TotalBytes are done of it.
	DoneBytes, TotalBytes int64
	// LeftBytes are left to punch or to move, of this image and of those that come
	// after it; -1: not known yet. What is to be moved of the others is an
	// estimate, by what they hold now.
	LeftBytes int64
	// BytesPerSecond is how fast it went since there was something to do.
	BytesPerSecond int64
	// Left is how long all of it takes at this rate; 0 if nobody can tell.
	Left time.Duration
	// GivenBackBytes counts the data that was given back since the directory was
	// opened.
	GivenBackBytes int64
}

// reclaiming is how far the sealer is with an image.
type reclaiming struct {
	mu sync.Mutex // taken after sealer.mu
	reclaimed
}

// reclaimed is what is known of that.
type reclaimed struct {
	info       ReclaimInfo // but for ImagesLeft, LeftBytes, BytesPerSecond and Left
	since      time.Time   // since then there was something to do; zero: there is nothing
	doneBytes  int64       // since then
	movedBytes int64       // counted when they were moved, and not when they go from where they were

	begun map[image.ID]bool // images worked on since the last end: they may be dropped together
}

func (r *reclaiming) begin(id image.ID, folding bool, totalBytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.info = ReclaimInfo{Image: id, Folding: folding, TotalBytes: totalBytes, GivenBackBytes: r.info.GivenBackBytes}
	begun := map[image.ID]bool{id: true}
	maps.Copy(begun, r.begun)
	r.begun = begun // others may look at the old one
	if r.since.IsZero() {
		r.since = time.Now()
	}
}

func (r *reclaiming) done(sizeBytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.info.DoneBytes += sizeBytes
	again := min(sizeBytes, r.movedBytes)
	r.movedBytes, sizeBytes = r.movedBytes-again, sizeBytes-again
	r.doneBytes += sizeBytes
	if !r.info.Folding {
		r.info.GivenBackBytes += sizeBytes
	}
}

// gave counts data of images that were removed whole.
func (r *reclaiming) gave(sizeBytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.info.GivenBackBytes += sizeBytes
}

// moved says that so much data lies elsewhere too: that it goes where it was gives
// nothing back. 0: all of it has gone, or will be told as given back.
func (r *reclaiming) moved(sizeBytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.movedBytes = sizeBytes
}

// end ends the work on an image.
func (r *reclaiming) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.info = ReclaimInfo{GivenBackBytes: r.info.GivenBackBytes}
	r.begun = nil
}

// now is what is known.
func (r *reclaiming) now() reclaimed {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reclaimed
}

// rest says that nothing is left to do.
func (r *reclaiming) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since, r.doneBytes = time.Time{}, 0
}

// with is what is known when so many images, and so much, are left to do after the
// present one; -1: nobody knows how much.
func (r reclaimed) with(laterImages int, laterBytes int64) ReclaimInfo {
	info := r.info
	if info.ImagesLeft = laterImages; info.Image != 0 {
		info.ImagesLeft++
	}
	if took := time.Since(r.since); r.doneBytes > 0 && took > 0 {
		info.BytesPerSecond = int64(float64(r.doneBytes) / took.Seconds())
	}
	if info.LeftBytes = -1; laterBytes >= 0 {
		info.LeftBytes = max(0, info.TotalBytes-info.DoneBytes-r.movedBytes) + laterBytes // what was moved is done
	}
	if info.LeftBytes > 0 && info.BytesPerSecond > 0 {
		info.Left = time.Duration(float64(info.LeftBytes) / float64(info.BytesPerSecond) * float64(time.Second))
	}
	return info
}

// Reclaiming says how far the background is with what was deleted.
func (s *Store) Reclaiming() ReclaimInfo {
	q := &s.sealer
	q.mu.Lock()
	left, later := len(q.punches)+len(q.removals), int64(0)
	for _, r := range q.removals {
		later += r.dataBytes
	}
	for _, p := range q.punches {
		if later += p.deadBytes; p.deadBytes < 0 {
			later = -1
			break
		}
	}
	now, folds := s.reclaiming.now(), q.foldsNow() || q.folding // under the same hold: an image is waited for or worked on
	q.mu.Unlock()
	if folds {
		images, sizeBytes := s.foldsAfter(now.begun)
		if left += images; later >= 0 {
			later += sizeBytes
		}
	}
	return now.with(left, later)
}

// AwaitReclaimed waits until nothing is left to give back, and tells progress now
// and then how far it is. Errors: ErrClosed, ctx's.
func (s *Store) AwaitReclaimed(ctx context.Context, progress func(ReclaimInfo)) error {
	for {
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return ErrClosed
		}
		info := s.Reclaiming()
		progress(info)
		if info.ImagesLeft == 0 && !s.reclaims() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reclaimLook):
		}
	}
}

// reclaimLook is between two looks of AwaitReclaimed.
const reclaimLook = 100 * time.Millisecond

// reclaims tells whether something is left to punch or to fold, or will be when it is
// sealed.
func (s *Store) reclaims() bool {
	q := &s.sealer
	q.mu.Lock()
	left := q.toReclaim() || q.working && len(q.queue) == 0
	q.mu.Unlock()
	unsealed := q.unsealed()
	s.mu.Lock()
	defer s.mu.Unlock()
	return left || slices.ContainsFunc(unsealed, func(k *volume.VLUN) bool {
		d := s.byVolume[k.Volume()]
		return d != nil && d.snapshots[k] == nil
	})
}

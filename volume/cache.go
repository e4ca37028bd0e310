package volume

import (
	"fmt"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// Cache asks the images that hold a range, by R2, to have it in memory soon. No
// data moves and no lock is held meanwhile: a write that comes in between makes
// it fetch what is not needed, and nothing worse. After maxCacheBytes of data
// the rest is left: it would drive out what came first, or what others need.
// Errors: ErrRange, ErrEnded, and those of the images.
func (w *View) Cache(off, lengthBytes int64) error {
	if err := w.inRange(off, lengthBytes); err != nil {
		return err
	}
	rq := requests.Get().(*request)
	defer rq.release()
	var held []stretch
	for left := int64(maxCacheBytes); lengthBytes > 0 && left > 0; {
		n := min(lengthBytes, statusSpan*lookup.BlockSize-off%(statusSpan*lookup.BlockSize))
		var err error
		if held, err = w.cache(rq, off, n, held[:0]); err != nil {
			return err
		}
		for _, s := range held {
			left -= s.lengthBytes
		}
		off, lengthBytes = off+n, lengthBytes-n
	}
	return nil
}

// maxCacheBytes of data are fetched by one request, rounded up to a statusSpan.
const maxCacheBytes = 1 << 30

// A stretch is bytes at off that the image of one VLUN holds.
type stretch struct {
	of               *VLUN
	off, lengthBytes int64
}

// cache looks a range up and fetches it, as one request in flight: until it
// leaves, the images stay open.
func (w *View) cache(rq *request, off, lengthBytes int64, held []stretch) ([]stretch, error) {
	k, err := w.enter()
	if err != nil {
		return nil, err
	}
	defer w.leave(k)
	held = w.volume.held(rq, k, off, lengthBytes, held)
	for _, s := range held {
		if err := s.of.Image().Prefetch(s.off, s.lengthBytes); err != nil {
			return nil, fmt.Errorf("volume %s: cache %d bytes at %d: %w", w.volume.name, s.lengthBytes, s.off, err)
		}
	}
	return held, nil
}

// held appends the data of a range, as VLUN k sees it.
func (v *Volume) held(rq *request, k *VLUN, off, lengthBytes int64, held []stretch) []stretch {
	first, count := blocks(off, lengthBytes)
	v.lock(rq, first, count, blocklock.Shared, true)
	defer v.locks.Unlock(&rq.held)
	for end := off + lengthBytes; off < end; {
		b, rest := blocks(off, end-off)
		j, state, run := v.find(k, b, rest)
		n := min(end-off, int64(run)*lookup.BlockSize-off%lookup.BlockSize)
		if last := len(held) - 1; state != lookup.Data {
			// It reads zeros.
		} else if last >= 0 && held[last].of == j && held[last].off+held[last].lengthBytes == off {
			held[last].lengthBytes += n
		} else {
			held = append(held, stretch{j, off, n})
		}
		off += n
	}
	return held
}

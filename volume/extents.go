package volume

import (
	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// Extent is a stretch of a view that one image holds.
type Extent struct {
	LengthBytes int64
	State       lookup.State // Absent: nobody holds it, it reads zeros
	// Depth is 1 where the view's newest image holds it, 2 for the one below,
	// and so on; 0 where nobody does.
	Depth int
}

// statusSpan is how many blocks Extents looks at under one lock.
const statusSpan = 1 << 14

// Extents yields the extents of a range in order, from its lookup tables, until
// yield returns false. They survive the death of the server. The stretches of a range
// on which others write are those of some moment during the call, each by itself.
// Errors: ErrRange, ErrEnded, those of Publish.
func (w *View) Extents(off, lengthBytes int64, yield func(Extent) bool) error {
	if err := w.inRange(off, lengthBytes); err != nil {
		return err
	}
	rq := requests.Get().(*request)
	defer rq.release()
	var found []Extent
	var last Extent
	for lengthBytes > 0 {
		n := min(lengthBytes, statusSpan*lookup.BlockSize-off%(statusSpan*lookup.BlockSize))
		var err error
		if found, err = w.extents(rq, off, n, found[:0]); err != nil {
			return err
		}
		if err := w.Publish(); err != nil {
			return err
		}
		for _, x := range found {
			if x.State == last.State && x.Depth == last.Depth {
				last.LengthBytes += x.LengthBytes
				continue
			}
			if last.LengthBytes > 0 && !yield(last) {
				return nil
			}
			last = x
		}
		off, lengthBytes = off+n, lengthBytes-n
	}
	if last.LengthBytes > 0 {
		yield(last)
	}
	return nil
}

func (w *View) extents(rq *request, off, lengthBytes int64, found []Extent) ([]Extent, error) {
	v := w.volume
	k, err := w.enter()
	if err != nil {
		return nil, err
	}
	defer w.leave(k)
	first, count := blocks(off, lengthBytes)
	v.lock(rq, first, count, blocklock.Shared, true)
	defer v.locks.Unlock(&rq.held)
	c := *v.chain.Load()
	for end := off + lengthBytes; off < end; {
		b, rest := blocks(off, end-off)
		j, state, run := v.find(k, b, rest)
		n := min(end-off, int64(run)*lookup.BlockSize-off%lookup.BlockSize)
		x := Extent{LengthBytes: n, State: state}
		if j != nil {
			x.Depth = c.older(k) - c.older(j) + 1
		}
		found, off = append(found, x), off+n
	}
	return found, nil
}

package volume

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/lookup"
)

// View is what a client holds open: a VLUN as a disk of fixed size.
//
// A view of request scope binds each request to the live VLUN. One of a process
// writes through the VLUN that the process is bound to. A preserved view reads
// one older VLUN for ever. Any number of requests may run at once; Close comes
// after the last.
type View struct {
	volume    *Volume
	process   *Process // nil: request scope, or fixed
	bound     *bound   // of process, in volume
	fixed     *VLUN    // a preserved view; nil otherwise
	sizeBytes int64
	stripe    int
	closed    atomic.Bool
}

var (
	_ io.ReaderAt = (*View)(nil)
	_ io.WriterAt = (*View)(nil)
)

// Open opens the live VLUN at request scope.
func (v *Volume) Open() (*View, error) { return v.open(&View{}) }

// OpenSession begins a process of session scope and opens the volume under it.
// Closing the view ends the process.
func (v *Volume) OpenSession() (*View, error) {
	p, err := v.engine.begin("", ScopeSession, []*Volume{v})
	if err != nil {
		return nil, err
	}
	w, err := p.Open(v)
	if err != nil {
		p.End(false)
	}
	return w, err
}

// Open opens a volume under the process; also after a cut, when it writes to
// the VLUN that the process is bound to. Errors: ErrNotNamed, ErrEnded.
func (p *Process) Open(v *Volume) (*View, error) {
	b := p.bounds[v]
	if b == nil {
		return nil, fmt.Errorf("process %s, volume %s: %w", p.token, v.name, ErrNotNamed)
	}
	return v.open(&View{process: p, bound: b})
}

// Open opens a preserved VLUN to read, also while it drains. Errors: ErrRetired,
// ErrClosed.
func (k *VLUN) Open() (*View, error) { return k.volume.open(&View{fixed: k}) }

func (v *Volume) open(w *View) (*View, error) {
	w.volume = v
	w.stripe = int(v.entries.Add(1) % stripes)
	v.engine.mu.Lock()
	defer v.engine.mu.Unlock()
	if v.engine.closed || v.gone {
		return nil, fmt.Errorf("volume %s: %w", v.name, ErrClosed)
	}
	if v.frozen && w.fixed == nil {
		return nil, fmt.Errorf("volume %s: %w", v.name, ErrFrozen)
	}
	k := v.tip()
	switch {
	case w.fixed != nil:
		if k = w.fixed; k.retired {
			return nil, fmt.Errorf("volume %s, image %d: %w", v.name, k.id, ErrRetired)
		}
		k.views++
	case w.process != nil:
		if w.process.ended.Load() {
			return nil, fmt.Errorf("process %s: %w", w.process.token, ErrEnded)
		}
		k = w.bound.vlun
		w.process.views++
	}
	w.sizeBytes = k.SizeBytes()
	v.views++
	return w, nil
}

// Close closes the view. If it is a session, its process ends with it.
func (w *View) Close() error { return w.close(false) }

// CloseTorn closes the view of a client that died: a session is torn.
func (w *View) CloseTorn() error { return w.close(true) }

func (w *View) close(torn bool) error {
	if w.closed.Swap(true) {
		return nil
	}
	e := w.volume.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	w.volume.views--
	delete(w.volume.clients, w)
	w.volume.leftLocked()
	if w.fixed != nil {
		w.fixed.views--
	}
	if w.process != nil {
		w.process.views--
		if w.process.scope == ScopeSession {
			e.endLocked(w.process, torn)
		}
	}
	return nil
}

// Volume returns the volume that the view is of.
func (w *View) Volume() *Volume { return w.volume }

// SizeBytes is the size that the view had when it was opened, for ever: a
// resize shows in views opened after it.
func (w *View) SizeBytes() int64 { return w.sizeBytes }

// ReadOnly tells whether it is a preserved view.
func (w *View) ReadOnly() bool { return w.fixed != nil }

// Scope returns the scope of the view's requests.
func (w *View) Scope() Scope {
	if w.process == nil {
		return ScopeRequest
	}
	return w.process.scope
}

// Served tells the view that a request which arrived then has its reply now,
// for the report of a preserve. A frontend calls it, once a batch.
func (w *View) Served(arrival time.Time) { w.volume.stalls.observe(arrival, now()) }

// inRange says whether a request lies in the view.
func (w *View) inRange(off, lengthBytes int64) error {
	if off < 0 || lengthBytes < 0 || off > w.sizeBytes || lengthBytes > w.sizeBytes-off {
		return fmt.Errorf("volume %s: %d bytes at %d of %d: %w", w.volume.name, lengthBytes, off, w.sizeBytes, ErrRange)
	}
	return nil
}

// blocks returns the range of blocks that a range of bytes touches.
func blocks(off, lengthBytes int64) (first lookup.BlockNum, count uint64) {
	first = lookup.BlockNum(off / lookup.BlockSize)
	end := (off + lengthBytes + lookup.BlockSize - 1) / lookup.BlockSize
	return first, uint64(end) - uint64(first)
}

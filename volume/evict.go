package volume

import (
	"time"

	"github.com/tidemark/tidemark/internal/yield"
)

// client is who has a live view open and can be told to go.
type client struct {
	leave func(now bool)
}

// OnEvict sets how the view's client is told to go, which closes the view: at the end
// of the requests that it has sent or, if now, at once. leave may not wait. If the
// client has to go already, it is told here. A preserved view is never evicted.
func (w *View) OnEvict(leave func(now bool)) {
	if w.fixed != nil {
		return
	}
	v := w.volume
	v.engine.mu.Lock()
	if w.closed.Load() {
		v.engine.mu.Unlock()
		return
	}
	v.clients[w] = client{leave}
	late, now := v.evicting, v.refuse.Load()
	v.engine.mu.Unlock()
	if late {
		leave(now)
	}
}

// Evict is Freeze for a volume that may be in use: it ends that. Nobody opens the
// live VLUN any more, also under a process; its clients are told to go at the end of
// the requests that they have sent and, after grace, at once; then its processes end
// as torn, and requests that begin are refused. Those that are in flight still run: a
// preserve made now waits for them. Who opened it without OnEvict keeps a view that
// is of no use.
func (v *Volume) Evict(grace time.Duration) {
	e := v.engine
	e.mu.Lock()
	v.frozen, v.evicting = true, true
	left := make(chan struct{})
	v.left = left
	v.leftLocked()
	tell := v.clientsLocked()
	e.mu.Unlock()
	for _, c := range tell {
		c.leave(false)
	}
	patience := time.NewTimer(grace)
	defer patience.Stop()
	select {
	case <-left:
	case <-patience.C:
	}

	// A request that does not see this was counted in flight before (see enter), on a
	// VLUN that a later cut drains.
	v.refuse.Store(true)
	yield.Here("evict: refused")
	e.mu.Lock()
	for _, k := range *v.chain.Load() {
		for p := range k.processes {
			e.endLocked(p, true)
		}
	}
	tell = v.clientsLocked()
	e.mu.Unlock()
	for _, c := range tell {
		c.leave(true)
	}
	patience.Reset(grace)
	select {
	case <-left:
	case <-patience.C: // a request of it hangs
	}
}

// clientsLocked lists who can be told to go; Engine.mu is held.
func (v *Volume) clientsLocked() []client {
	list := make([]client, 0, len(v.clients))
	for _, c := range v.clients {
		list = append(list, c)
	}
	return list
}

// leftLocked tells an Evict that waits when all clients have gone; Engine.mu is held.
func (v *Volume) leftLocked() {
	if v.left != nil && len(v.clients) == 0 {
		close(v.left)
		v.left = nil
	}
}

package volume

import "github.com/tidemark/tidemark/internal/yield"

// Tests put a cut where it hurts: beforeCount, if set, runs between a request's
// look at the epoch and its count; afterCheck when it has found the epoch
// unchanged; beforeLock between that and its lock.
var beforeCount, afterCheck, beforeLock func(*VLUN)

// enter binds a request to the VLUN that its view writes through now, and
// counts it in flight there (R7). The protocol is that of Engine. The caller
// leaves by leave.
func (w *View) enter() (*VLUN, error) {
	if w.fixed != nil {
		return w.fixed, nil // a preserved view: nothing waits for its reads
	}
	e := w.volume.engine
	for {
		epoch := Epoch(e.epoch.Load())
		bound := unbounded
		if w.bound != nil {
			bound = Epoch(w.bound.epoch.Load())
		}
		k := (*w.volume.chain.Load()).at(min(epoch, bound))
		yield.Here("enter: looked")
		if beforeCount != nil {
			beforeCount(k)
		}
		k.inflight[w.stripe].n.Add(1)

		yield.Here("enter: counted")
		// From here the count is seen by whoever waits. Is it the right one?
		if w.volume.refuse.Load() {
			w.leave(k)
			return nil, ErrClosed
		}
		if Epoch(e.epoch.Load()) != epoch {
			w.leave(k)
			continue
		}
		yield.Here("enter: epoch checked")
		if afterCheck != nil {
			afterCheck(k)
		}
		if w.bound != nil {
			if Epoch(w.bound.epoch.Load()) != bound {
				w.leave(k)
				continue
			}
			if w.process.ended.Load() {
				w.leave(k)
				return nil, ErrEnded
			}
			yield.Here("enter: bound checked")
		}
		return k, nil
	}
}

// leave ends what enter began, on the stripe it began on.
func (w *View) leave(k *VLUN) {
	if w.fixed != nil {
		return
	}
	k.inflight[w.stripe].n.Add(-1)
	yield.Here("leave: uncounted")
	if k.cut.Load() {
		k.poke()
	}
}

// poke wakes the drain. It looks again at everything, so one token is enough.
func (k *VLUN) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// awaitRequests waits until no request is counted on stripe i. The VLUN is
// cut, and no process is bound to it: a count of zero stays (Engine, 4).
func (k *VLUN) awaitRequests(i int) {
	yield.Here("drain: before a count")
	for k.inflight[i].n.Load() != 0 {
		<-k.wake
	}
}

// requests is the number in flight; exact only when no request begins.
func (k *VLUN) requests() int {
	n := int64(0)
	for i := range k.inflight {
		n += max(0, k.inflight[i].n.Load())
	}
	return int(n)
}

// drain runs from the cut of a VLUN to its end. First its own processes and
// requests end. Then the older VLUNs drain (R8): their processes may still write
// what this one sees and, if an older preserve is given up, go on in this one.
func (k *VLUN) drain(older *VLUN) {
	e := k.volume.engine
	k.awaitOwn()
	yield.Here("drain: own ended")
	e.mu.Lock()
	k.quieted = true
	e.mu.Unlock()
	close(k.quiet)

	if older != nil {
		<-older.drained
		k.awaitOwn()
	}
	if len(k.Torn()) == 0 { // else the mark would call it whole, after a crash before it is recorded as mixed
		// Without the mark a crash leaves the snapshot interrupted: less is
		// claimed than is true, and the volume goes on.
		_ = k.volume.log.MarkDrained(k.id)
	}
	_ = k.volume.Publish() // of a torn one too: after a kill it holds what it held before
	yield.Here("drain: marked")
	k.state.Store(uint32(Sealing))
	e.keeper.Drained(k)
	close(k.drained)
}

// awaitOwn waits until no process is bound to the VLUN and no request is counted
// on it, in this order: while a process is bound, requests may begin.
func (k *VLUN) awaitOwn() {
	for k.bound() > 0 {
		<-k.wake
	}
	for i := range k.inflight {
		k.awaitRequests(i)
	}
}

// bound is the number of processes bound to the VLUN.
func (k *VLUN) bound() int {
	k.volume.engine.mu.Lock()
	defer k.volume.engine.mu.Unlock()
	return len(k.processes)
}

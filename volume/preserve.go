package volume

import (
	"fmt"
	"slices"
	"time"

	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/lookup"
)

// PreserveOptions say what a preserve is called and how long it waits.
type PreserveOptions struct {
	Name       string        // handed to the Keeper
	Wait       time.Duration // the deadline for older processes, from the cut
	OnTimeout  OnTimeout
	OnConflict OnConflict
}

// Preserve is one preserve: its cut, and its wait for older processes.
type Preserve struct {
	engine   *Engine
	options  PreserveOptions
	volumes  []*Volume
	vluns    []*VLUN // its own, one a volume: live until the cut, preserved from it
	arrived  time.Time
	cutTime  time.Time
	waitsFor int         // processes and requests that were bound at the cut
	givenUp  chan Reason // capacity 1: a request gave it up
	degraded *Preserve   // the second cut, which took the name

	// Guarded by Engine.mu:
	phase phase
	moved []Token // the processes that it stopped waiting for
}

// phase of a preserve.
type phase uint8

const (
	waiting phase = iota
	over          // every older process has ended, or it was kept
	aborted       // its processes were moved on
)

// Reason says how a preserve ended.
type Reason uint8

// The ends of a preserve.
const (
	Complete   Reason = iota // every older process has ended
	TimedOut                 // the deadline came first
	Conflicted               // a process of it met a block of a newer image
)

// Result is the outcome of a preserve.
type Result struct {
	Reason Reason
	// Aborted: there is no snapshot; its processes go on in the next VLUN.
	Aborted bool
	// VLUNs that the name stands for, one a volume: those of the first cut, or
	// of the second after a degrade. Nil when aborted.
	VLUNs       []*VLUN
	Consistency Consistency
	CutTime     time.Time
	Drain       time.Duration // cut to answer
	// Moved are the processes that an abort or a degrade stopped waiting for.
	Moved []Token
	// Waited counts the processes, and the requests in flight, at the cut.
	Waited int
	// LargestStall is the longest time from a request's arrival to its reply
	// between command and answer; LargestBefore in as long a time before.
	LargestStall, LargestBefore time.Duration
	Took                        time.Duration // command to answer
}

// Preserve keeps volumes as they are, at one instant, without pausing, draining
// or copying anything on the I/O path (R6). It returns when the snapshot is
// exact: every process older than the cut has ended, or the deadline's policy
// was carried out. Errors come from the Keeper, or are ErrDrainingLimit,
// ErrImageLimit, ErrClosed, ErrFailed; then nothing has changed.
func (e *Engine) Preserve(volumes []*Volume, o PreserveOptions) (*Result, error) {
	p := &Preserve{engine: e, options: o, volumes: volumes, arrived: now(), givenUp: make(chan Reason, 1)}
	if err := e.cut(p, nil); err != nil {
		return nil, err
	}
	reason := p.wait()
	switch {
	case reason == Complete:
	case reason == TimedOut && o.OnTimeout == TimeoutKeep:
	case reason == TimedOut && o.OnTimeout == TimeoutDegrade:
		if err := p.degrade(); err != nil {
			return nil, err
		}
	default:
		if err := p.abort(); err != nil {
			return nil, err
		}
	}
	return p.result(reason), nil
}

// cut prepares the next image of every volume in one durable step, and then
// makes the cut with one atomic store. If it replaces a preserve whose deadline
// has come, that one's processes, and all others, cross it at a request boundary.
func (e *Engine) cut(p, replaces *Preserve) error {
	e.cutting.Lock()
	defer e.cutting.Unlock()
	plan, err := e.plan(p, replaces)
	if err != nil {
		return err
	}
	next, err := e.keeper.Prepare(plan)
	if err != nil {
		return err
	}

	passes("cut: prepared")
	e.mu.Lock()
	defer e.mu.Unlock()
	epoch := Epoch(e.epoch.Load()) + 1
	olders := make([]*VLUN, len(p.volumes))
	for i, v := range p.volumes {
		c := *v.chain.Load()
		old := c[len(c)-1]
		if len(c) > 1 {
			olders[i] = c[len(c)-2]
		}
		// The second image's table and VLUN are made here, at the command.
		live := newVLUN(v, old.order+1, next[i].ID, next[i].Image, lookup.NewTable(), epoch, old.SizeBytes())
		longer := append(slices.Clip(c), live)
		v.numbers.dealLocked(live)
		v.chain.Store(&longer) // nobody writes to it before the epoch is stored
		passes("cut: published")
		p.vluns = append(p.vluns, old)
		old.preserve = p
	}
	if replaces != nil {
		replaces.giveUpLocked()
		for i, v := range p.volumes {
			replaces.vluns[i].moveAllLocked(replaces.vluns[i].heirLocked())
			p.vluns[i].moveAllLocked(v.tip())
		}
	}

	e.epoch.Store(uint64(epoch)) // the cut
	p.waitsFor = e.countLocked(p)
	passes("cut: made")

	p.cutTime = now()
	for i, k := range p.vluns {
		k.cut.Store(true)
		yield.Here("cut: told")
		go k.drain(olders[i])
	}
	return nil
}

// Tests look at the engine, and let requests come, between the steps of a cut.
var duringCut func(step yield.Point)

func passes(step yield.Point) {
	yield.Here(step)
	if duringCut != nil {
		duringCut(step)
	}
}

// plan checks the limits and says what the Keeper is to prepare.
func (e *Engine) plan(p, replaces *Preserve) (Plan, error) {
	plan := Plan{Name: p.options.Name, Volumes: p.volumes, Replaces: replaces, Preserve: p}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return plan, ErrClosed
	}
	for _, v := range p.volumes {
		if v.gone {
			return plan, fmt.Errorf("volume %s: %w", v.name, ErrClosed)
		}
		if err := v.Failed(); err != nil {
			return plan, err
		}
		c := *v.chain.Load()
		if len(c) >= maxImages {
			return plan, fmt.Errorf("volume %s: %w (%d)", v.name, ErrImageLimit, len(c))
		}
		draining := 0
		var waiting []Token
		for i := len(c) - 1; i >= 0 && (i == len(c)-1 || !c[i].isDrained()); i-- {
			if i < len(c)-1 {
				draining++
			}
			for q := range c[i].processes {
				waiting = append(waiting, q.token)
			}
		}
		if replaces == nil && draining >= e.maxDraining {
			return plan, fmt.Errorf("volume %s: %w (%d, the limit)", v.name, ErrDrainingLimit, draining)
		}
		slices.Sort(waiting)
		plan.Waiting = append(plan.Waiting, waiting)
	}
	return plan, nil
}

// countLocked counts what the preserve waits for: processes and requests that
// are bound to its VLUNs or to older ones. After the cut, none is for ever none
// (Engine, 4).
func (e *Engine) countLocked(p *Preserve) (n int) {
	processes := map[*Process]struct{}{}
	for _, k := range p.vluns {
		c := (*k.volume.chain.Load()).upTo(k)
		for i := len(c) - 1; i >= 0 && !c[i].isDrained(); i-- {
			for q := range c[i].processes {
				processes[q] = struct{}{}
			}
			n += c[i].requests()
		}
	}
	return n + len(processes)
}

// wait waits in the background of everybody's I/O until every process older
// than the cut has ended, the deadline has come, or a request gave it up. A
// deadline is for those: where there were none, the drain only has to say so.
func (p *Preserve) wait() Reason {
	var deadline <-chan time.Time
	if p.waitsFor > 0 {
		timer := time.NewTimer(p.options.Wait)
		defer timer.Stop()
		deadline = timer.C
	}
	for _, k := range p.vluns {
		select {
		case <-k.drained:
		case reason := <-p.givenUp:
			return reason
		case <-deadline:
			if !p.allDrained() {
				return p.timeout()
			}
		}
	}
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	if p.phase == aborted {
		return Conflicted
	}
	p.phase = over
	return Complete
}

func (p *Preserve) allDrained() bool {
	return !slices.ContainsFunc(p.vluns, func(k *VLUN) bool { return !k.isDrained() })
}

// timeout settles what the deadline found. A conflict may have come first.
func (p *Preserve) timeout() Reason {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	if p.phase == aborted {
		return Conflicted
	}
	if p.options.OnTimeout == TimeoutKeep {
		p.phase = over
	}
	return TimedOut
}

// giveUp gives up those preserves, whose own VLUNs these are, that want it at a
// conflict and still wait, and tells whether there was one. A request calls it,
// under the lock of its blocks: it only moves bindings; the rest is done by the
// preserve.
func (e *Engine) giveUp(vluns []*VLUN) (any bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, k := range vluns {
		if p := k.preserve; p != nil && p.phase == waiting && p.options.OnConflict == ConflictAbort {
			p.moveOnLocked()
			p.givenUp <- Conflicted
			any = true
		}
	}
	return any
}

// abort gives the preserve up: the processes bound to its own VLUNs go on, each
// at a request boundary, with the next VLUN; those of older VLUNs belong to
// older preserves and stay. The name goes. The images stay in their chains.
func (p *Preserve) abort() error {
	p.engine.mu.Lock()
	if p.phase == waiting {
		p.moveOnLocked()
	}
	p.engine.mu.Unlock()
	for _, k := range p.vluns {
		yield.Here("abort: moved")
		<-k.quiet // its requests in flight are waited for
	}
	return p.engine.keeper.Discard(p)
}

// moveOnLocked moves the processes of the preserve's own VLUNs to the next ones.
func (p *Preserve) moveOnLocked() {
	p.giveUpLocked()
	for _, k := range p.vluns {
		k.moveAllLocked(k.heirLocked())
	}
}

// giveUpLocked ends the wait, and remembers for whom it was.
func (p *Preserve) giveUpLocked() {
	p.phase = aborted
	for _, k := range p.vluns {
		for q := range k.processes {
			if !slices.Contains(p.moved, q.token) {
				p.moved = append(p.moved, q.token)
			}
		}
	}
	slices.Sort(p.moved)
}

// heirLocked returns the VLUN in which the processes of k go on when its
// preserve is given up: the next that is live, or that a preserve still wants
// whole. One that was given up itself may be waited for no more.
func (k *VLUN) heirLocked() *VLUN {
	next := k.next()
	for next.preserve != nil && next.preserve.phase == aborted {
		next = next.next()
	}
	return next
}

// next returns the VLUN after k, which is not live.
func (k *VLUN) next() *VLUN { return (*k.volume.chain.Load()).newer(k)[0] }

// moveAllLocked moves the processes of k to a newer VLUN.
func (k *VLUN) moveAllLocked(to *VLUN) {
	for q := range k.processes {
		q.moveLocked(k.volume, to)
	}
}

// degrade gives up waiting for processes: a second cut takes the name, which
// they cross at a request boundary. It waits for requests only. If it can't be
// prepared, the preserve is aborted and the error returned.
func (p *Preserve) degrade() error {
	second := &Preserve{
		engine: p.engine, options: p.options, volumes: p.volumes,
		arrived: p.arrived, givenUp: make(chan Reason, 1), phase: over,
	}
	if err := p.engine.cut(second, p); err != nil {
		if aborted := p.abort(); aborted != nil {
			return fmt.Errorf("%w; and giving up the first cut: %w", err, aborted)
		}
		return fmt.Errorf("degrade: %w", err)
	}
	for i := range p.vluns {
		<-p.vluns[i].quiet
		<-second.vluns[i].quiet
		if !second.vluns[i].waitsForProcesses() {
			<-second.vluns[i].drained
		}
	}
	p.degraded = second
	return nil
}

// waitsForProcesses tells whether a process is still bound to k or to an older
// VLUN. If none is, none will be, and k drains as soon as their requests end.
func (k *VLUN) waitsForProcesses() bool {
	k.volume.engine.mu.Lock()
	defer k.volume.engine.mu.Unlock()
	return slices.ContainsFunc((*k.volume.chain.Load()).upTo(k), func(j *VLUN) bool { return len(j.processes) > 0 })
}

// result is the report of a preserve that is over.
func (p *Preserve) result(reason Reason) *Result {
	named := p
	if p.degraded != nil {
		named = p.degraded
	}
	answer := now()
	took := answer.Sub(p.arrived)
	r := &Result{
		Reason: reason, CutTime: named.cutTime, Drain: answer.Sub(named.cutTime), Waited: p.waitsFor, Took: took,
	}
	for _, v := range p.volumes {
		r.LargestStall = max(r.LargestStall, v.stalls.largest(p.arrived, answer))
		r.LargestBefore = max(r.LargestBefore, v.stalls.largest(p.arrived.Add(-took-stallSlot), p.arrived.Add(-stallSlot)))
	}
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	r.Moved = p.moved
	if p.phase == aborted && p.degraded == nil {
		r.Aborted = true
		return r
	}
	r.VLUNs = named.vluns
	r.Consistency = named.consistencyLocked(p.degraded != nil)
	return r
}

// consistencyLocked says what the snapshots hold whole, as far as it is known.
func (p *Preserve) consistencyLocked(degraded bool) Consistency {
	c := ConsistencyProcess
	if degraded {
		c = ConsistencyRequest
	}
	for _, k := range p.vluns {
		if len(k.torn) > 0 || degraded && !k.isDrained() {
			c = ConsistencyMixed
		}
	}
	return c
}

// Options returns what the preserve was asked for.
func (p *Preserve) Options() PreserveOptions { return p.options }

// VLUNs returns the preserve's own VLUNs, in the order of its volumes; nil
// before its cut.
func (p *Preserve) VLUNs() []*VLUN { return p.vluns }

// CutTime returns when the cut was made; zero before.
func (p *Preserve) CutTime() time.Time { return p.cutTime }

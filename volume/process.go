package volume

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/internal/yield"
)

// Process is an I/O process of session or explicit scope: requests that belong
// together. (One of request scope is a single request, and needs no record.)
//
// R7: at its begin it is bound, in every volume that it may use, to the VLUN
// that is live then, and writes through it to its end. A binding is an upper
// bound on the epoch of its requests, one for each volume; see Engine. It moves
// by being raised, which the process meets between two requests:
//
//   - a preserve that is given up raises it to the start of the next VLUN;
//   - a degraded one raises it to the epoch of its second cut, ahead of that
//     cut's store, so that the process crosses with everybody else.
type Process struct {
	engine *Engine
	token  Token
	scope  Scope
	begun  time.Time

	bounds map[*Volume]*bound // not changed after begin
	ended  atomic.Bool

	// Guarded by Engine.mu:
	views int
}

// bound is the binding of a process in one volume.
type bound struct {
	epoch atomic.Uint64
	vlun  *VLUN // that epoch's, which counts the process; guarded by Engine.mu
}

// Begin begins an explicit process over the volumes that it names. Errors:
// ErrToken, ErrFrozen, ErrClosed; then none of them waits for it.
func (e *Engine) Begin(t Token, volumes []*Volume) (*Process, error) {
	return e.begin(t, ScopeExplicit, volumes)
}

func (e *Engine) begin(t Token, s Scope, volumes []*Volume) (*Process, error) {
	p := &Process{engine: e, token: t, scope: s, begun: now(), bounds: map[*Volume]*bound{}}
	e.mu.Lock() // and so not beside a cut: the epoch stands still
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if s == ScopeSession { // no token that a client could name has a slash
		e.sessions++
		p.token = Token(fmt.Sprintf("session/%d", e.sessions))
	}
	if _, taken := e.processes[p.token]; taken {
		return nil, fmt.Errorf("process %s: %w", p.token, ErrToken)
	}
	for _, v := range volumes { // all of them, before any has a process to wait for
		if v.gone {
			return nil, fmt.Errorf("volume %s: %w", v.name, ErrClosed)
		}
		if v.frozen {
			return nil, fmt.Errorf("volume %s: %w", v.name, ErrFrozen)
		}
	}
	for _, v := range volumes {
		b := &bound{vlun: v.tip()}
		b.epoch.Store(e.epoch.Load())
		b.vlun.processes[p] = struct{}{}
		p.bounds[v] = b
	}
	yield.Here("process: bound")
	e.processes[p.token] = p
	return p, nil
}

// End ends a process. Torn says that it died instead: the preserves that
// waited for it list it. Requests of it that are in flight end as they would;
// later ones get ErrEnded. Ending it again does nothing.
func (p *Process) End(torn bool) {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	p.engine.endLocked(p, torn)
}

// endLocked ends a process; Engine.mu is held.
func (e *Engine) endLocked(p *Process, torn bool) {
	if p.ended.Swap(true) {
		return
	}
	yield.Here("process: ended")
	delete(e.processes, p.token)
	for v, b := range p.bounds {
		delete(b.vlun.processes, p)
		if torn { // it is part of every snapshot that was waiting for it
			for _, k := range *v.chain.Load() {
				if k.order >= b.vlun.order && k.preserve != nil && !k.isDrained() {
					k.torn = append(k.torn, p.token)
				}
			}
		}
		b.vlun.poke()
	}
}

func (k *VLUN) isDrained() bool {
	select {
	case <-k.drained:
		return true
	default:
		return false
	}
}

// moveLocked raises the binding of a process from the VLUN that it is bound to,
// to a newer one: ahead of a cut's store also to the one that will be live after
// it. Engine.mu is held. The bound is stored first: a drain that finds the
// process gone must find every request that still came in its name.
func (p *Process) moveLocked(v *Volume, to *VLUN) {
	b := p.bounds[v]
	from := b.vlun
	b.epoch.Store(uint64(to.start))
	yield.Here("process: raised")
	delete(from.processes, p)
	to.processes[p] = struct{}{}
	b.vlun = to
	from.poke()
}

// Process returns the process of a token, or ErrNoProcess.
func (e *Engine) Process(t Token) (*Process, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p, ok := e.processes[t]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("process %s: %w", t, ErrNoProcess)
}

// Processes lists the session and explicit processes that run, by begin.
func (e *Engine) Processes() []*Process {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]*Process, 0, len(e.processes))
	for _, p := range e.processes {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *Process) int { return a.begun.Compare(b.begun) })
	return list
}

// Token returns the process's token; that of a session is made up.
func (p *Process) Token() Token { return p.token }

// Scope returns ScopeSession or ScopeExplicit.
func (p *Process) Scope() Scope { return p.scope }

// Begun returns when the process began.
func (p *Process) Begun() time.Time { return p.begun }

// Ended tells whether the process has ended.
func (p *Process) Ended() bool { return p.ended.Load() }

// Binding is what a process writes to in one volume.
type Binding struct {
	Volume *Volume
	VLUN   *VLUN
}

// Bindings lists where the process writes, by volume name, and how many views
// are open under it.
func (p *Process) Bindings() (list []Binding, views int) {
	p.engine.mu.Lock()
	defer p.engine.mu.Unlock()
	for v, b := range p.bounds {
		list = append(list, Binding{v, b.vlun})
	}
	slices.SortFunc(list, func(a, b Binding) int {
		if a.Volume.name < b.Volume.name {
			return -1
		}
		return 1
	})
	return list, p.views
}

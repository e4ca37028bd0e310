// Package volume is the mechanism of Tidemark: volumes, their VLUNs, the I/O
// processes that are bound to them, and the preserve that never makes any of
// them wait.
//
// The rules R1-R9 and invariants I1-I6 that code and comments cite stand in
// ARCHITECTURE.md. Read write.go (R1, R3, R4), read.go (R2), preserve.go (R6),
// process.go (R7), bind.go (the count of R7), flush.go (R9). This package knows
// no wire format and no path names; images and logs come through interfaces.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
)

// Conditions that a caller branches on.
var (
	// ErrReadOnly: a write through a preserved view.
	ErrReadOnly = errors.New("preserved views are read-only")
	// ErrRange: a request reaches beyond the end of the view, or starts before 0.
	ErrRange = errors.New("beyond the end of the volume")
	// ErrEnded: the process has ended; its token is good for nothing any more.
	// It is fs.ErrPermission too.
	ErrEnded = fmt.Errorf("the process has ended: %w", fs.ErrPermission)
	// ErrNotNamed: the process did not name this volume at its begin.
	ErrNotNamed = errors.New("the process did not name this volume")
	// ErrToken: a process with this token exists.
	ErrToken = errors.New("the token is taken")
	// ErrNoProcess: no process has this token.
	ErrNoProcess = errors.New("no process has this token")
	// ErrDrainingLimit: as many preserved VLUNs of a volume drain as may.
	ErrDrainingLimit = errors.New("too many preserves of the volume still drain")
	// ErrImageLimit: the chain of a volume is as long as the index can number.
	ErrImageLimit = errors.New("the volume has as many images as it can")
	// ErrFailed: a sync of the volume failed; what was written since its last
	// good one may be lost, and it takes no writes until it is opened again.
	ErrFailed = errors.New("the volume failed a sync and takes no writes until it is reopened")
	// ErrClosed: the engine, or the view, is closed.
	ErrClosed = errors.New("closed")
	// ErrFrozen: the live VLUN is opened no more, or not just now. It is ErrClosed too.
	ErrFrozen = fmt.Errorf("the volume is frozen: %w", ErrClosed)
	// ErrRetired: the preserved VLUN is opened no more.
	ErrRetired = errors.New("the snapshot is deleted")
	// ErrBusy: views are open or processes bound.
	ErrBusy = errors.New("a client or a process uses the volume")
)

// Epoch counts the cuts of an engine. Every request belongs to one epoch, that
// in which it began; a VLUN is live from its start epoch to the one before its
// successor's.
type Epoch uint64

// unbounded is the bound of a process that follows the live VLUN.
const unbounded = ^Epoch(0)

// Token names an explicit process.
type Token string

// Engine is the set of volumes that one preserve can cut at one instant.
//
// Goal: a cut of any number of volumes that is one instant, for which no
// request waits. It is the store of one word, the epoch:
//
//	request                             cut (one at a time)
//	e = epoch                           publish the next VLUNs, start e+1
//	k = VLUN of e; count k in flight    epoch = e+1
//	epoch still e? else take it back    wait until k's count is 0
//
// The loads and stores are sequentially consistent. A request that found the
// epoch unchanged after it was counted came before the store, so whoever looks
// at the count after the store sees it; one that found it changed has written
// nothing, and begins again in the new epoch. So:
//
//  1. a request is bound to exactly one VLUN of its volume from begin to end;
//  2. the epochs of requests never go backwards in time, in any volume: if B
//     began after A was acknowledged, B's epoch is A's or later (I1);
//  3. a process is a stream of requests whose epoch has an upper bound, by
//     volume: min(epoch, bound). At begin the bound is the epoch of then, so a
//     later cut leaves it where it is (I2). It moves by raising the bound;
//  4. once a cut VLUN and all older ones have no process and a zero count, they
//     never get either again: both only enter a VLUN that is live, or move to
//     it from an older one.
//
// Rejected: a read-write lock that requests share and the cut takes (each
// request would touch one cache line of all cores, and wait for the cut behind
// a slow reader); a barrier in the request stream (it drains, so it waits for
// the slowest); a cut by volume (many volumes then have many instants).
type Engine struct {
	epoch atomic.Uint64
	_     [56]byte // the epoch is read by every request: alone in its cache line

	keeper      Keeper
	maxDraining int
	indexes     indexes

	// cutting orders preserves and resizes from their prepare to their cut.
	// It is held across I/O, so no request may ever take it (I5).
	cutting sync.Mutex

	// mu guards what follows and the fields of Process, VLUN and Preserve that
	// say so. It is never held across I/O or a wait.
	mu        sync.Mutex
	volumes   map[*Volume]struct{}
	processes map[Token]*Process
	sessions  uint64
	closed    bool
}

// Keeper is the lasting side of a preserve: what must be on disk, and where new
// images come from. The engine never calls it from a request.
type Keeper interface {
	// Prepare makes the next image of every volume of the plan, empty, and
	// records in one durable step that the present tips are preserved under
	// the plan's name. After a crash from here on, every image so prepared
	// counts as cut. An error leaves nothing behind.
	Prepare(Plan) ([]Next, error)
	// Discard takes the name of a given-up preserve away, durably. Its images
	// stay as links without a name.
	Discard(*Preserve) error
	// Drained says that a preserved VLUN and all older ones of its volume have
	// drained: it may be sealed. Called once a VLUN, oldest first.
	Drained(*VLUN)
}

// Plan is what Prepare is asked for.
type Plan struct {
	// Name of the snapshots; the Keeper knows a default.
	Name string
	// Volumes to cut, in the caller's order.
	Volumes []*Volume
	// Waiting are the processes that the preserve will have to wait for, as
	// far as they are known before the cut.
	Waiting [][]Token
	// Replaces is the preserve whose name this one takes (degrade), or nil.
	Replaces *Preserve
	// Preserve is the preserve that is being prepared.
	Preserve *Preserve
}

// Next is the next image of a volume.
type Next struct {
	ID    image.ID
	Image image.Image
}

// Log makes the table changes of one volume durable. *journal.Journal is one;
// its comment carries the protocol.
type Log interface {
	// Ready tells that an Append would not wait for the disk.
	Ready() bool
	// Append writes the changes of one request, unsynced: from its return on
	// they survive the death of the server, not that of the machine.
	Append([]journal.Change) (journal.LSN, error)
	// Stage is Append but for this: the changes survive the death of the server only
	// from the next Publish, Append, mark or Commit on.
	Stage([]journal.Change) (journal.LSN, error)
	// Publish lets what is staged survive the death of the server.
	Publish() error
	// MarkDrained notes, unsynced, that every process older than this image's
	// cut has ended. It may wait as Append does.
	MarkDrained(image.ID) error
	// End is the position after the last append.
	End() journal.LSN
	// Committed is the position up to which everything is durable.
	Committed() journal.LSN
	// Commit makes everything up to a position durable, with the blocks of its basis;
	// the caller has synced every other image on which it rests, and calls it once at
	// a time.
	Commit(journal.LSN, journal.Basis) error
	// Holds tells how many bytes of an image it stores that were not synced there.
	Holds(image.ID) int64
	// MarkFailed notes, unsynced, that a sync of an image has failed: from now
	// on only what was committed counts, also if the server dies and the
	// machine does not. The log takes nothing more.
	MarkFailed() error
}

// New returns an engine without volumes. At most maxDraining preserved VLUNs
// of one volume may drain at once (0: 8).
func New(k Keeper, maxDraining int) *Engine {
	if maxDraining <= 0 {
		maxDraining = 8
	}
	e := &Engine{
		keeper: k, maxDraining: maxDraining,
		volumes: map[*Volume]struct{}{}, processes: map[Token]*Process{},
	}
	e.epoch.Store(1)
	return e
}

// Config describes a volume as it is when it joins an engine.
type Config struct {
	Name  string
	Scope Scope // of plain connections: ScopeRequest or ScopeSession
	Log   Log
	// Chain has the images, oldest first. The last is the tip, whose VLUN is live.
	Chain []Link
}

// Link is one image of a Config with what is known of it.
type Link struct {
	ID        image.ID
	Image     image.Image
	Table     *lookup.Table
	SizeBytes int64 // of its VLUN
	State     State // of its VLUN; without meaning for the last
}

// AddVolume makes a volume known to the engine. The VLUNs below the tip must
// not be Draining: no process of an earlier life of the server still runs.
func (e *Engine) AddVolume(c Config) (*Volume, error) {
	v := newVolume(e, c)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	start := Epoch(e.epoch.Load())
	if len(c.Chain) > maxImages {
		return nil, fmt.Errorf("volume %s: %w (%d)", c.Name, ErrImageLimit, maxImages)
	}
	chain := make(chain, len(c.Chain))
	for i, l := range c.Chain {
		chain[i] = newVLUN(v, uint64(i), l.ID, l.Image, l.Table, start, l.SizeBytes)
		// A server that died may have left writes unsynced: the first flush
		// covers them, as it would have then (R9).
		unsealed := i == len(c.Chain)-1 || l.State != Sealed
		if unsealed {
			chain[i].fresh.addAll()
		}
		chain[i].unsynced.all.Store(unsealed)
		if i < len(c.Chain)-1 {
			chain[i].endDrained(l.State)
			chain[i].reached.Store(unsealed) // nobody knows what an earlier life wrote
		}
	}
	v.numbers.dealLocked(chain...)
	v.index = newIndex(chain)
	v.index.CountIn(&e.indexes.leaves)
	v.chain.Store(&chain)
	e.volumes[v] = struct{}{}
	return v, nil
}

// Retire lets nobody open volumes any more, under no process either, nor preserve
// them, until restore: all of them or, if one is in use, none (ErrBusy).
func (e *Engine) Retire(volumes ...*Volume) (restore func(), err error) {
	e.cutting.Lock() // no preserve of them is under way
	defer e.cutting.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, v := range volumes {
		if v.isUsedLocked() {
			return nil, fmt.Errorf("volume %s: %w", v.name, ErrBusy)
		}
	}
	for _, v := range volumes {
		v.gone = true
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, v := range volumes {
			_, there := e.volumes[v] // not one that was removed meanwhile
			v.gone = !there
		}
	}, nil
}

// RemoveVolume forgets a volume that nobody uses; ErrBusy otherwise. The record
// is the caller's durable step, during which nobody can open the volume; if it
// fails, the volume is as it was. Its images and log are the caller's to close.
func (e *Engine) RemoveVolume(v *Volume, record func() error) error {
	restore, err := e.Retire(v)
	if err != nil {
		return err
	}
	if err := record(); err != nil {
		restore()
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.volumes, v)
	v.index.CountIn(nil)
	return nil
}

// isUsedLocked tells whether a view, a process or a preserve needs a volume; Engine.mu
// is held.
func (v *Volume) isUsedLocked() bool {
	return v.views > 0 || slices.ContainsFunc(*v.chain.Load(), func(k *VLUN) bool {
		return len(k.processes) > 0 || k.preserve != nil && !k.quieted
	})
}

// Resize sets the size of the live VLUN, in bytes; older VLUNs and open views
// keep theirs. The record is the caller's durable step, made before the new
// size is shown.
func (e *Engine) Resize(v *Volume, sizeBytes int64, record func() error) error {
	e.cutting.Lock()
	defer e.cutting.Unlock()
	if err := record(); err != nil {
		return err
	}
	v.tip().sizeBytes.Store(sizeBytes)
	return nil
}

// Close ends every process as torn, waits until the requests in flight have
// ended, flushes every volume, and refuses what comes after. It returns the
// first error of a flush.
func (e *Engine) Close() error {
	e.cutting.Lock() // a cut that is under way is finished first; none comes after
	defer e.cutting.Unlock()
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	for _, p := range e.processes {
		e.endLocked(p, true)
	}
	volumes := slices.Collect(maps.Keys(e.volumes))
	e.mu.Unlock()

	var first error
	for _, v := range volumes {
		v.refuse.Store(true)
		chain := *v.chain.Load()
		tip := v.tip()
		tip.cut.Store(true)
		for i := range tip.inflight {
			tip.awaitRequests(i)
		}
		if len(chain) > 1 {
			<-chain[len(chain)-2].drained
		}
		if err := v.Settle(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Epoch returns the current epoch: the number of cuts so far, plus one.
func (e *Engine) Epoch() Epoch { return Epoch(e.epoch.Load()) }

// now is the clock of reports; never of a decision about data.
func now() time.Time { return time.Now() }

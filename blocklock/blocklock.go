// Package blocklock is the lock table of a volume: shared and exclusive locks of
// exact block ranges, first come, first served.
//
// It belongs to no image. A request locks the one range that it reads or writes
// from the look-up to the end of the transfer between image and memory, and
// holds no lock while a socket is read or written.
package blocklock

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/lookup"
)

// Range is Count blocks from First on. An empty one conflicts with nothing.
type Range struct {
	First lookup.BlockNum
	Count uint64
}

// Mode says with whom a range may be held at the same time.
type Mode uint8

// Shared ranges overlap with shared ones only, an Exclusive range with none.
const (
	Shared Mode = iota
	Exclusive
)

// Table is the lock table of one volume. All its methods may be called at the
// same time.
//
// Goal: a request waits only for requests that came earlier, overlap with it by
// at least a block, and are not both shared with it; a wide range (a trim of
// terabytes) costs a bounded amount; nothing is allocated.
//
// The volume is cut into regions of 32 MiB and each region belongs to one of 64
// shards. A shard is a mutex and the list, in order of arrival, of an entry for
// each request, holding or waiting, that touches one of its regions. An entry
// carries its request's whole range. So a request has one entry in one shard as
// a rule, two if it crosses a border, 64 at the most.
//
//  1. A request enters all its shards in one step: it locks them all, in
//     ascending order, then enters, then unlocks. So of two requests the same
//     one comes first in every shard that they share: there is one order of
//     arrival.
//  2. When it enters, a request counts the entries before it, in all its shards,
//     that conflict: its blockers. An entry that leaves is taken off the count
//     of each later entry of its shard that conflicts. Two ranges that overlap
//     share a block, hence its shard, so no conflict goes uncounted; and counting
//     one in several shards does no harm, as it is taken off in each.
//  3. A request holds its range from when its blockers are 0: all that came
//     before and conflict have left at least the shards it needs. Waiting
//     requests are blockers like holders, so nobody overtakes.
//  4. Who waits, waits only for those that arrived earlier, by 1: there is no
//     cycle, and the first to arrive of all that are present waits for nobody.
//     As every holder lets go (it waits for no second range), everybody's turn
//     comes.
//
// Rejected: stripes (two requests for different blocks wait for each other);
// region after region, waiting in each (as free of deadlock, but who waits in
// the first is overtaken in the second); a list apart for wide ranges, which
// every narrow one must look at (that order of arrival has then to be kept
// between two kinds of list, to save a rare request two microseconds).
type Table struct {
	shards  [shardCount]shard
	waiting atomic.Int64
}

const (
	regionBits = 13
	shardBits  = 6
	shardCount = 1 << shardBits
)

// shard fills two cache lines, for processors that fetch them in pairs.
type shard struct {
	mu         sync.Mutex
	head, tail *entry
	_          [128 - 24]byte
}

// entry is a request's place in the list of one shard. The shard's mutex guards
// it from when it is entered until it is removed.
type entry struct {
	prev, next *entry
	held       *Held
	first      lookup.BlockNum
	last       lookup.BlockNum // inclusive
	mode       Mode
	blocks     uint32 // later entries of this list that count this one as a blocker
}

func (e *entry) conflicts(with *entry) bool {
	return e.first <= with.last && with.first <= e.last && (e.mode == Exclusive || with.mode == Exclusive)
}

// Held is the room that a caller lends for a lock, from Lock to Unlock. The zero
// value is ready; it must not be copied, and may be used again after Unlock,
// with any Table. What it allocated for a range in more than two regions it keeps.
type Held struct {
	inUse    bool
	shards   uint64       // a bit for each shard entered
	blockers atomic.Int32 // 0 when not waiting
	nextWake *Held        // in the list of those that an Unlock wakes
	ready    signal
	few      [2]entry
	many     []entry
}

// signal is given once for each wait. It is no channel, as that would tie whoever keeps
// it to the synctest bubble of its first wait.
type signal struct {
	mu    sync.Mutex
	cond  sync.Cond // of mu
	given bool
}

func (s *signal) give() {
	s.mu.Lock()
	s.given = true
	if s.cond.L != nil { // else nobody has come to wait yet
		s.cond.Signal()
	}
	s.mu.Unlock()
}

func (s *signal) wait() {
	s.mu.Lock()
	s.cond.L = &s.mu
	for !s.given {
		s.cond.Wait()
	}
	s.given = false
	s.mu.Unlock()
}

// New returns a table in which nothing is locked.
func New() *Table { return new(Table) }

// Lock locks the range for h, after all earlier requests that conflict. A caller
// that holds a range must not lock another: that may wait for ever. Lock panics
// if h is in use.
func (t *Table) Lock(h *Held, r Range, m Mode) {
	h.prepare(r, m)
	if blockers := t.enter(h); blockers > 0 {
		yield.Here("lock: before its wait")
		h.ready.wait()
	}
}

// TryLock locks the range for h and returns true, or returns false if it would
// have to wait, be it for a request that itself waits. It never waits, so its
// caller may hold other ranges. It panics if h is in use.
func (t *Table) TryLock(h *Held, r Range, m Mode) bool {
	h.prepare(r, m)
	if !t.tryEnter(h) {
		h.inUse = false
		return false
	}
	return true
}

// Unlock lets go what h holds and wakes the requests whose last blocker it was.
// It panics if h holds nothing.
func (t *Table) Unlock(h *Held) {
	if !h.inUse {
		panic("blocklock: Unlock of a Held that is not in use")
	}
	var wake *Held
	entries := h.entries()
	for set, i := h.shards, 0; set != 0; set, i = set&(set-1), i+1 {
		s := &t.shards[bits.TrailingZeros64(set)]
		s.mu.Lock()
		wake = s.remove(&entries[i], wake)
		s.mu.Unlock()
		yield.Here("unlock: between shards")
	}
	h.inUse = false
	for wake != nil {
		next := wake.nextWake // once woken, wake may be gone or in use again
		wake.nextWake = nil
		t.waiting.Add(-1)
		yield.Here("unlock: before a wake")
		wake.ready.give()
		wake = next
	}
}

// Waiting returns how many requests wait, for tests. A request that it counts
// has its place in the order.
func (t *Table) Waiting() int { return int(t.waiting.Load()) }

// prepare writes the request into h's entries.
func (h *Held) prepare(r Range, m Mode) {
	if h.inUse {
		panic("blocklock: Held is in use")
	}
	h.inUse = true
	if h.shards = 0; r.Count == 0 {
		return
	}
	last := r.First + lookup.BlockNum(r.Count-1)
	if last < r.First {
		last = math.MaxUint64
	}
	h.shards = shardsOf(r.First, last)
	if n := bits.OnesCount64(h.shards); n > len(h.few) && n > len(h.many) {
		h.many = make([]entry, n)
	}
	for i := range h.entries() {
		e := &h.entries()[i]
		e.held, e.first, e.last, e.mode = h, r.First, last, m
	}
}

// entries returns h's entries, one for each shard in ascending order.
func (h *Held) entries() []entry {
	n := bits.OnesCount64(h.shards)
	if n <= len(h.few) {
		return h.few[:n]
	}
	return h.many[:n]
}

// shardsOf returns a bit for each shard that a region of the range belongs to.
// 64 regions in a row that start at a multiple of 64 belong to 64 shards, and
// regions a power of two apart, as file systems lay out their groups, don't all
// meet in one.
func shardsOf(first, last lookup.BlockNum) (set uint64) {
	from, to := first>>regionBits, last>>regionBits
	if to-from >= 2*shardCount {
		return math.MaxUint64
	}
	for region := from; region <= to; region++ {
		set |= 1 << ((region ^ region>>shardBits) % shardCount)
	}
	return set
}

// enter gives h its place in the order and returns the number of its blockers;
// if there are any, h is woken when the last has gone.
func (t *Table) enter(h *Held) (blockers int32) {
	t.lockShards(h.shards)
	defer t.unlockShards(h.shards)
	yield.Here("lock: shards locked")
	entries := h.entries()
	for set, i := h.shards, 0; set != 0; set, i = set&(set-1), i+1 {
		blockers += t.shards[bits.TrailingZeros64(set)].enter(&entries[i])
	}
	if blockers > 0 { // known to none but us before the shards are unlocked
		h.blockers.Store(blockers)
		t.waiting.Add(1)
	}
	return blockers
}

// tryEnter gives h its place if it has no blockers, else it changes nothing.
func (t *Table) tryEnter(h *Held) bool {
	t.lockShards(h.shards)
	defer t.unlockShards(h.shards)
	entries := h.entries()
	for set, i := h.shards, 0; set != 0; set, i = set&(set-1), i+1 {
		if t.shards[bits.TrailingZeros64(set)].blocks(&entries[i]) {
			return false
		}
	}
	for set, i := h.shards, 0; set != 0; set, i = set&(set-1), i+1 {
		t.shards[bits.TrailingZeros64(set)].append(&entries[i])
	}
	return true
}

func (t *Table) lockShards(set uint64) {
	for ; set != 0; set &= set - 1 {
		t.shards[bits.TrailingZeros64(set)].mu.Lock()
	}
}

func (t *Table) unlockShards(set uint64) {
	for ; set != 0; set &= set - 1 {
		t.shards[bits.TrailingZeros64(set)].mu.Unlock()
	}
}

// enter appends e and returns how many entries before it conflict.
func (s *shard) enter(e *entry) (blockers int32) {
	for x := s.head; x != nil; x = x.next {
		if x.conflicts(e) {
			x.blocks++
			blockers++
		}
	}
	s.append(e)
	return blockers
}

// blocks tells whether an entry of the shard conflicts with e.
func (s *shard) blocks(e *entry) bool {
	for x := s.head; x != nil; x = x.next {
		if x.conflicts(e) {
			return true
		}
	}
	return false
}

func (s *shard) append(e *entry) {
	e.prev, e.next = s.tail, nil
	if s.tail == nil {
		s.head = e
	} else {
		s.tail.next = e
	}
	s.tail = e
}

// remove takes e off the list and off the counts of those that it blocks. It
// puts those that nothing blocks any more before wake.
func (s *shard) remove(e *entry, wake *Held) *Held {
	for x := e.next; e.blocks > 0; x = x.next {
		if !e.conflicts(x) {
			continue
		}
		e.blocks--
		if x.held.blockers.Add(-1) == 0 {
			x.held.nextWake = wake
			wake = x.held
		}
	}
	if e.prev == nil {
		s.head = e.next
	} else {
		e.prev.next = e.next
	}
	if e.next == nil {
		s.tail = e.prev
	} else {
		e.next.prev = e.prev
	}
	e.prev, e.next = nil, nil
	return wake
}

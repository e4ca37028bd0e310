package volume

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// Volume is a named virtual disk: a chain of images with their tables, the
// lock table that belongs to none of them, and the index that is derived from
// them. Clients reach it through a View.
type Volume struct {
	engine *Engine
	name   string
	scope  Scope
	log    Log

	// chain is replaced, never changed: a request that loaded it may go on
	// with it for as long as it holds its lock (R1).
	chain   atomic.Pointer[chain]
	locks   *blocklock.Table
	index   *lookup.Index
	numbers numbers // what the entries of the index stand for

	commits committer
	failed  atomic.Pointer[error]
	refuse  atomic.Bool // the engine is closing, or Evict has ended all use
	stalls  stalls
	entries atomic.Uint32 // deals out the stripes of views

	views int  // open views; guarded by Engine.mu
	gone  bool // removed; guarded by Engine.mu

	frozen bool // the live VLUN is opened no more; guarded by Engine.mu

	cold chan lookup.BlockNum // leaves of the index that somebody has asked for; of Tend

	tidied atomic.Int64  // dense leaves of the index that were left when they were looked at last
	untidy chan struct{} // of capacity 1: there are many more
	// Of Evict, guarded by Engine.mu:
	evicting bool
	clients  map[*View]client // live views, of those who can be told to go
	left     chan struct{}    // closed when there are none; nil: nobody waits
}

// chain holds the VLUNs of a volume, oldest first, but for those that were dropped.
type chain []*VLUN

// at returns the VLUN that is live in an epoch. One who came by an epoch that is
// over may find another, if that VLUN was dropped since, and finds the epoch changed.
func (c chain) at(e Epoch) *VLUN {
	i := len(c) - 1
	for i > 0 && c[i].start > e {
		i--
	}
	return c[i]
}

// older counts the VLUNs that are older than k.
func (c chain) older(k *VLUN) int {
	if last := len(c) - 1; c[last] == k {
		return last
	}
	n, _ := slices.BinarySearchFunc(c, k.order, func(j *VLUN, order uint64) int { return cmp.Compare(j.order, order) })
	return n
}

// upTo returns the VLUNs up to k, newer those above it.
func (c chain) upTo(k *VLUN) chain {
	n := c.older(k)
	if n < len(c) && c[n] == k {
		n++
	}
	return c[:n]
}

func (c chain) newer(k *VLUN) chain { return c[len(c.upTo(k)):] }

// layers appends what the index is derived from.
func (c chain) layers(to []lookup.Layer) []lookup.Layer {
	for _, k := range c {
		to = append(to, lookup.Layer{Slot: k.slot, Table: k.table})
	}
	return to
}

func newVolume(e *Engine, c Config) *Volume {
	v := &Volume{
		engine: e, name: c.Name, scope: c.Scope, log: c.Log, locks: blocklock.New(),
		cold: make(chan lookup.BlockNum, 64), untidy: make(chan struct{}, 1), clients: map[*View]client{},
	}
	v.commits.volume = v
	v.numbers.vluns.Store(new([]*VLUN))
	return v
}

// Name returns the volume's name.
func (v *Volume) Name() string { return v.name }

// Scope returns the scope of a plain connection.
func (v *Volume) Scope() Scope { return v.scope }

// tip returns the live VLUN.
func (v *Volume) tip() *VLUN { c := *v.chain.Load(); return c[len(c)-1] }

// VLUNs returns the chain, oldest first; the last is live. The slice is the
// caller's to read.
func (v *Volume) VLUNs() []*VLUN { return *v.chain.Load() }

// SizeBytes is the size of the live VLUN.
func (v *Volume) SizeBytes() int64 { return v.tip().SizeBytes() }

// Freeze lets nobody open the live VLUN any more, under no process either. It can
// still be preserved. ErrBusy if a client has it open, or a process named the
// volume; preserved views don't count.
func (v *Volume) Freeze() error {
	v.engine.mu.Lock()
	defer v.engine.mu.Unlock()
	if v.busyLocked() {
		return ErrBusy
	}
	v.frozen = true
	return nil
}

// Busy tells whether Freeze would be refused now.
func (v *Volume) Busy() bool {
	v.engine.mu.Lock()
	defer v.engine.mu.Unlock()
	return v.busyLocked()
}

func (v *Volume) busyLocked() bool {
	views, processes := v.liveUsesLocked()
	return views+processes > 0
}

// LiveUses counts what makes Freeze refuse: the open views of the live VLUN, and the
// processes that named the volume.
func (v *Volume) LiveUses() (views, processes int) {
	v.engine.mu.Lock()
	defer v.engine.mu.Unlock()
	return v.liveUsesLocked()
}

func (v *Volume) liveUsesLocked() (views, processes int) {
	views = v.views
	for _, k := range *v.chain.Load() {
		processes += len(k.processes)
		views -= k.views
	}
	return views, processes
}

// Thaw undoes Freeze and Evict; who was told to go goes.
func (v *Volume) Thaw() {
	v.engine.mu.Lock()
	defer v.engine.mu.Unlock()
	v.frozen, v.evicting = false, false
	v.refuse.Store(v.engine.closed)
}

// Uses returns how many views are open, those of snapshots too, and how many processes
// named the volume.
func (v *Volume) Uses() (views, processes int) {
	v.engine.mu.Lock()
	defer v.engine.mu.Unlock()
	for _, k := range *v.chain.Load() {
		processes += len(k.processes)
	}
	return v.views, processes
}

// Active tells whether a request runs, or one of a frontend's (View.Served) has had its
// reply within the time before now; at most a minute.
func (v *Volume) Active(within time.Duration) bool {
	at := now()
	return v.stalls.largest(at.Add(-within), at) > 0 || v.tip().requests() > 0
}

// Failed returns why the volume takes no writes, or nil.
func (v *Volume) Failed() error {
	if err := v.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// fail makes the volume refuse writes and flushes from now on, and notes it in
// the log: a later life of the server must not take what is in the page cache
// for what is on the disk. The first cause stays. commits.running is held.
func (v *Volume) fail(cause error) error {
	if err := v.Failed(); err != nil {
		return err
	}
	err := fmt.Errorf("volume %s: %w: %w", v.name, ErrFailed, cause)
	v.failed.Store(&err)
	if marked := v.log.MarkFailed(); marked != nil {
		err := fmt.Errorf("%w; and it could not be noted, so restart the machine, not just the server: %w", err, marked)
		v.failed.Store(&err)
	}
	return v.Failed()
}

// stripes spreads the in-flight counts so that connections don't share a cache
// line. A view keeps its stripe, so a request leaves by the one it entered by.
const stripes = 8

// stripe is one in-flight count, alone in its cache line.
type stripe struct {
	n atomic.Int64
	_ [56]byte
}

// VLUN is a virtual logical unit: images 1..k of a volume as one disk. Its own
// image, k, takes the writes of the processes that are bound to it.
type VLUN struct {
	volume *Volume
	order  uint64      // newer VLUNs of a volume have larger ones
	slot   lookup.Slot // stands for it in the index (numbers)
	id     image.ID
	image  atomic.Pointer[image.Image] // replaced once, when it is sealed
	table  *lookup.Table
	start  Epoch // the first epoch in which it is live

	sizeBytes atomic.Int64 // fixed at the cut
	tidied    atomic.Int64 // dense leaves of the table, as Volume.tidied
	fresh     fresh        // the blocks that the next flush covers
	stored    stored       // the blocks that the log has data of
	unsynced  unsynced     // the blocks that a failure of the next sync may lose
	reached   atomic.Bool  // a write through it may have changed a newer table or image
	unsound   atomic.Bool  // a sync of the image failed, and they may be lost
	conflicts atomic.Uint64
	state     atomic.Uint32 // State, once cut

	inflight [stripes]stripe
	cut      atomic.Bool   // it is live no more: requests that end wake the drain
	wake     chan struct{} // capacity 1

	quiet   chan struct{} // closed when no request and no process is bound to it
	drained chan struct{} // closed when it and every older one is quiet

	// Guarded by Engine.mu:
	processes map[*Process]struct{} // bound to it
	preserve  *Preserve             // the one whose own VLUN it is; nil while live
	quieted   bool                  // quiet is closed
	views     int                   // open views that read it for ever
	retired   bool                  // no more of them are opened
	torn      []Token               // processes that died while it, or an older one, drained
}

func newVLUN(v *Volume, order uint64, id image.ID, img image.Image, t *lookup.Table, start Epoch, sizeBytes int64) *VLUN {
	k := &VLUN{
		volume: v, order: order, id: id, table: t, start: start,
		wake: make(chan struct{}, 1), quiet: make(chan struct{}), drained: make(chan struct{}),
		processes: map[*Process]struct{}{},
	}
	k.image.Store(&img)
	k.unsynced.current.Store(lookup.NewTable())
	k.sizeBytes.Store(sizeBytes)
	return k
}

// endDrained makes a VLUN of an earlier life of the server one that has drained.
func (k *VLUN) endDrained(s State) {
	k.cut.Store(true)
	k.quieted = true
	k.state.Store(uint32(s))
	close(k.quiet)
	close(k.drained)
}

// Volume returns the volume that it is a VLUN of.
func (k *VLUN) Volume() *Volume { return k.volume }

// ImageID returns the ID of its own image.
func (k *VLUN) ImageID() image.ID { return k.id }

// Image returns its own image. Only the sealing of a drained VLUN may write
// through it, and nothing that a reader sees.
func (k *VLUN) Image() image.Image { return *k.image.Load() }

// Table returns the lookup table of its image. Reading an entry needs the
// block's lock, or that nobody writes.
func (k *VLUN) Table() *lookup.Table { return k.table }

// SizeBytes is its size; fixed once it is cut.
func (k *VLUN) SizeBytes() int64 { return k.sizeBytes.Load() }

// Live tells whether it is the newest of its volume.
func (k *VLUN) Live() bool { return k == k.volume.tip() }

// Cut tells whether its cut has been made: what begins now is not bound to it.
func (k *VLUN) Cut() bool { return k.cut.Load() }

// State returns the state of a preserved VLUN.
func (k *VLUN) State() State { return State(k.state.Load()) }

// SetSealed says that the snapshot is durable and recorded so. From then on its
// image is read through img, which holds the same bytes; a request that runs
// may go on with the old one.
func (k *VLUN) SetSealed(img image.Image) {
	k.image.Store(&img)
	k.state.Store(uint32(Sealed))
}

// Drained is closed when every process older than its cut has ended.
func (k *VLUN) Drained() <-chan struct{} { return k.drained }

// Conflicts counts the blocks that processes older than its cut read or wrote
// while a newer image than its own held them.
func (k *VLUN) Conflicts() uint64 { return k.conflicts.Load() }

// Torn lists the processes that died while it waited for them.
func (k *VLUN) Torn() []Token {
	k.volume.engine.mu.Lock()
	defer k.volume.engine.mu.Unlock()
	return append([]Token(nil), k.torn...)
}

// CutTime is when it was cut; zero while it is live, or if an earlier life of
// the server did it.
func (k *VLUN) CutTime() time.Time {
	k.volume.engine.mu.Lock()
	defer k.volume.engine.mu.Unlock()
	if k.preserve == nil {
		return time.Time{}
	}
	return k.preserve.cutTime
}

// Needed tells whether somebody may still read through it: it is live, or has not
// drained, or a preserved view of it is open, or its preserve still waits, for another
// volume then, and may be given up or get another cut. What is not needed never is
// again, unless a preserved view of it is opened.
func (k *VLUN) Needed() bool {
	if k.Live() || !k.isDrained() {
		return true
	}
	k.volume.engine.mu.Lock()
	defer k.volume.engine.mu.Unlock()
	return k.views > 0 || k.preserve != nil && k.preserve.phase == waiting
}

// Viewed tells whether a preserved view of it is open, for which Retire is refused.
func (k *VLUN) Viewed() bool {
	k.volume.engine.mu.Lock()
	defer k.volume.engine.mu.Unlock()
	return k.views > 0
}

// Retire lets nobody open a preserved view of some VLUNs, of one engine, any more;
// ErrBusy if one is open. The record is the caller's durable step; if it fails, they are
// as they were.
func Retire(record func() error, vluns ...*VLUN) error {
	if len(vluns) == 0 {
		return record()
	}
	e := vluns[0].volume.engine
	e.mu.Lock()
	if slices.ContainsFunc(vluns, func(k *VLUN) bool { return k.views > 0 }) {
		e.mu.Unlock()
		return ErrBusy
	}
	setRetired(vluns, true)
	e.mu.Unlock()
	err := record()
	if err != nil {
		e.mu.Lock()
		setRetired(vluns, false)
		e.mu.Unlock()
	}
	return err
}

func setRetired(vluns []*VLUN, retired bool) {
	for _, k := range vluns {
		k.retired = retired
	}
}

// Processes lists the processes that are bound to it.
func (k *VLUN) Processes() []*Process {
	k.volume.engine.mu.Lock()
	defer k.volume.engine.mu.Unlock()
	list := make([]*Process, 0, len(k.processes))
	for p := range k.processes {
		list = append(list, p)
	}
	return list
}

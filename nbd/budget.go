package nbd

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// errStalled: the client was cut off, see budget.
var errStalled = errors.New("nbd: the client moved no data for memory that it held and others waited for")

const (
	// shareBytes is what every connection may have in work without drawing on
	// the budget.
	shareBytes = 16 << 10
	// commandBytes is what a command in work costs besides its payload or
	// reply: its task, and the stack of its worker.
	commandBytes = 8 << 10
	// MinTotalBufferBytes leaves each half of the budget room for the largest
	// request; a smaller Options.TotalBufferBytes counts as it.
	MinTotalBufferBytes = 4 * maxPayloadBytes
	// minMovedBytes is the least that counts as progress.
	minMovedBytes = 64 << 10
	// passShare is the part of the desks' half that is for passes.
	passShare = 8
)

// A budget bounds the memory that clients make a server hold, and says who may
// have it.
//
// Goal: no number of clients, however they behave, makes the server hold more
// than
//
//	TotalBufferBytes + connections x (shareBytes + 2 x smallBytes)
//
// beside its goroutines, the handshakes (maxHandshakes, each less than 64 KiB),
// and for each connection over TLS waitBytes and the records that crypto/tls
// holds, one each way; and none keeps another one from being served.
//
//  1. One half is for desks, the large buffers that a session with much to do
//     works at, and for passes, which spare it system calls over TLS. Nobody
//     waits for them: a session without a desk works in pieces of smallBytes,
//     one without a pass record by record. A desk is given back before the
//     session waits for its client to send, but for a payload that is half in it;
//     those that look before they wait (patience), a few at most, keep theirs.
//  2. The other half is for commands: what a payload, a read's data or a
//     status reply takes, from before the payload is received or the data is
//     read until the reply is in the socket. A command draws all that it will
//     need at once, and holds nothing of this half while it waits to draw; so
//     those that hold can finish, and who waits gets its turn: first come,
//     first served. (What is left of a write with FUA once its payload is
//     stored, the flush, is a command of its own: it draws when the payload
//     was given back.)
//  3. What a connection has in work up to shareBytes draws nothing and so
//     waits for nobody else: requests of a block are served whoever holds the
//     budget.
//  4. A connection has at most ClientBufferBytes and handedCount commands in
//     work; the next waits for its own to finish.
//  5. Who holds and has its client to blame, that is waits for the rest of a
//     payload or for the client to read replies, must move an eighth of what
//     it holds, and at least minMovedBytes, within StallTimeout while others
//     wait, or is cut off. What is moved counts as it goes into the socket,
//     also in the middle of a write, and comes out, over TLS a record at a
//     time. While nobody waits a client may take for ever.
//
// Rejected: a deadline for each read and write, for it would cut an honest slow
// client where nobody needs what it holds; a limit for each connection alone,
// for times connections it is more than any machine has; to write in pieces
// that are small enough to count, for they cost who is in nobody's way.
type budget struct {
	commandLimit int64 // bytes
	clientLimit  int64 // bytes
	deskLimit    int64 // desks
	passLimit    int64 // passes
	stallTimeout time.Duration

	desks  atomic.Int64 // taken
	passes atomic.Int64 // taken

	mu       sync.Mutex
	used     int64 // bytes of commands beyond each connection's share
	accounts map[*account]struct{}
	waiting  []*account // first come first; each has wants
	pressed  bool       // a desk or a pass was refused since the watch looked last
	watching bool       // watch runs
}

func newBudget(totalBytes, clientBytes int64, stallTimeout time.Duration) *budget {
	half := max(totalBytes, MinTotalBufferBytes) / 2
	return &budget{
		commandLimit: half,
		clientLimit:  clientBytes,
		deskLimit:    (half - half/passShare) / deskBytes,
		passLimit:    half / passShare / passBytes,
		stallTimeout: max(stallTimeout, minStallTimeout),
		accounts:     map[*account]struct{}{},
	}
}

// An account is what one connection holds of a budget. One goroutine enters;
// any may leave.
type account struct {
	budget *budget
	nc     net.Conn // the one to close; under TLS what that runs over

	moved    atomic.Int64 // bytes that went through the socket
	awaiting atomic.Int32 // reads and writes that wait for the client while something is held
	atDesk   atomic.Bool
	passes   atomic.Int32
	stalled  atomic.Bool

	count atomic.Int32  // commands in work; changes under budget.mu
	ready chan struct{} // told once what enter waits for was granted

	// Guarded by budget.mu.
	bytes       int64 // their payloads and replies
	wants       int64 // what enter waits for, with commandBytes; 0 it does not
	queued      bool  // in budget.waiting
	markedAt    time.Time
	markedBytes int64     // moved then
	nudged      bool      // the socket's write deadline is in the past only to wake Write
	writeBy     time.Time // what it is otherwise
}

// open adds a connection.
func (b *budget) open(nc net.Conn) *account {
	a := &account{budget: b, nc: nc, ready: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accounts[a] = struct{}{}
	return a
}

// close removes a connection that holds nothing any more.
func (a *account) close() {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.accounts, a)
}

// tryEnter is enter that does not wait; false when there is no room.
func (a *account) tryEnter(costBytes int64) bool {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if !a.room(costBytes) || !b.affords(a, costBytes) {
		return false
	}
	b.grant(a, costBytes)
	return true
}

// enter draws for a command, and waits for room.
func (a *account) enter(costBytes int64) {
	b := a.budget
	b.mu.Lock()
	a.wants = costBytes + commandBytes
	b.settle(a)
	b.mu.Unlock()
	<-a.ready
}

// leave gives back what n commands drew, costBytes together.
func (a *account) leave(n int, costBytes int64) {
	b := a.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	before := a.excess(0)
	a.count.Add(int32(-n))
	a.bytes -= costBytes
	b.used -= before - a.excess(0)
	if a.wants > 0 {
		b.settle(a)
	}
	for len(b.waiting) > 0 && b.settle(b.waiting[0]) {
	}
}

// inWork is the number of commands.
func (a *account) inWork() int { return int(a.count.Load()) }

func (a *account) idle() bool { return a.inWork() == 0 }

// room tells whether (4) allows a command; it always does when no other is there.
func (a *account) room(costBytes int64) bool {
	return a.idle() || a.inWork() < handedCount && a.bytes+costBytes <= a.budget.clientLimit
}

// excess is what the account draws on the budget with moreBytes added to it.
func (a *account) excess(moreBytes int64) int64 {
	return max(0, a.bytes+int64(a.inWork())*commandBytes+moreBytes-shareBytes)
}

// affords tells whether a may draw now. Who waits comes first, but for what
// costs them nothing.
func (b *budget) affords(a *account, costBytes int64) bool {
	more := a.excess(costBytes+commandBytes) - a.excess(0)
	first := len(b.waiting) == 0 || b.waiting[0] == a
	return more == 0 || first && b.used+more <= b.commandLimit
}

func (b *budget) grant(a *account, costBytes int64) {
	before := a.excess(0)
	a.count.Add(1)
	a.bytes += costBytes
	b.used += a.excess(0) - before
}

// settle grants what a wants, or has it wait; true if it granted.
func (b *budget) settle(a *account) bool {
	costBytes := a.wants - commandBytes
	if !a.room(costBytes) {
		return false // its own must leave first
	}
	if !b.affords(a, costBytes) {
		if !a.queued {
			a.queued = true
			b.waiting = append(b.waiting, a)
			b.startWatch()
		}
		return false
	}
	if a.queued {
		a.queued = false
		i := slices.Index(b.waiting, a)
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
	b.grant(a, costBytes)
	a.wants = 0
	a.ready <- struct{}{}
	return true
}

// takeDesk tells whether there is a desk for the session.
func (a *account) takeDesk() bool {
	b := a.budget
	if b.desks.Add(1) <= b.deskLimit {
		a.atDesk.Store(true)
		return true
	}
	b.desks.Add(-1)
	b.press()
	return false
}

func (a *account) leaveDesk() {
	a.atDesk.Store(false)
	a.budget.desks.Add(-1)
}

// takePass tells whether there is a pass for the connection.
func (a *account) takePass() bool {
	b := a.budget
	if b.passes.Add(1) <= b.passLimit {
		a.passes.Add(1)
		return true
	}
	b.passes.Add(-1)
	b.press()
	return false
}

func (a *account) leavePass() {
	a.passes.Add(-1)
	a.budget.passes.Add(-1)
}

// press notes that somebody goes without.
func (b *budget) press() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pressed = true
	b.startWatch()
}

// Write implements io.Writer: it writes to the socket, and counts what went
// through whenever it is nudged.
func (a *account) Write(p []byte) (n int, err error) {
	for {
		var k int
		k, err = a.nc.Write(p[n:])
		n += k
		a.moved.Add(int64(k))
		if n == len(p) || !errors.Is(err, os.ErrDeadlineExceeded) || !a.wasNudged() {
			return n, err
		}
	}
}

// nudge wakes Write; budget.mu is held.
func (a *account) nudge() {
	a.nudged = true
	_ = a.nc.SetWriteDeadline(longAgo)
}

// wasNudged tells whether that is why a write of the socket ended, and lets the
// next one wait again.
func (a *account) wasNudged() bool {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	was := a.nudged
	a.nudged = false
	if was {
		_ = a.nc.SetWriteDeadline(a.writeBy)
	}
	return was
}

// setWriteBy sets a deadline for Write.
func (a *account) setWriteBy(deadline time.Time) {
	a.budget.mu.Lock()
	defer a.budget.mu.Unlock()
	a.writeBy = deadline
	_ = a.nc.SetWriteDeadline(deadline)
}

const (
	// watchSteps is how often in a StallTimeout the watch looks.
	watchSteps = 4
	// minStallTimeout is what a shorter one counts as.
	minStallTimeout = 10 * time.Millisecond
)

// startWatch has the holders watched as long as somebody waits.
func (b *budget) startWatch() {
	if b.watching {
		return
	}
	b.watching = true
	for a := range b.accounts {
		a.mark(time.Now())
	}
	go b.watch()
}

func (b *budget) watch() {
	tick := time.NewTicker(b.stallTimeout / watchSteps)
	defer tick.Stop()
	for b.look(<-tick.C) {
	}
}

// look cuts off who stalls (5); false when nobody waits any more. What a write
// has moved is known at the look after the nudge, so that a StallTimeout takes
// one step more.
func (b *budget) look(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watching = len(b.waiting) > 0 || b.pressed
	b.pressed = false
	for a := range b.accounts {
		held := a.held()
		if held == 0 || a.awaiting.Load() == 0 {
			a.mark(now)
			continue
		}
		switch {
		case a.moved.Load()-a.markedBytes >= max(held/8, minMovedBytes),
			a.markedAt.IsZero():
			a.mark(now)
		case now.Sub(a.markedAt) >= b.stallTimeout+b.stallTimeout/watchSteps:
			a.stalled.Store(true)
			_ = a.nc.Close()
		}
		a.nudge()
	}
	return b.watching
}

// held is what others could have if a gave it back.
func (a *account) held() int64 {
	held := a.excess(0) + int64(a.passes.Load())*passBytes
	if a.atDesk.Load() {
		held += deskBytes
	}
	return held
}

func (a *account) mark(now time.Time) {
	a.markedAt, a.markedBytes = now, a.moved.Load()
}

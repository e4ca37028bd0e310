package nbd

import (
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// briefWait is how long a session looks for what its client sends next before
	// it waits: a little more than a client takes from a reply to its next request.
	briefWait = 50 * time.Microsecond
	// betweenLooks leaves the socket to the client, who needs its lock to send.
	betweenLooks = 700 * time.Nanosecond
)

// A patience says whether a session looks for its client's next bytes again and
// again before it waits for them. To wait costs three system calls, a pass of the
// scheduler and the wake of a processor that has gone to sleep, and it costs the
// client too: who sends to somebody who sleeps has to wake them.
//
//  1. Only for a client whose last wait was brief, and for briefWait: one that
//     thinks, or has nothing to do, is waited for.
//  2. Who looks keeps a processor busy. At most GOMAXPROCS-1 sessions of the
//     process do it at once, so that one is always left to everything else.
//
// Rejected: poll(2) on the session's own thread, which spares it the runtime's
// poller and no more (the processor goes to sleep as before).
type patience struct {
	brief bool // the last wait was; no client is known to be quick at first
}

// looking is how many sessions of the process look.
var looking atomic.Int32

// begin tells whether it is worth to look, and allowed; then end follows.
func (w *patience) begin() bool {
	if !w.brief {
		return false
	}
	if int(looking.Add(1)) >= runtime.GOMAXPROCS(0) {
		looking.Add(-1)
		return false
	}
	return true
}

func (w *patience) end() { looking.Add(-1) }

// again lets a moment pass; false when it was looked for long enough.
func (w *patience) again(since time.Time) bool {
	for from := time.Now(); ; {
		switch now := time.Now(); {
		case now.Sub(since) >= briefWait:
			return false
		case now.Sub(from) >= betweenLooks:
			return true
		}
	}
}

// learn is told how long a wait was.
func (w *patience) learn(d time.Duration) { w.brief = d < briefWait }

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
//  1. For briefWait, and for a client of whom such looks find something. After one in
//     vain the next wait has none, after two in a row the next three, then seven: a
//     client that thinks, or has nothing to do, costs a look in 64 waits.
//  2. Who looks keeps a processor busy, which is no gain where others need it: nobody
//     looks while as many sessions as there are processors have something to do. So at
//     most GOMAXPROCS-1 look at once.
//
// Rejected: poll(2) on the session's own thread, which spares it the runtime's
// poller and no more (the processor goes to sleep as before); to look for a client
// whose last wait was brief (a wait asleep is seldom brief, as the client has to wake
// the session: after one hiccup a quick client was taken for a slow one for good).
type patience struct {
	vain  int  // looks in a row that found nothing, as far as it matters
	rests int  // waits that are still to have no look
	waits bool // the last read found nothing: what follows is the wait, and has had its look
	awake bool // it counts as such
}

// mostVain looks in a row are as many as matter.
const mostVain = 6

// awake is how many sessions of the process do not wait for their clients.
var awake atomic.Int32

// read is readNow, with looks for what comes next; if it then still waits, what follows
// is the wait.
func (w *patience) read(fd uintptr, p []byte) (n int, waits bool, err error) {
	w.wake()
	n, waits, err = readNow(fd, p)
	if waits && !w.waits && w.begin() {
		for since := time.Now(); waits && w.again(since); {
			n, waits, err = readNow(fd, p)
		}
		w.end(!waits)
	}
	if w.waits = waits; waits {
		w.sleep()
	}
	return n, waits, err
}

func (w *patience) wake() {
	if !w.awake {
		w.awake = true
		awake.Add(1)
	}
}

// sleep begins a wait, or ends the session.
func (w *patience) sleep() {
	if w.awake {
		w.awake = false
		awake.Add(-1)
	}
}

// begin tells whether it is worth to look, and allowed; then end follows.
func (w *patience) begin() bool {
	if w.rests > 0 {
		w.rests--
		return false
	}
	return int(awake.Load()) < runtime.GOMAXPROCS(0)
}

// end is told whether the look found something.
func (w *patience) end(found bool) {
	if found {
		w.vain = 0
		return
	}
	w.vain = min(w.vain+1, mostVain)
	w.rests = 1<<w.vain - 1
}

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

package nbd

import (
	"runtime"
	"sync/atomic"
	"time"
)

// briefWait is how long a session may look for its client's next request before
// it waits for it.
const briefWait = 50 * time.Microsecond

type patience struct {
	brief bool // the last wait was
}

var looking atomic.Int32

// look tries to read until it gets something, for briefWait.
func (w *patience) look(from time.Time, try func() bool) (some bool) {
	if !w.brief {
		return false
	}
	defer looking.Add(-1)
	if int(looking.Add(1)) >= runtime.GOMAXPROCS(0) {
		return false
	}
	for time.Since(from) < briefWait {
		if try() {
			return true
		}
		for range 64 {
			pause.Load()
		}
	}
	return false
}

var pause atomic.Int32

// learn is told how long a wait was.
func (w *patience) learn(d time.Duration) { w.brief = d < briefWait }

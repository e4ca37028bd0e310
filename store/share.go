package store

import (
	"context"
	"time"
)

// A share is how the background works beside clients: while there are requests, it
// pauses after each piece of work, so that it takes no more than its share of the
// time. On a machine whose processors or disk they fill, whatever it does they wait
// for. Where nobody asks for anything it does not pause.
type share struct {
	percent func() int  // of the time that it may work, as it is now
	busy    func() bool // tells whether there are requests
	idle    func()      // is called between two pieces of work; nil: there is nothing to do then
	begun   time.Time   // to work, after the last pause
	now     int         // percent, when it was last asked
	asked   time.Time   // then
}

const (
	// shareLeast is the shortest pause, as timers go: it works on until it owes so long
	// a one, and no longer, since whoever asks meanwhile may wait for all of that.
	shareLeast = 2 * time.Millisecond
	shareMost  = 100 * time.Millisecond // is the longest pause
	// shareBusy is how long ago the last request may be.
	shareBusy = 50 * time.Millisecond
)

func newShare(percent func() int, busy func() bool) *share {
	return &share{percent: percent, busy: busy, begun: time.Now()}
}

// wholeShare is for work that does not pause.
func wholeShare() *share {
	return newShare(func() int { return 100 }, func() bool { return false })
}

// rest ends a piece of work, which is to take so long at least, whoever is there. Its
// error is that of ctx.
func (x *share) rest(ctx context.Context, atLeast time.Duration) error {
	worked := time.Since(x.begun)
	if x.now == 0 || time.Since(x.asked) >= shareLeast/4 { // it may be asked at each block
		x.now, x.asked = x.percent(), time.Now()
	}
	rest, owed := atLeast-worked, worked*time.Duration(100-x.now)/time.Duration(x.now)
	if owed >= shareLeast && x.busy() {
		rest = max(rest, min(owed, shareMost))
	}
	err := pause(ctx, rest)
	if x.idle != nil && err == nil {
		x.idle()
	}
	if owed >= shareLeast || rest > 0 {
		x.begun = time.Now()
	}
	return err
}

// pause lets time pass, for others. Its error is that of ctx.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return ctx.Err()
}

// reclaimShare is that of giving back room, and of folds.
func (s *Store) reclaimShare(idle func()) *share {
	x := newShare(func() int { return s.reclaimPercent }, s.serving)
	x.idle = idle
	return x
}

// serving tells whether any volume has requests.
func (s *Store) serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range s.byVolume {
		if v.Active(shareBusy) {
			return true
		}
	}
	return false
}

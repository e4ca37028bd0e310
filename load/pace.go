package load

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/nbd/client"
)

// A schedule is when the requests of a stream are due, if there is a rate. It is
// guarded by the stream's mu.
type schedule struct {
	everyNanos float64 // 0: a request is due when a slot is free
	firstNanos float64
	count      int64 // requests begun
	idle       []*slot
	changed    chan struct{} // a slot became idle, or the run is over
}

// newSchedule shares the rate between the connections, which take turns.
func newSchedule(o *Options, index int) schedule {
	s := schedule{changed: make(chan struct{}, 1)}
	if o.Rate > 0 {
		between := float64(time.Second) / o.Rate
		s.everyNanos, s.firstNanos = between*float64(o.Connections), between*float64(index)
	}
	return s
}

// due is when the next request is to begin.
func (s *schedule) due() time.Duration {
	return time.Duration(s.firstNanos + float64(s.count)*s.everyNanos)
}

// dueBefore is how many requests are due before an end.
func (s *schedule) dueBefore(end time.Duration) int64 {
	if s.everyNanos == 0 || float64(end) <= s.firstNanos {
		return 0
	}
	return int64((float64(end)-s.firstNanos)/s.everyNanos-1e-9) + 1
}

// rest has a slot wait until the next request is due.
func (s *schedule) rest(p *slot) {
	s.idle = append(s.idle, p)
	s.wake()
}

func (s *schedule) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// maxSleep is how late the pacer notices that the run is over.
const maxSleep = 20 * time.Millisecond

// pace sends the requests that are due off on the slots that are idle. Those that
// find no idle slot begin, late, when one becomes free: see next.
func (s *stream) pace() {
	// The thread is not used for anything else, for its timers are finer.
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // else a sleep is 50 us longer
	ready := make([]*client.Request, 0, len(s.slots))
	for {
		now := time.Since(s.began)
		ready = ready[:0]
		s.mu.Lock()
		for i := s.schedule.takeIdle(); i != nil; i = s.schedule.takeIdle() {
			if !s.next(i, now) {
				break
			}
			ready = append(ready, &i.request)
		}
		over := s.over
		wait := len(s.schedule.idle) == 0
		until := s.schedule.due() - now
		s.mu.Unlock()
		if len(ready) > 0 {
			s.start(ready)
		}
		switch {
		case over:
			s.mu.Lock()
			s.inFlight--
			s.settle()
			s.mu.Unlock()
			return
		case wait:
			<-s.schedule.changed
		default:
			s.options.sleep(min(until, maxSleep))
		}
	}
}

func (s *schedule) takeIdle() *slot {
	n := len(s.idle)
	if n == 0 {
		return nil
	}
	p := s.idle[n-1]
	s.idle = s.idle[:n-1]
	return p
}

// sleepPrecisely sleeps without the runtime's timers, which are up to a
// millisecond late in an idle program.
func sleepPrecisely(d time.Duration) {
	if d <= 0 {
		return
	}
	t := unix.NsecToTimespec(int64(d))
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &t, nil) // a signal ends it early: the pacer looks at the time
}

package volume

import (
	"sync/atomic"
	"time"
)

// stalls keeps the longest time from arrival to reply of a volume's requests,
// by the time of the reply, for the last minute and a bit. It is written by
// every batch of requests, so it is a ring of words without a lock. A volume that was
// never asked for anything has none.
type stalls struct {
	ring atomic.Pointer[stallRing]
}

type stallRing [stallSlots]atomic.Uint64

const (
	stallSlots = 8192
	stallSlot  = 10 * time.Millisecond
)

// A word is the number of its slot of time (high half) and the longest time
// that ended there, in microseconds (low half).
func (s *stalls) observe(arrival, reply time.Time) {
	slot := uint64(reply.UnixNano()) / uint64(stallSlot)
	micros := uint64(max(0, min(reply.Sub(arrival).Microseconds(), 1<<32-1)))
	word := slot<<32 | micros
	cell := &s.words()[slot%stallSlots]
	for {
		old := cell.Load()
		if old>>32 == word>>32 && old >= word {
			return
		}
		if cell.CompareAndSwap(old, word) {
			return
		}
	}
}

// words makes the ring at the first request.
func (s *stalls) words() *stallRing {
	if ring := s.ring.Load(); ring != nil {
		return ring
	}
	s.ring.CompareAndSwap(nil, new(stallRing))
	return s.ring.Load()
}

// largest returns the longest time of replies between two moments, widened to
// whole slots. It sees as far back as the ring is long.
func (s *stalls) largest(from, to time.Time) (d time.Duration) {
	first := uint64(from.UnixNano()) / uint64(stallSlot)
	last := uint64(to.UnixNano()) / uint64(stallSlot)
	if last-first >= stallSlots {
		first = last - stallSlots + 1
	}
	ring := s.ring.Load()
	if ring == nil {
		return 0
	}
	for slot := first; slot <= last; slot++ {
		if word := ring[slot%stallSlots].Load(); word>>32 == slot&(1<<32-1) {
			d = max(d, time.Duration(word&(1<<32-1))*time.Microsecond)
		}
	}
	return d
}

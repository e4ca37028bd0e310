//go:build yield && linux

package yield

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Enabled tells whether Here does anything.
const Enabled = true

var (
	seed   atomic.Uint64
	steps  atomic.Uint64
	visits sync.Map // Point -> *atomic.Uint64
)

// Seed sets what the choices follow from, for all goroutines. The order in which
// they come to their points does the rest, so a seed repeats the pressure, not
// the interleaving. It may be called at any time.
func Seed(n uint64) {
	seed.Store(n)
	steps.Store(0)
}

// Here lets others run, by chance: mostly not at all, else it goes to the end of
// the queue, spins for about the length of a request, or is away for long enough
// that others do several. It may be called with locks held.
func Here(p Point) {
	count, ok := visits.Load(p)
	if !ok {
		count, _ = visits.LoadOrStore(p, new(atomic.Uint64))
	}
	count.(*atomic.Uint64).Add(1)
	chance := mix(seed.Load() ^ mix(steps.Add(1)))
	switch amount := chance >> 32; chance % 64 {
	default:
	case 0, 1, 2, 3, 4, 5, 6, 7, 8, 9:
		runtime.Gosched()
	case 10, 11, 12:
		for range 1 + amount%16 {
			runtime.Gosched()
		}
	case 13, 14, 15:
		for range amount % 4096 {
			spun.Load()
		}
	case 16:
		// By the system's clock: in a bubble of testing/synctest, that of package
		// time stands still as long as somebody polls for what is away here.
		park := unix.NsecToTimespec(int64(amount % uint64(100*time.Microsecond)))
		_ = unix.Nanosleep(&park, nil) // shorter does as well
	}
}

// spun is read by who spins.
var spun atomic.Uint64

// Visits returns how often a point was passed.
func Visits(p Point) uint64 {
	if count, ok := visits.Load(p); ok {
		return count.(*atomic.Uint64).Load()
	}
	return 0
}

// mix is the finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of
// its result depends on every bit of n.
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

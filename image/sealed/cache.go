package sealed

import (
	"sync"
	"sync/atomic"
)

// DefaultCacheBytes is the memory for sums of a server that was told nothing
// else: the sums of 62 GiB where blocks lie together, of 25 GiB where none has a
// neighbour.
const DefaultCacheBytes = 64 << 20

// Cache holds pages of sums of any number of images, at most as many as it was
// made for. Any number of goroutines may use it.
//
// A page has its place in one of 8 slots of the set that its file and number hash
// to. To find it takes no lock: a look at 8 words of one cache line, then
// the page that one of them points at says itself which it is. A page that is
// put in takes the slot of one that was not found since the hand of its set
// came by (clock).
//
// Rejected: one clock over a map (a lock for each hit, or a map that is copied);
// a directory of pointers in each image (memory that nothing bounds).
type Cache struct {
	sets []set
	put  sync.Mutex
}

const (
	ways        = 8
	cachedBytes = pageBytes + 64 // with cached, and its share of a set
)

type set struct {
	tags  [ways]atomic.Uint64 // hash of what is in the slot, or was a moment ago
	pages [ways]atomic.Pointer[cached]
	hand  int // guarded by Cache.put
}

type cached struct {
	opened uint64 // of the checksum file
	number int
	used   atomic.Bool
	sums   *sumPage
}

// NewCache returns a cache that takes about as much memory as it is given, and
// at least that of one set.
func NewCache(sizeBytes int64) *Cache {
	return &Cache{sets: make([]set, max(1, sizeBytes/(ways*cachedBytes)))}
}

// find returns a page, or nil if it is not there.
func (c *Cache) find(opened uint64, number int) *sumPage {
	s, tag := c.set(opened, number)
	for i := range s.tags {
		if s.tags[i].Load() != tag {
			continue
		}
		if p := s.pages[i].Load(); p != nil && p.opened == opened && p.number == number {
			if !p.used.Load() {
				p.used.Store(true)
			}
			return p.sums
		}
	}
	return nil
}

// add puts a page in.
func (c *Cache) add(opened uint64, number int, sums *sumPage) {
	s, tag := c.set(opened, number)
	c.put.Lock()
	defer c.put.Unlock()
	for {
		i := s.hand
		s.hand = (s.hand + 1) % ways
		if p := s.pages[i].Load(); p == nil || !p.used.Swap(false) {
			s.pages[i].Store(&cached{opened: opened, number: number, sums: sums})
			s.tags[i].Store(tag)
			return
		}
	}
}

// drop takes a page out, if it is there. It is held up by nobody who reads.
func (c *Cache) drop(opened uint64, number int) {
	s, _ := c.set(opened, number)
	c.put.Lock()
	defer c.put.Unlock()
	for i := range s.pages { // who loaded it at the same time put it in twice
		if p := s.pages[i].Load(); p != nil && p.opened == opened && p.number == number {
			s.pages[i].Store(nil)
		}
	}
}

// set returns where a page has its place, and its tag: file and number, mixed
// as splitmix64 does.
func (c *Cache) set(opened uint64, number int) (_ *set, tag uint64) {
	x := opened*0x9e3779b97f4a7c15 + uint64(number)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return &c.sets[x%uint64(len(c.sets))], x
}

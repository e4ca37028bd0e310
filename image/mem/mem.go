// Package mem keeps an image in memory: for tests, and for programs that embed
// Tidemark and want no disk.
package mem

import (
	"io/fs"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/tidemark/tidemark/image"
)

const (
	pageBytes = 64 << 10
	numShards = 16
)

// Image is an image.Image in memory: a sparse map of pages. It never waits for
// anything but the map's own locks, and Sync has nothing to do.
//
// The locks guard the map, not the bytes of a page: those are copied outside of
// them, so that the race detector finds a caller that does not keep
// overlapping transfers apart. (Copying under a lock would hide exactly the
// mistake that this image can help to find.)
type Image struct {
	shards [numShards]shard
	closed atomic.Bool
}

var _ image.Image = (*Image)(nil)

// shard holds the pages whose number is its index modulo numShards.
type shard struct {
	mu    sync.RWMutex
	pages map[int64]*page // nil: reserved by Zero, not written yet
}

type page [pageBytes]byte

// New returns an empty image.
func New() *Image {
	m := &Image{}
	for i := range m.shards {
		m.shards[i].pages = map[int64]*page{}
	}
	return m
}

// ReadAt implements image.Image.
func (m *Image) ReadAt(p []byte, off int64) (n int, err error) {
	if err := m.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n < len(p) {
		number, within, length := split(off+int64(n), int64(len(p)-n))
		part := p[n : n+int(length)]
		if pg := m.page(number); pg != nil {
			copy(part, pg[within:])
		} else {
			clear(part)
		}
		n += int(length)
	}
	return n, nil
}

// TryReadAt implements image.Image: memory is always at hand.
func (m *Image) TryReadAt(p []byte, off int64) (n int, err error) { return m.ReadAt(p, off) }

// WriteAt implements image.Image.
func (m *Image) WriteAt(p []byte, off int64) (n int, err error) {
	if err := m.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n < len(p) {
		number, within, length := split(off+int64(n), int64(len(p)-n))
		copy(m.pageForWrite(number)[within:], p[n:n+int(length)])
		n += int(length)
	}
	return n, nil
}

// Punch implements image.Image. Only whole pages give their storage back.
func (m *Image) Punch(off, lengthBytes int64) error {
	if err := m.check(off, lengthBytes); err != nil {
		return err
	}
	first, end := off/pageBytes, (off+lengthBytes)/pageBytes
	if off%pageBytes != 0 {
		first++
	}
	m.dropPages(first, end)
	for lengthBytes > 0 {
		number, within, length := split(off, lengthBytes)
		if number == first && first < end { // dropped: go on behind them
			length = end*pageBytes - off
		} else if pg := m.page(number); pg != nil {
			clear(pg[within : within+length])
		}
		off, lengthBytes = off+length, lengthBytes-length
	}
	return nil
}

// Zero implements image.Image.
func (m *Image) Zero(off, lengthBytes int64) error {
	if err := m.check(off, lengthBytes); err != nil {
		return err
	}
	for lengthBytes > 0 {
		number, within, length := split(off, lengthBytes)
		if pg := m.reserve(number); pg != nil {
			clear(pg[within : within+length])
		}
		off, lengthBytes = off+length, lengthBytes-length
	}
	return nil
}

// Prefetch implements image.Image: all of it is at hand.
func (m *Image) Prefetch(off, lengthBytes int64) error { return m.check(off, lengthBytes) }

// WriteBack implements image.Image.
func (m *Image) WriteBack(off, lengthBytes int64) error { return m.check(off, lengthBytes) }

// Sync implements image.Image: memory is as durable as it gets.
func (m *Image) Sync() error { return m.check(0, 0) }

// Allocated implements image.Image.
func (m *Image) Allocated() (sizeBytes int64, err error) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.RLock()
		sizeBytes += int64(len(s.pages)) * pageBytes
		s.mu.RUnlock()
	}
	return sizeBytes, m.check(0, 0)
}

// Close implements image.Image. Any later call returns fs.ErrClosed.
func (m *Image) Close() error {
	if m.closed.Swap(true) {
		return fs.ErrClosed
	}
	return nil
}

func (m *Image) check(off, lengthBytes int64) error {
	if m.closed.Load() {
		return fs.ErrClosed
	}
	return image.CheckRange(off, lengthBytes)
}

// split cuts the first page's share off a range.
func split(off, lengthBytes int64) (number, within, length int64) {
	number, within = off/pageBytes, off%pageBytes
	return number, within, min(lengthBytes, pageBytes-within)
}

func (m *Image) shard(number int64) *shard { return &m.shards[number%numShards] }

// page returns a page, nil if nothing was written to it.
func (m *Image) page(number int64) *page {
	s := m.shard(number)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.pages[number]
}

func (m *Image) pageForWrite(number int64) *page {
	if pg := m.page(number); pg != nil {
		return pg
	}
	s := m.shard(number)
	s.mu.Lock()
	defer s.mu.Unlock()
	pg := s.pages[number]
	if pg == nil {
		pg = new(page)
		s.pages[number] = pg
	}
	return pg
}

// reserve makes sure that a page takes up storage, and returns it if it has
// bytes.
func (m *Image) reserve(number int64) *page {
	s := m.shard(number)
	s.mu.Lock()
	defer s.mu.Unlock()
	pg := s.pages[number]
	s.pages[number] = pg
	return pg
}

// dropPages removes the pages first..end-1. It walks the range, or the maps if
// the range is long: a trim may be as large as the volume.
func (m *Image) dropPages(first, end int64) {
	const long = 1024 // pages
	if end-first <= long {
		for number := first; number < end; number++ {
			s := m.shard(number)
			s.mu.Lock()
			delete(s.pages, number)
			s.mu.Unlock()
		}
		return
	}
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		maps.DeleteFunc(s.pages, func(number int64, _ *page) bool { return first <= number && number < end })
		s.mu.Unlock()
	}
}

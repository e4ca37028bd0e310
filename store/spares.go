package store

import (
	"errors"
	"fmt"
	"sync"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/volume"
)

// Bare image files are kept ready, so that a preserve need not wait for a
// directory to be synced: two for each volume, within bounds, so that a preserve of all
// finds some while others are made in place of those that the last one took. Beside a
// busy disk that takes a tenth of a second and more.
const (
	leastSpares = 4
	mostSpares  = 256
)

// spares are image files that belong to no volume yet: an ID that is never used
// again, and an empty file whose name is durable. They are handed out in the
// order of their IDs, so that a chain is in that order too.
type spares struct {
	store   *Store
	filling sync.WaitGroup

	making sync.Mutex // held while some are made, so that IDs stay in order; taken before mu
	mu     sync.Mutex
	free   []volume.Next
	closed bool
}

// take hands out n images. It waits for the disk, and for who makes more ahead, only
// if there are not so many.
func (p *spares) take(n int) ([]volume.Next, error) {
	for {
		if taken, there := p.ready(n); there {
			return taken, nil
		}
		p.making.Lock()
		err := p.make(n)
		p.making.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// ready hands out n images that are there, or none.
func (p *spares) ready(n int) (taken []volume.Next, there bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < n {
		return nil, false
	}
	taken, p.free = p.free[:n:n], p.free[n:]
	return taken, true
}

// refill makes spares in the background. One that can't be made is missed by
// the next preserve, which then says why.
func (p *spares) refill() {
	s := p.store
	s.mu.Lock()
	ahead := min(max(2*len(s.volumes), leastSpares), mostSpares)
	s.mu.Unlock()
	p.filling.Add(1)
	go func() {
		defer p.filling.Done()
		p.making.Lock()
		defer p.making.Unlock()
		if err := p.make(ahead); err != nil && !errors.Is(err, ErrClosed) {
			s.logger.Warn("making images ahead", "err", err)
		}
	}()
}

// make brings the number of free images to n: IDs first, durably, then files. making
// is held.
func (p *spares) make(n int) error {
	p.mu.Lock()
	n -= len(p.free)
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if n <= 0 {
		return nil
	}
	s := p.store
	ids := make([]image.ID, n)
	if err := s.catalog.Update(func(tx *catalog.Tx) (err error) {
		for i := range ids {
			if ids[i], err = tx.NewImageID(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	var made []volume.Next
	err := func() error {
		for _, id := range ids {
			img, err := file.Create(s.fs, imagesDir(s.dir), id, file.Options{})
			if err != nil {
				return fmt.Errorf("make image: %w", err)
			}
			made = append(made, volume.Next{ID: id, Image: img})
		}
		return s.fs.SyncDir(imagesDir(s.dir))
	}()
	if err != nil {
		return errors.Join(err, p.remove(made))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, made...)
	return nil
}

func (p *spares) remove(made []volume.Next) (err error) {
	for _, n := range made { // which nobody has written to
		err = errors.Join(err, n.Image.Close(), file.Remove(p.store.fs, imagesDir(p.store.dir), n.ID, file.Options{SizeBytes: 1}))
	}
	return err
}

// close removes the spares; those that it fails to remove are removed by the
// next open.
func (p *spares) close() {
	p.making.Lock() // what is being made is among the free ones then
	p.mu.Lock()
	p.closed = true
	free := p.free
	p.free = nil
	p.mu.Unlock()
	p.making.Unlock()
	p.filling.Wait()
	_ = p.remove(free)
}

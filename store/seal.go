package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// sealer seals what has drained, one VLUN at a time, in the background. A volume's
// come in the order of its chain (R8), since they drain in that order.
type sealer struct {
	store  *Store
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	queue    []*volume.VLUN
	stopping bool
	wake     chan struct{}
}

func (q *sealer) start(s *Store) {
	ctx, cancel := context.WithCancel(context.Background())
	q.store, q.cancel, q.done, q.wake = s, cancel, make(chan struct{}), make(chan struct{}, 1)
	go q.run(ctx)
}

// enqueue asks for a VLUN that has drained to be sealed. It does not wait.
func (q *sealer) enqueue(k *volume.VLUN) {
	q.mu.Lock()
	q.queue = append(q.queue, k)
	q.mu.Unlock()
	q.poke()
}

func (q *sealer) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// stop finishes the queue while ctx lasts.
func (q *sealer) stop(ctx context.Context) {
	q.mu.Lock()
	q.stopping = true
	q.mu.Unlock()
	q.poke()
	select {
	case <-q.done:
	case <-ctx.Done():
		q.cancel()
		<-q.done
	}
}

// abandon ends the sealing where it is. It does nothing if none was started.
func (q *sealer) abandon() {
	if q.cancel != nil {
		q.cancel()
		q.stop(context.Background())
	}
}

func (q *sealer) run(ctx context.Context) {
	defer close(q.done)
	for {
		q.mu.Lock()
		if len(q.queue) == 0 || ctx.Err() != nil {
			stopping := q.stopping
			q.mu.Unlock()
			if stopping {
				return
			}
			<-q.wake
			continue
		}
		k := q.queue[0]
		q.queue = q.queue[1:]
		q.mu.Unlock()
		if err := q.store.seal(ctx, k); err != nil && ctx.Err() == nil {
			q.store.sealFailed(k, err)
		}
	}
}

// errBehind: an older VLUN of the volume could not be sealed, so this one is not.
var errBehind = errors.New("an older snapshot of the volume is not sealed")

// seal makes a drained VLUN a sealed one: its data is written back gently, so
// that nobody meets a full dirty limit, and synced; the table changes that it
// rests on are committed; then the catalog says so. It works on a handle of its
// own: no flush waits for its write-back or its sync, and none is spared its own.
func (s *Store) seal(ctx context.Context, k *volume.VLUN) error {
	s.mu.Lock()
	d := s.byVolume[k.Volume()]
	s.mu.Unlock()
	if d == nil {
		return nil
	}
	d.files.Lock() // a delete of the volume waits for the end of this
	defer d.files.Unlock()
	if d.deleted {
		return nil
	}
	if !inOrder(k) {
		return errBehind
	}
	if err := s.writeBack(ctx, k); err != nil {
		return err
	}
	if err := k.Volume().Flush(); err != nil {
		return err
	}
	if err := s.putLinks(d, volume.Sealed, k); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k.SetSealed()
	if snap := d.snapshots[k]; snap != nil {
		snap.settle()
	}
	return nil
}

// inOrder tells whether every older VLUN is sealed (R8).
func inOrder(k *volume.VLUN) bool {
	older := true
	for _, j := range k.Volume().VLUNs() {
		if j == k {
			return older
		}
		older = j.State() == volume.Sealed
	}
	return false
}

// writeBackStep is how much is written back at once.
const writeBackStep = 4 << 20

func (s *Store) writeBack(ctx context.Context, k *volume.VLUN) error {
	img, err := file.Open(vfs.Labelled{FS: s.fs, Label: "seal"}, imagesDir(s.dir), k.ImageID(), file.Options{})
	if err != nil {
		return err
	}
	err = func() error {
		for x := range k.Table().Extents(0, lastBlock) {
			if x.State != lookup.Data {
				continue
			}
			if err := writeBackExtent(ctx, img, int64(x.Block)*lookup.BlockSize, int64(x.Count)*lookup.BlockSize); err != nil {
				return err
			}
		}
		return img.Sync()
	}()
	if err != nil {
		return errors.Join(fmt.Errorf("write back image %d: %w", k.ImageID(), err), img.Close())
	}
	return img.Close()
}

// lastBlock is as many blocks as any table has.
const lastBlock = MaxSizeBytes / lookup.BlockSize

func writeBackExtent(ctx context.Context, img image.Image, off, lengthBytes int64) error {
	for lengthBytes > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(lengthBytes, writeBackStep)
		if err := img.WriteBack(off, n); err != nil {
			return err
		}
		off, lengthBytes = off+n, lengthBytes-n
	}
	return nil
}

func (s *Store) sealFailed(k *volume.VLUN, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.byVolume[k.Volume()]
	if d == nil {
		return
	}
	if snap := d.snapshots[k]; snap != nil {
		snap.failed = err.Error()
		snap.settle()
		s.logger.Error("seal", "snapshot", d.record.Name+"@"+snap.name, "err", err)
		return
	}
	s.logger.Error("seal", "volume", d.record.Name, "image", k.ImageID(), "err", err)
}

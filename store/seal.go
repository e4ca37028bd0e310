package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/sealed"
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
			if mayPass(k, err) {
				time.AfterFunc(sealAgainAfter, func() { q.enqueue(k) })
			}
		}
	}
}

// sealAgainAfter is how long a seal that failed waits before it is tried again.
const sealAgainAfter = 10 * time.Second

// mayPass tells whether what kept a VLUN from being sealed may pass while the
// directory is open: a full disk, no file descriptor, an error of one read.
func mayPass(k *volume.VLUN, err error) bool {
	return k.Volume().Failed() == nil && !errors.Is(err, catalog.ErrFailed) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, image.ErrCorrupt)
}

// errBehind: an older VLUN of the volume could not be sealed, so this one is not.
var errBehind = errors.New("an older snapshot of the volume is not sealed")

// seal makes a drained VLUN a sealed one: the sums of its data are taken while it
// is in memory; it is written back gently, so that nobody meets a full dirty
// limit, and synced; the table changes that it rests on are committed; then the
// catalog says so. It works on a handle of its own: no flush waits for its
// write-back or its sync, and none is spared its own.
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
	if img, ok := k.Image().(*sealed.Image); ok {
		if img.Lost() == nil {
			return nil
		}
		return s.sealAgain(ctx, d, k, img)
	}
	if !inOrder(k) {
		return errBehind
	}
	hash, err := s.writeDown(ctx, d, k)
	if errors.Is(err, image.ErrSyncFailed) { // the kernel tells each handle, or the first that asks
		return k.SyncFailed(err)
	}
	if err != nil {
		return err
	}
	if err := k.Volume().Flush(); err != nil {
		return err
	}
	img, err := s.withSums(k.Image(), k, hash)
	if err != nil {
		return err
	}
	s.mu.Lock()
	d.sealed[k] = &seal{hash: hash}
	s.mu.Unlock()
	if err := s.putLinks(d, volume.Sealed, k); err != nil {
		s.mu.Lock()
		delete(d.sealed, k)
		s.mu.Unlock()
		return errors.Join(err, img.CloseSums())
	}
	s.mu.Lock()
	d.images[k.ImageID()] = img
	k.SetSealed(img)
	if snap := d.snapshots[k]; snap != nil {
		snap.failed = ""
		snap.settle()
	}
	s.mu.Unlock()
	s.scans.poke()
	return nil
}

// sealAgain makes the checksum file of a sealed image anew that has lost it. The
// data then has the hash that was recorded at the seal, or it is not what was
// sealed.
func (s *Store) sealAgain(ctx context.Context, d *disk, k *volume.VLUN, lost *sealed.Image) error {
	s.mu.Lock()
	want := d.sealed[k].hash
	s.mu.Unlock()
	sealing := s.below(d, k)
	sealing.Image = lost.Image
	hash, err := sealed.Rehash(ctx, sealing)
	if err != nil {
		return err
	}
	if hash != want { // and what is left of the file stays, as it may tell more
		return fmt.Errorf("%w: image %d has lost its checksum file, and its data has the hash %s, not %s as it was sealed", ErrCorrupt, k.ImageID(), hash, want)
	}
	if _, err := s.writeDown(ctx, d, k); err != nil {
		return err
	}
	img, err := s.withSums(lost.Image, k, want)
	if err != nil {
		return err
	}
	s.mu.Lock()
	d.images[k.ImageID()] = img
	k.SetSealed(img)
	s.mu.Unlock()
	s.logger.Info("the checksum file of an image was lost and is made anew; its data is what was sealed", "volume", k.Volume().Name(), "image", k.ImageID())
	return nil
}

// withSums is the image of a VLUN with the sums that were written for it.
func (s *Store) withSums(bare image.Image, k *volume.VLUN, hash sealed.Hash) (*sealed.Image, error) {
	sums, err := sealed.OpenSums(s.fs, imagesDir(s.dir), k.ImageID(), false)
	if err != nil {
		return nil, err
	}
	if err := sums.Matches(k.Table(), hash, k.SizeBytes()); err != nil {
		return nil, errors.Join(err, sums.Close())
	}
	return sealed.New(bare, sums, s.sums, s.metRot), nil
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

// writeDown writes the checksum file of an image, and all of its data back.
func (s *Store) writeDown(ctx context.Context, d *disk, k *volume.VLUN) (hash sealed.Hash, err error) {
	fsys := vfs.Labelled{FS: s.fs, Label: "seal"}
	img, err := file.Open(fsys, imagesDir(s.dir), k.ImageID(), file.Options{})
	if err != nil {
		return sealed.Hash{}, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	sealing := s.below(d, k)
	sealing.FS, sealing.Image = records{fsys, s.reserve}, img
	if hash, err = sealed.Write(ctx, sealing); err != nil {
		return sealed.Hash{}, err
	}
	if err := writeBack(ctx, img, k.Table()); err != nil {
		return sealed.Hash{}, fmt.Errorf("write back image %d: %w", k.ImageID(), err)
	}
	return hash, nil
}

// below says on what the image of a VLUN is sealed.
func (s *Store) below(d *disk, k *volume.VLUN) sealed.Sealing {
	x := sealed.Sealing{Dir: imagesDir(s.dir), ID: k.ImageID(), SizeBytes: k.SizeBytes(), Table: k.Table()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range k.Volume().VLUNs() {
		if j == k {
			break
		}
		x.Older = append(x.Older, sealed.Layer{Table: j.Table(), Sums: j.Image().(*sealed.Image)})
		x.Below = d.sealed[j].hash
	}
	return x
}

func writeBack(ctx context.Context, img image.Image, t *lookup.Table) error {
	for x := range t.Extents(0, lastBlock) {
		if x.State != lookup.Data {
			continue
		}
		if err := writeBackExtent(ctx, img, int64(x.Block)*lookup.BlockSize, int64(x.Count)*lookup.BlockSize); err != nil {
			return err
		}
	}
	return img.Sync()
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
		if snap.failed == err.Error() {
			return // tried again, and said already
		}
		snap.failed = err.Error()
		snap.settle()
		s.logger.Error("seal", "snapshot", d.record.Name+"@"+snap.name, "err", err)
		return
	}
	s.logger.Error("seal", "volume", d.record.Name, "image", k.ImageID(), "err", err)
}

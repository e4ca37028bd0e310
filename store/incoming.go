package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/volume"
)

// ReceiveRequest says what is to come: a snapshot of a volume, with all that it
// holds, or with what it has that its base has not.
type ReceiveRequest struct {
	// Volume gets the snapshot, under the name Snapshot.
	Volume, Snapshot string
	// SizeBytes of the snapshot, and the hash of its content in hex.
	SizeBytes int64
	Hash      string
	// BaseHash is that of the state that it begins from, and BaseSizeBytes its size:
	// the volume must be just that. Empty: there is no base, and no volume yet.
	BaseHash      string
	BaseSizeBytes int64
}

// Incoming is a snapshot on its way in. What is written to it goes into a volume
// that nobody sees and that a crash does not leave behind: a clone of the base, or
// an empty one. Commit gives that the volume's name, and the place of what has
// the name now, in one step. So the volume is all of what came, or as it was.
//
// Rejected: writing into the volume itself and rolling back what was not whole
// (readers see half of it; a second record of what is to be undone).
type Incoming struct {
	store   *Store
	request ReceiveRequest
	hash    sealed.Hash
	disk    *disk // staged
	view    *volume.View
	// inherited are the VLUNs that have the names of another volume's.
	inherited []*volume.VLUN
}

// Receive begins it. Errors: ErrInvalid; ErrNotFound; ErrDiffers if the volume is
// not what the base was; ErrExists (the snapshot, or without a base the volume);
// ErrInUse if a client has the volume open; ErrHighWater, ErrNoSpace. One call of Close
// meets each that succeeds.
func (s *Store) Receive(r ReceiveRequest) (*Incoming, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	in := &Incoming{store: s, request: r}
	in.hash, _ = sealed.ParseHash(r.Hash)
	s.admin.Lock()
	defer s.admin.Unlock()
	var err error
	if r.BaseHash == "" {
		err = in.beginWhole()
	} else {
		err = in.beginChanges()
	}
	if err != nil {
		return nil, err
	}
	if in.view, err = in.disk.volume.Open(); err != nil {
		return nil, errors.Join(err, s.deleteBranch(in.disk, nil))
	}
	s.mu.Lock()
	s.reserved[in.full()] = true
	s.mu.Unlock()
	return in, nil
}

func (r ReceiveRequest) check() error {
	if err := errors.Join(checkName("volume", r.Volume), checkName("snapshot", r.Snapshot), checkSize(r.SizeBytes)); err != nil {
		return err
	}
	if _, err := sealed.ParseHash(r.Hash); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if r.BaseHash == "" {
		return nil
	}
	if _, err := sealed.ParseHash(r.BaseHash); err != nil {
		return fmt.Errorf("%w: base: %w", ErrInvalid, err)
	}
	if r.BaseSizeBytes > r.SizeBytes {
		return fmt.Errorf("%w: the base has %d bytes, and what is made of it %d: a volume only grows", ErrInvalid, r.BaseSizeBytes, r.SizeBytes)
	}
	return nil
}

func (in *Incoming) full() string { return in.request.Volume + "@" + in.request.Snapshot }

// beginWhole stages an empty volume.
func (in *Incoming) beginWhole() (err error) {
	if err := in.free(); err != nil {
		return err
	}
	if err := errors.Join(in.store.reserve.spare(), in.store.belowMark()); err != nil { // the end would refuse it
		return err
	}
	in.disk, err = in.store.createVolume(catalog.Volume{
		Name: in.request.Volume, SizeBytes: in.request.SizeBytes, Scope: volume.ScopeRequest.String(), Created: time.Now().UTC(), Staged: true,
	})
	return err
}

// free is nil if no volume has the name.
func (in *Incoming) free() error {
	_, err := in.store.disk(in.request.Volume)
	switch {
	case err == nil:
		return fmt.Errorf("volume %s %w: all of a snapshot makes a new volume; choose another name", in.request.Volume, ErrExists)
	case errors.Is(err, ErrNotFound):
		return nil
	}
	return err
}

// beginChanges stages a clone of the base.
func (in *Incoming) beginChanges() error {
	s, r := in.store, in.request
	live, err := s.disk(r.Volume)
	if err != nil {
		return err
	}
	if live.volume.Busy() { // the end would refuse it
		return liveInUse(live.volume)
	}
	d, k, err := s.base(live, r)
	if err != nil {
		return err
	}
	disks, err := s.branch([]graft{{disk: d, vlun: k, name: r.Volume, as: &catalog.Volume{
		Name: r.Volume, SizeBytes: r.SizeBytes, Scope: live.record.Scope, Created: live.record.Created, Staged: true,
	}}}, nil)
	if err == nil {
		in.disk = disks[0]
	}
	return err
}

// base finds the snapshot of a volume that has the content of the base, and since
// which the volume was not changed.
func (s *Store) base(live *disk, r ReceiveRequest) (*disk, *volume.VLUN, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if taken := s.takenLocked([]*disk{live}, r.Snapshot); taken != "" {
		return nil, nil, fmt.Errorf("snapshot %s %w", taken, ErrExists)
	}
	alike := ""
	for _, d := range slices.Backward(s.branchesLocked(r.Volume)) {
		chain := d.volume.VLUNs()
		for i, k := range slices.Backward(chain) {
			snap := d.snapshots[k]
			if snap == nil || k.State() != volume.Sealed || d.sealed[k].hash.String() != r.BaseHash || k.SizeBytes() != r.BaseSizeBytes {
				continue
			}
			if r.unchangedSince(chain[:i+1], live) {
				return d, k, nil
			}
			alike = r.Volume + "@" + snap.name
		}
	}
	if alike != "" {
		return nil, nil, fmt.Errorf("volume %s has %w than these are the changes of: it was written to since %s; roll it back to that, or apply them to a clone of that", r.Volume, ErrDiffers, alike)
	}
	return nil, nil, fmt.Errorf("volume %s has %w than these are the changes of: no sealed snapshot of it has %d bytes and the content hash %s; bring that here first", r.Volume, ErrDiffers, r.BaseSizeBytes, r.BaseHash)
}

// unchangedSince tells, from the tables, that a volume is for certain what the
// chain of the base is. Store.mu is held.
func (r ReceiveRequest) unchangedSince(base []*volume.VLUN, live *disk) bool {
	return live.volume.SizeBytes() == r.BaseSizeBytes &&
		!slices.ContainsFunc(unshared(base, live.volume.VLUNs()), func(k *volume.VLUN) bool {
			data, zero := k.Table().Counts()
			return data+zero > 0
		})
}

// unshared lists what only one of two chains has.
func unshared(older, newer []*volume.VLUN) []*volume.VLUN {
	n := sharedImages(older, newer)
	return slices.Concat(older[n:], newer[n:])
}

// WriteAt writes to it, as volume.View.WriteAt.
func (in *Incoming) WriteAt(p []byte, off int64) (int, error) { return in.view.WriteAt(p, off) }

// Trim makes a range of it read as zeros, as volume.View.Trim.
func (in *Incoming) Trim(off, lengthBytes int64) error { return in.view.Trim(off, lengthBytes) }

// Commit ends it: what was written is a snapshot, sealed, of the content that was
// promised, and the volume is just that. Errors: ErrCorrupt if the content is
// another; ErrDiffers if the volume was changed meanwhile; ErrInUse if a client has it
// open; ErrNotFound, ErrExists, ErrNoSpace, ctx's. After an error nothing has changed.
func (in *Incoming) Commit(ctx context.Context) (SnapshotInfo, error) {
	if err := errors.Join(in.view.Flush(), in.view.Close()); err != nil {
		return SnapshotInfo{}, err
	}
	if err := in.seal(ctx); err != nil {
		return SnapshotInfo{}, fmt.Errorf("receive %s: %w", in.full(), err)
	}
	in.store.admin.Lock()
	defer in.store.admin.Unlock()
	var err error
	if in.request.BaseHash == "" {
		err = in.appear()
	} else {
		err = in.succeed()
	}
	if err != nil {
		return SnapshotInfo{}, err
	}
	return in.store.Snapshot(in.full())
}

// seal preserves what was written, and holds it against the hash.
func (in *Incoming) seal(ctx context.Context) error {
	s := in.store
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.preserves.Add(1)
	s.mu.Unlock()
	k := tip(in.disk.volume)
	_, err := s.preserve(append([]*disk(nil), in.disk), in.request.Snapshot, time.Now(), PreserveRequest{Wait: time.Minute})
	s.preserves.Done()
	if err != nil {
		return err
	}
	s.mu.Lock()
	snap := in.disk.snapshots[k]
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-snap.settled:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch rec := in.disk.sealed[k]; {
	case k.State() != volume.Sealed:
		return fmt.Errorf("it is not sealed: %s", snap.failed)
	case rec.hash != in.hash:
		return fmt.Errorf("%w: what came has the content hash %s, not %s as was promised", ErrCorrupt, rec.hash, in.hash)
	}
	return nil
}

// appear gives what is whole its name, which nobody has.
func (in *Incoming) appear() error {
	if err := in.free(); err != nil {
		return err
	}
	if err := in.store.catalog.Update(in.putNamed); err != nil {
		return err
	}
	in.store.mu.Lock()
	defer in.store.mu.Unlock()
	in.namedLocked()
	return nil
}

// succeed puts what is whole in the place of the volume. If nobody reads that one's
// snapshots either, and they all are of images that both have, it goes, so that
// chains do not become more with each time. Else it stays behind, as by a rollback.
func (in *Incoming) succeed() error {
	s := in.store
	live, err := s.disk(in.request.Volume)
	if err != nil {
		return err
	}
	s.mu.Lock()
	all := in.hasAllLocked(live)
	s.mu.Unlock()
	if views, _ := live.volume.Uses(); views == 0 && all {
		err := s.deleteBranch(live, in)
		if err != nil && !in.disk.record.Staged && s.catalog.Failed() == nil {
			s.logger.Warn("what was received has the place of a volume of which files are left; the next start removes them", "volume", in.request.Volume, "err", err)
			return nil
		}
		if !errors.Is(err, ErrInUse) && !errors.Is(err, errMore) {
			return err
		}
	}
	return in.leaveBehind(live)
}

// leaveBehind gives it the name of a volume that stays, for its snapshots.
func (in *Incoming) leaveBehind(live *disk) error {
	s := in.store
	if err := live.volume.Freeze(); err != nil {
		if errors.Is(err, volume.ErrBusy) {
			err = liveInUse(live.volume)
		}
		return err
	}
	err := in.fits(live)
	if err == nil {
		err = s.catalog.Update(func(tx *catalog.Tx) error {
			old := live.record
			old.Past = true
			return errors.Join(tx.PutVolume(old), in.putNamed(tx))
		})
	}
	if err != nil {
		if !errors.Is(err, catalog.ErrFailed) { // else the next open may find it in the past
			live.volume.Thaw()
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	live.record.Past = true
	in.namedLocked()
	return nil
}

// errMore: a volume has snapshots that what takes its place would lack.
var errMore = errors.New("it has newer snapshots")

// hasAllLocked tells whether each snapshot of a volume has its image in the chain too.
// Store.mu is held.
func (in *Incoming) hasAllLocked(live *disk) bool {
	for k := range live.snapshots {
		if in.disk.vlunLocked(k.ImageID()) == nil {
			return false
		}
	}
	return true
}

// inherit names the VLUNs of the heir, if there is one, as those of the same images
// in a volume that it takes the place of, and that nobody uses or preserves now; undo
// takes that back. Errors: errMore, ErrDiffers.
func (in *Incoming) inherit(d *disk) (undo func(), err error) {
	if in == nil {
		return func() {}, nil
	}
	if err := in.fits(d); err != nil {
		return nil, err
	}
	s := in.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if !in.hasAllLocked(d) {
		return nil, errMore
	}
	for k, snap := range d.snapshots {
		own := in.disk.vlunLocked(k.ImageID())
		same := *snap
		same.urgent = 0
		same.conflicts, same.verifying = snap.conflicts+k.Conflicts(), nil
		in.disk.snapshots[own] = &same
		in.inherited = append(in.inherited, own)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, k := range in.inherited {
			delete(in.disk.snapshots, k)
		}
		in.inherited = nil
	}, nil
}

// fits is nil if a volume that nobody can write to is what the base was.
func (in *Incoming) fits(live *disk) error {
	in.store.mu.Lock()
	defer in.store.mu.Unlock()
	chain := in.disk.volume.VLUNs()
	if !in.request.unchangedSince(chain[:len(chain)-2], live) { // without what came, and the tip
		return fmt.Errorf("volume %s has %w than these are the changes of: it was changed meanwhile", in.request.Volume, ErrDiffers)
	}
	return nil
}

// putNamed records that it has the name.
func (in *Incoming) putNamed(tx *catalog.Tx) error {
	in.store.mu.Lock()
	defer in.store.mu.Unlock()
	return in.putLocked(tx)
}

// putLocked records that it has the name, and the snapshots that it inherits. Store.mu
// is held.
func (in *Incoming) putLocked(tx *catalog.Tx) error {
	record := in.disk.record
	record.Staged = false
	if err := tx.PutVolume(record); err != nil {
		return err
	}
	for _, k := range in.inherited {
		if err := tx.PutLink(in.disk.link(k, volume.Sealed)); err != nil {
			return err
		}
	}
	return nil
}

// namedLocked shows it under the name; Store.mu is held.
func (in *Incoming) namedLocked() {
	if in == nil {
		return
	}
	in.disk.record.Staged = false
	in.store.volumes[in.request.Volume] = in.disk
}

// Close lets it go, with all that was written unless Commit succeeded.
func (in *Incoming) Close() error {
	s := in.store
	err := in.view.Close()
	s.admin.Lock()
	defer s.admin.Unlock()
	s.mu.Lock()
	delete(s.reserved, in.full())
	staged, closed := in.disk.record.Staged, s.closed
	s.mu.Unlock()
	if !staged || closed { // the next open deletes it
		return err
	}
	return errors.Join(err, s.deleteBranch(in.disk, nil))
}

// dropStaged deletes what was being received when the directory was last open.
func (s *Store) dropStaged(state *catalog.State) error {
	if !slices.ContainsFunc(state.Volumes, func(v catalog.VolumeState) bool { return v.Staged }) {
		return nil
	}
	return s.catalog.Update(func(tx *catalog.Tx) (err error) {
		state.Volumes = slices.DeleteFunc(state.Volumes, func(v catalog.VolumeState) bool {
			if v.Staged && err == nil {
				s.note("removed what had come of a snapshot for volume %s: it was not whole", v.Name)
				err = tx.DeleteVolume(v.ID)
			}
			return v.Staged
		})
		return err
	})
}

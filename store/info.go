package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

func newToken() string { return rand.Text()[:12] }

// Volumes lists the volumes by name.
func (s *Store) Volumes() []VolumeInfo {
	s.mu.Lock()
	disks := make([]*disk, 0, len(s.volumes))
	for _, d := range s.volumes {
		disks = append(disks, d)
	}
	s.mu.Unlock()
	infos := make([]VolumeInfo, len(disks))
	for i, d := range disks {
		infos[i] = s.volumeInfo(d)
	}
	slices.SortFunc(infos, func(a, b VolumeInfo) int { return cmp.Compare(a.Name, b.Name) })
	return infos
}

// Volume describes a volume, or ErrNotFound.
func (s *Store) Volume(name string) (VolumeInfo, error) {
	d, err := s.disk(name)
	if err != nil {
		return VolumeInfo{}, err
	}
	return s.volumeInfo(d), nil
}

func (s *Store) volumeInfo(d *disk) VolumeInfo {
	info := VolumeInfo{SizeBytes: d.volume.SizeBytes(), Scope: d.volume.Scope()}
	s.mu.Lock()
	info.Name, info.Created = d.record.Name, d.record.Created
	var vluns []*volume.VLUN
	for _, b := range s.branchesLocked(d.record.Name) {
		info.Snapshots += len(b.snapshots)
		vluns = append(vluns, b.volume.VLUNs()...)
	}
	s.mu.Unlock()
	slices.SortFunc(vluns, func(a, b *volume.VLUN) int { return cmp.Compare(a.ImageID(), b.ImageID()) })
	vluns = slices.CompactFunc(vluns, func(a, b *volume.VLUN) bool { return a.ImageID() == b.ImageID() })
	info.Images = len(vluns)
	for _, k := range vluns {
		info.DataBytes += dataBytes(k)
		if n, err := k.Image().Allocated(); err == nil {
			info.AllocatedBytes += n
		}
	}
	info.Connections, info.Processes = d.volume.Uses()
	if err := d.volume.Failed(); err != nil {
		info.Failed = err.Error()
	}
	return info
}

func dataBytes(k *volume.VLUN) int64 {
	data, _ := k.Table().Counts()
	return int64(data) * lookup.BlockSize
}

// Snapshots lists the snapshots of a volume, or of all if its name is empty:
// by volume, oldest first.
func (s *Store) Snapshots(volumeName string) ([]SnapshotInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	disks := []*disk{}
	if volumeName != "" {
		if _, err := s.diskLocked(volumeName); err != nil {
			return nil, err
		}
		disks = s.branchesLocked(volumeName)
	} else {
		for _, name := range slices.Sorted(maps.Keys(s.volumes)) {
			disks = append(disks, s.branchesLocked(name)...)
		}
	}
	var infos []SnapshotInfo
	for _, d := range disks {
		for _, k := range d.volume.VLUNs() {
			if snap := d.snapshots[k]; snap != nil && k.Cut() { // not while it is only prepared
				infos = append(infos, s.snapshotInfoLocked(d, k, snap))
			}
		}
	}
	return infos, nil
}

// Snapshot describes a snapshot, given as VOLUME@SNAPSHOT. Errors: ErrInvalid,
// ErrNotFound.
func (s *Store) Snapshot(full string) (SnapshotInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, k, snap, err := s.snapshotLocked(full)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return s.snapshotInfoLocked(d, k, snap), nil
}

func (s *Store) snapshotLocked(full string) (*disk, *volume.VLUN, *snapshot, error) {
	volumeName, name, err := splitSnapshot(full)
	if err != nil {
		return nil, nil, nil, err
	}
	if _, err := s.diskLocked(volumeName); err != nil {
		return nil, nil, nil, err
	}
	d, k, snap := s.findLocked(volumeName, name)
	if k == nil || !k.Cut() {
		return nil, nil, nil, fmt.Errorf("snapshot %s %w", full, ErrNotFound)
	}
	return d, k, snap, nil
}

// WaitSealed waits until a snapshot is sealed. Errors: ErrNotFound (also when
// it goes meanwhile), ctx's, or why the seal failed.
func (s *Store) WaitSealed(ctx context.Context, full string) error {
	return s.awaitSealed(ctx, full, false)
}

// awaitSealed is WaitSealed; while somebody is urgent the seal does not pause for
// clients.
func (s *Store) awaitSealed(ctx context.Context, full string, urgent bool) error {
	s.mu.Lock()
	_, _, snap, err := s.snapshotLocked(full)
	if err == nil && urgent {
		snap.urgent++
		defer func() {
			s.mu.Lock()
			snap.urgent--
			s.mu.Unlock()
		}()
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-snap.settled:
	}
	info, err := s.Snapshot(full)
	if err != nil {
		return err
	}
	if info.State != volume.Sealed {
		return fmt.Errorf("snapshot %s is not sealed: %s", full, info.Failed)
	}
	return nil
}

// snapshotInfoLocked describes a snapshot; Store.mu is held.
func (s *Store) snapshotInfoLocked(d *disk, k *volume.VLUN, snap *snapshot) SnapshotInfo {
	info := SnapshotInfo{
		Volume: d.record.Name, Name: snap.name, SizeBytes: k.SizeBytes(), State: k.State(),
		Consistency: snap.consistency, CutTime: snap.cutTime, DrainTime: snap.drain,
		Conflicts: snap.conflicts + k.Conflicts(), Torn: slices.Clone(snap.torn), DataBytes: dataBytes(k), Failed: snap.failed,
		Schedule: snap.schedule, Labels: maps.Clone(snap.labels), Held: snap.held, HeldUntil: snap.heldUntil,
	}
	if snap.drill != nil {
		drill := Drill(*snap.drill)
		info.Drill = &drill
	}
	if t := k.CutTime(); !t.IsZero() { // until it drains, the record has the time of the prepare
		info.CutTime = t
	}
	if info.State == volume.Draining {
		info.WaitsFor = d.waitsForLocked(k)
	}
	if rec := d.sealed[k]; rec != nil && info.State == volume.Sealed {
		info.Hash, info.Verify = rec.hash.String(), d.verifyStateLocked(k, snap)
	}
	return info
}

// verifyStateLocked says what is known of the bytes that a sealed snapshot
// shows: it was verified by itself, or each of its images was scrubbed. While an
// image has lost its sums, none of its blocks can be read.
func (d *disk) verifyStateLocked(k *volume.VLUN, snap *snapshot) (v VerifyState) {
	vluns := d.volume.VLUNs()
	last := slices.Index(vluns, k)
	scrubbed := d.sealed[k].scrubbed
	for i, j := range vluns[:last+1] {
		bad := d.sealed[j].bad
		if lost(j) {
			bad = allBlocks
		}
		v.BadBlocks += bad.shown(vluns, i, last)
		if t := d.sealed[j].scrubbed; t.Before(scrubbed) {
			scrubbed = t
		}
	}
	if v.LastTime = snap.verified; v.LastTime.Before(scrubbed) {
		v.LastTime = scrubbed
	}
	switch {
	case snap.verifying != nil:
		v.State = VerifyRunning
		v.DoneBytes, v.TotalBytes = snap.verifying.doneBytes.Load(), snap.verifying.totalBytes.Load()
	case v.BadBlocks > 0 || snap.wrongHash:
		v.State = VerifyBad
	case !v.LastTime.IsZero():
		v.State = VerifyOK
	}
	return v
}

// waitsForLocked lists what keeps a VLUN draining: the processes that are bound
// to it or to older ones, and the snapshots that must drain before it.
func (d *disk) waitsForLocked(k *volume.VLUN) (list []string) {
	for _, j := range d.volume.VLUNs() {
		if j.State() == volume.Draining {
			if snap := d.snapshots[j]; snap != nil && j != k {
				list = append(list, d.record.Name+"@"+snap.name)
			}
			for _, p := range j.Processes() {
				list = append(list, string(p.Token()))
			}
		}
		if j == k {
			break
		}
	}
	return list
}

func (s *Store) processInfo(p *volume.Process) ProcessInfo {
	bindings, views := p.Bindings()
	info := ProcessInfo{Token: string(p.Token()), Scope: p.Scope(), Begun: p.Begun(), Connections: views}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range bindings {
		info.Volumes = append(info.Volumes, b.Volume.Name())
		d := s.byVolume[b.Volume]
		if d == nil {
			continue
		}
		info.Bound = append(info.Bound, d.boundLocked(b.VLUN))
		vluns := b.Volume.VLUNs()
		at := slices.Index(vluns, b.VLUN)
		if at < 0 {
			continue // the process has ended, and what it was bound to has been dropped
		}
		for i := at; i < len(vluns)-1; i++ {
			if snap := d.snapshots[vluns[i]]; snap != nil {
				info.WaitedFor = append(info.WaitedFor, d.record.Name+"@"+snap.name)
				if info.WaitedSince.IsZero() || snap.cutTime.Before(info.WaitedSince) {
					info.WaitedSince = snap.cutTime
				}
			}
		}
	}
	return info
}

func (d *disk) boundLocked(k *volume.VLUN) string {
	switch snap := d.snapshots[k]; {
	case k.Live():
		return "live"
	case snap != nil:
		return d.record.Name + "@" + snap.name
	default:
		return "unnamed"
	}
}

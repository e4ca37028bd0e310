package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// Clone makes a volume that begins as a snapshot is, and shares its images: it
// copies nothing, and what either needs stays when the other is deleted. The snapshot
// has drained, and need not be sealed; what of it was not flushed is made durable first.
// Errors: ErrInvalid, ErrNotFound, ErrExists, ErrDraining, ErrHighWater, ErrNoSpace,
// ErrClosed, ctx's.
func (s *Store) Clone(ctx context.Context, full, name string) (VolumeInfo, error) {
	if err := checkName("volume", name); err != nil {
		return VolumeInfo{}, err
	}
	list, err := s.clone(ctx, cloning{which: only(full), name: func(string) string { return name }})
	if err != nil {
		return VolumeInfo{}, err
	}
	return list[0], nil
}

// CloneGroup clones a snapshot of each volume of a group, given as GROUP@SNAPSHOT,
// and makes a group of the clones, which are named GROUP-VOLUME by it: all of it or
// nothing. The new group is the default of its volumes if the old one is. The
// snapshots must be of one cut. It asks allow for the volumes and for the names of
// the clones. Errors: as Clone.
func (s *Store) CloneGroup(ctx context.Context, full, group string, allow Allow) ([]VolumeInfo, error) {
	if err := checkName("group", group); err != nil {
		return nil, err
	}
	like, _, _ := strings.Cut(full, "@")
	return s.clone(ctx, cloning{
		which: s.snapshotsOf(full, allow), name: func(volume string) string { return group + "-" + volume },
		group: &catalog.Group{Name: group, Created: time.Now().UTC()}, like: like, allow: allow,
	})
}

// cloning says what is cloned.
type cloning struct {
	which selection
	name  func(volume string) string // of its clone
	group *catalog.Group             // to make of the clones, or nil
	like  string                     // the group that it is made after
	held  bool                       // by a drill
	allow Allow
}

func (s *Store) clone(ctx context.Context, c cloning) (infos []VolumeInfo, err error) {
	if err := s.foundedSoon(ctx, c.which); err != nil {
		return nil, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	grafts, err := s.branchable(c.which)
	if err != nil {
		return nil, err
	}
	if err := s.nameClones(c, grafts); err != nil {
		return nil, err
	}
	disks, err := s.branch(grafts, c.group)
	if err != nil {
		return nil, fmt.Errorf("clone %s: %w", grafts[0].full, err)
	}
	for _, d := range disks {
		infos = append(infos, s.volumeInfo(d))
	}
	return infos, nil
}

// nameClones gives the clones names that are free, and are allowed.
func (s *Store) nameClones(c cloning, grafts []graft) error {
	var names []string
	for i := range grafts {
		name := c.name(grafts[i].disk.record.Name)
		if err := checkName("volume", name); err != nil {
			return err
		}
		grafts[i].name, grafts[i].held, names = name, c.held, append(names, name)
	}
	if err := c.allow.ask("", names...); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := s.disk(name); !errors.Is(err, ErrNotFound) {
			if err == nil {
				err = fmt.Errorf("volume %s %w: choose another name for the clone", name, ErrExists)
			}
			return err
		}
	}
	if c.group == nil {
		return nil
	}
	like, err := s.Group(c.like)
	if err != nil {
		return err
	}
	c.group.Volumes, c.group.Default = slices.Sorted(slices.Values(names)), like.Default
	return s.groupFree(c.group.Name)
}

// Sealed describes a snapshot when it is sealed: it waits for the seal of one that
// has drained. Errors: ErrInvalid, ErrNotFound, ErrDraining, ctx's.
func (s *Store) Sealed(ctx context.Context, full string) (SnapshotInfo, error) {
	if err := s.sealedSoon(ctx, only(full)); err != nil {
		return SnapshotInfo{}, err
	}
	return s.Snapshot(full)
}

// sealedSoon waits for the seal of snapshots that have drained, and has it hurry.
func (s *Store) sealedSoon(ctx context.Context, which selection) error {
	return s.eachDrained(which, func(full string) error { return s.awaitSealed(ctx, full, true) })
}

// foundedSoon lets branches rest on snapshots that have drained.
func (s *Store) foundedSoon(ctx context.Context, which selection) error {
	return s.eachDrained(which, func(full string) error { return s.found(ctx, full) })
}

// eachDrained calls do for each snapshot that is not sealed, and has drained; else it
// fails.
func (s *Store) eachDrained(which selection, do func(full string) error) error {
	s.mu.Lock()
	fulls, err := which()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	for _, full := range fulls {
		info, err := s.Snapshot(full)
		switch {
		case err != nil:
			return err
		case info.State == volume.Draining:
			return fmt.Errorf("snapshot %s is %w: it waits for %v", full, ErrDraining, info.WaitsFor)
		case info.State == volume.Sealing:
			if err := do(full); err != nil {
				return err
			}
		}
	}
	return nil
}

// graft is a branch to be made: of the chain of a volume up to a VLUN.
type graft struct {
	full string // the snapshot that it begins as
	disk *disk
	vlun *volume.VLUN
	name string
	past *disk // loses its name to the branch; nil if the name is free
	// discard is a snapshot of past that loses its name in the same step, nil: none does.
	discard *volume.VLUN
	// keeps is one that is passing until then, nil: none is.
	keeps *volume.VLUN
	held  bool
	as    *catalog.Volume // what is recorded of it, without its ID; nil: as of a clone
}

// branchable returns snapshots that are sealed or founded.
func (s *Store) branchable(which selection) ([]graft, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fulls, err := which()
	if err != nil {
		return nil, err
	}
	grafts := make([]graft, len(fulls))
	for i, full := range fulls {
		d, k, _, err := s.snapshotLocked(full)
		if err == nil {
			err = s.finishedLocked(full)
		}
		if err == nil && !d.foundedLocked(k) { // it is another than before
			err = fmt.Errorf("snapshot %s is %w, or has just been made", full, ErrDraining)
		}
		if err != nil {
			return nil, err
		}
		grafts[i] = graft{full: full, disk: d, vlun: k}
	}
	return grafts, nil
}

// scion is a branch that is being made.
type scion struct {
	graft
	shared
	record  catalog.Volume
	tip     volume.Next
	journal *journal.Journal
}

// branch makes volumes, each with the chain of a graft's up to its VLUN, and a tip
// of its own; and a group of them, if it is not nil. Their files come first and
// their records last, in one commit: what has no record when the directory is opened
// is removed. Store.admin is held.
func (s *Store) branch(grafts []graft, group *catalog.Group) ([]*disk, error) {
	if err := errors.Join(s.reserve.spare(), s.belowMark()); err != nil {
		return nil, err
	}
	scions, err := s.cut(grafts)
	if err != nil {
		return nil, err
	}
	defer s.spares.refill()
	var due []punching
	defer func() { s.sealer.punch(due...) }()
	s.chains.Lock() // what is known of the images stays as it is recorded until the branch is their holder too
	defer s.chains.Unlock()
	s.mu.Lock()
	for i, x := range scions {
		scions[i].shared = x.disk.sharedLocked(x.vlun)
		if !x.disk.foundedLocked(x.vlun) { // that could not be recorded
			err = fmt.Errorf("snapshot %s is %w", x.full, ErrDraining)
		}
	}
	s.mu.Unlock()
	for i := 0; i < len(scions) && err == nil; i++ {
		scions[i].journal, err = s.createJournal(scions[i].record.ID, scions[i].tip.ID)
	}
	if err == nil {
		due, err = s.putBranches(scions, group)
	}
	if err != nil {
		mayHaveRecord := errors.Is(err, catalog.ErrFailed)
		for _, x := range scions {
			err = errors.Join(err, s.undoCreate(x.record.ID, x.journal, x.tip, mayHaveRecord))
		}
		return nil, err
	}
	return s.grow(scions, group)
}

// cut gives each branch its ID and its tip.
func (s *Store) cut(grafts []graft) ([]scion, error) {
	scions := make([]scion, len(grafts))
	now := time.Now().UTC()
	for i, g := range grafts {
		scions[i].graft = g
		scions[i].record = catalog.Volume{Name: g.name, SizeBytes: g.vlun.SizeBytes(), Scope: g.disk.record.Scope, Created: now, Held: g.held}
		if g.as != nil {
			scions[i].record = *g.as
		}
		if g.past != nil {
			scions[i].record.Created, scions[i].record.Held = g.past.record.Created, g.past.record.Held
		}
	}
	if err := s.catalog.Update(func(tx *catalog.Tx) (err error) {
		for i := range scions {
			if scions[i].record.ID, err = tx.NewVolumeID(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	tips, err := s.spares.take(len(grafts))
	for i := range tips {
		scions[i].tip = tips[i]
	}
	return scions, err
}

// grow makes the branches known, all at once: nobody finds one of them without the
// others.
func (s *Store) grow(scions []scion, group *catalog.Group) ([]*disk, error) {
	disks := make([]*disk, len(scions))
	for i, x := range scions {
		x.images[x.tip.ID] = x.tip.Image
		x.chain = append(x.chain, volume.Link{ID: x.tip.ID, Image: x.tip.Image, Table: lookup.NewTable(), SizeBytes: x.record.SizeBytes})
		var err error
		if disks[i], err = s.newDisk(x.record, x.journal, x.images, x.chain); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range scions {
		s.showLocked(disks[i])
		for j, rec := range x.seals {
			if k := disks[i].volume.VLUNs()[j]; rec != nil {
				disks[i].sealed[k] = rec
			} else {
				disks[i].founded[k] = true
			}
		}
		if x.past != nil {
			x.past.record.Past = true
			x.past.forget(x.discard)
			if snap := x.past.snapshots[x.keeps]; snap != nil {
				snap.marks.passing = false
			}
		}
	}
	if group != nil {
		s.groups[group.Name] = *group
	}
	return disks, nil
}

// shared is what a branch takes over from the chain below it.
type shared struct {
	chain  []volume.Link
	images map[image.ID]image.Image
	seals  []*seal // one a link; nil: it is founded
}

// sharedLocked is the chain of d up to k; Store.mu is held.
func (d *disk) sharedLocked(k *volume.VLUN) (x shared) {
	x.images = map[image.ID]image.Image{}
	for _, below := range d.volume.VLUNs() {
		x.chain = append(x.chain, volume.Link{
			ID: below.ImageID(), Image: below.Image(), Table: below.Table(), SizeBytes: below.SizeBytes(), State: below.State(),
		})
		x.images[below.ImageID()] = below.Image()
		x.seals = append(x.seals, d.sealed[below])
		if below == k {
			break
		}
	}
	return x
}

// putBranches records branches, that what they keep stays, and that what they discard has
// no name any more. Nobody may have that open.
func (s *Store) putBranches(scions []scion, group *catalog.Group) (due []punching, err error) {
	var discarded []holder
	for _, x := range scions {
		if x.discard != nil {
			discarded = append(discarded, holder{x.past, x.discard})
		}
	}
	err = retire(discarded, func() error {
		return s.recordMarking(func(tx *catalog.Tx, m *marking) (err error) {
			if due, err = s.dropNames(tx, m, discarded); err != nil { // first: what it marks the branches record too
				return err
			}
			for _, x := range scions {
				if err := s.keepLocked(tx, x.past, x.keeps); err != nil {
					return err
				}
			}
			return putBranchesLocked(tx, scions, group)
		})
	})
	if err != nil {
		return nil, err
	}
	return due, nil
}

// keepLocked records that a snapshot is passing no more. Store.mu is held.
func (s *Store) keepLocked(tx *catalog.Tx, d *disk, k *volume.VLUN) error {
	if k == nil {
		return nil
	}
	snap := d.snapshots[k]
	snap.marks.passing = false
	defer func() { snap.marks.passing = true }() // until it is durable
	return s.putLinkLocked(tx, d, k, volume.Draining)
}

// putBranchesLocked is putBranches in a step; Store.mu is held.
func putBranchesLocked(tx *catalog.Tx, scions []scion, group *catalog.Group) error {
	for _, x := range scions {
		if err := putBranch(tx, x); err != nil {
			return err
		}
	}
	if group != nil {
		return tx.PutGroup(*group)
	}
	return nil
}

// putBranch records one; Store.mu is held.
func putBranch(tx *catalog.Tx, x scion) error {
	if x.past != nil {
		old := x.past.record
		old.Past = true
		if err := tx.PutVolume(old); err != nil {
			return err
		}
	}
	if err := tx.PutVolume(x.record); err != nil {
		return err
	}
	for i, l := range x.chain {
		link := catalog.Link{Volume: x.record.ID, Image: l.ID, SizeBytes: l.SizeBytes, Table: 1}
		if rec := x.seals[i]; rec != nil {
			rec.record(&link)
		}
		if err := tx.PutLink(link); err != nil {
			return err
		}
	}
	return tx.PutLink(catalog.Link{Volume: x.record.ID, Image: x.tip.ID, SizeBytes: x.record.SizeBytes})
}

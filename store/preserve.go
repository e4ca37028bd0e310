package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/volume"
)

// Preserve keeps volumes as they are, at one instant, and returns when the
// snapshots are exact; see volume.Engine.Preserve. It goes on, with its
// deadline, when ctx ends before it returns. Errors: ErrInvalid, ErrNotFound,
// ErrExists (a name taken on one volume changes none), ErrLimit, ErrHighWater, ErrNoSpace,
// ErrInUse (a volume is being deleted); ErrAborted and ErrDraining come with a report.
func (s *Store) Preserve(ctx context.Context, r PreserveRequest) (PreserveReport, error) {
	disks, name, cutTime, err := s.takeName(r)
	if err != nil {
		return PreserveReport{}, err
	}
	type answer struct {
		report PreserveReport
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		defer s.preserves.Done()
		report, err := s.preserve(disks, name, cutTime, r)
		s.freeName(disks, name)
		answers <- answer{report, err}
	}()
	select {
	case <-ctx.Done():
		return PreserveReport{}, fmt.Errorf("preserve %s goes on: %w", name, ctx.Err())
	case a := <-answers:
		if errors.Is(a.err, errRolledBack) {
			return s.Preserve(ctx, r) // of what has the name now
		}
		if a.err != nil || !r.UntilSealed {
			return a.report, a.err
		}
		return s.untilSealed(ctx, a.report)
	}
}

// takeName checks the request and takes the name on every volume.
func (s *Store) takeName(r PreserveRequest) (disks []*disk, name string, cutTime time.Time, err error) {
	if len(r.Volumes)+len(r.Groups) == 0 {
		return nil, "", cutTime, fmt.Errorf("%w: preserve of no volume: name at least one", ErrInvalid)
	}
	if err := checkLabels(r.Labels); err != nil {
		return nil, "", cutTime, err
	}
	cutTime = time.Now()
	if name = r.Name; name != "" {
		if err := checkName("snapshot", name); err != nil {
			return nil, "", cutTime, err
		}
	} else {
		name = snapshotName(cutTime)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.withGroupsLocked(r.Volumes, r.Groups, r.Allow)
	if err != nil {
		return nil, "", cutTime, err
	}
	for _, volumeName := range names {
		d, err := s.diskLocked(volumeName)
		if err != nil {
			return nil, "", cutTime, err
		}
		if slices.Contains(disks, d) {
			return nil, "", cutTime, fmt.Errorf("%w: volume %s is named twice", ErrInvalid, volumeName)
		}
		disks = append(disks, d)
	}
	for t := cutTime; ; {
		taken := s.takenLocked(disks, name)
		if taken == "" {
			break
		}
		if r.Name != "" {
			return nil, "", cutTime, fmt.Errorf("snapshot %s %w: give another --name", taken, ErrExists)
		}
		t = t.Add(time.Millisecond)
		name = snapshotName(t)
	}
	for _, d := range disks {
		s.reserved[d.record.Name+"@"+name] = true
		s.marked[d.record.Name+"@"+name] = marks{schedule: r.schedule, labels: maps.Clone(r.Labels), passing: r.passing}
	}
	s.preserves.Add(1)
	return disks, name, cutTime, nil
}

// takenLocked returns a VOLUME@name that exists, or is about to; Store.mu is held.
func (s *Store) takenLocked(disks []*disk, name string) string {
	for _, d := range disks {
		full := d.record.Name + "@" + name
		if _, k, _ := s.findLocked(d.record.Name, name); k != nil || s.reserved[full] {
			return full
		}
	}
	return ""
}

func (s *Store) freeName(disks []*disk, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range disks {
		delete(s.reserved, d.record.Name+"@"+name)
		delete(s.marked, d.record.Name+"@"+name)
	}
}

// finishedLocked is ErrDraining as long as the preserve that makes a snapshot may still
// be given up: it waits for another volume's processes. Store.mu is held.
func (s *Store) finishedLocked(full string) error {
	if s.reserved[full] {
		return fmt.Errorf("snapshot %s is %w: the preserve that makes it waits for another volume", full, ErrDraining)
	}
	return nil
}

// finished is finishedLocked for who does not hold Store.mu.
func (s *Store) finished(full string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finishedLocked(full)
}

// findLocked returns a snapshot of a volume by name; Store.mu is held.
func (s *Store) findLocked(volumeName, name string) (*disk, *volume.VLUN, *snapshot) {
	for _, d := range s.branchesLocked(volumeName) {
		for k, snap := range d.snapshots {
			if snap.name == name {
				return d, k, snap
			}
		}
	}
	return nil, nil, nil
}

// branchesLocked lists the volume that has a name and those that had it before a
// rollback, oldest first; not those that are still being received. Store.mu is held.
func (s *Store) branchesLocked(volumeName string) (list []*disk) {
	for _, d := range s.byName[volumeName] {
		if !d.record.Staged {
			list = append(list, d)
		}
	}
	return list
}

func (s *Store) preserve(disks []*disk, name string, cutTime time.Time, r PreserveRequest) (PreserveReport, error) {
	volumes := make([]*volume.Volume, len(disks))
	for i, d := range disks {
		volumes[i] = d.volume
	}
	result, err := s.engine.Preserve(volumes, volume.PreserveOptions{
		Name: name, Wait: r.Wait, OnTimeout: r.OnTimeout, OnConflict: r.OnConflict,
	})
	s.spares.refill()
	if errors.Is(err, volume.ErrDrainingLimit) || errors.Is(err, volume.ErrImageLimit) {
		return PreserveReport{}, fmt.Errorf("preserve %s: %w: %w", name, ErrLimit, err)
	}
	if errors.Is(err, volume.ErrClosed) {
		return PreserveReport{}, fmt.Errorf("preserve %s: %w: %s", name, ErrInUse, changing)
	}
	if err != nil {
		return PreserveReport{}, fmt.Errorf("preserve %s: %w", name, err)
	}
	yield.Here("preserve: answered")
	report := PreserveReport{
		CutTime: result.CutTime, Drain: result.Drain, Took: result.Took, ProcessesWaited: result.Waited,
		LargestStall: result.LargestStall, LargestBefore: result.LargestBefore,
	}
	if result.Aborted {
		return report, abortedError(name, r, result)
	}
	draining := false
	for i, k := range result.VLUNs {
		info, err := s.answer(disks[i], k, result.Consistency)
		if err != nil {
			return report, fmt.Errorf("preserve %s: %w", name, err)
		}
		draining = draining || info.State == volume.Draining
		report.Snapshots = append(report.Snapshots, info)
	}
	if draining {
		return report, fmt.Errorf("preserve %s was made, and is %w: it waits for processes begun before it; see tidemark process list", name, ErrDraining)
	}
	return report, nil
}

// answer takes the outcome over into the snapshot's record. What the catalog
// was told before the cut says all but this: it is told at the answer if so.
func (s *Store) answer(d *disk, k *volume.VLUN, c volume.Consistency) (SnapshotInfo, error) {
	s.mu.Lock()
	snap := d.snapshots[k]
	if snap == nil {
		s.mu.Unlock()
		return SnapshotInfo{}, fmt.Errorf("snapshot of volume %s %w: the volume was deleted", d.record.Name, ErrNotFound)
	}
	changed := snap.consistency != c
	snap.consistency = c
	info := s.snapshotInfoLocked(d, k, snap)
	s.mu.Unlock()
	if changed { // of a VLUN that is not sealed, what a crash makes of it is the journal's to say
		if err := s.putLinks(d, volume.Draining, k); err != nil {
			return info, err
		}
	}
	return info, nil
}

func abortedError(name string, r PreserveRequest, result *volume.Result) error {
	tokens := make([]string, len(result.Moved))
	for i, t := range result.Moved {
		tokens[i] = string(t)
	}
	who := strings.Join(tokens, ", ")
	if who == "" {
		who = "requests in flight, or processes of an older preserve"
	}
	if result.Reason == volume.Conflicted {
		return fmt.Errorf("preserve %s %w by a conflict: a process begun before the cut touched a block written after it (%s); nothing was kept, nobody waited", name, ErrAborted, who)
	}
	instead := "degrade or keep"
	if r.schedule != "" {
		instead = "degrade, to tidemark schedule set"
	}
	return fmt.Errorf("preserve %s %w: after %s these had not ended: %s; give more --wait, or --on-timeout %s", name, ErrAborted, r.Wait, who, instead)
}

func (s *Store) untilSealed(ctx context.Context, report PreserveReport) (PreserveReport, error) {
	for i, snap := range report.Snapshots {
		full := snap.Volume + "@" + snap.Name
		if err := s.WaitSealed(ctx, full); err != nil {
			return report, err
		}
		info, err := s.Snapshot(full)
		if err != nil {
			return report, err
		}
		report.Snapshots[i] = info
	}
	return report, nil
}

// keeper is the Store as the engine sees it.
type keeper struct{ *Store }

var _ volume.Keeper = keeper{}

// Prepare implements volume.Keeper: one append to the catalog's log for all volumes,
// over image files that are there already. It is all that has to be durable before
// the cut, and nothing has to be after it.
func (s keeper) Prepare(p volume.Plan) ([]volume.Next, error) {
	if p.Replaces == nil { // else the room is needed already
		if err := errors.Join(s.reserve.spare(), s.belowMark()); err != nil {
			return nil, err
		}
	}
	next, err := s.spares.take(len(p.Volumes))
	if err != nil {
		return nil, err
	}
	taken, err := s.nameTips(p)
	yield.Here("prepare: named")
	if err == nil {
		err = s.record(p, next)
	}
	if err != nil {
		taken.undo()
		for _, n := range next {
			err = errors.Join(err, n.Image.Close())
			if !errors.Is(err, catalog.ErrFailed) { // else the next open may find it in a chain
				err = errors.Join(err, file.Remove(s.fs, imagesDir(s.dir), n.ID, file.Options{}))
			}
		}
		return nil, err
	}
	yield.Here("prepare: committed")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, snap := range taken.replaced {
		snap.settle() // it is no more: its name stands for the next cut
	}
	for i, v := range p.Volumes {
		d := s.byVolume[v]
		d.journal.AddImage(next[i].ID)
		d.images[next[i].ID] = next[i].Image
	}
	return next, nil
}

// errRolledBack: the preserve has not begun, and may be tried again.
var errRolledBack = errors.New("not cut")

// record appends the links of a cut.
func (s keeper) record(p volume.Plan, next []volume.Next) error {
	return s.catalog.Append(func(tx catalog.Links) error {
		cut, err := tx.NewCutID()
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, v := range p.Volumes {
			d := s.byVolume[v]
			d.snapshots[tip(v)].cut = cut
			links := []catalog.Link{
				d.link(tip(v), volume.Draining),
				{Volume: d.record.ID, Image: next[i].ID, SizeBytes: v.SizeBytes()},
			}
			if p.Replaces != nil {
				links = append(links, d.link(p.Replaces.VLUNs()[i], volume.Draining))
			}
			for _, l := range links {
				if err := tx.PutLink(l); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// naming is what nameTips changed.
type naming struct {
	store    keeper
	plan     volume.Plan
	replaced []*snapshot
}

// nameTips gives the plan's name to the tips, and takes it from the preserve
// that is replaced. A volume that was rolled back since is not cut any more: what its
// live view saw is perhaps gone.
func (s keeper) nameTips(p volume.Plan) (naming, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := naming{store: s, plan: p}
	for _, v := range p.Volumes {
		if d := s.byVolume[v]; d.record.Past {
			err := fmt.Errorf("volume %s is %w: it was rolled back meanwhile", d.record.Name, ErrInUse)
			if p.Replaces == nil {
				err = fmt.Errorf("%w: %w", errRolledBack, err)
			}
			return naming{store: s}, err
		}
	}
	at := time.Now()
	for i, v := range p.Volumes {
		d := s.byVolume[v]
		snap := &snapshot{name: p.Name, cutTime: at, settled: make(chan struct{}), marks: s.marked[d.record.Name+"@"+p.Name]}
		for _, t := range p.Waiting[i] {
			snap.waiting = append(snap.waiting, string(t))
		}
		if p.Replaces != nil {
			old := p.Replaces.VLUNs()[i]
			n.replaced = append(n.replaced, d.snapshots[old])
			delete(d.snapshots, old)
			snap.consistency = volume.ConsistencyRequest
		}
		d.snapshots[tip(v)] = snap
	}
	return n, nil
}

func (n naming) undo() {
	s := n.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, v := range n.plan.Volumes {
		d := s.byVolume[v]
		delete(d.snapshots, tip(v))
		if n.plan.Replaces == nil {
			continue
		}
		if old := n.plan.Replaces.VLUNs()[i]; d.images[old.ImageID()] != nil { // else it was dropped as it had no name
			d.snapshots[old] = n.replaced[i]
		}
	}
}

// Discard implements volume.Keeper: as a delete of the snapshots.
func (s keeper) Discard(p *volume.Preserve) error {
	due, err := s.unname(p)
	if err != nil {
		return err
	}
	s.sealer.punch(due...)
	return nil
}

// unname is nameless for all snapshots of a preserve, in one step.
func (s keeper) unname(p *volume.Preserve) (due []punching, err error) {
	s.chains.Lock()
	defer s.chains.Unlock()
	var named []holder
	err = s.recordMarking(func(tx *catalog.Tx, m *marking) (err error) {
		named = nil // it may run again
		for _, k := range p.VLUNs() {
			d := s.byVolume[k.Volume()]
			if d == nil || d.snapshots[k] == nil {
				continue // deleted meanwhile
			}
			named = append(named, holder{d, k})
		}
		due, err = s.dropNames(tx, m, named)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range named {
		h.disk.forget(h.vlun)
	}
	return due, nil
}

// Drained implements volume.Keeper: the snapshot is exact, and what its record
// says of its drain is final.
func (s keeper) Drained(k *volume.VLUN) {
	s.mu.Lock()
	d := s.byVolume[k.Volume()]
	if d != nil {
		if snap := d.snapshots[k]; snap != nil {
			snap.cutTime = k.CutTime()
			snap.drain = time.Since(snap.cutTime)
			snap.waiting = nil
			for _, t := range k.Torn() {
				snap.torn = append(snap.torn, string(t))
				snap.consistency = volume.ConsistencyMixed
			}
		}
	}
	s.mu.Unlock()
	yield.Here("drained: recorded")
	s.sealer.enqueue(k)
}

package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/volume"
)

// RollbackRequest asks for volumes to be again what snapshots of them hold.
type RollbackRequest struct {
	Snapshot string // VOLUME@SNAPSHOT, or GROUP@SNAPSHOT
	// Keep names the snapshot that keeps the present state; empty: before-rollback-
	// and the time.
	Keep string
	// Discard lets the present state go.
	Discard bool
	// Disconnect ends all use of the volume first: its clients are disconnected, each
	// at the end of a request, and its processes end as torn.
	Disconnect bool
}

// RollbackReport is the answer to Rollback.
type RollbackReport struct {
	Volume VolumeInfo
	// Kept is the snapshot that keeps what the volume held before; empty if that
	// was discarded.
	Kept string
}

// GroupRollbackReport is the answer to RollbackGroup.
type GroupRollbackReport struct {
	Volumes []VolumeInfo // by name
	// Kept are the snapshots, of one cut, that keep what each volume held before;
	// none if that was discarded.
	Kept []string
}

// Rollback makes a volume what a snapshot of it holds, at once and at any size: it
// copies nothing. The present state is preserved first, and every snapshot stays,
// also those that are newer than the one that it goes back to. Errors: ErrInvalid,
// ErrNotFound, ErrDraining, ErrHighWater; ErrInUse if a client is connected to the volume or a
// process named it, and Disconnect is false: then nothing has changed. After another
// error nothing has either, unless it names a snapshot of the present state that stays; and
// a crash finds it done or not begun.
func (s *Store) Rollback(ctx context.Context, r RollbackRequest) (RollbackReport, error) {
	all, err := s.rollback(ctx, r, only(r.Snapshot))
	var report RollbackReport
	if len(all.Volumes) > 0 {
		report.Volume = all.Volumes[0]
	}
	if len(all.Kept) > 0 {
		report.Kept = all.Kept[0]
	}
	return report, err
}

// RollbackGroup rolls all volumes of a group back to their snapshots of one cut,
// given as GROUP@SNAPSHOT, all or none of them: a preserve of the group, and a crash,
// finds them all before it or all after. What they hold is preserved first, in one
// cut. Errors: as Rollback, of any of them.
func (s *Store) RollbackGroup(ctx context.Context, r RollbackRequest, allow Allow) (GroupRollbackReport, error) {
	return s.rollback(ctx, r, s.snapshotsOf(r.Snapshot, allow))
}

func (s *Store) rollback(ctx context.Context, r RollbackRequest, which selection) (report GroupRollbackReport, err error) {
	if r.Keep == "" {
		r.Keep = "before-rollback-" + snapshotName(time.Now())
	}
	if err := s.foundedSoon(ctx, which); err != nil {
		return report, err
	}
	return s.keepAndBranch(ctx, r, which)
}

func (s *Store) keepAndBranch(ctx context.Context, r RollbackRequest, which selection) (report GroupRollbackReport, err error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	grafts, err := s.branchable(which)
	if err != nil {
		return report, err
	}
	if err := s.replaced(grafts, r.Keep); err != nil {
		return report, err
	}
	thaw, err := freeze(grafts, r.Disconnect)
	if err != nil {
		return report, err
	}
	stays := true
	defer func() {
		if stays {
			thaw()
		}
	}()
	keep := PreserveRequest{Name: r.Keep, Wait: time.Minute, passing: true}
	for _, g := range grafts {
		keep.Volumes = append(keep.Volumes, g.name)
	}
	if _, err := s.Preserve(ctx, keep); err != nil {
		return report, fmt.Errorf("roll back to %s: keep the present state: %w", r.Snapshot, err)
	}
	for _, g := range grafts {
		report.Kept = append(report.Kept, g.name+"@"+r.Keep)
	}
	disks, err := s.branchAndDiscard(grafts, r)
	switch {
	case errors.Is(err, catalog.ErrFailed): // what is written now, the next open may not find
		stays = false
		return report, fmt.Errorf("roll back to %s: whether it is done shows when the directory is opened again, and nobody opens the volume before: %w", r.Snapshot, err)
	case err != nil:
		err = fmt.Errorf("roll back to %s: %w", r.Snapshot, err)
		stay, why := s.unkeep(report.Kept)
		if report.Kept = stay; len(stay) > 0 {
			err = fmt.Errorf("%w; what keeps the present state stays: %s", err, strings.Join(why, "; "))
		}
		return report, err
	}
	stays = false
	for _, d := range disks {
		report.Volumes = append(report.Volumes, s.volumeInfo(d))
	}
	if r.Discard {
		report.Kept = nil
		for _, g := range grafts { // what it leaves behind, if nobody can see any of it
			err = errors.Join(err, s.dropEmptyPasts(g.past))
		}
	}
	return report, err
}

// branchAndDiscard makes the branches. In the same step what holds the present state is
// to stay or, if it is to be discarded, loses its names: a crash leaves it beside them, or
// never.
func (s *Store) branchAndDiscard(grafts []graft, r RollbackRequest) ([]*disk, error) {
	for i, g := range grafts {
		if r.Discard {
			named, err := s.deletable(g.name + "@" + r.Keep)
			if err != nil {
				return nil, err
			}
			grafts[i].discard = named[0].vlun
			continue
		}
		s.mu.Lock()
		_, grafts[i].keeps, _ = s.findLocked(g.name, r.Keep)
		s.mu.Unlock()
	}
	return s.branch(grafts, nil)
}

// unkeep deletes the snapshots of a rollback that was not done, as nobody asked for them
// alone. It returns those that stay, and says why of each. Store.admin is held.
func (s *Store) unkeep(kept []string) (stay, why []string) {
	for _, full := range kept {
		named, err := s.deletable(full)
		var due []punching
		if err == nil {
			due, err = s.nameless(named...)
		}
		if err != nil {
			err = errors.Join(err, s.keep(full))
			stay, why = append(stay, full), append(why, fmt.Sprintf("delete %s: %v", full, err))
			continue
		}
		s.sealer.punch(due...)
	}
	return stay, why
}

// keep records that a snapshot is passing no more: it was named to whoever asked.
func (s *Store) keep(full string) error {
	s.mu.Lock()
	d, k, snap, err := s.snapshotLocked(full)
	if err == nil {
		snap.marks.passing = false
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.putLinks(d, volume.Draining, k)
}

// dropPassing deletes what a rollback has left that an earlier life of the server has not
// done.
func (s *Store) dropPassing() {
	s.admin.Lock()
	defer s.admin.Unlock()
	var named []holder
	s.mu.Lock()
	for _, d := range s.byVolume {
		for k, snap := range d.snapshots {
			if snap.marks.passing {
				named = append(named, holder{d, k})
			}
		}
	}
	s.mu.Unlock()
	if len(named) == 0 {
		return
	}
	due, err := s.nameless(named...)
	if err != nil {
		s.note("what a rollback that was cut short has kept can't be deleted: %v", err)
		return
	}
	s.sealer.punch(due...)
}

// replaced finds the volumes that grafts are to take the names of, and whether what
// they hold can be kept under a name: before anybody is disconnected for nothing.
func (s *Store) replaced(grafts []graft, keep string) error {
	if err := checkName("snapshot", keep); err != nil {
		return err
	}
	if err := errors.Join(s.reserve.spare(), s.belowMark()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var disks []*disk
	for i, g := range grafts {
		live, err := s.diskLocked(g.disk.record.Name)
		if err != nil {
			return err
		}
		grafts[i].name, grafts[i].past = live.record.Name, live
		disks = append(disks, live)
	}
	if taken := s.takenLocked(disks, keep); taken != "" {
		return fmt.Errorf("snapshot %s %w: keep the present state under another name", taken, ErrExists)
	}
	return nil
}

// evictGrace is how long a client may take to end its requests before its connection
// is closed under them.
const evictGrace = 2 * time.Second

// freeze lets nobody open the volumes that grafts are to take the names of. If one of
// them is in use, all stay as they are, or its use is ended.
func freeze(grafts []graft, disconnect bool) (thaw func(), err error) {
	var frozen []*volume.Volume
	thaw = func() {
		for _, v := range frozen {
			v.Thaw()
		}
	}
	var evictions sync.WaitGroup // beside each other: each may take its grace
	defer evictions.Wait()
	for _, g := range grafts {
		v := g.past.volume
		if disconnect {
			evictions.Go(func() { v.Evict(evictGrace) })
		} else if err := v.Freeze(); err != nil {
			thaw()
			if errors.Is(err, volume.ErrBusy) {
				err = liveInUse(v)
			}
			return nil, err
		}
		frozen = append(frozen, v)
	}
	return thaw, nil
}

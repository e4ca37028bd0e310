package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/internal/lazy"
	"github.com/tidemark/tidemark/keep"
)

// marks is what people and schedules have put on a snapshot. A map in it is replaced,
// never changed.
type marks struct {
	schedule  string // the target of the schedule that made it
	labels    map[string]string
	held      bool
	heldUntil time.Time
	passing   bool // it goes if the command that made it is cut short
}

// record writes them into a snapshot's record.
func (m marks) record(r *catalog.Snapshot) {
	r.Schedule, r.Labels, r.Held, r.HeldUntil, r.Passing = m.schedule, m.labels, m.held, m.heldUntil, m.passing
}

func recoveredMarks(r *catalog.Snapshot) marks {
	return marks{schedule: r.Schedule, labels: r.Labels, held: r.Held, heldUntil: r.HeldUntil, passing: r.Passing}
}

// HoldSnapshot keeps a snapshot from being deleted, by anybody and anything. Without
// an end it is held until ReleaseSnapshot. With one (keep.ParseUntil) it is locked:
// no command shortens that, and another hold only makes it longer. The snapshot is made
// durable first (found). Errors: ErrInvalid, ErrNotFound, ErrDraining, ctx's; ErrHeld for
// an end that is earlier than the one it has; ErrClock.
func (s *Store) HoldSnapshot(ctx context.Context, full, until string) (SnapshotInfo, error) {
	if err := s.foundedSoon(ctx, only(full)); err != nil {
		return SnapshotInfo{}, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if until == "" {
		return s.mark(full, func(m *marks) error {
			m.held = true
			return nil
		})
	}
	now := time.Now()
	end, err := keep.ParseUntil(until, now)
	switch {
	case err != nil:
		return SnapshotInfo{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	case !end.After(now):
		return SnapshotInfo{}, fmt.Errorf("%w: hold until %s: that is past; give a date to come", ErrInvalid, timeText(end))
	}
	if err := s.lookAtClock(now); err != nil {
		return SnapshotInfo{}, err
	}
	return s.mark(full, func(m *marks) error {
		if end.Before(m.heldUntil) {
			return fmt.Errorf("snapshot %s is %w until %s: give a later date; nothing shortens it", full, ErrHeld, timeText(m.heldUntil))
		}
		m.heldUntil = end
		return nil
	})
}

// ReleaseSnapshot ends a hold that has no end, or whose end has passed. One that has
// none is left as it is. Errors: ErrInvalid, ErrNotFound; ErrHeld while the end is to
// come: then nothing has changed; ErrClock.
func (s *Store) ReleaseSnapshot(full string) (SnapshotInfo, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	info, err := s.Snapshot(full)
	if err != nil || !info.holds() {
		return info, err
	}
	info.Held = false // that is for this to end
	if err := s.mayGo(info); err != nil {
		return SnapshotInfo{}, err
	}
	return s.mark(full, func(m *marks) error {
		m.held, m.heldUntil = false, time.Time{}
		return nil
	})
}

// LabelSnapshot sets labels of a snapshot and removes others. The snapshot is made
// durable first (found). Errors: ErrInvalid, ErrNotFound, ErrDraining, ctx's.
func (s *Store) LabelSnapshot(ctx context.Context, full string, set map[string]string, remove []string) (SnapshotInfo, error) {
	if err := checkLabels(set); err != nil {
		return SnapshotInfo{}, err
	}
	if err := s.foundedSoon(ctx, only(full)); err != nil {
		return SnapshotInfo{}, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	return s.mark(full, func(m *marks) error {
		labels := map[string]string{}
		maps.Copy(labels, m.labels)
		maps.DeleteFunc(labels, func(key, _ string) bool { return slices.Contains(remove, key) })
		maps.Copy(labels, set)
		m.labels = labels
		return checkLabels(labels)
	})
}

// mark changes the marks of a snapshot, on the disk and then in memory. Nobody
// records anything of its image between the two: it would bring the old ones back.
// Store.admin is held.
func (s *Store) mark(full string, change func(*marks) error) (SnapshotInfo, error) {
	grafts, err := s.branchable(only(full))
	if err != nil {
		return SnapshotInfo{}, err
	}
	d, k := grafts[0].disk, grafts[0].vlun
	s.chains.Lock()
	defer s.chains.Unlock()
	s.mu.Lock()
	snap := d.snapshots[k]
	was, becomes, founded := snap.marks, snap.marks, d.foundedLocked(k)
	s.mu.Unlock()
	if !founded { // that could not be recorded
		return SnapshotInfo{}, fmt.Errorf("snapshot %s is %w", full, ErrDraining)
	}
	if err := change(&becomes); err != nil {
		return SnapshotInfo{}, err
	}
	becomes.passing = false // somebody wants it
	if err := s.catalog.Update(func(tx *catalog.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		snap.marks = becomes
		defer func() { snap.marks = was }() // until it is durable
		return tx.PutLink(d.link(k, k.State()))
	}); err != nil {
		return SnapshotInfo{}, fmt.Errorf("snapshot %s: %w", full, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	snap.marks = becomes
	return s.snapshotInfoLocked(d, k, snap), nil
}

// mayGo returns ErrHeld if one of these snapshots is held, and ErrClock if it can't be
// told. Store.admin is held, so nobody holds one meanwhile.
func (s *Store) mayGo(snapshots ...SnapshotInfo) error {
	if !slices.ContainsFunc(snapshots, SnapshotInfo.holds) {
		return nil
	}
	now := time.Now()
	if err := s.lookAtClock(now); err != nil {
		return err
	}
	for _, info := range snapshots {
		switch full := info.Volume + "@" + info.Name; {
		case now.Before(info.HeldUntil):
			return fmt.Errorf("snapshot %s is %w until %s: no command shortens that", full, ErrHeld, timeText(info.HeldUntil))
		case info.Held:
			return fmt.Errorf("snapshot %s is %w: tidemark snapshot release lets it go", full, ErrHeld)
		}
	}
	return nil
}

// holds tells whether somebody has held it, whether that has passed or not.
func (i SnapshotInfo) holds() bool { return i.Held || !i.HeldUntil.IsZero() }

// HeldAt tells whether it may not be deleted at a time.
func (i SnapshotInfo) HeldAt(now time.Time) bool { return i.Held || now.Before(i.HeldUntil) }

// Labelled tells whether it has all of these labels.
func (i SnapshotInfo) Labelled(labels map[string]string) bool {
	for key, value := range labels {
		if got, ok := i.Labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// The clock may go back by clockSlack unnoticed, as when it is set by the network.
// That it went on is not recorded more often than after clockStep.
const (
	clockSlack = 5 * time.Minute
	clockStep  = time.Minute
)

// lookAtClock returns ErrClock if the clock was moved back since a hold was last
// looked at, in this life of the server or an earlier one: an end counted from now
// would come too early, and what has passed would be to come. Store.admin is held.
func (s *Store) lookAtClock(now time.Time) error {
	if now.Add(clockSlack).Before(s.seen) {
		return fmt.Errorf("%w: it says %s, and it was %s already; set it right, as holds end by it", ErrClock, timeText(now), timeText(s.seen))
	}
	if now.Before(s.seen.Add(clockStep)) {
		return nil
	}
	err := s.catalog.Update(func(tx *catalog.Tx) error {
		tx.Saw(now)
		return nil
	})
	if err == nil {
		s.seen = now.Round(0)
	}
	return err
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Labels of a snapshot.
const (
	MaxLabels     = 32
	MaxLabelBytes = 255 // of a value
)

var labelForm = lazy.Regexp(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)

func checkLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("%w: %d labels: a snapshot may have %d", ErrInvalid, len(labels), MaxLabels)
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		value := labels[key]
		if !labelForm().MatchString(key) {
			return fmt.Errorf("%w: key %q of a label: allowed are 1 to 63 of A-Z a-z 0-9 . _ / -, with a letter or digit at both ends", ErrInvalid, key)
		}
		printable := utf8.ValidString(value)
		for _, r := range value {
			printable = printable && unicode.IsPrint(r)
		}
		if !printable || len(value) > MaxLabelBytes {
			return fmt.Errorf("%w: value of label %s: allowed are up to %d bytes of printable text", ErrInvalid, key, MaxLabelBytes)
		}
	}
	return nil
}

package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/keep"
	"github.com/tidemark/tidemark/volume"
)

// ScheduleInfo describes a schedule.
type ScheduleInfo struct {
	// Target is the volume.
	Target string
	ScheduleSettings
	// Next is when it is due.
	Next time.Time
	// Last is the cut of the newest snapshot that it made; zero if there is none.
	Last time.Time
	// Snapshots counts those that it made, Most is how many it keeps at most on each
	// volume, beside those that are held or in use.
	Snapshots, Most int
	// Failed says why it did not do what was due the last time; empty if it did. It is
	// tried again at the next time.
	Failed string
	// Drilled is the newest snapshot of each volume, by volume, that it made and that
	// was drilled.
	Drilled []DrilledSnapshot
	// Drilling is the snapshot, VOLUME@SNAPSHOT, that is being drilled; empty if none is.
	Drilling string
	// DrillFailed says why no drill could be made the last time; empty if one could,
	// whatever came of it.
	DrillFailed string
}

// ScheduleSettings are what people say of a schedule.
type ScheduleSettings struct {
	// Every is when it is due, Keep what is kept (package keep).
	Every, Keep string
	// Drill names the program (Driller) that looks at a clone of its snapshots; empty:
	// none does. DrillEvery is how often, as Every; empty: of each snapshot.
	Drill, DrillEvery string
	// Wait is how long a preserve waits for processes begun before its cut; nil:
	// DefaultWait. OnTimeout is what it does then: TimeoutKeep is not allowed, as the
	// next ones would only join the one that drains, until there are too many.
	Wait      *time.Duration
	OnTimeout volume.OnTimeout
}

// wait is how long a preserve waits.
func (x ScheduleSettings) wait() time.Duration {
	if x.Wait == nil {
		return DefaultWait
	}
	return *x.Wait
}

// SchedulePreview says what a schedule would do.
type SchedulePreview struct {
	// Next are the times at which it would be due first.
	Next []time.Time
	// Expired are the snapshots, VOLUME@SNAPSHOT, that it would delete now, oldest
	// first: only those that a schedule of this target has made.
	Expired []string
}

// schedules are those of the store, and who keeps to them.
type schedules struct {
	byTarget map[string]*schedule // guarded by Store.mu
	wake     chan struct{}        // there is a new one, or a drill may be due
	turn     chan struct{}        // taken by who drills: one at a time
	drilled  drilled              // what it drills; guarded by Store.mu
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// schedule is guarded by Store.mu, but for what never changes.
type schedule struct {
	record    catalog.Schedule
	every     keep.Every
	policy    keep.Policy
	wait      time.Duration // of a preserve, and what it does then
	onTimeout volume.OnTimeout
	next      time.Time // when it is due; zero: never
	running   bool
	failed    string
	drills
}

// GroupTarget is what the target of a schedule begins with that is a group's, not a
// volume's.
const GroupTarget = "group:"

// VolumesOf resolves the target of a schedule to the names of the volumes that it
// preserves, at one cut: a volume, or GroupTarget and a group. Whether the volume is
// there it does not ask. Errors: ErrInvalid, ErrNotFound.
func (s *Store) VolumesOf(target string) ([]string, error) {
	if name, is := strings.CutPrefix(target, GroupTarget); is {
		g, err := s.Group(name)
		return g.Volumes, err
	}
	return []string{target}, checkName("volume", target)
}

// SetSchedule has a volume, or a group, preserved again and again, from the next time on that every
// names, and deletes what keep does not keep of the snapshots so made: never one that
// a person made, that is held, in use or draining. It replaces the schedule that the
// target has, and ends a drill of that which runs; the snapshots made by that are its
// own. If a drill is due it is made at once. Errors: ErrInvalid, ErrNotFound.
func (s *Store) SetSchedule(target string, set ScheduleSettings) (ScheduleInfo, error) {
	x, err := s.givenSchedule(target, set, time.Now().UTC())
	if err != nil {
		return ScheduleInfo{}, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if _, err := s.scheduled(target); err != nil {
		return ScheduleInfo{}, err
	}
	if err := s.catalog.Update(func(tx *catalog.Tx) error { return tx.PutSchedule(x.record) }); err != nil {
		return ScheduleInfo{}, fmt.Errorf("schedule of %s: %w", target, err)
	}
	x.next = x.every.Next(x.record.Since)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.schedules.forgetLocked(target)
	s.schedules.byTarget[target] = x
	s.schedules.poke()
	return s.scheduleInfoLocked(x), nil
}

// previewTimes is how many times a preview lists.
const previewTimes = 5

// PreviewSchedule tells what SetSchedule would bring about, and changes nothing.
// Errors: as SetSchedule.
func (s *Store) PreviewSchedule(target string, set ScheduleSettings) (p SchedulePreview, err error) {
	now := time.Now()
	x, err := s.givenSchedule(target, set, now)
	if err != nil {
		return p, err
	}
	if _, err := s.scheduled(target); err != nil {
		return p, err
	}
	for next := x.every.Next(now); len(p.Next) < previewTimes && !next.IsZero(); next = x.every.Next(next) {
		p.Next = append(p.Next, next)
	}
	p.Expired, err = s.expired(x, now)
	return p, err
}

// RemoveSchedule ends a schedule, and a drill of it that runs. The snapshots that it
// made stay. Errors: ErrNotFound.
func (s *Store) RemoveSchedule(target string) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if _, err := s.Schedule(target); err != nil {
		return err
	}
	if err := s.catalog.Update(func(tx *catalog.Tx) error { return tx.DeleteSchedule(target) }); err != nil {
		return fmt.Errorf("remove the schedule of %s: %w", target, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.schedules.forgetLocked(target)
	return nil
}

// Schedules lists the schedules by target.
func (s *Store) Schedules() (infos []ScheduleInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, target := range slices.Sorted(maps.Keys(s.schedules.byTarget)) {
		infos = append(infos, s.scheduleInfoLocked(s.schedules.byTarget[target]))
	}
	return infos
}

// Schedule describes the schedule of a target, or ErrNotFound.
func (s *Store) Schedule(target string) (ScheduleInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.schedules.byTarget[target]; x != nil {
		return s.scheduleInfoLocked(x), nil
	}
	return ScheduleInfo{}, fmt.Errorf("schedule of %s %w", target, ErrNotFound)
}

// scheduleInfoLocked describes a schedule; Store.mu is held.
func (s *Store) scheduleInfoLocked(x *schedule) ScheduleInfo {
	r := x.record
	info := ScheduleInfo{
		Target: r.Target,
		ScheduleSettings: ScheduleSettings{
			Every: r.Every, Keep: r.Keep, Drill: r.Drill, DrillEvery: r.DrillEvery, Wait: new(x.wait), OnTimeout: x.onTimeout,
		},
		Next: x.next, Most: x.policy.Most(), Failed: x.failed, DrillFailed: x.drillFailed,
	}
	info.Snapshots, info.Last = s.madeLocked(r.Target)
	if r.Drill != "" {
		info.Most += keptForDrills
		info.Drilled = s.drilledLocked(r.Target)
	}
	if s.schedules.drilled.by == x {
		info.Drilling = s.schedules.drilled.snapshot
	}
	return info
}

// madeLocked counts the snapshots that the schedule of a target has made, and says
// when the newest was cut; Store.mu is held.
func (s *Store) madeLocked(target string) (n int, last time.Time) {
	for _, d := range s.byVolume {
		since := s.sinceLocked(target, d.record.Name)
		for k, snap := range d.snapshots {
			if snap.schedule != target || !k.Cut() || snap.cutTime.Before(since) {
				continue
			}
			n++
			if snap.cutTime.After(last) {
				last = snap.cutTime
			}
		}
	}
	return n, last
}

// sinceLocked is from which cut on a schedule has the snapshots of a volume that bear
// its target. What it made of a volume that has left its group stays its own, as nobody
// else lets that go; but older ones are of another group that had the name before.
// Store.mu is held.
func (s *Store) sinceLocked(target, volumeName string) time.Time {
	name, is := strings.CutPrefix(target, GroupTarget)
	if g, there := s.groups[name]; is && there && !slices.Contains(g.Volumes, volumeName) {
		return g.Created
	}
	return time.Time{}
}

// MadeOn lists the volumes that have snapshots which the schedule of a target has made,
// and may let go: also those that have left its group.
func (s *Store) MadeOn(target string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for _, d := range s.byVolume {
		since := s.sinceLocked(target, d.record.Name)
		for _, snap := range d.snapshots {
			if snap.schedule == target && !snap.cutTime.Before(since) {
				names[d.record.Name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// givenSchedule is newSchedule of what somebody has said just now.
func (s *Store) givenSchedule(target string, set ScheduleSettings, now time.Time) (*schedule, error) {
	record := catalog.Schedule{
		Target: target, Every: set.Every, Keep: set.Keep, Drill: set.Drill, DrillEvery: set.DrillEvery, Since: now,
	}
	if err := set.recordWait(&record); err != nil {
		return nil, err
	}
	x, err := newSchedule(record)
	if err == nil && set.Drill != "" {
		err = s.driller.Check(set.Drill)
	}
	return x, err
}

// recordWait puts how a schedule waits into its record. What is the default is not said
// there, so that a directory without it can be opened by older servers.
func (x ScheduleSettings) recordWait(record *catalog.Schedule) error {
	wait := x.wait()
	if wait < 0 {
		return fmt.Errorf("%w: wait of %v: it can't be negative", ErrInvalid, wait)
	}
	if wait != DefaultWait {
		record.Wait = &wait
	}
	switch x.OnTimeout {
	case volume.TimeoutAbort:
	case volume.TimeoutDegrade:
		record.OnTimeout = catalog.ScheduleDegrades
	default:
		return fmt.Errorf("%w: timeout policy %v of a schedule: allowed are abort and degrade", ErrInvalid, x.OnTimeout)
	}
	return nil
}

func newSchedule(record catalog.Schedule) (*schedule, error) {
	every, err := keep.ParseEvery(record.Every)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	policy, err := keep.ParsePolicy(record.Keep)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	x := &schedule{record: record, every: every, policy: policy, wait: DefaultWait}
	if record.Wait != nil {
		x.wait = *record.Wait
	}
	if record.OnTimeout == catalog.ScheduleDegrades {
		x.onTimeout = volume.TimeoutDegrade
	}
	return x, x.readDrill()
}

// scheduled is the volumes of a target, all of which are there.
func (s *Store) scheduled(target string) ([]string, error) {
	volumes, err := s.VolumesOf(target)
	if err != nil {
		return nil, err
	}
	for _, name := range volumes {
		if _, err := s.disk(name); err != nil {
			return nil, err
		}
	}
	return volumes, nil
}

// openSchedules takes the schedules over from the catalog. One that missed its time
// while no server ran is due at once, and only once.
func (s *Store) openSchedules(state catalog.State) error {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, record := range state.Schedules {
		x, err := newSchedule(record)
		if err != nil {
			return fmt.Errorf("%w: schedule of %s: %w", catalog.ErrCorrupt, record.Target, err)
		}
		_, last := s.madeLocked(record.Target)
		if last.Before(record.Since) {
			last = record.Since
		}
		if x.next = x.every.Next(now); x.every.Due(last, now) {
			x.next = now
		}
		s.schedules.byTarget[record.Target] = x
	}
	return nil
}

// forgetLocked drops the schedule of a target, if it has one, and ends a drill of it
// that runs; Store.mu is held.
func (c *schedules) forgetLocked(target string) {
	if x := c.byTarget[target]; x != nil {
		x.end()
		delete(c.byTarget, target)
	}
}

// start begins to keep to the schedules.
func (c *schedules) start(s *Store) {
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.running.Go(func() { s.keepSchedules(ctx) })
}

// stop returns when nothing is made or deleted by a schedule any more.
func (c *schedules) stop() {
	c.cancel()
	c.running.Wait()
}

// DrillPrograms returns the programs that schedules may name, sorted.
func (s *Store) DrillPrograms() []string { return s.driller.Programs() }

// EndSchedules ends what schedules do, drills too, of which nothing is recorded then.
// Close does it too, and waits for it. It is for whoever has to take leave of NBD
// clients first, lest a program find the volume gone and the drill count as failed.
func (s *Store) EndSchedules() { s.schedules.cancel() }

func (c *schedules) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// clockLook is how long it sleeps at most: the clock may be set meanwhile, or the
// machine stand still.
const clockLook = time.Minute

// keepSchedules does what is due when its time has come.
func (s *Store) keepSchedules(ctx context.Context) {
	for ctx.Err() == nil {
		var turn <-chan time.Time
		if next := s.startDue(ctx, time.Now()); !next.IsZero() {
			turn = time.After(min(time.Until(next), clockLook))
		}
		select {
		case <-ctx.Done():
		case <-s.schedules.wake:
		case <-turn:
		}
	}
}

// startDue starts what is due, each beside the others, as one may have to wait for
// processes. What comes due while the last of its kind still waits is left out. It
// returns when the next is due; the zero time if none ever is.
func (s *Store) startDue(ctx context.Context, now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.schedules.byTarget {
		due := !x.next.IsZero() && !x.next.After(now)
		if after := x.every.Next(now); due || after.Before(x.next) { // or the clock was moved back
			x.next = after
		}
		if due && !x.running {
			x.running = true
			s.schedules.running.Go(func() { s.runSchedule(ctx, x) })
		}
		if x.wanted && !x.running { // the snapshot that is to be drilled comes first
			s.startDrillsLocked(ctx, x)
		}
		if next.IsZero() || !x.next.IsZero() && x.next.Before(next) {
			next = x.next
		}
	}
	return next
}

// DefaultWait is how long a preserve waits for processes begun before its cut where
// nobody said.
const DefaultWait = time.Minute

// runSchedule preserves, and lets go what is to be kept no more: that too when there
// is no room for a snapshot. Where a snapshot could not be made for another reason,
// nothing is deleted: there may be none to come that takes its place. What failed is
// told once, until it works again.
func (s *Store) runSchedule(ctx context.Context, x *schedule) {
	err := s.preserveScheduled(ctx, x)
	if err == nil || errors.Is(err, ErrNoSpace) || errors.Is(err, ErrHighWater) {
		err = errors.Join(err, s.letGo(ctx, x))
	}
	s.mu.Lock()
	first := x.failed == "" && s.schedules.byTarget[x.record.Target] == x
	if x.running, x.failed = false, ""; err != nil && ctx.Err() == nil {
		x.failed = err.Error()
	}
	failed := x.failed
	x.wanted = true
	s.mu.Unlock()
	s.schedules.poke()
	if failed != "" && first {
		level := slog.LevelError
		if errors.Is(err, ErrInUse) { // a volume is being deleted, and this with it
			level = slog.LevelInfo
		}
		s.logger.Log(ctx, level, "schedule; it is tried again at the next time", "target", x.record.Target, "err", err)
	}
}

func (s *Store) preserveScheduled(ctx context.Context, x *schedule) error {
	target := x.record.Target
	r := PreserveRequest{Volumes: []string{target}, Wait: x.wait, OnTimeout: x.onTimeout, schedule: target}
	if name, is := strings.CutPrefix(target, GroupTarget); is { // of whatever it has at the cut
		r.Volumes, r.Groups = nil, []string{name}
	}
	_, err := s.Preserve(ctx, r)
	return err
}

// letGo deletes the snapshots of a schedule that have expired, as long as it is the one
// of its target. What is in use, drains or was held meanwhile has its turn the next time.
func (s *Store) letGo(ctx context.Context, x *schedule) error {
	expired, err := s.expired(x, time.Now())
	if len(expired) > 1 && ctx.Err() == nil && s.keepsTo(x) && s.DeleteSnapshots(expired...) == nil {
		return err
	}
	for _, full := range expired { // one of them can't go: the others do
		if ctx.Err() != nil || !s.keepsTo(x) {
			return ctx.Err()
		}
		gone := s.DeleteSnapshots(full)
		if !later(gone) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// keepsTo tells whether a schedule was neither removed nor replaced.
func (s *Store) keepsTo(x *schedule) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.schedules.byTarget[x.record.Target] == x
}

// later tells that a snapshot that was not deleted has its turn the next time, or has
// gone. With the clock moved back nobody knows whether it is held: it is as if it were.
func later(err error) bool {
	for _, why := range []error{ErrInUse, ErrDraining, ErrHeld, ErrClock, ErrNotFound} {
		if errors.Is(err, why) {
			return true
		}
	}
	return false
}

// expired lists the snapshots that a schedule has made and keeps no more, of each
// volume the oldest first. Those that are held, are being drilled or are the last word
// of drills count among them, and stay.
func (s *Store) expired(x *schedule, now time.Time) (fulls []string, err error) {
	for _, name := range s.MadeOn(x.record.Target) {
		made, err := s.madeBy(x, name)
		if errors.Is(err, ErrNotFound) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		cuts := make([]time.Time, len(made))
		for i, info := range made {
			cuts[i] = info.CutTime
		}
		for _, i := range x.policy.Expired(cuts, now) {
			if !made[i].HeldAt(now) && !s.neededByDrills(x, made, i) {
				fulls = append(fulls, name+"@"+made[i].Name)
			}
		}
	}
	return fulls, nil
}

// madeBy lists the snapshots of a volume that a schedule of the target has made.
func (s *Store) madeBy(x *schedule, volumeName string) ([]SnapshotInfo, error) {
	made, err := s.Snapshots(volumeName)
	s.mu.Lock()
	since := s.sinceLocked(x.record.Target, volumeName)
	s.mu.Unlock()
	return slices.DeleteFunc(made, func(i SnapshotInfo) bool {
		return i.Schedule != x.record.Target || i.CutTime.Before(since)
	}), err
}

package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

func (s *service) HoldSnapshot(ctx context.Context, r *tidemarkv1.HoldSnapshotRequest) (*tidemarkv1.HoldSnapshotResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceHoldSnapshotProcedure, volumeOf(r.GetName())); err != nil {
		return nil, wireError(err, nil)
	}
	info, err := s.store.HoldSnapshot(ctx, r.GetName(), r.GetUntil())
	return &tidemarkv1.HoldSnapshotResponse{Snapshot: toSnapshot(info)}, wireError(err, nil)
}

func (s *service) ReleaseSnapshot(ctx context.Context, r *tidemarkv1.ReleaseSnapshotRequest) (*tidemarkv1.ReleaseSnapshotResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceReleaseSnapshotProcedure, volumeOf(r.GetName())); err != nil {
		return nil, wireError(err, nil)
	}
	info, err := s.store.ReleaseSnapshot(r.GetName())
	return &tidemarkv1.ReleaseSnapshotResponse{Snapshot: toSnapshot(info)}, wireError(err, nil)
}

func (s *service) LabelSnapshot(ctx context.Context, r *tidemarkv1.LabelSnapshotRequest) (*tidemarkv1.LabelSnapshotResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceLabelSnapshotProcedure, volumeOf(r.GetName())); err != nil {
		return nil, wireError(err, nil)
	}
	info, err := s.store.LabelSnapshot(ctx, r.GetName(), r.GetSet(), r.GetRemove())
	return &tidemarkv1.LabelSnapshotResponse{Snapshot: toSnapshot(info)}, wireError(err, nil)
}

// mayTarget is may for the volumes of a schedule's target, and for more. Who may not read all
// volumes of a group is told that there is no such group.
func (s *service) mayTarget(ctx context.Context, procedure, target string, more ...string) error {
	volumes, err := s.store.VolumesOf(target)
	if err != nil {
		volumes = []string{target} // who has no right learns nothing of why
	}
	denied := s.may(ctx, procedure, append(slices.Clone(volumes), more...)...)
	if name, is := strings.CutPrefix(target, store.GroupTarget); is && denied != nil && s.may(ctx, rpc.TidemarkServiceListSchedulesProcedure, volumes...) != nil {
		return fmt.Errorf("group %s %w", name, store.ErrNotFound)
	}
	if denied != nil {
		return denied
	}
	return err
}

func (s *service) SetSchedule(ctx context.Context, r *tidemarkv1.SetScheduleRequest) (*tidemarkv1.SetScheduleResponse, error) {
	if err := s.mayTarget(ctx, rpc.TidemarkServiceSetScheduleProcedure, r.GetTarget(), s.store.MadeOn(r.GetTarget())...); err != nil {
		return nil, wireError(err, nil)
	}
	set, err := scheduleSettings(r)
	if err != nil {
		return nil, wireError(err, nil)
	}
	x, err := s.store.SetSchedule(r.GetTarget(), set)
	return &tidemarkv1.SetScheduleResponse{Schedule: toSchedule(x)}, wireError(err, nil)
}

func (s *service) PreviewSchedule(ctx context.Context, r *tidemarkv1.PreviewScheduleRequest) (*tidemarkv1.PreviewScheduleResponse, error) {
	if err := s.mayTarget(ctx, rpc.TidemarkServicePreviewScheduleProcedure, r.GetTarget(), s.store.MadeOn(r.GetTarget())...); err != nil {
		return nil, wireError(err, nil)
	}
	set, err := scheduleSettings(r)
	if err != nil {
		return nil, wireError(err, nil)
	}
	p, err := s.store.PreviewSchedule(r.GetTarget(), set)
	return &tidemarkv1.PreviewScheduleResponse{NextTimes: each(p.Next, timestamppb.New), Expired: p.Expired}, wireError(err, nil)
}

func (s *service) ListSchedules(ctx context.Context, _ *tidemarkv1.ListSchedulesRequest) (*tidemarkv1.ListSchedulesResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceListSchedulesProcedure); err != nil {
		return nil, wireError(err, nil)
	}
	list := &tidemarkv1.ListSchedulesResponse{}
	for _, x := range s.store.Schedules() {
		if s.mayTarget(ctx, rpc.TidemarkServiceListSchedulesProcedure, x.Target) == nil {
			list.Schedules = append(list.Schedules, toSchedule(x))
		}
	}
	return list, nil
}

func (s *service) GetSchedule(ctx context.Context, r *tidemarkv1.GetScheduleRequest) (*tidemarkv1.GetScheduleResponse, error) {
	if err := s.mayTarget(ctx, rpc.TidemarkServiceGetScheduleProcedure, r.GetTarget()); err != nil {
		return nil, wireError(err, nil)
	}
	x, err := s.store.Schedule(r.GetTarget())
	return &tidemarkv1.GetScheduleResponse{Schedule: toSchedule(x)}, wireError(err, nil)
}

func (s *service) RemoveSchedule(ctx context.Context, r *tidemarkv1.RemoveScheduleRequest) (*tidemarkv1.RemoveScheduleResponse, error) {
	if err := s.mayTarget(ctx, rpc.TidemarkServiceRemoveScheduleProcedure, r.GetTarget()); err != nil {
		return nil, wireError(err, nil)
	}
	return &tidemarkv1.RemoveScheduleResponse{}, wireError(s.store.RemoveSchedule(r.GetTarget()), nil)
}

func scheduleSettings(r interface {
	GetEvery() string
	GetKeep() string
	GetDrill() string
	GetDrillEvery() string
	GetWait() *durationpb.Duration
	GetOnTimeout() tidemarkv1.OnTimeout
},
) (store.ScheduleSettings, error) {
	set := store.ScheduleSettings{Every: r.GetEvery(), Keep: r.GetKeep(), Drill: r.GetDrill(), DrillEvery: r.GetDrillEvery()}
	if r.GetWait() != nil {
		set.Wait = new(r.GetWait().AsDuration())
	}
	var err error
	set.OnTimeout, err = fromEnum("timeout policy", r.GetOnTimeout(), volume.TimeoutAbort, volume.TimeoutKeep)
	return set, err
}

func toSchedule(x store.ScheduleInfo) *tidemarkv1.Schedule {
	wire := &tidemarkv1.Schedule{
		Target:     x.Target,
		Every:      x.Every,
		Keep:       x.Keep,
		NextTime:   toTime(x.Next),
		LastTime:   toTime(x.Last),
		Snapshots:  int32(x.Snapshots),
		Most:       int32(x.Most),
		Failed:     x.Failed,
		Drill:      x.Drill,
		DrillEvery: x.DrillEvery,
		Drilled: each(x.Drilled, func(d store.DrilledSnapshot) *tidemarkv1.DrilledSnapshot {
			return &tidemarkv1.DrilledSnapshot{Name: d.Name, Drill: toDrill(&d.Drill)}
		}),
		Drilling:    x.Drilling,
		DrillFailed: x.DrillFailed,
		OnTimeout:   tidemarkv1.OnTimeout(x.OnTimeout + 1),
	}
	if x.Wait != nil { // else it is that of an error
		wire.Wait = durationpb.New(*x.Wait)
	}
	return wire
}

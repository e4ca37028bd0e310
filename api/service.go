// Package api is the one way to control a server: the Connect service that
// proto/tidemark/v1/tidemark.proto defines, its server and its client.
//
// The command line, user interfaces and scripts all use it. A handler turns a
// message into a call of the store and the answer back into a message; it
// decides nothing itself. Who may call what is asked first (see rights).
package api

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/metrics"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// DefaultWait is how long a preserve waits for older processes when the
// request does not say.
const DefaultWait = store.DefaultWait

// service implements the handlers. It has no state of its own but who holds a
// process or a volume.
type service struct {
	store  *store.Store
	guard  *access.Guard
	info   *tidemarkv1.GetServerInfoResponse
	logger *slog.Logger
	holds  holds
	loans  loans
}

var _ rpc.TidemarkServiceHandler = (*service)(nil)

func (s *service) GetServerInfo(ctx context.Context, _ *tidemarkv1.GetServerInfoRequest) (*tidemarkv1.GetServerInfoResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceGetServerInfoProcedure); err != nil {
		return nil, wireError(err, nil)
	}
	info := proto.CloneOf(s.info)
	heap := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(heap)
	info.HeapBytes, info.Goroutines = int64(heap[0].Value.Uint64()), int64(runtime.NumGoroutine())
	info.Drills = s.store.DrillPrograms()
	if space, err := s.store.Space(); err == nil { // what can't be asked is left out
		info.Space = toSpace(space)
	}
	return info, nil
}

func (s *service) CreateVolume(ctx context.Context, r *tidemarkv1.CreateVolumeRequest) (*tidemarkv1.CreateVolumeResponse, error) {
	v, err := s.create(ctx, rpc.TidemarkServiceCreateVolumeProcedure, r, s.store.CreateVolume)
	return &tidemarkv1.CreateVolumeResponse{Volume: toVolume(v)}, wireError(err, nil)
}

// create makes a volume in one of the store's ways.
func (s *service) create(ctx context.Context, procedure string, r *tidemarkv1.CreateVolumeRequest, way func(string, int64, volume.Scope) (store.VolumeInfo, error)) (store.VolumeInfo, error) {
	if err := s.may(ctx, procedure, r.GetName()); err != nil {
		return store.VolumeInfo{}, err
	}
	scope, err := fromEnum("scope", r.GetScope(), volume.ScopeRequest, volume.ScopeSession)
	if err != nil {
		return store.VolumeInfo{}, err
	}
	return way(r.GetName(), r.GetSizeBytes(), scope)
}

func (s *service) ListVolumes(ctx context.Context, r *tidemarkv1.ListVolumesRequest) (*tidemarkv1.ListVolumesResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceListVolumesProcedure); err != nil {
		return nil, wireError(err, nil)
	}
	list := visible(ctx, s, rpc.TidemarkServiceListVolumesProcedure, s.store.Volumes(), func(v store.VolumeInfo) []string { return []string{v.Name} })
	volumes := each(list, toVolume)
	if r.GetSizes() {
		if err := s.measureVolumes(volumes...); err != nil {
			return nil, wireError(err, nil)
		}
	}
	return &tidemarkv1.ListVolumesResponse{Volumes: volumes}, nil
}

func (s *service) GetVolume(ctx context.Context, r *tidemarkv1.GetVolumeRequest) (*tidemarkv1.GetVolumeResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceGetVolumeProcedure, r.GetName()); err != nil {
		return nil, wireError(err, nil)
	}
	info, err := s.store.Volume(r.GetName())
	v := toVolume(info)
	if err == nil {
		err = s.measureVolumes(v)
	}
	return &tidemarkv1.GetVolumeResponse{Volume: v}, wireError(err, nil)
}

func (s *service) ResizeVolume(ctx context.Context, r *tidemarkv1.ResizeVolumeRequest) (*tidemarkv1.ResizeVolumeResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceResizeVolumeProcedure, r.GetName()); err != nil {
		return nil, wireError(err, nil)
	}
	v, err := s.store.ResizeVolume(r.GetName(), r.GetSizeBytes())
	return &tidemarkv1.ResizeVolumeResponse{Volume: toVolume(v)}, wireError(err, nil)
}

func (s *service) DeleteVolume(ctx context.Context, r *tidemarkv1.DeleteVolumeRequest) (*tidemarkv1.DeleteVolumeResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceDeleteVolumeProcedure, r.GetName()); err != nil {
		return nil, wireError(err, nil)
	}
	err := s.store.DeleteVolume(r.GetName(), r.GetWithSnapshots())
	return &tidemarkv1.DeleteVolumeResponse{}, wireError(err, nil)
}

func (s *service) Preserve(ctx context.Context, r *tidemarkv1.PreserveRequest) (*tidemarkv1.PreserveResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServicePreserveProcedure, r.GetVolumes()...); err != nil {
		return nil, wireError(err, nil)
	}
	request, err := fromPreserve(r)
	if err != nil {
		return nil, wireError(err, nil)
	}
	request.Allow = s.allow(ctx, rpc.TidemarkServicePreserveProcedure)
	report, err := s.store.Preserve(ctx, request)
	if ctx.Err() != nil {
		return nil, wireError(context.Cause(ctx), nil)
	}
	if err != nil {
		return nil, wireError(err, toReport(report))
	}
	return &tidemarkv1.PreserveResponse{Report: toReport(report)}, nil
}

func fromPreserve(r *tidemarkv1.PreserveRequest) (store.PreserveRequest, error) {
	wait := DefaultWait
	if r.GetWait() != nil {
		if wait = r.GetWait().AsDuration(); wait < 0 {
			return store.PreserveRequest{}, fmt.Errorf("%w: wait of %v: it can't be negative", store.ErrInvalid, wait)
		}
	}
	onTimeout, err := fromEnum("timeout policy", r.GetOnTimeout(), volume.TimeoutAbort, volume.TimeoutKeep)
	if err != nil {
		return store.PreserveRequest{}, err
	}
	onConflict, err := fromEnum("conflict policy", r.GetOnConflict(), volume.ConflictCount, volume.ConflictAbort)
	return store.PreserveRequest{
		Volumes:     r.GetVolumes(),
		Groups:      r.GetGroups(),
		Name:        r.GetName(),
		Wait:        wait,
		OnTimeout:   onTimeout,
		OnConflict:  onConflict,
		UntilSealed: r.GetUntilSealed(),
		Labels:      r.GetLabels(),
	}, err
}

func (s *service) ListSnapshots(ctx context.Context, r *tidemarkv1.ListSnapshotsRequest) (*tidemarkv1.ListSnapshotsResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceListSnapshotsProcedure); err != nil {
		return nil, wireError(err, nil)
	}
	list, err := s.store.Snapshots(r.GetVolume())
	if err != nil && s.may(ctx, rpc.TidemarkServiceListSnapshotsProcedure, r.GetVolume()) == nil {
		return nil, wireError(err, nil)
	} // who may not read the volume does not learn that there is none
	list = visible(ctx, s, rpc.TidemarkServiceListSnapshotsProcedure, list, func(v store.SnapshotInfo) []string { return []string{v.Volume + "@" + v.Name} })
	list = slices.DeleteFunc(list, func(v store.SnapshotInfo) bool { return !v.Labelled(r.GetLabels()) })
	snapshots := each(list, toSnapshot)
	if r.GetSizes() {
		if err := s.measureSnapshots(snapshots...); err != nil {
			return nil, wireError(err, nil)
		}
	}
	return &tidemarkv1.ListSnapshotsResponse{Snapshots: snapshots, Reclaim: toReclaim(s.store.Reclaiming())}, nil
}

func (s *service) GetSnapshot(ctx context.Context, r *tidemarkv1.GetSnapshotRequest) (*tidemarkv1.GetSnapshotResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceGetSnapshotProcedure, r.GetName()); err != nil {
		return nil, wireError(err, nil)
	}
	info, err := s.store.Snapshot(r.GetName())
	snapshot := toSnapshot(info)
	if err == nil {
		err = s.measureSnapshots(snapshot)
	}
	return &tidemarkv1.GetSnapshotResponse{Snapshot: snapshot}, wireError(err, nil)
}

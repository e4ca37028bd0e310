// Package api is the one way to control a server: the Connect service that
// proto/tidemark/v1/tidemark.proto defines, its server and its client.
//
// The command line, user interfaces and scripts all use it. A handler turns a
// message into a call of the store and the answer back into a message; it
// decides nothing itself.
package api

import (
	"context"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// DefaultWait is how long a preserve waits for older processes when the
// request does not say.
const DefaultWait = 60 * time.Second

// service implements the handlers. It has no state of its own but who holds a
// process.
type service struct {
	store *store.Store
	info  *tidemarkv1.GetServerInfoResponse
	holds holds
}

var _ tidemarkv1connect.TidemarkServiceHandler = (*service)(nil)

func (s *service) GetServerInfo(context.Context, *tidemarkv1.GetServerInfoRequest) (*tidemarkv1.GetServerInfoResponse, error) {
	return s.info, nil
}

func (s *service) CreateVolume(_ context.Context, r *tidemarkv1.CreateVolumeRequest) (*tidemarkv1.CreateVolumeResponse, error) {
	scope, err := fromEnum("scope", r.GetScope(), volume.ScopeRequest, volume.ScopeSession)
	if err != nil {
		return nil, wireError(err, nil)
	}
	v, err := s.store.CreateVolume(r.GetName(), r.GetSizeBytes(), scope)
	return &tidemarkv1.CreateVolumeResponse{Volume: toVolume(v)}, wireError(err, nil)
}

func (s *service) ListVolumes(context.Context, *tidemarkv1.ListVolumesRequest) (*tidemarkv1.ListVolumesResponse, error) {
	return &tidemarkv1.ListVolumesResponse{Volumes: each(s.store.Volumes(), toVolume)}, nil
}

func (s *service) GetVolume(_ context.Context, r *tidemarkv1.GetVolumeRequest) (*tidemarkv1.GetVolumeResponse, error) {
	v, err := s.store.Volume(r.GetName())
	return &tidemarkv1.GetVolumeResponse{Volume: toVolume(v)}, wireError(err, nil)
}

func (s *service) ResizeVolume(_ context.Context, r *tidemarkv1.ResizeVolumeRequest) (*tidemarkv1.ResizeVolumeResponse, error) {
	v, err := s.store.ResizeVolume(r.GetName(), r.GetSizeBytes())
	return &tidemarkv1.ResizeVolumeResponse{Volume: toVolume(v)}, wireError(err, nil)
}

func (s *service) DeleteVolume(_ context.Context, r *tidemarkv1.DeleteVolumeRequest) (*tidemarkv1.DeleteVolumeResponse, error) {
	err := s.store.DeleteVolume(r.GetName(), r.GetWithSnapshots())
	return &tidemarkv1.DeleteVolumeResponse{}, wireError(err, nil)
}

func (s *service) Preserve(ctx context.Context, r *tidemarkv1.PreserveRequest) (*tidemarkv1.PreserveResponse, error) {
	request, err := fromPreserve(r)
	if err != nil {
		return nil, wireError(err, nil)
	}
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
		Name:        r.GetName(),
		Wait:        wait,
		OnTimeout:   onTimeout,
		OnConflict:  onConflict,
		UntilSealed: r.GetUntilSealed(),
	}, err
}

func (s *service) ListSnapshots(_ context.Context, r *tidemarkv1.ListSnapshotsRequest) (*tidemarkv1.ListSnapshotsResponse, error) {
	list, err := s.store.Snapshots(r.GetVolume())
	return &tidemarkv1.ListSnapshotsResponse{Snapshots: each(list, toSnapshot)}, wireError(err, nil)
}

func (s *service) GetSnapshot(_ context.Context, r *tidemarkv1.GetSnapshotRequest) (*tidemarkv1.GetSnapshotResponse, error) {
	snapshot, err := s.store.Snapshot(r.GetName())
	return &tidemarkv1.GetSnapshotResponse{Snapshot: toSnapshot(snapshot)}, wireError(err, nil)
}

package api

import (
	"context"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// volumeOf is the volume of a snapshot: who may change that may change those.
func volumeOf(snapshot string) string {
	name, _, _ := strings.Cut(snapshot, "@")
	return name
}

func (s *service) CloneVolume(ctx context.Context, r *tidemarkv1.CloneVolumeRequest) (*tidemarkv1.CloneVolumeResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceCloneVolumeProcedure, volumeOf(r.GetSnapshot()), r.GetName()); err != nil {
		return nil, wireError(err, nil)
	}
	v, err := s.store.Clone(ctx, r.GetSnapshot(), r.GetName())
	return &tidemarkv1.CloneVolumeResponse{Volume: toVolume(v)}, wireError(err, nil)
}

func (s *service) RollbackVolume(ctx context.Context, r *tidemarkv1.RollbackVolumeRequest) (*tidemarkv1.RollbackVolumeResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceRollbackVolumeProcedure, volumeOf(r.GetSnapshot())); err != nil {
		return nil, wireError(err, nil)
	}
	// It goes on when the caller is gone: half of it would be a snapshot that nobody asked for.
	report, err := s.store.Rollback(context.WithoutCancel(ctx), store.RollbackRequest{
		Snapshot: r.GetSnapshot(), Keep: r.GetKeep(), Discard: r.GetDiscard(), Disconnect: r.GetDisconnect(),
	})
	return &tidemarkv1.RollbackVolumeResponse{Volume: toVolume(report.Volume), Kept: report.Kept}, wireError(err, nil)
}

func (s *service) DeleteSnapshots(ctx context.Context, r *tidemarkv1.DeleteSnapshotsRequest) (*tidemarkv1.DeleteSnapshotsResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceDeleteSnapshotsProcedure, each(r.GetNames(), volumeOf)...); err != nil {
		return nil, wireError(err, nil)
	}
	return &tidemarkv1.DeleteSnapshotsResponse{}, wireError(s.store.DeleteSnapshots(r.GetNames()...), nil)
}

func (s *service) PreviewDelete(ctx context.Context, r *tidemarkv1.PreviewDeleteRequest) (*tidemarkv1.PreviewDeleteResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServicePreviewDeleteProcedure, r.GetNames()...); err != nil {
		return nil, wireError(err, nil)
	}
	if err := s.store.Deletable(r.GetNames()...); err != nil {
		return nil, wireError(err, nil)
	}
	sizes, err := s.store.SizesTogether(r.GetNames()...)
	return &tidemarkv1.PreviewDeleteResponse{FreedBytes: sizes.UniqueBytes, Sizes: toSizes(sizes)}, wireError(err, nil)
}

func (s *service) AwaitReclaim(ctx context.Context, _ *tidemarkv1.AwaitReclaimRequest, stream *connect.ServerStream[tidemarkv1.AwaitReclaimResponse]) error {
	if err := s.may(ctx, rpc.TidemarkServiceAwaitReclaimProcedure); err != nil {
		return wireError(err, nil)
	}
	var last time.Time
	var info store.ReclaimInfo
	err := s.store.AwaitReclaimed(ctx, func(now store.ReclaimInfo) {
		if info = now; time.Since(last) >= progressEvery {
			last = time.Now()
			// A caller that is gone ends the call's context, and with it the wait.
			_ = stream.Send(&tidemarkv1.AwaitReclaimResponse{Reclaim: toReclaim(info)})
		}
	})
	if err != nil {
		return wireError(err, nil)
	}
	return stream.Send(&tidemarkv1.AwaitReclaimResponse{Reclaim: toReclaim(info)})
}

func toReclaim(r store.ReclaimInfo) *tidemarkv1.Reclaim {
	info := &tidemarkv1.Reclaim{
		ImagesLeft: int32(r.ImagesLeft), Folding: r.Folding, DoneBytes: r.DoneBytes, TotalBytes: r.TotalBytes,
		BytesPerSecond: r.BytesPerSecond, GivenBackBytes: r.GivenBackBytes, LeftBytes: r.LeftBytes,
	}
	if r.Left > 0 {
		info.Left = durationpb.New(r.Left)
	}
	return info
}

// AwaitReclaim waits until nothing of what was deleted is left to give back, and
// tells progress how far that is.
func AwaitReclaim(ctx context.Context, c Client, progress func(*tidemarkv1.Reclaim)) error {
	stream, err := c.AwaitReclaim(ctx, &tidemarkv1.AwaitReclaimRequest{})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		progress(stream.Msg().GetReclaim())
	}
	return stream.Err()
}

// diffBatch is how many extents a message has at most.
const diffBatch = 4096

func (s *service) DiffSnapshots(ctx context.Context, r *tidemarkv1.DiffSnapshotsRequest, stream *connect.ServerStream[tidemarkv1.DiffSnapshotsResponse]) error {
	if err := s.may(ctx, rpc.TidemarkServiceDiffSnapshotsProcedure, r.GetFrom(), r.GetTo()); err != nil {
		return wireError(err, nil)
	}
	var batch []*tidemarkv1.DiffExtent
	send := func() error {
		err := stream.Send(&tidemarkv1.DiffSnapshotsResponse{Extents: batch})
		batch = nil
		return err
	}
	err := s.store.Diff(r.GetFrom(), r.GetTo(), func(e store.DiffExtent) error {
		batch = append(batch, &tidemarkv1.DiffExtent{OffsetBytes: e.OffsetBytes, LengthBytes: e.LengthBytes, Data: e.Data})
		if len(batch) < diffBatch {
			return nil
		}
		return send()
	})
	if err != nil {
		return wireError(err, nil)
	}
	return send()
}

// Diff calls each for where a state of a volume may differ from a snapshot of it,
// in ascending order.
func Diff(ctx context.Context, c Client, from, to string, each func(offsetBytes, lengthBytes int64, data bool) error) error {
	stream, err := c.DiffSnapshots(ctx, &tidemarkv1.DiffSnapshotsRequest{From: from, To: to})
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		for _, x := range stream.Msg().GetExtents() {
			if err := each(x.GetOffsetBytes(), x.GetLengthBytes(), x.GetData()); err != nil {
				return err
			}
		}
	}
	return stream.Err()
}

package api

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

func (s *service) HoldDrill(ctx context.Context, r *tidemarkv1.HoldDrillRequest, stream *connect.ServerStream[tidemarkv1.HoldDrillResponse]) error {
	if err := s.may(ctx, rpc.TidemarkServiceHoldDrillProcedure, volumeOf(r.GetName())); err != nil {
		return wireError(err, nil)
	}
	snapshot, clone, err := s.store.BeginDrill(ctx, r.GetName())
	if err != nil {
		return wireError(err, nil)
	}
	return wireError(s.lend(ctx, clone.Name, snapshot, func() error {
		return stream.Send(&tidemarkv1.HoldDrillResponse{Snapshot: snapshot, Volume: toVolume(clone)})
	}), nil)
}

func (s *service) EndDrill(ctx context.Context, r *tidemarkv1.EndDrillRequest) (*tidemarkv1.EndDrillResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceEndDrillProcedure, volumeOf(r.GetSnapshot())); err != nil {
		return nil, wireError(err, nil)
	}
	ended, there := s.loans.take(r.GetVolume(), r.GetSnapshot())
	if !there {
		return nil, wireError(fmt.Errorf("drill of %s with the clone %s %w: it has ended", r.GetSnapshot(), r.GetVolume(), store.ErrNotFound), nil)
	}
	defer close(ended)
	snapshot, err := s.store.RecordDrill(r.GetSnapshot(), store.Drill{
		Took: r.GetResult().GetTook().AsDuration(), Command: r.GetResult().GetCommand(),
		ExitCode: int(r.GetResult().GetExitCode()), Output: r.GetResult().GetOutput(),
	})
	if e := s.store.DropHeld(r.GetVolume()); !errors.Is(e, store.ErrNotFound) {
		err = errors.Join(err, e)
	}
	return &tidemarkv1.EndDrillResponse{Snapshot: toSnapshot(snapshot)}, wireError(err, nil)
}

func toDrill(d *store.Drill) *tidemarkv1.Drill {
	if d == nil {
		return nil
	}
	return &tidemarkv1.Drill{Time: toTime(d.Time), Took: durationpb.New(d.Took), Command: d.Command, ExitCode: int32(d.ExitCode), Output: d.Output}
}

package api

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// drills knows which clones a HoldDrill call holds. Who takes one out of it deletes
// the clone.
type drills struct {
	mu   sync.Mutex
	held map[string]heldDrill // by the clone's name
}

type heldDrill struct {
	snapshot string
	ended    chan struct{} // closed by EndDrill
}

func (d *drills) add(clone, snapshot string) (ended chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held == nil {
		d.held = make(map[string]heldDrill)
	}
	ended = make(chan struct{})
	d.held[clone] = heldDrill{snapshot, ended}
	return ended
}

func (d *drills) take(clone, snapshot string) (ended chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held, there := d.held[clone]
	if !there || held.snapshot != snapshot {
		return nil, fmt.Errorf("drill of %s with the clone %s %w: it has ended", snapshot, clone, store.ErrNotFound)
	}
	delete(d.held, clone)
	return held.ended, nil
}

func (s *service) HoldDrill(ctx context.Context, r *tidemarkv1.HoldDrillRequest, stream *connect.ServerStream[tidemarkv1.HoldDrillResponse]) error {
	if err := s.may(ctx, rpc.TidemarkServiceHoldDrillProcedure, volumeOf(r.GetName())); err != nil {
		return wireError(err, nil)
	}
	snapshot, clone, err := s.store.BeginDrill(ctx, r.GetName())
	if err != nil {
		return wireError(err, nil)
	}
	ended := s.drills.add(clone.Name, snapshot)
	err = stream.Send(&tidemarkv1.HoldDrillResponse{Snapshot: snapshot, Volume: toVolume(clone)})
	if err == nil {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			err = fmt.Errorf("the drill of %s was given up: %w", snapshot, context.Cause(ctx))
		}
	}
	if _, gone := s.drills.take(clone.Name, snapshot); gone == nil {
		if e := s.store.DropDrill(clone.Name); e != nil && !errors.Is(e, store.ErrNotFound) { // the caller is gone
			s.logger.Warn("the clone of a drill stays until the next start; delete it", "volume", clone.Name, "err", e)
		}
	}
	return wireError(err, nil)
}

func (s *service) EndDrill(ctx context.Context, r *tidemarkv1.EndDrillRequest) (*tidemarkv1.EndDrillResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceEndDrillProcedure, volumeOf(r.GetSnapshot())); err != nil {
		return nil, wireError(err, nil)
	}
	ended, err := s.drills.take(r.GetVolume(), r.GetSnapshot())
	if err != nil {
		return nil, wireError(err, nil)
	}
	defer close(ended)
	snapshot, err := s.store.RecordDrill(r.GetSnapshot(), store.Drill{
		Took: r.GetResult().GetTook().AsDuration(), Command: r.GetResult().GetCommand(),
		ExitCode: int(r.GetResult().GetExitCode()), Output: r.GetResult().GetOutput(),
	})
	if e := s.store.DropDrill(r.GetVolume()); !errors.Is(e, store.ErrNotFound) {
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

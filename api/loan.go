package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// loans knows which held volumes last as long as a call: clones of drills, and new
// ones that are being filled. Who takes one out of it says what becomes of it.
type loans struct {
	mu   sync.Mutex
	held map[string]loan // by the volume's name
}

type loan struct {
	token string        // what its end must name too: the name may be another volume's by then
	ended chan struct{} // closed by who takes it
}

func (l *loans) add(name, token string) (ended chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = make(map[string]loan)
	}
	ended = make(chan struct{})
	l.held[name] = loan{token, ended}
	return ended
}

func (l *loans) take(name, token string) (ended chan struct{}, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held, there := l.held[name]
	if !there || held.token != token {
		return nil, false
	}
	delete(l.held, name)
	return held.ended, true
}

// lend says to the caller what is held, and returns when somebody has ended that. When
// the caller has gone before, it deletes the volume.
func (s *service) lend(ctx context.Context, name, token string, send func() error) error {
	ended := s.loans.add(name, token)
	err := send()
	if err == nil {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			err = fmt.Errorf("volume %s was given up: %w", name, context.Cause(ctx))
		}
	}
	if _, there := s.loans.take(name, token); there {
		if e := s.store.DropHeld(name); e != nil && !errors.Is(e, store.ErrNotFound) { // the caller is gone
			s.logger.Warn("a volume that was given up stays until the next start; delete it", "volume", name, "err", e)
		}
	}
	return err
}

func (s *service) HoldVolume(ctx context.Context, r *tidemarkv1.HoldVolumeRequest, stream *connect.ServerStream[tidemarkv1.HoldVolumeResponse]) error {
	v, err := s.create(ctx, rpc.TidemarkServiceHoldVolumeProcedure, r.GetVolume(), s.store.BeginVolume)
	if err != nil {
		return wireError(err, nil)
	}
	token := rand.Text()
	return wireError(s.lend(ctx, v.Name, token, func() error {
		return stream.Send(&tidemarkv1.HoldVolumeResponse{Volume: toVolume(v), Token: token})
	}), nil)
}

func (s *service) EndVolume(ctx context.Context, r *tidemarkv1.EndVolumeRequest) (*tidemarkv1.EndVolumeResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceEndVolumeProcedure, r.GetName()); err != nil {
		return nil, wireError(err, nil)
	}
	ended, there := s.loans.take(r.GetName(), r.GetToken())
	if !there {
		return nil, wireError(fmt.Errorf("new volume %s %w: its hold has ended", r.GetName(), store.ErrNotFound), nil)
	}
	defer close(ended)
	var err error
	if r.GetKeep() {
		_, err = s.store.KeepVolume(r.GetName())
	}
	if err != nil || !r.GetKeep() {
		err = errors.Join(err, s.store.DropHeld(r.GetName()))
	}
	return &tidemarkv1.EndVolumeResponse{}, wireError(err, nil)
}

package api

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// holds knows which processes a HoldProcess call holds. Its lock is held over
// the begin and the end of an explicit process, so that an end never falls
// between the begin of a process and its hold.
type holds struct {
	mu    sync.Mutex
	ended map[string]chan struct{} // by token; closed by EndProcess
}

func (s *service) BeginProcess(_ context.Context, r *tidemarkv1.BeginProcessRequest) (*tidemarkv1.BeginProcessResponse, error) {
	p, err := s.store.BeginProcess(r.GetVolumes(), r.GetToken())
	return &tidemarkv1.BeginProcessResponse{Process: toProcess(p)}, wireError(err, nil)
}

func (s *service) EndProcess(_ context.Context, r *tidemarkv1.EndProcessRequest) (*tidemarkv1.EndProcessResponse, error) {
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	p, err := s.store.EndProcess(r.GetToken(), r.GetTorn())
	if held := s.holds.ended[r.GetToken()]; err == nil && held != nil {
		close(held)
		delete(s.holds.ended, r.GetToken())
	}
	return &tidemarkv1.EndProcessResponse{Process: toProcess(p)}, wireError(err, nil)
}

func (s *service) ListProcesses(context.Context, *tidemarkv1.ListProcessesRequest) (*tidemarkv1.ListProcessesResponse, error) {
	return &tidemarkv1.ListProcessesResponse{Processes: each(s.store.Processes(), toProcess)}, nil
}

func (s *service) HoldProcess(ctx context.Context, r *tidemarkv1.HoldProcessRequest, stream *connect.ServerStream[tidemarkv1.HoldProcessResponse]) error {
	p, ended, err := s.hold(r)
	if err != nil {
		return wireError(err, nil)
	}
	if err := stream.Send(&tidemarkv1.HoldProcessResponse{Process: toProcess(p)}); err != nil {
		s.tear(p.Token)
		return err
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		s.tear(p.Token)
		return wireError(fmt.Errorf("process %s ended torn: %w", p.Token, context.Cause(ctx)), nil)
	}
}

// hold begins the process, or finds it, and registers the hold.
func (s *service) hold(r *tidemarkv1.HoldProcessRequest) (p store.ProcessInfo, ended chan struct{}, err error) {
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	if len(r.GetVolumes()) > 0 {
		p, err = s.store.BeginProcess(r.GetVolumes(), r.GetToken())
	} else {
		p, err = s.explicit(r.GetToken())
	}
	if err != nil {
		return p, nil, err
	}
	if s.holds.ended[p.Token] != nil {
		return p, nil, fmt.Errorf("process %s is %w: another caller holds it", p.Token, store.ErrInUse)
	}
	ended = make(chan struct{})
	if s.holds.ended == nil {
		s.holds.ended = make(map[string]chan struct{})
	}
	s.holds.ended[p.Token] = ended
	return p, ended, nil
}

func (s *service) explicit(token string) (store.ProcessInfo, error) {
	for _, p := range s.store.Processes() {
		if p.Token == token && p.Scope == volume.ScopeExplicit {
			return p, nil
		}
	}
	return store.ProcessInfo{}, fmt.Errorf("explicit process %q %w", token, store.ErrNotFound)
}

// tear ends a held process whose holder is gone.
func (s *service) tear(token string) {
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	delete(s.holds.ended, token)
	// Not found: somebody ended it in the meantime.
	_, _ = s.store.EndProcess(token, true)
}

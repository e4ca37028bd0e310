package api

import (
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// holds knows which processes a HoldProcess call holds. Its lock is held over
// the begin and the end of an explicit process, so that an end never falls
// between the begin of a process and its hold; and over the check of the rights
// to it, so that no process begins under its token between check and use.
type holds struct {
	mu    sync.Mutex
	ended map[string]chan struct{} // by token; closed by EndProcess
}

func (s *service) BeginProcess(ctx context.Context, r *tidemarkv1.BeginProcessRequest) (*tidemarkv1.BeginProcessResponse, error) {
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	p, err := s.begin(ctx, rpc.TidemarkServiceBeginProcessProcedure, r.GetVolumes(), r.GetGroups(), r.GetToken())
	return &tidemarkv1.BeginProcessResponse{Process: toProcess(p)}, wireError(err, nil)
}

// begin begins a process, for whoever has the right to all that it names.
func (s *service) begin(ctx context.Context, procedure string, volumes, groups []string, token string) (store.ProcessInfo, error) {
	if err := s.may(ctx, procedure, volumes...); err != nil {
		return store.ProcessInfo{}, err
	}
	return s.store.Begin(store.ProcessRequest{Volumes: volumes, Groups: groups, Token: token, Allow: s.allowNamed(ctx, procedure, groups)})
}

func (s *service) EndProcess(ctx context.Context, r *tidemarkv1.EndProcessRequest) (*tidemarkv1.EndProcessResponse, error) {
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	if err := s.mayProcess(ctx, rpc.TidemarkServiceEndProcessProcedure, r.GetToken()); err != nil {
		return nil, wireError(err, nil)
	}
	p, err := s.store.EndProcess(r.GetToken(), r.GetTorn())
	if held := s.holds.ended[r.GetToken()]; err == nil && held != nil {
		close(held)
		delete(s.holds.ended, r.GetToken())
	}
	return &tidemarkv1.EndProcessResponse{Process: toProcess(p)}, wireError(err, nil)
}

func (s *service) ListProcesses(ctx context.Context, _ *tidemarkv1.ListProcessesRequest) (*tidemarkv1.ListProcessesResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceListProcessesProcedure); err != nil {
		return nil, wireError(err, nil)
	}
	list := visible(ctx, s, rpc.TidemarkServiceListProcessesProcedure, s.store.Processes(), func(p store.ProcessInfo) []string { return p.Volumes })
	return &tidemarkv1.ListProcessesResponse{Processes: each(list, toProcess)}, nil
}

// mayProcess is may for the volumes of a running process. Who may not use it
// does not learn that it runs. The caller holds holds.mu.
func (s *service) mayProcess(ctx context.Context, procedure, token string) error {
	for _, p := range s.store.Processes() {
		if p.Token == token && s.may(ctx, procedure) == nil && s.may(ctx, procedure, p.Volumes...) != nil {
			return fmt.Errorf("process %s %w: it is unknown, or has ended", token, store.ErrNotFound)
		}
	}
	return s.may(ctx, procedure)
}

func (s *service) HoldProcess(ctx context.Context, r *tidemarkv1.HoldProcessRequest, stream *connect.ServerStream[tidemarkv1.HoldProcessResponse]) error {
	p, ended, err := s.hold(ctx, r)
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
func (s *service) hold(ctx context.Context, r *tidemarkv1.HoldProcessRequest) (p store.ProcessInfo, ended chan struct{}, err error) {
	s.holds.mu.Lock()
	defer s.holds.mu.Unlock()
	if len(r.GetVolumes())+len(r.GetGroups()) > 0 {
		p, err = s.begin(ctx, rpc.TidemarkServiceHoldProcessProcedure, r.GetVolumes(), r.GetGroups(), r.GetToken())
	} else if err = s.mayProcess(ctx, rpc.TidemarkServiceHoldProcessProcedure, r.GetToken()); err == nil {
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

package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/tidemark/tidemark/volume"
)

// ProcessRequest asks for an explicit process.
type ProcessRequest struct {
	// Volumes that it may use; and all of a volume's default group.
	Volumes []string
	// Groups whose volumes it may use too.
	Groups []string
	// Token; empty: a new one is made.
	Token string
	// Allow is asked for the volumes of each group, default groups too.
	Allow Allow
}

// BeginProcess begins an explicit process over the volumes named and those of their
// default groups, under a token of the caller's or, if it is empty, a new one.
// Errors: ErrInvalid, ErrNotFound, ErrExists; ErrInUse while one of them is rolled back,
// replaced or deleted.
func (s *Store) BeginProcess(volumes []string, token string) (ProcessInfo, error) {
	return s.Begin(ProcessRequest{Volumes: volumes, Token: token})
}

// Begin is BeginProcess for groups too.
func (s *Store) Begin(r ProcessRequest) (ProcessInfo, error) {
	if len(r.Volumes)+len(r.Groups) == 0 {
		return ProcessInfo{}, fmt.Errorf("%w: a process names at least one volume", ErrInvalid)
	}
	token := r.Token
	if token == "" {
		token = newToken()
	}
	if err := checkToken(token); err != nil {
		return ProcessInfo{}, err
	}
	for {
		list, err := s.named(r)
		if err != nil {
			return ProcessInfo{}, err
		}
		p, err := s.engine.Begin(volume.Token(token), list)
		switch {
		case err == nil:
			return s.processInfo(p), nil
		case errors.Is(err, volume.ErrToken):
			return ProcessInfo{}, fmt.Errorf("process %s %w: give another token", token, ErrExists)
		case !errors.Is(err, volume.ErrClosed):
			return ProcessInfo{}, err
		}
		if now, err := s.named(r); err == nil && slices.Equal(now, list) { // else one has just become another
			return ProcessInfo{}, fmt.Errorf("process %s: a volume that it names is %w: %s", token, ErrInUse, changing)
		}
	}
}

// changing says why nobody opens a volume.
const changing = "it is being rolled back, replaced or deleted; try again"

// named lists the volumes of a process, each once.
func (s *Store) named(r ProcessRequest) (list []*volume.Volume, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.withGroupsLocked(r.Volumes, r.Groups, r.Allow)
	if err != nil {
		return nil, err
	}
	var defaults []string
	for _, name := range names {
		if g := s.defaultLocked(name); g != "" && !slices.Contains(defaults, g) {
			defaults = append(defaults, g)
		}
	}
	if names, err = s.withGroupsLocked(names, defaults, r.Allow); err != nil {
		return nil, err
	}
	for _, name := range names {
		d, err := s.diskLocked(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(list, d.volume) {
			list = append(list, d.volume)
		}
	}
	return list, nil
}

// EndProcess ends an explicit process; torn says that it died instead. It
// returns what was known of it. Errors: ErrNotFound; ErrInvalid for a session,
// which ends with its connection.
func (s *Store) EndProcess(token string, torn bool) (ProcessInfo, error) {
	p, err := s.process(token)
	if err != nil {
		return ProcessInfo{}, err
	}
	if p.Scope() == volume.ScopeSession {
		return ProcessInfo{}, fmt.Errorf("%w: process %s is a session: it ends when its client disconnects", ErrInvalid, token)
	}
	info := s.processInfo(p)
	p.End(torn)
	return info, nil
}

func (s *Store) process(token string) (*volume.Process, error) {
	p, err := s.engine.Process(volume.Token(token))
	if err != nil {
		return nil, fmt.Errorf("process %s %w: it is unknown, or has ended", token, ErrNotFound)
	}
	return p, nil
}

// Processes lists the processes of session and explicit scope, oldest first.
func (s *Store) Processes() []ProcessInfo {
	list := s.engine.Processes()
	infos := make([]ProcessInfo, len(list))
	for i, p := range list {
		infos[i] = s.processInfo(p)
	}
	return infos
}

// OpenView opens what an export name stands for:
//
//	VOLUME[:request|:session|:process:TOKEN]  or  VOLUME@SNAPSHOT
//
// Errors: ErrInvalid, ErrNotFound; ErrInUse while the volume is rolled back, replaced or
// deleted. The caller closes the view.
func (s *Store) OpenView(exportName string) (*volume.View, error) {
	x, err := parseExport(exportName)
	if err != nil {
		return nil, err
	}
	for {
		d, err := s.disk(x.volume)
		if err != nil {
			return nil, err
		}
		w, err := s.openView(d, x)
		if !errors.Is(err, volume.ErrClosed) {
			return w, err
		}
		if now, err := s.disk(x.volume); err == nil && now == d { // else it has just become another
			return nil, fmt.Errorf("volume %s is %w: %s", x.volume, ErrInUse, changing)
		}
	}
}

func (s *Store) openView(d *disk, x export) (*volume.View, error) {
	if x.plain {
		x.scope = d.volume.Scope()
	}
	switch {
	case x.snapshot != "":
		s.mu.Lock()
		_, k, _ := s.findLocked(x.volume, x.snapshot)
		s.mu.Unlock()
		if k == nil || !k.Cut() {
			return nil, fmt.Errorf("snapshot %s@%s %w", x.volume, x.snapshot, ErrNotFound)
		}
		w, err := k.Open()
		if errors.Is(err, volume.ErrRetired) {
			err = fmt.Errorf("snapshot %s@%s %w: it was deleted", x.volume, x.snapshot, ErrNotFound)
		}
		return w, err
	case x.scope == volume.ScopeSession:
		return d.volume.OpenSession()
	case x.scope == volume.ScopeExplicit:
		p, err := s.process(x.token)
		if err != nil {
			return nil, err
		}
		w, err := p.Open(d.volume)
		if errors.Is(err, volume.ErrNotNamed) {
			return nil, fmt.Errorf("%w: process %s did not name volume %s at its begin", ErrInvalid, x.token, x.volume)
		}
		return w, err
	default:
		return d.volume.Open()
	}
}

// Exports lists the names that a client can open, without suffixes.
func (s *Store) Exports() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.volumes {
		names = append(names, name)
	}
	for _, d := range s.byVolume {
		for k, snap := range d.snapshots {
			if k.Cut() && !d.record.Staged {
				names = append(names, d.record.Name+"@"+snap.name)
			}
		}
	}
	slices.Sort(names)
	return names
}

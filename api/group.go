package api

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// allow asks for the right of a call on the volumes that a group stands for, when the
// store knows them. For who may not read them all there is no such group.
func (s *service) allow(ctx context.Context, procedure string) store.Allow {
	return func(group string, volumes ...string) error {
		err := s.may(ctx, procedure, volumes...)
		if err == nil || group == "" || s.may(ctx, rpc.TidemarkServiceGetGroupProcedure, volumes...) == nil {
			return err
		}
		return fmt.Errorf("group %s %w", group, store.ErrNotFound)
	}
}

// allowNamed is allow for the groups that the caller named. Of the default group of
// a volume it tells nothing but that.
func (s *service) allowNamed(ctx context.Context, procedure string, groups []string) store.Allow {
	allow := s.allow(ctx, procedure)
	return func(group string, volumes ...string) error {
		err := allow(group, volumes...)
		if err != nil && !slices.Contains(groups, group) {
			return fmt.Errorf("%w: it would name all volumes of the default group of one of these, and the server's access list does not let %s write to all of them", access.ErrDenied, caller(ctx))
		}
		return err
	}
}

func (s *service) CreateGroup(ctx context.Context, r *tidemarkv1.CreateGroupRequest) (*tidemarkv1.CreateGroupResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceCreateGroupProcedure, r.GetVolumes()...); err != nil {
		return nil, wireError(err, nil)
	}
	g, err := s.store.CreateGroup(r.GetName(), r.GetVolumes(), r.GetDefault())
	return &tidemarkv1.CreateGroupResponse{Group: toGroup(g)}, wireError(err, nil)
}

func (s *service) ChangeGroup(ctx context.Context, r *tidemarkv1.ChangeGroupRequest) (*tidemarkv1.ChangeGroupResponse, error) {
	procedure := rpc.TidemarkServiceChangeGroupProcedure
	if err := s.may(ctx, procedure, r.GetAdd()...); err != nil {
		return nil, wireError(err, nil)
	}
	g, err := s.store.ChangeGroup(r.GetName(), r.GetAdd(), r.GetRemove(), s.allow(ctx, procedure))
	return &tidemarkv1.ChangeGroupResponse{Group: toGroup(g)}, wireError(err, nil)
}

func (s *service) DeleteGroup(ctx context.Context, r *tidemarkv1.DeleteGroupRequest) (*tidemarkv1.DeleteGroupResponse, error) {
	procedure := rpc.TidemarkServiceDeleteGroupProcedure
	if err := s.may(ctx, procedure); err != nil {
		return nil, wireError(err, nil)
	}
	return &tidemarkv1.DeleteGroupResponse{}, wireError(s.store.DeleteGroup(r.GetName(), s.allow(ctx, procedure)), nil)
}

func (s *service) GetGroup(ctx context.Context, r *tidemarkv1.GetGroupRequest) (*tidemarkv1.GetGroupResponse, error) {
	procedure := rpc.TidemarkServiceGetGroupProcedure
	if err := s.may(ctx, procedure); err != nil {
		return nil, wireError(err, nil)
	}
	g, err := s.store.Group(r.GetName())
	if err == nil {
		err = s.allow(ctx, procedure)(r.GetName(), g.Volumes...)
	}
	if err != nil {
		return nil, wireError(err, nil)
	}
	return &tidemarkv1.GetGroupResponse{Group: toGroup(g)}, nil
}

func (s *service) ListGroups(ctx context.Context, _ *tidemarkv1.ListGroupsRequest) (*tidemarkv1.ListGroupsResponse, error) {
	if err := s.may(ctx, rpc.TidemarkServiceListGroupsProcedure); err != nil {
		return nil, wireError(err, nil)
	}
	list := visible(ctx, s, rpc.TidemarkServiceListGroupsProcedure, s.store.Groups(), func(g store.GroupInfo) []string { return g.Volumes })
	return &tidemarkv1.ListGroupsResponse{Groups: each(list, toGroup)}, nil
}

func (s *service) CloneGroup(ctx context.Context, r *tidemarkv1.CloneGroupRequest) (*tidemarkv1.CloneGroupResponse, error) {
	procedure := rpc.TidemarkServiceCloneGroupProcedure
	if err := s.may(ctx, procedure); err != nil {
		return nil, wireError(err, nil)
	}
	volumes, err := s.store.CloneGroup(ctx, r.GetSnapshot(), r.GetName(), s.allow(ctx, procedure))
	if err != nil {
		return nil, wireError(err, nil)
	}
	g, err := s.store.Group(r.GetName())
	if errors.Is(err, store.ErrNotFound) { // somebody has deleted it already
		g, err = store.GroupInfo{Name: r.GetName()}, nil
	}
	return &tidemarkv1.CloneGroupResponse{Group: toGroup(g), Volumes: each(volumes, toVolume)}, wireError(err, nil)
}

func (s *service) RollbackGroup(ctx context.Context, r *tidemarkv1.RollbackGroupRequest) (*tidemarkv1.RollbackGroupResponse, error) {
	procedure := rpc.TidemarkServiceRollbackGroupProcedure
	if err := s.may(ctx, procedure); err != nil {
		return nil, wireError(err, nil)
	}
	// It goes on when the caller is gone, as RollbackVolume does.
	report, err := s.store.RollbackGroup(context.WithoutCancel(ctx), store.RollbackRequest{
		Snapshot: r.GetSnapshot(), Keep: r.GetKeep(), Discard: r.GetDiscard(), Disconnect: r.GetDisconnect(),
	}, s.allow(ctx, procedure))
	return &tidemarkv1.RollbackGroupResponse{Volumes: each(report.Volumes, toVolume), Kept: report.Kept}, wireError(err, nil)
}

func toGroup(g store.GroupInfo) *tidemarkv1.Group {
	return &tidemarkv1.Group{Name: g.Name, Volumes: g.Volumes, Default: g.Default, CreateTime: toTime(g.Created)}
}

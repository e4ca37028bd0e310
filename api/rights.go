package api

import (
	"context"
	"fmt"

	"github.com/tidemark/tidemark/access"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
)

// rights says what each call needs on the volumes or snapshots that it names;
// those that list leave out what the caller may not read. A test holds that no
// call is missing, and that each asks.
var rights = map[string]access.Rights{
	rpc.TidemarkServiceGetServerInfoProcedure:   0, // to be on the list at all
	rpc.TidemarkServiceCreateVolumeProcedure:    access.Admin,
	rpc.TidemarkServiceHoldVolumeProcedure:      access.Admin,
	rpc.TidemarkServiceEndVolumeProcedure:       access.Admin,
	rpc.TidemarkServiceListVolumesProcedure:     access.Read,
	rpc.TidemarkServiceGetVolumeProcedure:       access.Read,
	rpc.TidemarkServiceResizeVolumeProcedure:    access.Admin,
	rpc.TidemarkServiceDeleteVolumeProcedure:    access.Admin,
	rpc.TidemarkServicePreserveProcedure:        access.Preserve,
	rpc.TidemarkServiceListSnapshotsProcedure:   access.Read,
	rpc.TidemarkServiceGetSnapshotProcedure:     access.Read,
	rpc.TidemarkServiceVerifySnapshotProcedure:  access.Read,
	rpc.TidemarkServiceCloneVolumeProcedure:     access.Admin, // of both
	rpc.TidemarkServiceRollbackVolumeProcedure:  access.Admin,
	rpc.TidemarkServiceCreateGroupProcedure:     access.Admin,
	rpc.TidemarkServiceChangeGroupProcedure:     access.Admin,
	rpc.TidemarkServiceDeleteGroupProcedure:     access.Admin,
	rpc.TidemarkServiceGetGroupProcedure:        access.Read,
	rpc.TidemarkServiceListGroupsProcedure:      access.Read,
	rpc.TidemarkServiceCloneGroupProcedure:      access.Admin, // of the clones too
	rpc.TidemarkServiceRollbackGroupProcedure:   access.Admin,
	rpc.TidemarkServiceHoldDrillProcedure:       access.Admin,
	rpc.TidemarkServiceEndDrillProcedure:        access.Admin,
	rpc.TidemarkServiceDeleteSnapshotsProcedure: access.Admin,
	rpc.TidemarkServicePreviewDeleteProcedure:   access.Read,
	rpc.TidemarkServiceDiffSnapshotsProcedure:   access.Read,
	rpc.TidemarkServiceAwaitReclaimProcedure:    0,
	rpc.TidemarkServiceBeginProcessProcedure:    access.Write,
	rpc.TidemarkServiceEndProcessProcedure:      access.Write,
	rpc.TidemarkServiceListProcessesProcedure:   access.Read,
	rpc.TidemarkServiceHoldProcessProcedure:     access.Write,
	rpc.TidemarkServiceImportProcedure:          access.Write,

	rpc.TidemarkServiceExportProcedure: access.Read, // of both
	rpc.TidemarkServiceApplyProcedure:  access.Admin,

	// A schedule deletes, and a hold keeps those from deleting who may.
	rpc.TidemarkServiceHoldSnapshotProcedure:    access.Admin,
	rpc.TidemarkServiceReleaseSnapshotProcedure: access.Admin,
	rpc.TidemarkServiceLabelSnapshotProcedure:   access.Preserve,
	rpc.TidemarkServiceSetScheduleProcedure:     access.Admin,
	rpc.TidemarkServicePreviewScheduleProcedure: access.Read,
	rpc.TidemarkServiceListSchedulesProcedure:   access.Read,
	rpc.TidemarkServiceGetScheduleProcedure:     access.Read,
	rpc.TidemarkServiceRemoveScheduleProcedure:  access.Admin,
}

// may returns access.ErrDenied unless the caller is on the access list and has
// the right that the call needs on every export named. The unix socket is the
// server's own user, who owns all the files.
func (s *service) may(ctx context.Context, procedure string, exports ...string) error {
	c := caller(ctx)
	if c.Local {
		return nil
	}
	if err := s.guard.Names(c); err != nil {
		return err
	}
	need, known := rights[procedure]
	if !known {
		return fmt.Errorf("%w: no right is defined for %s", access.ErrDenied, procedure)
	}
	for _, name := range exports {
		if err := s.guard.Check(c, need, name); err != nil {
			return err
		}
	}
	return nil
}

// visible keeps those of a list whose exports the caller may read, all of them.
func visible[T any](ctx context.Context, s *service, procedure string, list []T, exports func(T) []string) []T {
	var all []T
	for _, v := range list {
		if s.may(ctx, procedure, exports(v)...) == nil {
			all = append(all, v)
		}
	}
	return all
}

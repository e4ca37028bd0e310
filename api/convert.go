package api

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// Each enum of the wire is its Go twin plus one: 0 says that none was given.

func toScope(s volume.Scope) tidemarkv1.Scope { return tidemarkv1.Scope(s) + 1 }

func fromEnum[T ~uint8, W ~int32](what string, w W, fallback, last T) (T, error) {
	switch {
	case w == 0:
		return fallback, nil
	case w < 0 || w > W(last)+1:
		return 0, fmt.Errorf("%w: %s %d is not known", store.ErrInvalid, what, w)
	}
	return T(w - 1), nil
}

func toVolume(v store.VolumeInfo) *tidemarkv1.Volume {
	return &tidemarkv1.Volume{
		Name:           v.Name,
		SizeBytes:      v.SizeBytes,
		Scope:          toScope(v.Scope),
		CreateTime:     toTime(v.Created),
		Images:         int32(v.Images),
		Snapshots:      int32(v.Snapshots),
		DataBytes:      v.DataBytes,
		AllocatedBytes: v.AllocatedBytes,
		Connections:    int32(v.Connections),
		Processes:      int32(v.Processes),
		Failed:         v.Failed,
	}
}

func toSnapshot(s store.SnapshotInfo) *tidemarkv1.Snapshot {
	return &tidemarkv1.Snapshot{
		Volume:        s.Volume,
		Name:          s.Name,
		SizeBytes:     s.SizeBytes,
		State:         tidemarkv1.State(s.State) + 1,
		Consistency:   tidemarkv1.Consistency(s.Consistency) + 1,
		CutTime:       toTime(s.CutTime),
		DrainDuration: durationpb.New(s.DrainTime),
		Conflicts:     s.Conflicts,
		TornProcesses: s.Torn,
		WaitsFor:      s.WaitsFor,
		DataBytes:     s.DataBytes,
		Failed:        s.Failed,
		Hash:          s.Hash,
		Verification:  toVerification(s.Verify),
		Schedule:      s.Schedule,
		Labels:        s.Labels,
		Held:          s.Held,
		HeldUntil:     toTime(s.HeldUntil),
		Drill:         toDrill(s.Drill),
	}
}

func toVerification(v store.VerifyState) *tidemarkv1.Verification {
	if v == (store.VerifyState{}) {
		return nil
	}
	return &tidemarkv1.Verification{
		State: map[store.VerifyPhase]tidemarkv1.VerifyState{
			store.VerifyRunning: tidemarkv1.VerifyState_VERIFY_STATE_RUNNING,
			store.VerifyOK:      tidemarkv1.VerifyState_VERIFY_STATE_OK,
			store.VerifyBad:     tidemarkv1.VerifyState_VERIFY_STATE_BAD,
		}[v.State],
		DoneBytes:  v.DoneBytes,
		TotalBytes: v.TotalBytes,
		BadBlocks:  v.BadBlocks,
		LastTime:   toTime(v.LastTime),
	}
}

func toProcess(p store.ProcessInfo) *tidemarkv1.Process {
	return &tidemarkv1.Process{
		Token:       p.Token,
		Scope:       toScope(p.Scope),
		Volumes:     p.Volumes,
		BeginTime:   toTime(p.Begun),
		Connections: int32(p.Connections),
		Bound:       p.Bound,
		WaitedFor:   p.WaitedFor,
		WaitedSince: toTime(p.WaitedSince),
	}
}

func toReport(r store.PreserveReport) *tidemarkv1.PreserveReport {
	return &tidemarkv1.PreserveReport{
		CutTime:            toTime(r.CutTime),
		DrainDuration:      durationpb.New(r.Drain),
		LargestStall:       durationpb.New(r.LargestStall),
		LargestStallBefore: durationpb.New(r.LargestBefore),
		Took:               durationpb.New(r.Took),
		ProcessesWaited:    int32(r.ProcessesWaited),
		Snapshots:          each(r.Snapshots, toSnapshot),
	}
}

// toTime leaves a time that is not set unset.
func toTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func each[T, W any](list []T, convert func(T) W) []W {
	out := make([]W, len(list))
	for i, v := range list {
		out[i] = convert(v)
	}
	return out
}

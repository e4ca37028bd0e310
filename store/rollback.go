package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/volume"
)

// RollbackRequest asks for a volume to be again what a snapshot of it holds.
type RollbackRequest struct {
	Snapshot string // VOLUME@SNAPSHOT
	// Keep names the snapshot that keeps the present state; empty: before-rollback-
	// and the time.
	Keep string
	// Discard lets the present state go.
	Discard bool
}

// RollbackReport is the answer to Rollback.
type RollbackReport struct {
	Volume VolumeInfo
	// Kept is the snapshot that keeps what the volume held before; empty if that
	// was discarded.
	Kept string
}

// Rollback makes a volume what a snapshot of it holds, at once and at any size: it
// copies nothing. The present state is preserved first, and every snapshot stays,
// also those that are newer than the one that it goes back to. Errors: ErrInvalid,
// ErrNotFound, ErrDraining; ErrInUse if a client is connected to the volume or a
// process named it: then nothing has changed.
func (s *Store) Rollback(ctx context.Context, r RollbackRequest) (report RollbackReport, err error) {
	if r.Keep == "" {
		r.Keep = "before-rollback-" + snapshotName(time.Now())
	}
	if err := s.sealedSoon(ctx, r.Snapshot); err != nil {
		return report, err
	}
	if report, err = s.rollback(ctx, r); err != nil || !r.Discard {
		return report, err
	}
	err = s.DeleteSnapshot(report.Kept)
	if err == nil {
		report.Kept = ""
	}
	return report, err
}

func (s *Store) rollback(ctx context.Context, r RollbackRequest) (report RollbackReport, err error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	d, k, err := s.branchable(r.Snapshot)
	if err != nil {
		return report, err
	}
	live, err := s.disk(d.record.Name)
	if err != nil {
		return report, err
	}
	if err := live.volume.Freeze(); err != nil {
		if errors.Is(err, volume.ErrBusy) {
			err = inUse(live.volume)
		}
		return report, err
	}
	defer func() {
		if err != nil {
			live.volume.Thaw()
		}
	}()
	kept, err := s.Preserve(ctx, PreserveRequest{Volumes: []string{live.record.Name}, Name: r.Keep, Wait: time.Minute})
	if err != nil {
		return report, fmt.Errorf("roll back to %s: keep the present state: %w", r.Snapshot, err)
	}
	report.Kept = live.record.Name + "@" + kept.Snapshots[0].Name
	record := catalog.Volume{Name: live.record.Name, SizeBytes: k.SizeBytes(), Scope: d.record.Scope, Created: live.record.Created}
	b, err := s.branch(d, k, record, live)
	if err != nil {
		return report, fmt.Errorf("roll back to %s: %w", r.Snapshot, err)
	}
	report.Volume = s.volumeInfo(b)
	return report, nil
}

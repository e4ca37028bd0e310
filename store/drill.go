package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/volume"
)

// BeginDrill clones a snapshot, VOLUME@SNAPSHOT, or the newest of a VOLUME that has
// drained, for somebody to see whether what it holds is of use. The clone is named
// VOLUME-drill- and something, and is there until DropHeld, or the next Open of the
// data directory. Errors: as Clone; ErrNotFound if no snapshot of the volume has drained.
func (s *Store) BeginDrill(ctx context.Context, name string) (snapshot string, clone VolumeInfo, err error) {
	if snapshot = name; !strings.Contains(name, "@") {
		if snapshot, err = s.newestDrained(name); err != nil {
			return "", VolumeInfo{}, err
		}
	}
	list, err := s.clone(ctx, cloning{which: only(snapshot), name: drillName, held: true})
	if err != nil {
		return "", VolumeInfo{}, err
	}
	return snapshot, list[0], nil
}

// newestDrained returns the snapshot of a volume that was cut last of those that a clone
// can be made of.
func (s *Store) newestDrained(volumeName string) (string, error) {
	list, err := s.Snapshots(volumeName)
	if err != nil {
		return "", err
	}
	list = slices.DeleteFunc(list, func(i SnapshotInfo) bool {
		return i.State == volume.Draining || s.finished(fullOf(i)) != nil
	})
	if len(list) == 0 {
		return "", fmt.Errorf("drained snapshot of volume %s %w: preserve it first", volumeName, ErrNotFound)
	}
	slices.Reverse(list) // of two cut at one time, the one above the other
	return fullOf(newestOf(list)), nil
}

// drillName begins as the name of the volume does, so that whoever has rights to
// names of that beginning has them to the clone.
func drillName(volumeName string) string {
	const most = 63 - len("-drill-") - drillDigits
	return volumeName[:min(len(volumeName), most)] + "-drill-" + strings.ToLower(newToken()[:drillDigits])
}

const drillDigits = 6

// RecordDrill records on a snapshot what came of a drill that ends now. Errors:
// ErrInvalid, ErrNotFound, ErrDraining.
func (s *Store) RecordDrill(full string, r Drill) (SnapshotInfo, error) {
	drill := catalog.Drill(r)
	drill.Time = time.Now().UTC()
	drill.Command = head(strings.Join(strings.Fields(r.Command), " "), catalog.MostDrillCommandBytes)
	drill.Output = tail(r.Output, catalog.MostDrillOutputBytes)
	grafts, err := s.branchable(only(full))
	if err != nil {
		return SnapshotInfo{}, err
	}
	d, k := grafts[0].disk, grafts[0].vlun
	s.mu.Lock()
	snap := d.snapshots[k]
	if snap == nil {
		s.mu.Unlock()
		return SnapshotInfo{}, fmt.Errorf("snapshot %s %w", full, ErrNotFound)
	}
	before := snap.drill
	snap.drill = &drill
	s.mu.Unlock()
	if err := s.putLinks(d, k.State(), k); err != nil {
		s.mu.Lock()
		snap.drill = before
		s.mu.Unlock()
		return SnapshotInfo{}, fmt.Errorf("record the drill of %s: %w", full, err)
	}
	return s.Snapshot(full) // if it was deleted meanwhile, nothing was recorded
}

// head and tail keep so many bytes of a text, and make it UTF-8.

func head(text string, most int) string {
	return strings.ToValidUTF8(text[:min(len(text), most)], "")
}

func tail(text string, most int) string {
	return strings.ToValidUTF8(text[max(0, len(text)-most):], "")
}

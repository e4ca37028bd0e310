package api

import (
	"errors"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/store"
)

func toSizes(z store.Sizes) *tidemarkv1.Sizes {
	return &tidemarkv1.Sizes{LogicalBytes: z.LogicalBytes, StoredBytes: z.StoredBytes, UniqueBytes: z.UniqueBytes, SharedBytes: z.SharedBytes()}
}

// measureVolumes adds their sizes to volumes. Those of one that was deleted
// meanwhile stay unset.
func (s *service) measureVolumes(volumes ...*tidemarkv1.Volume) error {
	for _, v := range volumes {
		sizes, err := s.store.Sizes(v.GetName())
		switch {
		case errors.Is(err, store.ErrNotFound):
			continue
		case err != nil:
			return err
		}
		v.Sizes, v.SizesWithSnapshots, v.UnseenBytes = toSizes(sizes.Live), toSizes(sizes.All), sizes.UnseenBytes
	}
	return nil
}

// measureSnapshots adds their sizes to snapshots, each volume measured once. Those
// of one that was deleted meanwhile stay unset.
func (s *service) measureSnapshots(snapshots ...*tidemarkv1.Snapshot) error {
	measured := map[string]store.VolumeSizes{}
	for _, snap := range snapshots {
		sizes, done := measured[snap.GetVolume()]
		if !done {
			var err error
			if sizes, err = s.store.Sizes(snap.GetVolume()); err != nil && !errors.Is(err, store.ErrNotFound) {
				return err
			}
			measured[snap.GetVolume()] = sizes
		}
		if own, there := sizes.Snapshots[snap.GetName()]; there {
			snap.Sizes = toSizes(own)
		}
	}
	return nil
}

func toSpace(space store.Space) *tidemarkv1.Space {
	return &tidemarkv1.Space{
		TotalBytes: space.TotalBytes, UsedBytes: space.UsedBytes(), FreeBytes: space.FreeBytes,
		WarnAt: toMark(space.WarnAt), RefusePreservesAt: toMark(space.RefusePreservesAt),
	}
}

func toMark(m store.Mark) *tidemarkv1.Mark {
	if m == (store.Mark{}) {
		return nil
	}
	return &tidemarkv1.Mark{UsedPercent: int32(m.UsedPercent), FreeBytes: m.FreeBytes}
}

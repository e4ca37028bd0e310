package store

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// DiffExtent is a range of blocks that may differ.
type DiffExtent struct {
	OffsetBytes, LengthBytes int64
	// Data: the newer side has data there; else it reads zeros.
	Data bool
}

// Diff lists, in ascending order, where a volume's state to may differ from its
// snapshot from: the blocks that were written or trimmed since the images that
// both share, also if to what they were. It reads no data, only the tables of the
// images that are not shared: its cost is that of what changed. to is a snapshot of
// the same volume, or the volume, of which it is some moment's state. Errors:
// ErrInvalid, ErrNotFound; else those of each.
func (s *Store) Diff(from, to string, each func(DiffExtent) error) error {
	older, newer, sizes, err := s.diffed(from, to)
	if err != nil {
		return err
	}
	changed := lookup.NewTable()
	for _, k := range unshared(older, newer) {
		for x := range k.Table().Extents(0, lookup.MaxBlocks) {
			changed.Set(x.Block, x.Count, lookup.Data)
		}
	}
	if sizes[1] > sizes[0] { // what the volume has grown by
		first := lookup.BlockNum(sizes[0] / lookup.BlockSize)
		changed.Set(first, uint64((sizes[1]+lookup.BlockSize-1)/lookup.BlockSize)-uint64(first), lookup.Data)
	}
	for x := range changed.Extents(0, lookup.MaxBlocks) {
		for x.Count > 0 {
			state, run := stateIn(newer, x.Block, x.Count)
			off := int64(x.Block) * lookup.BlockSize
			if off >= sizes[1] {
				return nil // cut off: images are larger than what they were made for
			}
			e := DiffExtent{off, min(int64(run)*lookup.BlockSize, sizes[1]-off), state == lookup.Data}
			if err := each(e); err != nil {
				return err
			}
			x.Block, x.Count = x.Block+lookup.BlockNum(run), x.Count-run
		}
	}
	return nil
}

// unshared lists what only one of two chains has.
func unshared(older, newer []*volume.VLUN) []*volume.VLUN {
	shared := 0
	for shared < min(len(older), len(newer)) && older[shared].ImageID() == newer[shared].ImageID() {
		shared++
	}
	return slices.Concat(older[shared:], newer[shared:])
}

// diffed returns the chains of both sides, oldest image first, and their sizes.
func (s *Store) diffed(from, to string) (older, newer []*volume.VLUN, sizes [2]int64, err error) {
	fromVolume, _, err := splitSnapshot(from)
	if err != nil {
		return nil, nil, sizes, err
	}
	if toVolume, _, _ := strings.Cut(to, "@"); toVolume != fromVolume {
		return nil, nil, sizes, fmt.Errorf("%w: %s and %s are of different volumes, and only states of one can be compared", ErrInvalid, from, to)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, name := range []string{from, to} {
		chain, err := s.viewLocked(name)
		if err != nil {
			return nil, nil, sizes, err
		}
		sizes[i] = chain[len(chain)-1].SizeBytes()
		older, newer = newer, chain
	}
	return older, newer, sizes, nil
}

// viewLocked is the chain up to a snapshot or a live volume; Store.mu is held.
func (s *Store) viewLocked(name string) ([]*volume.VLUN, error) {
	d, k := (*disk)(nil), (*volume.VLUN)(nil)
	if strings.Contains(name, "@") {
		var err error
		if d, k, _, err = s.snapshotLocked(name); err != nil {
			return nil, err
		}
	} else {
		var err error
		if d, err = s.diskLocked(name); err != nil {
			return nil, err
		}
		k = tip(d.volume)
	}
	chain := d.volume.VLUNs()
	return chain[:slices.Index(chain, k)+1], nil
}

// stateIn returns the state of block b in a view, and for how many blocks, at most
// limit, that is so.
func stateIn(view []*volume.VLUN, b lookup.BlockNum, limit uint64) (s lookup.State, run uint64) {
	run = limit
	for _, k := range slices.Backward(view) {
		s, n := k.Table().Run(b, run)
		run = min(run, n)
		if s != lookup.Absent {
			return s, run
		}
	}
	return lookup.Absent, run
}

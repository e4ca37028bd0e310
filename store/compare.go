package store

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// comparison is two states of a volume, and what the tables of their images say: of
// those that both have, and those that only one of them has, each oldest first. Blocks
// by which the volume has grown count as what only the older has: they read as zeros
// where the newer has nothing there.
//
// The snapshots are held open, so that each block which they see stays in some table.
// But while tables are read, it may go from one to another, and is not to be missed:
//
//  1. Of what has drained, blocks leave a table for a newer one only: when its image is
//     folded, or since the newer one has the block too. So the older of two tables is
//     read first. What it said then stays (lookup.Table.Frozen).
//  2. Above that, in a live volume, a write through an older VLUN takes a block out of
//     newer tables and puts it into an older one (R1). So there the newer of two is read
//     first, and all of them after what has drained. What is copied is some moment's
//     state of each block.
//  3. One that has been sealed since is subject to both, and a volume that was rolled
//     back or replaced has no live view that holds its blocks. Then all is read again.
type comparison struct {
	from, to side
	views
	shared, older, newer []lookup.Runs
}

// side is one of the states.
type side struct {
	disk      *disk
	snap      *snapshot      // nil: it is the live volume
	chain     []*volume.VLUN // up to its own, oldest first
	sizeBytes int64
}

// views are snapshots that are held open.
type views []*volume.View

// close lets them go; no more than once.
func (v views) close() {
	for _, w := range v {
		_ = w.Close() // nobody has read through it
	}
}

// compare opens both sides and reads their tables. Errors: ErrInvalid, ErrNotFound,
// ErrDraining.
func (s *Store) compare(from, to string) (*comparison, error) {
	for {
		c, err := s.sides(from, to)
		if err != nil || s.read(c) {
			return c, err
		}
		c.close()
	}
}

// sides finds both sides, and opens those that are snapshots.
func (s *Store) sides(from, to string) (*comparison, error) {
	fromVolume, _, err := splitSnapshot(from)
	if err != nil {
		return nil, err
	}
	if toVolume, _, _ := strings.Cut(to, "@"); toVolume != fromVolume {
		return nil, fmt.Errorf("%w: %s and %s are of different volumes, and only states of one can be compared", ErrInvalid, from, to)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &comparison{}
	if c.from, err = s.sideLocked(from, &c.views); err == nil {
		c.to, err = s.sideLocked(to, &c.views)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// sideLocked finds a live volume, or opens a snapshot whose content is final; Store.mu
// is held.
func (s *Store) sideLocked(name string, opened *views) (x side, err error) {
	var k *volume.VLUN
	if strings.Contains(name, "@") {
		x.disk, k, x.snap, err = s.snapshotLocked(name)
	} else if x.disk, err = s.diskLocked(name); err == nil {
		k = tip(x.disk.volume)
	}
	if err == nil && x.snap != nil {
		err = s.openLocked(name, k, opened)
	}
	if err != nil {
		return side{}, err
	}
	chain := x.disk.volume.VLUNs()
	x.chain, x.sizeBytes = chain[:slices.Index(chain, k)+1], k.SizeBytes()
	return x, nil
}

// openLocked opens a snapshot whose content is final; Store.mu is held.
func (s *Store) openLocked(full string, k *volume.VLUN, opened *views) error {
	if err := s.finalLocked(full, k); err != nil {
		return err
	}
	w, err := k.Open()
	if err != nil {
		return fmt.Errorf("snapshot %s %w: it was deleted", full, ErrNotFound)
	}
	*opened = append(*opened, w)
	return nil
}

// finalLocked is nil if the name of a snapshot stands for what its VLUN holds now, for
// good: it has drained, and the preserve that made it is over. Else it is ErrDraining.
// Store.mu is held.
func (s *Store) finalLocked(full string, k *volume.VLUN) error {
	if k.State() == volume.Draining {
		return fmt.Errorf("snapshot %s is %w: what it will hold is not yet known", full, ErrDraining)
	}
	return s.finishedLocked(full)
}

// read takes what the tables say, unless they changed as it can't deal with (3).
func (s *Store) read(c *comparison) bool {
	older, newer := c.from.chain, c.to.chain
	n := sharedImages(older, newer)
	drained := slices.IndexFunc(newer, func(k *volume.VLUN) bool { return k.State() == volume.Draining })
	if drained < 0 {
		drained = len(newer)
	}
	c.shared, c.older, c.newer = frozen(older[:n]), frozen(older[n:]), frozen(newer[n:drained])
	c.older = append(c.older, c.grown())
	busy := newer[drained:]
	copies := make([]lookup.Runs, len(busy))
	for i, k := range slices.Backward(busy) { // (2)
		copies[i] = k.Table().Clone()
		if tableRead != nil {
			tableRead()
		}
	}
	c.newer = append(c.newer, copies...)
	s.mu.Lock()
	defer s.mu.Unlock()
	return (c.to.snap != nil || s.volumes[c.to.disk.record.Name] == c.to.disk) &&
		!slices.ContainsFunc(busy, func(k *volume.VLUN) bool { return k.State() == volume.Sealed })
}

// Tests do something between two tables.
var tableRead func()

// frozen takes what tables say of images that have drained, oldest first (1).
func frozen(chain []*volume.VLUN) []lookup.Runs {
	tables := make([]lookup.Runs, len(chain))
	for i, k := range chain {
		tables[i] = k.Table().Frozen()
		if tableRead != nil {
			tableRead()
		}
	}
	return tables
}

// sharedImages counts the images that two chains begin with alike.
func sharedImages(older, newer []*volume.VLUN) (n int) {
	for n < min(len(older), len(newer)) && older[n].ImageID() == newer[n].ImageID() {
		n++
	}
	return n
}

// grown are the blocks that the newer side has and the older had not, by their sizes.
func (c *comparison) grown() blockRange {
	if c.to.sizeBytes <= c.from.sizeBytes {
		return blockRange{}
	}
	return blockRange{lookup.BlockNum(c.from.sizeBytes / lookup.BlockSize), blocksOf(c.to.sizeBytes)} // the rest of a last block in part is new
}

// blocksOf is how many blocks a size takes.
func blocksOf(sizeBytes int64) lookup.BlockNum {
	return lookup.BlockNum((sizeBytes + lookup.BlockSize - 1) / lookup.BlockSize)
}

// blockRange is the blocks from one up to, not with, another, as a table.
type blockRange struct{ from, end lookup.BlockNum }

// Run implements lookup.Runs.
func (r blockRange) Run(b lookup.BlockNum, limit uint64) (lookup.State, uint64) {
	switch {
	case b >= r.end:
		return lookup.Absent, limit
	case b < r.from:
		return lookup.Absent, min(limit, uint64(r.from-b))
	}
	return lookup.Zero, min(limit, uint64(r.end-b))
}

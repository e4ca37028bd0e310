package store

import (
	"slices"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// badBlocks is a set of blocks, as runs that ascend and don't touch. It keeps to
// catalog.MostBadRuns by joining those that lie closest: of an image that is
// rotten all over it knows where, and may count sound blocks in between.
type badBlocks []catalog.Run

// allBlocks are those of any image.
var allBlocks = badBlocks{{Count: lookup.MaxBlocks}}

func (s *badBlocks) add(r catalog.Run) {
	i, _ := slices.BinarySearchFunc(*s, r.Block, compareRun)
	if i > 0 && end((*s)[i-1]) == r.Block {
		i--
	}
	j := i
	for ; j < len(*s) && (*s)[j].Block <= end(r); j++ {
		first := min(r.Block, (*s)[j].Block)
		r = catalog.Run{Block: first, Count: uint64(max(end(r), end((*s)[j])) - first)}
	}
	*s = slices.Replace(*s, i, j, r)
	if len(*s) > catalog.MostBadRuns {
		closest := 1
		for i := range *s {
			if i > 0 && s.gap(i) < s.gap(closest) {
				closest = i
			}
		}
		s.add(catalog.Run{Block: end((*s)[closest-1]), Count: s.gap(closest)})
	}
}

func (s *badBlocks) addBlock(b lookup.BlockNum) { s.add(catalog.Run{Block: b, Count: 1}) }

func end(r catalog.Run) lookup.BlockNum { return r.Block + lookup.BlockNum(r.Count) }

// gap is how many blocks lie between run i and the one before it.
func (s badBlocks) gap(i int) uint64 { return uint64(s[i].Block - end(s[i-1])) }

func (s badBlocks) has(b lookup.BlockNum) bool {
	_, found := slices.BinarySearchFunc(s, b, compareRun)
	return found
}

func compareRun(r catalog.Run, b lookup.BlockNum) int {
	switch {
	case r.Block > b:
		return 1
	case end(r) <= b:
		return -1
	}
	return 0
}

// shownBy tells whether the view of VLUN k shows block b of the image of an
// older VLUN or its own, and for how many blocks, at most limit, that is so.
// vluns[i] is the image's, vluns[k] the view's.
func shownBy(vluns []*volume.VLUN, i, k int, b lookup.BlockNum, limit uint64) (shown bool, run uint64) {
	own, run := vluns[i].Table().Run(b, limit)
	if own != lookup.Data {
		return false, run
	}
	for _, newer := range vluns[i+1 : k+1] {
		s, n := newer.Table().Run(b, run)
		run = min(run, n)
		if s != lookup.Absent {
			return false, run
		}
	}
	return true, run
}

// shown counts the blocks of a set that the view of VLUN k shows.
func (s badBlocks) shown(vluns []*volume.VLUN, i, k int) (count int64) {
	for _, r := range s {
		for r.Count > 0 {
			shown, n := shownBy(vluns, i, k, r.Block, r.Count)
			if shown {
				count += int64(n)
			}
			r.Block, r.Count = r.Block+lookup.BlockNum(n), r.Count-n
		}
	}
	return count
}

// rotten is a block that a reader met.
type rotten struct {
	image image.ID
	block lookup.BlockNum
}

// metRot is told by images of what a request met. It must not wait: if the
// watcher is behind, the next reader of the block tells it.
func (s *Store) metRot(id image.ID, b lookup.BlockNum) {
	select {
	case s.rot <- rotten{id, b}:
	default:
	}
}

// watchRot takes note of what requests meet, and logs each block once.
func (s *Store) watchRot() {
	for {
		var r rotten
		select {
		case <-s.scans.ctx.Done():
			return
		case r = <-s.rot:
		}
		s.mu.Lock()
		known := true
		if holders := s.holdersLocked(r.image); len(holders) > 0 {
			if rec := holders[0].disk.sealed[holders[0].vlun]; rec != nil {
				if known = rec.bad.has(r.block); !known {
					rec.bad.addBlock(r.block)
				}
			}
		}
		s.mu.Unlock()
		if !known {
			s.logger.Error("a block is not what was sealed, reads of it fail",
				"image", r.image, "block", r.block, "shown by", s.showing(r.image, badBlocks{{Block: r.block, Count: 1}}))
		}
	}
}

// showing lists who shows a block of a set of an image: snapshots as
// VOLUME@SNAPSHOT, and live volumes by their names.
func (s *Store) showing(id image.ID, set badBlocks) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.holdersLocked(id) {
		vluns := h.disk.volume.VLUNs()
		i := slices.Index(vluns, h.vlun)
		for k := i; k < len(vluns); k++ {
			name := h.disk.record.Name
			if snap := h.disk.snapshots[vluns[k]]; snap != nil {
				name += "@" + snap.name
			} else if k < len(vluns)-1 {
				continue // an unnamed image
			}
			if set.shown(vluns, i, k) > 0 {
				names = append(names, name)
			}
		}
	}
	return names
}

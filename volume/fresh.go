package volume

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tidemark/tidemark/lookup"
)

// fewBlocks is how many blocks of one image a flush has the journal store in place of
// a sync of the image (journal.Journal, J10): 256 KiB. Tests have fewer.
var fewBlocks = 64

// stored is the blocks of an image whose data the log has (journal.Journal, J10), and
// perhaps more. Who overwrites one tells the log, as if it changed the table.
//
// A flush adds a block under its shared lock, when it reads what the log is to store;
// so who comes to write to it later finds it here. It forgets all when the log knows
// that the image was synced. One flush runs at a time.
type stored struct{ table atomic.Pointer[lookup.Table] }

func (s *stored) add(b lookup.BlockNum) {
	if s.table.Load() == nil {
		s.table.Store(lookup.NewTable())
	}
	s.table.Load().Set(b, 1, lookup.Data)
}

func (s *stored) forget() { s.table.Store(nil) }

// any tells whether a block of a range is there. The caller holds the locks of the range.
func (s *stored) any(r span) bool { return touches(s.table.Load(), r) }

// fresh is the blocks of an image that were written since the last flush took them,
// or that they are too many to name.
//
//  1. A block is added after its data is written, and before its request is answered.
//     So the flush that takes it, or the next one, covers it.
//  2. Where there are too many, the flush that finds that syncs the image after it
//     has taken them: it covers what was written before it was added.
//
// It is no part of unsynced, whose marks come late: what was taken is read back.
type fresh struct {
	many atomic.Bool // there are too many to name; under mu too where it changes

	mu     sync.Mutex
	blocks []lookup.BlockNum // at most fewBlocks, each once
}

// add adds a range that was written.
func (f *fresh) add(s span) {
	if f.many.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.count > uint64(fewBlocks) {
		f.addMany()
		return
	}
	for b := s.first; b < s.first+lookup.BlockNum(s.count); b++ {
		switch {
		case slices.Contains(f.blocks, b):
		case len(f.blocks) == fewBlocks:
			f.addMany()
			return
		default:
			f.blocks = append(f.blocks, b)
		}
	}
}

// addMany says that there are too many. mu is held, or nobody else is there yet.
func (f *fresh) addMany() {
	f.blocks = f.blocks[:0]
	f.many.Store(true)
}

// addAll says that any block may have been written.
func (f *fresh) addAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addMany()
}

// take appends to list the blocks that were added, which are none then; or it says
// that there are too many.
func (f *fresh) take(list []lookup.BlockNum) (taken []lookup.BlockNum, many bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	many = f.many.Load()
	list = append(list, f.blocks...)
	f.blocks = f.blocks[:0]
	f.many.Store(false)
	return list, many
}

package volume

import (
	"sync/atomic"

	"github.com/tidemark/tidemark/lookup"
)

// unsynced is the blocks of an image that were written since its last good sync
// began. When a sync fails they may be lost, each of them and no other: the
// kernel counts what it could not write as written, so a retry that succeeds
// proves nothing.
//
//  1. A block is marked after its data is written, in the table that is now
//     current. So a block that is not in that table, once another has taken its
//     place, was written before, or its write is not done.
//  2. A sync begins by putting an empty table in the place of the current one,
//     and drops the old one when it has succeeded: what is in it was written
//     before the sync began. A late mark in the old table speaks of such a
//     write too.
//  3. After a sync that could not be begun the old table stays, and the next
//     sync changes no table: the current one then has more marks than need be.
//  4. After a sync that failed nothing is dropped any more.
//
// Rejected: a flag for each image (one lost block would hide all the others);
// generations in the lookup table (a write to a block that is there already
// would have to change it).
type unsynced struct {
	all     atomic.Bool // any block may be: nobody knows what an earlier life wrote
	current atomic.Pointer[lookup.Table]
	before  atomic.Pointer[lookup.Table] // from the beginning of a sync until one succeeds
}

// mark adds a range, whose locks the caller holds. It looks first: most blocks
// that are written were not long before.
func (u *unsynced) mark(s span) {
	t := u.current.Load()
	if s.count == 1 && t.Get(s.first) != lookup.Absent {
		return
	}
	t.Set(s.first, s.count, lookup.Data)
}

// begin comes before a sync, done after one that succeeded. One sync runs at a time.
func (u *unsynced) begin() {
	if u.before.Load() == nil {
		u.before.Store(u.current.Load()) // first: no moment at which a mark is in neither
		u.current.Store(lookup.NewTable())
	}
}

func (u *unsynced) done() {
	u.before.Store(nil)
	u.all.Store(false)
}

// any tells whether a range has a block that may be unsynced. The caller holds
// the locks of the range.
func (u *unsynced) any(s span) bool {
	return u.all.Load() || touches(u.before.Load(), s) || touches(u.current.Load(), s)
}

func touches(t *lookup.Table, s span) bool {
	if t == nil {
		return false
	}
	state, run := t.Run(s.first, s.count)
	return state != lookup.Absent || run < s.count
}

package sealed

import (
	"context"

	"github.com/tidemark/tidemark/lookup"
)

// Source gives the sums of blocks of one image.
type Source interface {
	// Sums fills to with the sums of the blocks from first on, at most stepBlocks
	// and all Data in the image's table.
	Sums(first lookup.BlockNum, to []Sum) error
}

// Layer is an image of a chain, as far as its sums matter. Its table does not change
// while it is asked.
type Layer struct {
	Table *lookup.Table
	Sums  Source
}

// Chain is the images of a view, oldest first.
type Chain []Layer

// sweep is a view whose blocks are asked for in ascending order: of a thousand images
// it would take a minute to look for each of a few hundred thousand in each.
type sweep struct {
	chain  Chain
	tables []lookup.Runs
}

func (c Chain) sweep() sweep {
	s := sweep{c, make([]lookup.Runs, len(c))}
	for i, l := range c {
		s.tables[i] = lookup.Ascending(l.Table)
	}
	return s
}

// find returns which layer holds block b, -1 if none does, its state there, and
// for how many blocks, at most limit, that is so.
func (c sweep) find(b lookup.BlockNum, limit uint64) (layer int, s lookup.State, run uint64) {
	run = limit
	for i := len(c.tables) - 1; i >= 0; i-- {
		s, n := c.tables[i].Run(b, run)
		run = min(run, n)
		if s != lookup.Absent {
			return i, s, run
		}
	}
	return -1, lookup.Absent, run
}

// Hash returns the hash of the view, given that of the view below its newest
// image: only the blocks of that image are looked at.
func (c Chain) Hash(ctx context.Context, below Hash) (Hash, error) {
	h, top, older := below, c[len(c)-1], c[:len(c)-1].sweep()
	var room [stepBlocks]Sum
	for x := range top.Table.Extents(0, lookup.MaxBlocks) {
		for first, n := range steps(x.Block, x.Count) {
			if err := ctx.Err(); err != nil {
				return Hash{}, err
			}
			if x.State == lookup.Data {
				if err := each(top.Sums, first, room[:n], h.Add); err != nil {
					return Hash{}, err
				}
			}
			if err := older.each(first, n, &room, h.Remove); err != nil {
				return Hash{}, err
			}
		}
	}
	return h, nil
}

// each calls do for each of n blocks, at most stepBlocks, that the view has as
// Data.
func (c sweep) each(first lookup.BlockNum, n uint64, room *[stepBlocks]Sum, do func(lookup.BlockNum, Sum)) error {
	for n > 0 {
		i, state, run := c.find(first, n)
		if state == lookup.Data {
			if err := each(c.chain[i].Sums, first, room[:run], do); err != nil {
				return err
			}
		}
		first, n = first+lookup.BlockNum(run), n-run
	}
	return nil
}

func each(from Source, first lookup.BlockNum, room []Sum, do func(lookup.BlockNum, Sum)) error {
	if err := from.Sums(first, room); err != nil {
		return err
	}
	for i, s := range room {
		do(first+lookup.BlockNum(i), s)
	}
	return nil
}

// stepBlocks is how many blocks are looked at, and read, at once.
const stepBlocks = 256

// steps cuts a run of blocks.
func steps(first lookup.BlockNum, n uint64) func(yield func(lookup.BlockNum, uint64) bool) {
	return func(yield func(lookup.BlockNum, uint64) bool) {
		for n > 0 {
			part := min(n, stepBlocks)
			if !yield(first, part) {
				return
			}
			first, n = first+lookup.BlockNum(part), n-part
		}
	}
}

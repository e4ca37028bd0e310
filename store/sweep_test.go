package store_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
)

// randomLayers makes a tree of images, with runs of all lengths about the steps in
// which tables and the sweep go.
func randomLayers(rng *rand.Rand, blocks uint64) []store.Layer {
	layers := make([]store.Layer, 1+rng.IntN(9))
	for i := range layers {
		layers[i] = store.Layer{Table: lookup.NewTable(), Below: i - 1, View: rng.IntN(3) > 0}
		if rng.IntN(4) == 0 {
			layers[i].Below = rng.IntN(i+1) - 1
		}
		for range rng.IntN(12) {
			from, n := rng.Uint64N(blocks), uint64(1)<<rng.IntN(17)
			if rng.IntN(2) == 0 {
				from = from &^ 255
			} else {
				n = 1 + rng.Uint64N(n)
			}
			layers[i].Table.Set(lookup.BlockNum(from), min(n, blocks-from), lookup.State(rng.IntN(3)))
		}
	}
	return layers
}

func TestTheSweepCountsWhatACountBlockByBlockDoes(t *testing.T) {
	const blocks = 3 * lookup.LeafBlocks
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			layers := randomLayers(rand.New(rand.NewPCG(seed, 2)), blocks)
			stored, unique := make([]int64, len(layers)), make([]int64, len(layers))
			var seen, unseen int64
			shows := make([]int, len(layers)) // how many views show the block of each, ...
			last := make([]int, len(layers))  // and which did last
			for b := range lookup.BlockNum(blocks) {
				clear(shows)
				for i, view := range layers {
					at := i
					for at >= 0 && layers[at].Table.Get(b) == lookup.Absent {
						at = layers[at].Below
					}
					if at < 0 || layers[at].Table.Get(b) != lookup.Data {
						continue
					}
					if stored[i]++; view.View {
						shows[at], last[at] = shows[at]+1, i
					}
				}
				for i, l := range layers {
					switch {
					case l.Table.Get(b) != lookup.Data:
					case shows[i] == 0:
						unseen++
					case shows[i] == 1:
						unique[last[i]]++
						fallthrough
					default:
						seen++
					}
				}
			}
			gotStored, gotUnique, together, unseenBytes := store.MeasureLayers(layers)
			if !slices.Equal(gotStored, stored) || !slices.Equal(gotUnique, unique) {
				t.Errorf("stored %v, want %v; unique %v, want %v", gotStored, stored, gotUnique, unique)
			}
			if want := (store.Sizes{StoredBytes: seen * 4096, UniqueBytes: seen * 4096}); together != want || unseenBytes != unseen*4096 {
				t.Errorf("together %+v, want %+v; unseen %d, want %d", together, want, unseenBytes, unseen*4096)
			}
		})
	}
}

func TestTheSweepOfTheLargestVolume(t *testing.T) {
	base, top := lookup.NewTable(), lookup.NewTable()
	base.Set(0, lookup.MaxBlocks, lookup.Data)
	top.Set(lookup.MaxBlocks-1, 1, lookup.Data)
	top.Set(0, lookup.MaxBlocks/2, lookup.Zero)
	stored, unique, together, unseen := store.MeasureLayers([]store.Layer{{base, -1, true}, {top, 0, true}})
	if want := []int64{lookup.MaxBlocks, lookup.MaxBlocks / 2}; !slices.Equal(stored, want) {
		t.Errorf("stored %d, want %d", stored, want)
	}
	if want := []int64{lookup.MaxBlocks/2 + 1, 1}; !slices.Equal(unique, want) {
		t.Errorf("unique %d, want %d", unique, want)
	}
	if together.StoredBytes != (lookup.MaxBlocks+1)*4096 || unseen != 0 {
		t.Errorf("together %+v, unseen %d", together, unseen)
	}
}

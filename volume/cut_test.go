package volume

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/lookup"
)

// Between any two steps of a cut a request may come. What it is bound to is said
// by the epoch alone: the old one, and it is in every snapshot of the preserve;
// the new one, and it is in none.
func TestARequestAtAnyStepOfACutIsInTheSnapshotIfAndOnlyIfTheEpochIsStillTheOld(t *testing.T) {
	r := newRig(t)
	volumes := []*Volume{r.volume("v"), r.volume("w")}
	var live []*View
	for _, v := range volumes {
		live = append(live, open(t)(v.Open()))
	}
	old := r.engine.Epoch()
	type written struct {
		step  yield.Point
		block lookup.BlockNum
		in    bool
	}
	var all []written
	duringCut = func(step yield.Point) {
		w := written{step, lookup.BlockNum(len(all)), r.engine.Epoch() == old}
		for _, view := range live {
			writeBlock(t, view, w.block, 'x')
			wantBlock(t, fmt.Sprintf("the live view at %q", step), view, w.block, 'x')
		}
		if in := r.engine.Epoch() == old; in != w.in {
			t.Errorf("the epoch changed at %q, where the cut stood still", step)
		}
		all = append(all, w)
	}
	t.Cleanup(func() { duringCut = nil })
	result := r.preserve(PreserveOptions{}, volumes...).wait(t)
	before, after := 0, 0
	for _, k := range result.VLUNs {
		snapshot := open(t)(k.Open())
		for _, w := range all {
			want := byte(0)
			if w.in {
				want = 'x'
				before++
			} else {
				after++
			}
			wantBlock(t, fmt.Sprintf("the snapshot of %s, of a write at %q", k.Volume().Name(), w.step), snapshot, w.block, want)
		}
	}
	if before == 0 || after == 0 {
		t.Errorf("%d writes came before the cut and %d after it: want some of both", before, after)
	}
}

// The epochs of requests never go backwards (I1), so the epoch itself must not,
// for however short a time.
func TestTheEpochNeverGoesBackwards(t *testing.T) {
	r := newRig(t)
	stop := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for last := Epoch(0); ; {
			for range 1 << 10 {
				now := Epoch(r.engine.epoch.Load())
				if now < last {
					t.Errorf("the epoch was %d and then %d", last, now)
					return
				}
				last = now
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for n := range 20 {
		v := r.volume(fmt.Sprintf("v%d", n))
		for range 100 {
			if _, err := r.engine.Preserve([]*Volume{v}, PreserveOptions{Wait: time.Hour}); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	watcher.Wait()
}

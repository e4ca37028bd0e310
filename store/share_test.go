package store

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/mem"
	"github.com/tidemark/tidemark/volume"
)

func TestASealPausesWhileItsVolumeHasRequestsAndNoOtherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := &volume.Memory{}
		v, err := volume.New(memory, 0).AddVolume(memory.Config("v", 1<<20, volume.ScopeRequest))
		if err != nil {
			t.Fatal(err)
		}
		w, err := v.Open()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		queue := sealer{store: &Store{}}
		y := &yielding{mem.New(), ctx, queue.share(v.VLUNs()[0])}
		for _, c := range []struct {
			what          string
			works, pauses time.Duration
			active        bool
			others        int
		}{
			{"nobody", 10 * time.Millisecond, 0, false, 0},
			{"requests", 10 * time.Millisecond, 30 * time.Millisecond, true, 0},
			{"requests, and it has hardly begun", shareLeast / 4, 0, true, 0},
			{"requests, and it has waited for the disk", time.Minute, shareMost, true, 0},
			{"requests, and another to be sealed", 10 * time.Millisecond, 0, true, 1},
			{"requests a while ago", 10 * time.Millisecond, 0, false, 0},
		} {
			<-time.After(time.Second) // the bubble's time
			queue.queue = make([]*volume.VLUN, c.others)
			y.share.begun = time.Now().Add(-c.works)
			if c.active {
				w.Served(time.Now().Add(-time.Millisecond))
			}
			begin := time.Now()
			if _, err := y.ReadAt(make([]byte, 4096), 0); err != nil || time.Since(begin) != c.pauses {
				t.Errorf("%s: it pauses for %v, %v, want %v", c.what, time.Since(begin), err, c.pauses)
			}
		}
		y.share.begun = time.Now().Add(-time.Second)
		w.Served(time.Now().Add(-time.Millisecond))
		cancel()
		if _, err := y.ReadAt(make([]byte, 4096), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("at the end: %v", err)
		}
	})
}

func TestAShareOfTheTimeIsTakenBesideRequestsAndAllOfItElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ms = time.Millisecond
		for _, c := range []struct {
			what                   string
			percent                int
			works, atLeast, pauses time.Duration
			busy                   bool
		}{
			{"nobody, no rate", 25, 10 * ms, 0, 0, false},
			{"nobody, a rate", 25, 10 * ms, 40 * ms, 30 * ms, false},
			{"a quarter", 25, 10 * ms, 0, 30 * ms, true},
			{"a half", 50, 10 * ms, 0, 10 * ms, true},
			{"all of it", 100, 10 * ms, 0, 0, true},
			{"little", 1, ms, 0, 99 * ms, true},
			{"a rate that takes longer", 50, 10 * ms, 40 * ms, 30 * ms, true},
			{"a rate that takes less", 25, 10 * ms, 20 * ms, 30 * ms, true},
			{"a rate, and hardly begun", 25, 0, 20 * ms, 20 * ms, true},
		} {
			x := newShare(c.percent, func() bool { return c.busy })
			<-time.After(c.works)
			begin := time.Now()
			if err := x.rest(t.Context(), c.atLeast); err != nil || time.Since(begin) != c.pauses {
				t.Errorf("%s: it pauses for %v, %v, want %v", c.what, time.Since(begin), err, c.pauses)
			}
			if c.percent < 100 && x.begun != time.Now() {
				t.Errorf("%s: the next piece of work has begun before", c.what)
			}
		}
	})
}

func TestImagesToPunchComeVolumeByVolumeAndNewestFirst(t *testing.T) {
	q := sealer{wake: make(chan struct{}, 1)}
	a, b := &volume.Volume{}, &volume.Volume{}
	q.punch(punching{3, a, -1}, punching{5, b, -1}, punching{7, a, -1})
	q.punch(punching{6, b, -1}, punching{5, a, -1}, punching{3, b, -1}, punching{2, b, -1}, punching{1, a, -1})
	var ids []image.ID
	for _, p := range q.punches {
		ids = append(ids, p.id)
	}
	if want := []image.ID{7, 3, 1, 6, 5, 2}; !slices.Equal(ids, want) {
		t.Errorf("they come as %v, want %v", ids, want)
	}
}

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

func TestASealPausesWhileItsVolumeHasRequestsTheLessTheLongerItTakes(t *testing.T) {
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
		k := v.VLUNs()[0]
		d := &disk{snapshots: map[*volume.VLUN]*snapshot{k: {}}}
		queue := sealer{store: &Store{byVolume: map[*volume.Volume]*disk{v: d}}}
		y := &yielding{mem.New(), ctx, queue.share(k)}
		const ms = time.Millisecond
		for _, c := range []struct {
			what          string
			works, pauses time.Duration
			active        bool
			asked         time.Duration // ago
			urgent        int           // commands that wait for
			whose         []*volume.VLUN
			stopping      bool
		}{
			{what: "nobody", works: 10 * ms},
			{what: "requests", works: 10 * ms, pauses: 90 * ms, active: true},
			{what: "requests, and it has hardly begun", works: shareLeast / 10, active: true},
			{what: "requests, and it has waited for the disk", works: time.Minute, pauses: shareMost, active: true},
			{what: "requests, and it was asked for some time ago", works: 10 * ms, pauses: 40 * ms, active: true, asked: sealSoon},
			{what: "requests, and it was asked for more than that ago", works: 10 * ms, pauses: 15 * ms, active: true, asked: 2 * sealSoon},
			{what: "requests, and it was asked for long ago", works: 10 * ms, active: true, asked: time.Hour},
			{what: "requests, and somebody who waits for another", works: 10 * ms, active: true, urgent: 1, whose: []*volume.VLUN{k}},
			{what: "requests, and somebody who waits for this", works: 10 * ms, active: true, urgent: 1},
			{what: "requests, at the end", works: 10 * ms, active: true, stopping: true},
			{what: "requests a while ago", works: 10 * ms},
		} {
			<-time.After(time.Second) // the bubble's time
			queue.asked = map[*volume.VLUN]time.Time{k: time.Now().Add(-c.asked)}
			queue.queue, queue.stopping, d.snapshots[k].urgent = c.whose, c.stopping, c.urgent
			y.share.begun = time.Now().Add(-c.works)
			if c.active {
				w.Served(time.Now().Add(-time.Millisecond))
			}
			begin := time.Now()
			if _, err := y.ReadAt(make([]byte, 4096), 0); err != nil || time.Since(begin) != c.pauses {
				t.Errorf("%s: it pauses for %v, %v, want %v", c.what, time.Since(begin), err, c.pauses)
			}
		}
		queue.stopping = false
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
			x := newShare(func() int { return c.percent }, func() bool { return c.busy })
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

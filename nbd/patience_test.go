package nbd

import (
	"runtime"
	"testing"
	"time"
)

func TestAClientIsLookedForTheLessTheMoreLooksAreInVain(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var w patience
	for _, rests := range []int{1, 3, 7, 15, 31, 63, 63} {
		if !w.begin() {
			t.Fatalf("there is no look before the one after which %d waits have none", rests)
		}
		w.end(false)
		for i := range rests {
			if w.begin() {
				t.Fatalf("%d waits after a look in vain there is one, want %d", i, rests)
			}
		}
	}
	for range 3 {
		if !w.begin() {
			t.Fatal("a client who was there is not looked for")
		}
		w.end(true)
	}
	if w.begin(); w.vain != 0 {
		t.Error("what was in vain before counts after a look that found something")
	}
	w.end(true)
}

func TestAProcessorIsLeftToThoseWhoDoNotLook(t *testing.T) {
	for _, processors := range []int{1, 2, 4} {
		before := runtime.GOMAXPROCS(processors)
		var looking []*patience
		for range processors + 2 {
			if w := new(patience); w.begin() {
				looking = append(looking, w)
			}
		}
		if len(looking) != processors-1 {
			t.Errorf("with %d processors %d look at once, want %d", processors, len(looking), processors-1)
		}
		for _, w := range looking {
			w.end(false)
		}
		runtime.GOMAXPROCS(before)
	}
}

func TestALookEnds(t *testing.T) {
	w := new(patience)
	if w.again(time.Now().Add(-briefWait)) {
		t.Error("it goes on after briefWait")
	}
	since := time.Now()
	for w.again(since) {
	}
	if time.Since(since) < briefWait {
		t.Error("it ended before")
	}
}

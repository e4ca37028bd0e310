package nbd

import (
	"runtime"
	"testing"
	"time"
)

// quick is what is known of a client that sends its next request at once.
func quick() *patience {
	w := new(patience)
	w.learn(briefWait - 1)
	return w
}

func TestOnlyAClientThatWasQuickIsLookedFor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var w patience
	if w.begin() {
		t.Error("a client of whom nothing is known is looked for")
	}
	w.learn(briefWait - 1)
	if !w.begin() {
		t.Fatal("a quick client is not looked for")
	}
	w.end()
	w.learn(briefWait)
	if w.begin() {
		t.Error("a client that thought is looked for")
	}
}

func TestAProcessorIsLeftToThoseWhoDoNotLook(t *testing.T) {
	for _, processors := range []int{1, 2, 4} {
		before := runtime.GOMAXPROCS(processors)
		var looking []*patience
		for range processors + 2 {
			if w := quick(); w.begin() {
				looking = append(looking, w)
			}
		}
		if len(looking) != processors-1 {
			t.Errorf("with %d processors %d look at once, want %d", processors, len(looking), processors-1)
		}
		for _, w := range looking {
			w.end()
		}
		runtime.GOMAXPROCS(before)
	}
}

func TestALookEnds(t *testing.T) {
	w := quick()
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

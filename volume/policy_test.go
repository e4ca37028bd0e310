package volume

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/lookup"
)

func TestAbortLetsTheProcessGoOnInTheNextVLUNAndTakesTheNameAway(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{Wait: time.Nanosecond, OnTimeout: TimeoutAbort})
	result := s.command.wait(t)
	if !result.Aborted || result.Reason != TimedOut || result.VLUNs != nil {
		t.Errorf("the result is %+v, want aborted by its deadline", result)
	}
	if len(result.Moved) != 1 || result.Moved[0] != "P" {
		t.Errorf("moved %v, want P", result.Moved)
	}
	writeBlock(t, s.old, 2, 'p')
	wantEntry(t, s.first, 2, lookup.Absent)
	s.wantStored(s.second, 2, 'p')
	<-s.first.Drained()
}

func TestAnAbortedPreserveWaitsForTheRequestsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		v := r.volume("v")
		live := open(t)(v.Open())
		gate := r.hold(v.tip())
		done := make(chan struct{})
		go func() { defer close(done); writeBlock(t, live, 2, 'a') }()
		<-gate.reached
		command := r.preserve(PreserveOptions{Wait: time.Nanosecond, OnTimeout: TimeoutAbort}, v)
		time.Sleep(time.Second) // past the deadline, by the bubble's clock
		synctest.Wait()
		if command.answered() {
			t.Error("the preserve answered while a request ran that was bound to its VLUN")
		}
		close(gate.open)
		<-done
		if result := command.wait(t); !result.Aborted {
			t.Errorf("the result is %+v, want aborted", result)
		}
	})
}

// slowDrains tells of the end of a drain long after it was.
type slowDrains struct{ *Memory }

func (s slowDrains) Drained(k *VLUN) {
	time.Sleep(time.Hour)
	s.Memory.Drained(k)
}

func TestAPreserveThatHasNothingToWaitForNeedsNoTimeToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := new(Memory)
		engine := New(slowDrains{memory}, 0)
		v, err := engine.AddVolume(memory.Config("v", 64*lookup.BlockSize, ScopeRequest))
		if err != nil {
			t.Fatal(err)
		}
		for _, onTimeout := range []OnTimeout{TimeoutAbort, TimeoutDegrade, TimeoutKeep} {
			result, err := engine.Preserve([]*Volume{v}, PreserveOptions{OnTimeout: onTimeout})
			if err != nil {
				t.Fatal(err)
			}
			if result.Reason != Complete || result.Consistency != ConsistencyProcess || result.VLUNs[0].State() == Draining {
				t.Errorf("%v: the result is %+v, want it complete", onTimeout, result)
			}
		}
	})
}

func TestAbortMovesToTheNextVLUNNotTheLiveOneSoThatAYoungerPreserveKeepsTheProcessWhole(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{OnTimeout: TimeoutAbort, OnConflict: ConflictAbort})
	younger := s.preserve(PreserveOptions{}, s.volume)
	third := s.volume.VLUNs()[2]
	writeBlock(t, open(t)(s.volume.Open()), 9, 'n') // in the third image
	got := make([]byte, lookup.BlockSize)
	if _, err := s.old.ReadAt(got, 9*lookup.BlockSize); err != nil { // a conflict: gives the first preserve up
		t.Fatal(err)
	}
	if result := s.command.wait(t); !result.Aborted || result.Reason != Conflicted {
		t.Fatalf("the older preserve ended as %+v, want given up by the conflict", result)
	}
	writeBlock(t, s.old, 2, 'p')
	s.wantStored(s.second, 2, 'p')
	wantEntry(t, third, 2, lookup.Absent)
	if younger.answered() {
		t.Error("the younger preserve answered before the process that it keeps whole")
	}
	s.p.End(false)
	s.q.End(false) // begun before the younger cut
	snapshot := open(t)(younger.wait(t).VLUNs[0].Open())
	wantBlock(t, "the younger snapshot", snapshot, 2, 'p')
	wantBlock(t, "the younger snapshot", snapshot, 9, 0)
}

// The younger VLUN has ended its own drain and waits for the older one only, when
// a process comes to it from there.
func TestAYoungerPreserveWaitsForAProcessThatAGivenUpOneHandsToIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := preserveWithOldProcess(t, PreserveOptions{OnConflict: ConflictAbort})
		s.q.End(false)
		younger := s.preserve(PreserveOptions{}, s.volume)
		synctest.Wait()
		writeBlock(t, open(t)(s.volume.Open()), 9, 'n')       // in the third image
		wantBlock(t, "the older process, moved", s.old, 9, 0) // gives the first preserve up
		s.command.wait(t)
		<-s.first.Drained()
		synctest.Wait()
		if younger.answered() {
			t.Error("the younger preserve answered while the process ran that was moved to it")
		}
		writeBlock(t, s.old, 2, 'p')
		s.p.End(false)
		wantBlock(t, "the younger snapshot", open(t)(younger.wait(t).VLUNs[0].Open()), 2, 'p')
	})
}

func TestAPreserveWaitsForARequestThatOutlivesItsProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := preserveWithOldProcess(t, PreserveOptions{})
		synctest.Wait() // the drain has found no request, and waits for the process
		gate := s.hold(s.first)
		done := make(chan struct{})
		go func() { defer close(done); writeBlock(t, s.old, 2, 'p') }()
		<-gate.reached
		s.p.End(false)
		synctest.Wait()
		if s.command.answered() {
			t.Error("the preserve answered before the last request of the process that it waited for")
		}
		close(gate.open)
		<-done
		wantBlock(t, "the snapshot", open(t)(s.command.wait(t).VLUNs[0].Open()), 2, 'p')
	})
}

func TestDegradeMakesASecondCutThatWaitsForRequestsOnly(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{Wait: 0, OnTimeout: TimeoutKeep})
	_ = s.end() // only to have a volume with a chain; its process is over
	p := s.begin("P2", s.volume)
	view := open(t)(p.Open(s.volume))
	writeBlock(t, view, 3, 'b')
	first := s.volume.tip()
	result, err := s.engine.Preserve([]*Volume{s.volume}, PreserveOptions{Wait: time.Nanosecond, OnTimeout: TimeoutDegrade})
	if err != nil {
		t.Fatal(err)
	}
	if result.Aborted || result.Consistency != ConsistencyRequest {
		t.Fatalf("the result is %+v, want request consistency", result)
	}
	if result.VLUNs[0] == first {
		t.Error("the first cut got the name, want the second")
	}
	writeBlock(t, view, 3, 'c')
	snapshot := open(t)(result.VLUNs[0].Open())
	wantBlock(t, "the snapshot holds what came before the second cut", snapshot, 3, 'b')
	wantBlock(t, "the process goes on in the live volume", open(t)(s.volume.Open()), 3, 'c')
	if bindings, _ := p.Bindings(); !bindings[0].VLUN.Live() {
		t.Error("the process is not bound to the live VLUN after crossing")
	}
}

func TestDegradeIsMixedWhileAnOlderPreserveStillDrains(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{}) // waits for P, for long
	result, err := s.engine.Preserve([]*Volume{s.volume}, PreserveOptions{Wait: time.Nanosecond, OnTimeout: TimeoutDegrade})
	if err != nil {
		t.Fatal(err)
	}
	if result.Consistency != ConsistencyMixed {
		t.Errorf("consistency %v, want mixed", result.Consistency)
	}
	writeBlock(t, s.old, 2, 'p')
	s.wantStored(s.first, 2, 'p') // P belongs to the older preserve, and stays
	s.end()
	<-result.VLUNs[0].Drained()
}

// A process of an older preserve keeps the snapshot of a degraded one draining.
// It is answered all the same, but not before the requests in flight have ended.
func TestADegradedPreserveWaitsForRequestsThoughNotForProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := preserveWithOldProcess(t, PreserveOptions{})
		s.q.End(false)
		live := open(t)(s.volume.Open())
		gate := s.hold(s.second)
		done := make(chan struct{})
		go func() { defer close(done); writeBlock(t, live, 2, 'n') }()
		<-gate.reached
		degraded := s.preserve(PreserveOptions{Wait: time.Nanosecond, OnTimeout: TimeoutDegrade}, s.volume)
		time.Sleep(time.Second) // past the deadline, by the bubble's clock
		synctest.Wait()
		if degraded.answered() {
			t.Error("the degraded preserve answered before a request from before its cut had ended")
		}
		close(gate.open)
		<-done
		result := degraded.wait(t)
		if result.Consistency != ConsistencyMixed {
			t.Errorf("consistency %v, want mixed", result.Consistency)
		}
		wantBlock(t, "the snapshot", open(t)(result.VLUNs[0].Open()), 2, 'n')
		s.end()
	})
}

func TestKeepLeavesTheSnapshotDrainingAndLaterOnesBehindIt(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{Wait: time.Nanosecond, OnTimeout: TimeoutKeep})
	result := s.command.wait(t)
	if result.Aborted || s.first.State() != Draining {
		t.Fatalf("the result is %+v in state %v, want a draining snapshot", result, s.first.State())
	}
	s.q.End(false)
	later := s.preserve(PreserveOptions{}, s.volume)
	<-s.second.quiet
	if s.second.isDrained() {
		t.Error("the later VLUN drained before the older one (R8)")
	}
	s.p.End(false)
	later.wait(t)
	if s.first.State() == Draining {
		t.Error("the kept snapshot still drains")
	}
}

func TestAConflictGivesThePreserveUpBeforeTheReadIsServed(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{OnConflict: ConflictAbort})
	writeBlock(t, s.new, 1, 'q')
	wantBlock(t, "the old process, moved on before the read", s.old, 1, 'q')
	if result := s.command.wait(t); !result.Aborted || result.Reason != Conflicted {
		t.Errorf("the result is %+v, want given up by a conflict", result)
	}
}

func TestAConflictThatIsCountedIsServedFromTheOlderImage(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 1, 'q')
	wantBlock(t, "the old process", s.old, 1, 'a')
	if n := s.first.Conflicts(); n != 1 {
		t.Errorf("%d conflicts, want 1", n)
	}
	s.end()
}

func TestATornProcessIsListedOnEverySnapshotThatWaitedForIt(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	younger := s.preserve(PreserveOptions{}, s.volume)
	s.p.End(true)
	if result := s.command.wait(t); result.Consistency != ConsistencyMixed {
		t.Errorf("consistency %v, want mixed", result.Consistency)
	}
	s.q.End(false)
	younger.wait(t)
	for i, k := range []*VLUN{s.first, s.second} {
		if torn := k.Torn(); len(torn) != 1 || torn[0] != "P" {
			t.Errorf("snapshot %d lists %v as torn, want P", i+1, torn)
		}
	}
}

func TestAPreserveWaitsForEveryProcessThatNamedItsVolumeTouchedOrNot(t *testing.T) {
	r := newRig(t)
	v, w := r.volume("v"), r.volume("w")
	p := r.begin("P", v, w)
	command := r.preserve(PreserveOptions{}, w)
	free := r.volume("free")
	r.preserve(PreserveOptions{}, free).wait(t) // nobody named it
	if command.answered() {
		t.Error("the preserve did not wait for a process that had named its volume")
	}
	p.End(false)
	if n := command.wait(t).Waited; n != 1 {
		t.Errorf("waited for %d processes, want 1", n)
	}
}

func TestTokensAndVolumesThatDoNotFitAreRefused(t *testing.T) {
	r := newRig(t)
	v, w := r.volume("v"), r.volume("w")
	p := r.begin("P", v)
	if _, err := r.engine.Begin("P", []*Volume{w}); !errors.Is(err, ErrToken) {
		t.Errorf("a second process with the token: %v, want %v", err, ErrToken)
	}
	if _, err := p.Open(w); !errors.Is(err, ErrNotNamed) {
		t.Errorf("another volume: %v, want %v", err, ErrNotNamed)
	}
	view := open(t)(p.Open(v))
	p.End(false)
	if _, err := view.WriteAt([]byte("x"), 0); !errors.Is(err, ErrEnded) {
		t.Errorf("a write after the end: %v, want %v", err, ErrEnded)
	}
	if _, err := p.Open(v); !errors.Is(err, ErrEnded) {
		t.Errorf("a connection after the end: %v, want %v", err, ErrEnded)
	}
	if _, err := r.engine.Process("P"); !errors.Is(err, ErrNoProcess) {
		t.Errorf("the token after the end: %v, want %v", err, ErrNoProcess)
	}
}

func TestTheNumberOfDrainingVLUNsIsLimited(t *testing.T) {
	r := newRig(t)
	r.engine.maxDraining = 2
	v := r.volume("v")
	p := r.begin("P", v)
	commands := []*outcome{r.preserve(PreserveOptions{}, v), r.preserve(PreserveOptions{}, v)}
	if _, err := r.engine.Preserve([]*Volume{v}, PreserveOptions{}); !errors.Is(err, ErrDrainingLimit) {
		t.Errorf("a third preserve: %v, want %v", err, ErrDrainingLimit)
	}
	p.End(false)
	for _, c := range commands {
		c.wait(t)
	}
	r.preserve(PreserveOptions{}, v).wait(t)
}

func TestAPreserveThatCannotBePreparedChangesNothing(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	full := errors.New("disk full")
	r.memory.OnPrepare = func(Plan) error { return full }
	if _, err := r.engine.Preserve([]*Volume{v}, PreserveOptions{}); !errors.Is(err, full) {
		t.Errorf("%v, want %v", err, full)
	}
	if len(v.VLUNs()) != 1 || r.engine.Epoch() != 1 {
		t.Error("the chain or the epoch changed")
	}
}

func TestASessionIsAProcessThatEndsWithItsConnection(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	session := open(t)(v.OpenSession())
	command := r.preserve(PreserveOptions{}, v)
	writeBlock(t, session, 1, 's')
	if command.answered() {
		t.Error("the preserve did not wait for the session")
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
	wantBlock(t, "the snapshot", open(t)(command.wait(t).VLUNs[0].Open()), 1, 's')
}

func TestAResizeShowsInViewsOpenedAfterItOnly(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	before := open(t)(v.Open())
	r.preserve(PreserveOptions{}, v).wait(t)
	size := v.SizeBytes()
	if err := r.engine.Resize(v, 2*size, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if after := open(t)(v.Open()); before.SizeBytes() != size || after.SizeBytes() != 2*size {
		t.Errorf("sizes %d and %d, want %d and %d", before.SizeBytes(), after.SizeBytes(), size, 2*size)
	}
	if got := v.VLUNs()[0].SizeBytes(); got != size {
		t.Errorf("the preserved VLUN has %d bytes, want %d: fixed at its cut", got, size)
	}
	if _, err := before.WriteAt([]byte("x"), size); !errors.Is(err, ErrRange) {
		t.Errorf("a write beyond the old size through the old view: %v, want %v", err, ErrRange)
	}
}

func TestARequestThatWouldHaveWaitedAndCameAgainIsOneConflict(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 1, 'q')
	p := make([]byte, lookup.BlockSize)
	s.images[s.first.ImageID()].slow = true
	if _, err := s.old.TryReadAt(p, lookup.BlockSize); !errors.Is(err, ErrWouldBlock) {
		t.Fatalf("a read of a slow image that must not wait: %v, want %v", err, ErrWouldBlock)
	}
	if _, err := s.old.ReadAt(p, lookup.BlockSize); err != nil {
		t.Fatal(err)
	}
	if n := s.first.Conflicts(); n != 1 {
		t.Errorf("%d conflicts, want 1", n)
	}
	if _, err := s.old.TryWriteAt(p[:100], lookup.BlockSize); err != nil { // the block is in the first image: no read
		t.Fatal(err)
	}
	if n := s.first.Conflicts(); n != 2 {
		t.Errorf("%d conflicts, want 2", n)
	}
	s.end()
}

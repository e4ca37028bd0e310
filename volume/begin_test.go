package volume

import (
	"errors"
	"testing"
	"time"

	"github.com/tidemark/tidemark/lookup"
)

// A request that has looked at the epoch, and not yet been counted when the cut
// comes and the drain finds nobody, must not write to the preserved image. This
// is what the second look at the epoch, and at the bound, is for.
func TestARequestThatACutOvertakesAtItsBeginGoesToTheNewVLUN(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	live := open(t)(v.Open())
	first := v.tip()
	once := false
	beforeCount = func(*VLUN) {
		if !once {
			once = true
			r.preserve(PreserveOptions{}, v).wait(t) // answers: nobody is counted
		}
	}
	t.Cleanup(func() { beforeCount = nil })
	writeBlock(t, live, 1, 'n')
	wantEntry(t, first, 1, lookup.Absent)
	wantBlock(t, "the snapshot that had been answered", open(t)(first.Open()), 1, 0)
	wantBlock(t, "the live view", live, 1, 'n')
}

func TestARequestWhoseProcessIsMovedAtItsBeginGoesToTheNewVLUN(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{OnConflict: ConflictAbort})
	once := false
	beforeCount = func(k *VLUN) {
		if !once {
			once = true
			s.engine.giveUp([]*VLUN{s.first})
			s.command.wait(t)
		}
	}
	t.Cleanup(func() { beforeCount = nil })
	writeBlock(t, s.old, 2, 'p')
	wantEntry(t, s.first, 2, lookup.Absent)
	s.wantStored(s.second, 2, 'p')
}

func TestARequestWhoseProcessEndsAtItsBeginIsRefused(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	beforeCount = func(*VLUN) { beforeCount = nil; s.end() }
	if _, err := s.old.WriteAt(block('p'), 0); err == nil {
		t.Error("a request of an ended process wrote to a snapshot that had been answered")
	}
	wantEntry(t, s.first, 0, lookup.Absent)
}

func TestAProcessThatOneOfItsVolumesRefusesIsWaitedForByNone(t *testing.T) {
	r := newRig(t)
	v, frozen := r.volume("v"), r.volume("frozen")
	if err := frozen.Freeze(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.Begin("p", []*Volume{v, frozen}); !errors.Is(err, ErrFrozen) {
		t.Errorf("a process over a frozen volume: %v", err)
	}
	if result := r.preserve(PreserveOptions{Wait: time.Millisecond}, v).wait(t); result.Waited != 0 {
		t.Errorf("the preserve of the other volume waited for %d", result.Waited)
	}
	if err := v.Freeze(); err != nil {
		t.Errorf("the other volume is in use: %v", err)
	}
}

// R1 asks for the list of images to be read after the lock is held: between its
// begin and its lock, a cut may come, and a write through the new image.
func TestAWriteThatACutOvertakesBeforeItsLockDeletesTheEntryInTheNewTable(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	live := open(t)(v.Open())
	var command *outcome
	beforeLock = func(*VLUN) {
		beforeLock = nil
		command = r.preserve(PreserveOptions{}, v)
		writeBlock(t, open(t)(v.Open()), 1, 'n')
	}
	t.Cleanup(func() { beforeLock = nil })
	writeBlock(t, live, 1, 'a') // took the lock last
	wantEntry(t, v.tip(), 1, lookup.Absent)
	wantBlock(t, "the live view", live, 1, 'a')
	wantBlock(t, "the snapshot", open(t)(command.wait(t).VLUNs[0].Open()), 1, 'a')
}

// A request that has found the epoch unchanged is bound; so it must be counted by
// then, or a drain that looks now answers before its write.
func TestARequestIsCountedBeforeItLooksAtTheEpochAgain(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	live := open(t)(v.Open())
	var command *outcome
	afterCheck = func(k *VLUN) {
		afterCheck = nil
		command = r.preserve(PreserveOptions{}, v)
		if n := k.requests(); n != 1 {
			t.Errorf("a request that is bound to the cut VLUN is counted there %d times, want once: the drain does not wait for it", n)
		}
	}
	t.Cleanup(func() { afterCheck = nil })
	writeBlock(t, live, 1, 'a')
	wantBlock(t, "the snapshot", open(t)(command.wait(t).VLUNs[0].Open()), 1, 'a')
}

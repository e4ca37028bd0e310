package volume

import (
	"testing"

	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/lookup"
)

// again is a volume with the chain of another, as one that a directory is opened with:
// its index is blank.
func (r *rig) again(v *Volume) *Volume {
	r.t.Helper()
	c := Config{Name: v.Name(), Scope: v.Scope(), Log: new(MemoryLog)}
	for _, k := range v.VLUNs() {
		c.Chain = append(c.Chain, Link{ID: k.ImageID(), Image: k.Image(), Table: k.Table(), SizeBytes: k.SizeBytes(), State: Sealed})
	}
	again, err := r.engine.AddVolume(c)
	if err != nil {
		r.t.Fatal(err)
	}
	return again
}

func TestABlankIndexReadsTheNewestImageAndLearnsIt(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	w := open(t)(v.Open())
	writeBlock(t, w, 1, 'a')
	writeBlock(t, w, 2, 'a')
	r.preserve(PreserveOptions{}, v).wait(t)
	writeBlock(t, w, 2, 'b')
	again := r.again(v)
	w = open(t)(again.Open())
	var held blocklock.Held
	end := make(chan struct{})
	defer close(end)
	read := func(what string) {
		t.Helper()
		wantBlock(t, what, w, 1, 'a')
		wantBlock(t, what, w, 2, 'b')
		wantBlock(t, what, w, 3, 0)
	}
	read("before the index knows")
	writeBlock(t, w, 1, 'c')
	wantBlock(t, "a block that was written since", w, 1, 'c')
	writeBlock(t, w, 1, 'a')
	go again.Tend(end)
	await(t, "the leaf", func() bool {
		read("while the index learns")
		again.locks.Lock(&held, blocklock.Range{First: 3, Count: 1}, blocklock.Shared)
		defer again.locks.Unlock(&held)
		return again.index.Get(3) == 0
	})
	read("when the index knows")
	if err := again.CheckIndex(); err != nil {
		t.Error(err)
	}
}

// That the index does not say who holds a block is no conflict.
func TestWhatABlankIndexDoesNotKnowIsNoConflict(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	writeBlock(t, open(t)(v.Open()), 1, 'a')
	again := r.again(v)
	p := r.begin("p", again)
	old := open(t)(p.Open(again))
	command := r.preserve(PreserveOptions{OnConflict: ConflictAbort}, again)
	live := open(t)(again.Open())
	writeBlock(t, live, 2, 'n')
	wantBlock(t, "the old process", old, 1, 'a')
	wantBlock(t, "the old process, where nobody wrote", old, 5, 0)
	writeBlock(t, old, 1, 'b')
	if command.answered() {
		t.Error("the preserve was given up")
	}
	p.End(false)
	if k := command.wait(t).VLUNs[0]; k.Conflicts() != 0 {
		t.Errorf("%d conflicts", k.Conflicts())
	}
	wantBlock(t, "the live volume", live, 1, 'b')
}

func TestAConflictIsFoundThoughTheIndexIsBlank(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	w := open(t)(v.Open())
	writeBlock(t, w, 1, 'a')
	p := r.begin("p", v)
	old := open(t)(p.Open(v))
	r.preserve(PreserveOptions{OnTimeout: TimeoutKeep}, v)
	writeBlock(t, open(t)(v.Open()), 1, 'n')
	v.index = lookup.NewBlankIndex() // nobody reads or writes now
	wantBlock(t, "the old process", old, 1, 'a')
	if n := v.VLUNs()[0].Conflicts(); n != 1 {
		t.Errorf("%d conflicts, want 1", n)
	}
	p.End(false)
}

package historytest

import (
	"strings"
	"testing"
)

// A checker that can't fail proves nothing. Here is a history for each promise
// that breaks it and nothing else, and one beside it that is allowed.

// story is a history that a test writes down: volumes of one block.
type story struct{ History }

func newStory() *story { return &story{History{Volumes: 2, Sectors: blockSectors}} }

func (s *story) op(o Op, call, ret Time) *Op {
	o.Call, o.Return, o.Stamp = call, ret, Stamp(len(s.Ops)+1)
	if o.Count == 0 {
		o.Count = blockSectors
	}
	s.Ops = append(s.Ops, &o)
	return &o
}

func (s *story) write(vol int, call, ret Time) *Op {
	return s.op(Op{Kind: Write, Volume: vol}, call, ret)
}

// reads enters a read that sees the same write in all its sectors; nil is zeros.
func (s *story) reads(o Op, from *Op, call, ret Time) *Op {
	read := s.op(o, call, ret)
	read.Got = full(from)[:read.Count]
	return read
}

func full(from *Op) []Stamp {
	got := make([]Stamp, blockSectors)
	for i := range got {
		if from != nil {
			got[i] = from.Stamp
		}
	}
	return got
}

// snapshot enters a complete preserve whose snapshots hold one write each, and
// reads each of them.
func (s *story) snapshot(call, ret Time, holds ...*Op) *Preserve {
	p := &Preserve{
		Span: Span{call, ret}, Name: "s", Outcome: Complete, CutBy: ret, Exact: ret,
		Final: map[int][]Stamp{}, Conflicts: map[int]uint64{},
	}
	for vol, from := range holds {
		p.Volumes = append(p.Volumes, vol)
		p.Final[vol] = full(from)
	}
	s.Preserves = append(s.Preserves, p)
	for vol, from := range holds {
		s.reads(Op{Volume: vol, View: p}, from, ret+1, ret+2)
	}
	return p
}

func (s *story) want(t *testing.T, fault string) {
	t.Helper()
	err := s.Check()
	switch {
	case fault == "" && err != nil:
		t.Errorf("refused, and is allowed: %v", err)
	case fault != "" && err == nil:
		t.Errorf("allowed, want that it is refused: %s", fault)
	case fault != "" && !strings.Contains(err.Error(), fault):
		t.Errorf("refused for another reason, want %q: %v", fault, err)
	}
}

func TestAReadOfAnOldValueIsRefused(t *testing.T) {
	s := newStory()
	a := s.write(0, 10, 20)
	s.write(0, 30, 40)
	s.reads(Op{}, a, 35, 50) // overlaps: the old value is fine
	s.want(t, "")
	s.reads(Op{}, a, 60, 70)
	s.want(t, "no linearizable register")
}

func TestValuesThatGoBackAreRefused(t *testing.T) {
	s := newStory()
	a, b := s.write(0, 10, 100), s.write(0, 10, 100)
	s.reads(Op{}, a, 20, 30)
	s.reads(Op{}, b, 40, 50)
	s.want(t, "")
	s.reads(Op{}, a, 60, 70)
	s.want(t, "no linearizable register")
}

func TestARequestWithoutAnAnswerMayTakeEffectLateOrNever(t *testing.T) {
	s := newStory()
	a, b := s.write(0, 10, never), s.write(0, 30, 40)
	s.reads(Op{}, b, 50, 60)
	s.want(t, "")
	s.reads(Op{}, a, 70, 80)
	s.want(t, "")
	s.reads(Op{}, b, 90, 100) // but not more than once
	s.want(t, "no linearizable register")
}

func TestBytesThatNobodyWroteThereAreRefused(t *testing.T) {
	s := newStory()
	elsewhere := s.write(1, 10, 20)
	s.reads(Op{}, elsewhere, 30, 40)
	s.want(t, "holds what nobody wrote there")

	s = newStory()
	s.write(0, 10, 20)
	s.reads(Op{}, nil, 12, 18).Got[3] = torn
	s.want(t, "is torn")
}

func TestABlockThatIsReadHalfOldAndHalfNewIsRefused(t *testing.T) {
	s := newStory()
	a := s.write(0, 10, 20)
	b := s.write(0, 30, 60)
	half := s.reads(Op{}, a, 40, 50)
	half.Got[0] = b.Stamp // each sector for itself would do
	s.want(t, "no order of their operations")
}

func TestASnapshotWithoutAWriteThatCameBeforeOneThatItHasIsRefused(t *testing.T) {
	s := newStory()
	a := s.write(0, 10, 20) // acknowledged
	b := s.write(1, 30, 40) // and then begun
	s.snapshot(5, 50, a, b)
	s.want(t, "")

	s = newStory()
	s.write(0, 10, 20)
	b = s.write(1, 30, 40)
	s.snapshot(5, 50, nil, b)
	s.want(t, "reads zeros, and should show")

	s = newStory()
	old := s.write(0, 1, 2)
	s.write(0, 10, 20)
	b = s.write(1, 30, 40)
	s.snapshot(5, 50, old, b)
	s.want(t, "is no cut")

	s = newStory()
	old = s.write(0, 1, 2)
	s.write(0, 10, 35) // not acknowledged yet: may be out
	b = s.write(1, 30, 40)
	s.snapshot(5, 50, old, b)
	s.want(t, "")
}

func TestASnapshotOfWhatCameAfterItsCutOrWithoutWhatCameBeforeItsCommandIsRefused(t *testing.T) {
	s := newStory()
	s.snapshot(5, 9, s.write(0, 10, 20))
	s.want(t, "is no cut")

	s = newStory()
	s.write(0, 1, 2)
	s.snapshot(5, 9, nil, nil)
	s.want(t, "reads zeros, and should show")
}

func TestAWriteThatATrimMayHaveTakenAwayNeedNotShow(t *testing.T) {
	s := newStory()
	s.write(0, 1, 2)
	s.op(Op{Kind: Zero}, 3, 20)
	s.snapshot(5, 9, nil, nil)
	s.want(t, "")

	s = newStory()
	s.write(0, 1, 2)
	s.op(Op{Kind: Zero}, 10, 20)
	s.snapshot(5, 9, nil, nil) // the trim began after the cut
	s.want(t, "reads zeros, and should show")

	s = newStory()
	s.op(Op{Kind: Zero}, 1, 2)
	s.write(0, 3, 4)
	s.snapshot(5, 9, nil, nil) // the trim came first
	s.want(t, "reads zeros, and should show")
}

func TestAProcessThatASnapshotTearsIsRefused(t *testing.T) {
	build := func(second Op) *story {
		s := newStory()
		p := &Process{Token: "P", Span: Span{1, 2}}
		a := s.op(Op{Kind: Write, Process: p}, 3, 4)
		second.Process, second.Kind, second.Volume = p, Write, 1
		s.op(second, 20, 30) // long after the cut, which waits for it
		s.snapshot(5, 40, a, nil).CutBy = 6
		return s
	}
	build(Op{}).want(t, "reads zeros, and should show")

	s := build(Op{})
	s.Preserves[0].Final[1] = full(s.Ops[1])
	s.Ops[3].Got = full(s.Ops[1])
	s.want(t, "")

	s = newStory()
	p := &Process{Token: "Q", Span: Span{7, 8}} // begun after the cut
	a := s.op(Op{Kind: Write, Process: p}, 9, 10)
	s.snapshot(5, 40, a, nil).CutBy = 6
	s.want(t, "is no cut")

	s = newStory()
	p = &Process{Token: "R", Span: Span{1, 2}}
	a = s.op(Op{Kind: Write, Process: p}, 3, 4)
	s.op(Op{Kind: Write, Process: p}, 20, 30)
	s.snapshot(5, 40, a, nil).CutBy = 6
	s.want(t, "tears a process")
}

func TestAProcessCrossesTheCutOfADegradedPreserveBetweenTwoRequests(t *testing.T) {
	s := newStory()
	p := &Process{Token: "P", Span: Span{1, 2}}
	a := s.op(Op{Kind: Write, Process: p}, 3, 4)
	s.op(Op{Kind: Write, Process: p, Volume: 1}, 20, 30)
	preserve := s.snapshot(5, 15, a, nil)
	preserve.CutBy, preserve.Crossing = 14, DidCross
	s.want(t, "")
	preserve.Final[1] = full(s.Ops[1]) // and not before
	s.Ops[3].Got = full(s.Ops[1])
	s.want(t, "is no cut")
}

func TestASnapshotThatChangesIsRefused(t *testing.T) {
	s := newStory()
	a, b := s.write(0, 1, 2), s.write(0, 3, 30)
	p := s.snapshot(5, 9, a, nil)
	s.want(t, "")
	s.reads(Op{View: p}, b, 40, 50)
	s.want(t, "changed after it was exact")
}

// Two VLUNs of one volume show an old process's write at the same instant, and
// the old one never shows a new process's.
func TestAViewThatShowsAnotherVLUNsBytesIsRefused(t *testing.T) {
	build := func() (*story, *Op, *Op, *Process) {
		s := newStory()
		old, young := &Process{Token: "P", Span: Span{1, 2}}, &Process{Token: "Q", Span: Span{12, 13}}
		a := s.op(Op{Kind: Write, Process: old}, 3, 4)
		q := s.op(Op{Kind: Write, Process: young}, 14, 16)
		preserve := s.snapshot(5, 100, a)
		preserve.CutBy = 10
		return s, a, q, old
	}
	s, a, q, old := build()
	s.reads(Op{Process: old}, a, 20, 30)
	s.reads(Op{}, q, 20, 30)
	s.Preserves[0].Conflicts[0] = 1
	s.want(t, "")

	s, _, q, old = build()
	s.reads(Op{Process: old}, q, 20, 30) // through the older VLUN
	s.Preserves[0].Conflicts[0] = 1
	s.want(t, "no order of their operations")

	s, _, _, old = build()
	late := s.op(Op{Kind: Write, Process: old, First: 2, Count: 1}, 40, 50)
	s.Preserves[0].Final[0][2] = late.Stamp
	s.Ops[2].Got = s.Preserves[0].Final[0]
	s.Preserves[0].Conflicts[0] = 1
	s.want(t, "")
	s.reads(Op{First: 2, Count: 1}, s.Ops[1], 60, 70) // the live view lost it
	s.want(t, "no linearizable register")
}

// A preserve that is given up, or degraded, leaves a VLUN without a name. A
// request that was on its way through it sees what its processes write late, and
// not what came before them through a younger VLUN.
func TestAReadThroughAVLUNWithoutANameMayMissWhatCameAfterItsCut(t *testing.T) {
	build := func(outcome Outcome) *story {
		s := newStory()
		first := s.write(0, 1, 2)
		s.reads(Op{}, first, 10, 100) // bound to the VLUN until 20
		s.op(Op{Kind: Zero, Count: 1}, 10, 100)
		young := s.op(Op{Kind: Write, Count: 2}, 50, 60) // came before the zeros, which both see
		s.Ops[1].Got[0] = 0
		after := s.reads(Op{}, first, 110, 120)
		after.Got[0], after.Got[1] = 0, young.Stamp
		s.Preserves = append(s.Preserves, &Preserve{Name: "p", Volumes: []int{0}, Outcome: outcome, Span: Span{5, 105}, CutBy: 20})
		return s
	}
	build(Aborted).want(t, "")
	s := build(Aborted)
	s.Preserves[0].Call, s.Ops[1].Call = 1, 30 // begun after the cut
	s.want(t, "no order of their operations")
	s = build(Aborted)
	s.Preserves[0].Volumes[0] = 1 // of another volume
	s.want(t, "no order of their operations")
	s = build(Nothing)
	s.want(t, "no order of their operations")

	s = build(Complete)
	degraded := s.Preserves[0]
	degraded.Crossing, degraded.CutBy, degraded.Exact = DidCross, 104, 105
	degraded.Final = map[int][]Stamp{0: s.Ops[4].Got}
	s.want(t, "")
}

// But it sees what came before it through that VLUN or an older one, and of what
// came through a younger one nothing, or, if it is bound there, all.
func TestAReadThroughAVLUNWithoutANameOfWhatNoVLUNHeldIsRefused(t *testing.T) {
	old, young := &Process{Token: "P", Span: Span{1, 2}}, &Process{Token: "Q", Span: Span{22, 23}}
	for _, c := range []struct {
		name      string
		read      Op
		call, ret Time
		got       string // what each half of the block shows, by the names of the writes
		fault     string
	}{
		{"of a request that was bound before the cut", Op{}, 10, 100, "aa", ""},
		{"of one that was bound after it", Op{}, 10, 100, "bb", ""},
		{"of half of either", Op{}, 10, 100, "ab", "no order of their operations"},
		{"of a process begun before the cut", Op{Process: old}, 70, 80, "aa", ""},
		{"of one that has moved on", Op{Process: old}, 70, 80, "bb", ""},
		{"of less than was there before the command", Op{Process: old}, 70, 80, "00", "no order of their operations"},
		{"of half of either in a process", Op{Process: old}, 70, 80, "ab", "no order of their operations"},
		{"of a process when all have moved on", Op{Process: old}, 110, 120, "aa", "no order of their operations"},
		{"of a process begun after the cut", Op{Process: young}, 70, 80, "aa", "no order of their operations"},
		{"of the view itself", Op{View: &Preserve{}}, 70, 80, "aa", ""},
		{"of the view itself after the answer", Op{View: &Preserve{}}, 110, 120, "aa", ""},
		{"of what the view can't hold", Op{View: &Preserve{}}, 70, 80, "bb", "no order of their operations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory()
			a, b := s.write(0, 3, 4), s.write(0, 50, 60)
			p := &Preserve{Name: "p", Volumes: []int{0}, Outcome: Aborted, Span: Span{5, 105}, CutBy: 20}
			s.Preserves = append(s.Preserves, p)
			if c.read.View != nil {
				c.read.View, c.read.Early = p, true
			}
			read := s.reads(c.read, nil, c.call, c.ret)
			for i := range read.Got {
				read.Got[i] = map[byte]Stamp{'a': a.Stamp, 'b': b.Stamp, '0': 0}[c.got[2*i/blockSectors]]
			}
			s.want(t, c.fault)
		})
	}
}

// An older preserve may keep a process from moving on.
func TestAReadThroughAnOlderVLUNThanOneWithoutANameIsHeldToThatVLUN(t *testing.T) {
	s := newStory()
	old := &Process{Token: "P", Span: Span{1, 2}}
	a := s.op(Op{Kind: Write, Process: old}, 3, 4)
	kept := s.snapshot(5, 9, a)
	kept.Outcome, kept.Exact = Kept, 500
	s.Preserves = append(s.Preserves, &Preserve{Name: "p", Volumes: []int{0}, Outcome: Aborted, Span: Span{20, 105}, CutBy: 30})
	s.write(0, 50, 60)
	kept.Conflicts[0] = 1
	s.reads(Op{Process: old}, a, 110, 120)
	s.want(t, "")
	kept.Conflicts[0] = 2
	s.reads(Op{Process: old}, nil, 130, 140)
	s.want(t, "no order of their operations")
}

// When the first cut of a degraded preserve was made is not known, but it was made
// at one instant, before the second and maybe on either side of another preserve's.
func TestTheFirstCutOfADegradedPreserveIsHeldToSomeInstant(t *testing.T) {
	for _, c := range []struct {
		name, got, fault string // what the halves of the block show
	}{
		{"before the other", "00", ""},
		{"within the first write", "a0", ""},
		{"between the writes", "aa", ""},
		{"after the other", "bb", ""},
		{"after the other without what that has", "b0", "no order of their operations"},
		{"in the middle of the second write", "ba", "no order of their operations"},
		{"after the second", "cc", "no order of their operations"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory()
			half := s.op(Op{Kind: Write, Count: blockSectors / 2}, 10, 12)
			rest := s.op(Op{Kind: Write, First: blockSectors / 2, Count: blockSectors / 2}, 14, 16)
			stamps := map[byte][2]Stamp{'0': {}, 'a': {half.Stamp, rest.Stamp}}
			both := func(first, second byte) []Stamp {
				got := make([]Stamp, blockSectors)
				for i := range got {
					got[i] = stamps[[]byte{first, second}[2*i/blockSectors]][2*i/blockSectors]
				}
				return got
			}
			snapshot := func(call, ret Time, holds []Stamp) *Preserve {
				p := s.snapshot(call, ret, nil)
				p.Final[0], s.Ops[len(s.Ops)-1].Got = holds, holds
				return p
			}
			snapshot(30, 40, both('a', 'a'))
			b := s.write(0, 50, 60)
			stamps['b'] = [2]Stamp{b.Stamp, b.Stamp}
			degraded := snapshot(5, 105, both('b', 'b'))
			degraded.CutBy, degraded.Crossing = 100, DidCross
			after := s.write(0, 110, 120)
			stamps['c'] = [2]Stamp{after.Stamp, after.Stamp}
			s.reads(Op{View: degraded, Early: true}, nil, 102, 150).Got = both(c.got[0], c.got[1])
			s.want(t, c.fault)
		})
	}
}

func TestConflictsThatAreNotCountedOrHadNoCauseAreRefused(t *testing.T) {
	build := func(counted uint64) *story {
		s := newStory()
		p := &Process{Token: "P", Span: Span{1, 2}}
		s.write(0, 20, 30)
		s.reads(Op{Process: p}, nil, 40, 50)
		preserve := s.snapshot(5, 60, nil, nil)
		preserve.CutBy, preserve.Conflicts[0] = 6, counted
		return s
	}
	build(1).want(t, "")
	build(0).want(t, "there were at least 1")
	build(2).want(t, "there were at most 1")

	s := build(1)
	s.Preserves[0].ConflictsAbort = true
	s.want(t, "was to be given up at a conflict")

	s = build(0)
	s.Ops[0].Call, s.Ops[0].Return = 45, 55 // may have come after the read
	s.want(t, "")
}

package volume

import (
	"errors"
	"testing"

	"github.com/tidemark/tidemark/lookup"
)

// The claims of the mechanism, one test for each, to be read as its
// specification. "First" is the VLUN that was live before the command and its
// image, "second" the one that the command made.

// preserved is a volume with an old process P, begun before the command, and a
// new one Q, begun after it, while the preserve waits for P.
type preserved struct {
	*rig
	volume        *Volume
	first, second *VLUN
	old, new      *View // through P and Q
	p, q          *Process
	command       *outcome
}

// preserveWithOldProcess sets the scene. Block 1 was written before P began.
func preserveWithOldProcess(t *testing.T, o PreserveOptions) *preserved {
	r := newRig(t)
	v := r.volume("v")
	writeBlock(t, open(t)(v.Open()), 1, 'a')
	s := &preserved{rig: r, volume: v, p: r.begin("P", v)}
	s.old = open(t)(s.p.Open(v))
	s.command = r.preserve(o, v)
	s.first, s.second = v.VLUNs()[0], v.VLUNs()[1]
	s.q = r.begin("Q", v)
	s.new = open(t)(s.q.Open(v))
	return s
}

// inTurn stops a first request in an image, after its look-up, and checks that a
// second one waits for the lock until the first has gone on.
func (s *preserved) inTurn(in *VLUN, first, second func()) {
	s.t.Helper()
	gate := s.hold(in)
	firstDone, secondDone := make(chan struct{}), make(chan struct{})
	go func() { defer close(firstDone); first() }()
	<-gate.reached
	go func() { defer close(secondDone); second() }()
	await(s.t, "the second request to wait for the lock", func() bool {
		select {
		case <-secondDone:
			s.t.Error("the second request was served while the first had the lock")
			return true
		case what := <-gate.reached:
			s.t.Errorf("another %s reached the image while the first had the lock", what)
			return true
		default:
			return s.volume.locks.Waiting() == 1
		}
	})
	close(gate.open)
	<-firstDone
	<-secondDone
}

// end ends P, and checks that the command then answers.
func (s *preserved) end() *Result {
	s.t.Helper()
	s.p.End(false)
	return s.command.wait(s.t)
}

func TestClaimAProcessBegunBeforeTheCommandStillWritesToTheFirstImage(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.old, 2, 'p')
	s.wantStored(s.first, 2, 'p')
	s.wantStored(s.second, 2, 0)
	wantEntry(t, s.first, 2, lookup.Data)
	wantEntry(t, s.second, 2, lookup.Absent)
	if s.command.answered() {
		t.Error("the command answered while the old process ran")
	}
	s.end()
	wantBlock(t, "the snapshot", open(t)(s.first.Open()), 2, 'p')
}

func TestClaimAProcessBegunAfterTheCommandWritesToTheSecondImage(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 2, 'q')
	s.wantStored(s.first, 2, 0)
	s.wantStored(s.second, 2, 'q')
	s.end()
	wantBlock(t, "the snapshot", open(t)(s.first.Open()), 2, 0)
	wantBlock(t, "the live view", open(t)(s.volume.Open()), 2, 'q')
}

func TestClaimAConnectionOpenedAfterTheCommandUnderAnOlderTokenWritesToTheFirstVolume(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	late := open(t)(s.p.Open(s.volume))
	writeBlock(t, s.new, 3, 'q') // an entry in the second table, for it to delete
	writeBlock(t, late, 3, 'p')
	s.wantStored(s.first, 3, 'p')
	wantEntry(t, s.second, 3, lookup.Absent)
	wantBlock(t, "an earlier connection of the process", s.old, 3, 'p')
	if views := open(t)(s.volume.Open()); true {
		wantBlock(t, "the second volume, opened beside it", views, 3, 'p')
	}
	s.end()
}

func TestClaimALaterProcessCanReadWhatAnOlderOneWroteThroughTheSecondVolume(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.old, 2, 'p')
	wantBlock(t, "the second volume", s.new, 2, 'p')
	wantBlock(t, "the second volume", s.new, 1, 'a')
	s.end()
}

func TestClaimALookupTableIsMadeForTheSecondImageAtTheCommandNotBefore(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	chainAtPrepare := 0
	r.memory.OnPrepare = func(Plan) error { chainAtPrepare = len(v.VLUNs()); return nil }
	if n := len(v.VLUNs()); n != 1 {
		t.Fatalf("%d VLUNs before the command, want 1", n)
	}
	r.preserve(PreserveOptions{}, v).wait(t)
	if n := len(v.VLUNs()); chainAtPrepare != 1 || n != 2 {
		t.Fatalf("%d VLUNs while the command prepares and %d after it, want 1 and 2", chainAtPrepare, n)
	}
	second := v.VLUNs()[1]
	if data, zero := second.Table().Counts(); data+zero != 0 {
		t.Errorf("the second table has %d entries at its start, want none", data+zero)
	}
	if second.Table() == v.VLUNs()[0].Table() {
		t.Error("the two images share a table")
	}
}

func TestClaimAWriteToTheFirstVolumeDeletesTheEntryInTheSecondTableAndStoresInTheFirstImage(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 1, 'q')
	wantEntry(t, s.second, 1, lookup.Data)
	writeBlock(t, s.old, 1, 'p')
	wantEntry(t, s.second, 1, lookup.Absent)
	s.wantStored(s.first, 1, 'p')
	s.wantStored(s.second, 1, 'q') // its bytes stay, nobody is led to them
	wantBlock(t, "the live view, where the newest write wins", s.new, 1, 'p')
	if n := s.first.Conflicts(); n != 1 {
		t.Errorf("%d conflicts counted, want 1", n)
	}
	s.end()
}

func TestClaimAWriteToTheFirstVolumeWhereTheSecondHasNoEntryStoresInTheFirstImage(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.old, 1, 'p')
	wantEntry(t, s.second, 1, lookup.Absent)
	s.wantStored(s.first, 1, 'p')
	wantBlock(t, "the live view", s.new, 1, 'p')
	if n := s.first.Conflicts(); n != 0 {
		t.Errorf("%d conflicts counted, want none", n)
	}
	s.end()
}

func TestClaimAWriteToTheSecondVolumeCreatesTheEntryOnlyIfItIsMissing(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	before := s.volume.log.End()
	writeBlock(t, s.new, 4, 'q')
	wantEntry(t, s.second, 4, lookup.Data)
	created := s.volume.log.End()
	if created == before {
		t.Error("the first write to a block made no table change")
	}
	writeBlock(t, s.new, 4, 'r')
	if s.volume.log.End() != created {
		t.Error("the second write to the block changed a table again")
	}
	s.wantStored(s.second, 4, 'r')
	s.end()
}

func TestClaimAReadOfTheSecondVolumeTakesTheFirstOrTheSecondImageByTheTable(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 2, 'q')
	wantBlock(t, "a block that the second table has", s.new, 2, 'q')
	wantBlock(t, "a block that it lacks", s.new, 1, 'a')
	wantBlock(t, "a block that no table has", s.new, 5, 0)
	if err := s.new.Trim(lookup.BlockSize, lookup.BlockSize); err != nil {
		t.Fatal(err)
	}
	wantEntry(t, s.second, 1, lookup.Zero)
	wantBlock(t, "a trimmed block, which must not show older data", s.new, 1, 0)
	wantBlock(t, "the first volume, which never sees a newer image", s.old, 1, 'a')
	s.end()
}

func TestClaimPartOfABlockKeepsTheOtherBytesInEveryVolume(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 1, 'q')
	if _, err := s.old.WriteAt([]byte("pp"), lookup.BlockSize+100); err != nil {
		t.Fatal(err)
	}
	wantEntry(t, s.second, 1, lookup.Data) // kept: to delete it would lose Q's data
	for _, c := range []struct {
		what   string
		view   *View
		around byte
	}{{"the first volume", s.old, 'a'}, {"the second volume", s.new, 'q'}} {
		got := make([]byte, lookup.BlockSize)
		if _, err := c.view.ReadAt(got, lookup.BlockSize); err != nil {
			t.Fatal(err)
		}
		want := block(c.around)
		copy(want[100:], "pp")
		if string(got) != string(want) {
			t.Errorf("%s reads %q around the part, want %q", c.what, got[98:104], want[98:104])
		}
	}
	// A zero entry becomes data: zeros around the bytes.
	if err := s.new.Trim(0, lookup.BlockSize); err != nil {
		t.Fatal(err)
	}
	if _, err := s.old.WriteAt([]byte("p"), 0); err != nil {
		t.Fatal(err)
	}
	wantEntry(t, s.second, 0, lookup.Data)
	got := make([]byte, 2)
	if _, err := s.new.ReadAt(got, 0); err != nil || got[0] != 'p' || got[1] != 0 {
		t.Errorf("the second volume reads %q (%v) where a part met a zero entry, want p and a zero", got, err)
	}
	s.end()
}

func TestClaimPartOfABlockIsWrittenToEveryNewerImageThatHasIt(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 2, 'q')
	younger := s.preserve(PreserveOptions{}, s.volume)
	writeBlock(t, open(t)(s.volume.Open()), 2, 'n')
	if _, err := s.old.WriteAt([]byte("p"), 2*lookup.BlockSize); err != nil {
		t.Fatal(err)
	}
	s.q.End(false)
	s.end()
	younger.wait(t)
	for i, want := range []string{"p\x00", "pq", "pn"} {
		got := make([]byte, 2)
		if _, err := open(t)(s.volume.VLUNs()[i].Open()).ReadAt(got, 2*lookup.BlockSize); err != nil || string(got) != want {
			t.Errorf("VLUN %d reads %q (%v), want %q", i+1, got, err, want)
		}
	}
}

// Each of the four transfers holds the block's lock from look-up to transfer.
// The interleaving: the first request has looked up and is stopped in its
// image; the second, which would change what the first has looked up, must
// wait. Without the lock it would go through, and the checks at the end fail.
func TestClaimTheLockIsHeldFromLookUpToTransfer(t *testing.T) {
	type request func(*testing.T, *preserved)
	oldWrites := func(t *testing.T, s *preserved) { writeBlock(t, s.old, 2, 'p') }
	newWrites := func(t *testing.T, s *preserved) { writeBlock(t, s.new, 2, 'q') }
	for _, c := range []struct {
		name           string
		stopped        request
		in             func(*preserved) *VLUN
		meanwhile      request
		live, snapshot byte
	}{
		{"a write through the first, then one through the second", oldWrites, func(s *preserved) *VLUN { return s.first }, newWrites, 'q', 'p'},
		{"a write through the second, then one through the first", newWrites, func(s *preserved) *VLUN { return s.second }, oldWrites, 'p', 'p'},
		{"a read of the second that goes to the first image, then a write through the first",
			func(t *testing.T, s *preserved) { wantBlock(t, "the stopped read", s.new, 2, 'o') },
			func(s *preserved) *VLUN { return s.first }, oldWrites, 'p', 'p'},
		{"a read of the second that goes to the second image, then a write through the second",
			func(t *testing.T, s *preserved) {
				s.wantStored(s.second, 2, 'n')
				wantBlock(t, "the stopped read", s.new, 2, 'n')
			},
			func(s *preserved) *VLUN { return s.second }, newWrites, 'q', 'o'},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := preserveWithOldProcess(t, PreserveOptions{})
			writeBlock(t, s.old, 2, 'o')
			if c.in(s) == s.second && c.snapshot == 'o' {
				writeBlock(t, s.new, 2, 'n')
			}
			s.inTurn(c.in(s), func() { c.stopped(t, s) }, func() { c.meanwhile(t, s) })
			wantBlock(t, "the live view", s.new, 2, c.live)
			s.end()
			wantBlock(t, "the snapshot", open(t)(s.first.Open()), 2, c.snapshot)
		})
	}
}

func TestClaimTheLockBelongsToNeitherImage(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	table := s.volume.locks
	gate := s.hold(s.first)
	done := make(chan struct{})
	go func() { defer close(done); writeBlock(t, s.old, 2, 'p') }() // locks block 2 through the first
	<-gate.reached
	if _, err := s.new.TryWriteAt(block('q'), 2*lookup.BlockSize); !errors.Is(err, ErrWouldBlock) {
		t.Errorf("a write to the block through the second: %v, want that it would wait: the lock is the volume's, not the image's", err)
	}
	if _, err := s.new.TryWriteAt(block('q'), 3*lookup.BlockSize); err != nil {
		t.Errorf("a write to the next block: %v, want none: the lock is the block's, not the image's", err)
	}
	close(gate.open)
	<-done
	s.end()
	s.q.End(false)
	s.preserve(PreserveOptions{}, s.volume).wait(t)
	if s.volume.locks != table {
		t.Error("the lock table changed with the images")
	}
}

func TestClaimVolumesAreVLUNsThatAClientCanAddress(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 1, 'q')
	first, second := open(t)(s.first.Open()), open(t)(s.volume.Open())
	wantBlock(t, "the first VLUN, while it drains", first, 1, 'a')
	wantBlock(t, "the second VLUN", second, 1, 'q')
	if !first.ReadOnly() || second.ReadOnly() {
		t.Error("want the preserved VLUN to be read-only and the live one not")
	}
	if _, err := first.WriteAt([]byte("x"), 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a write to the preserved VLUN: %v, want %v", err, ErrReadOnly)
	}
	s.end()
	wantBlock(t, "the first VLUN, drained", first, 1, 'a')
}

func TestClaimTheSnapshotHoldsEachOldProcessWholeAndNoneOfANewOne(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	for b := lookup.BlockNum(0); b < 20; b++ { // interleaved, on the same blocks and on others
		writeBlock(t, s.old, 2*b, 'p')
		writeBlock(t, s.new, 2*b, 'q')
		writeBlock(t, s.new, 2*b+1, 'q')
	}
	result := s.end()
	if len(result.VLUNs) != 1 || result.VLUNs[0] != s.first || result.Consistency != ConsistencyProcess {
		t.Errorf("the result is %+v, want the first VLUN with every process whole", result)
	}
	snapshot := open(t)(s.first.Open())
	for b := lookup.BlockNum(0); b < 20; b++ {
		wantBlock(t, "the snapshot", snapshot, 2*b, 'p')
		want := byte(0)
		if 2*b+1 == 1 {
			want = 'a'
		}
		wantBlock(t, "the snapshot", snapshot, 2*b+1, want)
	}
}

func TestClaimTheCutIsOneInstantForAnyNumberOfVolumes(t *testing.T) {
	r := newRig(t)
	v, w := r.volume("v"), r.volume("w")
	p := r.begin("P", v, w)
	pv, pw := open(t)(p.Open(v)), open(t)(p.Open(w))
	before := r.engine.Epoch()
	command := r.preserve(PreserveOptions{}, v, w)
	if after := r.engine.Epoch(); after != before+1 {
		t.Errorf("the epoch went from %d to %d, want one step for both volumes", before, after)
	}
	writeBlock(t, pv, 1, 'p')
	writeBlock(t, pw, 1, 'p')
	writeBlock(t, open(t)(v.Open()), 2, 'n')
	writeBlock(t, open(t)(w.Open()), 2, 'n')
	p.End(false)
	for _, k := range command.wait(t).VLUNs {
		snapshot := open(t)(k.Open())
		wantBlock(t, "snapshot of "+k.Volume().Name(), snapshot, 1, 'p')
		wantBlock(t, "snapshot of "+k.Volume().Name(), snapshot, 2, 0)
	}
}

func TestClaimARequestThatIsBlockedInItsImageDoesNotHoldTheCut(t *testing.T) {
	r := newRig(t)
	v := r.volume("v")
	live := open(t)(v.Open())
	first := v.VLUNs()[0]
	gate := r.hold(first)
	done := make(chan struct{})
	go func() { defer close(done); writeBlock(t, live, 1, 'a') }()
	<-gate.reached
	command := r.preserve(PreserveOptions{}, v) // returns when the cut is made
	writeBlock(t, live, 2, 'n')                 // goes to the second image, past the stopped one
	wantBlock(t, "the live view", live, 2, 'n')
	if command.answered() {
		t.Error("the command answered before the request that it had to wait for")
	}
	close(gate.open)
	<-done
	snapshot := open(t)(command.wait(t).VLUNs[0].Open())
	wantBlock(t, "the snapshot", snapshot, 1, 'a')
	wantBlock(t, "the snapshot", snapshot, 2, 0)
}

func TestClaimAWriteDeletesTheEntryOfEveryNewerTableThatHasOne(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	writeBlock(t, s.new, 2, 'q')
	younger := s.preserve(PreserveOptions{}, s.volume)
	third := s.volume.VLUNs()[2]
	writeBlock(t, open(t)(s.volume.Open()), 2, 'n')
	writeBlock(t, s.old, 2, 'p')
	wantEntry(t, s.second, 2, lookup.Absent)
	wantEntry(t, third, 2, lookup.Absent)
	s.q.End(false)
	s.end()
	younger.wait(t)
	for _, k := range s.volume.VLUNs() {
		wantBlock(t, "VLUN "+string('0'+rune(k.slot)), open(t)(k.Open()), 2, 'p')
	}
}

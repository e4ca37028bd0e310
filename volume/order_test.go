package volume

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/mem"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
)

// diary notes in which order images and log are used, and fails what it is told to.
type diary struct {
	mu    sync.Mutex
	lines []string
	fail  string
	with  error             // errDisk if nil
	meet  func(line string) // called outside of mu
}

var errDisk = errors.New("disk error")

func (d *diary) note(line string) error {
	if d.meet != nil {
		d.meet(line)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
	if line == d.fail {
		return cmp.Or(d.with, errDisk)
	}
	return nil
}

type diaryImage struct {
	image.Image
	name  string
	diary *diary
}

func (i *diaryImage) WriteAt(p []byte, off int64) (int, error) {
	if err := i.diary.note("write " + i.name); err != nil {
		return 0, err
	}
	return i.Image.WriteAt(p, off)
}

func (i *diaryImage) Sync() error { return i.diary.note("sync " + i.name) }

type diaryLog struct {
	MemoryLog
	diary *diary
	held  map[image.ID]map[lookup.BlockNum]byte // first byte of each block
}

func (l *diaryLog) Append(c []journal.Change) (journal.LSN, error) {
	if err := l.diary.note("append"); err != nil {
		return 0, err
	}
	return l.MemoryLog.Append(c)
}

func (l *diaryLog) Stage(c []journal.Change) (journal.LSN, error) { return l.Append(c) }

func (l *diaryLog) MarkFailed() error { return l.diary.note("failed") }

func (l *diaryLog) Commit(to journal.LSN, on journal.Basis) error {
	line := "commit"
	if len(on.Blocks) > 0 {
		line = fmt.Sprintf("commit with %d blocks", len(on.Blocks))
	}
	if err := l.diary.note(line); err != nil {
		return err
	}
	for _, id := range on.Synced {
		delete(l.held, id)
	}
	for _, b := range on.Blocks {
		if l.held[b.Image] == nil {
			l.held[b.Image] = map[lookup.BlockNum]byte{}
		}
		l.held[b.Image][b.Block] = b.Data[0]
	}
	return l.MemoryLog.Commit(to, on)
}

func (l *diaryLog) Holds(id image.ID) int64 { return int64(len(l.held[id])) * lookup.BlockSize }

// storesAtMost lets flushes sync images where there are more blocks.
func storesAtMost(t *testing.T, n int) {
	few := fewBlocks
	fewBlocks = n
	t.Cleanup(func() { fewBlocks = few })
}

// diaryVolume is a volume with an old process P and a new one Q, over two
// images called "first" and "second", whose uses are noted.
func diaryVolume(t *testing.T) (*preserved, *diary) {
	d := &diary{}
	r := &rig{t: t}
	r.memory = &Memory{NewImage: func(id image.ID) image.Image {
		return &diaryImage{mem.New(), []string{"", "first", "second"}[id], d}
	}}
	r.engine = New(r.memory, 0)
	c := r.memory.Config("v", 64*lookup.BlockSize, ScopeRequest)
	c.Log = &diaryLog{diary: d, held: map[image.ID]map[lookup.BlockNum]byte{}}
	v, err := r.engine.AddVolume(c)
	if err != nil {
		t.Fatal(err)
	}
	s := &preserved{rig: r, volume: v, p: r.begin("P", v)}
	s.old = open(t)(s.p.Open(v))
	s.command = r.preserve(PreserveOptions{}, v)
	s.first, s.second = v.VLUNs()[0], v.VLUNs()[1]
	s.q = r.begin("Q", v)
	s.new = open(t)(s.q.Open(v))
	return s, d
}

func TestDataIsStoredBeforeTheEntryThatLeadsToItAndSyncedBeforeItIsCommitted(t *testing.T) {
	storesAtMost(t, 0)
	s, d := diaryVolume(t)
	writeBlock(t, s.new, 1, 'q')
	writeBlock(t, s.old, 1, 'p') // deletes the entry in the second table
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"write second", "append", "write first", "append", "sync second", "sync first", "commit"}; !slices.Equal(d.lines, want) {
		t.Errorf("the order was %q, want %q", d.lines, want)
	}
	d.lines = nil
	writeBlock(t, s.old, 1, 'o') // in place
	if err := s.old.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"write first", "sync first"}; !slices.Equal(d.lines, want) {
		t.Errorf("a flush with no table change did %q, want %q", d.lines, want)
	}
	s.end()
}

// storing is a volume whose second image has block 1, flushed, in the log.
func storing(t *testing.T) (*preserved, *diary, *diaryLog) {
	s, d := diaryVolume(t)
	writeBlock(t, s.new, 1, 'q')
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	return s, d, s.volume.log.(*diaryLog)
}

func TestAFlushOfLittleHasTheLogStoreItAndSyncsNoImage(t *testing.T) {
	s, d, log := storing(t)
	writeBlock(t, s.old, 1, 'p') // deletes the entry in the second table
	writeBlock(t, s.old, 2, 'p')
	if _, err := s.new.WriteAt([]byte("r"), 3*lookup.BlockSize+5); err != nil { // a part
		t.Fatal(err)
	}
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := []string{
		"write second", "append", "sync first", "commit with 1 blocks", // nobody knew what is fresh in the first
		"write first", "append", "write first", "append", "write second", "append", "commit with 3 blocks",
	}; !slices.Equal(d.lines, want) {
		t.Errorf("the order was %q, want %q", d.lines, want)
	}
	first, second := log.held[s.first.ImageID()], log.held[s.second.ImageID()]
	if len(first) != 2 || first[1] != 'p' || first[2] != 'p' || len(second) != 2 || second[1] != 'q' {
		t.Errorf("the log has %v of the first image and %v of the second", first, second)
	}
	d.lines = nil
	writeBlock(t, s.new, 3, 't') // in place: the log is told at once, since it has an older one
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"write second", "append", "commit with 1 blocks"}; !slices.Equal(d.lines, want) || log.held[s.second.ImageID()][3] != 't' {
		t.Errorf("a flush with no table change did %q, want %q", d.lines, want)
	}
	s.end()
}

func TestAFlushOfMuchTellsTheLogWhatItSynced(t *testing.T) {
	storesAtMost(t, 8)
	s, d, log := storing(t)
	d.lines = nil
	if _, err := s.new.WriteAt(make([]byte, (fewBlocks/2+1)*lookup.BlockSize), lookup.BlockSize); err != nil {
		t.Fatal(err)
	}
	if _, err := s.new.WriteAt(make([]byte, (fewBlocks/2+1)*lookup.BlockSize), 0); err != nil { // most of it again
		t.Fatal(err)
	}
	if s.second.fresh.many.Load() {
		t.Error("blocks that are written twice count twice")
	}
	if _, err := s.new.WriteAt(make([]byte, fewBlocks*lookup.BlockSize), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.new.WriteAt(make([]byte, lookup.BlockSize), int64(fewBlocks)*lookup.BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := len(d.lines); !slices.Equal(d.lines[n-2:], []string{"sync second", "commit"}) || log.Holds(s.second.ImageID()) > 0 {
		t.Errorf("it did %q, and the log has %d bytes", d.lines, log.Holds(s.second.ImageID()))
	}
	s.end()
}

func TestWhatTheLogHasNoRoomForIsSynced(t *testing.T) {
	s, d, log := storing(t)
	writeBlock(t, s.new, 1, 'r')
	writeBlock(t, s.old, 2, 'p')
	d.lines, d.fail = nil, "commit with 2 blocks"
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"commit with 2 blocks", "sync second", "sync first", "commit"}; !slices.Equal(d.lines, want) || log.Holds(s.second.ImageID()) > 0 {
		t.Errorf("it did %q, want %q, and the log has %d bytes", d.lines, want, log.Holds(s.second.ImageID()))
	}
	s.end()
}

func TestWhatAFailedFlushTookIsCoveredByTheNext(t *testing.T) {
	s, d, log := storing(t)
	writeBlock(t, s.new, 1, 'r')
	d.fail, d.with = "sync second", image.ErrNotBegun
	s.second.fresh.addAll()
	if err := s.new.Flush(); !errors.Is(err, image.ErrNotBegun) {
		t.Fatal(err)
	}
	d.lines, d.fail = nil, "commit"
	if err := s.new.Flush(); !errors.Is(err, image.ErrNotBegun) { // synced, but the log has an older block
		t.Fatal(err)
	}
	d.lines, d.fail = nil, ""
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"sync second", "sync first", "commit"}; !slices.Equal(d.lines, want) || log.Holds(s.second.ImageID()) > 0 {
		t.Errorf("it did %q, want %q, and the log has %d bytes", d.lines, want, log.Holds(s.second.ImageID()))
	}
	s.end()
}

// Of what is sealed, and of a volume that has settled, the log has nothing: else a
// power cut would put it over what came later, or it could never be folded.
func TestASealAndASettleLeaveTheLogNoData(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(s *preserved) error
		of   func(s *preserved) *VLUN
	}{
		{"seal", func(s *preserved) error { return s.first.SyncForSeal() }, func(s *preserved) *VLUN { return s.first }},
		{"settle", func(s *preserved) error { return s.volume.Settle() }, func(s *preserved) *VLUN { return s.second }},
	} {
		for _, reaches := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reached %v", c.name, reaches), func(t *testing.T) {
				s, _, log := storing(t)
				block := lookup.BlockNum(2)
				if reaches {
					block = 1
				}
				writeBlock(t, s.old, block, 'p')
				if err := s.old.Flush(); err != nil {
					t.Fatal(err)
				}
				if log.Holds(s.first.ImageID()) == 0 || log.Holds(s.second.ImageID()) == 0 {
					t.Fatalf("the log has %v", log.held)
				}
				if err := c.do(s); err != nil {
					t.Fatal(err)
				}
				if n := log.Holds(c.of(s).ImageID()); n > 0 {
					t.Errorf("the log has %d bytes", n)
				}
				s.end()
			})
		}
	}
}

func TestAWriteThatFailsChangesNoTable(t *testing.T) {
	for _, step := range []string{"write first", "append"} {
		t.Run(step+" fails", func(t *testing.T) {
			s, d := diaryVolume(t)
			writeBlock(t, s.new, 1, 'q')
			d.fail = step
			if _, err := s.old.WriteAt(block('p'), lookup.BlockSize); !errors.Is(err, errDisk) {
				t.Errorf("the write: %v, want %v", err, errDisk)
			}
			wantEntry(t, s.first, 1, lookup.Absent)
			wantEntry(t, s.second, 1, lookup.Data)
			wantBlock(t, "the second volume", s.new, 1, 'q')
			wantBlock(t, "the first volume", s.old, 1, 0)
			d.fail = ""
			s.end()
		})
	}
}

func TestAFailedSyncIsFinal(t *testing.T) {
	storesAtMost(t, 0)
	s, d := diaryVolume(t)
	writeBlock(t, s.old, 1, 'p')
	writeBlock(t, s.new, 3, 'f')
	if err := s.new.Flush(); err != nil {
		t.Fatal(err)
	}
	writeBlock(t, s.old, 1, 'p')
	writeBlock(t, s.new, 2, 'q')
	d.fail = "sync second"
	if err := s.new.Flush(); !errors.Is(err, ErrFailed) || !errors.Is(err, errDisk) {
		t.Errorf("the flush: %v, want %v", err, ErrFailed)
	}
	d.fail = ""
	if err := s.new.Flush(); !errors.Is(err, ErrFailed) {
		t.Errorf("the flush after it: %v, want %v: a retry that succeeds proves nothing", err, ErrFailed)
	}
	if _, err := s.new.WriteAt(block('r'), 0); !errors.Is(err, ErrFailed) {
		t.Errorf("a write after it: %v, want %v", err, ErrFailed)
	}
	if _, err := s.new.ReadAt(block(0), 2*lookup.BlockSize); !errors.Is(err, ErrFailed) {
		t.Errorf("a read of what may be lost: %v, want %v", err, ErrFailed)
	}
	if _, err := s.new.ReadAt(make([]byte, 3*lookup.BlockSize), lookup.BlockSize); !errors.Is(err, ErrFailed) {
		t.Errorf("a read of more that reaches into what may be lost: %v, want %v", err, ErrFailed)
	}
	wantBlock(t, "what lies in the other image", s.new, 1, 'p')
	wantBlock(t, "what was flushed before, in the same image", s.new, 3, 'f')
	if !slices.Contains(d.lines, "failed") {
		t.Error("the log does not know that a sync failed: a kill of the server would forget it")
	}
	s.end()
}

// What a late write changed in newer images must not be lost when the older one is
// sealed; where it changed nothing, the live image is nobody's to wait for.
func TestBeforeASealTheVolumeIsFlushedOnlyIfAWriteReachedIntoANewerImage(t *testing.T) {
	storesAtMost(t, 0)
	for _, c := range []struct {
		late    string
		write   func(w *View) error
		flushes bool
	}{
		{"another block", func(w *View) error { return w.Trim(2*lookup.BlockSize, lookup.BlockSize+10) }, false},
		{"the block", func(w *View) error { return w.Trim(0, 3*lookup.BlockSize) }, true},
		{"part of the block", func(w *View) error { return w.Trim(lookup.BlockSize+1, 1) }, true},
	} {
		t.Run(c.late, func(t *testing.T) {
			s, d := diaryVolume(t)
			writeBlock(t, s.new, 1, 'q')
			if err := c.write(s.old); err != nil {
				t.Fatal(err)
			}
			s.end()
			d.lines = nil
			if err := s.first.SyncForSeal(); err != nil {
				t.Fatal(err)
			}
			for _, line := range []string{"sync second", "commit"} {
				if slices.Contains(d.lines, line) != c.flushes {
					t.Errorf("it did %q, want %q: %v", d.lines, line, c.flushes)
				}
			}
		})
	}
}

func TestASyncThatFailsBeforeASealIsFinal(t *testing.T) {
	s, d := diaryVolume(t)
	writeBlock(t, s.old, 1, 'p')
	s.end()
	d.fail = "sync first"
	for range 2 {
		if err := s.first.SyncForSeal(); !errors.Is(err, ErrFailed) {
			t.Errorf("before the seal: %v, want %v", err, ErrFailed)
		}
		d.fail = ""
	}
	if err := s.volume.Failed(); !errors.Is(err, errDisk) {
		t.Errorf("the volume: %v, want %v", err, errDisk)
	}
}

func TestWhatIsWrittenWhileASyncFailsMayBeLostToo(t *testing.T) {
	storesAtMost(t, 0)
	s, d := diaryVolume(t)
	writeBlock(t, s.new, 2, 'q')
	d.fail = "sync second"
	d.meet = func(line string) {
		if line == d.fail {
			d.meet = nil
			writeBlock(t, s.new, 3, 'r')
		}
	}
	if err := s.new.Flush(); !errors.Is(err, ErrFailed) {
		t.Errorf("the flush: %v, want %v", err, ErrFailed)
	}
	for _, b := range []int64{2, 3} {
		if _, err := s.new.ReadAt(block(0), b*lookup.BlockSize); !errors.Is(err, ErrFailed) {
			t.Errorf("a read of block %d: %v, want %v", b, err, ErrFailed)
		}
	}
	s.end()
}

func TestNothingIsKnownOfASyncThatFailsBeforeAnyWasGood(t *testing.T) {
	d := &diary{}
	m := &Memory{NewImage: func(image.ID) image.Image { return &diaryImage{mem.New(), "only", d} }}
	c := m.Config("v", 64*lookup.BlockSize, ScopeRequest)
	c.Chain[0].Table.Set(5, 1, lookup.Data) // of an earlier life
	v, err := New(m, 0).AddVolume(c)
	if err != nil {
		t.Fatal(err)
	}
	w := open(t)(v.Open())
	d.fail = "sync only"
	if err := w.Flush(); !errors.Is(err, ErrFailed) {
		t.Errorf("the flush: %v, want %v", err, ErrFailed)
	}
	if _, err := w.ReadAt(block(0), 5*lookup.BlockSize); !errors.Is(err, ErrFailed) {
		t.Errorf("a read of what an earlier life wrote: %v, want %v", err, ErrFailed)
	}
	wantBlock(t, "what nobody wrote", w, 6, 0)
}

func TestASyncOrACommitThatCouldNotBeBegunIsTriedAgain(t *testing.T) {
	storesAtMost(t, 0)
	for _, step := range []string{"sync second", "commit"} {
		t.Run(step, func(t *testing.T) {
			s, d := diaryVolume(t)
			writeBlock(t, s.new, 2, 'q')
			d.fail, d.with = step, image.ErrNotBegun
			if err := s.new.Flush(); !errors.Is(err, image.ErrNotBegun) || errors.Is(err, ErrFailed) {
				t.Errorf("the flush: %v, want %v and no failure for good", err, image.ErrNotBegun)
			}
			writeBlock(t, s.new, 3, 'r')
			d.fail, d.lines = "", nil
			if err := s.new.Flush(); err != nil || !slices.Contains(d.lines, "sync second") || !slices.Contains(d.lines, "commit") {
				t.Errorf("the flush after it: %v, by %q; want a sync and a commit", err, d.lines)
			}
			s.end()
		})
	}
}

func TestAFailedSyncOfTheLogIsFinal(t *testing.T) {
	for _, commit := range []string{"commit", "commit with 1 blocks"} {
		t.Run(commit, func(t *testing.T) {
			if commit == "commit" {
				storesAtMost(t, 0)
			}
			aFailedSyncOfTheLogIsFinal(t, commit)
		})
	}
}

func aFailedSyncOfTheLogIsFinal(t *testing.T, commit string) {
	s, d := diaryVolume(t)
	writeBlock(t, s.new, 2, 'q')
	d.fail, d.with = commit, journal.ErrSyncFailed
	if err := s.new.Flush(); !errors.Is(err, ErrFailed) {
		t.Errorf("the flush: %v, want %v", err, ErrFailed)
	}
	d.fail = ""
	if _, err := s.new.WriteAt(block('r'), 0); !errors.Is(err, ErrFailed) {
		t.Errorf("a write after it: %v, want %v", err, ErrFailed)
	}
	wantBlock(t, "what the image has durably", s.new, 2, 'q')
	s.end()
}

func TestASyncThatFailsOnAnotherHandleIsAFailureOfTheVolume(t *testing.T) {
	s, _ := diaryVolume(t)
	writeBlock(t, s.old, 1, 'p')
	writeBlock(t, s.new, 2, 'q')
	if err := s.first.SyncFailed(errDisk); !errors.Is(err, ErrFailed) || !errors.Is(err, errDisk) {
		t.Errorf("told of it: %v, want %v", err, ErrFailed)
	}
	if err := s.new.Flush(); !errors.Is(err, ErrFailed) {
		t.Errorf("a flush after it: %v, want %v", err, ErrFailed)
	}
	if _, err := s.new.ReadAt(block(0), lookup.BlockSize); !errors.Is(err, ErrFailed) {
		t.Errorf("a read of what may be lost: %v, want %v", err, ErrFailed)
	}
	wantBlock(t, "what lies in the other image", s.new, 2, 'q')
	s.end()
}

func TestExtentsWaitForAWriteOfTheirBlocks(t *testing.T) {
	s := preserveWithOldProcess(t, PreserveOptions{})
	var got Extent
	s.inTurn(s.second, func() { writeBlock(t, s.new, 2, 'q') }, func() {
		if err := s.new.Extents(2*lookup.BlockSize, lookup.BlockSize, func(x Extent) bool { got = x; return true }); err != nil {
			t.Error(err)
		}
	})
	if got.Depth != 1 || got.State != lookup.Data {
		t.Errorf("the extent is %+v, want data at depth 1", got)
	}
	s.end()
}

// waits is how many flushes wait for the next commit.
func (c *committer) waits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		return 0
	}
	return c.waiting.size
}

func TestFlushesThatArriveTogetherShareACommit(t *testing.T) {
	storesAtMost(t, 0)
	s, d := diaryVolume(t)
	writeBlock(t, s.new, 2, 'q')
	s.volume.commits.running.Lock() // a commit is under way
	var flushes sync.WaitGroup
	for range 5 {
		flushes.Go(func() {
			if err := s.new.Flush(); err != nil {
				t.Error(err)
			}
		})
	}
	await(t, "five flushes", func() bool { return s.volume.commits.waits() == 5 })
	s.volume.commits.running.Unlock()
	flushes.Wait()
	if n := len(slices.DeleteFunc(d.lines, func(l string) bool { return l != "sync second" })); n != 1 {
		t.Errorf("the image was synced %d times, want once for all", n)
	}
	s.end()
}

func TestAllFlushesThatShareACommitLearnHowItEnded(t *testing.T) {
	storesAtMost(t, 0)
	s, d := diaryVolume(t)
	for _, c := range []struct {
		what       string
		fail       string
		with, want error
	}{
		{"a sync that could not be begun", "sync second", image.ErrNotBegun, image.ErrNotBegun},
		{"a good one after it", "", nil, nil},
		{"a failed sync", "sync second", errDisk, ErrFailed},
	} {
		writeBlock(t, s.new, 2, 'q')
		d.fail, d.with = c.fail, c.with
		s.volume.commits.running.Lock() // a commit is under way
		answers := make(chan error)
		for range 5 {
			go func() { answers <- s.new.Flush() }()
		}
		await(t, "five flushes", func() bool { return s.volume.commits.waits() == 5 })
		s.volume.commits.running.Unlock()
		for range 5 {
			if err := <-answers; !errors.Is(err, c.want) {
				t.Errorf("%s: a flush: %v, want %v", c.what, err, c.want)
			}
		}
	}
	s.end()
}

func TestAFlushThatArrivesWhileACommitRunsWaitsForTheNext(t *testing.T) {
	storesAtMost(t, 0)
	s, d := diaryVolume(t)
	writeBlock(t, s.new, 2, 'q')
	reached, on := make(chan struct{}), make(chan struct{})
	var first sync.Once
	d.meet = func(line string) {
		if line == "sync second" {
			first.Do(func() {
				close(reached)
				<-on
			})
		}
	}
	var flushes sync.WaitGroup
	flush := func() {
		if err := s.new.Flush(); err != nil {
			t.Error(err)
		}
	}
	flushes.Go(flush)
	<-reached                    // its sync has begun, and need not cover
	writeBlock(t, s.new, 2, 'r') // this
	before := s.volume.commits.waits()
	flushes.Go(flush)
	await(t, "the second flush", func() bool { return s.volume.commits.waits() == before+1 })
	close(on)
	flushes.Wait()
	if n := len(slices.DeleteFunc(d.lines, func(l string) bool { return l != "sync second" })); n != 2 {
		t.Errorf("the image was synced %d times, want twice: the second flush must not be answered by the first's sync", n)
	}
	s.end()
}

// sleepyLog has to wake up before it takes anything.
type sleepyLog struct {
	MemoryLog
	awake atomic.Bool
}

func (l *sleepyLog) Ready() bool { return l.awake.Load() }

func (l *sleepyLog) Append(c []journal.Change) (journal.LSN, error) {
	l.awake.Store(true)
	return l.MemoryLog.Append(c)
}

func (l *sleepyLog) Stage(c []journal.Change) (journal.LSN, error) { return l.Append(c) }

func TestAWriteThatMayNotWaitWaitsForNoLog(t *testing.T) {
	r := &rig{t: t}
	r.memory = &Memory{}
	r.engine = New(r.memory, 0)
	c := r.memory.Config("v", 64*lookup.BlockSize, ScopeRequest)
	log := new(sleepyLog)
	c.Log = log
	c.Chain[0].Table.Set(1, 1, lookup.Data)
	v, err := r.engine.AddVolume(c)
	if err != nil {
		t.Fatal(err)
	}
	w := open(t)(v.Open())
	if _, err := w.TryWriteAt(block('a'), 2*lookup.BlockSize); !errors.Is(err, ErrWouldBlock) || log.End() != 0 {
		t.Errorf("a write that changes a table: %v, and the log is at %d", err, log.End())
	}
	wantBlock(t, "the volume", w, 2, 0)
	if _, err := w.TryWriteAt(block('a'), lookup.BlockSize); err != nil || log.Ready() {
		t.Errorf("a write that changes no table: %v, and the log is ready: %v", err, log.Ready())
	}
	writeBlock(t, w, 2, 'b')
	if _, err := w.TryWriteAt(block('a'), 3*lookup.BlockSize); err != nil {
		t.Errorf("a write after the log has woken up: %v", err)
	}
}

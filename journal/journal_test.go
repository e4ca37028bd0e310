package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// booted is a file system under a boot ID of the test's choice.
type booted struct {
	vfs.FS
	boot string
}

func (b booted) BootID() (string, error) { return b.boot, nil }

// simOptions are those of a journal in memory. Its images need no sync.
func simOptions(boot string, images ...image.ID) Options {
	return Options{
		FS:         booted{vfs.NewSim(os.TempDir()), boot}, // where nothing goes
		Dir:        "data/volume",
		VolumeID:   7,
		Images:     images,
		StoreBlock: func(Block) error { return nil },
		SyncImage:  func(image.ID) error { return nil },
		// Grown by 64 bytes at a time: tests look at every byte.
		SegmentBytes: 64 << 10,
	}
}

func (o Options) underBoot(boot string) Options {
	o.FS = booted{o.FS.(booted).FS, boot}
	return o
}

func readFile(t testing.TB, o Options, name string) []byte {
	t.Helper()
	f, err := o.FS.Open(name, os.O_RDONLY, 0)
	must(t, err)
	size, err := f.Size()
	must(t, err)
	b := make([]byte, size)
	_, err = f.ReadAt(b, 0)
	must(t, err)
	must(t, f.Close())
	return b
}

func writeFile(t testing.TB, o Options, name string, b []byte) {
	t.Helper()
	must(t, o.FS.MkdirAll(o.Dir, 0o700))
	f, err := o.FS.Open(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	must(t, err)
	_, err = f.WriteAt(b, 0)
	must(t, err)
	must(t, f.Close())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, o Options) *Journal {
	t.Helper()
	j, err := Create(o)
	must(t, err)
	return j
}

func reopen(t testing.TB, o Options) (*Journal, *Recovered) {
	t.Helper()
	j, r, err := Open(o)
	must(t, err)
	return j, r
}

func appendTo(t testing.TB, j *Journal, changes ...Change) LSN {
	t.Helper()
	lsn, err := j.Append(changes)
	must(t, err)
	return lsn
}

func data(id image.ID, b lookup.BlockNum) Change { return Change{id, b, 1, lookup.Data} }

// held lists the blocks below 1000 that a table holds.
func held(tab *lookup.Table) (blocks []lookup.BlockNum) {
	for e := range tab.Extents(0, 1000) {
		for i := range e.Count {
			blocks = append(blocks, e.Block+lookup.BlockNum(i))
		}
	}
	return blocks
}

func wantHeld(t testing.TB, tab *lookup.Table, want ...lookup.BlockNum) {
	t.Helper()
	if got := held(tab); !slices.Equal(got, want) {
		t.Fatalf("the table holds %v, want %v", got, want)
	}
}

func TestWhatCountsAfterTheWriterEnded(t *testing.T) {
	for _, c := range []struct {
		name      string
		commit    LSN // of three appended changes
		close     bool
		boot      string
		held      []lookup.BlockNum
		discarded int
		drained   bool
		clean     bool
	}{
		{"killed before any commit, everything counts", 0, false, "a", []lookup.BlockNum{1, 2, 3}, 0, true, false},
		{"killed after a commit, the tail counts too", 2, false, "a", []lookup.BlockNum{1, 2, 3}, 0, true, false},
		{"power cut before any commit, nothing counts", 0, false, "b", nil, 3, false, false},
		{"power cut after a commit, what it covers counts, not what stood before its frame", 2, false, "b", []lookup.BlockNum{1, 2}, 1, false, false},
		{"power cut after a full commit, everything counts", 3, false, "b", []lookup.BlockNum{1, 2, 3}, 0, false, false},
		{"closed, then rebooted", 3, true, "b", []lookup.BlockNum{1, 2, 3}, 0, false, true},
		{"closed, then opened again", 3, true, "a", []lookup.BlockNum{1, 2, 3}, 0, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := simOptions("a", 1, 2)
			j := create(t, o)
			for b := range lookup.BlockNum(3) {
				appendTo(t, j, data(2, b+1), Change{1, b + 1, 1, lookup.Absent})
			}
			must(t, j.MarkDrained(2))
			must(t, j.Commit(c.commit, Basis{}))
			if got := j.Committed(); got != c.commit || j.End() != 3 {
				t.Fatalf("committed %d of %d, want %d of 3", got, j.End(), c.commit)
			}
			if c.close {
				must(t, j.Close())
			}
			if findings := Check(o.underBoot(c.boot)); len(findings) > 0 {
				t.Fatalf("check finds %q", findings)
			}
			j, r := reopen(t, o.underBoot(c.boot))
			wantHeld(t, r.Tables[2], c.held...)
			wantHeld(t, r.Tables[1])
			if r.Discarded != 2*c.discarded || r.Drained[2] != c.drained || r.Drained[1] || r.Clean != c.clean || r.SameBoot != (c.boot == "a") {
				t.Fatalf("recovered %+v", r)
			}
			if wantReplayed := 2 * len(c.held); !c.close && r.Replayed != wantReplayed || c.close && r.Replayed != 0 {
				t.Fatalf("replayed %d of %d changes", r.Replayed, wantReplayed)
			}
			if j.End() != LSN(len(c.held)) || j.Committed() != j.End() {
				t.Fatalf("after recovery: committed %d of %d", j.Committed(), j.End())
			}
			_, again := reopen(t, o.underBoot(c.boot))
			wantHeld(t, again.Tables[2], c.held...)
			// A journal that was closed is so until it is written to.
			if again.Replayed != 0 || again.Clean != c.clean || again.Drained[2] != c.drained {
				t.Fatalf("recovered again %+v", again)
			}
		})
	}
}

func TestATailUnderTheSameBootIsSyncedBeforeAnyTableIsWritten(t *testing.T) {
	o := simOptions("a", 1, 2)
	j := create(t, o)
	appendTo(t, j, data(2, 1))
	var synced []image.ID
	o.SyncImage = func(id image.ID) error {
		if _, err := o.FS.Size(tableName(o.Dir, 2)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a table file is there before image %d was synced (%v)", id, err)
		}
		synced = append(synced, id)
		return nil
	}
	reopen(t, o)
	if !slices.Equal(synced, []image.ID{1, 2}) {
		t.Fatalf("synced %v, want every image", synced)
	}

	o = simOptions("a", 1)
	j = create(t, o)
	appendTo(t, j, data(1, 1))
	failed := errors.New("disk on fire")
	o.SyncImage = func(image.ID) error { return failed }
	if _, _, err := Open(o); !errors.Is(err, failed) {
		t.Fatalf("open says %v, want the failed sync", err)
	}
	_, r := reopen(t, o.underBoot("b"))
	wantHeld(t, r.Tables[1])
}

func TestCreateAndOpenRefuse(t *testing.T) {
	o := simOptions("a", 1)
	if _, _, err := Open(o); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("open of nothing: %v", err)
	}
	j := create(t, o)
	if _, err := Create(o); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second create: %v", err)
	}
	for _, c := range []struct {
		name   string
		change Change
		want   error
	}{
		{"a change of an image that was never added", data(9, 0), ErrUnknownImage},
		{"a change of no blocks", Change{1, 0, 0, lookup.Data}, ErrInvalidChange},
		{"a change past the largest volume", Change{1, lookup.MaxBlocks - 1, 2, lookup.Data}, ErrInvalidChange},
		{"a change to no state", Change{1, 0, 1, 3}, ErrInvalidChange},
	} {
		if _, err := j.Append([]Change{data(1, 5), c.change}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if err := j.Commit(1, Basis{}); err == nil || j.End() != 0 {
		t.Fatalf("commit past the end %d: %v", j.End(), err)
	}
	appendTo(t, j, data(1, 6))
	if err := j.Close(); !errors.Is(err, ErrUncommitted) {
		t.Fatalf("close: %v, want ErrUncommitted", err)
	}
	if _, err := j.Append([]Change{data(1, 7)}); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after close: %v", err)
	}
	o.VolumeID++
	if _, _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("open for another volume: %v", err)
	}
	o.VolumeID--
	_, r := reopen(t, o)
	wantHeld(t, r.Tables[1], 6)
}

func TestACheckpointFoldsWhatIsCommittedAndNothingElse(t *testing.T) {
	o := simOptions("a", 1)
	o.SegmentBytes = 100
	j := create(t, o)
	appendTo(t, j, data(1, 1))
	appendTo(t, j, data(1, 2))
	if !j.NeedsCheckpoint() {
		t.Fatal("no checkpoint needed past the length of a segment")
	}
	must(t, j.Checkpoint())
	if j.NeedsCheckpoint() {
		t.Fatal("a checkpoint is needed although the closed segment waits for a commit")
	}
	must(t, j.Commit(1, Basis{}))
	must(t, j.Checkpoint())
	if _, lsn, err := readAnyTable(&o, 1); lsn != 0 || err != nil {
		t.Fatalf("a table file of LSN %d, %v, with changes that are not committed", lsn, err)
	}
	appendTo(t, j, data(1, 3))
	must(t, j.Commit(2, Basis{}))
	must(t, j.Checkpoint())
	tab, lsn, err := readAnyTable(&o, 1)
	must(t, err)
	if wantHeld(t, tab, 1, 2); lsn != 2 {
		t.Fatalf("the table's LSN is %d", lsn)
	}
	if names := segmentFiles(t, o); !slices.Equal(names, []string{"journal-00000002"}) {
		t.Fatalf("segments %v", names)
	}
	_, r := reopen(t, o.underBoot("b"))
	wantHeld(t, r.Tables[1], 1, 2)
	if r.Replayed != 0 || r.Discarded != 1 {
		t.Fatalf("recovered %+v", r)
	}
}

func TestChangesThatNobodyCommitsBecomeOverdue(t *testing.T) {
	o := simOptions("a", 1)
	o.SegmentBytes = 100
	j := create(t, o)
	for b := lookup.BlockNum(0); !j.Overdue(); b++ {
		if appendTo(t, j, data(1, b)); j.cur.end > headerBytes+2*o.SegmentBytes {
			t.Fatalf("not overdue at offset %d", j.cur.end)
		}
	}
	must(t, j.Commit(j.End(), Basis{}))
	appendTo(t, j, data(1, 9))
	if j.Overdue() {
		t.Fatal("overdue after a commit")
	}
}

func segmentFiles(t testing.TB, o Options) (names []string) {
	t.Helper()
	all, err := o.FS.ReadDir(o.Dir)
	must(t, err)
	for _, n := range all {
		if _, ok := segmentNumber(n); ok {
			names = append(names, n)
		}
	}
	return names
}

func TestARemovedImageLeavesNothing(t *testing.T) {
	o := simOptions("a", 1)
	j := create(t, o)
	j.AddImage(2)
	appendTo(t, j, data(1, 1), data(2, 2))
	must(t, j.MarkDrained(2))
	must(t, j.RemoveImage(2))
	must(t, j.RemoveImage(2))
	appendTo(t, j, data(1, 3), Change{2, 2, 1, lookup.Absent})
	must(t, j.Commit(2, Basis{}))
	killed, r := reopen(t, o)
	wantHeld(t, r.Tables[1], 1, 3)
	if len(r.Tables) != 1 || len(r.Drained) != 0 || r.Replayed != 2 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "2 changes of images") {
		t.Fatalf("recovered %+v", r)
	}
	killed.AddImage(3)
	appendTo(t, killed, data(3, 9))
	must(t, killed.Commit(3, Basis{}))
	must(t, killed.Checkpoint())
	must(t, killed.Commit(appendTo(t, killed, data(1, 4)), Basis{}))
	must(t, killed.Checkpoint()) // folds what made a table of image 3
	must(t, killed.RemoveImage(3))
	must(t, killed.Close())
	if b, err := readBase(&o); err != nil || len(b.tables) != 1 || b.tables[1] == 0 {
		t.Fatalf("the base is %+v, %v, want a table of image 1 in it", b, err)
	}
	if findings := Check(o); len(findings) > 0 {
		t.Fatalf("check finds %q", findings)
	}
}

// segment1 is a journal of 6 frames: 3 changes, a commit of 2, 2 changes.
func segment1(t testing.TB, o Options) (whole []byte, ends []int64) {
	t.Helper()
	j := create(t, o)
	for b := range lookup.BlockNum(3) {
		appendTo(t, j, data(1, b+1))
		ends = append(ends, j.cur.end)
	}
	must(t, j.Commit(2, Basis{}))
	ends = append(ends, j.cur.end)
	for b := range lookup.BlockNum(2) {
		appendTo(t, j, data(1, b+4))
		ends = append(ends, j.cur.end)
	}
	return readFile(t, o, j.cur.name), ends
}

func TestATornTailIsCutAtEveryByte(t *testing.T) {
	o := simOptions("a", 1)
	whole, ends := segment1(t, o)
	for n := int64(headerBytes); n <= int64(len(whole)); n++ {
		frames := 0
		for _, end := range ends {
			if end <= n {
				frames++
			}
		}
		changes := frames
		if frames >= 4 {
			changes-- // the commit
		}
		committed := 0
		if frames >= 4 {
			committed = 2
		}
		garbage := append(slices.Clone(whole[:n]), bytes.Repeat([]byte("chng"), 20)...)
		for _, c := range []struct {
			boot string
			seg  []byte
			want int
		}{
			{"a", whole[:n], changes}, {"b", whole[:n], committed},
			{"a", garbage, changes}, {"b", garbage, committed},
		} {
			_, r, err := Open(withSegment1(t, c.boot, c.seg))
			if err != nil {
				t.Fatalf("%d bytes left, boot %s: %v", n, c.boot, err)
			}
			if got := len(held(r.Tables[1])); got != c.want {
				t.Fatalf("%d bytes left, boot %s: %d changes, want %d", n, c.boot, got, c.want)
			}
		}
	}
}

// withSegment1 are the options of a journal of one segment with these bytes.
func withSegment1(t testing.TB, boot string, seg []byte) Options {
	o := simOptions(boot, 1)
	writeFile(t, o, baseName(o.Dir), encodeBase(o.VolumeID, base{1, nil}))
	writeFile(t, o, segmentName(o.Dir, 1), seg)
	writeFile(t, o, witnessName(o.Dir), nil)
	return o
}

func TestRotIsFoundWhereNoCrashCanHaveBeen(t *testing.T) {
	whole, ends := segment1(t, simOptions("a", 1))
	for off := range whole {
		bad := slices.Clone(whole)
		bad[off] ^= 0x10
		for _, boot := range []string{"a", "b"} {
			o := withSegment1(t, boot, bad)
			findings := Check(o)
			_, r, err := Open(o)
			// The frames behind the commit know that it is durable. Under the
			// same boot ID only the last frame may have been cut off.
			known := int64(off) < ends[3] || boot == "a" && int64(off) < ends[4]
			switch {
			case known && !errors.Is(err, ErrCorrupt):
				t.Fatalf("boot %s: rot at offset %d: %v, want ErrCorrupt", boot, off, err)
			case known != (len(findings) > 0):
				t.Fatalf("boot %s: rot at offset %d: check finds %q", boot, off, findings)
			case !known && err != nil:
				t.Fatalf("boot %s: a torn tail at offset %d: %v", boot, off, err)
			case !known && boot == "b" && len(held(r.Tables[1])) != 2:
				t.Fatalf("boot %s: a torn tail at offset %d: %v", boot, off, held(r.Tables[1]))
			}
		}
	}
}

func TestAnOldFrameInAnotherPlaceDoesNotContinueTheChain(t *testing.T) {
	o := simOptions("a", 1)
	whole, ends := segment1(t, o)
	// All changes frames have one length: frame 4 in the place of frame 5.
	copy(whole[ends[4]:ends[5]], whole[ends[3]:ends[4]])
	writeFile(t, o, segmentName(o.Dir, 1), whole)
	if _, _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("under the same boot: %v, want ErrCorrupt", err)
	}
	_, r := reopen(t, o.underBoot("b"))
	wantHeld(t, r.Tables[1], 1, 2)
	if r.Discarded != 2 {
		t.Fatalf("discarded %d changes, want 2: %q", r.Discarded, r.Notes)
	}
}

func TestLostAndDamagedFilesAreNamed(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, o Options)
		file   string
	}{
		{"a flipped bit in the base", flip(baseFile), baseFile},
		{"a flipped bit in a table", flip("table-0000000000000001"), "table-0000000000000001"},
		{"a table of another image", func(t *testing.T, o Options) {
			writeFile(t, o, tableName(o.Dir, 2), readFile(t, o, tableName(o.Dir, 1)))
		}, "table-0000000000000002"},
		{"a lost table", remove("table-0000000000000001"), "table-0000000000000001"},
		{"a table from before the last checkpoint", func(t *testing.T, o Options) {
			must(t, writeTable(&o, 1, lookup.NewTable(), 0))
		}, "table-0000000000000001"},
		{"a lost first segment", remove("journal-00000002"), "journal-00000002"},
		{"a lost middle segment", remove("journal-00000003"), "journal-00000003"},
		{"a segment under another number", rename("journal-00000003", "journal-00000002"), "journal-00000002"},
		{"a middle segment cut short", truncate("journal-00000003", headerBytes), "journal-00000003"},
		{"a middle segment emptied", truncate("journal-00000003", 0), "journal-00000004"},
		{"a journal older than its tables", func(t *testing.T, o Options) {
			older := o
			older.Dir = "older"
			must(t, create(t, older).Close())
			for _, name := range []string{baseFile, "journal-00000002"} {
				writeFile(t, o, path.Join(o.Dir, name), readFile(t, o, path.Join(older.Dir, name)))
			}
		}, "journal-00000004"},
		{"a journal older than its tables, and no witness", func(t *testing.T, o Options) {
			older := o
			older.Dir = "older"
			must(t, create(t, older).Close())
			must(t, o.FS.Remove(witnessName(o.Dir)))
			for _, name := range []string{baseFile, "journal-00000002"} {
				writeFile(t, o, path.Join(o.Dir, name), readFile(t, o, path.Join(older.Dir, name)))
			}
		}, "table-0000000000000001"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := simOptions("a", 1, 2)
			threeSegments(t, o)
			c.damage(t, o)
			findings := Check(o.underBoot("b"))
			if len(findings) == 0 || !strings.Contains(strings.Join(findings, "\n"), c.file) {
				t.Errorf("check finds %q, want one about %s", findings, c.file)
			}
			_, _, err := Open(o.underBoot("b"))
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.file) {
				t.Errorf("open: %v, want ErrCorrupt about %s", err, c.file)
			}
		})
	}
}

func flip(base string) func(*testing.T, Options) {
	return func(t *testing.T, o Options) {
		b := readFile(t, o, path.Join(o.Dir, base))
		b[len(b)/2] ^= 1
		writeFile(t, o, path.Join(o.Dir, base), b)
	}
}

func rename(from, to string) func(*testing.T, Options) {
	return func(t *testing.T, o Options) {
		must(t, o.FS.Rename(path.Join(o.Dir, from), path.Join(o.Dir, to)))
	}
}

func remove(base string) func(*testing.T, Options) {
	return func(t *testing.T, o Options) { must(t, o.FS.Remove(path.Join(o.Dir, base))) }
}

func truncate(base string, sizeBytes int) func(*testing.T, Options) {
	return func(t *testing.T, o Options) {
		name := path.Join(o.Dir, base)
		writeFile(t, o, name, readFile(t, o, name)[:sizeBytes])
	}
}

// threeSegments makes segments 2, 3 and 4, all committed, and a table of image 1
// with changes up to 2.
func threeSegments(t testing.TB, o Options) {
	t.Helper()
	j := create(t, o)
	for b := lookup.BlockNum(1); b <= 4; b++ {
		if b > 1 {
			must(t, j.rotate())
		}
		must(t, j.Commit(appendTo(t, j, data(1, b)), Basis{}))
		if b == 2 {
			must(t, j.foldSettled())
		}
	}
	if names := segmentFiles(t, o); len(names) != 3 || names[0] != "journal-00000002" {
		t.Fatalf("segments %v", names)
	}
}

func TestAFailedAppendCountsForNothingAndTheNextOneTakesItsPlace(t *testing.T) {
	o := simOptions("a", 1)
	fault := failing(&o)
	j := create(t, o)
	appendTo(t, j, data(1, 1))
	full := errors.New("no space")
	*fault = func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite {
			return vfs.ShortError{N: int(op.Len / 2), Err: full}
		}
		return full // the truncate that tidies up
	}
	if _, err := j.Append([]Change{data(1, 2), data(1, 3), data(1, 4)}); !errors.Is(err, full) {
		t.Fatalf("append: %v", err)
	}
	if err := j.Commit(1, Basis{}); !errors.Is(err, full) || j.Committed() != 0 {
		t.Fatalf("commit: %v", err)
	}
	*fault = nil
	if got := appendTo(t, j, data(1, 5)); got != 2 {
		t.Fatalf("LSN %d, want 2", got)
	}
	must(t, j.Commit(2, Basis{}))
	_, r := reopen(t, o)
	wantHeld(t, r.Tables[1], 1, 5)
}

// failing lets what is stored in the result decide what fails.
func failing(o *Options) *func(vfs.Op) error {
	var hook func(vfs.Op) error
	o.FS = vfs.Fault{FS: o.FS, Hook: func(op vfs.Op) error {
		if hook == nil {
			return nil
		}
		return hook(op)
	}}
	return &hook
}

func TestWhatIsStagedOutlivesTheWriterOnceItIsPublished(t *testing.T) {
	for _, c := range []struct {
		name string
		then func(*Journal) error
		want []lookup.BlockNum
	}{
		{"never", func(*Journal) error { return nil }, []lookup.BlockNum{1}},
		{"by a publish", (*Journal).Publish, []lookup.BlockNum{1, 2, 3}},
		{"by an append", func(j *Journal) error { _, err := j.Append([]Change{data(1, 4)}); return err }, []lookup.BlockNum{1, 2, 3, 4}},
		{"by a commit", func(j *Journal) error { return j.Commit(1, Basis{}) }, []lookup.BlockNum{1, 2, 3}},
		{"by a mark", func(j *Journal) error { return j.MarkDrained(1) }, []lookup.BlockNum{1, 2, 3}},
		{"by a checkpoint", (*Journal).Checkpoint, []lookup.BlockNum{1, 2, 3}},
		{"by a close, though nobody committed it", func(j *Journal) error {
			if err := j.Close(); !errors.Is(err, ErrUncommitted) {
				return fmt.Errorf("close: %w", err)
			}
			return nil
		}, []lookup.BlockNum{1, 2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := simOptions("a", 1)
			o.SyncImage = func(image.ID) error { return nil }
			j := create(t, o)
			appendTo(t, j, data(1, 1))
			for _, b := range []lookup.BlockNum{2, 3} {
				if _, err := j.Stage([]Change{data(1, b)}); err != nil {
					t.Fatal(err)
				}
			}
			must(t, c.then(j))
			_, found := reopen(t, copyOf(t, o))
			wantHeld(t, found.Tables[1], c.want...)
		})
	}
}

// The witness could not be told of the failure, so the next Open knows nothing of it.
func TestAJournalThatHasFailedPublishesAllTheSame(t *testing.T) {
	o := simOptions("a", 1)
	o.SyncImage = func(image.ID) error { return nil }
	fault := failing(&o)
	j := create(t, o)
	if _, err := j.Stage([]Change{data(1, 1)}); err != nil {
		t.Fatal(err)
	}
	*fault = func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && path.Base(op.Name) == witnessFile {
			return errors.New("EROFS")
		}
		return nil
	}
	if err := j.MarkFailed(); err == nil {
		t.Fatal("the failure was noted")
	}
	must(t, j.Publish())
	*fault = nil
	_, found := reopen(t, copyOf(t, o))
	wantHeld(t, found.Tables[1], 1)
}

func TestAFailedSyncIsFinal(t *testing.T) {
	o := simOptions("a", 1)
	fault := failing(&o)
	j := create(t, o)
	appendTo(t, j, data(1, 1))
	failed := errors.New("EIO")
	*fault = func(op vfs.Op) error {
		if op.Kind == vfs.OpSync {
			return failed
		}
		return nil
	}
	if err := j.Commit(1, Basis{}); !errors.Is(err, ErrSyncFailed) || !errors.Is(err, failed) {
		t.Fatalf("commit: %v", err)
	}
	*fault = nil
	_, appended := j.Append([]Change{data(1, 2)})
	_, staged := j.Stage([]Change{data(1, 2)})
	for _, c := range []struct {
		name string
		err  error
	}{
		{"append", appended}, {"stage", staged}, {"commit", j.Commit(1, Basis{})}, {"mark drained", j.MarkDrained(1)},
		{"checkpoint", j.Checkpoint()}, {"close", j.Close()},
	} {
		if !errors.Is(c.err, ErrSyncFailed) || !errors.Is(c.err, failed) {
			t.Errorf("%s: %v, want the failed sync", c.name, c.err)
		}
	}
	if j.Committed() != 0 {
		t.Error("committed nevertheless")
	}
}

func TestARotationThatFailsAnywhereLosesNothing(t *testing.T) {
	failures := 0
	for failAt := 1; ; failAt++ {
		o := simOptions("a", 1)
		fault := failing(&o)
		j := create(t, o)
		appendTo(t, j, data(1, 1))
		must(t, j.MarkDrained(1))
		failed, ops := errors.New("broken"), 0
		*fault = func(op vfs.Op) error {
			if ops++; ops == failAt {
				return vfs.ShortError{N: int(op.Len / 2), Err: failed}
			}
			return nil
		}
		err := j.rotate()
		if ops < failAt {
			if failures < 3 {
				t.Fatalf("%d of %d operations have failed the rotation", failures, ops)
			}
			break
		}
		if errors.Is(err, failed) {
			failures++
		} else if err != nil { // room that could not be made is no failure
			t.Fatalf("operation %d failed, and rotate says %v", failAt, err)
		}
		*fault = nil
		killed, r := reopen(t, copyOf(t, o))
		if wantHeld(t, r.Tables[1], 1); !r.Drained[1] {
			t.Fatal("the drained mark is lost")
		}
		must(t, killed.Close())
		appendTo(t, j, data(1, 2))
		must(t, j.rotate())
		must(t, j.Commit(appendTo(t, j, data(1, 3)), Basis{}))
		copied := copyOf(t, o)
		copied.FS = booted{copied.FS.(booted).FS, "b"}
		_, r = reopen(t, copied)
		wantHeld(t, r.Tables[1], 1, 2, 3)
	}
}

// copyOf returns the options of a copy of a journal, under the same boot ID.
func copyOf(t testing.TB, o Options) Options {
	t.Helper()
	c := simOptions("a", o.Images...)
	names, err := o.FS.ReadDir(o.Dir)
	must(t, err)
	for _, name := range names {
		writeFile(t, c, path.Join(c.Dir, name), readFile(t, o, path.Join(o.Dir, name)))
	}
	return c
}

func TestConcurrentAppendsCommitsAndCheckpointsLoseNothing(t *testing.T) {
	const writers, each = 4, 200
	o := simOptions("a", 1, 2)
	o.FS, o.Dir = booted{vfs.OS{}, "a"}, filepath.Join(t.TempDir(), "volume")
	o.SegmentBytes = 4096
	j := create(t, o)
	var writing, checkpointing sync.WaitGroup
	stop := make(chan struct{})
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				if _, err := j.Append([]Change{data(1, lookup.BlockNum(w*each+i)), {2, lookup.BlockNum(w*each + i), 1, lookup.Zero}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	checkpointing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if j.NeedsCheckpoint() {
				if err := j.Checkpoint(); err != nil {
					t.Error(err)
				}
			}
			if err := j.Commit(j.End(), Basis{}); err != nil {
				t.Error(err)
			}
		}
	})
	writing.Wait()
	close(stop)
	checkpointing.Wait()
	must(t, j.Commit(j.End(), Basis{}))
	_, r := reopen(t, o.underBoot("b"))
	for id := image.ID(1); id <= 2; id++ {
		if got := len(held(r.Tables[id])); got != writers*each {
			t.Fatalf("image %d holds %d blocks, want %d", id, got, writers*each)
		}
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	o := simOptions("a", 1, 2)
	o.FS, o.Dir = vfs.OS{}, filepath.Join(t.TempDir(), "volume")
	j := create(t, o)
	changes := []Change{data(2, 1), {1, 1, 1, lookup.Absent}}
	if got := testing.AllocsPerRun(100, func() { appendTo(t, j, changes...) }); got > 0 {
		t.Fatalf("%v allocations an append", got)
	}
	if got := testing.AllocsPerRun(100, func() {
		for range 2 {
			if _, err := j.Stage(changes); err != nil {
				t.Fatal(err)
			}
		}
		must(t, j.Publish())
	}); got > 0 {
		t.Fatalf("%v allocations a publish", got)
	}
}

func BenchmarkAppend(b *testing.B) {
	dir := b.TempDir()
	j := create(b, Options{FS: vfs.OS{}, Dir: filepath.Join(dir, "v"), Images: []image.ID{1}})
	changes := []Change{data(1, 1)}
	b.ReportAllocs()
	for b.Loop() {
		changes[0].Block++
		if _, err := j.Append(changes); err != nil {
			b.Fatal(err)
		}
	}
}

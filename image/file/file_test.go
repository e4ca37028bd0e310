package file_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/imagetest"
	"github.com/tidemark/tidemark/internal/vfs"
)

const (
	small = 64 << 10 // segment
	block = 4096
)

func TestImageKeepsTheContract(t *testing.T) {
	for _, c := range []struct {
		name         string
		fsys         func(t *testing.T) (fsys vfs.FS, dir string)
		segmentBytes int64
	}{
		{"over the operating system", onOS, 0},
		{"over the operating system in small segments", onOS, small},
		{"over the simulation", onSim, 0},
		{"over the simulation in small segments", onSim, small},
		{"where the file system can't zero a range", onNoZero, small},
	} {
		t.Run(c.name, func(t *testing.T) {
			imagetest.Run(t, func(t *testing.T) image.Image {
				fsys, dir := c.fsys(t)
				return create(t, fsys, dir, c.segmentBytes)
			})
		})
	}
}

func onOS(t *testing.T) (vfs.FS, string)  { return vfs.OS{}, t.TempDir() }
func onSim(t *testing.T) (vfs.FS, string) { return vfs.NewSim(t.TempDir()), "/" }

func onNoZero(t *testing.T) (vfs.FS, string) {
	return vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpZero {
			return &fs.PathError{Op: "zero", Path: op.Name, Err: syscall.EOPNOTSUPP}
		}
		return nil
	}}, "/"
}

func create(t *testing.T, fsys vfs.FS, dir string, segmentBytes int64) *file.Image {
	t.Helper()
	im, err := file.Create(fsys, dir, 7, file.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func reopen(t *testing.T, fsys vfs.FS, dir string) *file.Image {
	t.Helper()
	im, err := file.Open(fsys, dir, 7, file.Options{SegmentBytes: small})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = im.Close() })
	return im
}

func TestFilesAreNamedByIDAndSegment(t *testing.T) {
	dir := t.TempDir()
	im := create(t, vfs.OS{}, dir, small)
	mustWrite(t, im, 11*small, 1)
	for _, name := range []string{"0000000000000007.imgx", "7.img", "0000000000000008.img.3", "0000000000000009.img.03", "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "0000000000000007.img")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "0000000000000007.img.11")); err != nil {
		t.Error(err)
	}
	ids, err := file.List(vfs.OS{}, dir)
	if !slices.Equal(ids, []image.ID{7, 8}) || err != nil {
		t.Errorf("List: %v, %v, want 7 and 8, of which only a segment is left", ids, err)
	}
	if _, err := file.Create(vfs.OS{}, dir, 7, file.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second Create: %v, want fs.ErrExist", err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.Remove(vfs.OS{}, dir, 7, file.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := file.Remove(vfs.OS{}, dir, 7, file.Options{}); err != nil {
		t.Errorf("Remove of an image that is gone: %v", err)
	}
	if ids, err := file.List(vfs.OS{}, dir); !slices.Equal(ids, []image.ID{8}) || err != nil {
		t.Errorf("List after Remove: %v, %v", ids, err)
	}
	if _, err := file.Open(vfs.OS{}, dir, 7, file.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open after Remove: %v, want fs.ErrNotExist", err)
	}
}

func TestAnImageOfAKnownSizeIsRemovedWithoutALookAtTheDirectory(t *testing.T) {
	looks := 0
	fsys := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpReadDir {
			looks++
		}
		return nil
	}}
	dir, o := t.TempDir(), file.Options{SegmentBytes: 4096, SizeBytes: 4 * 4096}
	im, err := file.Create(fsys, dir, 9, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt([]byte("the last segment"), 3*4096); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.Remove(fsys, dir, 9, o); err != nil || looks > 0 {
		t.Errorf("Remove: %v, and it read the directory %d times", err, looks)
	}
	if ids, err := file.List(fsys, dir); len(ids) > 0 || err != nil {
		t.Errorf("List: %v, %v", ids, err)
	}
}

func TestZeroKeepsStorageAndPunchGivesItBack(t *testing.T) {
	im := create(t, vfs.OS{}, t.TempDir(), 0)
	t.Cleanup(func() { _ = im.Close() })
	if err := im.Zero(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := im.Allocated(); n < 1<<20 || err != nil {
		t.Errorf("allocated %d, %v after a zero of 1 MiB", n, err)
	}
	if err := im.Punch(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := im.Allocated(); n >= 1<<20 || err != nil {
		t.Errorf("allocated %d, %v after the punch", n, err)
	}
}

func TestACloneOfARangeCrossesSegments(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	from, err := file.Create(sim, "", 6, file.Options{SegmentBytes: small})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = from.Close() })
	im := create(t, sim, "", small)
	t.Cleanup(func() { _ = im.Close() })
	data := make([]byte, 3*small)
	for i := range data {
		data[i] = byte(i/512 + 1)
	}
	if _, err := from.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	const off, length = small - 4096, small + 2*4096
	if err := im.Clone(from, off, length); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("where nothing can be shared: %v", err)
	}
	sim.Clones = true
	if err := im.Clone(from, 3*small, 4096); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("of a segment that is not there: %v", err)
	}
	if err := im.Clone(from, off, length); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, off+length)
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got[off:], data[off:][:length]) || !bytes.Equal(got[:off], make([]byte, off)) {
		t.Errorf("%v; it holds the range and nothing else: %v", err, bytes.Equal(got[off:], data[off:][:length]))
	}
}

// The rule that a flush rests on, cut at every operation: blocks of a Sync that
// has returned are there, in every segment, new ones too.
func TestWhatASyncPromisedOutlivesAPowerCut(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	im := create(t, sim, "/", small)
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	created := sim.Ops()
	rng := rand.New(rand.NewPCG(3, 4))
	const blocks = 80 // five segments
	type promise struct {
		fromOp int
		want   [blocks]byte
	}
	var now [blocks]byte
	promises := []promise{{fromOp: created}}
	unsynced := [][]bool{} // by promise: blocks written after it
	unsynced = append(unsynced, make([]bool, blocks))
	for range 25 {
		for range 4 {
			b := rng.IntN(blocks)
			if rng.IntN(4) == 0 {
				now[b] = 0
				if err := im.Punch(int64(b)*block, block); err != nil {
					t.Fatal(err)
				}
			} else {
				now[b] = byte(1 + rng.IntN(250))
				mustWrite(t, im, int64(b)*block, now[b])
			}
			unsynced[len(unsynced)-1][b] = true
		}
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
		promises = append(promises, promise{sim.Ops(), now})
		unsynced = append(unsynced, make([]bool, blocks))
	}
	got := make([]byte, block)
	for at := created; at <= sim.Ops(); at++ {
		last := len(promises) - 1
		for promises[last].fromOp > at {
			last--
		}
		for _, rng := range []*rand.Rand{nil, rng, rng, rng} {
			after := reopen(t, sim.PowerCut(at, rng), "/")
			for b := range blocks {
				if unsynced[last][b] {
					continue
				}
				if _, err := after.ReadAt(got, int64(b)*block); err != nil {
					t.Fatal(err)
				}
				if want := bytes.Repeat([]byte{promises[last].want[b]}, block); !bytes.Equal(got, want) {
					t.Fatalf("cut at %d: block %d holds %d..., want %d", at, b, got[0], want[0])
				}
			}
		}
	}
}

func TestASyncAfterKillCoversWhatTheDeadProcessWrote(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	im := create(t, sim, "/", small)
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, im, 0, 1)
	mustWrite(t, im, 3*small, 2) // in a segment that no SyncDir has seen
	sim = sim.Kill()
	if _, err := im.WriteAt(make([]byte, block), 0); !errors.Is(err, vfs.ErrKilled) {
		t.Errorf("write of the dead: %v, want vfs.ErrKilled", err)
	}
	im = reopen(t, sim, "/")
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	im = reopen(t, sim.PowerCut(sim.Ops(), nil), "/")
	wantBlock(t, im, 0, 1)
	wantBlock(t, im, 3*small, 2)
}

func TestAFailedSyncIsFinal(t *testing.T) {
	for _, c := range []struct {
		name  string
		fail  vfs.OpKind
		errno syscall.Errno
		do    func(im *file.Image) error
	}{
		{"fdatasync", vfs.OpSync, syscall.EIO, (*file.Image).Sync},
		{"fdatasync on a full disk", vfs.OpSync, syscall.ENOSPC, (*file.Image).Sync},
		{"sync of the directory", vfs.OpSyncDir, syscall.EIO, (*file.Image).Sync},
		{"write-back", vfs.OpWriteBack, syscall.EIO, func(im *file.Image) error { return im.WriteBack(0, block) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			armed := true
			fsys := vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
				if armed && op.Kind == c.fail {
					return c.errno
				}
				return nil
			}}
			im := create(t, fsys, "/", small)
			mustWrite(t, im, 0, 1)
			for range 3 {
				err := c.do(im)
				if !errors.Is(err, image.ErrSyncFailed) || !errors.Is(err, c.errno) {
					t.Errorf("got %v, want ErrSyncFailed with %v", err, c.errno)
				}
				armed = false // the disk is well again: too late
				c.do = (*file.Image).Sync
			}
			wantBlock(t, im, 0, 1)
		})
	}
}

func TestFaultThatIsWantOfADescriptorIsNoFailedSync(t *testing.T) {
	short := true
	fsys := vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		if short && op.Kind == vfs.OpSyncDir {
			return &fs.PathError{Op: "open", Path: op.Name, Err: syscall.EMFILE}
		}
		return nil
	}}
	im := create(t, fsys, "/", small)
	mustWrite(t, im, 0, 1)
	if err := im.Sync(); !errors.Is(err, image.ErrNotBegun) || errors.Is(err, image.ErrSyncFailed) || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("without a descriptor for the directory: %v, want %v", err, image.ErrNotBegun)
	}
	short = false
	if err := im.Sync(); err != nil {
		t.Errorf("with one: %v", err)
	}
}

func TestFaultOfASyncThatLosesWritesShowsAfterADropOfTheCache(t *testing.T) {
	failures := 0
	sim := vfs.NewSim(t.TempDir())
	fsys := vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
		if failures > 0 && op.Kind == vfs.OpSync && path.Ext(op.Name) == ".img" { // segment 0
			failures--
			return vfs.LostError{Err: syscall.EIO}
		}
		return nil
	}}
	im := create(t, fsys, "/", small)
	mustWrite(t, im, 0, 1)
	mustWrite(t, im, small, 1)
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, im, 0, 2)
	failures = 1
	if err := im.Sync(); !errors.Is(err, image.ErrSyncFailed) {
		t.Fatalf("the sync: %v", err)
	}
	again := reopen(t, fsys, "/")
	wantBlock(t, again, 0, 2)       // the page cache, for a while
	mustWrite(t, again, 2*block, 3) // still dirty
	failures = 1                    // and lost too
	if err := again.DropCache(); err != nil {
		t.Fatal(err)
	}
	wantBlock(t, again, 0, 1)
	wantBlock(t, again, 2*block, 0)
	wantBlock(t, again, small, 1)
	failures = 2
	if err := again.DropCache(); !errors.Is(err, syscall.EIO) {
		t.Errorf("to drop what can't be written back: %v, want %v", err, syscall.EIO)
	}
}

// Two flushes at the same time: the second may not be answered by the first
// one's success, nor before the first one's failure is known.
func TestASyncWaitsForTheOneBeforeIt(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	fsys := vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) (err error) {
		if op.Kind == vfs.OpSync {
			once.Do(func() {
				close(entered)
				<-release
				err = syscall.EIO
			})
		}
		return err
	}}
	im := create(t, fsys, "/", small)
	mustWrite(t, im, 0, 1)
	results := make(chan error, 2)
	letGo := sync.OnceFunc(func() { close(release) })
	defer letGo()
	go func() { results <- im.Sync() }()
	select {
	case <-entered:
	case err := <-results:
		t.Fatalf("Sync returned %v and synced nothing", err)
	}
	started := make(chan struct{})
	go func() {
		close(started)
		results <- im.Sync() // its only segment is marked clean by now
	}()
	<-started
	for range 1000 {
		runtime.Gosched() // let it go as far as it can
	}
	select {
	case err := <-results:
		t.Fatalf("a Sync returned %v while another still ran", err)
	default:
	}
	letGo()
	for range 2 {
		if err := <-results; !errors.Is(err, image.ErrSyncFailed) {
			t.Errorf("Sync: %v, want ErrSyncFailed", err)
		}
	}
}

func TestACleanSegmentIsNotSynced(t *testing.T) {
	var synced []string
	fsys := vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		if op.Kind == vfs.OpSync || op.Kind == vfs.OpSyncDir {
			synced = append(synced, op.Name)
		}
		return nil
	}}
	im := create(t, fsys, "/", small)
	mustWrite(t, im, 0, 1)
	mustWrite(t, im, small, 1)
	for range 2 {
		if err := im.Sync(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, im, small, 2)
	}
	slices.Sort(synced[:2])
	want := []string{"/0000000000000007.img", "/0000000000000007.img.1", "/", "/0000000000000007.img.1"}
	if !slices.Equal(synced, want) {
		t.Errorf("synced %v, want %v", synced, want)
	}
}

func TestErrorsOfTheDiskComeThrough(t *testing.T) {
	var fault error
	fsys := vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		switch op.Kind {
		case vfs.OpOpen, vfs.OpRead, vfs.OpTryRead, vfs.OpWrite, vfs.OpZero, vfs.OpPunch:
			return fault
		}
		return nil
	}}
	im := create(t, fsys, "/", small)
	mustWrite(t, im, 0, 1)
	p := make([]byte, block)

	fault = &fs.PathError{Op: "pwrite", Path: "x", Err: syscall.ENOSPC}
	for name, do := range map[string]func() error{
		"write":                     func() error { _, err := im.WriteAt(p, 0); return err },
		"write into a new segment":  func() error { _, err := im.WriteAt(p, 9*small); return err },
		"zero":                      func() error { return im.Zero(0, block) },
		"punch":                     func() error { return im.Punch(0, block) },
		"read":                      func() error { _, err := im.ReadAt(p, 0); return err },
		"read that may not wait":    func() error { _, err := im.TryReadAt(p, 0); return err },
		"create of another image":   func() error { _, err := file.Create(fsys, "/", 8, file.Options{}); return err },
		"open of the image":         func() error { _, err := file.Open(fsys, "/", 7, file.Options{}); return err },
		"write over two segments":   func() error { _, err := im.WriteAt(p, small-100); return err },
		"zero of a missing segment": func() error { return im.Zero(5*small, block) },
	} {
		if err := do(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", name, err)
		}
	}

	fault = vfs.ShortError{N: 100, Err: syscall.ENOSPC}
	if n, err := im.WriteAt(p, small-block); n != 100 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("short write: %d, %v", n, err)
	}
	fault = vfs.ErrWouldBlock
	if _, err := im.TryReadAt(p, 0); !errors.Is(err, image.ErrWouldBlock) {
		t.Errorf("read that would wait: %v, want image.ErrWouldBlock", err)
	}
	fault = nil
	wantBlock(t, im, 0, 1)
}

func TestSegmentSizeMustHoldWholeBlocks(t *testing.T) {
	for _, bad := range []int64{-4096, 1, 4095, 5000} {
		if _, err := file.Create(vfs.NewSim(""), "/", 1, file.Options{SegmentBytes: bad}); err == nil {
			t.Errorf("a segment of %d bytes was accepted", bad)
		}
	}
}

func TestTransfersDoNotAllocate(t *testing.T) {
	im := create(t, vfs.OS{}, t.TempDir(), 0)
	t.Cleanup(func() { _ = im.Close() })
	p := make([]byte, block)
	mustWrite(t, im, 0, 1)
	for name, transfer := range map[string]func([]byte, int64) (int, error){
		"read": im.ReadAt, "try": im.TryReadAt, "write": im.WriteAt,
	} {
		if n := testing.AllocsPerRun(100, func() { _, _ = transfer(p, 0) }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func mustWrite(t *testing.T, im image.Image, off int64, fill byte) {
	t.Helper()
	if _, err := im.WriteAt(bytes.Repeat([]byte{fill}, block), off); err != nil {
		t.Fatal(err)
	}
}

func wantBlock(t *testing.T, im image.Image, off int64, fill byte) {
	t.Helper()
	got := make([]byte, block)
	if _, err := im.ReadAt(got, off); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{fill}, block)) {
		t.Errorf("block at %d: %d..., %v, want %d", off, got[0], err, fill)
	}
}

func TestFreeGivesBackAllStorageInPieces(t *testing.T) {
	for name, at := range map[string]func(*testing.T) (vfs.FS, string){"over the operating system": onOS, "over the simulation": onSim} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := at(t)
			im, err := file.Create(fsys, dir, 7, file.Options{SegmentBytes: 4 << 20})
			if err != nil {
				t.Fatal(err)
			}
			const runs = 3 * file.PieceRuns / 2
			for i := range int64(runs) { // and so many in a second segment
				for _, off := range []int64{i * 2 * block, 4<<20 + i*2*block} {
					if _, err := im.WriteAt(bytes.Repeat([]byte{1}, block), off); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := im.Sync(); err != nil {
				t.Fatal(err)
			}
			pieces, sum := 0, int64(0)
			free := func() error {
				return im.Free(func(sizeBytes int64) error {
					pieces, sum = pieces+1, sum+sizeBytes
					if pieces == 3 {
						return fs.ErrClosed
					}
					return nil
				})
			}
			if err := free(); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("ended by who is told of the pieces: %v", err)
			}
			if err := free(); err != nil {
				t.Error(err)
			}
			if left, err := im.Allocated(); left != 0 || err != nil || pieces != 4 || sum != 2*runs*block {
				t.Errorf("after %d pieces of %d bytes, %d are left, %v", pieces, sum, left, err)
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

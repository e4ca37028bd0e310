package vfs_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
)

// everyFS calls test with each file system and a directory to work in.
func everyFS(t *testing.T, test func(t *testing.T, fsys vfs.FS, dir string)) {
	t.Run("OS", func(t *testing.T) { test(t, vfs.OS{}, t.TempDir()) })
	t.Run("Sim", func(t *testing.T) { test(t, vfs.NewSim(t.TempDir()), "/") })
	t.Run("Fault without a hook", func(t *testing.T) { test(t, vfs.Fault{FS: vfs.NewSim(t.TempDir())}, "") })
	t.Run("Labelled", func(t *testing.T) { test(t, vfs.Labelled{FS: vfs.Fault{FS: vfs.OS{}}, Label: "x"}, t.TempDir()) })
}

func TestNames(t *testing.T) {
	everyFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		sub := path.Join(dir, "a/b")
		must(t, fsys.MkdirAll(sub, 0o700))
		must(t, fsys.MkdirAll(sub, 0o700))
		for _, name := range []string{"z", "x", "y"} {
			writeFile(t, fsys, path.Join(sub, name), name)
		}
		wantNames(t, fsys, sub, "x", "y", "z")
		must(t, fsys.Rename(path.Join(sub, "x"), path.Join(sub, "y")))
		must(t, fsys.Remove(path.Join(sub, "z")))
		wantNames(t, fsys, sub, "y")
		wantFile(t, fsys, path.Join(sub, "y"), "x")
		must(t, fsys.SyncDir(sub))

		absent := path.Join(dir, "absent")
		_, openErr := fsys.Open(absent, os.O_RDWR, 0)
		_, sizeErr := fsys.Size(absent)
		_, readDirErr := fsys.ReadDir(absent)
		_, belowErr := fsys.Open(path.Join(absent, "x"), os.O_RDWR|os.O_CREATE, 0o600)
		_, exclErr := fsys.Open(path.Join(sub, "y"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		_, appendErr := fsys.Open(path.Join(sub, "y"), os.O_RDWR|os.O_APPEND, 0o600)
		for _, c := range []struct {
			what      string
			err, want error
		}{
			{"open of nothing", openErr, fs.ErrNotExist},
			{"size of nothing", sizeErr, fs.ErrNotExist},
			{"list of nothing", readDirErr, fs.ErrNotExist},
			{"create in no directory", belowErr, fs.ErrNotExist},
			{"rename of nothing", fsys.Rename(absent, path.Join(dir, "w")), fs.ErrNotExist},
			{"remove of nothing", fsys.Remove(absent), fs.ErrNotExist},
			{"sync of no directory", fsys.SyncDir(absent), fs.ErrNotExist},
			{"exclusive create of a file that is there", exclErr, fs.ErrExist},
			{"remove of a directory with files", fsys.Remove(sub), syscall.ENOTEMPTY},
			{"open for append", appendErr, errors.ErrUnsupported},
			{"a directory below a file", fsys.MkdirAll(path.Join(sub, "y/c"), 0o700), syscall.ENOTDIR},
		} {
			if !errors.Is(c.err, c.want) {
				t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
			}
		}
		must(t, fsys.Remove(path.Join(sub, "y")))
		must(t, fsys.Remove(sub))
		wantNames(t, fsys, path.Join(dir, "a"))
	})
}

func TestALockIsHeldByOneHandle(t *testing.T) {
	everyFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := path.Join(dir, "lock")
		held, err := fsys.Lock(name)
		must(t, err)
		if _, err := fsys.Lock(name); !errors.Is(err, vfs.ErrLocked) {
			t.Errorf("second lock: %v, want ErrLocked", err)
		}
		must(t, held.Close())
		held, err = fsys.Lock(name)
		must(t, err)
		must(t, held.Close())
	})
}

func TestHandles(t *testing.T) {
	everyFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := path.Join(dir, "f")
		writeFile(t, fsys, name, "content")
		f, err := fsys.Open(name, os.O_RDONLY, 0)
		must(t, err)
		if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EBADF) {
			t.Errorf("write through a handle for reading: %v, want EBADF", err)
		}
		must(t, fsys.Remove(name))
		p := make([]byte, 7)
		if n, err := f.ReadAt(p, 0); n != 7 || err != nil {
			t.Errorf("read of a removed file that is open: %d, %v", n, err)
		}
		must(t, f.Close())
		for what, err := range map[string]error{
			"read": second(f.ReadAt(p, 0)), "try": second(f.TryReadAt(p, 0)), "write": second(f.WriteAt(p, 0)),
			"sync": f.Sync(), "close": f.Close(), "punch": f.Punch(0, 1), "size": second(f.Size()),
		} {
			if !errors.Is(err, fs.ErrClosed) {
				t.Errorf("%s after close: %v, want fs.ErrClosed", what, err)
			}
		}
		writeFile(t, fsys, name, "content")
		f, err = fsys.Open(name, os.O_RDWR|os.O_TRUNC|os.O_CREATE, 0o600)
		must(t, err)
		if n, err := f.Size(); n != 0 || err != nil {
			t.Errorf("size after O_TRUNC: %d, %v", n, err)
		}
		must(t, f.Close())
	})
}

// Files against a plain array of bytes, by random operations.
func TestContents(t *testing.T) {
	everyFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f, err := fsys.Open(path.Join(dir, "f"), os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		defer func() { must(t, f.Close()) }()
		rng := rand.New(rand.NewPCG(1, 1))
		var want []byte
		for step := range 2000 {
			op, off, p := randomOp(rng, 40_000)
			must(t, op.apply(f, off, p))
			want = op.applyToBytes(want, off, p)
			if n, err := f.Size(); n != int64(len(want)) || err != nil {
				t.Fatalf("step %d, %s of %d at %d: size %d, %v, want %d", step, op, len(p), off, n, err, len(want))
			}
			if step%10 == 0 {
				wantContent(t, f, want, fmt.Sprintf("step %d, %s of %d at %d", step, op, len(p), off))
				wantDataCoversNonZeros(t, f, want)
			}
		}
	})
}

func TestAClonedRangeHoldsWhatTheOtherFileHeldOrCannotBeMade(t *testing.T) {
	clones := func(t *testing.T, fsys vfs.FS, dir string, always bool) {
		old, late := bytes.Repeat([]byte("old."), 16<<10), bytes.Repeat([]byte("late"), 16<<10)
		var files [2]vfs.File
		for i, content := range [][]byte{old, late} {
			f, err := fsys.Open(path.Join(dir, fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
			must(t, err)
			defer func() { must(t, f.Close()) }()
			_, err = f.WriteAt(content, 0)
			must(t, err)
			files[i] = f
		}
		err := files[1].CloneRange(files[0], 4096, 8*4096)
		if errors.Is(err, errors.ErrUnsupported) && !always {
			wantContent(t, files[1], late, "not cloned")
			return
		}
		must(t, err)
		_, err = files[0].WriteAt(late, 0)
		must(t, err)
		wantContent(t, files[1], slices.Concat(late[:4096], old[:8*4096], late[9*4096:]), "cloned")
	}
	everyFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		clones(t, fsys, dir, *osClones && path.IsAbs(dir) && dir != "/")
	})
	t.Run("Sim that clones", func(t *testing.T) {
		sim := vfs.NewSim(t.TempDir())
		sim.Clones = true
		clones(t, vfs.Fault{FS: sim}, "/", true)
	})
}

// osClones is for directories of XFS and btrfs: TMPDIR.
var osClones = flag.Bool("vfs.clones", false, "the file system of temporary files can share storage, and must")

func TestRangesFarOut(t *testing.T) {
	everyFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f, err := fsys.Open(path.Join(dir, "f"), os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		defer func() { must(t, f.Close()) }()
		const far = 15 << 40
		must(t, second(f.WriteAt([]byte("far"), far)))
		if n, err := f.Size(); n != far+3 || err != nil {
			t.Errorf("size %d, %v", n, err)
		}
		if start, end, err := f.Data(4096); start != far || end != far+3 || err != nil {
			t.Errorf("data at %d..%d, %v, want the three bytes", start, end, err)
		}
		if _, _, err := f.Data(far + 3); err != io.EOF {
			t.Errorf("data beyond the end: %v, want io.EOF", err)
		}
		must(t, f.Sync())
		if n, err := f.Allocated(); n == 0 || n > 1<<20 || err != nil {
			t.Errorf("allocated %d, %v", n, err)
		}
		must(t, f.WriteBack(far, 3))
		must(t, f.Punch(0, far+4096))
		if _, _, err := f.Data(0); err != io.EOF {
			t.Errorf("data after a punch of all: %v, want io.EOF", err)
		}
		p := []byte{1, 2, 3, 4}
		if n, err := f.ReadAt(p, far); n != 3 || err != io.EOF || !bytes.Equal(p[:3], make([]byte, 3)) {
			t.Errorf("read of the punched end: %d, %v, %v", n, err, p)
		}
		if n, err := f.ReadAt(p, far+100); n != 0 || err != io.EOF {
			t.Errorf("read beyond the end: %d, %v, want io.EOF", n, err)
		}
	})
}

func TestOSNamesItsBoot(t *testing.T) {
	a, err := vfs.OS{}.BootID()
	must(t, err)
	b, err := vfs.OS{}.BootID()
	if a != b || len(a) != 36 || err != nil {
		t.Errorf("boot ids %q and %q, %v", a, b, err)
	}
}

func TestOSDirectoriesAreForTheOwner(t *testing.T) {
	dir := t.TempDir() + "/a"
	must(t, vfs.OS{}.MkdirAll(dir+"/b", 0o777))
	info, err := os.Stat(dir)
	must(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, want 0700", info.Mode())
	}
}

func TestOSTransfersDoNotAllocate(t *testing.T) {
	f, err := vfs.OS{}.Open(t.TempDir()+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	p := make([]byte, 4096)
	must(t, second(f.WriteAt(p, 0)))
	for name, transfer := range map[string]func([]byte, int64) (int, error){
		"ReadAt": f.ReadAt, "TryReadAt": f.TryReadAt, "WriteAt": f.WriteAt,
	} {
		if n := testing.AllocsPerRun(100, func() { _, _ = transfer(p, 0) }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// fileOp is a kind of change of a file.
type fileOp string

func randomOp(rng *rand.Rand, sizeBytes int64) (op fileOp, off int64, p []byte) {
	op = []fileOp{"write", "write", "write", "write", "truncate", "punch", "zero", "allocate", "write back"}[rng.IntN(9)]
	off = rng.Int64N(sizeBytes)
	length := 1 + rng.Int64N([]int64{10, 600, 5000, 20000}[rng.IntN(4)])
	if rng.IntN(2) == 0 {
		off, length = off&^511, (length+511)&^511
	}
	p = make([]byte, length)
	fill := byte(1 + rng.IntN(255))
	for i := range p {
		p[i] = fill
	}
	return op, off, p
}

func (op fileOp) apply(f vfs.File, off int64, p []byte) error {
	length := int64(len(p))
	switch op {
	case "write":
		return second(f.WriteAt(p, off))
	case "truncate":
		return f.Truncate(off)
	case "punch":
		return f.Punch(off, length)
	case "zero":
		return f.Zero(off, length)
	case "allocate":
		return f.Allocate(off, length)
	default:
		return f.WriteBack(off, length)
	}
}

// applyToBytes returns what b becomes, and leaves b as it is.
func (op fileOp) applyToBytes(b []byte, off int64, p []byte) []byte {
	end := off + int64(len(p))
	size := int64(len(b))
	switch op {
	case "truncate":
		size = off
	case "write", "zero":
		size = max(size, end)
	}
	after := make([]byte, size)
	copy(after, b)
	switch op {
	case "write":
		copy(after[off:], p)
	case "punch", "zero":
		clear(after[min(off, size):min(end, size)])
	}
	return after
}

func wantContent(t *testing.T, f vfs.File, want []byte, after string) {
	t.Helper()
	got := make([]byte, len(want)+1)
	if n, err := f.ReadAt(got, 0); n != len(want) || err != io.EOF {
		t.Fatalf("%s: read %d, %v, want %d and io.EOF", after, n, err, len(want))
	}
	if !bytes.Equal(got[:len(want)], want) {
		t.Fatalf("%s: contents differ", after)
	}
}

func wantDataCoversNonZeros(t *testing.T, f vfs.File, want []byte) {
	t.Helper()
	covered := make([]bool, len(want))
	for at := int64(0); ; {
		start, end, err := f.Data(at)
		if err == io.EOF {
			break
		}
		if err != nil || start < at || end <= start || end > int64(len(want)) {
			t.Fatalf("Data(%d): %d..%d, %v", at, start, end, err)
		}
		for i := start; i < end; i++ {
			covered[i] = true
		}
		at = end
	}
	for i, b := range want {
		if b != 0 && !covered[i] {
			t.Fatalf("byte %d is %d and in no data range", i, b)
		}
	}
}

func writeFile(t *testing.T, fsys vfs.FS, name, content string) {
	t.Helper()
	f, err := fsys.Open(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	must(t, err)
	must(t, second(f.WriteAt([]byte(content), 0)))
	must(t, f.Close())
}

func readFile(t *testing.T, fsys vfs.FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name, os.O_RDONLY, 0)
	must(t, err)
	size, err := f.Size()
	must(t, err)
	p := make([]byte, size)
	must(t, second(f.ReadAt(p, 0)))
	must(t, f.Close())
	return string(p)
}

func wantFile(t *testing.T, fsys vfs.FS, name, want string) {
	t.Helper()
	if got := readFile(t, fsys, name); got != want {
		t.Errorf("%s holds %q, want %q", name, got, want)
	}
}

func wantNames(t *testing.T, fsys vfs.FS, dir string, want ...string) {
	t.Helper()
	got, err := fsys.ReadDir(dir)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s lists %v, %v, want %v", dir, got, err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

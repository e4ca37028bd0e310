package vfs_test

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/internal/vfs"
)

// What is in the page cache is asked of mincore(2): on tmpfs that is all of
// it, elsewhere the half that is not dropped.
func TestTryReadAtReadsWhatIsInThePageCache(t *testing.T) {
	const size = 16 << 20 // the page cache may keep up to 2 MiB as one
	name := t.TempDir() + "/f"
	want := bytes.Repeat([]byte("tide"), size/4)
	f, err := vfs.OS{}.Open(name, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	must(t, second(f.WriteAt(want, 0)))
	must(t, f.Sync())

	other, err := os.Open(name)
	must(t, err)
	defer func() { must(t, other.Close()) }()
	must(t, unix.Fadvise(int(other.Fd()), size/2, size/2, unix.FADV_DONTNEED))

	// The kernel may read ahead meanwhile, and may take pages away: how much it
	// reads is not ours to say, but that it says so is.
	p := make([]byte, size)
	n, err := f.TryReadAt(p, 0)
	if !bytes.Equal(p[:n], want[:n]) {
		t.Errorf("the %d bytes that were read are others", n)
	}
	if n < size && !errors.Is(err, vfs.ErrWouldBlock) || n == size && err != nil {
		t.Errorf("read of %d bytes, of which %d came: %v", size, n, err)
	}
	for {
		must(t, second(f.ReadAt(p[:4096], 0)))
		if n, err := f.TryReadAt(p[:4096], 0); n == 4096 && err == nil {
			break
		} else if !errors.Is(err, vfs.ErrWouldBlock) {
			t.Fatalf("read of what was just read: %d, %v", n, err)
		}
	}
	if n, err := f.ReadAt(p, 0); n != size || err != nil || !bytes.Equal(p, want) {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
}

func TestAFileThatNobodyHasAnyMoreIsClosed(t *testing.T) {
	name := t.TempDir() + "/f"
	open := func() int {
		t.Helper()
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		n := 0
		for _, e := range entries {
			if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == name {
				n++
			}
		}
		return n
	}
	func() {
		f, err := vfs.OS{}.Open(name, os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		runtime.GC()
		if open() != 1 {
			t.Error("it is closed while somebody has it")
		}
		runtime.KeepAlive(f)
	}()
	for open() > 0 { // the test's end is the limit
		runtime.GC()
	}
}

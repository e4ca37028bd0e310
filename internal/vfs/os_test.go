package vfs_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"unsafe"

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
	cached := cachedPrefix(t, other, size)

	p := make([]byte, size)
	n, err := f.TryReadAt(p, 0)
	if n != cached || !bytes.Equal(p[:n], want[:n]) {
		t.Errorf("read %d bytes with %d in the page cache", n, cached)
	}
	if cached < size && !errors.Is(err, vfs.ErrWouldBlock) || cached == size && err != nil {
		t.Errorf("read of %d bytes with %d in the page cache: %v", size, cached, err)
	}
	if n, err := f.ReadAt(p, 0); n != size || err != nil || !bytes.Equal(p, want) {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
}

// cachedPrefix returns how many bytes from the start of a file are in the page
// cache without a gap.
func cachedPrefix(t *testing.T, f *os.File, sizeBytes int) int {
	t.Helper()
	mapped, err := unix.Mmap(int(f.Fd()), 0, sizeBytes, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer func() { must(t, unix.Munmap(mapped)) }()
	pageBytes := os.Getpagesize()
	resident := make([]byte, sizeBytes/pageBytes)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])),
		uintptr(sizeBytes), uintptr(unsafe.Pointer(&resident[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for i, r := range resident {
		if r&1 == 0 {
			return i * pageBytes
		}
	}
	return sizeBytes
}

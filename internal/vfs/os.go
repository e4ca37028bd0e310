package vfs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OS is the file system of the operating system (Linux). Names are paths as
// open(2) takes them. The zero value is ready for use. Files are closed on
// exec; directories are made for their owner alone, whatever perm allows.
//
// Errors are *fs.PathError around the errno, so that errors.Is finds
// syscall.ENOSPC, syscall.EIO and the like.
type OS struct{}

var _ FS = OS{}

// Open implements FS. O_APPEND is refused: pwrite(2) would ignore its offset.
func (OS) Open(name string, flag int, perm fs.FileMode) (File, error) {
	return openOS(name, flag, perm)
}

// Remove implements FS.
func (OS) Remove(name string) error { return os.Remove(name) }

// Rename implements FS.
func (OS) Rename(oldName, newName string) error { return os.Rename(oldName, newName) }

// MkdirAll implements FS.
func (OS) MkdirAll(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm&0o700) }

// ReadDir implements FS.
func (OS) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Size implements FS.
func (OS) Size(name string) (sizeBytes int64, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// SyncDir implements FS. It is fsync, not fdatasync: the entries are what the
// directory holds, and not every file system counts them as data.
func (OS) SyncDir(name string) error {
	f, err := openOS(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	err = f.do("fsync", unix.Fsync)
	return errors.Join(err, f.Close())
}

// Free implements FS with statfs(2).
func (OS) Free(name string) (sizeBytes int64, err error) {
	st, err := statfs(name)
	return int64(st.Bavail) * st.Frsize, err
}

// Total implements FS with statfs(2): what is set aside for root counts as neither.
func (OS) Total(name string) (sizeBytes int64, err error) {
	st, err := statfs(name)
	return int64(st.Blocks-st.Bfree+st.Bavail) * st.Frsize, err
}

func statfs(name string) (st unix.Statfs_t, err error) {
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Statfs(name, &st)
	}
	if err != nil {
		return unix.Statfs_t{}, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return st, nil
}

// Lock implements FS with flock(2): the lock belongs to the handle, and the
// kernel lets it go when the process dies.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := openOS(name, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return nil, err
	}
	err = f.do("flock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = &fs.PathError{Op: "flock", Path: name, Err: ErrLocked}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// External implements FS: the path is the name, and a commit needs no record.
func (OS) External(name string) (osPath string, committed func() error, err error) {
	return name, func() error { return nil }, nil
}

// BootID implements FS with the kernel's random boot ID.
func (OS) BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(id)), nil
}

// osFile is a descriptor that Close takes away only when no call uses it any
// more, so that a late call can't reach another file under the same number. One that
// nobody has any more is closed too.
type osFile struct {
	name    string
	inUse   sync.RWMutex // read-held by every call on fd
	closed  bool
	fd      int
	garbage runtime.Cleanup
}

func openOS(name string, flag int, perm fs.FileMode) (*osFile, error) {
	if flag&unix.O_APPEND != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported}
	}
	for {
		fd, err := unix.Open(name, flag|unix.O_CLOEXEC|unix.O_LARGEFILE, uint32(perm.Perm()))
		if err == nil {
			f := &osFile{name: name, fd: fd}
			f.garbage = runtime.AddCleanup(f, func(fd int) { _ = unix.Close(fd) }, fd)
			return f, nil
		}
		if err != unix.EINTR {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

func (f *osFile) ReadAt(p []byte, off int64) (n int, err error) {
	f.inUse.RLock()
	defer f.inUse.RUnlock()
	if f.closed {
		return 0, f.error("pread", fs.ErrClosed)
	}
	for n < len(p) {
		m, err := unix.Pread(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, f.error("pread", err)
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

func (f *osFile) TryReadAt(p []byte, off int64) (n int, err error) {
	f.inUse.RLock()
	defer f.inUse.RUnlock()
	if f.closed {
		return 0, f.error("preadv2", fs.ErrClosed)
	}
	for n < len(p) {
		m, err := preadNoWait(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN || err == unix.EOPNOTSUPP:
			return n, ErrWouldBlock
		case err != 0:
			return n, f.error("preadv2", err)
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

// preadNoWait is preadv2(2) of one vector: unix.Preadv2 would allocate its
// list of vectors for each call.
func preadNoWait(fd int, p []byte, off int64) (n int, err syscall.Errno) {
	vector := unix.Iovec{Base: unsafe.SliceData(p)}
	vector.SetLen(len(p))
	// The kernel takes the offset as two longs; on 64 bits the low one is all.
	low, high := uintptr(off), uintptr(uint64(off)>>(unsafe.Sizeof(uintptr(0))*4)>>(unsafe.Sizeof(uintptr(0))*4))
	r, _, err := syscall.Syscall6(unix.SYS_PREADV2, uintptr(fd),
		uintptr(unsafe.Pointer(&vector)), 1, low, high, unix.RWF_NOWAIT)
	if err != 0 {
		return 0, err
	}
	return int(r), 0
}

func (f *osFile) WriteAt(p []byte, off int64) (n int, err error) {
	f.inUse.RLock()
	defer f.inUse.RUnlock()
	if f.closed {
		return 0, f.error("pwrite", fs.ErrClosed)
	}
	for n < len(p) {
		m, err := unix.Pwrite(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, f.error("pwrite", err)
		case m == 0:
			return n, f.error("pwrite", io.ErrShortWrite)
		default:
			n += m
		}
	}
	return n, nil
}

func (f *osFile) Size() (sizeBytes int64, err error) {
	var st unix.Stat_t
	err = f.do("fstat", func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Size, err
}

func (f *osFile) Allocated() (sizeBytes int64, err error) {
	var st unix.Stat_t
	err = f.do("fstat", func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Blocks * 512, err
}

func (f *osFile) Truncate(sizeBytes int64) error {
	return f.do("ftruncate", func(fd int) error { return unix.Ftruncate(fd, sizeBytes) })
}

func (f *osFile) Punch(off, lengthBytes int64) error {
	return f.fallocate("punch", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, lengthBytes)
}

func (f *osFile) Allocate(off, lengthBytes int64) error {
	return f.fallocate("allocate", unix.FALLOC_FL_KEEP_SIZE, off, lengthBytes)
}

func (f *osFile) Zero(off, lengthBytes int64) error {
	return f.fallocate("zero", unix.FALLOC_FL_ZERO_RANGE, off, lengthBytes)
}

func (f *osFile) fallocate(op string, mode uint32, off, lengthBytes int64) error {
	if lengthBytes == 0 { // EINVAL to the kernel
		return nil
	}
	return f.do(op, func(fd int) error { return unix.Fallocate(fd, mode, off, lengthBytes) })
}

func (f *osFile) CloneRange(from File, off, lengthBytes int64) error {
	other, ok := from.(*osFile)
	if !ok || other == f || lengthBytes == 0 { // to the kernel: up to the end of the file
		return errors.ErrUnsupported
	}
	return other.do("clone", func(source int) error {
		err := f.do("clone", func(fd int) error {
			return unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{
				Src_fd: int64(source), Src_offset: uint64(off), Src_length: uint64(lengthBytes), Dest_offset: uint64(off),
			})
		})
		for _, why := range []error{unix.EOPNOTSUPP, unix.EXDEV, unix.EINVAL, unix.ENOTTY} {
			if errors.Is(err, why) {
				return errors.ErrUnsupported
			}
		}
		return err
	})
}

func (f *osFile) Data(off int64) (start, end int64, err error) {
	err = f.do("seek data", func(fd int) error {
		var err error
		if start, err = unix.Seek(fd, off, unix.SEEK_DATA); err != nil {
			return err
		}
		end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		return err
	})
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	return start, end, err
}

func (f *osFile) WriteBack(off, lengthBytes int64) error {
	if lengthBytes == 0 { // to the kernel: up to the end of the file
		return nil
	}
	return f.do("sync_file_range", func(fd int) error {
		return unix.SyncFileRange(fd, off, lengthBytes, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	})
}

func (f *osFile) Sync() error { return f.do("fdatasync", unix.Fdatasync) }

// prefetchStep is what each disk's limit of a single read-ahead lets pass: the
// kernel cuts a longer request short without a word.
const prefetchStep = 128 << 10

func (f *osFile) Prefetch(off, lengthBytes int64) error {
	return f.do("fadvise", func(fd int) error {
		for ; lengthBytes > 0; off, lengthBytes = off+prefetchStep, lengthBytes-prefetchStep {
			if err := unix.Fadvise(fd, off, min(lengthBytes, prefetchStep), unix.FADV_WILLNEED); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *osFile) DropCache() error {
	return f.do("fadvise", func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
}

func (f *osFile) Close() error {
	f.inUse.Lock()
	defer f.inUse.Unlock()
	if f.closed {
		return f.error("close", fs.ErrClosed)
	}
	f.closed = true
	// EINTR is no reason to close again: Linux has freed the number by then.
	f.garbage.Stop()
	if err := unix.Close(f.fd); err != nil && err != unix.EINTR {
		return f.error("close", err)
	}
	return nil
}

// do runs one system call on the descriptor, again when a signal cut it short.
func (f *osFile) do(op string, call func(fd int) error) error {
	f.inUse.RLock()
	defer f.inUse.RUnlock()
	if f.closed {
		return f.error(op, fs.ErrClosed)
	}
	for {
		err := call(f.fd)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return f.error(op, err)
		}
	}
}

func (f *osFile) error(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

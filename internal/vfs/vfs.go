// Package vfs is the seam between Tidemark and the operating system's files.
//
// Everything that a data directory holds is read and written through an FS,
// so that a test can put another one in its place: Sim, which remembers every
// write and sync and can rebuild what a disk might hold after a power cut, or
// Fault, which makes chosen operations fail, fall short or wait. Code above
// this package never imports os for files of a data directory.
package vfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

// ErrWouldBlock is returned by File.TryReadAt when the data is not at hand
// without waiting for the disk.
var ErrWouldBlock = errors.New("vfs: would block")

// ErrLocked is returned by FS.Lock when another process (or another handle of
// this one) holds the lock.
var ErrLocked = errors.New("vfs: locked by another process")

// NotBegun tells whether an error says that an operation never began, for want
// of a file descriptor: it may be tried again, and is no failed sync.
func NotBegun(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// FS is a file system. Names are slash-separated paths as the implementation
// understands them. All methods may be called from any goroutine.
type FS interface {
	// Open opens name with os.O_* flags. O_CREATE makes the directory entry,
	// which is durable only after SyncDir of the parent.
	Open(name string, flag int, perm fs.FileMode) (File, error)
	// Remove unlinks a file or an empty directory; durable after SyncDir.
	Remove(name string) error
	// Rename replaces newName by oldName in one step; durable after SyncDir.
	// Only Place may call it, with which Replace ends.
	Rename(oldName, newName string) error
	// MkdirAll makes a directory and its missing parents; each is durable after
	// SyncDir of the one above it.
	MkdirAll(name string, perm fs.FileMode) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(name string) ([]string, error)
	// Size returns the length of a file in bytes, fs.ErrNotExist if there is none.
	Size(name string) (sizeBytes int64, err error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(name string) error
	// Free returns how many bytes the file system that holds name has left for
	// users without privileges (statfs, f_bavail).
	Free(name string) (sizeBytes int64, err error)
	// Total returns how many bytes that file system has for them in all, free and
	// taken, as df counts: when none is free, all of Total is taken.
	Total(name string) (sizeBytes int64, err error)
	// Lock takes an exclusive advisory lock on the file name, made if missing.
	// It returns ErrLocked at once if another holds it. Close lets it go; so
	// does the death of the process.
	Lock(name string) (io.Closer, error)
	// External is for a file that a library opens by itself (bbolt). It
	// returns the path in the operating system's name space that stands for
	// name, and a function that the caller calls after the library has made the
	// file and before and after each of its durable commits, so that a
	// simulation can record them. For the real file system the function does
	// nothing.
	External(name string) (osPath string, committed func() error, err error)
	// BootID identifies the life of the page cache: what was written under
	// one boot ID, synced or not, is still readable under the same boot ID.
	BootID() (string, error)
}

// File is an open file, which is closed too when nobody has it any more. Reads and
// writes at offsets may run at the same time from any number of goroutines.
type File interface {
	io.ReaderAt
	io.WriterAt
	// TryReadAt reads what is at hand without waiting for the disk
	// (preadv2 with RWF_NOWAIT). It returns a short count and ErrWouldBlock
	// when the rest would wait, io.EOF at the end as ReadAt does.
	TryReadAt(p []byte, off int64) (n int, err error)
	// Size returns the length in bytes.
	Size() (sizeBytes int64, err error)
	// Allocated returns the bytes of storage that the file takes up, holes
	// left out (st_blocks).
	Allocated() (sizeBytes int64, err error)
	// Truncate sets the length; a longer file reads zeros there.
	Truncate(sizeBytes int64) error
	// Punch gives back the storage of a range, which then reads zeros. The
	// length of the file stays.
	Punch(off, lengthBytes int64) error
	// Allocate reserves storage for a range, also beyond the end of the file,
	// whose length stays: writes there find room. errors.ErrUnsupported where
	// the file system can't.
	Allocate(off, lengthBytes int64) error
	// Data reports the next range at or after off that may hold data
	// (SEEK_DATA, SEEK_HOLE); io.EOF when only holes follow.
	Data(off int64) (start, end int64, err error)
	// Zero makes a range read zeros, keeps or reserves its storage, and grows
	// the file to cover it (FALLOC_FL_ZERO_RANGE). errors.ErrUnsupported where
	// the file system can't (tmpfs).
	Zero(off, lengthBytes int64) error
	// CloneRange makes a range hold what the same range of another file holds, by
	// sharing its storage (FICLONERANGE): nothing is copied. errors.ErrUnsupported
	// where the file system can't, or not these ranges; it may be done in part then.
	CloneRange(from File, off, lengthBytes int64) error
	// WriteBack starts and waits for write-back of a range without promising
	// durability (sync_file_range). Its error is a Sync error: the kernel
	// reports a failed write-back once to each handle, so that the next Sync
	// through the same one would succeed.
	WriteBack(off, lengthBytes int64) error
	// Sync makes data and length durable (fdatasync). An error is final: the
	// kernel may have dropped what it could not write.
	Sync() error
	// Prefetch begins to read a range into the page cache
	// (POSIX_FADV_WILLNEED), as far as the kernel likes, and waits for nothing
	// but the reads to be queued.
	Prefetch(off, lengthBytes int64) error
	// DropCache makes later reads ask the disk for what the page cache holds
	// and need not write back (POSIX_FADV_DONTNEED). After a Sync that is all of
	// the file, and after a failed one it is also what the disk has not.
	DropCache() error
	Close() error
}

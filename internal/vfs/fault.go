package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
)

// OpKind says what an Op does.
type OpKind uint8

// The operations that a Fault's hook sees.
const (
	OpOpen OpKind = iota + 1
	OpRemove
	OpRename
	OpMkdir
	OpReadDir
	OpStat // FS.Size
	OpSyncDir
	OpLock
	OpExternal
	OpCommitted // the function that FS.External returns
	OpRead
	OpTryRead
	OpWrite
	OpTruncate
	OpPunch
	OpAllocate
	OpZero
	OpCloneRange
	OpData
	OpWriteBack
	OpSync
	OpClose
	OpFree
	OpDropCache
)

var opNames = [...]string{
	OpOpen: "open", OpRemove: "remove", OpRename: "rename", OpMkdir: "mkdir", OpReadDir: "readdir",
	OpStat: "stat", OpSyncDir: "syncdir", OpLock: "lock", OpExternal: "external", OpCommitted: "committed",
	OpRead: "read", OpTryRead: "tryread", OpWrite: "write", OpTruncate: "truncate", OpPunch: "punch",
	OpAllocate: "allocate", OpZero: "zero", OpCloneRange: "clone", OpData: "data", OpWriteBack: "writeback", OpSync: "sync",
	OpClose: "close", OpFree: "free", OpDropCache: "dropcache",
}

// String returns the operation's name in lower case.
func (k OpKind) String() string {
	if int(k) < len(opNames) && opNames[k] != "" {
		return opNames[k]
	}
	return fmt.Sprintf("op(%d)", uint8(k))
}

// Op is one operation that is about to run.
type Op struct {
	Kind OpKind
	// Name is the path as it was given to the FS; a file's is that of its Open.
	Name string
	// NewName is the second path of a rename.
	NewName string
	// Off and Len are the range in bytes; Len is the new size of a truncate.
	Off, Len int64
	// Handle is the label of the Labelled through which the file was opened.
	Handle string
}

// ShortError returned by a hook makes a read or a write transfer N bytes and
// then fail with this error. It fails any other operation as a plain error.
type ShortError struct {
	N   int
	Err error // io.ErrShortWrite if nil
}

// Error implements error.
func (e ShortError) Error() string { return fmt.Sprintf("short after %d bytes: %v", e.N, e.Unwrap()) }

// Unwrap returns the cause.
func (e ShortError) Unwrap() error {
	if e.Err == nil {
		return io.ErrShortWrite
	}
	return e.Err
}

// LostError returned by a hook makes a Sync or a WriteBack of a file of a Sim
// fail as one behind which the kernel forgets: what no earlier Sync covers is
// marked as written and is on the disk in part, as Rand chooses (nil: nothing
// of it), and no later Sync brings it there. It fails any other operation, and
// that of any other FS, as a plain error.
type LostError struct {
	Err error
	// Evict takes the lost writes out of the page cache at once, as XFS and
	// Btrfs do; else they can be read until a DropCache, as with ext4.
	Evict bool
	Rand  *rand.Rand
}

// Error implements error.
func (e LostError) Error() string { return fmt.Sprintf("writes lost: %v", e.Err) }

// Unwrap returns the cause.
func (e LostError) Unwrap() error { return e.Err }

// Fault is an FS over another one, for tests, that calls Hook before each
// operation, on the goroutine that runs it and with no lock held. A hook that
// blocks delays the operation; one that returns an error fails it, and then it
// does not run, except that a Close closes all the same and a ShortError lets
// part of a transfer through. A nil Hook does nothing.
//
// Hook must be safe for use by many goroutines at once.
type Fault struct {
	FS
	Hook func(Op) error
}

var _ FS = Fault{}

func (f Fault) before(op Op) error {
	if f.Hook == nil {
		return nil
	}
	return f.Hook(op)
}

// Open implements FS.
func (f Fault) Open(name string, flag int, perm fs.FileMode) (File, error) {
	return f.openLabelled("", name, flag, perm)
}

func (f Fault) openLabelled(label, name string, flag int, perm fs.FileMode) (File, error) {
	if err := f.before(Op{Kind: OpOpen, Name: name, Handle: label}); err != nil {
		return nil, err
	}
	file, err := f.FS.Open(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &faultFile{File: file, fault: f, name: name, handle: label}, nil
}

// Remove implements FS.
func (f Fault) Remove(name string) error {
	if err := f.before(Op{Kind: OpRemove, Name: name}); err != nil {
		return err
	}
	return f.FS.Remove(name)
}

// Rename implements FS.
func (f Fault) Rename(oldName, newName string) error {
	if err := f.before(Op{Kind: OpRename, Name: oldName, NewName: newName}); err != nil {
		return err
	}
	return f.FS.Rename(oldName, newName)
}

// MkdirAll implements FS.
func (f Fault) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.before(Op{Kind: OpMkdir, Name: name}); err != nil {
		return err
	}
	return f.FS.MkdirAll(name, perm)
}

// ReadDir implements FS.
func (f Fault) ReadDir(name string) ([]string, error) {
	if err := f.before(Op{Kind: OpReadDir, Name: name}); err != nil {
		return nil, err
	}
	return f.FS.ReadDir(name)
}

// Size implements FS.
func (f Fault) Size(name string) (sizeBytes int64, err error) {
	if err := f.before(Op{Kind: OpStat, Name: name}); err != nil {
		return 0, err
	}
	return f.FS.Size(name)
}

// SyncDir implements FS.
func (f Fault) SyncDir(name string) error {
	if err := f.before(Op{Kind: OpSyncDir, Name: name}); err != nil {
		return err
	}
	return f.FS.SyncDir(name)
}

// Free implements FS.
func (f Fault) Free(name string) (sizeBytes int64, err error) {
	if err := f.before(Op{Kind: OpFree, Name: name}); err != nil {
		return 0, err
	}
	return f.FS.Free(name)
}

// Total implements FS.
func (f Fault) Total(name string) (sizeBytes int64, err error) {
	if err := f.before(Op{Kind: OpFree, Name: name}); err != nil {
		return 0, err
	}
	return f.FS.Total(name)
}

// Lock implements FS.
func (f Fault) Lock(name string) (io.Closer, error) {
	if err := f.before(Op{Kind: OpLock, Name: name}); err != nil {
		return nil, err
	}
	return f.FS.Lock(name)
}

// External implements FS.
func (f Fault) External(name string) (osPath string, committed func() error, err error) {
	if err := f.before(Op{Kind: OpExternal, Name: name}); err != nil {
		return "", nil, err
	}
	osPath, inner, err := f.FS.External(name)
	if err != nil {
		return "", nil, err
	}
	committed = func() error {
		if err := f.before(Op{Kind: OpCommitted, Name: name}); err != nil {
			return err
		}
		return inner()
	}
	return osPath, committed, nil
}

type faultFile struct {
	File
	fault        Fault
	name, handle string
}

func (f *faultFile) before(kind OpKind, off, lengthBytes int64) error {
	return f.fault.before(Op{Kind: kind, Name: f.name, Off: off, Len: lengthBytes, Handle: f.handle})
}

func (f *faultFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.before(OpRead, off, int64(len(p)))
	return transfer(f.File.ReadAt, p, off, err)
}

func (f *faultFile) TryReadAt(p []byte, off int64) (n int, err error) {
	err = f.before(OpTryRead, off, int64(len(p)))
	return transfer(f.File.TryReadAt, p, off, err)
}

func (f *faultFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.before(OpWrite, off, int64(len(p)))
	return transfer(f.File.WriteAt, p, off, err)
}

// transfer runs a read or a write as far as the hook's error lets it.
func transfer(do func(p []byte, off int64) (int, error), p []byte, off int64, hookErr error) (n int, err error) {
	var short ShortError
	switch {
	case hookErr == nil:
		return do(p, off)
	case !errors.As(hookErr, &short):
		return 0, hookErr
	}
	if n, err = do(p[:min(max(short.N, 0), len(p))], off); err != nil {
		return n, err
	}
	return n, hookErr
}

func (f *faultFile) Truncate(sizeBytes int64) error {
	if err := f.before(OpTruncate, 0, sizeBytes); err != nil {
		return err
	}
	return f.File.Truncate(sizeBytes)
}

func (f *faultFile) Punch(off, lengthBytes int64) error {
	if err := f.before(OpPunch, off, lengthBytes); err != nil {
		return err
	}
	return f.File.Punch(off, lengthBytes)
}

func (f *faultFile) Allocate(off, lengthBytes int64) error {
	if err := f.before(OpAllocate, off, lengthBytes); err != nil {
		return err
	}
	return f.File.Allocate(off, lengthBytes)
}

func (f *faultFile) Zero(off, lengthBytes int64) error {
	if err := f.before(OpZero, off, lengthBytes); err != nil {
		return err
	}
	return f.File.Zero(off, lengthBytes)
}

func (f *faultFile) CloneRange(from File, off, lengthBytes int64) error {
	if err := f.before(OpCloneRange, off, lengthBytes); err != nil {
		return err
	}
	if other, ok := from.(*faultFile); ok {
		from = other.File
	}
	return f.File.CloneRange(from, off, lengthBytes)
}

func (f *faultFile) Data(off int64) (start, end int64, err error) {
	if err := f.before(OpData, off, 0); err != nil {
		return 0, 0, err
	}
	return f.File.Data(off)
}

func (f *faultFile) WriteBack(off, lengthBytes int64) error {
	if err := f.before(OpWriteBack, off, lengthBytes); err != nil {
		return f.lose(err)
	}
	return f.File.WriteBack(off, lengthBytes)
}

func (f *faultFile) Sync() error {
	if err := f.before(OpSync, 0, 0); err != nil {
		return f.lose(err)
	}
	return f.File.Sync()
}

// lose does what a LostError says, and returns the hook's error.
func (f *faultFile) lose(hookErr error) error {
	var lost LostError
	if errors.As(hookErr, &lost) {
		if file, ok := f.File.(*simFile); ok {
			file.lose(lost.Evict, lost.Rand)
		}
	}
	return hookErr
}

func (f *faultFile) DropCache() error {
	if err := f.before(OpDropCache, 0, 0); err != nil {
		return err
	}
	return f.File.DropCache()
}

func (f *faultFile) Close() error {
	return errors.Join(f.before(OpClose, 0, 0), f.File.Close())
}

// Labelled is an FS whose open files carry a label that a Fault right below it
// shows in Op.Handle, so that a test can tell apart who works on one file. Over
// any other FS it changes nothing.
type Labelled struct {
	FS
	Label string
}

var _ FS = Labelled{}

// Open implements FS.
func (l Labelled) Open(name string, flag int, perm fs.FileMode) (File, error) {
	if below, ok := l.FS.(interface {
		openLabelled(label, name string, flag int, perm fs.FileMode) (File, error)
	}); ok {
		return below.openLabelled(l.Label, name, flag, perm)
	}
	return l.FS.Open(name, flag, perm)
}

package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
)

// ErrKilled is returned by every call on a Sim, and on what was opened through
// it, after its Kill.
var ErrKilled = errors.New("vfs: the simulated process is dead")

// Sim is a file system in memory, for tests, that remembers what was done to it
// and can say what a disk might hold after a power cut at any point of that.
//
// A Sim is one life of a process on one disk. Kill ends the life and goes on
// with the same disk and page cache; PowerCut makes another disk, and leaves
// this one as it is, so that one run can be cut at every operation.
//
// # Operations
//
// Each of these adds to a numbered log: write, truncate, punch, zero, allocate;
// create (by Open, MkdirAll, Lock), rename, remove; and a version of an
// external file. A Sync or SyncDir adds two, one when it begins and one when it
// returns. A cut before operation n is the state in which 0..n-1 have happened.
//
// # What a power cut leaves
//
// Nothing on a disk changes by being read, written back (WriteBack) or closed.
// A Sync is done if it returned before the cut; it covers the operations on its
// file that came before it began, not those that ran beside it. SyncDir does
// the same for the entries of its directory, and for nothing below them.
//
//   - Contents. What a done Sync covers is there. Of each later write, every
//     512-byte sector may be there or not, all, none or some of them, whatever
//     became of other writes, before or after. A sector that is there is so as
//     the page cache had it after that write; with several, the last of those
//     that are there. So sectors are never torn within, and writes reach the
//     disk in any order. A punch or zero may be there, or not, or from one end
//     of its range to some page.
//   - Size. Each change of the size by itself may be there or not: a file may
//     have grown without its data (zeros), and a write of which a sector is
//     there has grown the file that far. A truncate is there whole or not.
//   - Names. Of the changes of a directory that no SyncDir covers, each by
//     itself may be there or not, whatever became of others; those that are
//     there take effect in order. (A file system with a journal keeps a prefix;
//     POSIX does not ask for it.) A rename is one change. Which contents a name
//     has is as above: a rename brings nothing that was not synced. A new file,
//     or a new directory with all in it, whose entry is not there, is not there,
//     synced or not (POSIX promises no more, though ext4 does).
//   - External files. One of the versions that its owner told of: the last
//     before the cut, or the next one, as the cut may fall within its commit; or
//     what a commit of bbolt leaves that was cut short: the first two pages as
//     they were, and of the others any sectors of either version. (bbolt syncs
//     the others before it writes one of the two.)
//
// # What a kill leaves
//
// The page cache, so every operation that returned. Of a write that ran, a
// number of whole pages from its start may be there (a signal cuts a large
// pwrite short); of a commit of an external file, what a power cut may leave.
//
// How storage is reserved is not simulated: Zero and Allocate leave holes, and
// no write finds the disk full (Fault does that). Nor are file systems that show
// another file's old blocks in one that grew (ext4 with data=writeback): a disk
// of Tidemark must not lie on one.
//
// Rejected: a disk image under a real file system. It would test that file
// system's promises, of which POSIX makes fewer, and take seconds for a cut.
type Sim struct {
	// DuringSync, if set before use, is called in the middle of each Sync and
	// SyncDir with the name of the file or directory, with no lock held: what is
	// written there is not covered by that Sync.
	DuringSync func(name string)
	// Clones, if set before use, lets File.CloneRange do what a write does. What
	// becomes of it in a crash is what becomes of a write.
	Clones bool

	disk    *simDisk
	bootID  string
	tempDir string

	// Guarded by disk.mu.
	dead   bool
	locked map[*simNode]bool
}

var _ FS = (*Sim)(nil)

var simBoots atomic.Int64

// NewSim returns an empty file system: a root directory, which paths may name
// as "/" or leave out. tempDir is a real directory for files that go by
// External; what is put there is left there.
func NewSim(tempDir string) *Sim {
	return newSim(newSimDisk(newSimDir()), tempDir)
}

func newSim(disk *simDisk, tempDir string) *Sim {
	return &Sim{
		disk:    disk,
		bootID:  fmt.Sprintf("sim-boot-%d", simBoots.Add(1)),
		tempDir: tempDir,
		locked:  map[*simNode]bool{},
	}
}

// Ops returns how many operations the log holds.
func (s *Sim) Ops() int {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	return len(s.disk.log)
}

// Kill ends this life as kill -9 does: every later call on it returns
// ErrKilled, its locks are free. It returns the next life on the same disk,
// with all that was written, under the same boot ID and with the log going on.
// An external file is copied, as the library that is still at work on the old
// one can't be killed; it had better be at rest.
func (s *Sim) Kill() *Sim {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	s.dead = true
	s.disk.detachExternals()
	next := newSim(s.disk, s.tempDir)
	next.bootID = s.bootID
	next.DuringSync, next.Clones = s.DuringSync, s.Clones
	return next
}

// KillAt returns the life that would go on if this one had been killed just
// before operation at, chosen by rng where a kill leaves a choice; a nil rng
// keeps nothing of what had not returned. This Sim goes on as before. Any at
// beyond Ops() is Ops().
func (s *Sim) KillAt(at int, rng *rand.Rand) *Sim {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	next := newSim(s.disk.killed(at, rng), s.tempDir)
	next.bootID, next.Clones = s.bootID, s.Clones
	return next
}

// PowerCut returns a file system that holds one of the legal states of the disk
// after a power cut just before operation at, chosen by rng, under a new boot
// ID; the same rng state gives the same choice. A nil rng loses all that a cut
// may lose. This Sim goes on as before. Any at beyond Ops() is Ops().
func (s *Sim) PowerCut(at int, rng *rand.Rand) *Sim {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	next := newSim(s.disk.cut(at, rng), s.tempDir)
	next.Clones = s.Clones
	return next
}

// Open implements FS.
func (s *Sim) Open(name string, flag int, perm fs.FileMode) (File, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	node, err := s.disk.open(name, flag)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &simFile{sim: s, node: node, name: name, access: flag & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)}, nil
}

// Remove implements FS.
func (s *Sim) Remove(name string) error {
	return s.pathOp("remove", name, s.disk.remove)
}

// Rename implements FS, for files within one directory.
func (s *Sim) Rename(oldName, newName string) error {
	return s.pathOp("rename", oldName, func(oldName string) error { return s.disk.rename(oldName, newName) })
}

// MkdirAll implements FS.
func (s *Sim) MkdirAll(name string, _ fs.FileMode) error {
	return s.pathOp("mkdir", name, s.disk.mkdirAll)
}

// ReadDir implements FS.
func (s *Sim) ReadDir(name string) (names []string, err error) {
	err = s.pathOp("readdir", name, func(name string) error {
		dir, err := s.disk.dir(name)
		if err != nil {
			return err
		}
		for child := range dir.entries {
			names = append(names, child)
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

// Size implements FS.
func (s *Sim) Size(name string) (sizeBytes int64, err error) {
	err = s.pathOp("stat", name, func(name string) error {
		node, err := s.disk.lookup(name)
		switch {
		case err != nil:
			return err
		case node.external != nil:
			v, err := node.external.now()
			sizeBytes = int64(len(v.data))
			return err
		default:
			sizeBytes = node.content.sizeBytes
			return nil
		}
	})
	return sizeBytes, err
}

// SyncDir implements FS.
func (s *Sim) SyncDir(name string) error {
	var dir *simNode
	err := s.pathOp("syncdir", name, func(name string) (err error) {
		dir, err = s.disk.dir(name)
		return err
	})
	if err != nil {
		return err
	}
	return s.sync(dir, name)
}

// sync is Sync and SyncDir: two operations with room between them for others.
func (s *Sim) sync(node *simNode, name string) error {
	if err := s.enter(); err != nil {
		return err
	}
	began := s.disk.record(simOp{kind: simSyncBegins, node: node})
	s.leave()
	if s.DuringSync != nil {
		s.DuringSync(name)
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	s.disk.record(simOp{kind: simSyncReturns, node: node, began: began})
	return nil
}

// Free implements FS: a Sim is never full (Quota is).
func (s *Sim) Free(string) (sizeBytes int64, err error) { return math.MaxInt64, nil }

// Total implements FS.
func (s *Sim) Total(string) (sizeBytes int64, err error) { return math.MaxInt64, nil }

// Lock implements FS.
func (s *Sim) Lock(name string) (io.Closer, error) {
	var node *simNode
	err := s.pathOp("lock", name, func(name string) (err error) {
		node, err = s.disk.open(name, os.O_RDWR|os.O_CREATE)
		if err == nil && s.locked[node] {
			err = ErrLocked
		}
		if err == nil {
			s.locked[node] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &simLock{sim: s, node: node}, nil
}

type simLock struct {
	sim  *Sim
	node *simNode
}

func (l *simLock) Close() error {
	if err := l.sim.enter(); err != nil {
		return err
	}
	defer l.sim.leave()
	if l.node == nil {
		return fs.ErrClosed
	}
	delete(l.sim.locked, l.node)
	l.node = nil
	return nil
}

// External implements FS. The file lies in the temporary directory. Each call
// of committed takes its whole content as what the disk then holds; call it
// before and after each commit of the library, and after the file was made.
func (s *Sim) External(name string) (osPath string, committed func() error, err error) {
	var node *simNode
	err = s.pathOp("external", name, func(name string) (err error) {
		node, err = s.disk.openExternal(name, s.tempDir)
		if err == nil {
			osPath = node.external.osPath
		}
		return err
	})
	if err != nil {
		return "", nil, err
	}
	committed = func() error {
		return s.pathOp("committed", name, func(string) error { return s.disk.recordVersion(node) })
	}
	return osPath, committed, nil
}

// BootID implements FS. It differs between any two Sims but those that Kill
// links.
func (s *Sim) BootID() (string, error) {
	if err := s.enter(); err != nil {
		return "", err
	}
	defer s.leave()
	return s.bootID, nil
}

// pathOp runs do under the lock, and says what was done in its error.
func (s *Sim) pathOp(op, name string, do func(name string) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	err := s.disk.adoptExternals()
	if err == nil {
		err = do(name)
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// enter takes the disk's lock, unless this life is over.
func (s *Sim) enter() error {
	s.disk.mu.Lock()
	if s.dead {
		s.disk.mu.Unlock()
		return ErrKilled
	}
	return nil
}

func (s *Sim) leave() { s.disk.mu.Unlock() }

// simFile is an open file of a Sim.
type simFile struct {
	sim    *Sim
	node   *simNode
	name   string
	access int
	closed bool // guarded by sim.disk.mu
}

func (f *simFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.do("read", func(d *simDisk) error {
		if f.access == os.O_WRONLY {
			return syscall.EBADF
		}
		if off < 0 {
			return syscall.EINVAL
		}
		n = f.node.content.readAt(p, off)
		return nil
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (f *simFile) TryReadAt(p []byte, off int64) (n int, err error) { return f.ReadAt(p, off) }

func (f *simFile) WriteAt(p []byte, off int64) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	err = f.change("write", off, int64(len(p)), func(c *content) change { return c.written(p, off) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *simFile) Size() (sizeBytes int64, err error) {
	err = f.do("stat", func(d *simDisk) error {
		sizeBytes = f.node.content.sizeBytes
		return nil
	})
	return sizeBytes, err
}

func (f *simFile) Allocated() (sizeBytes int64, err error) {
	err = f.do("stat", func(d *simDisk) error {
		sizeBytes = int64(len(f.node.content.pages)) * pageBytes
		return nil
	})
	return sizeBytes, err
}

func (f *simFile) Truncate(sizeBytes int64) error {
	return f.change("truncate", sizeBytes, 0, func(c *content) change { return c.truncated(sizeBytes) })
}

func (f *simFile) Punch(off, lengthBytes int64) error {
	return f.change("punch", off, lengthBytes, func(c *content) change { return c.punched(off, lengthBytes) })
}

func (f *simFile) Zero(off, lengthBytes int64) error {
	return f.change("zero", off, lengthBytes, func(c *content) change {
		zeroed := c.punched(off, lengthBytes)
		zeroed.size, zeroed.sizeBytes = grows, off+lengthBytes
		return zeroed
	})
}

func (f *simFile) CloneRange(from File, off, lengthBytes int64) error {
	other, ok := from.(*simFile)
	if !ok || !f.sim.Clones {
		return errors.ErrUnsupported
	}
	data := make([]byte, lengthBytes)
	if _, err := other.ReadAt(data, off); err != nil {
		return err
	}
	return f.change("clone", off, lengthBytes, func(c *content) change { return c.written(data, off) })
}

func (f *simFile) Allocate(off, lengthBytes int64) error {
	return f.change("allocate", off, lengthBytes, func(*content) change { return change{} })
}

func (f *simFile) Data(off int64) (start, end int64, err error) {
	ok := false
	err = f.do("data", func(d *simDisk) error {
		start, end, ok = f.node.content.data(off)
		return nil
	})
	if err == nil && !ok {
		err = io.EOF
	}
	return start, end, err
}

func (f *simFile) Prefetch(off, lengthBytes int64) error {
	return f.do("prefetch", func(*simDisk) error { return nil })
}

func (f *simFile) WriteBack(off, lengthBytes int64) error {
	return f.do("writeback", func(*simDisk) error { return nil })
}

func (f *simFile) Sync() error {
	if err := f.do("sync", func(*simDisk) error { return nil }); err != nil {
		return err
	}
	return f.sim.sync(f.node, f.name)
}

func (f *simFile) Close() error {
	return f.do("close", func(*simDisk) error {
		f.closed = true
		return nil
	})
}

// change makes one recorded change of the contents.
func (f *simFile) change(op string, off, lengthBytes int64, make func(*content) change) error {
	return f.do(op, func(d *simDisk) error {
		switch {
		case f.access == os.O_RDONLY:
			return syscall.EBADF
		case off < 0 || lengthBytes < 0 || off+lengthBytes < 0:
			return syscall.EINVAL
		}
		d.change(f.node, make(&f.node.content))
		return nil
	})
}

func (f *simFile) do(op string, do func(*simDisk) error) error {
	if err := f.sim.enter(); err != nil {
		return &fs.PathError{Op: op, Path: f.name, Err: err}
	}
	defer f.sim.leave()
	err := fs.ErrClosed
	if !f.closed {
		err = do(f.sim.disk)
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: f.name, Err: err}
	}
	return nil
}

// splitPath returns the parts of a path below the root.
func splitPath(name string) []string {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

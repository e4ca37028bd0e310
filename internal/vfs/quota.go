package vfs

import (
	"io/fs"
	"os"
	"sync"
	"syscall"
)

// Quota is an FS over another one, for tests, that has room for a number of
// bytes. It counts the pages that are written or reserved through it, by file;
// what finds no room fails with syscall.ENOSPC, a write after the pages that
// still did. Names and external files take no room.
type Quota struct {
	FS
	books *books
}

// books say what every file takes up. Files are known by their names, as a
// rename moves them, and by their nodes once they are open.
type books struct {
	mu          sync.Mutex
	budgetPages int64
	usedPages   int64
	files       map[string]pages
}

type pages map[int64]struct{}

var _ FS = (*Quota)(nil)

// NewQuota returns a Quota of budgetBytes over an FS that holds nothing yet.
func NewQuota(below FS, budgetBytes int64) *Quota {
	return &Quota{FS: below, books: &books{budgetPages: budgetBytes / pageBytes, files: map[string]pages{}}}
}

// Over returns a Quota over another FS that holds the same files: the next life
// of a process on one disk. Budget and books are shared.
func (q *Quota) Over(below FS) *Quota { return &Quota{FS: below, books: q.books} }

// SetFree makes the budget so large that this many bytes are left.
func (q *Quota) SetFree(sizeBytes int64) {
	q.books.mu.Lock()
	defer q.books.mu.Unlock()
	q.books.budgetPages = q.books.usedPages + sizeBytes/pageBytes
}

// Free implements FS.
func (q *Quota) Free(string) (sizeBytes int64, err error) {
	q.books.mu.Lock()
	defer q.books.mu.Unlock()
	return max(0, q.books.budgetPages-q.books.usedPages) * pageBytes, nil
}

// Total implements FS.
func (q *Quota) Total(string) (sizeBytes int64, err error) {
	q.books.mu.Lock()
	defer q.books.mu.Unlock()
	return q.books.budgetPages * pageBytes, nil
}

// Open implements FS.
func (q *Quota) Open(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := q.FS.Open(name, flag, perm)
	if err != nil {
		return nil, err
	}
	b := q.books
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.files[name]
	if p == nil {
		p = pages{}
		b.files[name] = p
	}
	if flag&os.O_TRUNC != 0 {
		b.giveBack(p, 0, endOfFiles)
	}
	return &quotaFile{File: f, name: name, books: b, pages: p}, nil
}

// Remove implements FS.
func (q *Quota) Remove(name string) error {
	if err := q.FS.Remove(name); err != nil {
		return err
	}
	q.books.mu.Lock()
	defer q.books.mu.Unlock()
	q.books.giveBack(q.books.files[name], 0, endOfFiles)
	delete(q.books.files, name)
	return nil
}

// Rename implements FS.
func (q *Quota) Rename(oldName, newName string) error {
	if err := q.FS.Rename(oldName, newName); err != nil {
		return err
	}
	q.books.mu.Lock()
	defer q.books.mu.Unlock()
	q.books.giveBack(q.books.files[newName], 0, endOfFiles)
	q.books.files[newName] = q.books.files[oldName]
	delete(q.books.files, oldName)
	return nil
}

// take gives a file pages from..to-1, as many from the start as there is room
// for, and returns the first that it did not get. mu is held.
func (b *books) take(p pages, from, to int64) int64 {
	for n := from; n < to; n++ {
		if _, has := p[n]; has {
			continue
		}
		if b.usedPages >= b.budgetPages {
			return n
		}
		p[n] = struct{}{}
		b.usedPages++
	}
	return to
}

// giveBack takes pages from..to-1 of a file away. mu is held.
func (b *books) giveBack(p pages, from, to int64) {
	for n := range p {
		if from <= n && n < to {
			delete(p, n)
			b.usedPages--
		}
	}
}

type quotaFile struct {
	File
	name  string
	books *books
	pages pages
}

// take gets room for a range, or says how many bytes of it have some.
func (f *quotaFile) take(op string, off, lengthBytes int64) (n int64, err error) {
	f.books.mu.Lock()
	defer f.books.mu.Unlock()
	from, to := off/pageBytes, (off+lengthBytes+pageBytes-1)/pageBytes
	if got := f.books.take(f.pages, from, to); got < to {
		return max(0, got*pageBytes-off), &fs.PathError{Op: op, Path: f.name, Err: syscall.ENOSPC}
	}
	return lengthBytes, nil
}

func (f *quotaFile) giveBack(off, end int64) {
	f.books.mu.Lock()
	defer f.books.mu.Unlock()
	f.books.giveBack(f.pages, (off+pageBytes-1)/pageBytes, end/pageBytes)
}

func (f *quotaFile) WriteAt(p []byte, off int64) (int, error) {
	room, full := f.take("write", off, int64(len(p)))
	n, err := f.File.WriteAt(p[:room], off)
	if err == nil {
		err = full
	}
	return n, err
}

func (f *quotaFile) Allocate(off, lengthBytes int64) error {
	if _, err := f.take("allocate", off, lengthBytes); err != nil {
		return err
	}
	return f.File.Allocate(off, lengthBytes)
}

func (f *quotaFile) Zero(off, lengthBytes int64) error {
	if _, err := f.take("zero", off, lengthBytes); err != nil {
		return err
	}
	return f.File.Zero(off, lengthBytes)
}

func (f *quotaFile) CloneRange(from File, off, lengthBytes int64) error {
	if _, err := f.take("clone", off, lengthBytes); err != nil {
		return err
	}
	if other, ok := from.(*quotaFile); ok {
		from = other.File
	}
	return f.File.CloneRange(from, off, lengthBytes)
}

func (f *quotaFile) Punch(off, lengthBytes int64) error {
	if err := f.File.Punch(off, lengthBytes); err != nil {
		return err
	}
	f.giveBack(off, off+lengthBytes)
	return nil
}

func (f *quotaFile) Truncate(sizeBytes int64) error {
	if err := f.File.Truncate(sizeBytes); err != nil {
		return err
	}
	f.giveBack(sizeBytes, endOfFiles*sectorBytes)
	return nil
}

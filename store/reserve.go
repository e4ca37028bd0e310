package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/internal/vfs"
)

// DefaultReserveBytes is the reserve of a server that was told nothing else.
const DefaultReserveBytes = 64 << 20

// reserve is storage that a data directory holds in the file "reserve", so that
// on a full disk its own records still find room: table changes, commits, and
// what a delete writes before it frees anything.
//
//  1. Records draw on it, the data of clients never: a full disk is full for
//     them, and writes to blocks that are there already need no room.
//  2. A record that finds no room is written again after each piece that the
//     reserve gives up, until there is no more. What else the piece has room for
//     is set aside behind the record, for those after it, before a client's
//     write finds it.
//  3. What was given up is taken back in the background as soon as there is room.
//  4. While it is not whole, or when less than as much again is free, nothing
//     begins that needs room later: after a preserve every overwrite does.
//
// The file holds zeros, and nothing is ever read from it.
//
// Rejected: to look how much is free before each record (what is free now is a
// client's a moment later); a reserve in each journal (most would never need
// theirs).
type reserve struct {
	below      vfs.FS
	name       string
	bytes      int64 // 0: there is none
	pieceBytes int64

	held     atomic.Int64
	stop     chan struct{}
	fillings sync.WaitGroup

	mu      sync.Mutex // held while the file changes
	file    vfs.File   // nil if there is none, or when it is closed
	filling bool       // a goroutine waits for room
}

// reserveEvery is how often the reserve looks for room to take back.
const reserveEvery = time.Second

func reserveName(dir string) string { return path.Join(dir, "reserve") }

// openReserve makes the reserve whole, or as large as there is room for.
func openReserve(below vfs.FS, dir string, bytes int64) (*reserve, error) {
	if bytes < 0 {
		return nil, fmt.Errorf("%w: a reserve of %d bytes: allowed are 0 for none, and more", ErrInvalid, bytes)
	}
	r := &reserve{below: below, name: reserveName(dir), bytes: bytes, pieceBytes: max(bytes/16, 4096), stop: make(chan struct{})}
	if bytes == 0 {
		if err := below.Remove(r.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the reserve: %w", err)
		}
		return r, nil
	}
	f, err := below.Open(r.name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the reserve: %w", err)
	}
	r.file = f
	if err := r.take(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		if errors.Is(err, errors.ErrUnsupported) {
			err = fmt.Errorf("the file system can't set storage aside: do without by --reserve 0: %w", err)
		}
		return nil, errors.Join(fmt.Errorf("make the reserve: %w", err), f.Close())
	}
	r.refillLocked()
	return r, nil
}

// take makes the file as large as there is room for, piece by piece. What it
// holds already is asked for again: a copy of the directory may have holes there.
func (r *reserve) take() error {
	for at := int64(0); at < r.bytes; at += r.pieceBytes {
		end := min(at+r.pieceBytes, r.bytes)
		err := r.file.Allocate(at, end-at)
		if err == nil && end > r.held.Load() {
			err = r.file.Truncate(end)
		}
		if err != nil { // what the piece got all the same would be nobody's
			return errors.Join(err, r.file.Truncate(r.held.Load()))
		}
		r.held.Store(max(end, r.held.Load()))
	}
	return r.file.Truncate(r.bytes) // it was larger
}

// giveUp frees a piece, and tells whether there was one.
func (r *reserve) giveUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := r.held.Load()
	if r.file == nil || held == 0 {
		return false
	}
	left := max(0, held-r.pieceBytes)
	if err := r.file.Truncate(left); err != nil {
		return false
	}
	r.held.Store(left)
	r.refillLocked()
	return true
}

// refillLocked has the reserve taken back when there is room; mu is held.
func (r *reserve) refillLocked() {
	if r.filling || r.held.Load() == r.bytes {
		return
	}
	r.filling = true
	r.fillings.Go(func() {
		ticker := time.NewTicker(reserveEvery)
		defer ticker.Stop()
		for done := false; !done; done = r.refill() {
			select {
			case <-r.stop:
				return
			case <-ticker.C:
			}
		}
	})
}

// refill takes back what there is room for, and tells whether that was all. It
// leaves a piece free: a disk that is full to the last byte stays full for long.
func (r *reserve) refill() (whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if free, err := r.below.Free(r.name); err != nil || free < 2*r.pieceBytes {
		return false
	}
	r.filling = r.take() != nil
	return !r.filling
}

// spare returns ErrNoSpace unless something may begin that needs room later.
func (r *reserve) spare() error {
	if r.bytes == 0 {
		return nil
	}
	free, err := r.below.Free(r.name)
	switch held := r.held.Load(); {
	case err != nil:
		return fmt.Errorf("how much is free: %w", err)
	case held < r.bytes:
		return fmt.Errorf("%w: the reserve has %d of %d bytes: make room, it is then taken back by itself", ErrNoSpace, held, r.bytes)
	case free < r.bytes:
		return fmt.Errorf("%w: %d bytes are free, and %d must be beside the reserve", ErrNoSpace, free, r.bytes)
	}
	return nil
}

// close lets the file go, as it is.
func (r *reserve) close() error {
	close(r.stop)
	r.fillings.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

// drawing runs what writes a record, again while it finds no room and the
// reserve gives some up; before it runs again, claim may set that aside.
func (r *reserve) drawing(write func() error, claim func(lengthBytes int64)) error {
	for {
		err := write()
		if !errors.Is(err, syscall.ENOSPC) || !r.giveUp() {
			return err
		}
		if claim != nil {
			claim(r.pieceBytes)
		}
	}
}

// records is the FS for records: what is written through it draws on the reserve.
type records struct {
	vfs.FS
	reserve *reserve
}

// Open implements vfs.FS.
func (s records) Open(name string, flag int, perm fs.FileMode) (f vfs.File, err error) {
	err = s.reserve.drawing(func() error {
		f, err = s.FS.Open(name, flag, perm)
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	return recordFile{f, s.reserve}, nil
}

// Rename implements vfs.FS.
func (s records) Rename(oldName, newName string) error {
	return s.reserve.drawing(func() error { return s.FS.Rename(oldName, newName) }, nil)
}

// MkdirAll implements vfs.FS.
func (s records) MkdirAll(name string, perm fs.FileMode) error {
	return s.reserve.drawing(func() error { return s.FS.MkdirAll(name, perm) }, nil)
}

type recordFile struct {
	vfs.File
	reserve *reserve
}

// WriteAt implements vfs.File. It writes all of p again: what of it was there
// before is the same.
func (f recordFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.reserve.drawing(func() error {
		n, err = f.File.WriteAt(p, off)
		return err
	}, func(lengthBytes int64) {
		_ = f.File.Allocate(off, lengthBytes) // if a client was faster, the write says so
	})
	return n, err
}

// names is the catalog, whose commits draw on the reserve.
type names struct {
	*catalog.Catalog
	reserve *reserve
}

// Update is catalog.Catalog.Update. It runs change again when that had no effect.
func (n names) Update(change func(*catalog.Tx) error) error {
	return n.drawing(func() error { return n.Catalog.Update(change) })
}

// Append is catalog.Catalog.Append.
func (n names) Append(change func(catalog.Links) error) error {
	return n.drawing(func() error { return n.Catalog.Append(change) })
}

// Load is catalog.Catalog.Load.
func (n names) Load() (state catalog.State, err error) {
	err = n.drawing(func() error {
		state, err = n.Catalog.Load()
		return err
	})
	return state, err
}

func (n names) drawing(commit func() error) error {
	for {
		err := commit()
		if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, catalog.ErrFailed) || !n.reserve.giveUp() {
			return err
		}
	}
}

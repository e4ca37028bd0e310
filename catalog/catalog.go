// Package catalog keeps the names that last: volumes, their chains of images
// and their snapshots, in one bbolt file.
package catalog

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	boltErrors "go.etcd.io/bbolt/errors"

	"github.com/tidemark/tidemark/internal/vfs"
)

// Catalog is the owner of every chain: an image exists when the catalog says
// so, and whatever else speaks of images (the journal) speaks only of those
// that it already has. A preserve is prepared by one Update that appends the
// next image to every one of its volumes, before the cut.
//
// What holds at every instant, power cuts included:
//
//  1. One Update is one bbolt commit: after a crash all of it is there or none,
//     and all of it once Update has returned nil.
//  2. Ids are never used twice. The counters lie in the same commit as what
//     they number; an id drawn by an Update that failed is not drawn again by
//     this Catalog (after a reopen it may be: nothing durable bears it).
//  3. Nothing damaged is served. bbolt checks only its meta pages, and follows
//     what it reads on the others into panics and foreign memory; so Open
//     walks the pages itself first (pages.go), each record carries a CRC over
//     key and value, and the meta record counts and sums all records and names
//     the bbolt transaction that wrote it, which finds one that is missing,
//     in excess or of an older commit.
//  4. A commit that failed is final: nobody knows which state the disk holds,
//     so no later Update may build on either. So that a full disk is not such a
//     failure, an Update sets storage aside in the file before it begins.
//  5. What Open serves is durable, also when the last owner died between a
//     write and its sync.
//
// What a preserve waits for goes through a log (type log), and is committed later.
//
// bbolt's free list is not stored but rebuilt at Open: a page less in each
// commit, and no list that could name a live page as free.
//
// Rejected: falling back to the other meta page when one is damaged, as bbolt
// does. A meta page lies in one sector, so a power cut does not tear it; what
// damages it is rot, and the fallback is silently the state before an
// acknowledged commit.
//
// All methods may be called from any goroutine.
type Catalog struct {
	fsys      vfs.FS
	name      string
	committed func() error // vfs.FS.External
	db        *bolt.DB
	file      vfs.File // the same file, to set storage aside in it
	log       log

	failure atomic.Pointer[error] // the first failed commit
	closed  atomic.Bool
	drawn   counters // ids drawn, also by Updates that failed; guarded by log.mu

	mu        sync.Mutex // one Update or Load at a time, through its commit; taken before log.mu
	roomBytes int64      // of the file, set aside for it since Open; guarded by mu
}

// bucketName is the bucket that holds every record (record.go).
const bucketName = "catalog"

// pageSizeBytes is fixed, so that a file is read alike on every machine.
const pageSizeBytes = 4096

// Open opens the catalog in the file name, and makes an empty one with a new
// DirID if there is none. The directory must exist; the caller keeps other
// servers out of it. Errors: ErrFormat, ErrCorrupt, vfs.ErrLocked when a
// Catalog is open on the file.
func Open(fsys vfs.FS, name string) (*Catalog, error) {
	c, err := open(fsys, name)
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", name, err)
	}
	return c, nil
}

func open(fsys vfs.FS, name string) (*Catalog, error) {
	osPath, committed, err := fsys.External(name)
	if err != nil {
		return nil, err
	}
	switch _, err := os.Stat(osPath); {
	case errors.Is(err, fs.ErrNotExist):
		if err := create(osPath, committed); err != nil {
			return nil, fmt.Errorf("make it: %w", err)
		}
	case err != nil:
		return nil, err
	}
	if err := syncFile(osPath); err != nil { // invariant 5
		return nil, err
	}
	if err := fsys.SyncDir(path.Dir(name)); err != nil {
		return nil, fmt.Errorf("sync its directory: %w", err)
	}
	last, _, err := verifyFile(osPath)
	if err != nil {
		return nil, err
	}
	file, err := vfs.OS{}.Open(osPath, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	db, err := openBolt(osPath)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	c := &Catalog{fsys: fsys, name: name, committed: committed, db: db, file: file, drawn: last.counters}
	if err := c.openLog(fsys, name+logSuffix, last); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// create makes an empty catalog beside osPath and puts what it holds there, so
// that a file of that name is never one that a crash left half made.
func create(osPath string, committed func() error) error {
	temp := osPath + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := openBolt(temp)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte(bucketName))
		if err != nil {
			return err
		}
		m := meta{
			DirID:       newDirID(),
			counters:    counters{NextVolume: 1, NextImage: 1, NextCut: 1},
			Transaction: uint64(tx.ID()),
		}
		value, err := encode(metaKey, m)
		if err != nil {
			return err
		}
		return bucket.Put(metaKey, value)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	empty, err := os.ReadFile(temp)
	if err := errors.Join(err, os.Remove(temp)); err != nil {
		return err
	}
	if err := committed(); err != nil {
		return err
	}
	err = vfs.Replace(vfs.OS{}, osPath, func(w io.Writer) error {
		_, err := w.Write(empty)
		return err
	})
	return errors.Join(err, committed())
}

func newDirID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

func openBolt(osPath string) (*bolt.DB, error) {
	db, err := bolt.Open(osPath, 0o600, &bolt.Options{
		Timeout:        time.Nanosecond, // one try
		PageSize:       pageSizeBytes,
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
		NoStatistics:   true,
	})
	if errors.Is(err, boltErrors.ErrTimeout) {
		return nil, vfs.ErrLocked
	}
	return db, err
}

func syncFile(osPath string) error {
	f, err := os.OpenFile(osPath, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// verifyFile reads a catalog without bbolt, and believes nothing in it.
func verifyFile(osPath string) (meta, State, error) {
	file, err := os.ReadFile(osPath)
	if err != nil {
		return meta{}, State{}, err
	}
	records, transaction, err := readPages(file)
	if err != nil {
		return meta{}, State{}, err
	}
	return decodeState(records, transaction)
}

// Close closes the files. Later calls return ErrClosed.
func (c *Catalog) Close() error {
	c.log.writing.Lock()
	defer c.log.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return ErrClosed
	}
	err := c.closeLog()
	c.closed.Store(true)
	return errors.Join(err, c.close())
}

func (c *Catalog) close() error {
	err := errors.Join(c.db.Close(), c.file.Close())
	if c.log.file != nil {
		err = errors.Join(err, c.log.file.Close())
	}
	return err
}

// Load returns everything that the catalog holds, checked anew: each record
// against its CRC, all of them against the sum, and what they say against the
// rules of a chain. It commits first what is only in the log. Errors: ErrCorrupt,
// ErrFailed, ErrClosed, syscall.ENOSPC.
func (c *Catalog) Load() (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.failed(); err != nil {
		return State{}, err
	}
	if c.log.isPending() {
		if err := c.update(func(*Tx) error { return nil }); err != nil {
			return State{}, fmt.Errorf("load catalog: %w", err)
		}
	}
	var state State
	err := c.db.View(func(tx *bolt.Tx) error {
		var records []record
		err := tx.Bucket([]byte(bucketName)).ForEach(func(key, value []byte) error {
			records = append(records, record{key: key, value: value})
			return nil
		})
		if err != nil {
			return err
		}
		_, state, err = decodeState(records, uint64(tx.ID()))
		return err
	})
	if err != nil {
		return State{}, fmt.Errorf("load catalog: %w", err)
	}
	return state, nil
}

// Update runs change and makes what it did durable in one commit; nil means
// that all of it is on the disk. An error of change changes nothing and is
// returned as it is, and so does a full disk, which is syscall.ENOSPC. A commit
// that failed returns ErrFailed, and so does every call after it. change must
// not keep tx, nor call the Catalog.
func (c *Catalog) Update(change func(tx *Tx) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.update(change)
}

// update is Update; mu is held.
func (c *Catalog) update(change func(tx *Tx) error) error {
	if err := c.failed(); err != nil {
		return err
	}
	if err := c.prepare(); err != nil {
		return fmt.Errorf("update catalog: %w", err)
	}
	tx, err := c.begin()
	if err != nil {
		return fmt.Errorf("update catalog: %w", err)
	}
	defer tx.giveUp() // of no effect after a commit
	if err := tx.run(change); err != nil {
		return err
	}
	if !tx.changed {
		return nil
	}
	// What change saw may be newer than prepare: a simulated disk must not take the
	// commit for begun before it.
	if err := c.committed(); err != nil {
		return fmt.Errorf("update catalog: %w", err)
	}
	if err := c.commit(tx); err != nil {
		return c.fail(fmt.Errorf("update catalog: %w", err))
	}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.log.applied = tx.meta.Logged
	c.log.pending = slices.DeleteFunc(c.log.pending, func(f frame) bool { return f.number <= tx.meta.Logged })
	return nil
}

// Failed returns the first commit that failed, after which no other is begun;
// nil if none did.
func (c *Catalog) Failed() error {
	if err := c.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// failed returns what makes the catalog of no use.
func (c *Catalog) failed() error {
	if c.closed.Load() {
		return ErrClosed
	}
	if err := c.Failed(); err != nil {
		return fmt.Errorf("%w before: %w", ErrFailed, err)
	}
	return nil
}

// fail makes a failure final.
func (c *Catalog) fail(err error) error {
	c.failure.CompareAndSwap(nil, &err)
	return fmt.Errorf("%w: %w", ErrFailed, err)
}

// prepare does what may fail without consequences before a commit: it sets
// storage aside for all the pages that the commit may write, those behind the
// end of the file too. A commit writes no page twice, and hardly ever half of
// them. What was set aside stays, and to ask for it again makes the commit's sync slower
// on ext4.
func (c *Catalog) prepare() error {
	if err := c.committed(); err != nil {
		return err
	}
	sizeBytes, err := c.file.Size()
	if err != nil {
		return err
	}
	wantedBytes := sizeBytes + max(sizeBytes/2, leastRoomBytes)
	if wantedBytes <= c.roomBytes {
		return nil
	}
	err = c.file.Allocate(0, wantedBytes)
	if err == nil || errors.Is(err, errors.ErrUnsupported) { // then the commit finds room, or fails for good
		c.roomBytes = wantedBytes
		return nil
	}
	return err
}

// leastRoomBytes is for the pages of a commit of some hundred links.
const leastRoomBytes = 1 << 20

func (c *Catalog) commit(tx *Tx) error {
	if err := tx.bolt.Commit(); err != nil {
		return err
	}
	return c.committed()
}

// Check reads the catalog in the file name and returns what is wrong with it,
// one line each; none when all is well. The error says that it could not be
// read at all (fs.ErrNotExist). No Catalog may be open on the file.
func Check(fsys vfs.FS, name string) ([]string, error) {
	osPath, _, err := fsys.External(name)
	if err != nil {
		return nil, fmt.Errorf("check catalog %s: %w", name, err)
	}
	last, _, err := verifyFile(osPath)
	if err == nil && last.Logging {
		_, err = readLog(fsys, name+logSuffix, last)
	}
	switch {
	case err == nil:
		return nil, nil
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrFormat):
		return findings(err), nil
	default:
		return nil, fmt.Errorf("check catalog %s: %w", name, err)
	}
}

// findings takes the errors apart that decodeState joined.
func findings(err error) []string {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []string
		for _, e := range joined.Unwrap() {
			all = append(all, findings(e)...)
		}
		return all
	}
	return []string{err.Error()}
}

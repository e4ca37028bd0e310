package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"

	bolt "go.etcd.io/bbolt"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
)

// log makes a few links durable with one write and one sync, which is what a preserve
// waits for: a commit of bbolt takes two, and one more where its file grows. What
// is appended is pending until the next Update, which commits it with its own changes;
// so it is in the log only for as long as nothing else is committed.
//
//	L1  Drafts and Updates have one order, that in which their functions ran (mu):
//	    an Update commits all that was drafted before it, and nothing that was drafted
//	    later. So no commit undoes what the log was told.
//	L2  What was appended lies in the log until it is committed: its place is used
//	    again only when no frame is pending.
//	L3  The frames that count are those above meta.Logged, without a gap. Each lies in
//	    the log twice, whole: damage in one place loses nothing that was acknowledged.
//	    Where neither is whole, its sync had not returned.
//	L4  The log's file is there, whole, while meta.Logging says so: from Open, which
//	    commits that, to Close, which leaves none.
//	L5  All of the file was written when it was made, so that to append takes no
//	    storage and changes nothing of the file but what it holds.
//
// A log that failed is used no more, and commits do instead, as they do where there is
// no room for its file. What a commit can't do either is a failed commit.
//
// Rejected: a commit with one sync, by falling back to the state before it where its
// pages are not whole: rot would do that too (Catalog, 3).
type log struct {
	dirID   string
	file    vfs.File   // nil: there is none
	writing sync.Mutex // one Append at a time; taken before Catalog.mu
	at      int64      // where the next frame goes; guarded by writing
	broken  bool       // guarded by writing

	// mu guards what follows and Catalog.drawn. It is held while a function of Append
	// or Update runs, and never during a commit or a sync.
	mu       sync.Mutex
	pending  []frame // drafted and not committed
	drafted  uint64  // the last number of a frame
	applied  uint64  // the last that is committed
	recorded bool    // meta.Logging, as it is to be
}

const (
	logSuffix    = ".log"
	logBytes     = 512 << 10 // a frame of some hundred volumes, twice
	logUnitBytes = 4096      // frames begin at multiples: no two share a sector
)

// A frame is what one Append made durable. In the log:
//
//	 0  4  magic f5 'T' 'C' 'L': no record holds such a byte
//	 4  4  format version, 1
//	 8  8  number, one more than that of the frame before
//	16  4  length of the body
//	20  4  CRC-32C of the directory's id, number and body
//	24  -  body: next volume, image and cut ids (8 each), then for each record the
//	       length of its key and of its value (4 each), key and value (record.go)
//
// Little endian. It is followed by zeros up to the next multiple of 4096, and then by
// the same again.
type frame struct {
	number  uint64
	next    counters
	records []record
}

const (
	frameMagic       = "\xf5TCL"
	frameVersion     = 1
	frameHeaderBytes = 24
	countersBytes    = 24
)

// encode is the frame once.
func (f *frame) encode(dirID string) []byte {
	b := make([]byte, frameHeaderBytes, logUnitBytes)
	copy(b, frameMagic)
	binary.LittleEndian.PutUint32(b[4:], frameVersion)
	binary.LittleEndian.PutUint64(b[8:], f.number)
	for _, id := range []uint64{uint64(f.next.NextVolume), uint64(f.next.NextImage), f.next.NextCut} {
		b = binary.LittleEndian.AppendUint64(b, id)
	}
	for _, r := range f.records {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(r.key)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(r.value)))
		b = append(append(b, r.key...), r.value...)
	}
	binary.LittleEndian.PutUint32(b[16:], uint32(len(b)-frameHeaderBytes))
	binary.LittleEndian.PutUint32(b[20:], frameCRC(dirID, b))
	return append(b, make([]byte, -len(b)&(logUnitBytes-1))...)
}

// frameCRC is of a frame without what follows it.
func frameCRC(dirID string, b []byte) uint32 {
	crc := crc32.Update(crc32.Checksum([]byte(dirID), castagnoli), castagnoli, b[8:16])
	return crc32.Update(crc, castagnoli, b[frameHeaderBytes:])
}

// decodeFrame reads the frame that begins b; false where none does.
func decodeFrame(dirID string, b []byte) (f frame, ok bool) {
	if len(b) < frameHeaderBytes+countersBytes || string(b[:4]) != frameMagic || binary.LittleEndian.Uint32(b[4:]) != frameVersion {
		return f, false
	}
	bodyBytes := uint64(binary.LittleEndian.Uint32(b[16:]))
	if bodyBytes < countersBytes || bodyBytes > uint64(len(b)-frameHeaderBytes) {
		return f, false
	}
	b = b[:frameHeaderBytes+bodyBytes]
	if binary.LittleEndian.Uint32(b[20:]) != frameCRC(dirID, b) {
		return f, false
	}
	f.number = binary.LittleEndian.Uint64(b[8:])
	b = b[frameHeaderBytes:]
	f.next = counters{
		NextVolume: VolumeID(binary.LittleEndian.Uint64(b)),
		NextImage:  image.ID(binary.LittleEndian.Uint64(b[8:])),
		NextCut:    binary.LittleEndian.Uint64(b[16:]),
	}
	for b = b[countersBytes:]; len(b) >= 8; {
		keyBytes, valueBytes := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
		if b = b[8:]; keyBytes+valueBytes > uint64(len(b)) {
			return f, false
		}
		f.records = append(f.records, record{b[:keyBytes], b[keyBytes : keyBytes+valueBytes]})
		b = b[keyBytes+valueBytes:]
	}
	return f, len(b) == 0
}

// readLog returns the frames that count, in order. Errors: ErrCorrupt.
func readLog(fsys vfs.FS, name string, m meta) (_ []frame, err error) {
	f, err := fsys.Open(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the log %s is missing", ErrCorrupt, name)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	content := make([]byte, logBytes)
	switch n, err := f.ReadAt(content, 0); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w: the log %s has %d bytes, not %d", ErrCorrupt, name, n, logBytes)
	case err != nil:
		return nil, err
	}
	return framesOf(content, m)
}

// framesOf is readLog for what the file holds.
func framesOf(content []byte, m meta) ([]frame, error) {
	found := map[uint64]frame{}
	last := m.Logged
	for ; len(content) > 0; content = content[logUnitBytes:] {
		f, ok := decodeFrame(m.DirID, content)
		if !ok || f.number <= m.Logged {
			continue
		}
		if err := f.check(); err != nil {
			return nil, err
		}
		found[f.number], last = f, max(last, f.number)
	}
	frames := make([]frame, 0, len(found))
	for number := m.Logged + 1; number <= last; number++ {
		f, ok := found[number]
		if !ok {
			return nil, fmt.Errorf("%w: the log holds frame %d, and not frame %d", ErrCorrupt, last, number)
		}
		frames = append(frames, f)
	}
	return frames, nil
}

// check looks at what a frame says by itself.
func (f *frame) check() error {
	for _, r := range f.records {
		if len(r.key) != len(linkKey(0, 0)) || r.key[0] != linkPrefix {
			return fmt.Errorf("%w: frame %d of the log: record %x is no link", ErrCorrupt, f.number, r.key)
		}
		l := linkOf(r.key)
		if _, err := decode(r.key, r.value, &l); err != nil {
			return fmt.Errorf("frame %d of the log: %w", f.number, err)
		}
		if err := l.check(f.next); err != nil {
			return fmt.Errorf("%w: frame %d of the log: %v", ErrCorrupt, f.number, err)
		}
	}
	return nil
}

// makeLog makes the file of the log, in which nothing is.
func makeLog(fsys vfs.FS, name string) (_ vfs.File, err error) {
	f, err := fsys.Open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(make([]byte, logBytes), 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = fsys.SyncDir(path.Dir(name))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openLog takes over the log that was left, or makes one, and commits what the next
// Open is to know. It is the last step of an open.
func (c *Catalog) openLog(fsys vfs.FS, name string, m meta) (err error) {
	l := &c.log
	l.dirID, l.applied, l.drafted, l.recorded = m.DirID, m.Logged, m.Logged, true
	if m.Logging {
		if l.pending, err = readLog(fsys, name, m); err != nil {
			return err
		}
		for _, f := range l.pending {
			l.drafted = f.number
			c.drawn = c.drawn.after(f.next)
		}
		if l.file, err = fsys.Open(name, os.O_RDWR, 0); err != nil {
			return err
		}
		l.at = logBytes      // where frames lie is not looked at: until a commit there is no room
		return l.file.Sync() // Catalog, 5
	}
	if l.file, err = makeLog(fsys, name); err == nil {
		err = c.Update(func(tx *Tx) error { tx.changed = true; return nil })
	}
	if !errors.Is(err, syscall.ENOSPC) || c.Failed() != nil {
		return err
	}
	l.recorded, err = false, nil
	if l.file != nil {
		err = l.file.Close()
		l.file = nil
	}
	return errors.Join(err, fsys.Remove(name))
}

// closeLog commits what is pending, and leaves no log but where there is no room for
// that. Catalog.mu is held.
func (c *Catalog) closeLog() error {
	l := &c.log
	if l.file == nil || c.failed() != nil { // the next Open finds out what there is
		return nil
	}
	switch err := c.update(func(tx *Tx) error {
		l.recorded, tx.changed = false, true
		return nil
	}); {
	case errors.Is(err, syscall.ENOSPC) && c.failed() == nil:
		return nil
	case err != nil:
		return err
	}
	return c.fsys.Remove(c.name + logSuffix)
}

// isPending tells whether something is not committed.
func (l *log) isPending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) > 0
}

// Links is what Append can change: a Tx too.
type Links interface {
	// NewCutID draws an id that no preserve ever had, greater than all before.
	NewCutID() (uint64, error)
	// PutLink inserts or replaces the link of one image in the chain of a volume
	// that exists. The order in a chain is that of the image ids.
	PutLink(l Link) error
}

// Append is Update for what has to be durable soon (see log): it waits for one sync,
// and for no Update that commits. It may run change again, when that had no effect. The
// caller keeps the volumes from being deleted meanwhile.
func (c *Catalog) Append(change func(Links) error) error {
	l := &c.log
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.file == nil || l.broken {
		return c.Update(func(tx *Tx) error { return change(tx) })
	}
	twice, err := c.draft(change)
	if errors.Is(err, errNoRoom) {
		return c.Update(func(tx *Tx) error { return change(tx) })
	}
	if err != nil || twice == nil {
		return err
	}
	_, err = l.file.WriteAt(twice, l.at)
	if err == nil {
		err = l.file.Sync()
	}
	l.at += int64(len(twice))
	if err == nil {
		return nil
	}
	l.broken = true
	if commit := c.Update(func(*Tx) error { return nil }); commit != nil { // what is pending may be served already
		return c.fail(fmt.Errorf("append to the log: %w; and then: %w", err, commit))
	}
	return nil
}

// errNoRoom: a frame does not fit.
var errNoRoom = errors.New("catalog: the log is full")

// draft runs change, makes what it did pending, and returns what is to be written at
// log.at; nil for nothing. log.writing is held.
func (c *Catalog) draft(change func(Links) error) (twice []byte, err error) {
	l := &c.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := c.failed(); err != nil {
		return nil, err
	}
	if l.applied == l.drafted { // L2
		l.at = 0
	}
	d := draft{drawn: &c.drawn, newest: map[VolumeID]Link{}}
	if err := c.db.View(func(tx *bolt.Tx) error {
		d.seen.bucket = tx.Bucket([]byte(bucketName))
		if err := change(&d); err != nil {
			return err
		}
		return d.finish()
	}); err != nil || len(d.records) == 0 {
		return nil, err
	}
	f := frame{number: l.drafted + 1, next: c.drawn, records: d.records}
	once := f.encode(l.dirID)
	if l.at+2*int64(len(once)) > logBytes {
		return nil, errNoRoom
	}
	l.drafted, l.pending = f.number, append(l.pending, f)
	return append(once, once...), nil
}

// draft is the Links of an Append.
type draft struct {
	drawn   *counters
	seen    Tx                // to read what is committed
	newest  map[VolumeID]Link // that were put
	records []record
}

// NewCutID implements Links.
func (d *draft) NewCutID() (uint64, error) { return draw(&d.drawn.NextCut) }

// PutLink implements Links.
func (d *draft) PutLink(l Link) error {
	if err := d.seen.checkLink(l, *d.drawn); err != nil {
		return err
	}
	if l.Image >= d.newest[l.Volume].Image {
		d.newest[l.Volume] = l
	}
	key := linkKey(l.Volume, l.Image)
	value, err := encode(key, l)
	d.records = append(d.records, record{key, value})
	return err
}

// finish looks at the tips.
func (d *draft) finish() error {
	for v, l := range d.newest {
		if later, _ := d.seen.lastLink(v, l.Image+1); later != nil {
			return fmt.Errorf("volume %d: the last link that was put is not its tip", v)
		}
		if err := l.checkTip(); err != nil {
			return err
		}
	}
	return nil
}

package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// Overdue tells whether more than SegmentBytes were appended since the last
// commit. They can't be folded before a commit, so a caller whose clients never
// flush makes one by itself then. It never waits; any number of goroutines may
// ask.
func (j *Journal) Overdue() bool { return j.uncovered.Load() >= j.o.SegmentBytes }

// NeedsCheckpoint tells whether a Checkpoint would be worth its I/O now, or, where
// closed segments hold data, what lets them be folded (Holds). Any number of goroutines
// may ask.
func (j *Journal) NeedsCheckpoint() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err == nil && j.cur != nil && (j.settled() > 0 || j.cur.end >= j.o.SegmentBytes)
}

// IsCalm tells whether the journal holds data (J10), and no table has changed in many
// commits: if it held none, they would leave it alone. Any number of goroutines may ask.
func (j *Journal) IsCalm() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err == nil && len(j.held) > 0 && j.calm >= calmCommits
}

// calmCommits is after how many that is so.
const calmCommits = 64

// settled counts the closed segments that may be folded: all of their changes
// are committed, they hold no data that counts (J10), and the segment that the base
// will name is durable (J5). A new segment becomes durable by the first Commit after
// its start. mu is held.
func (j *Journal) settled() int {
	first := uint64(math.MaxUint64) // that holds data
	for _, h := range j.held {
		first = min(first, h.from)
	}
	for i, s := range j.closed {
		next := j.cur
		if i+1 < len(j.closed) {
			next = j.closed[i+1]
		}
		if s.after > j.Committed() || s.number >= first || next.durable == 0 {
			return i
		}
	}
	return len(j.closed)
}

// Checkpoint bounds what the next Open has to replay: it closes the present segment,
// if no other waits to be folded, and folds (Fold). It runs in the background,
// beside Append and Commit, which wait for none of its syncs. After an error
// nothing is lost and it may be called again; what it then has to do is what it
// had.
func (j *Journal) Checkpoint() error { return j.checkpoint(true) }

// Fold folds closed segments whose changes are committed, and that hold no data, into
// the table files and removes them. Else it is as Checkpoint.
func (j *Journal) Fold() error { return j.checkpoint(false) }

func (j *Journal) checkpoint(rotates bool) error {
	j.checkpointing.Lock()
	defer j.checkpointing.Unlock()
	j.mu.Lock()
	err, rests := j.err, j.cur == nil
	mayRotate := rotates && !rests && len(j.closed) == 0 && (j.cur.after > j.cur.first || j.cur.end >= j.o.SegmentBytes)
	j.mu.Unlock()
	if err != nil || rests {
		return err
	}
	if mayRotate {
		if err := j.rotate(); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	if err := j.foldSettled(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// rotate closes the present segment and starts the next. Under mu it writes to
// the page cache only, where there is room. The header is written before the frame
// that makes it count, so that under the same boot ID that frame always has its
// successor.
func (j *Journal) rotate() error {
	number := j.cur.number + 1 // only changed under checkpointing
	f, err := makeSegmentFile(&j.o, number)
	if err != nil {
		return err
	}
	next := &segment{name: segmentName(j.o.Dir, number), file: f, stepBytes: j.o.stepBytes()}
	_ = next.makeRoom(headerBytes, dataSteps) // not under mu; there may be room for the header
	j.mu.Lock()
	defer j.mu.Unlock()
	old := j.cur
	end, endCRC := old.endFrame(beginFrame(nil), 0, kindNext, old.crc, old.durable)
	next.header = header{volume: old.volume, number: number, life: old.life, first: old.after, boot: old.boot, prev: endCRC, salt: old.salt}
	err = next.start(j.drained)
	if err == nil {
		err = old.put(end, endCRC)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start segment %s: %w", next.name, err), f.Close())
	}
	j.staging.Store(false)
	j.closed = append(j.closed, old)
	j.cur = next
	return nil
}

func (j *Journal) foldSettled() error {
	j.mu.Lock()
	n := j.settled()
	done := j.closed[:n:n]
	rest := append(j.closed[n:len(j.closed):len(j.closed)], j.cur)
	j.mu.Unlock()
	if n == 0 {
		return nil
	}
	if err := j.foldIntoFiles(done, rest[0].first); err != nil {
		return err
	}
	if err := writeBase(&j.o, base{rest[0].number, j.tables}); err != nil {
		return err
	}
	j.mu.Lock()
	j.closed = append([]*segment(nil), j.closed[n:]...)
	j.mu.Unlock()
	return removeSegments(&j.o, done)
}

// foldIntoFiles brings the table files up to limit, the end of the last of segs.
func (j *Journal) foldIntoFiles(segs []*segment, limit LSN) error {
	tables := map[image.ID]*lookup.Table{}
	_, err := fold(segs, limit, func(id image.ID) (*lookup.Table, error) {
		t, ok := tables[id]
		if ok || j.removed(id) {
			return t, nil
		}
		t, _, err := readTable(&j.o, id, j.tables[id])
		tables[id] = t
		return t, err
	})
	if err != nil {
		return err
	}
	for id, t := range tables {
		if j.removed(id) {
			continue
		}
		if err := writeTable(&j.o, id, t, limit); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
		j.tables[id] = limit
	}
	return nil
}

func (j *Journal) removed(id image.ID) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.images[id]
}

// folded counts changes: those applied, those of images without a table, and
// those behind the limit.
type folded struct{ applied, ignored, beyond int }

// fold applies the changes of segments, up to an LSN, to the tables that table
// returns; those for which it returns nil are ignored.
func fold(segs []*segment, limit LSN, table func(image.ID) (*lookup.Table, error)) (n folded, err error) {
	err = eachFrame(segs, func(f frame, lsn LSN) error { return n.apply(f, lsn <= limit, table) })
	return n, err
}

// eachFrame calls do for each frame of changes, with the LSN behind it, up to the first
// error.
func eachFrame(segs []*segment, do func(f frame, lsn LSN) error) error {
	for _, s := range segs {
		r := newSegmentReader(s.file, s.end, s.headerCRC, s.salt)
		for lsn := s.first; r.off < s.end; {
			f, ok, err := r.next()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if !ok {
				return fmt.Errorf("%w: %s: bad frame at offset %d", ErrCorrupt, s.name, r.off)
			}
			if f.kind != kindChanges {
				continue
			}
			lsn++
			if err := do(f, lsn); err != nil {
				return fmt.Errorf("%s: frame at offset %d: %w", s.name, f.off, err)
			}
		}
		if r.prev != s.crc {
			return fmt.Errorf("%w: %s: the frame that ends at offset %d is not the one that was there", ErrCorrupt, s.name, s.end)
		}
	}
	return nil
}

func (n *folded) apply(f frame, counts bool, table func(image.ID) (*lookup.Table, error)) error {
	return eachChange(f.payload, func(c Change) error {
		if !counts {
			n.beyond++
			return nil
		}
		t, err := table(c.Image)
		switch {
		case err != nil:
			return err
		case t == nil:
			n.ignored++
		default:
			t.Set(c.Block, c.Count, c.State)
			n.applied++
		}
		return nil
	})
}

// removeSegments removes what the base no longer names. What it leaves behind
// on an error the next Open removes.
func removeSegments(o *Options, segs []*segment) error {
	var failed error
	for _, s := range segs {
		failed = errors.Join(failed, s.file.Close(), o.FS.Remove(s.name))
	}
	if failed != nil {
		return fmt.Errorf("remove old segments: %w", failed)
	}
	return nil
}

// RemoveImage tells that an image is no longer in the chain, as the catalog
// says already: its table file goes, changes of it that are still in the
// journal count for nothing, and more of them may be appended by requests that
// saw the older chain. Removing an image again, or one that was never added,
// removes what a crash left. It may wait for a Checkpoint.
func (j *Journal) RemoveImage(id image.ID) error {
	j.mu.Lock()
	j.images[id] = false
	delete(j.drained, id)
	delete(j.held, id)
	j.mu.Unlock()
	j.checkpointing.Lock()
	defer j.checkpointing.Unlock()
	delete(j.tables, id)
	switch err := j.o.FS.Remove(tableName(j.o.Dir, id)); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove table of image %d: %w", id, err)
	}
	if err := j.o.FS.SyncDir(j.o.Dir); err != nil {
		return fmt.Errorf("remove table of image %d: %w", id, err)
	}
	return nil
}

// Close ends the writer's life. The caller has committed up to End, has seen to it
// that the journal holds no data (J10), and calls nothing else at the same time or
// after. All changes are folded into the table files, so that the next Open replays
// nothing; of a journal that rests still (J9) there are none. After an error the next
// Open recovers as after a crash; ErrUncommitted if changes were not committed, or data
// is held.
func (j *Journal) Close() error {
	j.checkpointing.Lock()
	defer j.checkpointing.Unlock()
	j.mu.Lock()
	err := j.err
	if errors.Is(err, ErrClosed) {
		j.mu.Unlock()
		return err
	}
	if err == nil {
		err = j.publish()
	}
	if err == nil && j.End() > j.Committed() {
		err = fmt.Errorf("%w: %d frames", ErrUncommitted, j.End()-j.Committed())
	}
	if err == nil && len(j.held) > 0 {
		err = fmt.Errorf("%w: images whose data it holds were not synced", ErrUncommitted)
	}
	j.err = ErrClosed
	segs := j.closed
	if j.cur != nil {
		segs = append(segs, j.cur)
	}
	rests := j.rests
	j.mu.Unlock()
	if !rests {
		err = j.endLife(segs, err)
	}
	if err = errors.Join(err, j.witness.file.Close()); err != nil {
		return fmt.Errorf("close journal %s: %w", j.o.Dir, err)
	}
	return nil
}

// endLife leaves a journal closed and whole, unless there is a reason why not, and
// closes its segments.
func (j *Journal) endLife(segs []*segment, reason error) error {
	err := reason
	if err == nil {
		err = j.foldIntoFiles(segs, j.End())
	}
	if err == nil {
		if n := len(segs); n > 0 {
			j.next = segs[n-1].number + 1
		}
		err = j.beginNext(kindClosed)
	}
	if err == nil {
		_ = j.removeOld() // what could not be removed the next Open removes
		return errors.Join(removeSegments(&j.o, segs), j.cur.file.Close())
	}
	for _, s := range segs {
		err = errors.Join(err, s.file.Close())
	}
	return err
}

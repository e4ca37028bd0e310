package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// Open recovers the journal in o.Dir, as the type comment of Journal says, and
// begins a new life of it, or lets it rest until it is written to (J9). Nothing
// else may use the directory's journal at the time. It fails with fs.ErrNotExist
// if there is none, with ErrCorrupt if a file holds what no crash can leave there,
// with ErrVersion if another version wrote it; then nothing was changed. After
// another error it may be tried again.
func Open(o Options) (*Journal, *Recovered, error) {
	o.setDefaults()
	j, r, err := open(o)
	if err != nil {
		return nil, nil, fmt.Errorf("open journal %s: %w", o.Dir, err)
	}
	return j, r, nil
}

func open(o Options) (*Journal, *Recovered, error) {
	h, err := readHistory(&o, os.O_RDWR)
	if err != nil {
		return nil, nil, err
	}
	defer h.close()
	r, changed, err := h.replay(&o)
	if err != nil {
		return nil, nil, err
	}
	if err := h.dropTail(&o); err != nil {
		return nil, nil, err
	}
	if err := h.storeBlocks(&o, r.Tables); err != nil {
		return nil, nil, err
	}
	if err := h.commitTail(&o); err != nil {
		return nil, nil, err
	}
	for _, id := range changed {
		if err := writeTable(&o, id, r.Tables[id], h.limit()); err != nil {
			return nil, nil, fmt.Errorf("write table: %w", err)
		}
		h.tables[id] = h.limit()
	}
	j := newJournal(&o, h.boot, h.limit(), h.tables)
	for id := range r.Drained {
		j.drained[id] = true
	}
	j.next, j.old, r.Notes = h.highest+1, h.old, h.notes
	if h.rests() {
		if j.witness, err = openWitness(&o); err != nil {
			return nil, nil, err
		}
		j.witness.said, j.rests = h.witness, true
		return j, r, nil
	}
	if err := j.beginNext(); err != nil {
		return nil, nil, err
	}
	r.Notes = append(r.Notes, j.removeOld()...)
	return j, r, nil
}

// rests tells that a Close has left the journal whole and that nothing has been
// written since (J9).
func (h *history) rests() bool {
	last := h.last()
	return h.clean && !h.failed && h.noWitness == nil && len(h.old) == 1 && // that of last
		h.witness.life == last.life && h.witness.durable == last.place()
}

// history is what a journal's files say: the segments from the base to where
// the chain of frames ends.
type history struct {
	base      base
	witness   testimony
	noWitness error  // why it says nothing
	marks     marks  // of the rest after a Close
	noMarks   error  // why they are not known
	boot      bootID // the present one
	sameBoot  bool
	failed    bool // a sync failed under the present boot ID (J8)
	clean     bool
	past      bool // the chain has passed what the witness says is durable
	committed LSN
	blocks    map[image.ID]map[lookup.BlockNum]stored // what commits that count hold (J10)
	drained   map[image.ID]bool
	segments  []*segment       // never empty
	highest   uint64           // number of a segment file, in the chain or not
	old       []string         // files that no longer count when the next life has begun
	tables    map[image.ID]LSN // of the table files, once they have been read
	notes     []string
}

// stored is where the data of a block lies.
type stored struct {
	in   *segment
	off  int64
	upTo LSN // of the commit that has it
}

func (h *history) last() *segment { return h.segments[len(h.segments)-1] }

// whole: all that the last writer had written is there, synced or not (J1, J8).
func (h *history) whole() bool { return h.sameBoot && !h.failed }

// limit is the LSN up to which changes count (J1, J2).
func (h *history) limit() LSN {
	if h.whole() {
		return h.last().after
	}
	return h.committed
}

func (h *history) close() {
	for _, s := range h.segments {
		_ = s.file.Close() // what had to be durable was synced
	}
}

func (h *history) note(format string, args ...any) {
	h.notes = append(h.notes, fmt.Sprintf(format, args...))
}

// readHistory reads and writes nothing; flag is how it opens segments.
func readHistory(o *Options, flag int) (*history, error) {
	h := &history{blocks: map[image.ID]map[lookup.BlockNum]stored{}, drained: map[image.ID]bool{}, tables: map[image.ID]LSN{}}
	if err := h.read(o, flag); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *history) read(o *Options, flag int) (err error) {
	if h.boot, err = readBootID(o.FS); err != nil {
		return err
	}
	if h.base, err = readBase(o); err != nil {
		return err
	}
	switch h.witness, h.marks, err = readWitness(o); {
	case errors.Is(err, errNoWitness):
		h.noWitness = err
		h.note("%v", err)
	case errors.Is(err, errNoMarks):
		h.noMarks = err
		h.note("%v", err)
	case err != nil:
		return err
	}
	h.past = h.witness.durable.segment < h.base.first
	numbers, err := h.list(o)
	if err != nil {
		return err
	}
	ended, err := h.readSegment(o, h.base.first, flag)
	for err == nil && ended == byNext {
		ended, err = h.readSegment(o, h.last().number+1, flag)
	}
	if err != nil {
		return err
	}
	h.clean = ended == byClose
	h.failed = h.failed || h.clean && h.failedSince(h.last()) // it rested then (J9)
	h.settleDrained()
	if h.failed {
		h.note("a sync had failed: what no commit covers was given up, as a power cut would have")
	}
	if !h.past {
		d := h.witness.durable
		return fmt.Errorf("%w: %s was durable up to offset %d, but the frames that are there end otherwise, in %s at offset %d",
			ErrCorrupt, segmentName(o.Dir, d.segment), d.end, h.last().name, h.last().end)
	}
	return h.findRot(o, numbers)
}

// list sorts the directory's files. numbers are those of all segment files.
func (h *history) list(o *Options) (numbers []uint64, err error) {
	names, err := o.FS.ReadDir(o.Dir)
	if err != nil {
		return nil, err
	}
	for _, base := range names {
		full := path.Join(o.Dir, base)
		if number, ok := segmentNumber(base); ok {
			numbers = append(numbers, number)
			h.old = append(h.old, full)
		} else if id, ok := tableImage(base); ok {
			if !slices.Contains(o.Images, id) {
				h.old = append(h.old, full) // a RemoveImage was cut short
			}
		} else if whole, ok := strings.CutSuffix(base, vfs.TempSuffix); ok {
			if _, ok := tableImage(whole); ok || whole == baseFile {
				h.old = append(h.old, full)
			}
		}
	}
	slices.Sort(numbers)
	if len(numbers) > 0 {
		h.highest = numbers[len(numbers)-1]
	}
	return numbers, nil
}

// ending says how the frames of a segment end.
type ending int

const (
	byTear ending = iota
	byNext
	byClose
)

// readSegment adds a segment to the history and reads its frames. A segment
// that can't go on from the last one is not added: the chain is torn before it.
func (h *history) readSegment(o *Options, number uint64, flag int) (ending, error) {
	s, err := openSegment(o, number, flag)
	if err != nil {
		return byTear, err
	}
	if !h.link(s) {
		err := s.file.Close()
		if len(h.segments) == 0 || h.whole() {
			err = fmt.Errorf("%w: %s: the header is not that of the segment that should be here", ErrCorrupt, s.name)
		}
		return byTear, err
	}
	sizeBytes, err := s.file.Size()
	if err != nil {
		return byTear, fmt.Errorf("read %s: %w", s.name, err)
	}
	h.pass(s)
	r := newSegmentReader(s.file, sizeBytes, s.headerCRC, s.salt)
	for {
		f, ok, err := r.next()
		if err != nil {
			return byTear, fmt.Errorf("read %s: %w", s.name, err)
		}
		if !ok {
			return byTear, nil
		}
		counts := !h.failed || !h.past || h.witness.durable == place{}
		s.crc, s.end = f.crc, f.end
		h.pass(s)
		switch f.kind {
		case kindNext:
			return byNext, nil
		case kindClosed:
			return byClose, nil
		}
		if err := h.take(s, f, counts); err != nil {
			return byTear, fmt.Errorf("%s: frame at offset %d: %w", s.name, f.off, err)
		}
	}
}

// pass notes that the chain has come to the last frame of s.
func (h *history) pass(s *segment) { h.past = h.past || s.place() == h.witness.durable }

// openSegment reads a header. A segment without a valid one has headerCRC 0 and
// a zero header.
func openSegment(o *Options, number uint64, flag int) (*segment, error) {
	s := &segment{name: segmentName(o.Dir, number), stepBytes: o.stepBytes()}
	f, err := o.FS.Open(s.name, flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is missing", ErrCorrupt, s.name)
	}
	if err != nil {
		return nil, err
	}
	s.file = f
	if err := s.readHeader(o); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", s.name, err), f.Close())
	}
	return s, nil
}

func (s *segment) readHeader(o *Options) error {
	sizeBytes, err := s.file.Size()
	if err != nil {
		return err
	}
	b := make([]byte, min(sizeBytes, headerBytes))
	if n, err := s.file.ReadAt(b, 0); n < len(b) {
		return err
	}
	s.header, s.headerCRC, err = parseHeader(b)
	if err != nil && !errors.Is(err, errNoHeader) {
		return err
	}
	if err == nil && s.volume != o.VolumeID {
		return fmt.Errorf("%w: it belongs to volume %d, not %d", ErrCorrupt, s.volume, o.VolumeID)
	}
	s.crc, s.after, s.end = s.headerCRC, s.first, headerBytes
	return nil
}

// link adds s to the history if it goes on from the last segment.
func (h *history) link(s *segment) bool {
	number, ok := segmentNumber(path.Base(s.name))
	if !ok || s.number != number {
		return false
	}
	if len(h.segments) == 0 {
		h.sameBoot = s.boot == h.boot
		h.failed = h.sameBoot && h.failedSince(s)
		h.committed = s.first
	} else if l := h.last(); s.prev != l.crc || s.first != l.after || s.life != l.life || s.boot != l.boot || s.salt != l.salt {
		return false
	}
	h.segments = append(h.segments, s)
	return true
}

// failedSince tells that the witness says of the life of s, or of the one before
// it if s never took a frame, that a sync has failed (J9).
func (h *history) failedSince(s *segment) bool {
	return h.witness.failed && h.witness.life <= s.life
}

// settleDrained forgets what has drained under another boot ID, or before a sync failed,
// and adds what has while the journal rested: under the present boot ID, whatever that
// of the life before was (J9).
func (h *history) settleDrained() {
	if !h.whole() {
		clear(h.drained)
	}
	if h.clean && !h.failed && h.marks.boot == h.boot && h.marks.life == h.witness.life {
		for _, id := range h.marks.images {
			h.drained[id] = true
		}
	}
}

// take takes note of a frame of the chain; changes are applied later (replay).
// A commit that does not count is one that no returned sync covers, in a life in
// which one failed (J8). Where the witness was lost each counts: to take a flush
// back is worse than to rest on a frame that may not be durable yet.
func (h *history) take(s *segment, f frame, counts bool) error {
	switch f.kind {
	case kindChanges:
		s.after++
		return nil
	case kindCommit:
		c, err := parseCommit(f.payload)
		if err != nil {
			return err
		}
		if c.upTo > s.after {
			return fmt.Errorf("%w: commit up to %d at %d", ErrCorrupt, c.upTo, s.after)
		}
		// The first commit of a segment may cover less than what is before it.
		if counts {
			h.committed = max(h.committed, c.upTo)
			h.hold(s, f, c)
		}
		return nil
	case kindDrained:
		if len(f.payload)%8 != 0 {
			break
		}
		for b := f.payload; len(b) > 0; b = b[8:] {
			h.drained[image.ID(binary.LittleEndian.Uint64(b))] = true
		}
		return nil
	}
	return fmt.Errorf("%w: %q with a payload of %d bytes", ErrCorrupt, f.kind[:], len(f.payload))
}

// hold takes note of the data that a commit holds, and of what it says is needless.
func (h *history) hold(s *segment, f frame, c commitment) {
	for _, id := range c.synced {
		delete(h.blocks, id)
	}
	for _, x := range c.blocks {
		if h.blocks[x.image] == nil {
			h.blocks[x.image] = map[lookup.BlockNum]stored{}
		}
		h.blocks[x.image][x.block] = stored{s, f.off + frameBytes + int64(x.at), c.upTo}
	}
}

// findRot tells a torn tail from rot. The chain has ended. A torn tail is a part
// of the file whose sync had not returned when the power went; then nobody has
// written a frame that says otherwise. Rot is proved by any frame behind the
// chain's end, chained or not, that was written when
//
//   - its own segment was durable past the end of the chain, or
//   - for a later segment: all before it was durable, which is what a commit
//     frame says, and any frame in a segment that was synced;
//   - under the same boot ID, if no sync failed: at all, since the page cache has
//     no gaps.
//
// Rot behind what a frame or the witness says was durable can't be told from a
// torn tail.
func (h *history) findRot(o *Options, numbers []uint64) error {
	last := h.last()
	torn, err := h.findRotIn(last, last.end)
	if err != nil {
		return err
	}
	if torn > 0 {
		h.note("%s is torn at offset %d: %d bytes behind it were never committed", last.name, last.end, torn)
	}
	for _, number := range numbers {
		if number <= last.number {
			continue
		}
		s, err := openSegment(o, number, os.O_RDONLY)
		if err != nil {
			return err
		}
		// The first segment of a life that never began to count proves nothing.
		if s.life == last.life || s.headerCRC == 0 {
			_, err = h.findRotIn(s, headerBytes)
		}
		if err := errors.Join(err, s.file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// findRotIn returns how many bytes of a segment are behind from, up to the last
// that is not room for frames.
func (h *history) findRotIn(s *segment, from int64) (int64, error) {
	sizeBytes, err := s.file.Size()
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", s.name, err)
	}
	last := h.last()
	r := newSegmentReader(s.file, sizeBytes, 0, last.salt) // of the life, also where its header is damaged
	end := from
	for off := from; off < sizeBytes; off += frameAlign {
		b, err := r.window(off, min(frameAlign, sizeBytes-off))
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", s.name, err)
		}
		if !isZero(b) {
			end = off + int64(len(b))
		}
		f, ok, err := r.frameAt(off)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", s.name, err)
		}
		if !ok {
			continue
		}
		rot := int64(f.durable) > last.end || h.whole()
		if s != last {
			rot = f.kind == kindCommit || f.durable > 0 || h.whole() && f.kind != kindDrained
		}
		if rot {
			return 0, fmt.Errorf("%w: %s: bad frame at offset %d, but %s has a later one at %d", ErrCorrupt, last.name, last.end, s.name, off)
		}
	}
	return end - from, nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// replay builds the tables and lists the images whose table files are behind.
func (h *history) replay(o *Options) (r *Recovered, changed []image.ID, err error) {
	r = &Recovered{
		Tables: map[image.ID]*lookup.Table{}, Drained: map[image.ID]bool{},
		SameBoot: h.sameBoot, Clean: h.clean, SyncFailed: h.failed,
	}
	for _, id := range o.Images {
		t, lsn, err := readTable(o, id, h.base.tables[id])
		if err != nil {
			return nil, nil, err
		}
		if err := h.checkLSN(o, id, lsn); err != nil {
			return nil, nil, err
		}
		r.Tables[id] = t
		if lsn > 0 {
			h.tables[id] = lsn
		}
		if h.drained[id] {
			r.Drained[id] = true
		}
	}
	touched := map[image.ID]bool{}
	n, err := fold(h.segments, h.limit(), func(id image.ID) (*lookup.Table, error) {
		touched[id] = true
		return r.Tables[id], nil
	})
	if err != nil {
		return nil, nil, err
	}
	for _, id := range o.Images {
		if touched[id] {
			changed = append(changed, id)
		}
	}
	r.Replayed, r.Discarded = n.applied, n.beyond
	if n.ignored > 0 {
		h.note("%d changes of images that are no longer in the chain were ignored", n.ignored)
	}
	if n.beyond > 0 {
		h.note("%d changes that no commit covers were discarded", n.beyond)
	}
	return r, changed, nil
}

// commitTail makes what counts under the same boot ID only durable, before any
// table file is written.
func (h *history) commitTail(o *Options) error {
	if !h.whole() || h.clean {
		return nil
	}
	last := h.last()
	if last.after == h.committed && len(h.blocks) == 0 {
		return h.syncSegments(o, h.segments...)
	}
	for _, id := range o.Images {
		if err := h.syncImage(o, id); err != nil {
			return err
		}
	}
	if err := h.syncSegments(o, h.segments...); err != nil {
		return err
	}
	b := appendCommit(beginFrame(nil), last.after, Basis{Synced: slices.Sorted(maps.Keys(h.blocks))})
	b, crc := last.endFrame(b, 0, kindCommit, last.crc, 0)
	if err := last.put(b, crc); err != nil {
		return err
	}
	if err := h.syncSegments(o, last); err != nil {
		return err
	}
	h.note("changes up to %d were in the page cache only; they were committed", last.after)
	h.committed = last.after
	return nil
}

// dropTail makes the images read as the disk has them, after a failed sync, and
// before the next life begins, which has not failed.
func (h *history) dropTail(o *Options) error {
	if !h.failed || o.DropImage == nil {
		return nil
	}
	for _, id := range o.Images {
		if err := o.DropImage(id); err != nil {
			return fmt.Errorf("drop what is cached of image %d: %w", id, err)
		}
	}
	return nil
}

// storeBlocks writes to the images what commits hold of them (J10), and the tables still
// want; under the same boot ID not what was written since.
func (h *history) storeBlocks(o *Options, tables map[image.ID]*lookup.Table) error {
	if h.whole() {
		if err := h.leaveOverwritten(); err != nil {
			return err
		}
	}
	data, n := make([]byte, lookup.BlockSize), 0
	for _, id := range o.Images {
		blocks := h.blocks[id]
		if len(blocks) == 0 {
			continue
		}
		if o.StoreBlock == nil {
			return errors.New("blocks wait to be written to their images, and Options.StoreBlock is nil")
		}
		for _, b := range slices.Sorted(maps.Keys(blocks)) {
			if tables[id].Get(b) != lookup.Data {
				continue
			}
			if _, err := blocks[b].in.file.ReadAt(data, blocks[b].off); err != nil {
				return fmt.Errorf("read block %d of image %d in %s: %w", b, id, blocks[b].in.name, err)
			}
			if err := o.StoreBlock(Block{id, b, data}); err != nil {
				return fmt.Errorf("store block %d of image %d: %w", b, id, err)
			}
		}
		if err := h.syncImage(o, id); err != nil {
			return err
		}
		n += len(blocks)
	}
	if n > 0 && !h.whole() {
		h.note("%d blocks that had been flushed were written to their images", n)
	}
	return nil
}

// leaveOverwritten leaves out of what commits hold the blocks that the chain says were
// written again, after the commit began.
func (h *history) leaveOverwritten() error {
	if len(h.blocks) == 0 {
		return nil
	}
	return eachFrame(h.segments, func(f frame, lsn LSN) error {
		return eachChange(f.payload, func(c Change) error {
			maps.DeleteFunc(h.blocks[c.Image], func(b lookup.BlockNum, x stored) bool {
				return lsn > x.upTo && b >= c.Block && uint64(b-c.Block) < c.Count
			})
			return nil
		})
	})
}

func (h *history) syncImage(o *Options, id image.ID) error {
	if o.SyncImage == nil {
		return errors.New("images wait to be synced, and Options.SyncImage is nil")
	}
	switch err := o.SyncImage(id); {
	case errors.Is(err, image.ErrNotBegun):
		return fmt.Errorf("sync image %d: %w", id, err)
	case err != nil:
		return h.fail(o, fmt.Errorf("sync image %d: %w", id, err))
	}
	return nil
}

func (h *history) syncSegments(o *Options, segs ...*segment) error {
	for _, s := range segs {
		if err := s.file.Sync(); err != nil {
			return h.fail(o, fmt.Errorf("%w: %s: %w", ErrSyncFailed, s.name, err))
		}
	}
	return nil
}

// fail tells the next recovery that a sync has failed in this one (J8).
func (h *history) fail(o *Options, err error) error {
	w, openErr := openWitness(o)
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	w.said = h.witness
	w.said.life = h.last().life
	return errors.Join(err, w.fail(), w.file.Close())
}

// Package journal makes the changes of a volume's lookup tables durable.
//
// One Journal belongs to one volume. The engine appends a change after the
// data that the change speaks of has been written, and commits when a client
// asks for durability. Opening a journal gives back the tables.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// Errors that callers branch on.
var (
	// ErrCorrupt says that a file of the journal holds what no crash can
	// leave there. The error around it names the file and the offset.
	ErrCorrupt = errors.New("journal: corrupt")
	// ErrVersion says that a file was written by a version of Tidemark that
	// this one does not know.
	ErrVersion = errors.New("journal: unknown version")
	// ErrSyncFailed says that a sync of the journal failed, or that the caller
	// said so of an image (MarkFailed). It is final: the journal takes nothing
	// more until it is opened again.
	ErrSyncFailed = errors.New("journal: sync failed")
	// ErrUnknownImage says that a change names an image that was never added.
	ErrUnknownImage = errors.New("journal: unknown image")
	// ErrInvalidChange says that a change is no range of blocks, or its state
	// is none, or that there are too many changes for one frame.
	ErrInvalidChange = errors.New("journal: invalid change")
	// ErrUncommitted says that a journal was closed before its last changes
	// were committed. They are replayed by the next Open as after a crash.
	ErrUncommitted = errors.New("journal: closed with uncommitted changes")
	// ErrClosed says that the journal was closed.
	ErrClosed = errors.New("journal: closed")
)

// LSN is a position in the journal of one volume: it counts the frames of
// changes ever appended, so LSN n covers the first n of them. It never goes
// back, except that a tail that a power cut took is counted again, and what was
// staged when the process died.
type LSN uint64

// Change is one change of one table: from now on the Count blocks from Block
// have State in the table of Image. Absent means that the entry is deleted.
type Change struct {
	Image image.ID
	Block lookup.BlockNum
	Count uint64
	State lookup.State
}

// Block is what one block of an image holds: lookup.BlockSize bytes.
type Block struct {
	Image image.ID
	Block lookup.BlockNum
	Data  []byte
}

// Basis is what the changes of a commit rest on, and the data that it promises
// (Journal.Commit).
type Basis struct {
	// Synced are images that were synced, after the Commit before.
	Synced []image.ID
	// Blocks are of images that were not. The commit stores them in their place. From
	// when one has been read until a Commit says that its image was synced, whoever
	// writes to it appends a change for it, also if that changes nothing (J10).
	Blocks []Block
}

// Options tell where a journal lies and to whom it belongs.
type Options struct {
	// FS holds Dir, which may hold files of others too.
	FS  vfs.FS
	Dir string
	// VolumeID stands in every file; a file of another volume is refused.
	VolumeID uint64
	// Images is the chain as the catalog has it, oldest first.
	Images []image.ID
	// SegmentBytes is the length from which a segment is worth a checkpoint;
	// 0 means 64 MiB. A segment grows by a thousandth of it at a time.
	SegmentBytes int64
	// SyncImage makes durable all that was written to an image. Open calls it,
	// one image at a time, when the server died alone and left changes that
	// no commit covers. Its error is final for them: the next Open discards
	// them, as a second sync would return nil and prove nothing; but not one
	// that wraps image.ErrNotBegun.
	SyncImage func(image.ID) error
	// StoreBlock writes a block to its image. Open calls it for what commits hold of
	// images (J10), and SyncImage after that.
	StoreBlock func(Block) error
	// DropImage makes reads of an image ask the disk (vfs.File.DropCache). Open
	// calls it, one image at a time, when a sync had failed (J8). Else a block
	// would read as it was last written until the page cache lets go of it, and
	// then as the disk has it. Nil: nothing is dropped.
	DropImage func(image.ID) error
}

// Recovered is what Open found.
type Recovered struct {
	// Tables holds one table for each of Options.Images. They are the caller's.
	Tables map[image.ID]*lookup.Table
	// Drained holds the images that were marked by MarkDrained, under the boot
	// ID that is still the present one.
	Drained map[image.ID]bool
	// SameBoot: the last writer ran under the present boot ID, so that all it
	// had written counts, unless SyncFailed. Clean: it ended with a Close that
	// returned nil, and no change has been written since.
	SameBoot, Clean bool
	// SyncFailed: a sync failed under the present boot ID, or, where nothing had been
	// written since a Close, perhaps under one since. Only what was committed before
	// counts, as after a power cut.
	SyncFailed bool
	// Replayed counts changes applied to tables, Discarded those that were
	// read whole but that no commit covered, after a power cut or a failed sync.
	Replayed, Discarded int
	// Notes say in words what recovery did that is worth a line in a log.
	Notes []string
}

// Journal makes the table changes of one volume durable.
//
// Goal: what was committed is in the tables after a crash at any instant, and
// what was appended is in them after the death of the process alone; appending
// costs one write to the page cache, and no sync but at the begin of a life (J9).
//
// Four kinds of files lie in the directory. Segments hold frames, chained from
// one to the next and from segment to segment (type segment). Table files hold
// what was folded out of segments (table.go). The base names the first segment
// that counts, and the table files (type base). The witness says how far syncs
// have returned (type witness).
//
//	J1  A changes frame is written after the write of its data has returned and
//	    before the request is answered (J11), and not synced: kill -9 leaves it in
//	    the page cache. Under the same boot ID every frame of the chain counts,
//	    unless a sync failed (J8).
//	J2  Under another boot ID the changes count that the last commit frame of the
//	    chain covers, by its LSN, and no others: the data of those between that
//	    LSN and the commit frame itself was perhaps not synced.
//	J3  A commit frame is written after every image that its changes rest on was
//	    synced, and every segment before its own. So it holds whenever it is
//	    found in the chain, if its own sync returned or not.
//	J4  Table files hold committed changes only, of a commit that is durable; no
//	    table in memory is ever written while the engine runs, or an entry could
//	    become durable before its data.
//	J5  The base is replaced after the table files hold, durably, everything
//	    before the segment that it will name, and after that segment's header is
//	    durable. Segments before the base count for nothing and are removed then.
//	J6  A writer's life, from Create or Open to its end, has segments of its own:
//	    Open folds what it finds into the table files and starts a new one, so
//	    that all segments that count have one boot ID. Where it finds only what a
//	    Close left, the first Append starts it, or a mark without room (J9).
//	J7  Whatever a sync has returned for stays in the chain. So a chain that does
//	    not reach where the witness says a sync had returned, or where any frame
//	    says so (findRot), is rot or an old file in the place of the right one,
//	    and never a torn tail.
//	J8  When a sync fails, of a segment or, as the caller says, of an image, the
//	    kernel may have dropped what it could not write, and forgets the failure.
//	    So the life takes nothing more, the witness says that it has failed, and
//	    its recovery counts what J2 counts of the part that a sync had returned
//	    for, and syncs nothing to bless the rest.
//	J9  A journal that a Close has left whole rests when it is opened: its files
//	    stay as they are until there is a change to write, so the next Open finds
//	    the same tables, whatever happens in between. (Most of a thousand volumes
//	    are idle, and the begin of a life waits for five syncs.) Whole is: the
//	    last segment that counts is closed, the witness has seen that, and no
//	    file is left to remove. Close removes the files of its life only when the
//	    segment, the base and the witness are durable; that none are left proves
//	    it, under the same boot ID too. The first Append begins the life, in the
//	    order of Open, and writes its frame when all of that is durable. If it
//	    fails it says so, nothing of it counts, and the next one tries again with a
//	    segment of another number: the base may name the last by then. Until
//	    somebody has tried, marks of MarkDrained go behind the witness, and wait
//	    for nothing; they count under the boot ID of the rest as long as the chain
//	    ends with the Close and no sync has failed since. The first segment of the
//	    next life has them too. A sync of an image that fails while the journal
//	    rests is noted under the life that was closed. So the next Open takes a
//	    failure that is noted for a closed life for one, whatever its boot ID; and
//	    one that is noted for a life before the first that counts, since that has
//	    taken nothing when the witness does not speak of it yet.
//
//	J10 A commit frame may hold blocks: their data as it was when the commit began.
//	    So a flush of little waits for one sync, the journal's, and not for those of
//	    images too, whose new blocks cost the file system a transaction. The last
//	    commit that counts and has a block decides what the image holds in it: Open
//	    writes that to the image, before any table file. Under the same boot ID the
//	    page cache of the image may have newer data, which counts (J1): who writes to
//	    such a block again appends a change for it, as if the table had none, and where
//	    there is one behind the commit's LSN the image stays as it is. (Elsewhere the
//	    image has what the commit has, unless the disk was lost and mounted again, or
//	    this is a copy of it.) A commit says which images were synced before it was
//	    written; what earlier ones hold of those counts no more. So nobody is promised
//	    what a sync of an image has made durable, while the journal holds any of the
//	    image, but by a commit that says so; it may take back what nobody was promised.
//	    While a segment holds data that counts, it is not folded (J5), nor is the
//	    journal closed: somebody has to sync the images and commit (Holds).
//
//	J11 Frames may be staged: they have their place in the chain, and are in memory
//	    only, so that one write serves a batch of requests. They are written by
//	    Publish, or by whatever writes a frame behind them: the file never has a gap.
//	    Nobody outside the process may learn of a request, or of what it changed,
//	    before its frame is published; so a kill takes nothing that anybody knows of.
//	    (But lists count blocks of requests under way, staged ones too.)
//	    A frame is staged only where the file has room already. If it can't be written
//	    then, it stays staged: what is to follow it can't be written either, nor is
//	    anything answered, until a write succeeds.
//
// Open under the same boot ID with a tail that no commit covers first makes the
// tail committed: it syncs all images (a deletion rests on the older image that
// took the data; data may have been overwritten where an entry was already),
// then the segments, then appends a commit frame, which says of the images that the
// journal holds data of that they were synced (J10), and syncs that. It does the same
// without such a tail where the journal holds data, and else syncs the segments: the
// commit frame that it found may be in the page cache only (J4). If one of these syncs
// fails, the life that is being recovered has failed (J8), for the next Open too. Before
// that, what is held goes into the images, as after a power cut. Then, as after one:
// table files, the first segment of the new life, base, witness, removal of the old
// segments.
//
// A crash anywhere in that, and in the recovery of that, is safe. Until the base
// is replaced the old segments are whole, and the next recovery reads the same
// committed changes or, after a commit by recovery, more of them. Some table
// files may be newer than the base; replaying changes that a table has already
// ends in the same table, since the last change of a block decides and it is
// among those replayed. A first segment of a life that the base does not name
// yet is in no chain. After the base is replaced the old segments don't count,
// and neither does a witness that still speaks of one of them. The same holds
// for Checkpoint and Close, which do it in the same order.
//
// In a life only Checkpoint starts another segment, so that Append makes no file. Its
// frames may reach the disk before the end of the segment before it. The chain
// ends at the gap then; J3 says that nothing behind it was committed.
//
// A frame whose write fails is taken back by a truncate, or overwritten by the
// next one. If the truncate fails too and the process dies before the next one,
// what there is of it is no whole frame and a torn tail; where a write that
// failed had stored all of it, its change is in doubt, as its request was told.
//
// Rejected: tables written from memory at a checkpoint (J4 would need the
// engine to stop); removing old segments oldest first as the only sign of what
// counts (the loss of a segment file could not be told from a checkpoint);
// syncing each segment's end before the next takes frames (a request would wait
// for a checkpoint).
type Journal struct {
	o    Options
	boot bootID

	appended  atomic.Uint64 // LSN
	committed atomic.Uint64 // LSN
	ready     atomic.Bool   // cur is there
	// uncovered counts the bytes of frames that were appended since the frame
	// of the last commit.
	uncovered atomic.Int64
	staging   atomic.Bool // frames are staged
	witness   *witness

	// checkpointing lets one Checkpoint, RemoveImage or Close run at a time.
	// It is taken before mu.
	checkpointing sync.Mutex
	tables        map[image.ID]LSN // of the table files; guarded by checkpointing
	next          uint64           // number of the segment that a life begins with; guarded by checkpointing
	old           []string         // files that no longer count when it has begun; guarded by checkpointing

	// mu guards what follows. It is held while a frame or a mark is written to the
	// page cache, never during a sync. It is taken before that of the witness.
	mu      sync.Mutex
	err     error                // final: a failed sync, or ErrClosed
	cur     *segment             // takes the frames; nil until the life has begun
	rests   bool                 // nobody has tried to begin it (J9)
	closed  []*segment           // before cur, not yet folded, oldest first
	held    map[image.ID]holding // what commits hold of images (J10)
	calm    int                  // commits with blocks since one with changes
	images  map[image.ID]bool    // true: in the chain; false: removed, its changes are ignored
	drained map[image.ID]bool
	buf     []byte
}

const defaultSegmentBytes = 64 << 20

// holding is what commits hold of an image that was not synced since (J10).
type holding struct {
	from  uint64 // number of the first segment that has some
	bytes int64
}

// keepBufferBytes is what Append keeps of a buffer that a large frame made grow.
const keepBufferBytes = 64 << 10

func (o *Options) setDefaults() {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	o.Images = slices.Clone(o.Images)
}

// stepBytes is what a segment grows by, in zeros: 64 KiB of the default.
func (o *Options) stepBytes() int64 { return max(o.SegmentBytes/1024, frameAlign) }

// Create makes an empty journal in o.Dir, and the directory if it is missing.
// Both are durable when it returns, if the parent of the parent of o.Dir is. It
// fails with fs.ErrExist if there is a journal; one that an earlier Create left
// half made is none.
func Create(o Options) (*Journal, error) {
	o.setDefaults()
	j, err := makeJournal(&o)
	if err != nil {
		return nil, fmt.Errorf("create journal %s: %w", o.Dir, err)
	}
	return j, nil
}

func makeJournal(o *Options) (*Journal, error) {
	switch there, err := hasBase(o); {
	case err != nil:
		return nil, err
	case there:
		return nil, fs.ErrExist
	}
	if err := makeDir(o); err != nil {
		return nil, err
	}
	boot, err := readBootID(o.FS)
	if err != nil {
		return nil, err
	}
	j := newJournal(o, boot, 0, nil)
	return j, j.beginLife(1)
}

func makeDir(o *Options) error {
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	return o.FS.SyncDir(path.Dir(o.Dir))
}

func newJournal(o *Options, boot bootID, at LSN, tables map[image.ID]LSN) *Journal {
	j := &Journal{o: *o, boot: boot, images: map[image.ID]bool{}, drained: map[image.ID]bool{}, held: map[image.ID]holding{}, tables: map[image.ID]LSN{}}
	maps.Copy(j.tables, tables)
	for _, id := range o.Images {
		j.images[id] = true
	}
	j.appended.Store(uint64(at))
	j.committed.Store(uint64(at))
	return j
}

// begin begins the life of a journal that rests, if nobody has yet (J9).
func (j *Journal) begin() error {
	j.checkpointing.Lock()
	defer j.checkpointing.Unlock()
	j.mu.Lock()
	needed := j.err == nil && j.cur == nil
	if needed {
		j.rests = false
	}
	j.mu.Unlock()
	if !needed {
		return nil
	}
	if err := j.beginNext(); err != nil {
		return fmt.Errorf("begin to write journal %s: %w", j.o.Dir, err)
	}
	_ = j.removeOld() // what could not be removed the next Open removes
	return nil
}

// beginNext begins a life, under a number that no attempt had before: the base may
// name the segment of one that failed. checkpointing is held, or nobody else is
// there yet.
func (j *Journal) beginNext(kinds ...kind) error {
	number := j.next
	j.next = number + 1
	err := j.beginLife(number, kinds...)
	if err != nil {
		j.old = append(j.old, segmentName(j.o.Dir, number))
	}
	return err
}

// removeOld removes what counts no longer and says what it could not remove.
func (j *Journal) removeOld() (notes []string) {
	for _, name := range j.old {
		if err := j.o.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			notes = append(notes, fmt.Sprintf("%s counts no longer but could not be removed: %v", name, err))
		}
	}
	j.old = nil
	return notes
}

// beginLife starts the first segment of a life and lets the base name it, and
// then the witness. The frames of kinds follow the drained marks in it.
func (j *Journal) beginLife(number uint64, kinds ...kind) (err error) {
	if j.witness == nil {
		if j.witness, err = openWitness(&j.o); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, j.witness.file.Close())
			}
		}()
	}
	f, err := makeSegmentFile(&j.o, number)
	if err != nil {
		return err
	}
	s := &segment{
		header: header{volume: j.o.VolumeID, number: number, life: number, first: j.End(), boot: j.boot, salt: newSalt()},
		name:   segmentName(j.o.Dir, number),
		file:   f,

		stepBytes: j.o.stepBytes(),
	}
	j.mu.Lock()
	drained := maps.Clone(j.drained)
	j.mu.Unlock()
	err = s.start(drained, kinds...)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		s.durable = s.end
		err = writeBase(&j.o, base{number, j.tables})
	}
	if err == nil {
		err = j.witness.begin(number, s.place())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start segment %s: %w", s.name, err), f.Close())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cur = s
	j.ready.Store(true)
	return nil
}

// place is where the last frame ends.
func (s *segment) place() place { return place{s.number, s.end, s.crc} }

// start writes the header and the frames that every segment begins with.
func (s *segment) start(drained map[image.ID]bool, kinds ...kind) error {
	b := s.appendTo(nil)
	s.headerCRC = binary.LittleEndian.Uint32(b[headerBytes-crcBytes:])
	s.crc, s.after = s.headerCRC, s.first
	if len(drained) > 0 {
		at := len(b)
		b = beginFrame(b)
		for id := range drained {
			b = binary.LittleEndian.AppendUint64(b, uint64(id))
		}
		b, s.crc = s.endFrame(b, at, kindDrained, s.crc, 0)
	}
	for _, k := range kinds {
		at := len(b)
		b, s.crc = s.endFrame(beginFrame(b), at, k, s.crc, 0)
	}
	if _, err := s.file.WriteAt(b, 0); err != nil {
		return err
	}
	s.end = int64(len(b))
	return nil
}

// Append adds changes to the journal as one frame: all of them count after a
// crash, or none. When it returns they survive the death of the process; Commit
// makes them survive a power cut. It returns the LSN behind them. Any number of
// goroutines may call it; the order of two changes of one block is the caller's
// to keep (the block's lock does it). On an error none of them counts:
// ErrUnknownImage, ErrInvalidChange, an error of the file system, after which
// the next Append may be tried, or the journal's final error. The first one waits
// for syncs where the journal rests, see Ready.
func (j *Journal) Append(changes []Change) (LSN, error) { return j.append(changes, false) }

// Stage is Append without its write: the changes survive the death of the process only
// when Publish has returned nil, or an Append, a mark or a commit after them (J11).
func (j *Journal) Stage(changes []Change) (LSN, error) { return j.append(changes, true) }

func (j *Journal) append(changes []Change, stage bool) (LSN, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(changes) == 0 {
		return j.End(), j.err
	}
	if err := j.awaitLife(); err != nil {
		return 0, err
	}
	b := beginFrame(j.buf[:0])
	for _, c := range changes {
		if !c.valid() {
			return 0, fmt.Errorf("%w: image %d, block %d, count %d, state %d", ErrInvalidChange, c.Image, c.Block, c.Count, c.State)
		}
		if _, ok := j.images[c.Image]; !ok {
			return 0, fmt.Errorf("%w %d", ErrUnknownImage, c.Image)
		}
		b = appendChange(b, c)
	}
	if len(b)-frameBytes > maxPayloadBytes {
		return 0, fmt.Errorf("%w: %d changes are too many for one frame", ErrInvalidChange, len(changes))
	}
	if err := j.add(b, kindChanges, stage); err != nil {
		return 0, err
	}
	j.cur.after++
	j.appended.Store(uint64(j.cur.after))
	return j.cur.after, nil
}

// Publish writes what is staged: when it returns nil, all that was staged before it was
// called survives the death of the process. Any number of goroutines may call it, before
// each answer: where nothing is staged it costs next to nothing. After an error, one of
// the file system, it may be called again. A journal that has failed returns none: what was
// not committed is lost, whether it was answered or not (J8). It tries all the same, since
// the witness may not have been told of the failure.
func (j *Journal) Publish() error {
	if !j.staging.Load() {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.publish()
}

// publish is Publish. mu is held.
func (j *Journal) publish() error {
	if j.cur != nil {
		if err := j.cur.write(nil); err != nil && j.err == nil {
			return err
		}
	}
	j.staging.Store(false)
	return nil
}

// Ready tells whether an Append would wait for no sync: the journal does not rest
// (J9). It never waits; any number of goroutines may ask.
func (j *Journal) Ready() bool { return j.ready.Load() }

// awaitLife returns when there is a segment that takes frames. mu is held, but not
// while a life begins.
func (j *Journal) awaitLife() error {
	for j.err == nil && j.cur == nil {
		j.mu.Unlock()
		err := j.begin()
		j.mu.Lock()
		if err != nil {
			return err
		}
	}
	return j.err
}

// put writes b, begun by beginFrame, behind the last frame. mu is held.
func (j *Journal) put(b []byte, k kind) error { return j.add(b, k, false) }

// add is put, or stages the frame if it can be. mu is held.
func (j *Journal) add(b []byte, k kind, stage bool) error {
	b, crc := j.cur.endFrame(b, 0, k, j.cur.crc, j.cur.durable)
	if cap(b) <= keepBufferBytes {
		j.buf = b
	}
	if stage = stage && j.cur.stages(len(b)); stage {
		j.cur.stage(b, crc)
	} else if err := j.cur.put(b, crc); err != nil {
		return err
	}
	j.staging.Store(stage)
	j.uncovered.Add(int64(len(b)))
	return nil
}

// stageBytes is how much is staged at most: requests of a few batches.
const stageBytes = 4 << 10

// stages tells whether a frame of so many bytes may be staged.
func (s *segment) stages(lengthBytes int) bool {
	return len(s.staged)+lengthBytes <= stageBytes && s.makeRoom(lengthBytes, 1) == nil
}

func (s *segment) stage(b []byte, crc uint32) {
	if s.staged == nil {
		s.staged = make([]byte, 0, stageBytes)
	}
	s.staged = append(s.staged, b...)
	s.crc = crc
	s.end += int64(len(b))
}

// put writes a frame. After an error the next one takes its place.
func (s *segment) put(b []byte, crc uint32) error {
	if int64(len(b)) <= s.stepBytes {
		_ = s.makeRoom(len(b), 1) // there may be room for the frame
	}
	if err := s.write(b); err != nil {
		return err
	}
	s.crc = crc
	s.end += int64(len(b))
	return nil
}

// write writes what is staged, and b behind it: at once, if both have room. The room of
// what is staged is kept whatever comes: it is needed when that is tried again.
func (s *segment) write(b []byte) error {
	if n := len(s.staged); n > 0 {
		whole := s.staged
		if together := n+len(b) <= cap(s.staged) && s.end+int64(len(b)) <= s.room; together {
			whole, b = append(s.staged, b...), nil
		}
		at := s.end - int64(n)
		if _, err := s.file.WriteAt(whole, at); err != nil {
			return fmt.Errorf("append to %s at offset %d: %w", s.name, at, err)
		}
		s.staged = s.staged[:0]
	}
	if len(b) == 0 {
		return nil
	}
	if _, err := s.file.WriteAt(b, s.end); err != nil {
		_ = s.file.Truncate(s.end) // only tidies up: what stays is overwritten
		s.room = s.end
		return fmt.Errorf("append to %s at offset %d: %w", s.name, s.end, err)
	}
	return nil
}

// makeRoom writes zeros, where there is no room for the next lengthBytes, up to behind
// those and some steps further: a commit whose frames take the place of blocks that the
// file has is one write of the disk; one that makes the file longer commits a
// transaction of the file system besides. The room is asked for by Allocate, which draws
// on no reserve: that is for the changes of tables, not for what clients have written.
func (s *segment) makeRoom(lengthBytes int, steps int64) error {
	end := s.end + int64(lengthBytes)
	if end <= s.room {
		return nil
	}
	room := (end/s.stepBytes + 1 + steps) * s.stepBytes
	if err := s.file.Allocate(s.end, room-s.end); err != nil {
		s.room = s.end
		return err
	}
	s.room = s.end // zeros are no frame: what there is of them may stay
	for s.room < room {
		piece := zeros[:min(int64(len(zeros))-s.room%int64(len(zeros)), room-s.room)]
		n, err := s.file.WriteAt(piece, s.room)
		if s.room += int64(n); err != nil {
			return err
		}
	}
	return nil
}

// zeros are as many as become one page in memory (see file.PieceBytes): it is written to
// again and again, and synced.
var zeros [16 << 10]byte

// dataSteps is how many steps of room are made at a time where commits have blocks:
// 256 KiB of the default. (Of 1 MiB, the flush that waits for it is late by 10 ms.)
const dataSteps = 4

// MarkDrained records that every process older than the cut of an image has
// ended. The mark survives the death of the process, not a power cut. Any
// number of goroutines may call it. It begins no life while there is room for the
// marks of a rest (J9); else it waits where Append does. Errors are those of Append.
func (j *Journal) MarkDrained(id image.ID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.err == nil && j.images[id] && j.cur == nil {
		if j.rests && len(j.drained) < mostDrained && j.noteDrained(id) == nil {
			return nil
		}
		if err := j.awaitLife(); err != nil {
			return err
		}
	}
	switch {
	case j.err != nil:
		return j.err
	case !j.images[id]:
		return fmt.Errorf("%w %d", ErrUnknownImage, id)
	}
	b := binary.LittleEndian.AppendUint64(beginFrame(j.buf[:0]), uint64(id))
	if err := j.put(b, kindDrained); err != nil {
		return err
	}
	j.drained[id] = true
	return nil
}

// noteDrained adds an image to the marks of a rest. mu is held. If it fails, what
// begins a life writes the mark.
func (j *Journal) noteDrained(id image.ID) error {
	drained := append(slices.Collect(maps.Keys(j.drained)), id)
	slices.Sort(drained)
	if err := j.witness.rest(j.boot, slices.Compact(drained)); err != nil {
		return err
	}
	j.drained[id] = true
	return nil
}

// End returns the LSN behind the last change appended. It never waits.
func (j *Journal) End() LSN { return LSN(j.appended.Load()) }

// Committed returns the LSN up to which changes are durable. It never waits.
func (j *Journal) Committed() LSN { return LSN(j.committed.Load()) }

// Commit makes the changes up to an LSN durable, and the data that they rest on.
// Every image that one of them rests on, for a deletion the older one that took the
// block, is in order in one of three ways: nothing was written to it since the Commit
// before; or the caller has synced it, after it learned upTo from End or Append; or
// all blocks that were written since are here. So is any other image of which the
// caller makes data durable. One Commit runs at a time, beside any number of Appends
// and a Checkpoint. It does nothing where there is nothing to say: no new changes, no
// blocks, and nothing held of what was synced (Holds). An error of a sync is final and
// wraps ErrSyncFailed: it is what every later Append and Commit returns. After another
// one nothing was promised: blocks are not stored on a full disk, as the reserve is for
// changes of tables.
func (j *Journal) Commit(upTo LSN, on Basis) error {
	s, p, err := j.putCommit(upTo, on)
	if err != nil || s == nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return j.fail(s, err)
	}
	// That it can't be told takes nothing from what is durable: only rot would
	// be less well told from a torn tail (J7).
	_ = j.witness.saw(p)
	j.mu.Lock()
	defer j.mu.Unlock()
	s.durable = p.end
	j.committed.Store(uint64(max(upTo, j.Committed())))
	for _, id := range on.Synced {
		delete(j.held, id)
	}
	return nil
}

// putCommit writes the commit frame and returns the segment that it is in and
// where it ends; nil if there is nothing to commit. Every segment before that
// one is durable (J3).
func (j *Journal) putCommit(upTo LSN, on Basis) (*segment, place, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		if j.err != nil {
			return nil, place{}, j.err
		}
		if upTo <= j.Committed() && len(on.Blocks) == 0 && !slices.ContainsFunc(on.Synced, j.holds) {
			return nil, place{}, nil
		}
		if err := j.awaitLife(); err != nil {
			return nil, place{}, err
		}
		if upTo > j.End() {
			return nil, place{}, fmt.Errorf("journal: commit up to %d, but the end is %d", upTo, j.End())
		}
		i := slices.IndexFunc(j.closed, func(s *segment) bool { return s.durable < s.end })
		if i < 0 {
			break
		}
		s := j.closed[i]
		j.mu.Unlock()
		err := s.file.Sync()
		if err != nil {
			err = j.fail(s, err)
		}
		j.mu.Lock()
		if err != nil {
			return nil, place{}, err
		}
		s.durable = s.end
	}
	b := appendCommit(beginFrame(j.buf[:0]), upTo, on)
	if len(b)-frameBytes > maxPayloadBytes {
		return nil, place{}, fmt.Errorf("journal: %d blocks are too many for one commit", len(on.Blocks))
	}
	if len(on.Blocks) > 0 {
		if err := j.cur.makeRoom(len(b), dataSteps); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return nil, place{}, fmt.Errorf("store %d blocks in %s: %w", len(on.Blocks), j.cur.name, err)
		}
	}
	if err := j.put(b, kindCommit); err != nil {
		return nil, place{}, err
	}
	if j.calm++; upTo > j.Committed() {
		j.calm = 0
	}
	for _, x := range on.Blocks {
		h, ok := j.held[x.Image]
		if !ok {
			h.from = j.cur.number
		}
		h.bytes += lookup.BlockSize
		j.held[x.Image] = h
	}
	j.uncovered.Store(0)
	return j.cur, j.cur.place(), nil
}

// holds tells whether commits hold data of an image. mu is held.
func (j *Journal) holds(id image.ID) bool { return j.held[id].bytes > 0 }

// Holds tells how many bytes of data of an image commits hold, which a sync of the
// image, told by the next Commit, would make needless (J10). Any number of goroutines
// may ask.
func (j *Journal) Holds(id image.ID) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.held[id].bytes
}

// fail makes a failed sync the journal's final error and returns that.
func (j *Journal) fail(s *segment, err error) error {
	final := j.end(fmt.Errorf("%w: %s: %w", ErrSyncFailed, s.name, err))
	return errors.Join(final, j.witness.fail())
}

// end sets the final error, unless there is one, and returns what it is.
func (j *Journal) end(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = err
	}
	return j.err
}

// MarkFailed tells that a sync of an image has failed, unsynced: from now on
// only what was committed counts, if the machine goes down or the server alone
// (J8), and every other call returns ErrSyncFailed. Any number of goroutines may
// call it, also again, and after a failed sync of the journal, which marks the
// failure by itself. An error is one of the file system: a death of the server
// may then be recovered as if no sync had failed. Or it is ErrClosed.
func (j *Journal) MarkFailed() error {
	if err := j.end(fmt.Errorf("%w: of an image", ErrSyncFailed)); errors.Is(err, ErrClosed) {
		return err
	}
	if err := j.witness.fail(); err != nil {
		return fmt.Errorf("mark journal %s as failed: %w", j.o.Dir, err)
	}
	return nil
}

// AddImage tells that an image has joined the chain, with an empty table; the
// catalog already says so, durably. Changes of it may be appended from now on.
func (j *Journal) AddImage(id image.ID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.images[id] = true
}

// Package store keeps volumes in a data directory: it opens and recovers the
// directory, owns the names that last, does the durable side of a preserve, and
// seals in the background. It is what a program embeds, and what the server's
// frontends call; see the example.
//
// A data directory holds
//
//	lock            flock of the one process that has it open
//	reserve         room for its own records on a full disk
//	catalog.db      volumes, chains, snapshots (package catalog)
//	catalog.db.log  what of them no commit has yet, while the directory is open
//	images/         every image of every volume (packages image/file, image/sealed)
//	volumes/ID/     journal of a volume, and tables of its images (package journal)
//
// What owns what: the catalog owns the chains; the journals own the tables of
// images that are not sealed, and speak only of images that the catalog already
// has. So the two never need to commit together: a preserve is one append to the
// catalog's log, before its cut. A sealed image has its table beside it, and may stand in
// the chains of many volumes: a clone is one catalog commit.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// Options of Open. The zero value is what serve uses.
type Options struct {
	// FS is where the directory lies; nil: the operating system's.
	FS vfs.FS
	// Logger gets what background work has to say; nil: nobody.
	Logger *slog.Logger
	// MaxDraining limits the draining VLUNs of a volume; 0: 8.
	MaxDraining int
	// JournalBytes is the length from which a volume's journal is folded into
	// its tables; 0: 64 MiB.
	JournalBytes int64
	// ReserveBytes is the room that the directory keeps for its own records on
	// a full disk (type reserve); 0: none. DefaultReserveBytes is what serve uses.
	ReserveBytes int64
	// ScrubEvery is the period in which every sealed image is read once and held
	// against its checksums, in the background; 0: never.
	ScrubEvery time.Duration
	// ScrubBytesPerSecond limits how fast it reads; 0: DefaultScrubBytesPerSecond.
	ScrubBytesPerSecond int64
	// ReclaimEvery is the period in which images without a name are looked at for
	// blocks that nobody sees any more; 0: only when a snapshot or volume is deleted.
	ReclaimEvery time.Duration
	// WarnAt is how full the file system of the directory may be before the log says
	// so; RefusePreservesAt, before no preserve, clone or rollback is made any more,
	// with ErrHighWater. Writes are never refused by it. Zero: never.
	WarnAt, RefusePreservesAt Mark
	// FoldAbove is from how many images without a name a volume on the cheapest are
	// folded into their neighbours; 0: DefaultFoldAbove, negative: never.
	FoldAbove int
	// ReclaimBytesPerSecond limits how fast folding copies; 0:
	// DefaultReclaimBytesPerSecond.
	ReclaimBytesPerSecond int64
	// ReclaimPercent is how much of the time giving back room and folding may work
	// while clients are served, 1 to 100; 0: DefaultReclaimPercent.
	ReclaimPercent int
	// keepUnnamed lets nothing be given back or folded: a test's model knows nothing of
	// images that are dropped.
	keepUnnamed bool
	// atOnceBytes, if not 0, is in place of the constant, for tests.
	atOnceBytes int64
	// SumCacheBytes limits the memory for checksums of sealed images; 0:
	// DefaultSumCacheBytes.
	SumCacheBytes int64
	// IndexBytes limits the memory that says which image holds a block, for the live
	// views of all volumes together (volume.Engine.LimitIndexes); 0: DefaultIndexBytes.
	IndexBytes int64
	// Driller runs the drills of schedules; nil: a schedule can have none.
	Driller Driller
}

// DefaultSumCacheBytes is the memory for checksums of a server that was told
// nothing else.
const DefaultSumCacheBytes = sealed.DefaultCacheBytes

// DefaultIndexBytes is the memory for indexes of a server that was told nothing else:
// it is enough for 512 GiB of which all is written and read at random.
const DefaultIndexBytes = 256 << 20

// Store is an open data directory. Its methods may be called from any goroutine.
//
// Three locks, and none that a request takes. mu guards the maps and what they
// hold, and is never held across I/O. admin orders the commands that change the
// set of volumes and is held across theirs; chains is between the two.
type Store struct {
	fs       vfs.FS
	dir      string
	logger   *slog.Logger
	lock     io.Closer
	reserve  *reserve
	water    waterMarks
	records  vfs.FS // fs for what draws on the reserve
	journals int64  // Options.JournalBytes
	catalog  names
	engine   *volume.Engine
	spares   spares
	sealer   sealer
	sums     *sealed.Cache
	scans    scans
	rot      chan rotten
	// schedules are kept to in the background.
	schedules schedules
	driller   Driller
	recovery  []string // guarded by noting
	noting    sync.Mutex

	reclaiming     reclaiming
	foldAbove      int
	reclaimRate    int64 // bytes a second
	reclaimPercent int
	atOnceBytes    int64

	// looking is held by verifications, which share it, and by who changes through
	// which image a block is shown.
	looking sync.RWMutex

	admin sync.Mutex
	seen  time.Time // the latest time that a hold was looked at; guarded by admin

	// chains is held by who records what is known of sealed images in all chains
	// that they stand in, and alone by who makes or ends such a chain, or takes a name
	// out of one. It is taken before mu, and held across a commit of the catalog.
	chains sync.RWMutex

	mu        sync.Mutex
	volumes   map[string]*disk // by name; not those that a rollback has left behind
	groups    map[string]catalog.Group
	byVolume  map[*volume.Volume]*disk
	byName    map[string][]*disk // all of byVolume, oldest first
	stuck     map[image.ID]bool  // a fold has failed, and nobody touches their files
	reserved  map[string]bool    // VOLUME@SNAP names of preserves on their way
	marked    map[string]marks   // and what is to be put on them, if anything
	closed    bool
	preserves sync.WaitGroup
}

// disk is what the store knows of a volume beside the engine.
type disk struct {
	record    catalog.Volume
	volume    *volume.Volume
	journal   *journal.Journal
	kick      chan struct{}      // the journal wants a checkpoint; never closed, as any commit may ask
	stop      chan struct{}      // closed when no more are to be made
	kicked    chan struct{}      // closed when nobody makes them any more
	ctx       context.Context    //nolint:containedctx // of its seals, scrubs and verifications: a delete ends it; guarded by Store.mu
	cancel    context.CancelFunc // of ctx; guarded by Store.mu
	images    map[image.ID]image.Image
	snapshots map[*volume.VLUN]*snapshot // by own VLUN; guarded by Store.mu
	sealed    map[*volume.VLUN]*seal     // their record says so, or is about to; guarded by Store.mu
	founded   map[*volume.VLUN]bool      // not sealed yet, and branches may rest on them (found); guarded by Store.mu
	files     sync.Mutex                 // held by whoever works on the images in the background
	founding  sync.Mutex                 // held by whoever founds or records a seal; taken after files
	deleted   bool                       // guarded by files
}

// snapshot is a named VLUN. Its fields are guarded by Store.mu.
type snapshot struct {
	name        string
	cut         uint64
	cutTime     time.Time
	drain       time.Duration
	consistency volume.Consistency
	torn        []string
	waiting     []string
	conflicts   uint64 // of an earlier life of the server
	failed      string
	verified    time.Time // the last time, to its end, by itself
	wrongHash   bool      // its hash was not that of the seal then
	drill       *catalog.Drill
	verifying   *verification // runs
	settled     chan struct{} // closed when it is sealed, has failed, or is no more
	urgent      int           // so many wait for its seal to do something with it
	marks
}

func lockName(dir string) string    { return path.Join(dir, "lock") }
func catalogName(dir string) string { return path.Join(dir, "catalog.db") }
func imagesDir(dir string) string   { return path.Join(dir, "images") }
func volumesDir(dir string) string  { return path.Join(dir, "volumes") }
func volumeDir(dir string, id catalog.VolumeID) string {
	return path.Join(volumesDir(dir), fmt.Sprintf("%016x", uint64(id)))
}

// Open opens a data directory, makes it if it is missing or empty, and recovers
// it: what was flushed is there, every prepared preserve counts as cut, and
// what a dead server had acknowledged is there as long as the machine did not
// go down. Recovery says what was done. Errors: ErrInUse, ErrFormat, those of
// catalog and journal for what is corrupt.
func Open(dir string, o Options) (_ *Store, err error) {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		fs: o.FS, dir: dir, logger: o.Logger,
		volumes: map[string]*disk{}, groups: map[string]catalog.Group{}, byVolume: map[*volume.Volume]*disk{}, byName: map[string][]*disk{}, reserved: map[string]bool{},
		marked: map[string]marks{}, stuck: map[image.ID]bool{},
		schedules: schedules{byTarget: map[string]*schedule{}, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1)},
		driller:   o.Driller,
	}
	if s.driller == nil {
		s.driller = noDriller{}
	}
	if err := s.water.set(o.WarnAt, o.RefusePreservesAt); err != nil {
		return nil, err
	}
	if err := s.takeDirectory(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
		}
	}()
	if s.reserve, err = openReserve(s.fs, dir, o.ReserveBytes); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if s.foldAbove = cmp.Or(o.FoldAbove, DefaultFoldAbove); s.foldAbove < 0 {
		s.foldAbove = math.MaxInt
	}
	s.reclaimRate = cmp.Or(o.ReclaimBytesPerSecond, DefaultReclaimBytesPerSecond)
	s.reclaimPercent = min(max(1, cmp.Or(o.ReclaimPercent, DefaultReclaimPercent)), 100)
	s.atOnceBytes = cmp.Or(o.atOnceBytes, atOnceBytes)
	s.records, s.journals = records{s.fs, s.reserve}, o.JournalBytes
	s.catalog.reserve = s.reserve
	if s.catalog.Catalog, err = catalog.Open(s.records, catalogName(dir)); err != nil {
		return nil, openError(dir, err)
	}
	state, err := s.catalog.Load()
	if err != nil {
		return nil, openError(dir, err)
	}
	if err := s.dropStaged(&state); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if err := s.removeOrphans(state); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	agree(state.Volumes)
	s.engine = volume.New(keeper{s}, o.MaxDraining)
	s.engine.LimitIndexes(cmp.Or(o.IndexBytes, DefaultIndexBytes))
	s.spares.store = s
	s.sealer.start(s)
	s.sums = sealed.NewCache(cmp.Or(o.SumCacheBytes, DefaultSumCacheBytes))
	s.startScans()
	if err := s.recoverVolumes(state.Volumes); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	s.sealRecovered()
	for _, g := range state.Groups {
		s.groups[g.Name] = g
	}
	if err := s.openSchedules(state); err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	s.seen = state.Seen
	if !o.keepUnnamed {
		s.sealer.open()
	}
	s.spares.refill()
	s.dropHeld()
	s.dropPassing()
	s.dropForgottenPasts()
	if o.ScrubEvery > 0 {
		s.scans.running.Add(1)
		go s.scrubAlways(o.ScrubEvery, cmp.Or(o.ScrubBytesPerSecond, DefaultScrubBytesPerSecond))
	}
	if s.water.any() {
		s.scans.running.Add(1)
		go s.watchMarks()
	}
	if o.ReclaimEvery > 0 {
		s.scans.running.Add(1)
		go s.reclaimAlways(o.ReclaimEvery)
	}
	s.schedules.start(s)
	return s, nil
}

// takeDirectory makes the directory if need be and takes its lock.
func (s *Store) takeDirectory() (err error) {
	names, err := s.fs.ReadDir(s.dir)
	made := 0 // this many of the directories on its path
	switch {
	case errors.Is(err, fs.ErrNotExist):
		made = s.missing()
		if err := s.fs.MkdirAll(s.dir, 0o700); err != nil {
			return fmt.Errorf("open %s: %w", s.dir, err)
		}
	case err != nil:
		return fmt.Errorf("open %s: %w", s.dir, err)
	case !slices.Contains(names, "catalog.db") && slices.ContainsFunc(names, foreign):
		return fmt.Errorf("open %s: %w: not a data directory, and not empty", s.dir, ErrFormat)
	}
	if !slices.Contains(names, "catalog.db") {
		if err := s.syncAbove(made); err != nil {
			return fmt.Errorf("open %s: %w", s.dir, err)
		}
	}
	if s.lock, err = s.fs.Lock(lockName(s.dir)); err != nil {
		if errors.Is(err, vfs.ErrLocked) {
			return fmt.Errorf("data directory %s is %w: another tidemark has it open", s.dir, ErrInUse)
		}
		return fmt.Errorf("open %s: %w", s.dir, err)
	}
	for _, d := range []string{imagesDir(s.dir), volumesDir(s.dir)} {
		if err := s.fs.MkdirAll(d, 0o700); err != nil {
			return errors.Join(fmt.Errorf("open %s: %w", s.dir, err), s.lock.Close())
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return errors.Join(fmt.Errorf("open %s: %w", s.dir, err), s.lock.Close())
	}
	return nil
}

// missing counts the directories that MkdirAll has to make: the data directory
// and those above it up to one that is there.
func (s *Store) missing() (n int) {
	for name := path.Clean(s.dir); path.Dir(name) != name; name = path.Dir(name) {
		if _, err := s.fs.ReadDir(name); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		n++
	}
	return n
}

// syncAbove makes the entry of a new data directory durable, and those of the
// directories above it. Where this open has made an entry, that must succeed. An
// earlier one that died too early for this may have made others; where the
// system won't sync a directory, it was none of them.
func (s *Store) syncAbove(made int) error {
	for name := path.Clean(s.dir); path.Dir(name) != name; name = path.Dir(name) {
		if err := s.fs.SyncDir(path.Dir(name)); err != nil && (made > 0 || !neverSyncs(err)) {
			return err
		}
		made--
	}
	return nil
}

// neverSyncs tells that a directory can't be synced at all: it may not be read,
// or its file system has nothing to sync (proc, squashfs, autofs).
func neverSyncs(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.EROFS, syscall.ENOTSUP} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// foreign tells names that an open which was cut short does not leave behind.
func foreign(name string) bool {
	return !strings.HasPrefix(name, "catalog.db") && !strings.HasSuffix(name, ".sock") &&
		!slices.Contains([]string{"lock", "reserve", "images", "volumes"}, name)
}

func openError(dir string, err error) error {
	if errors.Is(err, catalog.ErrFormat) {
		return fmt.Errorf("open %s: %w: %w", dir, ErrFormat, err)
	}
	return fmt.Errorf("open %s: %w", dir, err)
}

// Recovery says in words what Open found and did.
func (s *Store) Recovery() []string { return slices.Clone(s.recovery) }

func (s *Store) note(format string, args ...any) {
	s.noting.Lock()
	defer s.noting.Unlock()
	s.recovery = append(s.recovery, fmt.Sprintf(format, args...))
}

// Close ends every process as torn, waits for requests in flight, flushes,
// finishes the sealing that is at hand while ctx lasts, and lets the directory
// go. No request may begin after it.
func (s *Store) Close(ctx context.Context) error {
	s.schedules.stop() // first: what they delete waits for admin
	s.admin.Lock()
	defer s.admin.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()

	s.scans.stop()
	err := s.engine.Close()
	s.preserves.Wait()
	s.spares.close()
	s.sealer.stop(ctx)
	err = errors.Join(err, s.recordDrained())
	return errors.Join(err, s.release())
}

// release closes what Open opened.
func (s *Store) release() (err error) {
	s.scans.stop()
	s.sealer.abandon() // of an Open that failed; a Close has stopped it
	gone := map[image.ID]bool{}
	for _, d := range s.byVolume {
		d.endCheckpoints()
		err = errors.Join(err, d.close(func(id image.ID) (closed bool) {
			closed, gone[id] = gone[id], true
			return closed
		}))
	}
	s.spares.close()
	if s.catalog.Catalog != nil {
		err = errors.Join(err, s.catalog.Close())
	}
	if s.reserve != nil {
		err = errors.Join(err, s.reserve.close())
	}
	return errors.Join(err, s.lock.Close())
}

// close closes the journal, and the images but those.
func (d *disk) close(but func(image.ID) bool) (err error) {
	if d.journal != nil {
		err = d.journal.Close()
	}
	for id, img := range d.images {
		if !but(id) {
			err = errors.Join(err, img.Close())
		}
	}
	return err
}

// disk returns a volume by name.
func (s *Store) disk(name string) (*disk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.diskLocked(name)
}

func (s *Store) diskLocked(name string) (*disk, error) {
	if s.closed {
		return nil, ErrClosed
	}
	if d := s.volumes[name]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("volume %s %w", name, ErrNotFound)
}

// CreateVolume makes a volume of zeros that takes no storage. Errors:
// ErrInvalid, ErrExists, ErrNoSpace.
func (s *Store) CreateVolume(name string, sizeBytes int64, scope volume.Scope) (VolumeInfo, error) {
	return s.newVolume(name, sizeBytes, scope, false)
}

func (s *Store) newVolume(name string, sizeBytes int64, scope volume.Scope, held bool) (VolumeInfo, error) {
	if err := errors.Join(checkName("volume", name), checkSize(sizeBytes)); err != nil {
		return VolumeInfo{}, err
	}
	if scope != volume.ScopeRequest && scope != volume.ScopeSession {
		return VolumeInfo{}, fmt.Errorf("%w: scope %s of a volume: allowed are request and session", ErrInvalid, scope)
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if _, err := s.disk(name); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = fmt.Errorf("volume %s %w", name, ErrExists)
		}
		return VolumeInfo{}, err
	}
	if err := s.reserve.spare(); err != nil {
		return VolumeInfo{}, fmt.Errorf("create volume %s: %w", name, err)
	}
	d, err := s.createVolume(catalog.Volume{Name: name, SizeBytes: sizeBytes, Scope: scope.String(), Created: time.Now().UTC(), Held: held})
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("create volume %s: %w", name, err)
	}
	return s.volumeInfo(d), nil
}

// createVolume makes the files first and the record last: what has no record
// when the directory is opened is removed.
func (s *Store) createVolume(record catalog.Volume) (*disk, error) {
	if err := s.catalog.Update(func(tx *catalog.Tx) (err error) {
		record.ID, err = tx.NewVolumeID()
		return err
	}); err != nil {
		return nil, err
	}
	images, err := s.spares.take(1)
	if err != nil {
		return nil, err
	}
	id, img := images[0].ID, images[0].Image
	j, err := s.createJournal(record.ID, id)
	if err == nil {
		err = s.catalog.Update(func(tx *catalog.Tx) error {
			return errors.Join(tx.PutVolume(record),
				tx.PutLink(catalog.Link{Volume: record.ID, Image: id, SizeBytes: record.SizeBytes}))
		})
	}
	if err != nil {
		return nil, errors.Join(err, s.undoCreate(record.ID, j, images[0], errors.Is(err, catalog.ErrFailed)))
	}
	s.spares.refill()
	return s.addDisk(record, j, map[image.ID]image.Image{id: img}, []volume.Link{
		{ID: id, Image: img, Table: lookup.NewTable(), SizeBytes: record.SizeBytes},
	})
}

// undoCreate removes the files of a volume that has no record. If it may have
// one after all, they stay: the next open needs them, or removes them.
func (s *Store) undoCreate(id catalog.VolumeID, j *journal.Journal, first volume.Next, mayHaveRecord bool) (err error) {
	if j != nil {
		err = j.Close()
	}
	err = errors.Join(err, first.Image.Close())
	if mayHaveRecord {
		return err
	}
	// A directory that was never made is no error: there is nothing to undo.
	if gone := s.removeVolumeDir(volumeDir(s.dir, id)); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return errors.Join(err, file.Remove(s.fs, imagesDir(s.dir), first.ID, file.Options{}))
}

func (s *Store) createJournal(id catalog.VolumeID, first image.ID) (*journal.Journal, error) {
	return journal.Create(journal.Options{FS: s.records, Dir: volumeDir(s.dir, id), VolumeID: uint64(id), Images: []image.ID{first}, SegmentBytes: s.journals})
}

// addDisk gives a volume to the engine and to the maps.
func (s *Store) addDisk(record catalog.Volume, j *journal.Journal, images map[image.ID]image.Image, chain []volume.Link) (*disk, error) {
	d, err := s.newDisk(record, j, images, chain)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.showLocked(d)
	return d, nil
}

// showLocked gives a volume to the maps; Store.mu is held.
func (s *Store) showLocked(d *disk) {
	s.byVolume[d.volume] = d
	name := d.record.Name
	s.byName[name] = append(s.byName[name], d)
	slices.SortFunc(s.byName[name], func(a, b *disk) int { return cmp.Compare(a.record.ID, b.record.ID) })
	if !d.record.Past && !d.record.Staged {
		s.volumes[name] = d
	}
}

// hideLocked is the reverse; Store.mu is held.
func (s *Store) hideLocked(d *disk) {
	delete(s.byVolume, d.volume)
	name := d.record.Name
	if s.byName[name] = slices.DeleteFunc(s.byName[name], func(other *disk) bool { return other == d }); len(s.byName[name]) == 0 {
		delete(s.byName, name)
	}
}

// newDisk gives a volume to the engine.
func (s *Store) newDisk(record catalog.Volume, j *journal.Journal, images map[image.ID]image.Image, chain []volume.Link) (*disk, error) {
	scope, err := volume.ParseScope(record.Scope)
	if err != nil {
		return nil, err
	}
	d := &disk{
		record: record, journal: j, images: images, snapshots: map[*volume.VLUN]*snapshot{},
		sealed: map[*volume.VLUN]*seal{}, founded: map[*volume.VLUN]bool{},
		kick: make(chan struct{}, 1), stop: make(chan struct{}), kicked: make(chan struct{}),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	go s.checkpoints(d)
	d.volume, err = s.engine.AddVolume(volume.Config{
		Name: record.Name, Scope: scope, Log: kickingLog{j, d.kick}, Chain: chain,
	})
	if err != nil {
		d.endCheckpoints()
		return nil, err
	}
	go d.volume.Tend(d.stop)
	return d, nil
}

// kickingLog is a journal that asks for a checkpoint when it has grown.
type kickingLog struct {
	*journal.Journal
	kick chan struct{}
}

// Append implements volume.Log.
func (l kickingLog) Append(changes []journal.Change) (journal.LSN, error) {
	lsn, err := l.Journal.Append(changes)
	l.askIfOverdue()
	return lsn, err
}

// Stage implements volume.Log.
func (l kickingLog) Stage(changes []journal.Change) (journal.LSN, error) {
	lsn, err := l.Journal.Stage(changes)
	l.askIfOverdue()
	return lsn, err
}

func (l kickingLog) askIfOverdue() {
	if l.Overdue() {
		l.ask()
	}
}

// Commit implements volume.Log.
func (l kickingLog) Commit(to journal.LSN, on journal.Basis) error {
	if err := l.Journal.Commit(to, on); err != nil {
		return err
	}
	if l.NeedsCheckpoint() || l.IsCalm() {
		l.ask()
	}
	return nil
}

func (l kickingLog) ask() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// checkpoints makes checkpoints of a volume beside its I/O when they are asked for.
func (s *Store) checkpoints(d *disk) {
	defer close(d.kicked)
	said := "" // once, not at each request while a disk is full
	for {
		select {
		case <-d.stop:
			return
		case <-d.kick:
		}
		var err error
		switch j := d.journal; {
		case j.NeedsCheckpoint() || j.Overdue():
			err = s.checkpoint(d)
		case j.IsCalm():
			err = s.settle(d)
		}
		if err == nil || errors.Is(err, context.Canceled) { // by a delete
			said = ""
		} else if err.Error() != said {
			said = err.Error()
			s.logger.Error("checkpoint", "volume", d.volume.Name(), "err", err)
		}
		if err != nil { // each commit asks
			select {
			case <-d.stop:
				return
			case <-time.After(checkpointPause):
			}
		}
	}
}

// checkpointPause is between a checkpoint that failed and the next.
const checkpointPause = time.Second

// endCheckpoints returns when none is being made, and none will be.
func (d *disk) endCheckpoints() {
	close(d.stop)
	<-d.kicked
}

// checkpoint folds the journal. Only what is committed can be folded, and holds no data
// of images that were not synced: so it closes the segment, then has the images synced
// and commits that, behind the closed one.
func (s *Store) checkpoint(d *disk) error {
	if err := d.journal.Checkpoint(); err != nil {
		return err
	}
	if err := s.settle(d); err != nil {
		return err
	}
	return d.journal.Fold()
}

// settle leaves the journal no data to hold. It writes the images back first: what is
// left when all flushes wait for their syncs is little then.
func (s *Store) settle(d *disk) error {
	s.mu.Lock()
	ctx := d.ctx
	s.mu.Unlock()
	for _, k := range d.volume.VLUNs() {
		if d.journal.Holds(k.ImageID()) == 0 {
			continue
		}
		img, err := file.Open(s.fs, imagesDir(s.dir), k.ImageID(), file.Options{SizeBytes: k.SizeBytes()})
		if err != nil {
			return err
		}
		err = writeBack(ctx, img, k.Table(), wholeShare())
		if errors.Is(err, image.ErrSyncFailed) { // the kernel tells each handle, or the first that asks
			err = k.SyncFailed(err)
		}
		if err := errors.Join(err, img.Close()); err != nil {
			return err
		}
	}
	return d.volume.Settle()
}

// ResizeVolume makes a volume larger. Open views keep their size. Errors:
// ErrNotFound, ErrInvalid (also for a smaller size).
func (s *Store) ResizeVolume(name string, sizeBytes int64) (VolumeInfo, error) {
	if err := checkSize(sizeBytes); err != nil {
		return VolumeInfo{}, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	d, err := s.disk(name)
	if err != nil {
		return VolumeInfo{}, err
	}
	err = s.engine.Resize(d.volume, sizeBytes, func() error {
		if now := d.volume.SizeBytes(); sizeBytes < now {
			return fmt.Errorf("%w: volume %s has %d bytes, and %d would cut data off: a volume only grows", ErrInvalid, name, now, sizeBytes)
		}
		record := d.record
		record.SizeBytes = sizeBytes
		err := s.catalog.Update(func(tx *catalog.Tx) error {
			return errors.Join(tx.PutVolume(record),
				tx.PutLink(catalog.Link{Volume: record.ID, Image: tip(d.volume).ImageID(), SizeBytes: sizeBytes}))
		})
		if err == nil {
			s.mu.Lock()
			d.record = record
			s.mu.Unlock()
		}
		return err
	})
	if err != nil {
		return VolumeInfo{}, err
	}
	return s.volumeInfo(d), nil
}

func tip(v *volume.Volume) *volume.VLUN {
	vluns := v.VLUNs()
	return vluns[len(vluns)-1]
}

// DeleteVolume removes a volume that nobody uses, with all it holds, and from its
// groups, and ends the seal, scrub or verification that works on it. Errors: ErrNotFound; ErrInUse if
// a client is connected, a process named it, a preserve drains, or it has
// snapshots and withSnapshots is false; ErrHeld if one of them is held, ErrClock.
func (s *Store) DeleteVolume(name string, withSnapshots bool) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if _, err := s.disk(name); err != nil {
		return err
	}
	s.mu.Lock()
	branches, snapshots := s.branchesLocked(name), 0
	for _, b := range branches {
		snapshots += len(b.snapshots)
	}
	s.mu.Unlock()
	if snapshots > 0 && !withSnapshots {
		return fmt.Errorf("volume %s is %w: it has %s; delete with --with-snapshots", name, ErrInUse, count(snapshots, "snapshot", "snapshots"))
	}
	held, err := s.Snapshots(name)
	if err != nil {
		return err
	}
	if err := s.mayGo(held...); err != nil {
		return fmt.Errorf("volume %s can't be deleted: %w", name, err)
	}
	var volumes []*volume.Volume
	for _, b := range branches {
		volumes = append(volumes, b.volume)
	}
	restore, err := s.engine.Retire(volumes...)
	if err != nil { // before any work on it ends, or a branch goes, for nothing
		return inUse(volumes...)
	}
	for _, b := range branches { // the one that has the name is the last
		if err := s.deleteBranch(b, nil); err != nil {
			restore()
			return err
		}
	}
	return nil
}

// deleteBranch deletes one volume of a name. What its images held that stand in
// other chains too may now be seen by nobody. An heir, if it is not nil, gets the
// name and all snapshots in the same step. Store.admin is held.
func (s *Store) deleteBranch(d *disk, heir *Incoming) error {
	name := d.record.Name
	s.mu.Lock()
	d.cancel()
	s.mu.Unlock()
	d.files.Lock() // a seal of it that is under way ends first
	defer d.files.Unlock()
	d.founding.Lock()
	defer d.founding.Unlock()
	var unknown error
	s.chains.Lock() // until nobody finds it among the holders of its images
	unlock := sync.OnceFunc(s.chains.Unlock)
	defer unlock()
	var due []punching
	err := s.engine.RemoveVolume(d.volume, func() error {
		disinherit, err := heir.inherit(d)
		if err != nil {
			return err
		}
		before := s.catalog.Failed()
		err = s.recordMarking(func(tx *catalog.Tx, m *marking) (err error) {
			if heir != nil { // it sees all that the volume did
				return errors.Join(tx.DeleteVolume(d.record.ID), heir.putLocked(tx))
			}
			due, err = s.dropBranch(tx, m, d)
			return err
		})
		if before == nil && errors.Is(err, catalog.ErrFailed) { // the next open may find it deleted: it takes no more writes
			unknown, err = err, nil
		}
		if err != nil {
			disinherit()
		}
		return err
	})
	if err != nil {
		s.resume(d)
		if errors.Is(err, volume.ErrBusy) {
			return inUse(d.volume)
		}
		if heir != nil {
			return err
		}
		return fmt.Errorf("delete volume %s: %w", name, err)
	}
	s.mu.Lock()
	if s.volumes[name] == d {
		delete(s.volumes, name)
		if heir == nil {
			s.schedules.forgetLocked(name)
			s.leftGroupsLocked(name)
		}
	}
	heir.namedLocked()
	s.hideLocked(d)
	for k := range d.snapshots {
		d.forget(k)
	}
	if unknown == nil {
		s.sealer.punch(due...) // before anybody finds them in fewer chains: a fold asks for that
	}
	s.mu.Unlock()
	unlock()
	d.deleted = true
	d.endCheckpoints()
	held := s.heldElsewhere(d)
	_ = d.close(held) // what it could not save goes now, or is recovered
	if unknown != nil {
		return fmt.Errorf("delete volume %s: whether it is deleted shows when the directory is opened again: %w", name, unknown)
	}
	s.sealElsewhere(d)
	if err := s.removeFiles(d, held); err != nil {
		what := "volume " + name
		if d.record.Past {
			what = "what a rollback of volume " + name + " left behind"
		}
		return fmt.Errorf("%s is deleted, but not all of its files: %w", what, err)
	}
	return nil
}

// dropBranch records that a volume is deleted, and of which images that may make
// blocks invisible. Store.mu is held.
func (s *Store) dropBranch(tx *catalog.Tx, m *marking, d *disk) (due []punching, err error) {
	if err := tx.DeleteVolume(d.record.ID); err != nil {
		return nil, err
	}
	if !d.record.Past && !d.record.Staged { // schedule and groups are of the name
		if err := errors.Join(tx.DeleteSchedule(d.record.Name), s.leaveGroups(tx, d.record.Name)); err != nil {
			return nil, err
		}
	}
	for _, k := range s.protectedLocked(d) {
		rec := d.sealed[k] // the same for all that have the image
		if rec == nil {
			continue // when it is sealed it is its turn
		}
		m.set(rec, rec.punched, true)
		due = append(due, toPunch(k))
		for _, h := range s.holdersLocked(k.ImageID()) {
			if h.disk == d {
				continue
			}
			if err := tx.PutLink(h.disk.link(h.vlun, volume.Sealed)); err != nil {
				return nil, err
			}
		}
	}
	return due, nil
}

// protectedLocked lists the VLUNs of a volume whose images stand in other chains too,
// and of which it may show blocks that nobody else does. Where another chain has its
// ceiling of an image (punch) among the images that both have, and no higher than this
// one has it, whatever is covered there is covered here. So a clone of a snapshot that
// is still there protects nothing, and costs nothing when it goes. Store.mu is held.
func (s *Store) protectedLocked(d *disk) (list []*volume.VLUN) {
	chain, shown := d.volume.VLUNs(), d.ceilingsLocked()
	shared, elsewhere := make([]bool, len(chain)), make([]bool, len(chain))
	for _, other := range s.byVolume {
		if other == d || other.images[chain[0].ImageID()] == nil {
			continue
		}
		vluns, ceilings := other.volume.VLUNs(), other.ceilingsLocked()
		both := 0
		for both < min(len(chain), len(vluns)) && chain[both].ImageID() == vluns[both].ImageID() {
			both++
		}
		for i := range both {
			shared[i] = true
			elsewhere[i] = elsewhere[i] || 0 <= ceilings[i] && ceilings[i] < both && ceilings[i] <= shown[i]
		}
	}
	for i, k := range chain {
		if shared[i] && shown[i] >= 0 && !elsewhere[i] {
			list = append(list, k)
		}
	}
	return list
}

// ceilingsLocked gives for each place in the chain that of the oldest view that counts
// at or above it, -1 if none does; Store.mu is held.
func (d *disk) ceilingsLocked() []int {
	chain := d.volume.VLUNs()
	places, ceiling := make([]int, len(chain)), -1
	for i, k := range slices.Backward(chain) {
		if d.countsLocked(k) {
			ceiling = i
		}
		places[i] = ceiling
	}
	return places
}

// inUse says who keeps a volume from being deleted.
func inUse(branches ...*volume.Volume) error {
	views, processes := 0, 0
	for _, v := range branches {
		n, m := v.Uses()
		views, processes = views+n, processes+m
	}
	return usedBy(branches[0], views, processes)
}

// liveInUse says who keeps a volume from being frozen: no client of a snapshot does.
func liveInUse(v *volume.Volume) error {
	views, processes := v.LiveUses()
	return usedBy(v, views, processes)
}

func usedBy(v *volume.Volume, views, processes int) error {
	return fmt.Errorf("volume %s is %w: %s, %s; end them first", v.Name(), ErrInUse,
		count(views, "connection", "connections"), count(processes, "process", "processes"))
}

// resume lets a volume be worked on that is not deleted after all: what was ended
// is tried again.
func (s *Store) resume(d *disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.ctx, d.cancel = context.WithCancel(context.Background())
}

// forget drops a snapshot's record; Store.mu is held.
func (d *disk) forget(k *volume.VLUN) {
	if snap := d.snapshots[k]; snap != nil {
		snap.settle()
		delete(d.snapshots, k)
	}
}

func (snap *snapshot) settle() {
	select {
	case <-snap.settled:
	default:
		close(snap.settled)
	}
}

// removeFiles removes what a volume had on disk, large images in the background. The
// catalog is free of it.
func (s *Store) removeFiles(d *disk, but func(image.ID) bool) (err error) {
	removals := map[image.ID]removal{} // also of an image that has no VLUN any more
	for id := range d.images {
		removals[id] = removal{id: id}
	}
	for _, k := range d.volume.VLUNs() {
		removals[k.ImageID()] = removal{id: k.ImageID(), sizeBytes: k.SizeBytes(), dataBytes: dataBytes(k)}
	}
	for id, r := range removals {
		switch {
		case but(id):
		case r.dataBytes > s.atOnceBytes:
			s.sealer.remove(r)
		default:
			s.reclaiming.gave(r.dataBytes)
			err = errors.Join(err, s.removeImage(id, r.sizeBytes))
		}
	}
	return errors.Join(err, s.removeVolumeDir(volumeDir(s.dir, d.record.ID)))
}

// count writes a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (s *Store) removeVolumeDir(dir string) error {
	names, err := s.fs.ReadDir(dir)
	for _, name := range names {
		err = errors.Join(err, s.fs.Remove(path.Join(dir, name)))
	}
	return errors.Join(err, s.fs.Remove(dir))
}

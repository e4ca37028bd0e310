package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/file"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// sealer seals what has drained, one VLUN at a time, in the background. A volume's
// come in the order of its chain (R8), since they drain in that order. When there
// is nothing to seal, it punches what nobody sees any more, and folds.
type sealer struct {
	store  *Store
	cancel context.CancelFunc
	// endReclaim ends what the next open begins again: a punch, a fold.
	endReclaim context.CancelFunc
	done       chan struct{}

	mu       sync.Mutex
	queue    []*volume.VLUN
	punches  []punching
	removals []removal
	ended    []image.ID                 // punches whose end is to be recorded
	folding  bool                       // some are being folded
	folds    bool                       // a volume may have too many images without a name
	resting  bool                       // what was to be folded could not be: it is tried again later
	working  bool                       // on what is in neither any more
	sealing  *volume.VLUN               // nil: none is
	asked    map[*volume.VLUN]time.Time // when, first, to seal those that are not sealed
	later    map[*volume.VLUN]bool      // those whose seal failed, and is tried again; true: errBehind
	opened   bool                       // every volume is there: before, nobody knows what is seen
	stopping bool
	rested   sync.Cond // of mu: there is nothing to do
	wake     chan struct{}

	paused map[*volume.VLUN]time.Duration // those whose seal failed, before the last try; of run
	joined joined                         // of run
}

// punching is an image of which blocks may be seen by nobody any more.
type punching struct {
	id        image.ID
	of        *volume.Volume // one that has it
	deadBytes int64          // data in them; -1: not measured yet
}

func (q *sealer) start(s *Store) {
	ctx, cancel := context.WithCancel(context.Background())
	q.store, q.cancel, q.done, q.wake = s, cancel, make(chan struct{}), make(chan struct{}, 1)
	q.rested.L = &q.mu
	q.paused, q.later = map[*volume.VLUN]time.Duration{}, map[*volume.VLUN]bool{}
	q.asked = map[*volume.VLUN]time.Time{}
	reclaim, end := context.WithCancel(ctx)
	q.endReclaim = end
	go q.run(ctx, reclaim)
}

// enqueue asks for a VLUN that has drained to be sealed. It does not wait.
func (q *sealer) enqueue(k *volume.VLUN) {
	q.mu.Lock()
	q.queue = append(q.queue, k)
	delete(q.later, k)
	if _, again := q.asked[k]; !again {
		q.asked[k] = time.Now()
	}
	q.mu.Unlock()
	q.poke()
}

// tryBehind has those of some volumes sealed now that waited for an older one.
func (q *sealer) tryBehind(of map[*volume.Volume]bool) {
	q.mu.Lock()
	var behind []*volume.VLUN
	for k, is := range q.later {
		if is && of[k.Volume()] {
			behind = append(behind, k)
			delete(q.later, k)
		}
	}
	slices.SortFunc(behind, func(a, b *volume.VLUN) int { return cmp.Compare(a.ImageID(), b.ImageID()) })
	q.queue = append(q.queue, behind...)
	q.mu.Unlock()
	q.poke()
}

const (
	// sealPercent is how much of the time a seal works beside requests, at first.
	sealPercent = 10
	// sealSoon is after how long it works twice as much.
	sealSoon = 5 * time.Second
)

// percent is how much of the time the seal of a VLUN may work beside requests: the
// longer ago it was asked for the more, or those of frequent preserves would never be
// sealed; and all of it if somebody waits for a seal.
func (q *sealer) percent(k *volume.VLUN) int {
	q.mu.Lock()
	waiting, stopping := append([]*volume.VLUN{k}, q.queue...), q.stopping
	ago := time.Since(q.asked[k])
	q.mu.Unlock()
	if stopping || slices.ContainsFunc(waiting, q.store.isUrgent) {
		return 100
	}
	return min(100, sealPercent<<min(ago/sealSoon, 4))
}

func (s *Store) isUrgent(k *volume.VLUN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.byVolume[k.Volume()]
	return d != nil && d.snapshots[k] != nil && d.snapshots[k].urgent > 0
}

// toPunch is the image of a VLUN, for punch.
func toPunch(k *volume.VLUN) punching { return punching{k.ImageID(), k.Volume(), -1} }

// punch asks for the blocks of images to be punched that nobody sees. Those of one
// volume come one after the other, newest first (see joined). The other volumes' wait for
// as long as more are asked for of it than are punched: room comes back all the same.
func (q *sealer) punch(asked ...punching) {
	q.mu.Lock()
	queued := make(map[image.ID]bool, len(q.punches))
	for _, p := range q.punches {
		queued[p.id] = true
	}
	for _, a := range asked {
		if queued[a.id] {
			continue
		}
		queued[a.id] = true
		theirs := false
		at := slices.IndexFunc(q.punches, func(p punching) bool {
			before := p.of == a.of && p.id < a.id || p.of != a.of && theirs
			theirs = p.of == a.of
			return before
		})
		if at < 0 {
			at = len(q.punches)
		}
		q.punches = slices.Insert(q.punches, at, a)
	}
	q.mu.Unlock()
	q.poke()
}

// remove asks for an image that is in no chain to be removed.
func (q *sealer) remove(r removal) {
	q.mu.Lock()
	q.removals = append(q.removals, r)
	q.mu.Unlock()
	q.poke()
}

// isToPunch tells whether that was asked for and has not begun.
func (q *sealer) isToPunch(id image.ID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.punches, func(p punching) bool { return p.id == id })
}

// unsealed lists what has drained and is not sealed, but for what can't be.
func (q *sealer) unsealed() []*volume.VLUN {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := slices.AppendSeq(slices.Clone(q.queue), maps.Keys(q.later))
	if q.sealing != nil {
		list = append(list, q.sealing)
	}
	return list
}

// open lets it punch, from now on.
func (q *sealer) open() {
	q.mu.Lock()
	q.opened, q.folds = true, true // an earlier life may have left some
	q.mu.Unlock()
	q.poke()
}

func (q *sealer) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// stop finishes the queue while ctx lasts. It ends a punch and a fold.
func (q *sealer) stop(ctx context.Context) {
	q.mu.Lock()
	q.stopping = true
	q.mu.Unlock()
	q.endReclaim()
	q.poke()
	select {
	case <-q.done:
	case <-ctx.Done():
		q.cancel()
		<-q.done
	}
}

// abandon ends the sealing where it is. It does nothing if none was started.
func (q *sealer) abandon() {
	if q.cancel != nil {
		q.cancel()
		q.stop(context.Background())
	}
}

// run seals, as long as ctx lasts, and gives room back, as long as reclaim does.
func (q *sealer) run(ctx, reclaim context.Context) {
	defer close(q.done)
	for {
		q.mu.Lock()
		stopping, idle := q.stopping, len(q.queue) == 0 && !q.toReclaim()
		if q.working = false; idle {
			q.store.reclaiming.rest()
			q.joined = joined{}
			q.rested.Broadcast()
		}
		q.mu.Unlock()
		switch ended := ctx.Err() != nil; {
		case !ended && q.sealNext(ctx):
		case stopping:
			q.recordEnds()
			return
		case !ended && q.reclaimNext(ctx, reclaim): // else what is left is recorded as due
		default:
			<-q.wake
		}
	}
}

// sealNext seals one VLUN, if one has drained.
func (q *sealer) sealNext(ctx context.Context) bool {
	q.mu.Lock()
	if len(q.queue) == 0 {
		q.mu.Unlock()
		return false
	}
	k := q.queue[0]
	q.queue, q.working, q.folds, q.sealing = q.queue[1:], true, true, k
	q.mu.Unlock()
	err := q.store.seal(ctx, k)
	again := err != nil && ctx.Err() == nil && mayPass(k, err)
	q.mu.Lock()
	if q.sealing = nil; again {
		q.later[k] = errors.Is(err, errBehind)
	} else {
		delete(q.asked, k)
	}
	q.mu.Unlock()
	if ctx.Err() != nil {
		return true
	}
	if err != nil && !errors.Is(err, context.Canceled) { // by a delete, which may fail
		q.store.sealFailed(k, err)
	}
	if again {
		time.AfterFunc(q.pause(k, err), func() { q.enqueue(k) })
	} else {
		delete(q.paused, k)
	}
	return true
}

// reclaimNext removes one image, punches one or folds some, if there is one. Before it
// punches it measures all that are to be punched, one at a time: so somebody can tell
// how long that takes.
// Between two pieces of that it seals, as in run.
func (q *sealer) reclaimNext(ctx, reclaim context.Context) bool {
	q.mu.Lock()
	if !q.opened || !q.toReclaim() {
		q.mu.Unlock()
		return false
	}
	q.working = true
	seals := func() { q.sealNext(ctx) }
	if len(q.removals) > 0 {
		r := q.removals[0]
		q.removals = q.removals[1:]
		q.store.reclaiming.begin(r.id, false, r.dataBytes)
		defer q.store.reclaiming.end()
		q.mu.Unlock()
		q.gaveBack(r.id, q.store.remove(reclaim, r, seals))
		return true
	}
	if len(q.punches) == 0 && len(q.ended) > 0 {
		q.mu.Unlock()
		q.recordEnds()
		return true
	}
	if len(q.punches) == 0 {
		q.folds, q.folding = false, true
		q.mu.Unlock()
		q.fold(reclaim, seals)
		q.mu.Lock()
		q.folding = false
		q.mu.Unlock()
		return true
	}
	if i := slices.IndexFunc(q.punches, func(p punching) bool { return p.deadBytes < 0 }); i >= 0 {
		id := q.punches[i].id
		q.mu.Unlock()
		dead, err := q.store.findDead(reclaim, id, &q.joined, seals)
		if err != nil {
			return true // it is the end
		}
		q.mu.Lock()
		i = slices.IndexFunc(q.punches, func(p punching) bool { return p.id == id }) // nobody else takes one off
		q.punches[i].deadBytes = bytesOf(dead)
		q.mu.Unlock()
		return true
	}
	if len(q.ended) >= endedAtOnce {
		q.mu.Unlock()
		q.recordEnds()
		return true
	}
	id := q.punches[0].id
	q.store.reclaiming.begin(id, false, q.punches[0].deadBytes) // as nobody finds it in the queue any more
	defer q.store.reclaiming.end()
	q.punches, q.folds = q.punches[1:], true
	q.mu.Unlock()
	q.gaveBack(id, q.store.punch(reclaim, id, seals))
	return true
}

func (q *sealer) gaveBack(id image.ID, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		q.store.logger.Error("give back the room of what was deleted; it is tried again later", "image", id, "err", err)
	}
}

// fold folds some images, if a volume has too many.
func (q *sealer) fold(ctx context.Context, idle func()) {
	g := q.store.nextFolds()
	if g == nil {
		return
	}
	err := g.run(ctx, idle)
	switch {
	case errors.Is(err, context.Canceled):
	case errors.Is(err, errLooking), errors.Is(err, errFolded):
		q.foldLater(foldPause)
	case err != nil:
		q.store.logger.Error("bound the number of images without a name; it is tried again later", "err", err)
		q.foldLater(longestSealPause)
	case g.failed:
		q.foldLater(longestSealPause)
	case g.later:
		q.foldLater(foldPause)
	default:
		q.foldAgain() // there may be more
	}
}

// toReclaim tells whether there is something to remove, to punch or to fold; mu is held.
func (q *sealer) toReclaim() bool {
	return len(q.removals)+len(q.punches)+len(q.ended) > 0 || q.foldsNow()
}

// recordEnd asks for the end of a punch to be recorded, with others: when no more are
// asked for, or at the latest when it is the turn of endedAtOnce. A crash before that has
// the next life punch once more.
func (q *sealer) recordEnd(id image.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = append(q.ended, id)
}

// endedAtOnce ends of punches are recorded together, at most.
const endedAtOnce = 64

func (q *sealer) recordEnds() {
	q.mu.Lock()
	ended := q.ended
	q.ended = nil
	q.mu.Unlock()
	for len(ended) > 0 {
		var err error
		if ended, err = q.store.recordEnds(ended); err != nil {
			q.store.logger.Error("record that the room of what was deleted was given back; the next start does it again", "err", err)
		}
	}
}

// foldsNow tells whether it is time to look for something to fold; mu is held.
func (q *sealer) foldsNow() bool { return q.folds && !q.resting }

func (q *sealer) foldLater(pause time.Duration) {
	q.mu.Lock()
	q.resting = true
	q.mu.Unlock()
	time.AfterFunc(pause, q.foldAgain)
}

func (q *sealer) foldAgain() {
	q.mu.Lock()
	q.folds, q.resting = true, false
	q.mu.Unlock()
	q.poke()
}

// foldPause is between two looks at what can't be folded now.
const foldPause = 10 * time.Second

// A seal that failed is tried again, each time after twice as long a pause.
const (
	firstSealPause   = 10 * time.Second
	longestSealPause = 5 * time.Minute
)

func (q *sealer) pause(k *volume.VLUN, err error) time.Duration {
	if errors.Is(err, errBehind) { // to find that out costs nothing
		return firstSealPause
	}
	q.paused[k] = min(max(firstSealPause, 2*q.paused[k]), longestSealPause)
	return q.paused[k]
}

// mayPass tells whether what kept a VLUN from being sealed may pass while the
// directory is open: a full disk, no file descriptor, an error of one read.
func mayPass(k *volume.VLUN, err error) bool {
	return k.Volume().Failed() == nil && !errors.Is(err, catalog.ErrFailed) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, image.ErrCorrupt)
}

// errBehind: an older VLUN of the volume is not sealed, or has lost its sums, so
// this one is not sealed: its hash rests on them.
var errBehind = errors.New("an older snapshot of the volume is not sealed, or has lost its checksum file")

// seal makes a drained VLUN a sealed one: the sums of its data are taken while it
// is in memory; it is written back gently, so that nobody meets a full dirty
// limit, and synced; what newer images must not lose for it is flushed, if there is
// anything (volume.VLUN.SyncForSeal); its table is written beside it; then the
// catalog says so. It works on a handle of its own: no flush waits for its
// write-back or its sync, and none is spared its own. A delete of the volume ends
// it with context.Canceled.
func (s *Store) seal(ctx context.Context, k *volume.VLUN) error {
	for _, j := range s.foundedBelow(k) { // its other volume was deleted, perhaps
		if err := s.sealAlone(ctx, j); err != nil {
			return err
		}
	}
	return s.sealAlone(ctx, k)
}

func (s *Store) sealAlone(ctx context.Context, k *volume.VLUN) error {
	s.mu.Lock()
	d := s.byVolume[k.Volume()]
	s.mu.Unlock()
	if d == nil {
		return nil
	}
	d.files.Lock() // a delete of the volume waits for the end of this
	defer d.files.Unlock()
	if d.deleted {
		return nil
	}
	s.mu.Lock()
	kept, cancel := d.ctx, d.cancel
	s.mu.Unlock()
	defer context.AfterFunc(ctx, cancel)() // ctx ends with the store only, and so does all work on the volume
	ctx = kept
	if err := ctx.Err(); err != nil { // a delete is on its way: nothing is late then
		return err
	}
	before, again := k.Image().(*sealed.Image)
	if again && before.Lost() == nil {
		return nil
	}
	if !inOrder(k) {
		return errBehind
	}
	if again {
		return s.sealAgain(ctx, d, k, before)
	}
	hash, err := s.writeDown(ctx, d, k)
	if errors.Is(err, image.ErrSyncFailed) { // the kernel tells each handle, or the first that asks
		return k.SyncFailed(err)
	}
	if err != nil {
		return err
	}
	d.founding.Lock()
	defer d.founding.Unlock()
	if err := s.fasten(d, k); err != nil {
		return err
	}
	img, err := s.withSums(k.Image(), k, hash)
	if err != nil {
		return err
	}
	due, err := s.recordSeal(d, k, &seal{hash: hash, table: 1, unsure: true})
	if err != nil {
		return errors.Join(err, img.CloseSums())
	}
	s.sealedAs(k, img)
	k.Table().Pack()
	s.leaveJournal(d, k)
	if due {
		s.sealer.punch(toPunch(k))
	}
	return nil
}

// recordSeal records a seal in all chains that the image stands in. Its punch is due if
// it has no name: that was deleted, or given up, before; or if it may have stood in
// chains that are gone.
func (s *Store) recordSeal(d *disk, k *volume.VLUN, rec *seal) (due bool, err error) {
	s.chains.RLock() // no branch is made with it meanwhile
	defer s.chains.RUnlock()
	err = s.catalog.Update(func(tx *catalog.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		rec.due = d.snapshots[k] == nil || d.founded[k]
		due = rec.due
		for _, h := range s.holdersLocked(k.ImageID()) {
			h.disk.sealed[h.vlun] = rec
		}
		return s.putLinkLocked(tx, d, k, volume.Sealed)
	})
	if err == nil {
		return due, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.holdersLocked(k.ImageID()) {
		delete(h.disk.sealed, h.vlun)
	}
	return false, err
}

// fasten makes a drained image what lasts by itself, but for its checksums: what newer
// images must not lose for it is flushed, if there is anything (volume.VLUN.SyncForSeal),
// and its table is written beside it. Of one that is founded that is done. disk.founding
// is held.
func (s *Store) fasten(d *disk, k *volume.VLUN) error {
	if s.isFounded(d, k) {
		return nil
	}
	if err := k.SyncForSeal(); err != nil {
		return err
	}
	return sealed.WriteTable(s.fs, imagesDir(s.dir), k.ImageID(), k.Table(), 1)
}

// leaveJournal lets the journal forget an image whose table lies beside it, as the
// catalog says. What is left of it there harms nobody, and goes at the next open.
func (s *Store) leaveJournal(d *disk, k *volume.VLUN) {
	if err := d.journal.RemoveImage(k.ImageID()); err != nil {
		s.logger.Warn("a table that is needed no more could not be removed", "volume", k.Volume().Name(), "image", k.ImageID(), "err", err)
	}
}

// sealedAs shows a VLUN as sealed that is recorded so.
func (s *Store) sealedAs(k *volume.VLUN, img *sealed.Image) {
	s.chains.RLock() // no branch is made with what it was before
	defer s.chains.RUnlock()
	holding := map[*volume.Volume]bool{}
	s.mu.Lock()
	for _, h := range s.holdersLocked(k.ImageID()) {
		h.disk.images[k.ImageID()] = img
		h.vlun.SetSealed(img)
		delete(h.disk.founded, h.vlun)
		holding[h.disk.volume] = true
		if snap := h.disk.snapshots[h.vlun]; snap != nil {
			snap.failed = ""
			snap.settle()
		}
	}
	s.mu.Unlock()
	s.sealer.tryBehind(holding)
	s.scans.poke()
}

// sealAgain gives a sealed image its checksum file back. One that the disk refused is
// opened again; where that fails, and where it is lost, it is made anew. The data
// then has the hash that was recorded at the seal, or it is not what was sealed. What
// was known to be bad is not, and the next scrub reads it all.
func (s *Store) sealAgain(ctx context.Context, d *disk, k *volume.VLUN, lost *sealed.Image) error {
	s.mu.Lock()
	want, punched, due := d.sealed[k].hash, d.sealed[k].punched, d.sealed[k].due
	s.mu.Unlock()
	if !errors.Is(lost.Lost(), image.ErrCorrupt) { // the disk did not give it, and may give it now
		if img, err := s.withSums(lost.Image, k, want); err == nil {
			s.sealedAs(k, img)
			if due {
				s.sealer.punch(toPunch(k))
			}
			s.logger.Info("the checksum file of an image can be read again", "volume", k.Volume().Name(), "image", k.ImageID())
			return nil
		}
	}
	if punched {
		return fmt.Errorf("%w: image %d has lost its checksum file, and it was punched: nothing says what is left of it", ErrCorrupt, k.ImageID())
	}
	sealing, err := s.below(ctx, d, k)
	if err != nil {
		return err
	}
	sealing.Image = lost.Image
	hash, err := sealed.Rehash(ctx, sealing)
	if err != nil {
		return err
	}
	if hash != want { // and what is left of the file stays, as it may tell more
		return fmt.Errorf("%w: image %d has lost its checksum file, and its data has the hash %s, not %s as it was sealed", ErrCorrupt, k.ImageID(), hash, want)
	}
	if _, err := s.writeDown(ctx, d, k); err != nil {
		return err
	}
	img, err := s.withSums(lost.Image, k, want)
	if err != nil {
		return err
	}
	s.mu.Lock()
	d.sealed[k].bad, d.sealed[k].read = nil, time.Time{}
	s.mu.Unlock()
	if err := s.putLinks(d, volume.Sealed, k); err != nil {
		return errors.Join(err, img.CloseSums())
	}
	s.sealedAs(k, img)
	s.logger.Info("the checksum file of an image was lost and is made anew; its data is what was sealed", "volume", k.Volume().Name(), "image", k.ImageID())
	return nil
}

// withSums is the image of a VLUN with the sums that were written for it.
func (s *Store) withSums(bare image.Image, k *volume.VLUN, hash sealed.Hash) (*sealed.Image, error) {
	rec := seal{hash: hash}
	s.mu.Lock()
	if known := s.byVolume[k.Volume()].sealed[k]; known != nil {
		rec.punched, rec.due = known.punched, known.due
	}
	s.mu.Unlock()
	sums, err := openSums(s.fs, s.dir, k.ImageID(), k.SizeBytes(), k.Table(), &rec)
	if err != nil {
		return nil, err
	}
	return sealed.New(bare, sums, s.sums, s.metRot), nil
}

// inOrder tells whether every older VLUN is sealed (R8) and has its sums.
func inOrder(k *volume.VLUN) bool {
	older := true
	for _, j := range k.Volume().VLUNs() {
		if j == k {
			return older
		}
		older = older && j.State() == volume.Sealed && !lost(j)
	}
	return false
}

// lost tells whether a VLUN is sealed and its image has lost its sums.
func lost(k *volume.VLUN) bool {
	img, ok := k.Image().(*sealed.Image)
	return ok && img.Lost() != nil
}

// writeDown writes the checksum file of an image, and all of its data back. The
// sums, which may be more than all of the reserve, don't draw on it: table changes
// need it more.
func (s *Store) writeDown(ctx context.Context, d *disk, k *volume.VLUN) (hash sealed.Hash, err error) {
	fsys := vfs.Labelled{FS: s.fs, Label: "seal"}
	img, err := file.Open(fsys, imagesDir(s.dir), k.ImageID(), file.Options{SizeBytes: k.SizeBytes()})
	if err != nil {
		return sealed.Hash{}, err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	sealing, err := s.below(ctx, d, k)
	if err != nil {
		return sealed.Hash{}, err
	}
	share := s.sealer.share(k)
	sealing.FS, sealing.Image = fsys, &yielding{img, ctx, share}
	if hash, err = sealed.Write(ctx, sealing); err != nil {
		return sealed.Hash{}, err
	}
	if err := writeBack(ctx, img, k.Unsynced(), share); err != nil {
		return sealed.Hash{}, fmt.Errorf("write back image %d: %w", k.ImageID(), err)
	}
	return hash, nil
}

// yielding is an image that is read beside the requests of its volume: to take the sums
// of a gibibyte keeps a processor busy for a second or two, which they need more.
type yielding struct {
	image.Image
	ctx   context.Context
	share *share
}

// share is that of the seal of a VLUN.
func (q *sealer) share(k *volume.VLUN) *share {
	return newShare(func() int { return q.percent(k) }, func() bool { return k.Volume().Active(shareBusy) })
}

// ReadAt implements image.Image.
func (y *yielding) ReadAt(p []byte, off int64) (int, error) {
	if err := y.share.rest(y.ctx, 0); err != nil {
		return 0, err
	}
	return y.Image.ReadAt(p, off)
}

// below says on what the image of a VLUN is sealed. The hash of a view below that
// was punched is not that of its seal: it is made anew, from sums.
func (s *Store) below(ctx context.Context, d *disk, k *volume.VLUN) (x sealed.Sealing, err error) {
	x = sealed.Sealing{Dir: imagesDir(s.dir), ID: k.ImageID(), SizeBytes: k.SizeBytes(), Table: k.Table()}
	s.mu.Lock()
	chain := d.volume.VLUNs()
	chain = chain[:slices.Index(chain, k)]
	sound := 0 // so many images make a view whose hash is known
	for i, j := range chain {
		x.Older = append(x.Older, sealed.Layer{Table: j.Table(), Sums: j.Image().(*sealed.Image)})
		if rec := d.sealed[j]; !rec.punched {
			x.Below, sound = rec.hash, i+1
		}
	}
	s.mu.Unlock()
	for i := sound; i < len(x.Older) && err == nil; i++ {
		x.Below, err = x.Older[:i+1].Hash(ctx, x.Below)
	}
	return x, err
}

// lastBlock is as many blocks as any table has.
const lastBlock = MaxSizeBytes / lookup.BlockSize

func (s *Store) sealFailed(k *volume.VLUN, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.byVolume[k.Volume()]
	if d == nil {
		return
	}
	if snap := d.snapshots[k]; snap != nil {
		if snap.failed == err.Error() {
			return // tried again, and said already
		}
		snap.failed = err.Error()
		snap.settle()
		s.logger.Error("seal", "snapshot", d.record.Name+"@"+snap.name, "err", err)
		return
	}
	s.logger.Error("seal", "volume", d.record.Name, "image", k.ImageID(), "err", err)
}

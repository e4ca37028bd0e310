package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"pgregory.net/rapid"
)

// failer is what testing.T and rapid.T have in common here.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// rig is a volume as the journal sees one: images, whose blocks it writes and
// syncs, and a model of what was appended. All of it lies on one simulated disk.
type rig struct {
	failer
	sim  *vfs.Sim
	hook func(vfs.Op) error // see FS calls of the present life
	o    Options
	j    *Journal

	frames  [][]Change // frames[i] made LSN i+1
	public  LSN        // so many were published
	written [][]uint64 // written[i][k] is the value stored for frames[i][k], each used once
	value   uint64
	drained map[image.ID]bool
	failed  bool         // a sync failed, and the journal knows
	closing bool         // a close was begun
	rests   bool         // it was closed, and nothing has been written since
	elder   bool         // and that was under an earlier boot ID
	done    LSN          // the last Commit that returned
	begun   map[LSN]bool // commits begun, of which a power cut may keep any
	trail   []mark       // after each step

	latest  map[spot]uint64   // what was written last
	told    map[spot]uint64   // and was published
	fresh   map[spot]bool     // written since the commit before
	unknown map[image.ID]bool // nobody knows what is fresh
	floor   map[spot]uint64   // what was flushed
	turn    int               // of commits, which store or sync by it
}

// spot is a block of an image.
type spot struct {
	image image.ID
	block lookup.BlockNum
}

type mark struct {
	ops      int
	done     LSN // at least this much survives a cut from here on
	appended LSN
	floor    map[spot]uint64 // and blocks as they were then, or later
}

const rigBlocks = 6

func newRig(t failer, tempDir string) *rig {
	r := &rig{failer: t, sim: vfs.NewSim(tempDir), drained: map[image.ID]bool{}, begun: map[LSN]bool{},
		latest: map[spot]uint64{}, told: map[spot]uint64{}, fresh: map[spot]bool{}, unknown: map[image.ID]bool{}, floor: map[spot]uint64{}}
	r.o = Options{Dir: "volume", VolumeID: 3, SegmentBytes: 200}
	r.plug()
	j, err := Create(r.o)
	r.must(err)
	r.j = j
	r.addImage()
	r.addImage()
	r.mark()
	return r
}

// plug connects the options to the present life.
func (r *rig) plug() {
	r.o.FS = vfs.Fault{FS: r.sim, Hook: func(op vfs.Op) error {
		if r.hook == nil {
			return nil
		}
		return r.hook(op)
	}}
	r.o.StoreBlock, r.o.SyncImage, r.o.DropImage = r.storeBlock, r.syncImage, r.dropImage
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("%v", err)
	}
}

func (r *rig) mark() {
	r.trail = append(r.trail, mark{r.sim.Ops(), r.done, LSN(len(r.frames)), maps.Clone(r.floor)})
}

func imageFile(id image.ID) string { return fmt.Sprintf("image-%d", id) }

// addImage makes the next image, durable as the catalog would make it.
func (r *rig) addImage() {
	id := image.ID(1)
	if n := len(r.o.Images); n > 0 {
		id = r.o.Images[n-1] + 1
	}
	f, err := r.sim.Open(imageFile(id), os.O_CREATE|os.O_RDWR, 0o600)
	r.must(err)
	r.must(f.Close())
	r.must(r.sim.SyncDir("."))
	r.o.Images = append(slices.Clone(r.o.Images), id)
	r.j.AddImage(id)
}

func (r *rig) storeBlock(b Block) error {
	f, err := r.o.FS.Open(imageFile(b.Image), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b.Data, int64(b.Block)*lookup.BlockSize)
	return errors.Join(err, f.Close())
}

func (r *rig) syncImage(id image.ID) error {
	f, err := r.o.FS.Open(imageFile(id), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", image.ErrNotBegun, err)
	}
	if err = f.Sync(); err != nil {
		err = fmt.Errorf("%w: %w", ErrSyncFailed, err)
	}
	return errors.Join(err, f.Close())
}

func (r *rig) dropImage(id image.ID) error {
	f, err := r.o.FS.Open(imageFile(id), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.DropCache(), f.Close())
}

// overwrite stores a new value in a block. The journal hears of it only if it may have
// data of the block.
func (r *rig) overwrite(at spot) error {
	if r.j.Holds(at.image) > 0 {
		return r.append([]Change{data(at.image, at.block)})
	}
	r.write(at)
	return nil
}

// write stores a new value in a block.
func (r *rig) write(at spot) uint64 {
	r.value++
	f, err := r.sim.Open(imageFile(at.image), os.O_RDWR, 0)
	r.must(err)
	_, err = f.WriteAt(binary.LittleEndian.AppendUint64(nil, r.value), int64(at.block)*lookup.BlockSize)
	r.must(err)
	r.must(f.Close())
	r.latest[at], r.fresh[at] = r.value, true
	return r.value
}

// read returns the value of a block.
func (r *rig) read(at spot) uint64 {
	return binary.LittleEndian.Uint64(r.data(at))
}

func (r *rig) data(at spot) []byte {
	f, err := r.sim.Open(imageFile(at.image), os.O_RDONLY, 0)
	r.must(err)
	b := make([]byte, lookup.BlockSize)
	_, err = f.ReadAt(b, int64(at.block)*lookup.BlockSize)
	if !errors.Is(err, io.EOF) {
		r.must(err)
	}
	r.must(f.Close())
	return b
}

// append writes data for the Data changes, then appends all of them.
func (r *rig) append(changes []Change) error {
	err := r.add(changes, r.j.Append)
	if err == nil {
		r.published()
	}
	return err
}

// stage is append, but for Publish.
func (r *rig) stage(changes []Change) error { return r.add(changes, r.j.Stage) }

func (r *rig) publish() error {
	err := r.j.Publish()
	if err == nil {
		r.published()
	}
	return err
}

// published notes that a kill takes nothing of what there is.
func (r *rig) published() { r.public, r.told = LSN(len(r.frames)), maps.Clone(r.latest) }

func (r *rig) add(changes []Change, add func([]Change) (LSN, error)) error {
	values, before := make([]uint64, len(changes)), maps.Clone(r.latest)
	for i, c := range changes {
		if c.State == lookup.Data {
			values[i] = r.write(spot{c.Image, c.Block})
		}
	}
	lsn, err := add(changes)
	if err != nil {
		maps.Copy(r.latest, before) // who wrote was told so: the new value may be there, or the old
		return err
	}
	r.rests = false
	r.frames = append(r.frames, changes)
	r.written = append(r.written, values)
	if want := LSN(len(r.frames)); lsn != want || r.j.End() != want {
		r.Fatalf("append returned LSN %d, end is %d, want %d", lsn, r.j.End(), want)
	}
	return nil
}

// commit syncs images, or gives the journal what is fresh in them, lets more be
// appended and perhaps a segment be closed, and commits what was there before.
func (r *rig) commit(late []Change) error {
	r.turn++
	return r.commitBy(late, func(id image.ID) bool { return (r.turn+int(id))%3 > 0 })
}

// settle commits such that the journal holds no data, and may be closed.
func (r *rig) settle() error { return r.commitBy(nil, func(image.ID) bool { return false }) }

func (r *rig) commitBy(late []Change, stores func(image.ID) bool) (err error) {
	defer func() {
		if err != nil { // what was fresh is so still, and more
			for _, id := range r.o.Images {
				r.unknown[id] = true
			}
		}
	}()
	upTo, on, promised := r.j.End(), Basis{}, maps.Clone(r.latest)
	for _, id := range r.o.Images {
		var fresh []spot
		for b := range lookup.BlockNum(2 * rigBlocks) {
			if r.fresh[spot{id, b}] {
				fresh = append(fresh, spot{id, b})
			}
		}
		if stores(id) && r.j.Ready() && !r.unknown[id] {
			for _, at := range fresh {
				on.Blocks = append(on.Blocks, Block{id, at.block, r.data(at)})
			}
			continue
		}
		if err := r.syncImage(id); errors.Is(err, ErrSyncFailed) {
			return errors.Join(err, r.j.MarkFailed())
		} else if err != nil {
			return err
		}
		on.Synced = append(on.Synced, id)
	}
	clear(r.fresh)
	clear(r.unknown)
	if len(late) > 0 {
		if err := errors.Join(r.append(late), r.j.Checkpoint()); err != nil {
			return err
		}
	}
	r.begun[upTo] = true
	if err := r.j.Commit(upTo, on); err != nil {
		return err
	}
	r.done, r.floor = upTo, promised
	if r.j.Ready() { // else it had nothing to say
		r.published()
	}
	if r.j.Committed() != upTo {
		r.Fatalf("committed %d, want %d", r.j.Committed(), upTo)
	}
	return nil
}

func (r *rig) markDrained(id image.ID) error {
	if err := r.j.MarkDrained(id); err != nil {
		return err
	}
	r.drained[id], r.rests = true, r.rests && !r.j.Ready()
	r.published()
	return nil
}

// removeOldest takes the oldest image out of the chain, as the catalog says first.
func (r *rig) removeOldest() error {
	id := r.o.Images[0]
	r.o.Images = r.o.Images[1:]
	delete(r.drained, id)
	return r.j.RemoveImage(id)
}

// close commits and closes, and opens again.
func (r *rig) close() error {
	if err := r.settle(); err != nil {
		return err
	}
	if err := r.j.Close(); err != nil {
		return err
	}
	r.recover(true, true)
	return nil
}

// recover opens the journal on the present disk and compares what it finds.
func (r *rig) recover(sameBoot, clean bool) {
	r.Helper()
	if findings := Check(r.o); len(findings) > 0 {
		for _, f := range findings {
			if !sameOld(f) {
				r.Fatalf("check finds %q", f)
			}
		}
	}
	j, found, err := Open(r.o)
	r.must(err)
	r.j = j
	r.compare(found, sameBoot, clean)
}

// sameOld: a table whose image was removed while the power went.
func sameOld(finding string) bool {
	return len(finding) > 0 && finding[len(finding)-len("no image of the chain"):] == "no image of the chain"
}

func (r *rig) compare(found *Recovered, sameBoot, clean bool) {
	r.Helper()
	end, least := r.j.End(), r.floor
	drained := map[image.ID]bool{}
	if sameBoot && !r.failed {
		drained = r.drained
	}
	if r.rests && r.elder { // nobody has written under the present one, or had just begun to
		sameBoot = found.SameBoot
	}
	if found.SyncFailed != (sameBoot && r.failed) {
		r.Fatalf("recovered %+v, and it is %v that a sync had failed", found, r.failed)
	}
	mayBeClean := clean || !sameBoot || r.closing || r.rests // the cut may have come right after a close
	if found.SameBoot != sameBoot || found.Clean && !mayBeClean || clean && !found.Clean || r.j.Committed() != end {
		r.Fatalf("recovered %+v, committed %d of %d", found, r.j.Committed(), end)
	}
	if r.drained = drained; !maps.Equal(found.Drained, drained) {
		r.Fatalf("recovered drained %v, want %v", found.Drained, drained)
	}
	if sameBoot && !r.failed {
		least = maps.Clone(r.told) // the page cache has all of it
		if end < r.public || end > LSN(len(r.frames)) {
			r.Fatalf("recovered LSN %d, want %d to %d", end, r.public, len(r.frames))
		}
		r.frames, r.written = r.frames[:end], r.written[:end]
	} else {
		if end != r.done && (!r.begun[end] || r.failed) || end < r.done {
			r.Fatalf("recovered LSN %d, want at least %d, or one of %v", end, r.done, r.begun)
		}
		r.frames, r.written = r.frames[:end], r.written[:end]
	}
	if found.Clean && found.Replayed > 0 {
		r.Fatalf("%d changes replayed after a clean close", found.Replayed)
	}
	r.failed, r.closing, r.rests, r.elder = false, false, found.Clean, !found.SameBoot
	r.done = end
	r.begun = map[LSN]bool{end: true}
	want := r.model()
	for _, id := range r.o.Images {
		r.compareTable(id, found.Tables[id], want[id], least)
		r.unknown[id] = true
	}
	clear(r.fresh)
	r.published()
	if len(found.Tables) != len(r.o.Images) {
		r.Fatalf("%d tables for %d images", len(found.Tables), len(r.o.Images))
	}
}

type entry struct {
	state lookup.State
	value uint64 // that Data must at least be
}

func (r *rig) model() map[image.ID]map[lookup.BlockNum]entry {
	tables := map[image.ID]map[lookup.BlockNum]entry{}
	for i, frame := range r.frames {
		for k, c := range frame {
			if tables[c.Image] == nil {
				tables[c.Image] = map[lookup.BlockNum]entry{}
			}
			for n := range c.Count {
				tables[c.Image][c.Block+lookup.BlockNum(n)] = entry{c.State, r.written[i][k]}
			}
		}
	}
	return tables
}

func (r *rig) compareTable(id image.ID, got *lookup.Table, want map[lookup.BlockNum]entry, least map[spot]uint64) {
	r.Helper()
	for b := range lookup.BlockNum(2 * rigBlocks) {
		at := spot{id, b}
		if got.Get(b) != want[b].state {
			r.Fatalf("image %d, block %d is %v, want %v, at LSN %d", id, b, got.Get(b), want[b].state, len(r.frames))
		}
		v := r.read(at)
		if want[b].state == lookup.Data && v < max(want[b].value, least[at]) {
			r.Fatalf("image %d, block %d is durable in the table, its data is not: %d, want %d, and %d was flushed", id, b, v, want[b].value, least[at])
		}
		r.latest[at] = v
	}
}

// afterCut returns the rig on another disk: what a cut before operation at left.
func (r *rig) afterCut(at int, rng *rand.Rand) *rig {
	c := *r
	c.sim, c.hook, c.j = r.sim.PowerCut(at, rng), nil, nil
	c.plug()
	for _, id := range c.o.Images { // the catalog says that they are there
		f, err := c.sim.Open(imageFile(id), os.O_CREATE|os.O_RDWR, 0o600)
		c.must(err)
		c.must(f.Close())
	}
	c.must(c.sim.SyncDir("."))
	before, after := 0, len(r.trail)-1
	for i, m := range r.trail {
		if m.ops <= at {
			before = i
		}
		if m.ops >= at {
			after = min(after, i)
		}
	}
	c.done = r.trail[before].done
	c.frames = slices.Clone(r.frames[:r.trail[after].appended])
	c.written = slices.Clone(r.written[:r.trail[after].appended])
	c.begun = maps.Clone(r.begun)
	c.drained = maps.Clone(r.drained)
	c.latest, c.fresh, c.unknown = maps.Clone(r.latest), maps.Clone(r.fresh), maps.Clone(r.unknown)
	c.public = min(r.public, LSN(len(c.frames)))
	c.floor = maps.Clone(r.trail[before].floor)
	c.trail = []mark{{c.sim.Ops(), c.done, LSN(len(c.frames)), maps.Clone(c.floor)}}
	return &c
}

// afterKill is the rig in the next life on the same disk.
func (r *rig) afterKill() *rig {
	c := *r
	c.sim, c.hook, c.j = r.sim.Kill(), nil, nil
	c.plug()
	c.begun = maps.Clone(r.begun)
	c.drained = maps.Clone(r.drained)
	c.latest, c.fresh, c.unknown = maps.Clone(r.latest), maps.Clone(r.fresh), maps.Clone(r.unknown)
	c.floor = maps.Clone(r.floor)
	return &c
}

// mayRecover notes what a recovery under the same boot ID, which is begun, may commit.
func (r *rig) mayRecover() {
	for lsn := r.public; lsn <= LSN(len(r.frames)); lsn++ {
		r.begun[lsn] = true
	}
}

// through is R1 for a block through an image: set there, delete in a newer one.
func through(older, newer image.ID, b lookup.BlockNum) []Change {
	return []Change{{older, b, 1, lookup.Data}, {newer, b, 1, lookup.Absent}}
}

// script does a bit of everything, one step at a time, until one fails. It
// always does the same.
func (r *rig) script() error {
	for _, step := range r.steps() {
		if err := step(); err != nil {
			return err
		}
		r.mark()
	}
	return nil
}

func (r *rig) steps() []func() error {
	overwrite := func(at ...spot) func() error {
		return func() error {
			for _, at := range at {
				if err := r.overwrite(at); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return []func() error{
		func() error { return r.append([]Change{data(1, 0)}) },
		func() error { return r.append([]Change{{1, 1, 3, lookup.Zero}}) },
		func() error { return r.commit(nil) },
		overwrite(spot{1, 0}),
		func() error { return r.commit(nil) },
		overwrite(spot{1, 0}),
		func() error { return r.commit(nil) },
		overwrite(spot{1, 0}),
		func() error { return r.commit(nil) },
		func() error { return r.append([]Change{data(2, 0)}) },
		func() error { return r.stage([]Change{data(1, 3)}) },
		func() error { return r.append([]Change{data(2, 1)}) },
		func() error { return r.stage([]Change{data(2, 1)}) },
		func() error { return r.stage([]Change{data(1, 3)}) },
		func() error { return r.commit([]Change{data(2, 2)}) },
		func() error { return r.append(through(1, 2, 0)) },
		func() error { return r.stage([]Change{data(1, 3)}) },
		func() error { return r.markDrained(2) },
		func() error { return r.stage(through(1, 2, 2)) },
		func() error { return r.j.Checkpoint() }, // starts a segment
		func() error { return r.stage([]Change{data(2, 3)}) },
		func() error { return r.stage([]Change{data(2, 2)}) },
		r.publish,
		func() error { return r.append(through(1, 2, 1)) },
		func() error { return r.append([]Change{data(2, 4)}) },
		func() error { return r.commit([]Change{data(1, 5)}) },
		func() error { return r.j.Checkpoint() }, // folds and removes one
		overwrite(spot{1, 0}, spot{2, 4}, spot{1, 5}),
		func() error { return r.commit(nil) },
		func() error { return r.append(through(1, 2, 4)) },
		func() error { return r.append([]Change{data(2, 5), data(1, 4)}) },
		func() error { return r.j.Checkpoint() },
		overwrite(spot{1, 4}, spot{2, 5}),
		func() error { return r.append([]Change{data(2, 0)}) },
		func() error { return r.commit(nil) },
		overwrite(spot{1, 4}, spot{2, 0}),
		func() error { return r.append(through(1, 2, 2)) },
		func() error { return r.stage([]Change{data(2, 3)}) },
	}
}

func TestAPowerCutAtEveryOperationKeepsWhatWasCommitted(t *testing.T) {
	r := newRig(t, t.TempDir())
	first := r.sim.Ops()
	r.must(r.script())
	for at := first; at <= r.sim.Ops(); at++ {
		for seed := range uint64(3) {
			cut := r.afterCut(at, dice(seed))
			cut.recover(false, false)
			// Cut the recovery too, anywhere. Open had committed all it gave.
			cut.mark()
			end := len(cut.frames)
			for at2 := cut.trail[0].ops + int(seed); at2 <= cut.sim.Ops(); at2 += 5 {
				again := cut.afterCut(at2, dice(seed+1))
				again.recover(false, false)
				if len(again.frames) != end {
					t.Fatalf("cut at %d, recovery cut at %d: LSN %d, was %d", at, at2, len(again.frames), end)
				}
			}
		}
	}
}

// dice are fair, but 0 always loses.
func dice(seed uint64) *rand.Rand {
	if seed == 0 {
		return nil
	}
	return rand.New(rand.NewPCG(seed, 1))
}

func TestAKillAtEveryOperationLosesNothingAppended(t *testing.T) {
	for at := 1; ; at++ {
		r := newRig(t, t.TempDir())
		if err := r.diesAt(at, r.script); err == nil {
			return
		}
		cut := r.afterCut(r.sim.Ops(), dice(uint64(at)))
		cut.recover(false, false)
		for at2 := 1 + at%4; ; at2 += 4 {
			r := newRig(t, t.TempDir())
			if r.diesAt(at, r.script) == nil {
				t.Fatalf("the script is not the same twice")
			}
			next := r.afterKill()
			next.mayRecover()
			err := next.diesAt(at2, func() error {
				_, _, err := Open(next.o)
				return err
			})
			// Whatever recovery did up to there may meet a power cut, ...
			cut := next.afterCut(next.sim.Ops(), dice(uint64(at2)))
			cut.recover(false, false)
			// ... or another kill.
			last := next.afterKill()
			last.recover(true, false)
			if err == nil {
				break
			}
		}
	}
}

// tornAt is how much a death, or a full disk, leaves of a write. Segments
// grow by frames that may reach over pages, which tears them; the witness lies
// in one page, so it is written or it is not.
func tornAt(op vfs.Op) int {
	if path.Base(op.Name) == witnessFile {
		return 0
	}
	return int(op.Len / 2)
}

// diesAt lets the process die in the middle of its nth operation that changes
// the disk or syncs. It returns nil if do ended before that.
func (r *rig) diesAt(n int, do func() error) error {
	dead := errors.New("dead")
	r.hook = func(op vfs.Op) error {
		switch op.Kind {
		case vfs.OpOpen, vfs.OpWrite, vfs.OpTruncate, vfs.OpSync, vfs.OpSyncDir, vfs.OpRename, vfs.OpRemove:
			if n--; n == 0 {
				return vfs.ShortError{N: tornAt(op), Err: dead}
			}
		}
		if n < 0 {
			return dead
		}
		return nil
	}
	err := do()
	r.hook = nil
	if n > 0 {
		r.must(err)
		return nil
	}
	r.mark()
	return dead
}

func TestCommittedChangesOutliveEveryCrash(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		r := newRig(t, dir)
		step := func(do func() error) func(*rapid.T) {
			return func(*rapid.T) {
				r.must(do())
				r.mark()
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"append":     func(t *rapid.T) { step(func() error { return r.append(drawChanges(t, r.o.Images)) })(t) },
			"stage":      func(t *rapid.T) { step(func() error { return r.stage(drawChanges(t, r.o.Images)) })(t) },
			"publish":    step(func() error { return r.publish() }),
			"append too": func(t *rapid.T) { step(func() error { return r.append(drawChanges(t, r.o.Images)) })(t) },
			"overwrite": func(t *rapid.T) {
				at := spot{rapid.SampledFrom(r.o.Images).Draw(t, "image"), lookup.BlockNum(rapid.Uint64Range(0, rigBlocks-1).Draw(t, "block"))}
				step(func() error { return r.overwrite(at) })(t)
			},
			"commit": step(func() error { return r.commit(nil) }),
			"commit less": func(t *rapid.T) {
				step(func() error { return r.commit(drawChanges(t, r.o.Images)) })(t)
			},
			"checkpoint": step(func() error { return r.j.Checkpoint() }),
			"add image":  step(func() error { r.addImage(); return nil }),
			"drained": func(t *rapid.T) {
				step(func() error { return r.markDrained(rapid.SampledFrom(r.o.Images).Draw(t, "image")) })(t)
			},
			"remove image": func(t *rapid.T) {
				if len(r.o.Images) < 2 {
					t.Skip()
				}
				step(r.removeOldest)(t)
			},
			"close": step(func() error { return r.close() }),
			"kill": func(*rapid.T) {
				r = r.afterKill()
				r.recover(true, false)
				r.mark()
			},
			"power cut": func(t *rapid.T) {
				back := rapid.IntRange(0, 12).Draw(t, "operations back")
				floor := r.trail[max(0, len(r.trail)-2)].ops
				at := max(floor, r.sim.Ops()-back)
				r = r.afterCut(at, dice(rapid.Uint64Range(0, 1000).Draw(t, "dice")))
				r.recover(false, false)
				r.mark()
			},
		})
	})
}

func drawChanges(t *rapid.T, images []image.ID) []Change {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Change {
		b := rapid.Uint64Range(0, rigBlocks-1).Draw(t, "block")
		c := Change{
			Image: rapid.SampledFrom(images).Draw(t, "image"),
			Block: lookup.BlockNum(b),
			Count: 1,
			State: lookup.State(rapid.Uint8Range(0, 2).Draw(t, "state")),
		}
		if c.State != lookup.Data {
			c.Count = rapid.Uint64Range(1, rigBlocks-b).Draw(t, "count")
		}
		return c
	}), 1, 4).Draw(t, "changes")
}

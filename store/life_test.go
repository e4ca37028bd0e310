package store_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

const lifeBlocks = 64

var lifeSeeds = flag.Int("life.seeds", 5, "how many random lives of snapshots are lived")

var lifeCrashes = flag.Int("life.crashes", 4, "how many random lives are crashed, 25 times each")

var lifeSnapshots = flag.Int("life.snapshots", 200, "how many snapshots of one volume are deleted in any order")

// lives is a store, and what each of its volumes and snapshots must hold.
type lives struct {
	t     *testing.T
	dir   string
	fs    vfs.FS
	store *store.Store
	holds map[string][]byte // by VOLUME or VOLUME@SNAPSHOT
	rng   *rand.Rand
	made  int
	// writes is how many a step makes at most.
	writes int
	did    []string
	// together are the snapshots that the last step has deleted.
	together []string
	fold     int // Options.FoldAbove
	// noSeals lets seals fail, from time to time in lives that have sealing set.
	noSeals atomic.Bool
	sealing *rand.Rand
}

func newLife(t *testing.T, seed uint64) *lives {
	return newLifeOn(t, seed, vfs.OS{}, filepath.Join(t.TempDir(), "data"))
}

func newLifeOn(t *testing.T, seed uint64, fs vfs.FS, dir string) *lives {
	l := &lives{t: t, dir: dir, writes: 6, holds: map[string][]byte{}, rng: rand.New(rand.NewPCG(seed, 1))}
	l.fs = vfs.Fault{FS: fs, Hook: func(op vfs.Op) error {
		if l.noSeals.Load() && op.Kind == vfs.OpOpen && op.Handle == "seal" {
			return syscall.EMFILE
		}
		return nil
	}}
	l.fold = []int{1, 3, -1}[seed%3]
	l.store = l.open(l.fs)
	l.create("v")
	return l
}

func (l *lives) open(fs vfs.FS) *store.Store {
	l.t.Helper()
	return openWith(l.t, l.dir, l.options(fs))
}

func (l *lives) options(fs vfs.FS) store.Options {
	o := store.Options{FS: fs, FoldAbove: l.fold, ReclaimBytesPerSecond: 1 << 40, ReclaimPercent: 100, IndexBytes: 1}
	if l.fold == 3 {
		o = store.RemovingInPieces(o)
	}
	return o
}

func (l *lives) log(format string, args ...any) { l.did = append(l.did, fmt.Sprintf(format, args...)) }

func (l *lives) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lives) create(name string) {
	l.t.Helper()
	_, err := l.store.CreateVolume(name, lifeBlocks*4096, volume.ScopeRequest)
	l.must(err)
	l.holds[name] = make([]byte, lifeBlocks*4096)
}

// write writes blocks at random, and trims some.
func (l *lives) write(name string) {
	l.t.Helper()
	w, err := l.store.OpenView(name)
	l.must(err)
	defer func() { l.must(w.Close()) }()
	for range 1 + l.rng.IntN(l.writes) {
		off := int64(l.rng.IntN(lifeBlocks)) * 4096
		n := min(int64(1+l.rng.IntN(8))*4096, lifeBlocks*4096-off)
		if l.rng.IntN(4) == 0 {
			l.must(w.Trim(off, n))
			clear(l.holds[name][off:][:n])
			continue
		}
		data := bytes.Repeat([]byte{byte(1 + l.rng.IntN(255))}, int(n))
		_, err := w.WriteAt(data, off)
		l.must(err)
		copy(l.holds[name][off:], data)
	}
	l.must(w.Flush())
	l.log("write %s", name)
}

func (l *lives) preserve(name string) string {
	l.t.Helper()
	l.made++
	snap := fmt.Sprintf("s%d", l.made)
	untilSealed := l.rng.IntN(2) == 0 && !l.noSeals.Load()
	if untilSealed && l.sealing != nil {
		l.sealAll() // else it may be behind one that has just failed
	}
	_, err := l.store.Preserve(l.t.Context(), store.PreserveRequest{Volumes: []string{name}, Name: snap, Wait: 1e9, UntilSealed: untilSealed})
	l.must(err)
	full := name + "@" + snap
	l.log("preserve %s", full)
	l.holds[full] = bytes.Clone(l.holds[name])
	return full
}

// names lists the volumes, or the snapshots.
func (l *lives) names(snapshots bool) (list []string) {
	for name := range l.holds {
		if strings.Contains(name, "@") == snapshots {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

func (l *lives) any(snapshots bool) string {
	list := l.names(snapshots)
	if len(list) == 0 {
		return ""
	}
	return list[l.rng.IntN(len(list))]
}

// seals says whether seals succeed. Those that failed are tried again at once.
func (l *lives) seals(succeed bool) {
	l.log("seals succeed: %v", succeed)
	if l.noSeals.Swap(!succeed); succeed {
		l.store.SealAgain()
	}
}

// sealAll has all sealed that has drained.
func (l *lives) sealAll() {
	l.noSeals.Store(false)
	l.store.AwaitPunches() // what is on its way may still fail
	l.seals(true)
	l.store.AwaitPunches()
}

// check reads all, and verifies every snapshot.
func (l *lives) check() {
	l.t.Helper()
	l.sealAll()
	for name, want := range l.holds {
		w, err := l.store.OpenView(name)
		l.must(err)
		got := make([]byte, len(want))
		_, err = w.ReadAt(got, 0)
		l.must(err)
		l.must(w.Close())
		for b := range lifeBlocks {
			if !bytes.Equal(got[b*4096:][:4096], want[b*4096:][:4096]) {
				l.t.Fatalf("%s: block %d begins with %x, want %x", name, b, got[b*4096], want[b*4096])
			}
		}
		if strings.Contains(name, "@") {
			l.must(l.store.WaitSealed(l.t.Context(), name))
			_, err := l.store.VerifySnapshot(l.t.Context(), name, nil)
			l.must(err)
		}
	}
}

// reopen closes the store, lets check look at it, and opens it again.
func (l *lives) reopen() {
	l.t.Helper()
	l.must(l.store.Close(l.t.Context()))
	r, err := store.Check(l.dir, l.fs, store.CheckOptions{})
	l.must(err)
	if len(r.Findings) > 0 {
		l.t.Fatalf("check finds %q\n%s", r.Findings, strings.Join(l.did, "\n"))
	}
	l.store = l.open(l.fs)
}

// files is how many blocks the images take on the disk.
func (l *lives) blocks() (n int64) {
	l.t.Helper()
	for _, v := range l.store.Volumes() {
		n += v.DataBytes / 4096
	}
	return n
}

func TestSnapshotsClonesAndRollbacksAtRandomHoldWhatTheyMust(t *testing.T) {
	for seed := range uint64(*lifeSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := newLife(t, seed)
			l.sealing = rand.New(rand.NewPCG(seed, 2))
			for range 120 {
				l.step()
				switch l.rng.IntN(25) {
				case 0:
					l.store.Reclaim()
					l.check()
				case 1:
					l.reopen()
				}
			}
			l.check()
			l.reopen()
			l.check()
		})
	}
}

// step does something to a volume or a snapshot.
func (l *lives) step() {
	l.t.Helper()
	l.together = nil
	if l.sealing != nil {
		l.seals(l.sealing.IntN(2) == 0)
	}
	switch live, snap := l.any(false), l.any(true); l.rng.IntN(11) {
	case 0, 1, 2:
		l.write(live)
	case 3, 4:
		l.preserve(live)
	case 5, 6:
		if snap != "" {
			l.deleteSome()
		}
	case 7:
		if snap != "" && len(l.names(false)) < 5 {
			l.clone(snap)
		}
	case 8:
		if snap != "" {
			l.rollback(snap)
		}
	case 9:
		l.sealAll()
		l.receive(live)
	case 10:
		if len(l.names(false)) > 1 && l.rng.IntN(2) == 0 {
			l.log("delete %s", live)
			l.noneDead("before")
			l.must(l.store.DeleteVolume(live, true))
			if dead := l.store.DeadBlocks(); dead > 0 {
				l.t.Fatalf("%d blocks that nobody sees are left after the delete of %s\n%s", dead, live, strings.Join(l.did, "\n"))
			}
			maps.DeleteFunc(l.holds, func(name string, _ []byte) bool { return name == live || strings.HasPrefix(name, live+"@") })
		}
	}
}

// deleteSome deletes one snapshot, or some together.
func (l *lives) deleteSome() {
	l.t.Helper()
	list := l.names(true)
	l.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	l.together = list[:min(len(list), 1+max(0, l.rng.IntN(5)-2))]
	l.log("delete %s", strings.Join(l.together, " "))
	l.must(l.store.DeleteSnapshots(l.together...))
	for _, snap := range l.together {
		delete(l.holds, snap)
	}
}

// noneDead has all given back that nobody sees.
func (l *lives) noneDead(when string) {
	l.t.Helper()
	l.sealAll()
	l.store.Reclaim()
	if dead := l.store.DeadBlocks(); dead > 0 {
		l.t.Fatalf("%d blocks that nobody sees are left %s\n%s", dead, when, strings.Join(l.did, "\n"))
	}
}

func (l *lives) clone(snap string) {
	l.t.Helper()
	l.made++
	name := fmt.Sprintf("c%d", l.made)
	l.log("clone %s %s", snap, name)
	_, err := l.store.Clone(l.t.Context(), snap, name)
	l.must(err)
	l.holds[name] = bytes.Clone(l.holds[snap])
}

func (l *lives) rollback(snap string) {
	l.t.Helper()
	l.made++
	name, _, _ := strings.Cut(snap, "@")
	discard := l.rng.IntN(3) == 0 && l.writes > 1 // in a crash: see there
	l.log("rollback %s, discard %v", snap, discard)
	r, err := l.store.Rollback(l.t.Context(), store.RollbackRequest{Snapshot: snap, Discard: discard, Keep: fmt.Sprintf("k%d", l.made)})
	l.must(err)
	if discard != (r.Kept == "") {
		l.t.Fatalf("discard=%v, kept %q", discard, r.Kept)
	}
	if !discard {
		l.holds[r.Kept] = l.holds[name]
	}
	l.holds[name] = bytes.Clone(l.holds[snap])
}

// moment is what a life held when so many operations on the disk were done.
type moment struct {
	ops   int
	holds map[string][]byte
	// together are the snapshots that were deleted in one step since the last moment.
	together []string
}

// A life is cut at operations on its disk, by a death of the server or of the
// power. What was acknowledged is there, with all that was flushed; what was on its
// way is there or not; and the next life goes on with what the last left undone.
func TestACrashOfALifeLosesNoSnapshotCloneOrRollback(t *testing.T) {
	for seed := range uint64(*lifeCrashes) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			sim := vfs.NewSim(memoryDir(t))
			sim.Clones = seed%2 == 0
			l := newLifeOn(t, seed, sim, "data")
			l.writes = 1 // else a crash shows what nobody knows of
			l.sealing = rand.New(rand.NewPCG(seed, 2))
			holds := func() map[string][]byte {
				c := map[string][]byte{}
				for name, p := range l.holds {
					c[name] = bytes.Clone(p)
				}
				return c
			}
			moments := []moment{{ops: sim.Ops(), holds: holds()}}
			for range 40 {
				l.step()
				// The simulated disk takes a commit of the catalog for begun before its
				// function has run: what that sees must have been on the disk by then.
				l.store.AwaitPunches()
				moments = append(moments, moment{sim.Ops(), holds(), l.together})
				l.log("until operation %d", sim.Ops())
			}
			l.store.AwaitPunches()
			for range 25 {
				at := moments[0].ops + l.rng.IntN(sim.Ops()-moments[0].ops)
				i, _ := slices.BinarySearchFunc(moments, at+1, func(m moment, at int) int { return m.ops - at })
				last := moments[i-1] // the moment when all of it was acknowledged
				next := last
				if i < len(moments) {
					next = moments[i]
				}
				cut, rng := sim.KillAt, rand.New(rand.NewPCG(seed, uint64(at)))
				if l.rng.IntN(2) == 0 {
					cut = sim.PowerCut
				}
				l.crash(cut(at, rng), at, last.holds, next)
			}
		})
	}
}

// crash opens what a crash has left.
func (l *lives) crash(disk *vfs.Sim, at int, last map[string][]byte, next moment) {
	l.t.Helper()
	s, err := store.Open(l.dir, l.options(disk))
	if err != nil {
		l.t.Fatalf("crash at operation %d: %v\n%s", at, err, strings.Join(l.did, "\n"))
	}
	after := &lives{t: l.t, dir: l.dir, fs: disk, store: s, holds: map[string][]byte{}, rng: l.rng, did: l.did, fold: l.fold}
	there := s.Exports()
	gone := slices.DeleteFunc(slices.Clone(next.together), func(name string) bool { return slices.Contains(there, name) })
	if len(gone) > 0 && len(gone) < len(next.together) {
		l.t.Fatalf("crash at operation %d: %s are gone, and not all of %s\n%s", at, gone, next.together, strings.Join(l.did, "\n"))
	}
	for name, was := range last {
		becomes, stays := next.holds[name]
		if !slices.Contains(there, name) {
			if stays {
				l.t.Fatalf("crash at operation %d: %s is lost\n%s", at, name, strings.Join(l.did, "\n"))
			}
			continue
		}
		w, err := s.OpenView(name)
		l.must(err)
		got := make([]byte, len(was))
		_, err = w.ReadAt(got, 0)
		l.must(err)
		l.must(w.Close())
		for b := 0; b < len(got); b += 512 { // a write may be torn between sectors
			if p := string(got[b:][:512]); p != string(was[b:][:512]) && (!stays || p != string(becomes[b:][:512])) {
				l.t.Fatalf("crash at operation %d: %s: byte %d is %x, and was %x\n%s", at, name, b, p[0], was[b], strings.Join(l.did, "\n"))
			}
		}
		after.holds[name] = got
	}
	after.check()
	s.Reclaim()
	s.AwaitPunches()
	if dead := s.DeadBlocks(); dead > 0 {
		l.t.Fatalf("crash at operation %d: %d blocks that nobody sees are left\n%s", at, dead, strings.Join(l.did, "\n"))
	}
	after.check()
	after.reopen()
	l.must(after.store.Close(l.t.Context()))
}

func TestADeletedSnapshotGivesBackWhatNobodySees(t *testing.T) {
	l := newLife(t, 1)
	fill := func(from, n int64, with byte) {
		w, err := l.store.OpenView("v")
		l.must(err)
		_, err = w.WriteAt(bytes.Repeat([]byte{with}, int(n*4096)), from*4096)
		l.must(err)
		l.must(w.Close())
		copy(l.holds["v"][from*4096:], bytes.Repeat([]byte{with}, int(n*4096)))
	}
	fill(0, 40, 'a')
	one := l.preserve("v")
	fill(0, 30, 'b')
	l.must(l.store.WaitSealed(t.Context(), one))
	if l.blocks() != 70 {
		t.Fatalf("%d blocks, want 70", l.blocks())
	}
	if z, err := l.store.SizesTogether(one); err != nil || z.UniqueBytes != 30*4096 {
		t.Errorf("%d bytes, %v, would be freed, want 30 blocks", z.UniqueBytes, err)
	}
	l.must(l.store.DeleteSnapshots(one))
	delete(l.holds, one)
	l.store.AwaitPunches()
	if l.blocks() != 40 {
		t.Errorf("%d blocks after the delete, want 40", l.blocks())
	}
	l.check()
	fill(30, 10, 'c') // and of what was left nobody sees anything now
	two := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), two))
	l.store.Reclaim()
	l.store.AwaitPunches()
	if info, err := l.store.Volume("v"); err != nil || info.Images != 2 {
		t.Errorf("%+v, %v; want 2 images", info, err)
	}
	l.check()
	l.reopen()
	l.check()
}

func TestSnapshotsDeletedInAnyOrderLeaveWhatTheOthersSee(t *testing.T) {
	l := newLifeOn(t, 1, vfs.OS{}, filepath.Join(memoryDir(t), "data"))
	const writes, kept = 6, 9 // every ninth is kept
	snapshots := *lifeSnapshots
	names := make([]string, snapshots)
	wrote := make([]map[int64]bool, snapshots)
	for i := range names {
		w, err := l.store.OpenView("v")
		l.must(err)
		wrote[i] = map[int64]bool{}
		for range writes {
			b := l.rng.Int64N(lifeBlocks)
			wrote[i][b] = true
			data := bytes.Repeat([]byte{byte(i + 1)}, 4096)
			_, err := w.WriteAt(data, b*4096)
			l.must(err)
			copy(l.holds["v"][b*4096:], data)
		}
		l.must(w.Close())
		names[i] = l.preserve("v")
		l.must(l.store.WaitSealed(t.Context(), names[i]))
	}
	for _, i := range l.rng.Perm(snapshots) {
		if i%kept != 0 {
			l.must(l.store.DeleteSnapshots(names[i]))
			delete(l.holds, names[i])
		}
	}
	l.store.AwaitPunches()
	seen := map[[2]int64]bool{} // image and block
	for top := range snapshots {
		if top%kept != 0 && top != snapshots-1 { // the live volume sees what the last did
			continue
		}
		for b := range int64(lifeBlocks) {
			for i := top; i >= 0; i-- {
				if wrote[i][b] {
					seen[[2]int64{int64(i), b}] = true
					break
				}
			}
		}
	}
	if l.blocks() != int64(len(seen)) {
		t.Errorf("%d blocks are left, and %d are seen", l.blocks(), len(seen))
	}
	v, err := l.store.Volume("v")
	l.must(err)
	if most := v.Snapshots + l.fold + 1; v.Images > most {
		t.Errorf("%d images are left, want at most %d", v.Images, most)
	}
	// Of an image of so few blocks, table and sums take three pages.
	if most := v.DataBytes + int64(v.Images)*3*4096; v.AllocatedBytes > most {
		t.Errorf("the images take %d bytes on the disk, want at most %d", v.AllocatedBytes, most)
	}
	l.check()
	l.reopen()
	l.check()
}

// What covers a block may be in memory only: a power cut then shows the old one.
func TestABlockThatNothingOnTheDiskCoversIsNotPunched(t *testing.T) {
	sim := vfs.NewSim(memoryDir(t))
	l := newLifeOn(t, 1, sim, "data")
	put := func(with byte, flush bool) {
		w, err := l.store.OpenView("v")
		l.must(err)
		_, err = w.WriteAt(bytes.Repeat([]byte{with}, 4096), 0)
		l.must(err)
		if flush {
			l.must(w.Flush())
		}
		l.must(w.Close())
	}
	put('a', true)
	snap := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), snap))
	put('b', false)
	l.must(l.store.DeleteSnapshots(snap))
	l.store.AwaitPunches()
	s, err := store.Open("data", store.Options{FS: sim.PowerCut(sim.Ops(), nil)})
	l.must(err)
	w, err := s.OpenView("v")
	l.must(err)
	got := make([]byte, 1)
	_, err = w.ReadAt(got, 0)
	l.must(err)
	if got[0] != 'a' && got[0] != 'b' {
		t.Errorf("the block reads %q after a power cut, and was written with a and b", got)
	}
	l.must(w.Close())
	l.must(s.Close(t.Context()))
}

func TestWhatIsInUseOrUnknownIsNotDeletedClonedOrRolledBack(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	snap := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), snap))
	w, err := l.store.OpenView(snap)
	l.must(err)
	if err := l.store.DeleteSnapshots(snap); !errors.Is(err, store.ErrInUse) {
		t.Errorf("delete of an open snapshot: %v", err)
	}
	l.must(w.Close())
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"delete of an unknown snapshot", l.store.DeleteSnapshots("v@none"), store.ErrNotFound},
		{"delete of a volume as a snapshot", l.store.DeleteSnapshots("v"), store.ErrInvalid},
		{"clone of an unknown snapshot", second(l.store.Clone(t.Context(), "v@none", "c")), store.ErrNotFound},
		{"clone with a name that is taken", second(l.store.Clone(t.Context(), snap, "v")), store.ErrExists},
		{"clone with a bad name", second(l.store.Clone(t.Context(), snap, "a/b")), store.ErrInvalid},
		{"rollback to an unknown snapshot", second(l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@none"})), store.ErrNotFound},
		{"rollback that keeps under a name that is taken", second(l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: snap, Keep: "s1"})), store.ErrExists},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	live, err := l.store.OpenView("v")
	l.must(err)
	if _, err := l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: snap}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("rollback under a client: %v", err)
	}
	l.must(live.Close())
	l.check()
}

func second[T any](_ T, err error) error { return err }

// A seal, a scrub or a verification may record what it knows of an image while the
// snapshot on it is deleted.
func TestADeletedSnapshotDoesNotComeBackThroughWhatIsRecordedBesideIt(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	snap := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), snap))
	t.Cleanup(l.store.RecordWhileNameless(snap))
	l.must(l.store.DeleteSnapshots(snap))
	delete(l.holds, snap)
	l.reopen()
	if list, err := l.store.Snapshots("v"); err != nil || len(list) > 0 {
		t.Errorf("%+v, %v; want none", list, err)
	}
	l.check()
}

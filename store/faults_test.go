package store_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

var (
	faultRounds = flag.Int("faults.rounds", 16, "how many failures of a file operation are tried, of those that there are")
	faultAll    = flag.Bool("faults.all", false, "try each failure of each file operation")
	faultSeed   = flag.Uint64("faults.seed", 0, "which failures are tried; 0: others each day")
	faultOnly   = flag.String("faults.only", "", "try only this one, as a failure names it")
)

// A workload of every command and request is run again and again, and each time
// another one of its operations on files fails, in one of the ways in which such
// an operation can. Whatever it is: each call succeeds or returns an error; what
// the failure did not touch goes on; no read ever returns a byte that was not
// written there; and after a close, a kill and a power cut the directory opens
// again, with I4 and I6, and Check finds nothing.
func TestFaultOfEachFileOperationCostsNoMoreThanItMust(t *testing.T) {
	runFaults(t, (*world).workload)
}

// The same for a life of snapshots: they are cloned, deleted, folded and rolled back to.
func TestFaultOfEachFileOperationOfALifeCostsNoMoreThanItMust(t *testing.T) {
	runFaults(t, (*world).life)
}

func runFaults(t *testing.T, workload func(*world)) {
	var operations []string
	synctest.Test(t, func(t *testing.T) { operations = runFault(t, fault{}, workload) })
	faults := allFaults(operations)
	t.Logf("%d operations, %d failures", len(operations), len(faults))
	if !*faultAll {
		faults = someFaults(faults)
	}
	for _, f := range faults {
		if *faultOnly != "" && f.String() != *faultOnly {
			continue
		}
		t.Run(f.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runFault(t, f, workload) })
		})
	}
}

// fault is one operation of the workload and how it fails. The zero one is none.
type fault struct {
	operation string // as describe has it, and the how manyth such
	way       string
}

func (f fault) String() string { return strings.ReplaceAll(f.operation+": "+f.way, " ", "_") }

// kind of the operation.
func (f fault) kind() string { return strings.Fields(f.operation)[0] }

// ways in which an operation of a kind fails.
var ways = map[string]error{
	"EIO":       syscall.EIO,
	"ENOSPC":    syscall.ENOSPC,
	"EMFILE":    syscall.EMFILE,
	"short":     vfs.ShortError{N: 700, Err: syscall.ENOSPC},
	"torn":      vfs.ShortError{N: 4096 + 17, Err: syscall.EIO},
	"forgotten": vfs.LostError{Err: syscall.EIO},
	"evicted":   vfs.LostError{Err: syscall.EIO, Evict: true},
	"half":      vfs.LostError{Err: syscall.EIO, Rand: rand.New(rand.NewPCG(1, 2))},
}

// waysOf lists the ways that a kind of operation has by itself.
func waysOf(kind string) []string {
	switch kind {
	case "read", "tryread":
		return []string{"EIO", "torn"}
	case "write":
		return []string{"EIO", "ENOSPC", "short", "torn"}
	case "open":
		return []string{"EIO", "ENOSPC", "EMFILE"}
	case "syncdir":
		return []string{"EIO", "EMFILE"}
	case "sync", "writeback":
		return []string{"ENOSPC", "forgotten", "evicted", "half"}
	}
	return []string{"EIO", "ENOSPC"}
}

func allFaults(operations []string) (faults []fault) {
	for _, operation := range operations {
		f := fault{operation: operation}
		for _, f.way = range waysOf(f.kind()) {
			faults = append(faults, f)
		}
	}
	return faults
}

// someFaults chooses by the seed, one of every kind at least.
func someFaults(faults []fault) (some []fault) {
	seed := cmp.Or(*faultSeed, uint64(time.Now().Unix()/86400))
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	if *faultOnly != "" {
		return faults
	}
	seen := map[string]bool{}
	var rest []fault
	for _, f := range faults {
		if !seen[f.kind()] {
			seen[f.kind()] = true
			some = append(some, f)
		} else {
			rest = append(rest, f)
		}
	}
	return append(some, rest[:min(len(rest), max(0, *faultRounds-len(some)))]...)
}

// runFault runs the workload with one fault, and returns its operations.
func runFault(t *testing.T, f fault, workload func(*world)) []string {
	w := &world{t: t, fault: f, sim: vfs.NewSim(t.TempDir()), seen: map[string]int{}, disks: map[string]*modelDisk{}}
	w.open()
	workload(w)
	w.wait()
	w.readAll()
	operations := w.operations
	w.disarm()
	w.aftermaths()
	return operations
}

// workload does a bit of everything.
func (w *world) workload() {
	const block = lookup.BlockSize
	w.create("v", 8*block)
	w.create("w", 6*block+512)
	w.create("x", 2*block)
	w.write("v", 0, 5*block)
	w.write("w", block, block+1024)
	w.flush("v")
	w.write("v", 512, 512)
	w.write("x", 0, block)
	w.begin("P", "v", "w")
	w.preserve("s1", "v", "w") // waits for P
	w.write("v", 0, 2*block)
	w.write("v:process:P", block, 2*block)
	w.write("v:process:P", 512, 1024)
	w.zero("w:process:P", 2*block, block+512, false)
	w.zero("v", 3*block, block, true)
	w.flush("w")
	w.readAll()
	w.end("P")
	w.sealed("s1", "v", "w")
	w.write("v", 4*block, 3*block)
	w.resize("v", 10*block)
	w.write("v", 9*block, 512)
	w.flush("v")
	w.checkpoint("v")
	w.write("v", 5*block+512, 2048)
	w.write("v", 0, block)
	w.preserve("s2", "v")
	w.sealed("s2", "v")
	w.write("v", 0, block)
	w.zero("v", block, block, false)
	w.delete("x")
	w.create("y", block)
	w.write("y", 0, 512)
	w.readAll()
	w.reopen()
	w.write("v", 2*block, block)
	w.flush("v")
	w.write("v", 2*block, block)
	w.write("w", 0, block)
	w.killAndReopen()
	w.write("w", 0, 512)
	w.write("v", 2*block, 512)
	w.flush("w")
	w.flush("v")
	w.write("v", 2*block, 512)
}

// life is that of snapshots.
func (w *world) life() {
	const block = lookup.BlockSize
	w.create("v", 8*block)
	layer := func(name string, first, blocks int64) {
		w.write("v", first*block, blocks*block)
		w.flush("v")
		w.preserve(name, "v")
		w.sealed(name, "v")
	}
	layer("a", 0, 5)
	layer("b", 0, 2)
	layer("c", 3, 2)
	w.clone("v@b", "k")
	w.write("k", 0, block+512)
	w.zero("k", 4*block, block, false)
	w.flush("k")
	w.drop("v@a") // punched
	w.readAll()
	layer("d", 5, 1)
	layer("e", 6, 1)
	layer("f", 0, 1)
	for _, full := range []string{"v@c", "v@d", "v@e", "v@b"} { // folded, but for what is below the clone's head
		w.drop(full)
		w.readAll()
	}
	w.rollback("v@f", "kept")
	w.write("v", 512, 1024)
	w.readAll()
	w.drop("v@kept")
	w.delete("k")
	w.settle()
	w.readAll()
	w.reopen()
	layer("g", 2, 2)
	w.drop("v@f")
	w.write("v", 0, 512)
	w.killAndReopen()
	w.settle()
	w.write("v", 512, 512)
	w.flush("v")
}

// settle lets the background give back, fold and pause.
func (w *world) settle() {
	time.Sleep(10 * time.Second)
	w.wait()
}

func (w *world) clone(full, name string) {
	w.t.Helper()
	volumeName, snapName, _ := strings.Cut(full, "@")
	if d := w.disks[volumeName]; d == nil || d.snaps[snapName] == nil || !d.snaps[snapName].sealed {
		return
	}
	err := w.call("clone "+full, func() error {
		_, err := w.store.Clone(context.Background(), full, name)
		return err
	})
	if err == nil {
		w.disks[name] = &modelDisk{live: slices.Clone(w.disks[volumeName].snaps[snapName].cells), snaps: map[string]*modelSnap{}}
	}
	w.doubt(err, name)
}

// drop deletes a snapshot.
func (w *world) drop(full string) {
	w.t.Helper()
	volumeName, snapName, _ := strings.Cut(full, "@")
	d := w.disks[volumeName]
	if d == nil || d.snaps[snapName] == nil || d.snaps[snapName].drains {
		return
	}
	err := w.call("delete "+full, func() error { return w.store.DeleteSnapshots(full) })
	if _, gone := w.store.Snapshot(full); errors.Is(gone, store.ErrNotFound) {
		delete(d.snaps, snapName)
	} else if err == nil {
		w.fatalf("delete %s: it is there", full)
	}
	w.doubt(err, full)
	w.settle()
}

// rollback goes back to a snapshot. If it fails, the snapshot of what was may be
// there; if its commit did, nobody knows which state the volume has.
func (w *world) rollback(full, keep string) {
	w.t.Helper()
	volumeName, snapName, _ := strings.Cut(full, "@")
	d := w.disks[volumeName]
	if d == nil || d.snaps[snapName] == nil || !d.snaps[snapName].sealed {
		return
	}
	err := w.call("roll back to "+full, func() error {
		_, err := w.store.Rollback(context.Background(), store.RollbackRequest{Snapshot: full, Keep: keep})
		return err
	})
	if info, there := w.store.Snapshot(volumeName + "@" + keep); there == nil {
		d.snaps[keep] = &modelSnap{cells: slices.Clone(d.live)}
		if info.State == volume.Sealing {
			w.sealed(keep, volumeName)
		}
	}
	switch was := d.snaps[snapName].cells; {
	case err == nil:
		d.live = slices.Clone(was)
	case errors.Is(err, catalog.ErrFailed): // it is one of the two when it is opened again
		for i := range was {
			was, live := was[i], &d.live[i]
			live.now, live.disk = union(live.now, was.now), union(live.disk, was.disk)
		}
		d.frozen = true
	}
	w.doubt(err, volumeName+"@"+keep)
	w.settle()
}

// aftermaths opens what the run leaves behind after a power cut, a kill and a
// close, by itself each.
func (w *world) aftermaths() {
	w.after("a power cut", w.sim.PowerCut(w.sim.Ops(), rand.New(rand.NewPCG(3, 4))), onDisk)
	w.after("a power cut that keeps nothing", w.sim.PowerCut(w.sim.Ops(), nil), onDisk)
	w.after("a kill", w.sim.KillAt(w.sim.Ops(), nil), w.inCache())
	err := w.store.Close(context.Background())
	w.may(err, "close")
	w.after("a close", w.sim.Kill(), w.inCache())
}

// after opens what is left, looks at everything and works with it.
func (w *world) after(what string, sim *vfs.Sim, expect expectation) {
	w.t.Helper()
	next := &world{t: w.t, what: " after " + what, fault: w.fault, disarmed: true, sim: sim, disks: map[string]*modelDisk{}, unsure: w.unsure, stamp: w.stamp}
	for name, d := range w.disks {
		next.disks[name] = d.clone()
	}
	next.open()
	if next.store == nil {
		return
	}
	next.adopt(expect)
	for name, d := range next.disks {
		next.write(name, d.sizeBytes()-512, 512)
		next.write(name, 0, 512)
		next.flush(name)
		next.preserve("last", name)
		next.sealed("last", name)
		next.write(name, 0, 512)
	}
	next.readAll()
	next.must(next.store.Close(context.Background()), "close")
	if findings, err := (&simStore{sim: sim}).Check(); err != nil || len(findings) > 0 {
		next.fatalf("check: %q, %v; want nothing found", findings, err)
	}
}

// world is a store on a disk that fails once, and what it should hold.
type world struct {
	t     *testing.T
	what  string // for messages
	fault fault
	sim   *vfs.Sim
	store *store.Store
	disks map[string]*modelDisk
	stamp uint32
	// unsure are VOLUME and VOLUME@SNAP of which a failed commit leaves it open
	// whether they exist.
	unsure map[string]bool

	mu         sync.Mutex
	seen       map[string]int
	operations []string
	hits       int
	disarmed   bool
}

// hook fails the operation that is to fail.
func (w *world) hook(op vfs.Op) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.disarmed {
		return nil
	}
	is := describe(op)
	w.seen[is]++
	is = fmt.Sprintf("%s %d", is, w.seen[is])
	w.operations = append(w.operations, is)
	if is != w.fault.operation || w.hits > 0 {
		return nil
	}
	w.hits++
	return ways[w.fault.way]
}

func (w *world) disarm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disarmed = true
}

func (w *world) hit() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hits
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf(fmt.Sprintf("%v%s: ", w.fault, w.what)+format, args...)
}

func (w *world) must(err error, what string) {
	w.t.Helper()
	if err != nil {
		w.fatalf("%s: %v", what, err)
	}
}

// finals are failures after which more is refused than what failed.
var finals = []error{volume.ErrFailed, catalog.ErrFailed, journal.ErrSyncFailed, image.ErrSyncFailed}

func final(err error) bool {
	return slices.ContainsFunc(finals, func(f error) bool { return errors.Is(err, f) })
}

// isSync tells whether the fault is one that may be final. A sync that was not
// begun is none.
func (f fault) isSync() bool {
	return f.way != "EMFILE" && slices.Contains([]string{"sync", "syncdir", "writeback", "committed"}, f.kind())
}

// may holds an error to what is allowed: there is one only if the fault hit, and
// if it did not hit in this very call, only one that is final.
func (w *world) may(err error, what string) {
	w.t.Helper()
	switch {
	case err == nil:
	case w.hit() == 0:
		w.fatalf("%s: %v, and nothing had failed", what, err)
	case strings.TrimSpace(err.Error()) == "":
		w.fatalf("%s: an error that says nothing: %#v", what, err)
	}
}

// call runs a call, and holds its error to what is allowed.
func (w *world) call(what string, do func() error) error {
	w.t.Helper()
	before := w.hit()
	err := do()
	w.may(err, what)
	if err != nil && before > 0 && !(w.fault.isSync() && final(err)) {
		w.fatalf("%s: %v, though what failed was over before", what, err)
	}
	return err
}

// wait lets the background come to rest.
func (w *world) wait() { synctest.Wait() }

func (w *world) open() {
	w.t.Helper()
	var err error
	for range 2 { // one that fails can be tried again
		before := w.hit()
		w.store, err = store.Open(dataDir, store.Options{FS: vfs.Fault{FS: w.sim, Hook: w.hook}, FoldAbove: 1})
		if err == nil {
			opened := w.store
			w.t.Cleanup(func() { _ = opened.Close(context.Background()) })
			w.wait()
			return
		}
		if w.store = nil; w.hit() == before {
			break
		}
	}
	w.fatalf("open: %v", err)
}

func (w *world) reopen() {
	w.wait()
	err := w.call("close", func() error { return w.store.Close(context.Background()) })
	expect := inCache
	if err != nil {
		expect = w.inCache()
	}
	w.open()
	w.adopt(expect)
}

func (w *world) killAndReopen() {
	w.wait()
	dead := w.store
	w.sim = w.sim.Kill()
	_ = dead.Close(context.Background())
	w.open()
	w.adopt(w.inCache())
}

func (w *world) create(name string, sizeBytes int64) {
	w.t.Helper()
	err := w.call("create "+name, func() error {
		_, err := w.store.CreateVolume(name, sizeBytes, volume.ScopeRequest)
		return err
	})
	if err == nil {
		w.disks[name] = &modelDisk{live: make(cells, sizeBytes/512), snaps: map[string]*modelSnap{}}
	}
	w.doubt(err, name)
}

// doubt notes what a failed commit leaves open.
func (w *world) doubt(err error, names ...string) {
	if errors.Is(err, catalog.ErrFailed) {
		if w.unsure == nil {
			w.unsure = map[string]bool{}
		}
		for _, name := range names {
			w.unsure[name] = true
		}
	}
}

func (w *world) delete(name string) {
	w.t.Helper()
	if w.disks[name] == nil {
		return
	}
	var unknown error
	err := w.call("delete "+name, func() error {
		hits := w.hit()
		err := w.store.DeleteVolume(name, true)
		if w.hit() > hits && errors.Is(err, catalog.ErrFailed) {
			unknown = err // whether the record is there
		}
		return err
	})
	if _, gone := w.store.Volume(name); errors.Is(gone, store.ErrNotFound) {
		delete(w.disks, name)
	}
	switch there := w.disks[name] != nil; {
	case there && (err == nil || unknown != nil):
		w.fatalf("delete %s: %v, and the volume still takes writes", name, err)
	case !there && err != nil && unknown == nil && w.fault.kind() == "committed":
		w.fatalf("delete %s: %v, and the volume is gone", name, err)
	}
	w.doubt(unknown, name)
}

func (w *world) resize(name string, sizeBytes int64) {
	w.t.Helper()
	d := w.disks[name]
	if d == nil {
		return
	}
	err := w.call("resize "+name, func() error {
		_, err := w.store.ResizeVolume(name, sizeBytes)
		return err
	})
	if err == nil {
		d.live = append(d.live, make(cells, sizeBytes/512-int64(len(d.live)))...)
	} else if errors.Is(err, catalog.ErrFailed) {
		d.maySizeBytes = sizeBytes
	}
}

func (w *world) begin(token string, names ...string) {
	w.t.Helper()
	names = slices.DeleteFunc(names, func(name string) bool { return w.disks[name] == nil })
	if len(names) == 0 {
		return
	}
	_ = w.call("begin", func() error {
		_, err := w.store.BeginProcess(names, token)
		return err
	})
}

func (w *world) end(token string) {
	w.t.Helper()
	if len(w.store.Processes()) > 0 {
		_ = w.call("end", func() error { _, err := w.store.EndProcess(token, false); return err })
	}
	w.wait()
}

func (w *world) preserve(name string, names ...string) {
	w.t.Helper()
	names = slices.DeleteFunc(names, func(name string) bool { return w.disks[name] == nil })
	if len(names) == 0 {
		return
	}
	waits := len(w.store.Processes()) > 0
	err := w.call("preserve "+name, func() error {
		_, err := w.store.Preserve(context.Background(), store.PreserveRequest{Volumes: names, Name: name, OnTimeout: volume.TimeoutKeep, Wait: time.Minute})
		if waits && errors.Is(err, store.ErrDraining) {
			return nil
		}
		return err
	})
	for _, volumeName := range names {
		if err == nil {
			d := w.disks[volumeName]
			d.snaps[name] = &modelSnap{cells: slices.Clone(d.live), drains: waits}
		}
		w.doubt(err, volumeName+"@"+name)
	}
	w.wait()
}

// sealed waits for seals. One that the fault met may have failed; it is tried
// again, or made after the next open if the failure was final.
func (w *world) sealed(name string, names ...string) {
	w.t.Helper()
	for _, volumeName := range names {
		d := w.disks[volumeName]
		if d == nil || d.snaps[name] == nil {
			continue
		}
		err := w.store.WaitSealed(context.Background(), volumeName+"@"+name)
		w.may(err, "seal "+volumeName+"@"+name)
		if err != nil && !w.fault.isSync() {
			time.Sleep(time.Minute)
			w.must(w.store.WaitSealed(context.Background(), volumeName+"@"+name), "the seal that is tried again")
			err = nil
		}
		d.snaps[name].drains = false
		d.snaps[name].sealed = err == nil
	}
}

func (w *world) checkpoint(name string) {
	w.t.Helper()
	if w.disks[name] != nil {
		_ = w.call("checkpoint", func() error { return w.store.Checkpoint(name) })
	}
}

// write writes a new stamp through an export.
func (w *world) write(export string, off, n int64) {
	w.t.Helper()
	w.stamp++
	p := bytes.Repeat(binary.LittleEndian.AppendUint32(nil, w.stamp), int(n/4))
	w.change(export, off, n, w.stamp, func(v *volume.View) error {
		_, err := v.WriteAt(p, off)
		return err
	})
}

func (w *world) zero(export string, off, n int64, noHole bool) {
	w.t.Helper()
	w.change(export, off, n, 0, func(v *volume.View) error { return v.WriteZeroes(off, n, noHole) })
}

func (w *world) change(export string, off, n int64, stamp uint32, do func(*volume.View) error) {
	w.t.Helper()
	name, _, inProcess := strings.Cut(export, ":")
	d := w.disks[name]
	if d == nil || d.frozen || off+n > d.sizeBytes() || inProcess && len(w.store.Processes()) == 0 {
		return
	}
	var changed []cells
	if changed = append(changed, d.live); inProcess {
		for _, snap := range d.snaps {
			if snap.drains {
				changed = append(changed, snap.cells)
			}
		}
	}
	err := w.call(fmt.Sprintf("write %d bytes at %d of %s", n, off, export), func() error {
		v, err := w.store.OpenView(export)
		if err != nil {
			return err
		}
		return errors.Join(do(v), v.Close())
	})
	for _, c := range changed {
		for i := off / 512; i < (off+n)/512; i++ {
			switch {
			case err == nil:
				c[i].now = values{stamp: true}
				c[i].disk = c[i].disk.with(stamp)
			case !errors.Is(err, volume.ErrFailed):
				c[i].now, c[i].disk = anything, anything
			}
			c[i].unflushed = true
		}
	}
}

func (w *world) flush(name string) {
	w.t.Helper()
	d := w.disks[name]
	if d == nil || d.frozen {
		return
	}
	if w.call("flush "+name, func() error {
		v, err := w.store.OpenView(name)
		if err != nil {
			return err
		}
		return errors.Join(v.Flush(), v.Close())
	}) == nil {
		d.flushed()
	}
}

// readAll reads every block of every view. One that can't be read may have been
// lost, or its read failed now.
func (w *world) readAll() {
	w.t.Helper()
	w.wait()
	for name, d := range w.disks {
		if !d.frozen {
			w.readView(name, d, d.live, false, now)
		}
		for snapName, snap := range d.snaps {
			w.readView(name+"@"+snapName, d, snap.cells, snap.sealed, now)
		}
	}
}

func (w *world) readView(export string, d *modelDisk, c cells, sealed bool, expect expectation) {
	w.t.Helper()
	v, err := w.store.OpenView(export)
	if err != nil {
		w.fatalf("open %s: %v", export, err)
	}
	defer func() { _ = v.Close() }()
	for first := 0; first < len(c); first += 8 {
		block := c[first:min(first+8, len(c))]
		p := make([]byte, len(block)*512)
		before := w.hit()
		_, err := v.ReadAt(p, int64(first)*512)
		switch {
		case err != nil && w.hit() > before: // this very read
		case err != nil && !sealed && w.fault.isSync() && errors.Is(err, volume.ErrFailed) && w.hit() > 0 && (d.unknown || block.unsynced()):
		case err != nil:
			w.fatalf("read block %d of %s: %v", first/8, export, err)
		default:
			for i, cell := range block {
				if !expect(cell).has(p[i*512:][:512]) {
					w.fatalf("sector %d of %s is %x, and should be one of %v", first+i, export, p[i*512:][:8], expect(cell))
				}
			}
		}
	}
}

// expectation says which values a sector may have.
type expectation func(cell) values

func now(c cell) values     { return c.now }
func inCache(c cell) values { return c.now }
func onDisk(c cell) values  { return c.disk }

// inCache is what a directory holds after the death of the server: all that was
// written, unless a sync had failed.
func (w *world) inCache() expectation {
	if w.hit() > 0 && w.fault.isSync() {
		return onDisk
	}
	return inCache
}

// adopt looks at what an open has recovered, and takes it for what is.
func (w *world) adopt(expect expectation) {
	w.t.Helper()
	w.wait()
	there := map[string]bool{}
	for _, info := range w.store.Volumes() {
		there[info.Name] = true
		d := w.disks[info.Name]
		switch {
		case d == nil && !w.unsure[info.Name]:
			w.fatalf("volume %s is there, which was deleted or never made", info.Name)
		case d == nil:
			continue
		case info.SizeBytes != d.sizeBytes() && info.SizeBytes != d.maySizeBytes:
			w.fatalf("volume %s has %d bytes, want %d", info.Name, info.SizeBytes, d.sizeBytes())
		}
		d.live = append(d.live, make(cells, info.SizeBytes/512-int64(len(d.live)))...)
		d.unknown, d.frozen = true, false
		d.live.reopened()
		for _, snap := range d.snaps {
			snap.cells.reopened()
		}
		if info.Failed != "" && w.disarmed {
			w.fatalf("volume %s takes no writes after an open: %s", info.Name, info.Failed)
		}
		w.adoptSnapshots(info.Name, d, expect)
		w.readView(info.Name, d, d.live, false, expect)
		w.take(info.Name, d.live)
	}
	for name := range w.disks {
		if !there[name] && w.unsure[name] {
			delete(w.disks, name)
		} else if !there[name] {
			w.fatalf("volume %s is gone", name)
		}
	}
}

func (w *world) adoptSnapshots(name string, d *modelDisk, expect expectation) {
	w.t.Helper()
	infos, err := w.store.Snapshots(name)
	w.must(err, "snapshots")
	there := map[string]bool{}
	for _, info := range infos {
		there[info.Name] = true
		snap := d.snaps[info.Name]
		if snap == nil && w.unsure[name+"@"+info.Name] {
			continue
		}
		if snap == nil {
			w.fatalf("snapshot %s@%s is there, which was never made", name, info.Name)
		}
		if snap.sealed {
			if info.State != volume.Sealed {
				w.fatalf("snapshot %s@%s is %v, and was sealed", name, info.Name, info.State)
			}
			w.readView(name+"@"+info.Name, d, snap.cells, true, now)
			continue
		}
		w.readView(name+"@"+info.Name, d, snap.cells, false, expect)
		w.take(name+"@"+info.Name, snap.cells)
		snap.drains = false
		err := w.store.WaitSealed(context.Background(), name+"@"+info.Name)
		w.may(err, "seal after open")
		if err != nil && w.disarmed {
			w.fatalf("seal %s@%s after an open: %v", name, info.Name, err)
		}
		snap.sealed = err == nil
	}
	for _, snapName := range slices.Collect(maps.Keys(d.snaps)) {
		if !there[snapName] && w.unsure[name+"@"+snapName] {
			delete(d.snaps, snapName)
		} else if !there[snapName] {
			w.fatalf("snapshot %s@%s is gone", name, snapName)
		}
	}
}

// take takes what a view reads for what it holds.
func (w *world) take(export string, c cells) {
	w.t.Helper()
	v, err := w.store.OpenView(export)
	w.must(err, "open "+export)
	defer func() { _ = v.Close() }()
	p := make([]byte, len(c)*512)
	before := w.hit()
	if _, err := v.ReadAt(p, 0); err != nil {
		if w.hit() == before && !errors.Is(err, volume.ErrFailed) {
			w.fatalf("read %s: %v", export, err)
		}
		return
	}
	for i := range c {
		if stamp, whole := stampOf(p[i*512:][:512]); whole {
			c[i].now = values{stamp: true}
			c[i].disk = c[i].disk.with(stamp)
		} else {
			c[i].now = anything
		}
	}
}

// modelDisk is what a volume should hold, by sectors.
type modelDisk struct {
	live         cells
	snaps        map[string]*modelSnap
	frozen       bool  // a rollback of it failed for good: nobody opens it
	unknown      bool  // since the last good flush nobody knows what an earlier life wrote
	maySizeBytes int64 // of a resize that failed for good
}

type modelSnap struct {
	cells          cells
	drains, sealed bool
}

func (d *modelDisk) sizeBytes() int64 { return int64(len(d.live)) * 512 }

func (d *modelDisk) flushed() {
	d.unknown = false
	d.live.flushed()
	for _, snap := range d.snaps {
		snap.cells.flushed()
	}
}

func (d *modelDisk) clone() *modelDisk {
	c := &modelDisk{live: slices.Clone(d.live), snaps: map[string]*modelSnap{}, unknown: d.unknown, maySizeBytes: d.maySizeBytes}
	for name, snap := range d.snaps {
		c.snaps[name] = &modelSnap{cells: slices.Clone(snap.cells), drains: snap.drains, sealed: snap.sealed}
	}
	return c
}

type cells []cell

func (c cells) flushed() {
	for i := range c {
		c[i].disk, c[i].unflushed, c[i].stored = c[i].now, false, c[i].stored || c[i].unflushed
	}
}

// reopened: what a log had stored is in the images, or nobody knows what is (unknown).
func (c cells) reopened() {
	for i := range c {
		c[i].stored = false
	}
}

// unsynced tells that the image may not have it when a sync fails.
func (c cells) unsynced() bool {
	return slices.ContainsFunc(c, func(c cell) bool { return c.unflushed || c.stored })
}

// cell is what a sector may read now, and after a power cut.
type cell struct {
	now, disk values
	unflushed bool // a write was tried since the last good flush
	stored    bool // perhaps only in the log, since the last good flush
}

// values is a set of stamps; nil is that of a sector never written. It is never
// changed.
type values map[uint32]bool

var anything = values{^uint32(0): true}

// union is what one of two sectors may be.
func union(a, b values) values {
	u := values{}
	for _, v := range []values{a, b} {
		if v == nil {
			u[0] = true
		}
		maps.Copy(u, v)
	}
	return u
}

func (v values) with(stamp uint32) values {
	w := maps.Clone(v)
	if w == nil {
		w = values{0: true}
	}
	w[stamp] = true
	return w
}

func (v values) has(sector []byte) bool {
	stamp, whole := stampOf(sector)
	switch {
	case v[^uint32(0)]:
		return true
	case v == nil:
		return whole && stamp == 0
	}
	return whole && v[stamp]
}

// stampOf returns what fills a sector, if one stamp does.
func stampOf(sector []byte) (uint32, bool) {
	return binary.LittleEndian.Uint32(sector), bytes.Equal(sector, bytes.Repeat(sector[:4], len(sector)/4))
}

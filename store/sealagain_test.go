package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// farApart are blocks whose sums lie in different pages.
var farApart = []int64{0, 1 << 32, 2 << 32}

// lostSums is a disk with a snapshot v@one whose checksum file is empty.
func lostSums(t *testing.T) *vfs.Sim {
	t.Helper()
	sim := vfs.NewSim(memoryDir(t))
	s := openWith(t, dataDir, store.Options{FS: sim})
	if _, err := s.CreateVolume("v", 1<<46, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	w := openView(t, s, "v")
	for _, b := range farApart {
		write(t, w, b*lookup.BlockSize, 'a')
	}
	mustSeal(t, s, "one", "v")
	name := fmt.Sprintf("%s/images/%016x.sum", dataDir, uint64(w.Volume().VLUNs()[0].ImageID()))
	_ = w.Close()
	closeStore(t, s)
	f, err := sim.Open(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(0), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return sim
}

// readFarApart reads v@one when the background has done what there was to seal.
func readFarApart(t *testing.T, s *store.Store, settle string) (err error) {
	t.Helper()
	_, _ = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: settle, Wait: time.Minute, UntilSealed: true})
	w := openView(t, s, "v@one")
	defer func() { _ = w.Close() }()
	for _, b := range farApart {
		_, readErr := w.ReadAt(make([]byte, lookup.BlockSize), b*lookup.BlockSize)
		err = errors.Join(err, readErr)
	}
	return err
}

func TestAPowerCutWhileAChecksumFileIsMadeAnewCostsNoSealedBlock(t *testing.T) {
	sim := lostSums(t)
	from := sim.Ops()
	s := openWith(t, dataDir, store.Options{FS: sim})
	if err := readFarApart(t, s, "first"); err != nil {
		t.Fatal(err)
	}
	for at, to := from, sim.Ops(); at < to && !t.Failed(); at++ {
		for seed := range uint64(2) {
			s := openWith(t, dataDir, store.Options{FS: sim.PowerCut(at, random(uint64(at)<<1|seed))})
			if err := readFarApart(t, s, "second"); err != nil {
				t.Errorf("after a power cut at %d of %d to %d: %v", at, from, to, err)
			}
			_ = s.Close(t.Context())
		}
	}
}

// An image that was punched can't be hashed again, so nothing can be made anew of it.
func TestAChecksumFileThatTheDiskRefusesAtTheOpenIsReadWhenItDoesNotAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim := vfs.NewSim(memoryDir(t))
		s := openWith(t, dataDir, store.Options{FS: sim, FoldAbove: -1})
		createVolume(t, s, "v")
		w := openView(t, s, "v")
		write(t, w, 0, 'a')
		write(t, w, lookup.BlockSize, 'a')
		mustSeal(t, s, "one", "v")
		write(t, w, 0, 'b')
		mustSeal(t, s, "two", "v")
		oldest := fmt.Sprintf("%s/images/%016x.sum", dataDir, uint64(w.Volume().VLUNs()[0].ImageID()))
		_ = w.Close()
		if err := s.DeleteSnapshots("v@one"); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		closeStore(t, s)

		var refused atomic.Int64
		s = openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
			if op.Kind == vfs.OpOpen && op.Name == oldest && refused.Add(1) == 1 {
				return syscall.EIO
			}
			return nil
		}}})
		defer closeStore(t, s)
		pass(time.Minute)
		w = openView(t, s, "v@two")
		defer func() { _ = w.Close() }()
		p := make([]byte, 2*lookup.BlockSize)
		if _, err := w.ReadAt(p, 0); err != nil || p[0] != 'b' || p[lookup.BlockSize] != 'a' || refused.Load() < 2 {
			t.Errorf("it reads %c%c, %v, after the file was opened %d times", p[0], p[lookup.BlockSize], err, refused.Load())
		}
	})
}

func TestASealWaitsForAnOlderImageToGetItsSumsBackAndIsTriedLessAndLessOften(t *testing.T) {
	sim := lostSums(t)
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		broken.Store(true)
		begun, tries := time.Now(), make(chan time.Duration, 100)
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
			if op.Handle == "seal" && op.Kind == vfs.OpOpen && broken.Load() {
				tries <- time.Since(begun)
				return syscall.EMFILE
			}
			return nil
		}}})
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "two", Wait: time.Minute}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(16 * time.Minute)
		var at []time.Duration
		for len(tries) > 0 {
			at = append(at, <-tries)
		}
		want := []time.Duration{0, 10, 30, 70, 150, 310, 610, 910}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(at, want) {
			t.Errorf("it was tried at %v, want %v", at, want)
		}
		if snapshotInfo(t, s, "v@one").Failed == "" || snapshotInfo(t, s, "v@two").State == volume.Sealed {
			t.Errorf("while it fails: %+v, %+v", snapshotInfo(t, s, "v@one"), snapshotInfo(t, s, "v@two"))
		}
		broken.Store(false)
		time.Sleep(6 * time.Minute)
		if one := snapshotInfo(t, s, "v@one"); one.Failed != "" || one.Verify.BadBlocks > 0 {
			t.Errorf("the older one: %+v", one)
		}
		if two := snapshotInfo(t, s, "v@two"); two.State != volume.Sealed || two.Failed != "" {
			t.Errorf("the newer one: %+v", two)
		}
		closeStore(t, s)
	})
}

func TestFaultOfASealTooLargeForAFullDiskLeavesTheReserveToTableChanges(t *testing.T) {
	onDiskOf(t, 16<<20, func(d *fullDisk) {
		t := d.t
		if _, err := d.CreateVolume("big", 1<<40, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		w := openView(t, d.Store, "big")
		for n := range int64(200) { // 12 KiB of sums
			write(t, w, n*1023*lookup.BlockSize, 'a')
		}
		d.want("flush", w.Flush(), nil)
		if _, err := d.BeginProcess([]string{"big"}, "P"); err != nil { // what is to be sealed drains until there is no room
			t.Fatal(err)
		}
		if _, err := d.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"big"}, Name: "one", OnTimeout: volume.TimeoutKeep}); !errors.Is(err, store.ErrDraining) {
			t.Fatal(err)
		}
		const free = 8 << 10
		d.quota.SetFree(free)
		if _, err := d.EndProcess("P", false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if info := snapshotInfo(t, d.Store, "big@one"); info.Failed == "" {
			t.Fatalf("it is %+v, and there was no room for its sums", info)
		}
		if left, err := d.quota.Free(dataDir); err != nil || left != free {
			t.Errorf("the seal that failed leaves %d of %d bytes (%v)", left, free, err)
		}
		d.quota.SetFree(0)
		time.Sleep(time.Hour) // it is tried again
		if held, err := d.sim.Size(dataDir + "/reserve"); err != nil || held != reserveBytes {
			t.Errorf("the reserve has %d of %d bytes (%v)", held, reserveBytes, err)
		}
		d.want("a trim", d.view.Trim(0, lookup.BlockSize), nil)
		d.want("a flush of it", d.view.Flush(), nil)
		d.quota.SetFree(8 << 20)
		time.Sleep(time.Hour)
		if info := snapshotInfo(t, d.Store, "big@one"); info.State != volume.Sealed || info.Failed != "" {
			t.Errorf("with room: %+v", info)
		}
	})
}

func TestWhatIsFoundWithoutAChecksumFileIsForgottenWhenItIsMadeAnew(t *testing.T) {
	s, dir := rotStore(t, store.Options{})
	img, sums := imageOf(t, s, dir, 0, "img"), imageOf(t, s, dir, 0, "sum")
	flip(t, img, 2*4096)
	if _, err := s.Scrub(t.Context()); !errors.Is(err, store.ErrCorrupt) { // recorded
		t.Fatal(err)
	}
	flip(t, img, 2*4096)
	closeStore(t, s)
	remove(t, sums)
	sealing := newStop(func(op vfs.Op) bool { return op.Handle == "seal" && op.Kind == vfs.OpOpen })
	sealing.armed.Store(true)
	s = openWith(t, dir, store.Options{FS: vfs.Fault{FS: vfs.OS{}, Hook: sealing.hook}})
	want := func(when string, state store.VerifyPhase, bad int64) {
		t.Helper()
		if v := snapshotInfo(t, s, "v@one").Verify; v.State != state || v.BadBlocks != bad {
			t.Errorf("%s: %+v, want %d bad blocks", when, v, bad)
		}
	}
	want("lost", store.VerifyBad, 6)
	if r, err := s.Scrub(t.Context()); !errors.Is(err, store.ErrCorrupt) || r.BadBlocks != 6 {
		t.Errorf("a scrub without it: %+v, %v", r, err)
	}
	if r, err := s.VerifySnapshot(t.Context(), "v@one", nil); !errors.Is(err, store.ErrCorrupt) || r.BadBlocks != 6 {
		t.Errorf("a verification without it: %+v, %v", r, err)
	}
	remade := false
	if _, err := s.VerifySnapshot(t.Context(), "v@one", func(int64, int64) {
		if !remade {
			close(sealing.open)
			settleSeals(t, s)
			remade = true
		}
	}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a verification during which it is made anew: %v, want ErrInUse", err)
	}
	want("made anew", store.VerifyOK, 0)
	closeStore(t, s)
	s = openWith(t, dir, store.Options{})
	want("after a restart", store.VerifyOK, 0)
	if _, err := s.VerifySnapshot(t.Context(), "v@one", nil); err != nil {
		t.Error(err)
	}
	if r, err := s.Scrub(t.Context()); err != nil || r.BadBlocks > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// scanHandles counts what is open to be scanned.
func scanHandles(open *atomic.Int64) func(op vfs.Op) error {
	return func(op vfs.Op) error {
		switch {
		case op.Handle == "scan" && op.Kind == vfs.OpOpen:
			open.Add(1)
		case op.Handle == "scan" && op.Kind == vfs.OpClose:
			open.Add(-1)
		}
		return nil
	}
}

func TestWhoWaitsBehindASlowScrubGivesUpWithItsContextAndADeleteEndsTheScrub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int64
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: scanHandles(&open)}, ScrubEvery: time.Hour, ScrubBytesPerSecond: 1})
		if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		w := openView(t, s, "v")
		write(t, w, 0, 'a')
		mustSeal(t, s, "one", "v")
		_ = w.Close()
		synctest.Wait()
		if open.Load() != 2 {
			t.Fatalf("%d files are open, want those of the scrub", open.Load())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Scrub(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("behind it: %v, want context.Canceled", err)
		}
		if err := s.DeleteVolume("v", true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if open.Load() != 0 {
			t.Error("files of the deleted volume are still open")
		}
		closeStore(t, s)
	})
}

func TestADeleteEndsAVerificationWhereItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int64
		s := openWith(t, dataDir, store.Options{FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: scanHandles(&open)}})
		if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		w := openView(t, s, "v")
		for b := range int64(4) {
			write(t, w, 2*b*4096, 'a')
		}
		mustSeal(t, s, "one", "v")
		_ = w.Close()
		steps := 0
		if _, err := s.VerifySnapshot(t.Context(), "v@one", func(int64, int64) {
			if steps++; steps == 1 {
				if err := s.DeleteVolume("v", true); err != nil {
					t.Error(err)
				}
				synctest.Wait()
			}
		}); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%v, want ErrNotFound", err)
		}
		if steps != 1 || open.Load() != 0 {
			t.Errorf("it read on, %d steps in all, and %d files are open", steps, open.Load())
		}
		closeStore(t, s)
	})
}

func TestAWrongHashIsKnownAfterRestartsUntilAVerificationFindsAnother(t *testing.T) {
	s, dir := rotStore(t, store.Options{})
	if _, err := s.VerifySnapshot(t.Context(), "v@two", nil); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	changeLink(t, dir, 1, func(l *catalog.Link) { l.Snapshot.WrongHash = true })
	for range 2 {
		s = openWith(t, dir, store.Options{})
		if v := snapshotInfo(t, s, "v@two").Verify; v.State != store.VerifyBad {
			t.Errorf("after a restart: %+v", v)
		}
		if _, err := s.Scrub(t.Context()); err != nil { // which records it anew
			t.Error(err)
		}
		closeStore(t, s)
	}
	s = openWith(t, dir, store.Options{})
	if _, err := s.VerifySnapshot(t.Context(), "v@two", nil); err != nil {
		t.Fatal(err)
	}
	if v := snapshotInfo(t, s, "v@two").Verify; v.State != store.VerifyOK {
		t.Errorf("verified: %+v", v)
	}
}

func TestFaultOfTheCatalogLeavesAVerificationItsVerdict(t *testing.T) {
	var broken atomic.Bool
	s, dir := rotStore(t, store.Options{FS: vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
		if broken.Load() && op.Kind == vfs.OpCommitted {
			return syscall.EIO
		}
		return nil
	}}})
	flip(t, imageOf(t, s, dir, 0, "img"), 2*4096)
	broken.Store(true)
	r, err := s.VerifySnapshot(t.Context(), "v@one", nil)
	if !errors.Is(err, store.ErrCorrupt) || !errors.Is(err, syscall.EIO) || r.BadBlocks != 1 {
		t.Errorf("%+v, %v; want one bad block, ErrCorrupt and EIO", r, err)
	}
	if r, err := s.Scrub(t.Context()); !errors.Is(err, store.ErrCorrupt) || r.BadBlocks != 1 {
		t.Errorf("scrub: %+v, %v; want one bad block", r, err)
	}
}

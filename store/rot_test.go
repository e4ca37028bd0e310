package store_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// rotStore is an open store with a volume v of 16 blocks and two sealed
// snapshots: image 1 has blocks 0 to 5, all a; image 2 has 1 and 3 to 4, all b;
// the live image has 5, c.
func rotStore(t *testing.T, o store.Options) (s *store.Store, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	s = openWith(t, dir, o)
	if _, err := s.CreateVolume("v", 16*4096, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	w := openView(t, s, "v")
	for b := range int64(6) {
		write(t, w, b*4096, 'a')
	}
	mustSeal(t, s, "one", "v")
	for _, b := range []int64{1, 3, 4} {
		write(t, w, b*4096, 'b')
	}
	mustSeal(t, s, "two", "v")
	write(t, w, 5*4096, 'c')
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func openWith(t *testing.T, dir string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s
}

func mustSeal(t *testing.T, s *store.Store, name string, volumes ...string) {
	t.Helper()
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: volumes, Name: name, Wait: time.Minute, UntilSealed: true}); err != nil {
		t.Fatal(err)
	}
}

func snapshotInfo(t *testing.T, s *store.Store, full string) store.SnapshotInfo {
	t.Helper()
	info, err := s.Snapshot(full)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func closeStore(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// imageOf returns the file of the n-th oldest image of volume v.
func imageOf(t *testing.T, s *store.Store, dir string, n int, suffix string) string {
	t.Helper()
	w, err := s.OpenView("v")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	return filepath.Join(dir, "images", fmt.Sprintf("%016x.%s", uint64(w.Volume().VLUNs()[n].ImageID()), suffix))
}

// logged keeps what is logged.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), s)
}

func TestARottenBlockIsAnErrorAndNeverWrongDataInEveryViewThatShowsIt(t *testing.T) {
	var log logged
	s, dir := rotStore(t, store.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	flip(t, imageOf(t, s, dir, 0, "img"), 2*4096+9) // all three views show block 2 of image 1
	p := make([]byte, 4096)
	for _, export := range []string{"v@one", "v@two", "v"} {
		w := openView(t, s, export)
		for range 3 {
			if _, err := w.ReadAt(p, 2*4096); !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("%s: read of the rotten block: %v, want ErrCorrupt", export, err)
			}
			if _, err := w.TryReadAt(p[:10], 2*4096+500); !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("%s: read of a part of it: %v, want ErrCorrupt", export, err)
			}
		}
		wantByte(t, w, 1*4096, map[bool]byte{true: 'a', false: 'b'}[export == "v@one"])
	}
	live := openView(t, s, "v")
	if _, err := live.WriteAt([]byte("part"), 2*4096+50); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("a write that needs the rest of the rotten block: %v, want ErrCorrupt", err)
	}
	if _, err := live.ReadAt(p, 2*4096); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("after the failed write: %v, want ErrCorrupt as before", err)
	}
	write(t, live, 2*4096, 'n') // a whole block needs nothing of it
	wantByte(t, live, 2*4096, 'n')

	closeStore(t, s) // the watcher has ended
	if n := log.count("a block is not what was sealed"); n != 1 {
		t.Errorf("it was logged %d times, want once: %s", n, log.buf.String())
	}
	if n := log.count(`"shown by"="[v@one v@two`); n != 1 {
		t.Errorf("the log does not say who shows it: %s", log.buf.String())
	}
}

func TestVerifyFindsRotOnTheDiskBySnapshotImageAndOffset(t *testing.T) {
	s, dir := rotStore(t, store.Options{})
	var progress []int64
	for full, blocks := range map[string]int64{"v@one": 6, "v@two": 6} {
		r, err := s.VerifySnapshot(t.Context(), full, func(done, total int64) {
			if total != blocks*4096 {
				t.Errorf("%s has %d bytes, want %d", full, total, blocks*4096)
			}
			progress = append(progress, done)
		})
		info := snapshotInfo(t, s, full)
		if err != nil || r.Hash != info.Hash || r.Hash == "" || r.ReadBytes != blocks*4096 || r.BadBlocks != 0 {
			t.Errorf("%s: %+v, %v; the hash of its seal is %s", full, r, err, info.Hash)
		}
		if info.Verify.State != store.VerifyOK || info.Verify.LastTime.IsZero() {
			t.Errorf("%s after its verification: %+v", full, info.Verify)
		}
		if last := progress[len(progress)-1]; last != blocks*4096 {
			t.Errorf("%s: the last progress is %d bytes", full, last)
		}
	}
	flip(t, imageOf(t, s, dir, 0, "img"), 3*4096) // shown by one only
	if r, err := s.VerifySnapshot(t.Context(), "v@two", nil); err != nil {
		t.Errorf("v@two does not show the block: %+v, %v", r, err)
	}
	r, err := s.VerifySnapshot(t.Context(), "v@one", nil)
	if !errors.Is(err, store.ErrCorrupt) || r.BadBlocks != 1 || len(r.Bad) != 1 || r.Bad[0].OffsetBytes != 3*4096 || r.Bad[0].Image == 0 {
		t.Errorf("v@one: %+v, %v; want block 3 of its image", r, err)
	}
	check := func(when string) {
		one, two := snapshotInfo(t, s, "v@one").Verify, snapshotInfo(t, s, "v@two").Verify
		if one.State != store.VerifyBad || one.BadBlocks != 1 || two.State != store.VerifyOK || two.BadBlocks != 0 {
			t.Errorf("%s: v@one is %+v, v@two %+v", when, one, two)
		}
	}
	check("after it")
	closeStore(t, s)
	s = openWith(t, dir, store.Options{})
	check("after a restart")
	flip(t, imageOf(t, s, dir, 0, "img"), 3*4096) // put right
	if r, err := s.VerifySnapshot(t.Context(), "v@one", nil); err != nil {
		t.Errorf("v@one, put right: %+v, %v", r, err)
	}
	if v := snapshotInfo(t, s, "v@one").Verify; v.State != store.VerifyOK || v.BadBlocks != 0 {
		t.Errorf("v@one, put right: %+v", v)
	}
}

func TestVerifySaysWhatItCannotDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := rotStore(t, store.Options{})
		if _, err := s.BeginProcess([]string{"v"}, "P"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "three", OnTimeout: volume.TimeoutKeep}); !errors.Is(err, store.ErrDraining) {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for _, c := range []struct {
			ctx  context.Context
			full string
			want error
		}{
			{t.Context(), "v@three", store.ErrDraining}, {t.Context(), "v@none", store.ErrNotFound}, {t.Context(), "w@one", store.ErrNotFound},
			{t.Context(), "v", store.ErrInvalid}, {gone, "v@one", context.Canceled},
		} {
			if _, err := s.VerifySnapshot(c.ctx, c.full, nil); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.full, err, c.want)
			}
		}
		if v := snapshotInfo(t, s, "v@one").Verify; v.State != "" {
			t.Errorf("a verification that was given up leaves %+v", v)
		}
		twice := func(int64, int64) {
			if _, err := s.VerifySnapshot(t.Context(), "v@one", nil); !errors.Is(err, store.ErrInUse) {
				t.Errorf("while it is verified: %v, want ErrInUse", err)
			}
			if v := snapshotInfo(t, s, "v@one").Verify; v.State != store.VerifyRunning || v.TotalBytes != 6*4096 {
				t.Errorf("while it is verified: %+v", v)
			}
		}
		if _, err := s.VerifySnapshot(t.Context(), "v@one", twice); err != nil {
			t.Error(err)
		}
		closed := func(int64, int64) { // by a Close, which then waits for the end of this
			go func() { _ = s.Close(context.Background()) }()
			<-s.ScansEnd()
			synctest.Wait() // it has been told
		}
		if _, err := s.VerifySnapshot(t.Context(), "v@two", closed); !errors.Is(err, store.ErrClosed) {
			t.Errorf("a verification that a close ends: %v, want ErrClosed", err)
		}
		closeStore(t, s)
		if _, err := s.VerifySnapshot(t.Context(), "v@one", nil); !errors.Is(err, store.ErrClosed) {
			t.Errorf("after close: %v, want ErrClosed", err)
		}
	})
}

func TestAVolumeThatIsDeletedWhileItIsReadIsNotFound(t *testing.T) {
	s, _ := rotStore(t, store.Options{})
	remove := func(int64, int64) {
		if err := s.DeleteVolume("v", true); err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	}
	if _, err := s.VerifySnapshot(t.Context(), "v@two", remove); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if r, err := s.Scrub(t.Context()); err != nil || r.Images != 0 {
		t.Errorf("scrub: %+v, %v", r, err)
	}
}

func TestScrubReadsEachImageOnceAndSaysWhoShowsWhatIsBad(t *testing.T) {
	s, dir := rotStore(t, store.Options{})
	if r, err := s.Scrub(t.Context()); err != nil || r.Images != 2 || r.ReadBytes != 9*4096 {
		t.Errorf("%+v, %v; want 2 images, 9 blocks", r, err)
	}
	for _, full := range []string{"v@one", "v@two"} {
		if v := snapshotInfo(t, s, full).Verify; v.State != store.VerifyOK {
			t.Errorf("%s: %+v", full, v)
		}
	}
	for _, c := range []struct {
		image, block int64
		want         []string
	}{
		{0, 0, []string{"v", "v@one", "v@two"}}, {0, 1, []string{"v@one"}},
		{0, 5, []string{"v@one", "v@two"}}, {1, 4, []string{"v", "v@two"}},
	} {
		name := imageOf(t, s, dir, int(c.image), "img")
		flip(t, name, c.block*4096+1)
		if r, err := s.Scrub(t.Context()); !errors.Is(err, store.ErrCorrupt) || r.BadBlocks != 1 || !slices.Equal(r.Snapshots, c.want) {
			t.Errorf("block %d of image %d: %+v, %v; want %v", c.block, c.image, r, err, c.want)
		}
		flip(t, name, c.block*4096+1)
	}
	if _, err := s.Scrub(t.Context()); err != nil {
		t.Errorf("put right: %v", err)
	}
}

// The schedule: each image once when it is new and then once a period, at the
// speed that was asked for, also through a restart.
func TestScrubbingKeepsToItsPeriodThroughRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day, perBlock = 24 * time.Hour, 10 * time.Second
		sim := vfs.NewSim(t.TempDir())
		o := store.Options{FS: sim, ScrubEvery: day, ScrubBytesPerSecond: 4096 / 10}
		s := openWith(t, dataDir, o)
		if _, err := s.CreateVolume("v", 16*4096, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
		w := openView(t, s, "v")
		write(t, w, 0, 'a')
		write(t, w, 4096, 'a')
		mustSeal(t, s, "one", "v")
		last := func() time.Time { return snapshotInfo(t, s, "v@one").Verify.LastTime }
		want := func(when string, at time.Time) {
			t.Helper()
			if d := last().Sub(at); last().IsZero() || d < 0 || d > time.Minute {
				t.Errorf("%s: last read at %v, want %v", when, last(), at)
			}
		}
		sealed := time.Now()
		time.Sleep(15 * time.Second)
		if !last().IsZero() {
			t.Errorf("read at %v, faster than it may", last())
		}
		time.Sleep(time.Minute)
		want("when it is new", sealed.Add(2*perBlock))
		first := last()
		time.Sleep(day - time.Hour)
		want("before the day is over", first)
		time.Sleep(2 * time.Hour)
		want("after a day", first.Add(day))
		second := last()
		time.Sleep(time.Hour)
		_ = w.Close()
		closeStore(t, s)
		s = openWith(t, dataDir, o)
		time.Sleep(time.Hour)
		want("after a restart", second)
		time.Sleep(day)
		want("a day later", second.Add(day))
		closeStore(t, s) // at once, wherever the scrub is
	})
}

func TestALostChecksumFileIsMadeAnewOnlyIfTheDataIsWhatWasSealed(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, sums, img string)
		remade bool
	}{
		{"it is missing", func(t *testing.T, sums, _ string) { remove(t, sums) }, true},
		{"its header has rotted", func(t *testing.T, sums, _ string) { flip(t, sums, 50) }, true},
		{"its directory has rotted", func(t *testing.T, sums, _ string) { flip(t, sums, 2*4096) }, true},
		{"it is of format 1", formatOne, true},
		{"it is missing and a block has rotted", func(t *testing.T, sums, img string) {
			remove(t, sums)
			flip(t, img, 4096)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, dir := rotStore(t, store.Options{})
			sums, img := imageOf(t, s, dir, 0, "sum"), imageOf(t, s, dir, 0, "img")
			closeStore(t, s)
			c.damage(t, sums, img)
			if r, err := store.Check(dir, nil, store.CheckOptions{Quick: true}); err != nil || len(r.Findings) == 0 {
				t.Errorf("check finds nothing (%v)", err)
			}
			s = openWith(t, dir, store.Options{})
			if !strings.Contains(strings.Join(s.Recovery(), "\n"), "its sums can't be used") {
				t.Errorf("the recovery says %q", s.Recovery())
			}
			settleSeals(t, s)
			w, p := openView(t, s, "v@one"), make([]byte, 4096)
			if _, err := w.ReadAt(p, 0); c.remade && (err != nil || p[9] != 'a') || !c.remade && !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("read: %v", err)
			}
			wantByte(t, openView(t, s, "v"), 3*4096, 'b') // of an image that is sound
			if !c.remade {
				if _, err := s.VerifySnapshot(t.Context(), "v@one", nil); !errors.Is(err, store.ErrCorrupt) {
					t.Errorf("verify: %v, want ErrCorrupt", err)
				}
				return
			}
			closeStore(t, s)
			if r, err := store.Check(dir, nil, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
				t.Errorf("check: %q, %v", r.Findings, err)
			}
		})
	}
}

// formatOne gives a checksum file the header of format 1, which had another layout.
func formatOne(t *testing.T, sums, _ string) {
	t.Helper()
	data, err := os.ReadFile(sums)
	if err != nil {
		t.Fatal(err)
	}
	data[8] = 1
	binary.LittleEndian.PutUint32(data[4092:], crc32.Checksum(data[:4092], crc32.MakeTable(crc32.Castagnoli)))
	if err := os.WriteFile(sums, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// settleSeals waits until the background has done what there was to seal.
func settleSeals(t *testing.T, s *store.Store) {
	t.Helper()
	_, _ = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "later", Wait: time.Minute, UntilSealed: true})
}

// changeLink changes the record of an image, that at an index of the chain, in a
// directory of one volume that nobody has open.
func changeLink(t *testing.T, dir string, index int, change func(*catalog.Link)) {
	t.Helper()
	c, err := catalog.Open(vfs.OS{}, filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	state, err := c.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Update(func(tx *catalog.Tx) error {
		l := state.Volumes[0].Chain[index]
		change(&l)
		return tx.PutLink(l)
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestADeleteRemovesChecksumFilesAndAnOpenThoseThatBelongToNobody(t *testing.T) {
	s, dir := rotStore(t, store.Options{})
	if err := s.DeleteVolume("v", true); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.WriteFile(filepath.Join(dir, "images", "0000000000000777.sum"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closeStore(t, openWith(t, dir, store.Options{}))
	if left, err := filepath.Glob(filepath.Join(dir, "images", "*.sum")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

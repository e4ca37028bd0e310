package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// layers makes n snapshots of v, each with a block of its own and one that all
// write, and deletes all but the last.
func (l *lives) layers(n int) {
	l.t.Helper()
	for i := range n {
		w, err := l.store.OpenView("v")
		l.must(err)
		for _, b := range []int{i, 63} {
			data := bytes.Repeat([]byte{byte('a' + i)}, 4096)
			_, err := w.WriteAt(data, int64(b)*4096)
			l.must(err)
			copy(l.holds["v"][b*4096:], data)
		}
		l.must(w.Close())
		l.must(l.store.WaitSealed(l.t.Context(), l.preserve("v")))
	}
	for i := range n - 1 {
		name := fmt.Sprintf("v@s%d", i+1)
		l.must(l.store.DeleteSnapshots(name))
		delete(l.holds, name)
	}
	l.store.AwaitPunches()
}

func TestImagesWithoutANameAreFoldedUntilThereAreFewEnough(t *testing.T) {
	for _, c := range []struct{ above, want int }{{1, 1}, {4, 4}, {-1, 9}} {
		t.Run(fmt.Sprint(c.above), func(t *testing.T) {
			l := newLife(t, 0)
			l.must(l.store.Close(t.Context()))
			l.fold = c.above
			l.store = l.open(l.fs)
			l.layers(10)
			info, err := l.store.Volume("v")
			if err != nil || info.Images != c.want+2 { // the snapshot's and the live one
				t.Errorf("%d images, %v; want %d without a name", info.Images, err, c.want)
			}
			if l.blocks() != 11 {
				t.Errorf("%d blocks, want 11", l.blocks())
			}
			l.check()
			l.reopen()
			l.check()
		})
	}
}

// A clone shares what lies below its snapshot: an image is folded in both chains or
// in none.
func TestAnImageIsNotFoldedOverTheHeadOfAClone(t *testing.T) {
	l := newLife(t, 0)
	l.layers(3) // s3 is left, upon one image without a name
	l.clone("v@s3")
	l.must(l.store.DeleteSnapshots("v@s3"))
	delete(l.holds, "v@s3")
	l.store.AwaitPunches()
	l.check()
	for range 4 {
		l.write("v")
		full := l.preserve("v")
		l.must(l.store.WaitSealed(t.Context(), full))
		l.must(l.store.DeleteSnapshots(full))
		delete(l.holds, full)
	}
	l.store.AwaitPunches()
	l.check()
	l.reopen()
	l.check()
}

// A reader goes on over a fold, in the live volume and in a snapshot.
func TestReadersBesideAFoldSeeWhatTheyMust(t *testing.T) {
	l := newLife(t, 0)
	l.layers(3)
	for range 6 {
		l.write("v")
		l.must(l.store.WaitSealed(t.Context(), l.preserve("v")))
	}
	stop, done := make(chan struct{}), make(chan error, 2)
	for _, name := range []string{"v", l.names(true)[len(l.names(true))-1]} {
		want := bytes.Clone(l.holds[name])
		go func() {
			w, err := l.store.OpenView(name)
			for got := make([]byte, len(want)); err == nil; {
				if _, err = w.ReadAt(got, 0); err == nil && !bytes.Equal(got, want) {
					err = fmt.Errorf("%s reads other bytes", name)
				}
				select {
				case <-stop:
					done <- errors.Join(err, w.Close())
					return
				default:
				}
			}
			done <- err
		}()
	}
	names := l.names(true)
	for _, full := range names[:len(names)-1] {
		l.must(l.store.DeleteSnapshots(full))
		delete(l.holds, full)
		l.store.AwaitPunches()
	}
	close(stop)
	l.must(<-done)
	l.must(<-done)
	l.check()
}

// A delete records what it may have made invisible, and asks for it to be punched a
// moment later: a fold may come between.
func TestWhatIsDeadInAnImageThatIsFoldedIsGivenBack(t *testing.T) {
	s := openWith(t, dataDir, store.Options{FS: vfs.NewSim(t.TempDir()), FoldAbove: 1})
	createVolume(t, s, "v")
	for i, blocks := range [][]int64{{0, 1, 2}, {0, 20, 21, 22, 23}, {1, 30, 31, 32, 33, 34, 35}} {
		w := openView(t, s, "v")
		for _, b := range blocks {
			write(t, w, b*4096, 'a')
		}
		noError(t, w.Close())
		mustSeal(t, s, fmt.Sprint("s", i), "v")
	}
	noError(t, s.DeleteSnapshots("v@s1"))
	s.AwaitPunches()
	noError(t, s.DeleteNameOf("v@s0"))
	s.FoldNow()
	if dead := s.DeadBlocks(); dead > 0 {
		t.Errorf("%d blocks that nobody sees are left", dead)
	}
	if info, err := s.Volume("v"); err != nil || info.Images != 3 {
		t.Errorf("%d images are left, %v: nothing was folded", info.Images, err)
	}
	noError(t, s.Close(t.Context()))
}

// It would count a block twice that it finds in the lower image and then in the upper.
func TestAFoldDoesNotEndBesideAVerificationThatBeganMeanwhile(t *testing.T) {
	copying := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpWrite && path.Base(op.Name) == "0000000000000002.img" })
	reading := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpRead && path.Base(op.Name) == "0000000000000001.img" })
	s := openWith(t, dataDir, store.Options{FoldAbove: 1, FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		return errors.Join(copying.hook(op), reading.hook(op))
	}}})
	createVolume(t, s, "v")
	w := openView(t, s, "v")
	for i, blocks := range []int{1, 1, 5, 1} {
		for b := range blocks {
			write(t, w, int64(i*16+b)*4096, byte('a'+i))
		}
		mustSeal(t, s, fmt.Sprint("s", i), "v")
	}
	noError(t, w.Close())
	copying.armed.Store(true)
	noError(t, s.DeleteSnapshots("v@s0", "v@s2"))
	<-copying.reached
	reading.armed.Store(true)
	verified := make(chan error, 1)
	go func() { verified <- second(s.VerifySnapshot(t.Context(), "v@s3", nil)) }()
	<-reading.reached
	close(copying.open)
	s.AwaitPunches()
	close(reading.open)
	noError(t, <-verified)
	noError(t, s.Close(t.Context()))
}

// Else blocks of images below, which the folded one covered, would not be found dead.
func TestWhatImagesCoverIsJoinedAnewAfterAFold(t *testing.T) {
	var s *store.Store
	var copying, removing []bool // what is known then
	s = openWith(t, dataDir, store.Options{FoldAbove: 2, FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		switch name := path.Base(op.Name); {
		case op.Kind == vfs.OpWriteBack && name == "0000000000000003.img" && s != nil:
			copying = append(copying, s.HasJoined())
		case op.Kind == vfs.OpRemove && name == "0000000000000002.img":
			removing = append(removing, s.HasJoined())
		}
		return nil
	}}})
	createVolume(t, s, "v")
	w := openView(t, s, "v")
	for i, blocks := range []int{6, 2, 3, 1} {
		for b := range blocks {
			write(t, w, int64(i*16+2*b)*4096, byte('a'+i))
		}
		mustSeal(t, s, fmt.Sprint("s", i), "v")
	}
	noError(t, w.Close())
	release := s.HoldPunches()
	noError(t, s.DeleteSnapshots("v@s0", "v@s1", "v@s2"))
	copying = nil
	release()
	s.AwaitPunches()
	if !slices.Equal(copying, []bool{true}) || !slices.Equal(removing, []bool{false}) {
		t.Errorf("joined at the copy: %v, and at the end of the fold: %v", copying, removing)
	}
	noError(t, s.Close(t.Context()))
}

// Folds that are done together are each other's neighbours in nothing but time.
func TestOfFoldsDoneTogetherOneThatFailsKeepsNoOtherFromItsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		fails, said string // an image, when it is read
	}{
		"none":       {"", ""},
		"the first":  {"0000000000000001.img", "image=1 into=2"},
		"the second": {"0000000000000003.img", "image=3 into=4"},
	} {
		t.Run(name, func(t *testing.T) {
			var failing atomic.Bool
			var log bytes.Buffer
			var punched atomic.Int64
			o := store.Options{FoldAbove: 2, Logger: slog.New(slog.NewTextHandler(&log, nil)),
				FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
					if op.Kind == vfs.OpPunch {
						punched.Add(1)
					}
					if failing.Load() && op.Kind == vfs.OpRead && path.Base(op.Name) == c.fails {
						return syscall.EIO
					}
					return nil
				}}}
			s := openWith(t, dataDir, o)
			createVolume(t, s, "v")
			w := openView(t, s, "v")
			for i, blocks := range []int{1, 1, 2, 1, 3, 1, 9, 1} { // alternately without a name and with one
				for b := range blocks {
					write(t, w, int64(i*16+b)*4096, byte('a'+i))
				}
				mustSeal(t, s, fmt.Sprint("s", i), "v")
			}
			noError(t, w.Close())
			release := s.HoldPunches()
			noError(t, s.DeleteSnapshots("v@s0", "v@s2", "v@s4", "v@s6"))
			failing.Store(true)
			release()
			s.AwaitPunches()
			failing.Store(false)
			if c.said == "" && log.Len() > 0 || !strings.Contains(log.String(), c.said) {
				t.Errorf("the log says %q, want %q", log.String(), c.said)
			}
			want := 7 // four snapshots', two without a name and the live one
			if c.fails != "" {
				want++
			}
			if info, err := s.Volume("v"); err != nil || info.Images != want {
				t.Errorf("%d images are left, %v; want %d", info.Images, err, want)
			}
			for last := 1; last < 8; last += 2 {
				view := openView(t, s, fmt.Sprint("v@s", last))
				for i, blocks := range []int{1, 1, 2, 1, 3, 1, 9, 1} {
					for b := range blocks {
						letter := byte(0)
						if i <= last {
							letter = byte('a' + i)
						}
						if got := read(view, int64(i*16+b)*4096, 4096); got != strings.Repeat(string(rune(letter)), 4096) {
							t.Errorf("s%d reads other bytes in block %d of s%d", last, b, i)
						}
					}
				}
				noError(t, view.Close())
			}
			noError(t, s.Close(t.Context()))
			punched.Store(0)
			s = openWith(t, dataDir, o)
			s.AwaitPunches()
			if n := punched.Load(); c.fails == "" && n > 0 {
				t.Errorf("%d punches at the next open: what the upper images are was not recorded", n)
			}
			noError(t, s.Close(t.Context()))
		})
	}
}

// Whatever a fold has done when the server dies: the next life goes on, also if it
// folds no more, and finds nothing wrong.
func TestAFoldWhoseVolumeIsDeletedMeanwhileIsNoFailure(t *testing.T) {
	var log bytes.Buffer
	copying := newStop(func(op vfs.Op) bool { return op.Kind == vfs.OpWrite && path.Ext(op.Name) == ".img" })
	s := openWith(t, dataDir, store.Options{
		FS: vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: copying.hook}, FoldAbove: 1, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if _, err := s.CreateVolume("v", 64*4096, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	w := openView(t, s, "v")
	for i := range int64(3) {
		write(t, w, 2*i*4096, 'a')
		write(t, w, (32+2*i)*4096, 'a') // two steps, and the volume is deleted between them
		if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: fmt.Sprint("s", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s.AwaitPunches()
	copying.armed.Store(true)
	for _, full := range []string{"v@s0", "v@s1"} {
		if err := s.DeleteSnapshots(full); err != nil {
			t.Fatal(err)
		}
	}
	<-copying.reached
	if err := s.DeleteVolume("v", true); err != nil {
		t.Error(err)
	}
	close(copying.open)
	s.AwaitPunches()
	closeStore(t, s)
	if log.Len() > 0 {
		t.Errorf("the log says\n%s", log.String())
	}
}

func TestACrashAnywhereInAFoldLeavesNothingWrong(t *testing.T) {
	for name, clones := range map[string]bool{"with storage that can't be shared": false, "with storage that is shared": true} {
		t.Run(name, func(t *testing.T) { cutAFoldShort(t, clones) })
	}
}

func cutAFoldShort(t *testing.T, clones bool) {
	sim := vfs.NewSim(memoryDir(t))
	sim.Clones = clones
	l := newLifeOn(t, 2, sim, "data") // which folds nothing
	var names []string
	for i, blocks := range []int{3, 3, 1, 2} { // the third is folded into the fourth, which has a name
		w, err := l.store.OpenView("v")
		l.must(err)
		for b := range blocks {
			off := (i*8 + b) * 4096
			_, err := w.WriteAt(bytes.Repeat([]byte{byte('a' + i)}, 4096), int64(off))
			l.must(err)
			copy(l.holds["v"][off:], bytes.Repeat([]byte{byte('a' + i)}, 4096))
		}
		l.must(w.Close())
		names = append(names, l.preserve("v"))
		l.must(l.store.WaitSealed(t.Context(), names[i]))
	}
	for _, full := range names[:3] {
		l.must(l.store.DeleteSnapshots(full))
		delete(l.holds, full)
	}
	l.store.AwaitPunches()
	l.must(l.store.Close(t.Context()))
	before := sim.Ops()
	l.fold = 1
	l.store = l.open(sim)
	l.store.FoldNow()
	l.store.AwaitPunches()
	if info, err := l.store.Volume("v"); err != nil || info.Images != 3 {
		t.Fatalf("%d images, %v; want 3: it has not been folded", info.Images, err)
	}
	after := sim.Ops()
	l.must(l.store.Close(t.Context()))
	step := 1
	if *crashRounds == 0 {
		step = 3
	}
	for at := before; at <= after; at += step {
		for name, disk := range map[string]*vfs.Sim{"a kill": sim.KillAt(at, nil), "a power cut": sim.PowerCut(at, nil)} {
			next := &lives{t: t, dir: l.dir, fs: disk, holds: l.holds, rng: l.rng, did: []string{fmt.Sprintf("%s at operation %d", name, at)}, fold: -1}
			next.store = next.open(disk)
			next.store.AwaitPunches()
			next.check()
			next.reopen()
			next.check()
			next.must(next.store.Close(t.Context()))
		}
	}
}

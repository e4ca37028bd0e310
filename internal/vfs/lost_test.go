package vfs_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
)

const pageBytes = 4096

// lossy is a file "f" of 4 durable pages of 'a' with two written 'b' since, the
// first and the last, whose next sync fails.
func lossy(t *testing.T, lost vfs.LostError) (*vfs.Sim, vfs.File) {
	sim := vfs.NewSim(t.TempDir())
	failing := false
	f, err := vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
		if failing && op.Kind == vfs.OpSync {
			failing = false
			return lost
		}
		return nil
	}}.Open("f", os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	must(t, second(f.WriteAt([]byte(strings.Repeat("a", 4*pageBytes)), 0)))
	must(t, f.Sync())
	must(t, sim.SyncDir("/"))
	for _, page := range []int64{0, 3} {
		must(t, second(f.WriteAt([]byte(strings.Repeat("b", pageBytes)), page*pageBytes)))
	}
	failing = true
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the sync: %v, want %v", err, syscall.EIO)
	}
	return sim, f
}

// pagesOf names the pages of a content by their first bytes.
func pagesOf(s string) string {
	var is strings.Builder
	for i := 0; i < len(s); i += pageBytes {
		is.WriteByte(s[i])
	}
	return is.String()
}

func TestFaultThatLosesWritesKeepsThemFromTheDiskForEver(t *testing.T) {
	sim, f := lossy(t, vfs.LostError{Err: syscall.EIO})
	if got := pagesOf(readFile(t, sim, "f")); got != "baab" {
		t.Errorf("after the failed sync it reads %s, want what was written: the page cache has it still", got)
	}
	must(t, second(f.WriteAt([]byte(strings.Repeat("c", pageBytes)), 1*pageBytes)))
	must(t, f.Sync()) // proves nothing of the others
	if got := pagesOf(readFile(t, sim.PowerCut(sim.Ops(), rand.New(rand.NewPCG(1, 1))), "f")); got != "acaa" {
		t.Errorf("after a power cut it reads %s, want acaa", got)
	}
	next := sim.Kill()
	if got := pagesOf(readFile(t, next, "f")); got != "bcab" {
		t.Errorf("after a kill it reads %s, want bcab: the page cache outlives it", got)
	}
	if got := pagesOf(readFile(t, next.KillAt(next.Ops(), nil), "f")); got != "bcab" {
		t.Errorf("after a kill at an operation it reads %s, want bcab", got)
	}
	g, err := next.Open("f", os.O_RDWR, 0)
	must(t, err)
	must(t, g.DropCache())
	if got := pagesOf(readFile(t, next, "f")); got != "acaa" {
		t.Errorf("without the page cache it reads %s, want acaa", got)
	}
	if got := pagesOf(readFile(t, next.KillAt(next.Ops(), nil), "f")); got != "acaa" {
		t.Errorf("without the page cache, after another kill, it reads %s, want acaa", got)
	}
}

func TestFaultThatEvictsLostWritesShowsTheDiskAtOnce(t *testing.T) {
	sim, _ := lossy(t, vfs.LostError{Err: syscall.EIO, Evict: true})
	if got := pagesOf(readFile(t, sim, "f")); got != "aaaa" {
		t.Errorf("after the failed sync it reads %s, want aaaa", got)
	}
}

func TestFaultThatLosesWritesMayLoseSomeOfThem(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(200) {
		sim, _ := lossy(t, vfs.LostError{Err: syscall.EIO, Rand: rand.New(rand.NewPCG(seed, 0))})
		seen[pagesOf(readFile(t, sim.PowerCut(sim.Ops(), nil), "f"))] = true
	}
	for _, want := range []string{"aaaa", "baaa", "aaab", "baab"} {
		if !seen[want] {
			t.Errorf("never seen: %s", want)
		}
		delete(seen, want)
	}
	if len(seen) > 0 {
		t.Errorf("seen too: %v", seen)
	}
}

func TestDropCacheLosesNothing(t *testing.T) {
	everyFS(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "f")
		f, err := fsys.Open(name, os.O_CREATE|os.O_RDWR, 0o600)
		must(t, err)
		must(t, second(f.WriteAt([]byte("synced"), 0)))
		must(t, f.Sync())
		must(t, second(f.WriteAt([]byte("written"), 10000)))
		must(t, f.DropCache())
		if got := readFile(t, fsys, name); got != "synced"+strings.Repeat("\x00", 9994)+"written" {
			t.Errorf("it reads %q", got)
		}
		must(t, f.Close())
	})
}

func TestAllocateReservesBeyondTheEndAndKeepsTheLength(t *testing.T) {
	f, err := vfs.OS{}.Open(filepath.Join(t.TempDir(), "f"), os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	must(t, second(f.WriteAt([]byte("x"), 0)))
	must(t, f.Allocate(0, 1<<20))
	if n, err := f.Allocated(); n < 1<<20 || err != nil {
		t.Errorf("allocated are %d, %v; want %d", n, err, 1<<20)
	}
	if n, err := f.Size(); n != 1 || err != nil {
		t.Errorf("its length is %d, %v; want 1", n, err)
	}
	must(t, f.Close())
}

func TestFreeSaysHowMuchIsLeft(t *testing.T) {
	dir := t.TempDir()
	if n, err := (vfs.OS{}).Free(dir); n <= 0 || n > math.MaxInt64/2 || err != nil {
		t.Errorf("free are %d bytes, %v", n, err)
	}
	if _, err := (vfs.OS{}).Free(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a file that is not there: %v", err)
	}
	free, err := vfs.OS{}.Free(dir)
	must(t, err)
	if n, err := (vfs.OS{}).Total(dir); n < free || n > math.MaxInt64/2 || err != nil {
		t.Errorf("%d bytes in all, %v, of which %d are free", n, err, free)
	}
	if _, err := (vfs.OS{}).Total(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in all of a file that is not there: %v", err)
	}
}

func TestAQuotaHasRoomForItsBudgetOnly(t *testing.T) {
	q := vfs.NewQuota(vfs.NewSim(t.TempDir()), 4*pageBytes)
	open := func(name string, flag int) vfs.File {
		t.Helper()
		f, err := q.Open(name, flag|os.O_CREATE|os.O_RDWR, 0o600)
		must(t, err)
		return f
	}
	left := func(want int64) {
		t.Helper()
		if n, err := q.Free("/"); n != want*pageBytes || err != nil {
			t.Errorf("%d bytes are free, %v; want %d pages", n, err, want)
		}
		if n, err := q.Total("/"); n < want*pageBytes || n > 4*pageBytes || err != nil {
			t.Errorf("%d bytes in all, %v", n, err)
		}
	}
	f := open("f", 0)
	must(t, second(f.WriteAt(make([]byte, 2), pageBytes-1))) // two pages
	must(t, second(f.WriteAt(make([]byte, 2*pageBytes), 0))) // the same
	left(2)
	n, err := f.WriteAt(make([]byte, 4*pageBytes), 512)
	if n != 4*pageBytes-512 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write beyond the budget wrote %d, %v; want what fits", n, err)
	}
	if err := f.Allocate(0, 5*pageBytes); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("to reserve more: %v", err)
	}
	if err := open("g", 0).Zero(0, 1); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("to zero another file: %v", err)
	}
	left(0)
	must(t, f.Punch(0, pageBytes))
	left(1)
	must(t, f.Truncate(2*pageBytes))
	left(3)
	must(t, second(open("g", 0).WriteAt([]byte("g"), 0)))
	left(2)
	must(t, q.Rename("g", "f")) // f's one page goes
	left(3)
	open("f", os.O_TRUNC)
	left(4)
	must(t, second(open("f", 0).WriteAt([]byte("f"), 0)))
	must(t, q.Remove("f"))
	left(4)
	q.SetFree(0)
	left(0)
}

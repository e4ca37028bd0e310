package store_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// Two ways of a file system to say what a file takes up: its blocks (exact on
// tmpfs; others count their own lists of extents too), and where it has data.
var counts = []struct {
	name  string
	dir   func(*testing.T) string
	count func(*testing.T, vfs.File) int64
}{
	{"allocated", func(t *testing.T) string { return memoryDir(t) }, func(t *testing.T, f vfs.File) int64 {
		n, err := f.Allocated()
		noError(t, err)
		return n
	}},
	{"data", (*testing.T).TempDir, func(t *testing.T, f vfs.File) (n int64) {
		for at := int64(0); ; {
			start, end, err := f.Data(at)
			if errors.Is(err, io.EOF) {
				return n
			}
			noError(t, err)
			n, at = n+end-start, end
		}
	}},
}

// takenUp is what the files of a directory take up.
func takenUp(t *testing.T, pattern string, count func(*testing.T, vfs.File) int64) (n int64) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	noError(t, err)
	for _, name := range names {
		f, err := vfs.OS{}.Open(name, os.O_RDWR, 0)
		noError(t, err)
		n += count(t, f)
		noError(t, f.Close())
	}
	return n
}

// all are the blocks that at least one of some views shows, and those that no other
// view does.
func all(shown map[string]map[store.Place]bool, in func(name string) bool) (stored, unique int64) {
	mine, others := map[store.Place]bool{}, map[store.Place]bool{}
	for name, places := range shown {
		if in(name) {
			maps.Copy(mine, places)
		} else {
			maps.Copy(others, places)
		}
	}
	for p := range mine {
		stored += 4096
		if !others[p] {
			unique += 4096
		}
	}
	return stored, unique
}

// checkSizes holds what the store measures against a count block by block.
func (l *lives) checkSizes() {
	l.t.Helper()
	shown, _ := l.store.Shown(lifeBlocks)
	same := func(what string, got store.Sizes, in func(string) bool) {
		l.t.Helper()
		stored, unique := all(shown, in)
		if got.StoredBytes != stored || got.UniqueBytes != unique || got.SharedBytes() != stored-unique {
			l.t.Fatalf("%s: %+v, want %d stored, %d unique\n%s", what, got, stored, unique, strings.Join(l.did, "\n"))
		}
	}
	for _, v := range l.names(false) {
		sizes, err := l.store.Sizes(v)
		l.must(err)
		same(v, sizes.Live, func(name string) bool { return name == v })
		same(v+" with snapshots", sizes.All, func(name string) bool { return name == v || strings.HasPrefix(name, v+"@") })
		for name, got := range sizes.Snapshots {
			same(name, got, func(other string) bool { return other == v+"@"+name })
			if _, there := l.holds[v+"@"+name]; !there || got.LogicalBytes != lifeBlocks*4096 {
				l.t.Fatalf("%s@%s: %+v; there: %v", v, name, got, there)
			}
		}
	}
	var some []string
	for _, snap := range l.names(true) {
		if l.rng.IntN(2) == 0 {
			some = append(some, snap)
		}
	}
	together, err := l.store.SizesTogether(some...)
	l.must(err)
	same(fmt.Sprint(some), together, func(name string) bool { return slices.Contains(some, name) })
}

func TestSizesAddUpToWhatTheFileSystemCounts(t *testing.T) {
	for i, c := range counts {
		for seed := range uint64(*lifeSeeds) / uint64(1+2*i) { // disks are slower than memory
			t.Run(fmt.Sprintf("%s/%d", c.name, seed), func(t *testing.T) {
				l := newLifeOn(t, seed, vfs.OS{}, filepath.Join(c.dir(t), "data"))
				files := filepath.Join(l.dir, "images", "*.img*")
				// rest waits until nothing is left to give back, and returns what the images take.
				rest := func() int64 {
					l.store.AwaitPunches()
					l.store.Reclaim()
					l.store.AwaitPunches()
					l.checkSizes()
					shown, held := l.store.Shown(lifeBlocks)
					seen, _ := all(shown, func(string) bool { return true })
					disk := takenUp(t, files, c.count)
					if seen != disk || int64(len(held))*4096 != disk {
						t.Fatalf("%d bytes are seen and %d held, and the file system counts %d\n%s", seen, len(held)*4096, disk, strings.Join(l.did, "\n"))
					}
					return disk
				}
				for range 8 {
					for range 10 {
						l.step()
						l.checkSizes()
					}
					before, snaps := rest(), l.names(true)
					if len(snaps) == 0 {
						continue
					}
					some := snaps[:1+l.rng.IntN(len(snaps))]
					sizes, err := l.store.SizesTogether(some...)
					l.must(err)
					together := l.rng.IntN(2) == 0
					if l.log("delete %s, together %v", some, together); together {
						l.must(l.store.DeleteSnapshots(some...))
					}
					for _, snap := range some {
						if !together {
							l.must(l.store.DeleteSnapshots(snap))
						}
						delete(l.holds, snap)
					}
					if drop := before - rest(); drop != sizes.UniqueBytes {
						t.Fatalf("the delete of %v gave %d bytes back, and %d are unique\n%s", some, drop, sizes.UniqueBytes, strings.Join(l.did, "\n"))
					}
					if l.rng.IntN(3) == 0 {
						l.reopen()
					}
				}
			})
		}
	}
}

func TestAVolumeOf16TiBTakesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := openWith(t, dir, store.Options{})
	allocated := counts[0].count
	records := func() int64 {
		return takenUp(t, filepath.Join(dir, "*.db"), allocated) + takenUp(t, filepath.Join(dir, "volumes", "*", "*"), allocated)
	}
	before := records()
	_, err := s.CreateVolume("small", 4096, volume.ScopeRequest)
	noError(t, err)
	small := records() - before
	v, err := s.CreateVolume("v", 16<<40, volume.ScopeRequest)
	noError(t, err)
	if n := takenUp(t, filepath.Join(dir, "images", "*"), allocated); n != 0 || v.AllocatedBytes != 0 {
		t.Errorf("its images take %d bytes, and it says %d; want none", n, v.AllocatedBytes)
	}
	if large := records() - before - small; large > small+64<<10 {
		t.Errorf("its records take %d bytes, and those of a volume of 4 KiB take %d", large, small)
	}
	sizes, err := s.Sizes("v")
	noError(t, err)
	if want := (store.Sizes{LogicalBytes: 16 << 40}); sizes.Live != want || sizes.All != want || sizes.UnseenBytes != 0 {
		t.Errorf("%+v", sizes)
	}
}

func TestSizesOfWhatIsNotThere(t *testing.T) {
	l := newLife(t, 1)
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"an unknown volume", second(l.store.Sizes("none")), store.ErrNotFound},
		{"an unknown snapshot", second(l.store.SizesTogether("v@none")), store.ErrNotFound},
		{"a volume as a snapshot", second(l.store.SizesTogether("v")), store.ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
}

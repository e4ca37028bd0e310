package vfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
)

// Every state that a cut leaves is one that the model allows: each sector is as
// it was at the last sync that was done, or after one of the operations since.
func TestACutLeavesOnlyLegalContents(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 6))
		sim := vfs.NewSim(t.TempDir())
		f, err := sim.Open("f", os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		must(t, sim.SyncDir("/"))
		var now []byte
		history := map[int][]byte{sim.Ops(): nil} // by number of operations
		covered := map[int]int{sim.Ops(): sim.Ops()}
		sim.DuringSync = func(string) { // a write that runs beside a sync
			off := rng.Int64N(8000)
			p := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, 700)
			must(t, fileOp("write").apply(f, off, p))
			now = fileOp("write").applyToBytes(now, off, p)
			history[sim.Ops()] = now
		}
		first := sim.Ops()
		for range 40 {
			if rng.IntN(6) == 0 {
				began := sim.Ops()
				must(t, f.Sync())
				covered[sim.Ops()] = began
				continue
			}
			op, off, p := randomOp(rng, 8000)
			must(t, op.apply(f, off, p))
			now = op.applyToBytes(now, off, p)
			history[sim.Ops()] = now
		}
		var from int
		for at := first; at <= sim.Ops(); at++ {
			if began, ok := covered[at]; ok {
				from = began
			}
			legal := statesBetween(history, from, at)
			for range 20 {
				after := sim.PowerCut(at, rng)
				wantLegal(t, []byte(readFile(t, after, "f")), legal)
				wantZerosWhenGrown(t, after, "f")
			}
			if got := []byte(readFile(t, sim.PowerCut(at, nil), "f")); !bytes.Equal(got, legal[0]) {
				t.Fatalf("a cut that loses all it may left something else than was synced")
			}
		}
	}
}

// statesBetween returns the contents after operation from, and after each later
// one up to at.
func statesBetween(history map[int][]byte, from, at int) (states [][]byte) {
	var last []byte
	for _, n := range slices.Sorted(maps.Keys(history)) {
		switch {
		case n <= from:
			last = history[n]
		case n <= at:
			states = append(states, history[n])
		}
	}
	return append([][]byte{last}, states...)
}

func wantLegal(t *testing.T, got []byte, legal [][]byte) {
	t.Helper()
	longest := 0
	for _, state := range legal {
		longest = max(longest, len(state))
	}
	if len(got) > longest {
		t.Fatalf("%d bytes, no state had more than %d", len(got), longest)
	}
	const sector = 512
	for off := 0; off < len(got); off += sector {
		end := min(off+sector, len(got))
		ok := slices.ContainsFunc(legal, func(state []byte) bool {
			padded := make([]byte, sector)
			if off < len(state) {
				copy(padded, state[off:min(off+sector, len(state))])
			}
			return bytes.Equal(got[off:end], padded[:end-off])
		})
		if !ok {
			t.Fatalf("sector at %d is as it never was", off)
		}
	}
}

// wantZerosWhenGrown wants nothing to come up from behind the end of a file.
func wantZerosWhenGrown(t *testing.T, fsys vfs.FS, name string) {
	t.Helper()
	f, err := fsys.Open(name, os.O_RDWR, 0)
	must(t, err)
	size, err := f.Size()
	must(t, err)
	must(t, f.Truncate(size+4096))
	p := make([]byte, 4096)
	must(t, second(f.ReadAt(p, size)))
	if !bytes.Equal(p, make([]byte, 4096)) {
		t.Fatalf("a file of %d bytes that grows has old bytes behind its end", size)
	}
	must(t, f.Close())
}

// The simulation is worth nothing if it is kind: each of these must come up.
func TestACutFindsEveryKindOfLoss(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	f, err := sim.Open("f", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	fill := func(b byte, off, length int64) {
		must(t, second(f.WriteAt(bytes.Repeat([]byte{b}, int(length)), off)))
	}
	fill('0', 0, 8192)
	must(t, f.Sync())
	must(t, sim.SyncDir("/"))
	fill('a', 0, 1024)
	fill('b', 1024, 1024)
	fill('c', 0, 512)
	must(t, f.Punch(4096, 4096))
	fill('d', 8192, 1024)
	rng := rand.New(rand.NewPCG(7, 7))
	seen := map[string]bool{}
	for range 2000 {
		got := readFile(t, sim.PowerCut(sim.Ops(), rng), "f")
		a, b := got[512] == 'a', got[1024] == 'b'
		first := got[0]
		for what, is := range map[string]bool{
			"nothing unsynced is there":            got == strings.Repeat("0", 8192),
			"all is there":                         first == 'c' && a && b && got[1536] == 'b' && got[4096] == 0 && got[8192:] == strings.Repeat("d", 1024),
			"a later write without an earlier one": b && !a && first == '0',
			"an earlier write without a later one": a && !b,
			"a write torn within":                  b != (got[1536] == 'b'),
			"an overwritten sector as it was":      first == 'a',
			"a punch that is not there":            got[4096] == '0' && got[8191] == '0',
			"growth without data":                  len(got) == 9216 && got[8192] == 0 && got[8704] == 0,
			"growth for the first half only":       len(got) == 8704,
		} {
			seen[what] = seen[what] || is
		}
	}
	for what, is := range seen {
		if !is {
			t.Errorf("never seen: %s", what)
		}
	}
	if again := sim.PowerCut(0, rng); readDirString(t, again, "/") != "" {
		t.Error("a cut before all operations left a file")
	}
}

func TestNamesAreLostInOrder(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	must(t, sim.MkdirAll("d/e", 0o700))
	must(t, sim.SyncDir("/"))
	must(t, sim.SyncDir("d"))
	writeFile(t, sim, "d/kept", "")
	must(t, sim.SyncDir("d"))
	synced := sim.Ops()
	create(t, sim, "d/a", "a") // and synced
	create(t, sim, "d/b", "b")
	must(t, sim.Rename("d/a", "d/c"))
	must(t, sim.Remove("d/b"))
	create(t, sim, "d/e/in another directory", "x")
	end := sim.Ops()
	must(t, sim.SyncDir("d"))

	legal := []string{"e kept", "a e kept", "a b e kept", "b c e kept", "c e kept"}
	rng := rand.New(rand.NewPCG(8, 8))
	seen, seenBelow := map[string]bool{}, map[string]bool{}
	for range 300 {
		for at := synced; at <= end; at++ {
			after := sim.PowerCut(at, rng)
			names := readDirString(t, after, "d")
			if !slices.Contains(legal, names) {
				t.Fatalf("cut at %d left %q", at, names)
			}
			seen[names] = true
			seenBelow[fmt.Sprint(names == legal[4], readDirString(t, after, "d/e"))] = true
			for _, name := range []string{"a", "c"} {
				if strings.Contains(names, name) && readFile(t, after, path.Join("d", name)) == "" && at == end {
					t.Fatalf("%s lost what was synced", name)
				}
			}
		}
	}
	if len(seen) != len(legal) || len(seenBelow) != 4 {
		t.Errorf("seen only %v and %v", seen, seenBelow)
	}
	if got := readDirString(t, sim.PowerCut(sim.Ops(), nil), "d"); got != "c e kept" {
		t.Errorf("after SyncDir a cut left %q", got)
	}
	if got := readDirString(t, sim.PowerCut(sim.Ops(), nil), "d/e"); got != "" {
		t.Errorf("a SyncDir of the parent kept %q", got)
	}
	if got := readDirString(t, sim.PowerCut(sim.Ops()-1, nil), "d"); got != "e kept" {
		t.Errorf("a SyncDir that had not returned kept %q", got)
	}
}

func TestARenameBringsOnlyWhatWasSynced(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	create(t, sim, "new", "synced")
	f, err := sim.Open("new", os.O_RDWR, 0)
	must(t, err)
	must(t, second(f.WriteAt([]byte("UNSYNCED"), 0)))
	must(t, sim.Rename("new", "name"))
	must(t, sim.SyncDir("/"))
	wantFile(t, sim, "name", "UNSYNCED")
	wantFile(t, sim.PowerCut(sim.Ops(), nil), "name", "synced")
}

func TestAKillLosesNothingAndStopsTheDead(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	f, err := sim.Open("f", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	must(t, second(f.WriteAt([]byte("unsynced"), 0)))
	_, err = sim.Lock("lock")
	must(t, err)
	next := sim.Kill()

	for what, err := range map[string]error{
		"write": second(f.WriteAt([]byte("x"), 0)), "read": second(f.ReadAt(make([]byte, 1), 0)), "sync": f.Sync(),
		"open": second(sim.Open("f", os.O_RDWR, 0)), "remove": sim.Remove("f"), "syncdir": sim.SyncDir("/"),
	} {
		if !errors.Is(err, vfs.ErrKilled) {
			t.Errorf("%s of the dead: %v, want ErrKilled", what, err)
		}
	}
	wantFile(t, next, "f", "unsynced")
	must(t, second(next.Lock("lock")))
	boot, err := next.BootID()
	must(t, err)
	afterCut := next.PowerCut(next.Ops(), nil)
	wantNames(t, afterCut, "/")
	if otherBoot, err := afterCut.BootID(); otherBoot == boot || err != nil {
		t.Errorf("boot id %q after a power cut, %v, and %q before", otherBoot, err, boot)
	}
	must(t, next.SyncDir("/"))
	wantFile(t, next.PowerCut(next.Ops(), nil), "f", "") // the kill synced nothing
}

func TestAnExternalFileIsAtOneOfItsVersions(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	osPath, committed, err := sim.External("db")
	must(t, err)
	wantNames(t, sim, "/")
	put := func(content string) {
		must(t, committed())
		must(t, os.WriteFile(osPath, []byte(content), 0o600))
		must(t, committed())
	}
	put("v1")
	must(t, sim.SyncDir("/"))
	one := sim.Ops()
	put("v2")
	two := sim.Ops()
	put("v3")

	rng := rand.New(rand.NewPCG(9, 9))
	for _, c := range []struct {
		at   int
		want []string
	}{
		{one, []string{"v1"}}, {one + 1, []string{"v1", "v2"}}, {two, []string{"v2"}},
		{two + 1, []string{"v2", "v3"}}, {sim.Ops(), []string{"v3"}},
	} {
		seen := map[string]bool{}
		for range 30 {
			after := sim.PowerCut(c.at, rng)
			p, _, err := after.External("db")
			must(t, err)
			content, err := os.ReadFile(p)
			must(t, err)
			seen[string(content)] = true
		}
		if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, c.want) {
			t.Errorf("cut at %d of %d: versions %v, want %v", c.at, sim.Ops(), got, c.want)
		}
	}

	next := sim.Kill()
	if err := committed(); !errors.Is(err, vfs.ErrKilled) {
		t.Errorf("commit of the dead: %v, want ErrKilled", err)
	}
	must(t, os.WriteFile(osPath, []byte("the dead writes on"), 0o600))
	p, _, err := next.External("db")
	must(t, err)
	if content, err := os.ReadFile(p); string(content) != "v3" || err != nil {
		t.Errorf("after a kill: %q, %v", content, err)
	}
	if n, err := next.Size("db"); n != 2 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
}

func TestAnExternalFileNeedsItsDirectorySynced(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	osPath, committed, err := sim.External("db")
	must(t, err)
	must(t, sim.SyncDir("/")) // too early: there is no file yet
	must(t, os.WriteFile(osPath, []byte("v1"), 0o600))
	must(t, committed())
	wantNames(t, sim.PowerCut(sim.Ops(), nil), "/")
	must(t, sim.SyncDir("/"))
	wantNames(t, sim.PowerCut(sim.Ops(), nil), "/", "db")
}

func TestWhatFollowsACutDoesNotChangeTheDiskItCameFrom(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	create(t, sim, "f", "old")
	must(t, sim.SyncDir("/"))
	one, two := sim.PowerCut(sim.Ops(), nil), sim.PowerCut(sim.Ops(), nil)
	create(t, one, "f", "one")
	writeFile(t, two, "f", "two")
	wantFile(t, sim, "f", "old")
	wantFile(t, one, "f", "one")
	wantFile(t, two, "f", "two")
	wantFile(t, one.PowerCut(0, nil), "f", "old")
	wantFile(t, one.PowerCut(one.Ops(), nil), "f", "one")
	wantFile(t, two.PowerCut(two.Ops(), nil), "f", "old")
}

func TestCutsFollowOnCuts(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 10))
	sim := vfs.NewSim(t.TempDir())
	var want string
	for i := range 50 {
		next := fmt.Sprintf("content %d", i)
		must(t, vfs.Replace(sim, "f", writeString(next)))
		sim = sim.PowerCut(sim.Ops()-rng.IntN(3), rng)
		if i > 0 {
			got := readFile(t, sim, "f")
			if got != want && got != next {
				t.Fatalf("round %d: %q, want %q or %q", i, got, want, next)
			}
			want = got
		} else {
			must(t, vfs.Replace(sim, "f", writeString(next)))
			want = next
		}
	}
}

func BenchmarkPowerCut(b *testing.B) {
	sim := vfs.NewSim(b.TempDir())
	f, err := sim.Open("f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(11, 11))
	p := make([]byte, 4096)
	for i := range 5000 { // over 4 MiB
		if _, err := f.WriteAt(p, rng.Int64N(1024)*4096); err != nil {
			b.Fatal(err)
		}
		if i%20 == 0 {
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		sim.PowerCut(sim.Ops(), rng)
	}
}

// create makes a file and syncs it, but not its directory.
func create(t *testing.T, fsys vfs.FS, name, content string) {
	t.Helper()
	f, err := fsys.Open(name, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	must(t, second(f.WriteAt([]byte(content), 0)))
	must(t, f.Sync())
	must(t, f.Close())
}

func readDirString(t *testing.T, fsys vfs.FS, dir string) string {
	t.Helper()
	names, err := fsys.ReadDir(dir)
	must(t, err)
	return strings.Join(names, " ")
}

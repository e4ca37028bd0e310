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

// What may be seen after a power cut, of small programs: all of it comes up, and
// nothing else.
func TestWhatMayBeSeenAfterAPowerCut(t *testing.T) {
	for _, c := range []struct {
		what string
		do   func(d *smallDisk)
		want []string
	}{
		{"a file that was synced and its name not", func(d *smallDisk) {
			d.put("f", "x")
			d.sync("f")
		}, []string{"", "f=x"}},
		{"a name that was synced and its file not", func(d *smallDisk) {
			d.put("f", "xx")
			d.syncDir()
		}, []string{"f=", "f=00", "f=0x", "f=x", "f=x0", "f=xx"}},
		{"a name that was synced before the file was", func(d *smallDisk) {
			d.put("f", "x")
			d.syncDir()
			d.sync("f")
		}, []string{"f=x"}},
		{"neither synced", func(d *smallDisk) {
			d.put("f", "x")
		}, []string{"", "f=", "f=0", "f=x"}},
		{"two sectors of one write", func(d *smallDisk) {
			d.durable("f", "ab")
			d.write("f", 0, "xy")
		}, []string{"f=ab", "f=ay", "f=xb", "f=xy"}},
		{"two writes of a sector", func(d *smallDisk) {
			d.durable("f", "a")
			d.write("f", 0, "x")
			d.write("f", 0, "y")
		}, []string{"f=a", "f=x", "f=y"}},
		{"a write after another was synced", func(d *smallDisk) {
			d.durable("f", "ab")
			d.write("f", 0, "x")
			d.sync("f")
			d.write("f", 1, "y")
		}, []string{"f=xb", "f=xy"}},
		{"a sync of another file", func(d *smallDisk) {
			d.durable("f", "a")
			d.durable("g", "a")
			d.write("f", 0, "x")
			d.write("g", 0, "y")
			d.sync("g")
		}, []string{"f=a g=y", "f=x g=y"}},
		{"growth by a write: the length, the data, both or none", func(d *smallDisk) {
			d.durable("f", "a")
			d.write("f", 2, "x")
		}, []string{"f=a", "f=a00", "f=a0x"}},
		{"growth by two writes, out of order", func(d *smallDisk) {
			d.durable("f", "")
			d.write("f", 0, "x")
			d.write("f", 1, "y")
		}, []string{"f=", "f=0", "f=00", "f=0y", "f=x", "f=x0", "f=xy"}},
		{"a shorter file", func(d *smallDisk) {
			d.durable("f", "ab")
			d.truncate("f", 1)
		}, []string{"f=a", "f=ab"}},
		{"a file emptied and written anew", func(d *smallDisk) {
			d.durable("f", "ab")
			d.truncate("f", 0)
			d.write("f", 0, "x")
		}, []string{"f=", "f=0", "f=ab", "f=x", "f=xb"}},
		{"holes, page by page", func(d *smallDisk) {
			d.durable("f", strings.Repeat("a", 16))
			d.punch("f", 0, 16)
		}, []string{
			"f=" + strings.Repeat("0", 16), "f=" + strings.Repeat("0", 8) + strings.Repeat("a", 8),
			"f=" + strings.Repeat("a", 8) + strings.Repeat("0", 8), "f=" + strings.Repeat("a", 16),
		}},
		{"zeros behind the end", func(d *smallDisk) {
			d.durable("f", "ab")
			d.zero("f", 1, 2)
		}, []string{"f=a0", "f=a00", "f=ab", "f=ab0"}},
		{"storage set aside", func(d *smallDisk) {
			d.durable("f", "a")
			d.allocate("f", 0, 2)
		}, []string{"f=a"}},
		{"new names, each by itself", func(d *smallDisk) {
			d.put("f", "")
			d.put("g", "")
		}, []string{"", "f=", "f= g=", "g="}},
		{"names removed, each by itself", func(d *smallDisk) {
			d.durable("f", "")
			d.durable("g", "")
			d.remove("f")
			d.remove("g")
		}, []string{"", "f=", "f= g=", "g="}},
		{"a name removed and made again", func(d *smallDisk) {
			d.durable("f", "a")
			d.remove("f")
			d.put("f", "b")
			d.sync("f")
		}, []string{"", "f=a", "f=b"}},
		{"a rename of what was synced", func(d *smallDisk) {
			d.durable("f", "a")
			d.durable("g", "b")
			d.rename("g", "f")
		}, []string{"f=a g=b", "f=b"}},
		{"a rename of what was not synced", func(d *smallDisk) {
			d.durable("f", "a")
			d.put("g", "b")
			d.rename("g", "f")
			d.syncDir()
		}, []string{"f=", "f=0", "f=b"}},
		{"a rename before its sync", func(d *smallDisk) {
			d.durable("f", "a")
			d.put("g", "b")
			d.syncDir()
			d.rename("g", "f")
			d.sync("f")
		}, []string{"f=a g=b", "f=b"}},
		{"a write through a handle, after the rename of its file", func(d *smallDisk) {
			d.durable("g", "a")
			f := d.open("g")
			d.rename("g", "f")
			d.syncDir()
			d.must(second(f.WriteAt(sectors("x"), 0)))
		}, []string{"f=a", "f=x"}},
		{"a directory and a name in it", func(d *smallDisk) {
			d.must(d.MkdirAll("d", 0o700))
			d.put("d/f", "")
			d.syncDirOf("d")
		}, []string{"", "d/ d/f="}},
		{"a name in a directory that was synced", func(d *smallDisk) {
			d.must(d.MkdirAll("d", 0o700))
			d.put("d/f", "")
			d.syncDir()
		}, []string{"d/", "d/ d/f="}},
		{"what is written beside a sync", func(d *smallDisk) {
			d.durable("f", "a")
			d.write("f", 0, "x")
			d.DuringSync = func(string) { d.write("f", 0, "y") }
			d.sync("f")
			d.DuringSync = nil
		}, []string{"f=x", "f=y"}},
		{"what is read and written back", func(d *smallDisk) {
			d.durable("f", "a")
			d.write("f", 0, "x")
			d.must(d.open("f").WriteBack(0, 512))
			d.must(d.open("f").Close())
		}, []string{"f=a", "f=x"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			d := &smallDisk{t: t, Sim: vfs.NewSim(t.TempDir())}
			c.do(d)
			rng := rand.New(rand.NewPCG(13, 13))
			seen := map[string]bool{}
			for range 1500 {
				seen[describe(t, d.PowerCut(d.Ops(), rng), "")] = true
			}
			if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, c.want) {
				t.Errorf("seen %q\nwant %q", got, c.want)
			}
			if got := describe(t, d.PowerCut(d.Ops(), nil), ""); !slices.Contains(c.want, got) {
				t.Errorf("a cut that keeps nothing left %q", got)
			}
			all := describe(t, d.Sim, "")
			if got := describe(t, d.KillAt(d.Ops(), rng), ""); got != all {
				t.Errorf("a kill left %q, want %q", got, all)
			}
		})
	}
}

// smallDisk is a Sim for programs of a few operations on files in which each
// sector holds one letter.
type smallDisk struct {
	*vfs.Sim
	t *testing.T
}

func (d *smallDisk) must(err error) {
	d.t.Helper()
	must(d.t, err)
}

func (d *smallDisk) open(name string) vfs.File {
	d.t.Helper()
	f, err := d.Open(name, os.O_RDWR|os.O_CREATE, 0o600)
	must(d.t, err)
	return f
}

func (d *smallDisk) put(name, letters string) { d.write(name, 0, letters) }

func (d *smallDisk) durable(name, letters string) {
	d.t.Helper()
	d.put(name, letters)
	d.sync(name)
	d.syncDir()
}

func (d *smallDisk) write(name string, at int64, letters string) {
	d.t.Helper()
	d.must(second(d.open(name).WriteAt(sectors(letters), 512*at)))
}

func (d *smallDisk) sync(name string)       { d.t.Helper(); d.must(d.open(name).Sync()) }
func (d *smallDisk) syncDir()               { d.t.Helper(); d.must(d.SyncDir("/")) }
func (d *smallDisk) syncDirOf(name string)  { d.t.Helper(); d.must(d.SyncDir(name)) }
func (d *smallDisk) remove(name string)     { d.t.Helper(); d.must(d.Remove(name)) }
func (d *smallDisk) rename(from, to string) { d.t.Helper(); d.must(d.Rename(from, to)) }

func (d *smallDisk) truncate(name string, n int64) {
	d.t.Helper()
	d.must(d.open(name).Truncate(512 * n))
}

func (d *smallDisk) punch(name string, at, n int64) {
	d.t.Helper()
	d.must(d.open(name).Punch(512*at, 512*n))
}

func (d *smallDisk) zero(name string, at, n int64) {
	d.t.Helper()
	d.must(d.open(name).Zero(512*at, 512*n))
}

func (d *smallDisk) allocate(name string, at, n int64) {
	d.t.Helper()
	d.must(d.open(name).Allocate(512*at, 512*n))
}

func sectors(letters string) []byte {
	var b []byte
	for _, letter := range []byte(letters) {
		b = append(b, bytes.Repeat([]byte{letter}, 512)...)
	}
	return b
}

// describe lists the files below a directory with a letter for each sector; 0
// for one of zeros.
func describe(t *testing.T, fsys vfs.FS, dir string) string {
	t.Helper()
	names, err := fsys.ReadDir(dir)
	must(t, err)
	var list []string
	for _, name := range names {
		name = path.Join(dir, name)
		if _, err := fsys.ReadDir(name); err == nil {
			list = append(list, strings.TrimSpace(name+"/ "+describe(t, fsys, name)))
			continue
		}
		letters := []byte{}
		for i, content := 0, readFile(t, fsys, name); i < len(content); i += 512 {
			if content[i:i+512] != strings.Repeat(content[i:i+1], 512) {
				t.Fatalf("sector %d of %s is torn", i/512, name)
			}
			letters = append(letters, max(content[i], '0'))
		}
		list = append(list, name+"="+string(letters))
	}
	return strings.Join(list, " ")
}

func TestAKillAtAnOperationIsAsIfTheProcessHadDiedThere(t *testing.T) {
	d := &smallDisk{t: t, Sim: vfs.NewSim(t.TempDir())}
	d.durable("f", "a")
	var at []int
	step := func(do func()) { at = append(at, d.Ops()); do() }
	step(func() { d.write("f", 0, "b") })
	step(func() { d.put("g", "c") })
	step(func() { d.rename("g", "f") })
	step(func() { d.write("f", 0, strings.Repeat("x", 17)) })
	rng := rand.New(rand.NewPCG(14, 14))
	for i, want := range []string{"f=a", "f=b", "f=b g=c", "f=c"} {
		life := d.KillAt(at[i], nil)
		if got := describe(t, life, ""); got != want {
			t.Errorf("killed before step %d: %q, want %q", i, got, want)
		}
		if same, err := life.BootID(); err != nil || same != bootID(t, d.Sim) {
			t.Errorf("boot ID %q, %v", same, err)
		}
		if got := describe(t, life.PowerCut(life.Ops(), nil), ""); got != "f=a" {
			t.Errorf("killed before step %d, and then a power cut: %q", i, got)
		}
		f, err := life.Open("f", os.O_RDWR, 0)
		must(t, err)
		must(t, f.Sync())
		must(t, life.SyncDir("/"))
		if got := describe(t, life.PowerCut(life.Ops(), rng), ""); got != want && i != 2 { // g was not synced
			t.Errorf("killed before step %d, synced, and then a power cut: %q, want %q", i, got, want)
		}
	}
	seen := map[string]bool{}
	for range 100 {
		seen[describe(t, d.KillAt(at[3], rng), "")] = true
	}
	want := []string{"f=c", "f=" + strings.Repeat("x", 8), "f=" + strings.Repeat("x", 16)}
	if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, want) {
		t.Errorf("killed in a write of three pages: %q, want %q", got, want)
	}
	if got := describe(t, d.Sim, ""); got != "f="+strings.Repeat("x", 17) {
		t.Errorf("the life that was not killed has %q", got)
	}
}

func bootID(t *testing.T, fsys vfs.FS) string {
	t.Helper()
	id, err := fsys.BootID()
	must(t, err)
	return id
}

func TestACommitOfAnExternalFileMayBeCutShort(t *testing.T) {
	const page = 4096
	sim := vfs.NewSim(t.TempDir())
	osPath, committed, err := sim.External("db")
	must(t, err)
	put := func(head, body byte, pages int) {
		must(t, committed())
		content := slices.Concat(bytes.Repeat([]byte{head}, 2*page), bytes.Repeat([]byte{body}, page*pages))
		must(t, os.WriteFile(osPath, content, 0o600))
		must(t, committed())
	}
	put('h', 'a', 1)
	must(t, sim.SyncDir("/"))
	before := sim.Ops()
	put('H', 'b', 2)
	rng := rand.New(rand.NewPCG(15, 15))
	crashes := map[string]func() *vfs.Sim{
		"power cut": func() *vfs.Sim { return sim.PowerCut(before+1, rng) },
		"kill":      func() *vfs.Sim { return sim.KillAt(before+1, rng) },
	}
	for what, crash := range crashes {
		seen := map[string]bool{}
		for range 300 {
			p, _, err := crash().External("db")
			must(t, err)
			content, err := os.ReadFile(p)
			must(t, err)
			body := string(content[2*page:])
			switch head := string(content[:2*page]); {
			case head == strings.Repeat("H", 2*page) && body == strings.Repeat("b", 2*page):
				seen["after"] = true
			case head != strings.Repeat("h", 2*page):
				t.Fatalf("%s: the first pages are there before the others, or torn", what)
			case body == strings.Repeat("a", page):
				seen["before"] = true
			case strings.Contains(body, "a") && strings.Contains(body, "b"):
				seen["mixed"] = true
			case strings.Trim(body, "b\x00") == "":
				seen["all but the first pages"] = true
			}
		}
		if len(seen) != 4 {
			t.Errorf("%s: seen only %v", what, seen)
		}
	}
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

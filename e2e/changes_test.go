package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	archiveBytes = 100 << 30
	spotBytes    = 256 << 10 // of the data that lies here and there
)

// archive is a sparse volume of 100 GiB and its change of a day.
type archive struct {
	*server
	rng   *rand.Rand
	spots []int64
}

// newArchive has 30 MiB of data all over the volume db, preserved as day1, then
// writes, rewrites and trims of 7 MiB, preserved as day2.
func newArchive(t *testing.T) *archive {
	t.Helper()
	a := &archive{newServer(t), rand.New(rand.NewPCG(1, 2)), nil}
	a.create(strconv.Itoa(archiveBytes), "db")
	for range 120 {
		a.spots = append(a.spots, a.rng.Int64N(archiveBytes/spotBytes)*spotBytes)
	}
	a.write(a.spots...)
	a.tidemark("preserve", "db", "--name", "day1", "--until", "sealed")
	a.write(a.spots[:20]...) // anew
	a.write(0, archiveBytes-spotBytes, a.rng.Int64N(archiveBytes/spotBytes)*spotBytes)
	c := a.dial("db")
	for _, off := range a.spots[30:35] {
		if err := c.Trim(off+4096, spotBytes/2); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WriteZeroes(a.spots[40], spotBytes, false); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	a.tidemark("preserve", "db", "--name", "day2", "--until", "sealed")
	return a
}

func (a *archive) write(offsets ...int64) {
	a.t.Helper()
	c := a.dial("db")
	data := make([]byte, spotBytes)
	for _, off := range offsets {
		for i := range data {
			data[i] = byte(a.rng.Uint32())
		}
		if _, err := c.WriteAt(data, off); err != nil {
			a.t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		a.t.Fatal(err)
	}
}

// hash is the content hash of a snapshot.
func (s *server) hash(name string) string {
	s.t.Helper()
	return decode[struct{ Hash string }](s.t, s.tidemark("snapshot", "show", name, "--json")).Hash
}

// dirty is what has changed, as qemu-img and nbdinfo find it, in bytes.
type dirty struct {
	offset, length int64
}

// qemuDirty asks qemu-img, which shows what is dirty as no data.
func (a *archive) qemuDirty() (list []dirty) {
	a.t.Helper()
	image := "driver=nbd,server.type=unix,server.path=" + a.path("nbd.sock") + ",export=db@day2,x-dirty-bitmap=qemu:dirty-bitmap:day1"
	for _, x := range decode[[]struct {
		Start, Length int64
		Data          bool
	}](a.t, run(a.t, "qemu-img", "map", "--output=json", "--image-opts", image)) {
		if !x.Data {
			list = append(list, dirty{x.Start, x.Length})
		}
	}
	return list
}

// nbdinfoDirty asks nbdinfo, an old or a new one.
func (a *archive) nbdinfoDirty(nbdinfo string) (list []dirty) {
	a.t.Helper()
	for _, x := range decode[[]struct{ Offset, Length, Type int64 }](a.t, run(a.t, nbdinfo, "--json", "--map=qemu:dirty-bitmap:day1", a.uri("db@day2"))) {
		if x.Type&1 != 0 {
			list = append(list, dirty{x.Offset, x.Length})
		}
	}
	return list
}

// tidemarkDirty asks snapshot diff.
func (a *archive) tidemarkDirty() (list []dirty) {
	a.t.Helper()
	for _, x := range decode[struct {
		Extents []struct{ OffsetBytes, LengthBytes int64 }
	}](a.t, a.tidemark("snapshot", "diff", "db@day1", "db@day2", "--json")).Extents {
		if n := len(list); n > 0 && list[n-1].offset+list[n-1].length == x.OffsetBytes {
			list[n-1].length += x.LengthBytes // data beside zeros
			continue
		}
		list = append(list, dirty{x.OffsetBytes, x.LengthBytes})
	}
	return list
}

// The change of a day of a sparse 100 GiB goes to another server in each way that
// there is, and ends as the same content. No way looks at the rest.
func TestTheChangeOfADayOf100GiBIsCopiedByBitmapAndByStream(t *testing.T) {
	a := newArchive(t)
	want := a.hash("db@day2")
	replica := newServer(t)
	replica.create(strconv.Itoa(archiveBytes), "libnbd", "qemu")
	for _, name := range []string{"libnbd", "qemu"} {
		run(t, "nbdcopy", "--destination-is-zero", a.uri("db@day1"), replica.uri(name))
	}

	found := a.tidemarkDirty()
	for name, got := range map[string][]dirty{
		"qemu-img": a.qemuDirty(), "nbdinfo": a.nbdinfoDirty("nbdinfo"),
		"nbdinfo with extended headers": a.nbdinfoDirty(newer(t, "nbdinfo")),
	} {
		if fmt.Sprint(got) != fmt.Sprint(found) {
			t.Errorf("%s finds %v dirty, and snapshot diff %v", name, got, found)
		}
	}

	copied, err := strconv.Atoi(strings.TrimSpace(run(t, "python3", "-B", "changes.py", a.uri("db@day2"), "day1", replica.uri("libnbd"))))
	if err != nil || copied == 0 || copied > 23*spotBytes {
		t.Errorf("libnbd copied %d bytes, %v", copied, err)
	}
	a.copyByQemu(a.qemuDirty(), replica.uri("qemu"))

	// A stream of all makes a volume, that of the change its next snapshot.
	all, change := filepath.Join(t.TempDir(), "all"), filepath.Join(t.TempDir(), "change")
	a.tidemark("export", "db@day1", all, "--format", "stream")
	replica.tidemark("import", "--apply", all, "stream")
	a.tidemark("export", "db@day2", change, "--since", "day1")
	if n := len(readFile(t, change)); n > 24*spotBytes {
		t.Errorf("the stream of the change has %d bytes", n)
	}
	replica.tidemark("import", "--apply", change, "stream")

	replica.tidemark("preserve", "libnbd", "qemu", "--name", "day2", "--until", "sealed")
	for _, name := range []string{"libnbd@day2", "qemu@day2", "stream@day2"} {
		if got := replica.hash(name); got != want {
			t.Errorf("%s has the content hash %s, want %s", name, got, want)
		}
	}
	if got, want := replica.hash("stream@day1"), a.hash("db@day1"); got != want {
		t.Errorf("stream@day1 has the content hash %s, want %s", got, want)
	}
	for _, s := range []*server{a.server, replica} {
		s.stop()
		s.check()
	}
}

// copyByQemu fills an overlay of the snapshot, which copies what is read into itself,
// with what is dirty; puts it on the target; and commits it there.
func (a *archive) copyByQemu(list []dirty, target string) {
	a.t.Helper()
	overlay := filepath.Join(a.t.TempDir(), "overlay.qcow2")
	run(a.t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", a.uri("db@day2"), overlay)
	args := []string{"-C", "-f", "qcow2", overlay}
	for _, x := range list {
		args = append(args, "-c", fmt.Sprintf("read %d %d", x.offset, x.length))
	}
	if out := run(a.t, "qemu-io", args...); strings.Contains(out, "failed") {
		a.t.Fatal(out)
	}
	run(a.t, "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", target, overlay)
	run(a.t, "qemu-img", "commit", "-q", "-f", "qcow2", overlay)
}

// A client sees the bitmaps that it may use, and is refused others.
func TestDirtyBitmapsAreListedOfOlderSnapshotsOnly(t *testing.T) {
	s := newServer(t)
	s.create("1MiB", "db", "other")
	for _, name := range []string{"a", "b", "c"} {
		s.tidemark("preserve", "db", "--name", name, "--until", "sealed")
	}
	s.tidemark("preserve", "other", "--name", "z", "--until", "sealed")
	for export, want := range map[string]string{
		"db@b": "base:allocation qemu:allocation-depth qemu:dirty-bitmap:a",
		"db@c": "base:allocation qemu:allocation-depth qemu:dirty-bitmap:a qemu:dirty-bitmap:b",
		"db@a": "base:allocation qemu:allocation-depth",
		"db":   "base:allocation qemu:allocation-depth",
	} {
		info := decode[struct{ Exports []struct{ Contexts []string } }](t, run(t, "nbdinfo", "--json", s.uri(export)))
		if got := strings.Join(info.Exports[0].Contexts, " "); got != want {
			t.Errorf("%s has the contexts %q, want %q", export, got, want)
		}
	}
	for _, base := range []string{"c", "z", "none", ""} {
		if r := attempt(t, "nbdinfo", "--map=qemu:dirty-bitmap:"+base, s.uri("db@b")); r.code == 0 {
			t.Errorf("since %q: %s", base, r.stdout)
		}
	}
	if r := attempt(t, "nbdinfo", "--map=qemu:dirty-bitmap:a", s.uri("db")); r.code == 0 {
		t.Errorf("of a live volume: %s", r.stdout)
	}
}

package sealed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/mem"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

const block = lookup.BlockSize

// pageBlocks is how many blocks that lie together have their sums in one page;
// blocks that lie apartBlocks apart have theirs in different ones.
const (
	pageBlocks  = 1018
	apartBlocks = 1 << 32
)

// rig is a directory of checksum files and images in memory.
type rig struct {
	t     testing.TB
	dir   string
	cache *sealed.Cache
	found []lookup.BlockNum // told by images as corrupt
}

// layer is an image that the rig seals.
type layer struct {
	id    image.ID
	bare  *mem.Image
	table *lookup.Table
	sums  *sealed.Image
	hash  sealed.Hash
}

func newRig(t testing.TB) *rig {
	return &rig{t: t, dir: t.TempDir(), cache: sealed.NewCache(1 << 20)}
}

func (r *rig) layer(id image.ID) *layer {
	return &layer{id: id, bare: mem.New(), table: lookup.NewTable()}
}

// put stores a block of one letter; 0 is a block of zeros.
func (l *layer) put(b lookup.BlockNum, letter byte) {
	_, _ = l.bare.WriteAt(bytes.Repeat([]byte{letter}, block), int64(b)*block)
	l.table.Set(b, 1, lookup.Data)
}

const sizeBytes = 64 << 20

// seal writes the sums of a layer over others and opens it as a sealed image.
func (r *rig) seal(l *layer, older ...*layer) {
	r.t.Helper()
	s := sealed.Sealing{FS: vfs.OS{}, Dir: r.dir, ID: l.id, SizeBytes: sizeBytes, Image: l.bare, Table: l.table}
	for _, o := range older {
		s.Older, s.Below = append(s.Older, sealed.Layer{Table: o.table, Sums: o.sums}), o.hash
	}
	var err error
	if l.hash, err = sealed.Write(context.Background(), s); err != nil {
		r.t.Fatal(err)
	}
	r.open(l)
}

func (r *rig) open(l *layer) {
	r.t.Helper()
	sums, err := sealed.OpenSums(vfs.OS{}, r.dir, l.id, false)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := sums.Matches(l.table, l.hash, sizeBytes, false); err != nil {
		r.t.Fatal(err)
	}
	l.sums = sealed.New(l.bare, sums, r.cache, func(_ image.ID, b lookup.BlockNum) { r.found = append(r.found, b) })
	r.t.Cleanup(func() { _ = l.sums.Close() })
}

func (r *rig) name(id image.ID) string {
	return filepath.Join(r.dir, fmt.Sprintf("%016x.sum", uint64(id)))
}

// scan returns the blocks that a scan finds bad.
func (r *rig) scan(l *layer, bare image.Image) (bad []lookup.BlockNum) {
	r.t.Helper()
	sums, err := sealed.OpenSums(vfs.OS{}, r.dir, l.id, false)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = sums.Close() }()
	scan := sealed.Scan{ID: l.id, Image: bare, Sums: sums, Table: l.table, Block: func(b lookup.BlockNum, _ sealed.Sum, err error) {
		if err != nil {
			bad = append(bad, b)
		}
	}}
	if err := scan.Run(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return bad
}

func TestASealedImageReadsWhatItHeldAtAnyAlignment(t *testing.T) {
	r := newRig(t)
	l := r.layer(7)
	rng := rand.New(rand.NewPCG(1, 2))
	const blocks = 3 * pageBlocks
	for first := lookup.BlockNum(0); first < blocks; { // runs, some over the end of a page
		n := 1 + lookup.BlockNum(rng.IntN(700))
		data := make([]byte, n*block)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		_, _ = l.bare.WriteAt(data, int64(first)*block)
		l.table.Set(first, uint64(n), lookup.Data)
		first += n
	}
	r.seal(l)
	data, _ := l.table.Counts()
	pages := (int64(data) + pageBlocks - 1) / pageBlocks
	if info, err := os.Stat(r.name(7)); err != nil || info.Size() != (1+pages+1)*4096 {
		t.Errorf("the file is %v (%v), want the header, %d pages and one of the directory", info, err, pages)
	}
	for range 300 {
		off := rng.Int64N(blocks*block - 1)
		length := min(1+rng.Int64N(1+[]int64{10, 5000, 100000, 6 << 20}[rng.IntN(4)]), blocks*block-off)
		got, want := make([]byte, length), make([]byte, length)
		_, _ = l.bare.ReadAt(want, off)
		if n, err := l.sums.ReadAt(got, off); n != len(got) || err != nil {
			t.Fatalf("read of %d bytes at %d: %d, %v", length, off, n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("read of %d bytes at %d: wrong bytes", length, off)
		}
	}
	if len(r.found) > 0 || r.scan(l, l.bare) != nil {
		t.Errorf("blocks %v are corrupt, and none is", r.found)
	}
}

func TestAReadThatWouldWaitForSumsSaysSo(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(5, 'a')
	r.seal(l)
	p := make([]byte, block)
	if _, err := l.sums.TryReadAt(p, 5*block); !errors.Is(err, image.ErrWouldBlock) {
		t.Errorf("with no sums at hand: %v, want ErrWouldBlock", err)
	}
	if _, err := l.sums.ReadAt(p[:10], 5*block); err != nil {
		t.Fatal(err)
	}
	if _, err := l.sums.TryReadAt(p, 5*block); err != nil || p[0] != 'a' {
		t.Errorf("with sums at hand: %v", err)
	}
}

func TestASealedImageTakesNoWrites(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(0, 'a')
	l.put(1, 'b')
	r.seal(l)
	if _, err := l.sums.WriteAt(make([]byte, block), 0); !errors.Is(err, sealed.ErrSealed) {
		t.Errorf("write: %v", err)
	}
	if err := l.sums.Zero(0, block); !errors.Is(err, sealed.ErrSealed) {
		t.Errorf("zero: %v", err)
	}
	if err := l.sums.Punch(block, block); err != nil { // nobody sees the block any more
		t.Errorf("punch: %v", err)
	}
	for _, off := range []int64{-1, 1<<63 - 1} {
		_, readErr := l.sums.ReadAt(make([]byte, 2), off)
		_, tryErr := l.sums.TryReadAt(make([]byte, 2), off)
		_, writeErr := l.sums.WriteAt(make([]byte, 2), off)
		for _, err := range []error{readErr, tryErr, writeErr, l.sums.Zero(off, 2)} {
			if !errors.Is(err, image.ErrRange) {
				t.Errorf("at %d: %v, want ErrRange", off, err)
			}
		}
	}
	if err := l.sums.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.sums.ReadAt(make([]byte, block), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// Each kind of damage to the image: reads that touch it fail, others go on, and
// a scan finds it.
func TestWhatIsNotWhatWasSealedIsFoundAndNotServed(t *testing.T) {
	const blocks = 2000
	fill := func(l *layer, letter byte) {
		for b := range lookup.BlockNum(blocks) {
			l.put(b, letter+byte(b%23))
		}
	}
	for _, c := range []struct {
		name   string
		damage func(r *rig, l *layer)
		bad    []lookup.BlockNum
	}{
		{"a flipped bit", func(_ *rig, l *layer) { flipMem(l.bare, 1100*block+77, 3) }, []lookup.BlockNum{1100}},
		{"a lost block", func(_ *rig, l *layer) { _ = l.bare.Punch(5*block, block) }, []lookup.BlockNum{5}},
		{"half a block of an older time", func(_ *rig, l *layer) {
			_, _ = l.bare.WriteAt(make([]byte, block/2), 1023*block+block/2)
		}, []lookup.BlockNum{1023}},
		{"a block in another's place", func(_ *rig, l *layer) {
			p := make([]byte, block)
			_, _ = l.bare.ReadAt(p, 3*block)
			_, _ = l.bare.WriteAt(p, 4*block)
		}, []lookup.BlockNum{4}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			l := r.layer(3)
			fill(l, 'a')
			r.seal(l)
			c.damage(r, l)
			p := make([]byte, 3*block)
			for _, b := range c.bad {
				for _, x := range []struct{ off, n int64 }{
					{int64(b) * block, block},
					{int64(b)*block + 4000, 1}, // a part of it that is as it was
					{int64(b-1)*block + 100, 2 * block},
					{int64(b-1) * block, 3 * block},
				} {
					if _, err := l.sums.ReadAt(p[:x.n], x.off); !errors.Is(err, image.ErrCorrupt) {
						t.Errorf("read of %d bytes at %d: %v, want ErrCorrupt", x.n, x.off, err)
					}
					if _, err := l.sums.TryReadAt(p[:x.n], x.off); !errors.Is(err, image.ErrCorrupt) {
						t.Errorf("try of %d bytes at %d: %v, want ErrCorrupt", x.n, x.off, err)
					}
				}
				for _, sound := range []int64{int64(b-1) * block, int64(b+1) * block} {
					if _, err := l.sums.ReadAt(p[:block], sound); err != nil {
						t.Errorf("read of the sound block at %d: %v", sound, err)
					}
				}
			}
			if got := slices.Compact(r.found); !slices.Equal(got, c.bad) {
				t.Errorf("told of %v, want %v", got, c.bad)
			}
			if got := r.scan(l, l.bare); !slices.Equal(got, c.bad) {
				t.Errorf("a scan finds %v, want %v", got, c.bad)
			}
		})
	}
}

func flipMem(m *mem.Image, off int64, bit int) {
	p := make([]byte, 1)
	_, _ = m.ReadAt(p, off)
	p[0] ^= 1 << bit
	_, _ = m.WriteAt(p, off)
}

func TestEveryFlippedBitOfABlockIsFound(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(2, 'x')
	r.seal(l)
	p := make([]byte, block)
	for bit := range block * 8 {
		flipMem(l.bare, 2*block+int64(bit/8), bit%8)
		if _, err := l.sums.ReadAt(p, 2*block); !errors.Is(err, image.ErrCorrupt) {
			t.Fatalf("bit %d: %v, want ErrCorrupt", bit, err)
		}
		flipMem(l.bare, 2*block+int64(bit/8), bit%8)
	}
}

// Damage to the checksum file as a file: it does not open, or what it has of a
// block is refused.
func TestADamagedChecksumFileIsFoundAndNothingIsServedByIt(t *testing.T) {
	const at1, at2 = lookup.BlockNum(1), lookup.BlockNum(2*apartBlocks + 5)
	for _, c := range []struct {
		name   string
		damage func(data, other []byte) []byte
		bad    []lookup.BlockNum // nil: it does not open
	}{
		{"it is empty", func([]byte, []byte) []byte { return nil }, nil},
		{"it is cut in its header", func(data, _ []byte) []byte { return data[:4000] }, nil},
		{"it is cut behind its header", func(data, _ []byte) []byte { return data[:4096] }, nil},
		{"it is cut in its directory", func(data, _ []byte) []byte { return data[:len(data)-1] }, nil},
		{"it is that of another image", func(_, other []byte) []byte { return other }, nil},
		{"its directory is that of another image", func(data, other []byte) []byte {
			return append(data[:3*4096], other[3*4096:]...)
		}, nil},
		{"its directory is lost", func(data, _ []byte) []byte { clear(data[3*4096:]); return data }, nil},
		{"a bit of its directory is flipped", func(data, _ []byte) []byte { data[3*4096+12] ^= 1; return data }, nil},
		{"a page is that of another image", func(data, other []byte) []byte {
			copy(data[4096:8192], other[4096:])
			return data
		}, []lookup.BlockNum{at1}},
		{"a page is in another's place", func(data, _ []byte) []byte {
			copy(data[2*4096:3*4096], data[4096:8192])
			return data
		}, []lookup.BlockNum{at2}},
		{"a page is lost", func(data, _ []byte) []byte { clear(data[4096:8192]); return data }, []lookup.BlockNum{at1}},
		{"a bit of a sum is flipped", func(data, _ []byte) []byte { data[4096+16] ^= 4; return data }, []lookup.BlockNum{at1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			l, other := r.layer(1), r.layer(2)
			for _, l := range []*layer{l, other} {
				l.put(at1, 'a')
				l.put(at2, 'b')
				r.seal(l)
			}
			data, err := os.ReadFile(r.name(1))
			if err != nil {
				t.Fatal(err)
			}
			foreign, err := os.ReadFile(r.name(2))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(r.name(1), c.damage(data, foreign), 0o600); err != nil {
				t.Fatal(err)
			}
			r.cache = sealed.NewCache(0)
			if c.bad == nil {
				if _, err := sealed.OpenSums(vfs.OS{}, r.dir, 1, false); !errors.Is(err, image.ErrCorrupt) {
					t.Errorf("open: %v, want ErrCorrupt", err)
				}
				return
			}
			r.open(l)
			for _, b := range []lookup.BlockNum{at1, at2} {
				_, err := l.sums.ReadAt(make([]byte, 1), int64(b)*block)
				if errors.Is(err, image.ErrCorrupt) != slices.Contains(c.bad, b) {
					t.Errorf("read of block %d: %v", b, err)
				}
			}
			if got := r.scan(l, l.bare); !slices.Equal(got, c.bad) {
				t.Errorf("a scan finds %v, want %v", got, c.bad)
			}
		})
	}
}

func TestALostChecksumFileMakesAnImageUnreadableAndNotUnverified(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(0, 'a')
	r.seal(l)
	if err := sealed.Remove(vfs.OS{}, r.dir, 1); err != nil {
		t.Fatal(err)
	}
	_, err := sealed.OpenSums(vfs.OS{}, r.dir, 1, false)
	if !errors.Is(err, image.ErrCorrupt) || !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("open: %v, want ErrCorrupt and ErrNotExist", err)
	}
	lost := sealed.Lost(l.bare, 1, err)
	if _, err := lost.ReadAt(make([]byte, block), 0); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("read: %v, want ErrCorrupt", err)
	}
	if _, err := lost.TryReadAt(make([]byte, block), 0); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("try: %v, want ErrCorrupt", err)
	}
}

func TestATableThatIsNotThatOfTheSealIsFound(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(0, 'a')
	l.put(1, 'b')
	r.seal(l)
	sums, err := sealed.OpenSums(vfs.OS{}, r.dir, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sums.Close() }()
	fewer, another := lookup.NewTable(), l.table.Clone()
	fewer.Set(0, 1, lookup.Data)
	another.Set(1000, 1, lookup.Data)
	if err := sums.Matches(fewer, l.hash, sizeBytes, true); err != nil {
		t.Errorf("a table without a block, punched: %v", err)
	}
	for name, err := range map[string]error{
		"a table with another block, punched": sums.Matches(another, l.hash, sizeBytes, true),
		"a table without a block":             sums.Matches(fewer, l.hash, sizeBytes, false),
		"another hash":                        sums.Matches(l.table, sealed.Hash{1}, sizeBytes, false),
		"another size":                        sums.Matches(l.table, l.hash, sizeBytes-512, false),
	} {
		if !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	// As many blocks, but others: what was not sealed is not served.
	for _, b := range []int64{2, 2 + apartBlocks} {
		if _, err := l.sums.ReadAt(make([]byte, 2*block), (b-1)*block); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("read of block %d, which has no sum: %v, want ErrCorrupt", b, err)
		}
		if err := l.sums.Sums(lookup.BlockNum(b-1), make([]sealed.Sum, 2)); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("the sum of block %d, which has none: %v, want ErrCorrupt", b, err)
		}
	}
	other := lookup.NewTable()
	other.Set(1, 2, lookup.Data)
	if bad := r.scan(&layer{id: 1, table: other}, l.bare); !slices.Equal(bad, []lookup.BlockNum{2}) {
		t.Errorf("a scan by another table finds %v, want block 2", bad)
	}
	if !slices.Equal(r.found, []lookup.BlockNum{2, 2 + apartBlocks - 1}) {
		t.Errorf("told of %v", r.found)
	}
}

// The hash of a view tells its bytes and nothing of how they came there.
func TestTheHashIsThatOfTheContentHoweverItIsLayered(t *testing.T) {
	r := newRig(t)
	rng := rand.New(rand.NewPCG(3, 4))
	const blocks = 2200
	view := map[lookup.BlockNum]byte{}
	var chain []*layer
	for id := image.ID(1); id <= 6; id++ {
		l := r.layer(id)
		for range 300 {
			b, letter := lookup.BlockNum(rng.IntN(blocks)), byte(rng.IntN(3)) // 0: zeros, as data
			if rng.IntN(4) == 0 {
				l.table.Set(b, 1, lookup.Zero)
				letter = 0
			} else {
				l.put(b, letter)
			}
			view[b] = letter
		}
		r.seal(l, chain...)
		chain = append(chain, l)

		flat := r.layer(100 + id)
		for b, letter := range view {
			flat.put(b, letter)
		}
		r.seal(flat)
		if flat.hash != l.hash {
			t.Fatalf("the view of image %d has the hash %s, and %s in one image", id, l.hash, flat.hash)
		}
		if id > 1 && l.hash == chain[id-2].hash {
			t.Errorf("image %d changed the view, and not its hash", id)
		}
	}
	var nothing sealed.Hash
	empty := r.layer(50)
	empty.put(9, 0)
	if r.seal(empty); empty.hash != nothing {
		t.Errorf("zeros have the hash %s", empty.hash)
	}
}

func TestAHashIsReadAsItIsWritten(t *testing.T) {
	var h sealed.Hash
	h.Add(7, 9)
	if got, err := sealed.ParseHash(h.String()); err != nil || got != h {
		t.Errorf("%v, %v", got, err)
	}
	h.Remove(7, 9)
	if h != (sealed.Hash{}) {
		t.Errorf("what was added and removed leaves %s", h)
	}
	for _, s := range []string{"", "00", h.String() + "0", h.String() + "00", h.String()[:63], h.String()[:63] + "g"} {
		if _, err := sealed.ParseHash(s); err == nil {
			t.Errorf("%q is taken for a hash", s)
		}
	}
}

func TestACrashedAttemptLeavesNothingToTheNext(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	if err := os.WriteFile(r.name(1), bytes.Repeat([]byte{0xff}, 40000), 0o600); err != nil {
		t.Fatal(err)
	}
	l.put(1, 'a')
	r.seal(l)
	if bad := r.scan(l, l.bare); bad != nil {
		t.Errorf("blocks %v are bad", bad)
	}
	data, err := os.ReadFile(r.name(1))
	if err != nil || len(data) != 3*4096 {
		t.Errorf("the file has %d bytes (%v), want the header, one page and the directory", len(data), err)
	}
}

func TestASealThatIsGivenUpSaysSo(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(1, 'a')
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := sealed.Write(ctx, sealed.Sealing{FS: vfs.OS{}, Dir: r.dir, ID: 1, Image: l.bare, Table: l.table})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
}

// unreadable fails reads that touch some blocks, as a disk does.
type unreadable struct {
	image.Image
	blocks []lookup.BlockNum
}

var errDisk = errors.New("the disk says no")

func (u unreadable) ReadAt(p []byte, off int64) (int, error) {
	for _, b := range u.blocks {
		if at := int64(b) * block; at < off+int64(len(p)) && off < at+block {
			return 0, errDisk
		}
	}
	return u.Image.ReadAt(p, off)
}

func TestAScanGoesOnBehindWhatTheDiskCannotRead(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	for b := range lookup.BlockNum(600) {
		l.put(b, 'a')
	}
	r.seal(l)
	flipMem(l.bare, 500*block, 0)
	got := r.scan(l, unreadable{l.bare, []lookup.BlockNum{0, 7, 8, 255, 256, 599}})
	if want := []lookup.BlockNum{0, 7, 8, 255, 256, 500, 599}; !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

func TestAScanLooksOnlyAtWhatItsViewShows(t *testing.T) {
	r := newRig(t)
	old, young := r.layer(1), r.layer(2)
	for b := range lookup.BlockNum(3000) {
		old.put(b, 'a')
		if b%7 < 3 {
			young.put(b, 'b')
		}
	}
	r.seal(old)
	sums, err := sealed.OpenSums(vfs.OS{}, r.dir, 1, true)
	if err != nil { // the file system can't
		if sums, err = sealed.OpenSums(vfs.OS{}, r.dir, 1, false); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = sums.Close() }()
	var paced int64
	next, seen := lookup.BlockNum(0), 0
	scan := sealed.Scan{
		ID: 1, Image: old.bare, Sums: sums, Table: old.table,
		Shown: func(b lookup.BlockNum, limit uint64) (bool, uint64) {
			s, run := young.table.Run(b, limit)
			return s == lookup.Absent, run
		},
		Pace: func(_ context.Context, n int64) error { paced += n; return nil },
		Block: func(b lookup.BlockNum, s sealed.Sum, err error) {
			if b < next || b%7 < 3 || err != nil || s != sealed.SumOf(bytes.Repeat([]byte{'a'}, block)) {
				t.Errorf("block %d: %v, %v", b, s, err)
			}
			next, seen = b+1, seen+1
		},
	}
	if err := scan.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := 3000 - 1287; seen != want || paced != int64(want)*block {
		t.Errorf("%d blocks, %d bytes; want %d blocks", seen, paced, want)
	}
	scan.Pace = func(context.Context, int64) error { return errDisk }
	if err := scan.Run(t.Context()); !errors.Is(err, errDisk) {
		t.Errorf("given up by the pace: %v", err)
	}
}

func TestWhatLiesBesideAnImageIsListedAndNothingElse(t *testing.T) {
	r := newRig(t)
	for _, id := range []image.ID{9, 1} {
		l := r.layer(id)
		l.put(1, 'a')
		r.seal(l)
	}
	for _, name := range []string{"0000000000000009.img", "3.sum", "000000000000000g.sum", "0000000000000003.sum.tmp", "0000000000000004.tab", "0000000000000009.tab", "5.tab", "0000000000000007.tab.tmp"} {
		if err := os.WriteFile(filepath.Join(r.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, halves, err := sealed.List(vfs.OS{}, r.dir)
	if err != nil || !slices.Equal(got, []image.ID{1, 4, 9}) || len(halves) != 2 || filepath.Base(halves[0]) != "0000000000000003.sum.tmp" || filepath.Base(halves[1]) != "0000000000000007.tab.tmp" {
		t.Errorf("%v, %v, %v", got, halves, err)
	}
}

func TestReadersShareACacheThatIsTooSmall(t *testing.T) {
	r := newRig(t)
	r.cache = sealed.NewCache(0) // 8 pages
	l := r.layer(1)
	const pages = 14 // of volumes of at most 2^36 blocks
	for i := range lookup.BlockNum(pages) {
		l.put(i*apartBlocks, 'a'+byte(i))
	}
	r.seal(l)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			p := make([]byte, 16)
			for round := range lookup.BlockNum(5 * pages) {
				i := round * 7 % pages
				if _, err := l.sums.ReadAt(p, int64(i*apartBlocks)*block); err != nil || p[3] != 'a'+byte(i) {
					t.Errorf("page %d: %v", i, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestAVerifiedReadAllocatesNothing(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(0, 'a')
	l.put(1, 'b')
	r.seal(l)
	p := make([]byte, block)
	read := func() {
		_, err := l.sums.ReadAt(p, 0)
		if err == nil {
			_, err = l.sums.TryReadAt(p, block)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, read); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRead(b *testing.B) {
	r := newRig(b)
	l := r.layer(1)
	for i := range lookup.BlockNum(32) {
		l.put(i, 'a')
	}
	r.seal(l)
	for name, im := range map[string]image.Image{"bare": l.bare, "sealed": l.sums} {
		for _, n := range []int{512, block, 32 * block} {
			b.Run(fmt.Sprintf("%s %d", name, n), func(b *testing.B) {
				p := make([]byte, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := im.ReadAt(p, 0); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func TestAnImageWithoutBlocksHasAChecksumFile(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	r.seal(l)
	if _, err := l.sums.ReadAt(make([]byte, block), 0); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("read of a block without a sum: %v, want ErrCorrupt", err)
	}
}

func TestTheSumsOfAnImageThatIsClosedLeaveTheCache(t *testing.T) {
	r := newRig(t)
	l, other := r.layer(1), r.layer(2)
	for _, l := range []*layer{l, other} {
		for i := range lookup.BlockNum(3) {
			l.put(i*apartBlocks, 'a')
		}
		r.seal(l)
	}
	atHand := func(l *layer) (n int) {
		for i := range int64(3) {
			if _, err := l.sums.TryReadAt(make([]byte, 1), i*apartBlocks*block); err == nil {
				n++
			}
		}
		return n
	}
	for _, l := range []*layer{l, other} {
		if err := l.sums.Sums(0, make([]sealed.Sum, 1)); err != nil {
			t.Fatal(err)
		}
		for i := range int64(3) {
			if _, err := l.sums.ReadAt(make([]byte, 1), i*apartBlocks*block); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.sums.Close(); err != nil {
		t.Fatal(err)
	}
	l.bare = mem.New()
	for i := range lookup.BlockNum(3) {
		l.put(i*apartBlocks, 'a')
	}
	if r.open(l); atHand(l) != 0 || atHand(other) != 3 {
		t.Errorf("%d pages of the closed image are held, and %d of 3 of the other", atHand(l), atHand(other))
	}
}

// sprinkle seals images that together have each block of 1 GiB once, in no
// order, all zeros, and returns which has which. None has another below it.
func (r *rig) sprinkle(images int) (im []*sealed.Image, of []int) {
	r.t.Helper()
	const blocks = 1 << 30 / block
	rng := rand.New(rand.NewPCG(9, 10))
	tables := make([]*lookup.Table, images)
	for i := range tables {
		tables[i] = lookup.NewTable()
	}
	for b := range lookup.BlockNum(blocks) {
		i := rng.IntN(images)
		of = append(of, i)
		tables[i].Set(b, 1, lookup.Data)
	}
	fsys := vfs.NewSim(r.dir)
	for i, table := range tables {
		id, zeros := image.ID(1+i), mem.New()
		if _, err := sealed.Write(r.t.Context(), sealed.Sealing{FS: fsys, ID: id, Image: zeros, Table: table}); err != nil {
			r.t.Fatal(err)
		}
		sums, err := sealed.OpenSums(fsys, "", id, false)
		if err != nil {
			r.t.Fatal(err)
		}
		im = append(im, sealed.New(zeros, sums, r.cache, func(image.ID, lookup.BlockNum) {}))
	}
	return im, of
}

// The sums of a volume take about as much room however many snapshots it has:
// with a thousand of them all stay in the cache that a server has.
func TestTheSumsOfAThousandImagesStayInTheCache(t *testing.T) {
	r := newRig(t)
	r.cache = sealed.NewCache(sealed.DefaultCacheBytes)
	im, of := r.sprinkle(1000)
	var sumsBytes int64
	for _, x := range im {
		n, err := x.Allocated()
		if err != nil {
			t.Fatal(err)
		}
		sumsBytes += n
	}
	if most := int64(1000 * 3 * 4096); sumsBytes > most {
		t.Errorf("their checksum files take %d bytes, want at most %d", sumsBytes, most)
	}
	p := make([]byte, block)
	for b := 0; b < len(of); b += 10 {
		if _, err := im[of[b]].ReadAt(p, int64(b)*block); err != nil {
			t.Fatal(err)
		}
	}
	for b := 0; b < len(of); b += 10 {
		if _, err := im[of[b]].TryReadAt(p, int64(b)*block); err != nil {
			t.Fatalf("block %d of image %d: %v", b, of[b]+1, err)
		}
	}
}

// Reads of 4 KiB anywhere in 1 GiB whose sums are in the cache, by how many
// images it lies in.
func BenchmarkReadOfAGiBIn(b *testing.B) {
	for _, images := range []int{1, 1000} {
		r := newRig(b)
		r.cache = sealed.NewCache(sealed.DefaultCacheBytes)
		im, of := r.sprinkle(images)
		b.Run(fmt.Sprintf("%d images", images), func(b *testing.B) {
			p, at := make([]byte, block), 0
			for at, i := range of { // all sums are in the cache
				if _, err := im[i].ReadAt(p[:1], int64(at)*block); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				at = (at + 154_061) % len(of) // each block once before any twice
				if _, err := im[of[at]].ReadAt(p, int64(at)*block); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Reads of 4 KiB anywhere in an image whose sums are at hand, all of which it has
// or a few of.
func BenchmarkReadAnywhere(b *testing.B) {
	const blocks = 1 << 30 / block
	rng := rand.New(rand.NewPCG(5, 6))
	r := newRig(b)
	r.cache = sealed.NewCache(sealed.DefaultCacheBytes)
	dense, sparse := r.layer(1), r.layer(2)
	_, _ = dense.bare.WriteAt(make([]byte, blocks/16*block), 0)
	dense.table.Set(0, blocks/16, lookup.Data)
	for range 2048 {
		sparse.put(lookup.BlockNum(rng.IntN(blocks)), 'a')
	}
	for name, l := range map[string]*layer{"dense": dense, "sparse": sparse} {
		r.seal(l)
		var all []int64
		for x := range l.table.Extents(0, blocks) {
			for i := range int64(x.Count) {
				all = append(all, (int64(x.Block)+i)*block)
			}
		}
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		b.Run(name, func(b *testing.B) {
			p := make([]byte, block)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := l.sums.ReadAt(p, all[i%len(all)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAWriteThatFailsGivesItsRoomBack(t *testing.T) {
	r := newRig(t)
	l := r.layer(1)
	l.put(0, 'a')
	l.put(2*apartBlocks, 'b')
	for _, failing := range []vfs.OpKind{vfs.OpWrite, vfs.OpSync} {
		for n := range 2 { // the second: the header's
			seen := 0
			fsys := vfs.Fault{FS: vfs.OS{}, Hook: func(op vfs.Op) error {
				if op.Kind == failing && (failing == vfs.OpSync || n == 0 || op.Off == 0) {
					if seen++; failing == vfs.OpWrite || seen > n {
						return syscall.ENOSPC
					}
				}
				return nil
			}}
			_, err := sealed.Write(t.Context(), sealed.Sealing{FS: fsys, Dir: r.dir, ID: 1, SizeBytes: sizeBytes, Image: l.bare, Table: l.table})
			info, statErr := os.Stat(r.name(1))
			if !errors.Is(err, syscall.ENOSPC) || statErr != nil || info.Size() != 0 {
				t.Errorf("%s %d fails: %v, and the file is %v (%v)", failing, n, err, info, statErr)
			}
		}
	}
}

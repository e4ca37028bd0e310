package sealed

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"testing"
	"unsafe"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// How many sums a page has.
const (
	mostTogether = 1018 // of blocks that lie together
	mostApart    = 408  // of blocks of which none has a neighbour
)

const exampleID = image.ID(5)

var exampleDirectory = directory{7, 1000, 1 << 35}

// examples are a header, a page of sums and one of the directory, encoded.
func examples() (h, sums, dir page) {
	header{id: exampleID, sizeBytes: 1 << 20, dataBlocks: 5, hash: Hash{1, 31: 2}, pages: 3}.encode(&h)
	var p packing
	for i, b := range []lookup.BlockNum{1000, 1001, 1005, 1<<32 + 998, 1<<32 + 999} {
		p.add(b, Sum(1<<32-1-i))
	}
	p.encode((*sumPage)(&sums), exampleID, 1)
	exampleDirectory.encode(&dir, exampleID, 0)
	return h, sums, dir
}

func checkSums(p page, id image.ID, number int) error {
	return (*sumPage)(&p).check(id, number, exampleDirectory[1])
}

func checkDirectory(p page, id image.ID, pages int) error {
	return make(directory, pages).decode(&p, id, 0)
}

func TestEveryFlippedBitOfAPageIsFound(t *testing.T) {
	h, sums, dir := examples()
	checks := map[string]struct {
		page  *page
		check func() error
	}{
		"the header":    {&h, func() error { _, err := decodeHeader(&h, exampleID); return err }},
		"sums":          {&sums, func() error { return checkSums(sums, exampleID, 1) }},
		"the directory": {&dir, func() error { return checkDirectory(dir, exampleID, 3) }},
	}
	for name, c := range checks {
		if err := c.check(); err != nil {
			t.Errorf("a page of %s as it was written: %v", name, err)
		}
		for bit := range pageBytes * 8 {
			c.page[bit/8] ^= 1 << (bit % 8)
			if c.check() == nil {
				t.Fatalf("bit %d of a page of %s: not found", bit, name)
			}
			c.page[bit/8] ^= 1 << (bit % 8)
		}
	}
	for name, err := range map[string]error{
		"sums of another image":        checkSums(sums, exampleID+1, 1),
		"sums of another place":        checkSums(sums, exampleID, 2),
		"sums of other blocks":         (*sumPage)(&sums).check(exampleID, 1, 1001),
		"a directory of another image": checkDirectory(dir, exampleID+1, 3),
		"a directory of another place": checkDirectory(dir, exampleID, 4),
	} {
		if err == nil {
			t.Errorf("a page of %s: not found", name)
		}
	}
}

func TestAPageThatWasLostIsNoPage(t *testing.T) {
	var zeros page
	for id := range image.ID(100) {
		for number := range 100 {
			if zeros.sound(id, number) {
				t.Fatalf("page %d of image %d: zeros are valid", number, id)
			}
		}
	}
}

// What is packed is found, and nothing else is, whatever the blocks are.
func TestAPageHasTheSumsThatWerePackedAndNoOthers(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, c := range []struct {
		name             string
		longest, longGap uint64
		least, most      int
	}{
		{"together", 1 << 20, 1, mostTogether, mostTogether},
		{"apart", 1, 1 << 20, mostApart, mostApart},
		{"in short runs", 9, 300, mostApart, mostTogether},
		{"far apart", 3, 1 << 34, 1, 30},
	} {
		var pack packing
		sums := map[lookup.BlockNum]Sum{}
		next := lookup.BlockNum(rng.Uint64N(1 << 30))
		for full := false; !full; next += 1 + lookup.BlockNum(rng.Uint64N(c.longGap)) {
			for n := rng.Uint64N(c.longest) + 1; n > 0 && !full; n-- {
				s := Sum(rng.Uint32())
				if full = !pack.add(next, s); !full {
					sums[next] = s
					next++
				}
			}
		}
		if len(sums) < c.least || len(sums) > c.most {
			t.Errorf("%s: a page has %d sums, want %d to %d", c.name, len(sums), c.least, c.most)
		}
		var p sumPage
		first := pack.first
		pack.encode(&p, 1, 2)
		if err := p.check(1, 2, first); err != nil || !pack.empty() {
			t.Errorf("%s: %v", c.name, err)
		}
		for b, s := range sums {
			found := p.from(b)
			if found == nil || found.at(0) != s {
				t.Fatalf("%s: block %d has the sums %v, want %v", c.name, b, found, s)
			}
			for i := range lookup.BlockNum(found.count()) {
				if found.at(int(i)) != sums[b+i] {
					t.Fatalf("%s: sum %d from block %d on is of another", c.name, i, b)
				}
			}
			if behind := b + lookup.BlockNum(found.count()); sums[behind] != 0 {
				t.Errorf("%s: the sums from block %d on end before %d", c.name, b, behind)
			}
			for _, other := range []lookup.BlockNum{b - 1, b + 1, b + 1<<32, b - 1<<32} {
				if _, has := sums[other]; !has && p.from(other) != nil {
					t.Fatalf("%s: block %d has a sum, and none was packed", c.name, other)
				}
			}
		}
	}
}

func TestADirectoryFindsThePageThatABlockIsIn(t *testing.T) {
	for pages := range 20 {
		var d directory
		for n := range pages {
			d = append(d, lookup.BlockNum(10*n+5))
		}
		for b := range lookup.BlockNum(10*pages + 20) {
			if number, want := d.find(b), min((int(b)+5)/10, pages)-1; number != want {
				t.Errorf("%d pages: block %d is in page %d, want %d", pages, b, number, want)
			}
		}
	}
}

// A directory of many pages comes back as it was written.
func TestADirectoryOfManyPagesComesBack(t *testing.T) {
	for _, pages := range []int{0, 1, pageEntries, pageEntries + 1, 3 * pageEntries} {
		written, read := make(directory, pages), make(directory, pages)
		for i := range written {
			written[i] = lookup.BlockNum(i * i)
		}
		for i := range written.pages() {
			var p page
			written.encode(&p, 9, i)
			if err := read.decode(&p, 9, i); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(read, written) {
			t.Errorf("%d entries come back as others", pages)
		}
	}
}

func TestAHeaderThatPromisesMoreThanItsFileHasIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, pages := range []uint64{1, 2, 1 << 52, 1<<64 - 1} {
		var p page
		header{id: 1, pages: pages}.encode(&p)
		if err := os.WriteFile(path.Join(dir, path.Base(sumsPath("", 1))), p[:], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenSums(vfs.OS{}, dir, 1, false); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%d pages: %v, want ErrCorrupt", pages, err)
		}
	}
}

func TestTheCacheKeepsWhatIsUsedAndNoMoreThanItMay(t *testing.T) {
	c := NewCache(0)
	hot := new(sumPage)
	c.add(1, 0, hot)
	for number := 1; number < 100; number++ {
		if c.find(1, 0) != hot {
			t.Fatalf("a page in use was gone after %d others", number)
		}
		c.add(1, number, new(sumPage))
	}
	held := 0
	for number := range 100 {
		if c.find(1, number) != nil {
			held++
		}
	}
	if held != ways {
		t.Errorf("it holds %d pages, want %d", held, ways)
	}
	if c.find(2, 0) != nil {
		t.Error("it gives a page of another image")
	}
	if size := unsafe.Sizeof(sumPage{}) + unsafe.Sizeof(cached{}) + unsafe.Sizeof(set{})/ways; size > cachedBytes {
		t.Errorf("a page takes %d bytes, and %d are counted", size, cachedBytes)
	}
}

func TestWhatIsDroppedIsNotInTheCacheAndTheRestIs(t *testing.T) {
	c := NewCache(0)
	for _, number := range []int{1, 2, 1, 3} { // 1 by two who loaded it at the same time
		c.add(1, number, new(sumPage))
	}
	c.add(2, 1, new(sumPage))
	c.drop(1, 1)
	c.drop(1, 4)
	for i := range c.sets[0].pages {
		if p := c.sets[0].pages[i].Load(); p != nil && p.opened == 1 && p.number == 1 {
			t.Error("a page that was dropped is still held")
		}
	}
	if c.find(1, 1) != nil || c.find(1, 2) == nil || c.find(1, 3) == nil || c.find(2, 1) == nil {
		t.Error("another page was dropped")
	}
}

// What decodes is what its encoder makes, and can be asked for any block: also
// what has a CRC that is right, as no damage is likely to have.
func FuzzChecksumFile(f *testing.F) {
	h, sums, dir := examples()
	f.Add(h[:], uint64(exampleID), uint64(0))
	f.Add(sums[:], uint64(exampleID), uint64(1))
	f.Add(dir[:], uint64(exampleID), uint64(3))
	f.Add(make([]byte, pageBytes), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, id, number uint64) {
		var in page
		copy(in[:], data)
		for _, bound := range []bool{false, true} {
			if bound {
				binary.LittleEndian.PutUint32(in[crcAt:], crc32.Checksum(in[:crcAt], castagnoli))
			}
			headerComesBack(t, in, image.ID(id))
			if bound {
				in.bind(image.ID(id), int(number))
			}
			sumsComeBack(t, in, image.ID(id), int(number))
			pages := int(number % (pageEntries + 1))
			if bound {
				in.bind(image.ID(id), pages)
			}
			directoryAnswers(t, in, image.ID(id), pages)
		}
	})
}

func headerComesBack(t *testing.T, in page, id image.ID) {
	h, err := decodeHeader(&in, id)
	if err != nil {
		return
	}
	var again page
	h.encode(&again)
	if h2, err := decodeHeader(&again, id); err != nil || h2 != h {
		t.Errorf("%+v comes back as %+v, %v", h, h2, err)
	}
}

func sumsComeBack(t *testing.T, in page, id image.ID, number int) {
	p := sumPage(in)
	if p.check(id, number, p.first()) != nil || p.first() >= lookup.MaxBlocks {
		return
	}
	var pack packing
	runs, _ := p.counts()
	for i := range runs {
		b := p.first() + lookup.BlockNum(p.run(i))
		found := p.from(b)
		for j := range found.count() {
			if !pack.add(b+lookup.BlockNum(j), found.at(j)) {
				t.Fatal("it has more sums than a page has room for")
			}
		}
	}
	var again sumPage
	pack.encode(&again, id, number)
	for i := range runs {
		b := p.first() + lookup.BlockNum(p.run(i))
		if found := p.from(b); found == nil || string(again.from(b)[:len(found)]) != string(found) {
			t.Errorf("the sums from block %d on come back as others", b)
		}
	}
}

func directoryAnswers(t *testing.T, in page, id image.ID, pages int) {
	d := make(directory, pages)
	if d.pages() == 0 || d.decode(&in, id, 0) != nil {
		return
	}
	for _, first := range d {
		for _, b := range []lookup.BlockNum{first - 1, first, first + 1} {
			if number := d.find(b); number < -1 || number >= pages {
				t.Errorf("block %d is in page %d of %d", b, number, pages)
			}
		}
	}
}

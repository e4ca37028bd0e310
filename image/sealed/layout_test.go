package sealed

import (
	"testing"

	"github.com/tidemark/tidemark/image"
)

// examples are a header and a page, encoded.
func examples() (h, p [pageBytes]byte) {
	header{id: 5, sizeBytes: 1 << 20, dataBlocks: 2, hash: Hash{1, 31: 2}}.encode(&h)
	page := sumPage{0: 1, 7: 0xffffffff, PageBlocks - 1: 9}
	page.encode(&p, 5, 3)
	return h, p
}

func TestEveryFlippedBitOfAHeaderOrPageIsFound(t *testing.T) {
	h, p := examples()
	var page sumPage
	for bit := range pageBytes * 8 {
		h[bit/8] ^= 1 << (bit % 8)
		p[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeHeader(&h, 5); err == nil {
			t.Fatalf("bit %d of a header: not found", bit)
		}
		if err := page.decode(&p, 5, 3); err == nil {
			t.Fatalf("bit %d of a page: not found", bit)
		}
		h[bit/8] ^= 1 << (bit % 8)
		p[bit/8] ^= 1 << (bit % 8)
	}
	for name, err := range map[string]error{"another image": page.decode(&p, 6, 3), "another place": page.decode(&p, 5, 4)} {
		if err == nil {
			t.Errorf("a page of %s: not found", name)
		}
	}
}

func TestAHoleIsNoPage(t *testing.T) {
	var zeros [pageBytes]byte
	var page sumPage
	for id := range image.ID(100) {
		for number := range uint64(100) {
			if err := page.decode(&zeros, id, number); err == nil {
				t.Fatalf("page %d of image %d: zeros are valid", number, id)
			}
		}
	}
}

func TestTheCacheKeepsWhatIsUsedAndNoMoreThanItMay(t *testing.T) {
	c := NewCache(0)
	hot := new(sumPage)
	c.add(1, 0, hot)
	for number := uint64(1); number < 100; number++ {
		if c.find(1, 0) != hot {
			t.Fatalf("a page in use was gone after %d others", number)
		}
		c.add(1, number, new(sumPage))
	}
	held := 0
	for number := range uint64(100) {
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
}

// What decodes is what its encoder makes.
func FuzzChecksumFile(f *testing.F) {
	h, p := examples()
	f.Add(h[:], uint64(5), uint64(3))
	f.Add(p[:], uint64(5), uint64(3))
	f.Add(make([]byte, pageBytes), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, id, number uint64) {
		var in, again [pageBytes]byte
		copy(in[:], data)
		if h, err := decodeHeader(&in, image.ID(id)); err == nil {
			h.encode(&again)
			if h2, err := decodeHeader(&again, image.ID(id)); err != nil || h2 != h {
				t.Errorf("%+v comes back as %+v, %v", h, h2, err)
			}
		}
		var page sumPage
		if err := page.decode(&in, image.ID(id), number); err == nil {
			if page.encode(&again, image.ID(id), number); again != in {
				t.Error("the page comes back as another")
			}
		}
	})
}

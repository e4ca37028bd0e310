package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/lookup"
)

const block = lookup.BlockSize

var changes = Header{
	Volume: "db", Snapshot: "tuesday", SizeBytes: 40*block + 512, Hash: sealed.Hash{1, 31: 2},
	Base: &Base{Snapshot: "monday", SizeBytes: 40 * block, Hash: sealed.Hash{3}},
}

// written is an extent to write: as many bytes of a text or, if that is empty, a hole.
type written struct {
	offsetBytes, lengthBytes int64
	text                     string
}

func (x written) data() []byte {
	if x.text == "" {
		return nil
	}
	return bytes.Repeat([]byte(x.text), int(x.lengthBytes)/len(x.text)+1)[:x.lengthBytes]
}

var fewChanges = []written{{0, block, "abc"}, {2 * block, 3 * block, ""}, {40 * block, 512, "z"}}

func write(t testing.TB, h Header, list ...written) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if x.text == "" {
			err = w.Hole(x.offsetBytes, x.lengthBytes)
		} else {
			err = w.Data(x.offsetBytes, x.data())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read returns what a stream says in words, and how it ended; nil if it was whole.
func read(from io.Reader) (said []string, err error) {
	r, err := NewReader(from)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	said = append(said, fmt.Sprintf("%+v %+v", r.Header(), r.Header().Base))
	for {
		x, err := r.Next()
		if errors.Is(err, io.EOF) {
			return append(said, fmt.Sprintf("%+v", r.Totals())), nil
		}
		if err != nil {
			return said, err
		}
		said = append(said, fmt.Sprintf("%d+%d %t %x", x.OffsetBytes, x.LengthBytes, x.Data == nil, sealed.SumOf(x.Data)))
	}
}

func TestAStreamComesBackAsItWasWritten(t *testing.T) {
	random := make([]byte, 3*MaxDataBytes+block)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(random)
	for name, c := range map[string]struct {
		header Header
		list   []written
	}{
		"of nothing":                   {Header{SizeBytes: block}, nil},
		"of changes":                   {changes, fewChanges},
		"of data longer than a frame":  {Header{Volume: "v", Snapshot: "s", SizeBytes: 16 << 20}, []written{{block, 3*MaxDataBytes + block, "ab"}}},
		"of data that don't get small": {Header{Volume: "v", Snapshot: "s", SizeBytes: 16 << 20}, []written{{0, 3*MaxDataBytes + block, string(random)}}},
		"of long names, and large":     {Header{Volume: strings.Repeat("v", 63), Snapshot: strings.Repeat("s", 63), SizeBytes: maxSizeBytes}, []written{{1 << 40, 1 << 47, ""}}},
	} {
		whole := write(t, c.header, c.list...)
		r, err := NewReader(iotest.OneByteReader(bytes.NewReader(whole)))
		if len(whole) > 1<<20 {
			r, err = NewReader(iotest.HalfReader(bytes.NewReader(whole)))
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(r.Header(), c.header) {
			t.Errorf("%s: the header is %+v, want %+v", name, r.Header(), c.header)
		}
		for _, x := range c.list {
			var data []byte
			for at := x.offsetBytes; at < x.offsetBytes+x.lengthBytes; {
				got, err := r.Next()
				if err != nil || got.OffsetBytes != at || (got.Data == nil) != (x.text == "") {
					t.Fatalf("%s: %d+%d at %d: %v", name, got.OffsetBytes, got.LengthBytes, at, err)
				}
				data, at = append(data, got.Data...), at+got.LengthBytes
			}
			if !bytes.Equal(data, x.data()) {
				t.Errorf("%s: the data at %d are others", name, x.offsetBytes)
			}
		}
		for range 2 { // it stays at its end
			if _, err := r.Next(); !errors.Is(err, io.EOF) {
				t.Errorf("%s: %v, want io.EOF", name, err)
			}
		}
	}
}

func TestEachFlippedBitOfAStreamIsFound(t *testing.T) {
	whole := write(t, changes, fewChanges...)
	for bit := range 8 * len(whole) {
		whole[bit/8] ^= 1 << (bit % 8)
		if _, err := read(bytes.NewReader(whole)); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("bit %d of %d: %v", bit, 8*len(whole), err)
		}
		whole[bit/8] ^= 1 << (bit % 8)
	}
	if _, err := read(bytes.NewReader(whole)); err != nil {
		t.Errorf("as it was written: %v", err)
	}
}

func TestAStreamThatEndsAtAnyByteBeforeItsEndIsFound(t *testing.T) {
	whole := write(t, changes, fewChanges...)
	for n := range whole {
		if _, err := read(bytes.NewReader(whole[:n])); !errors.Is(err, ErrCorrupt) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut off at byte %d of %d: %v", n, len(whole), err)
		}
	}
}

// frames cuts a stream into its header, its frames and its end.
func frames(whole []byte) (parts [][]byte) {
	parts, whole = append(parts, whole[:headerBytes]), whole[headerBytes:]
	for len(whole) > 0 {
		n := frameBytes + int(binary.LittleEndian.Uint32(whole[4:])) + crcBytes
		parts, whole = append(parts, whole[:n]), whole[n:]
	}
	return parts
}

func TestFramesInAnotherOrderOrOfAnotherStreamAreFound(t *testing.T) {
	a := frames(write(t, changes, fewChanges...))
	other := fewChanges[0]
	other.text = "xyz"
	b := frames(write(t, changes, append([]written{other}, fewChanges[1:]...)...))
	stranger := changes
	stranger.Volume = "dc"
	for name, parts := range map[string][][]byte{
		"two frames in each other's place":    {a[0], a[2], a[1], a[3], a[4]},
		"a frame is missing":                  {a[0], a[1], a[3], a[4]},
		"the first frame is missing":          {a[0], a[2], a[3], a[4]},
		"the last frame is missing":           {a[0], a[1], a[2], a[4]},
		"a frame comes twice":                 {a[0], a[1], a[1], a[2], a[3], a[4]},
		"a frame of another stream":           {a[0], b[1], a[2], a[3], a[4]},
		"the rest of another stream":          {a[0], a[1], b[2], b[3], b[4]},
		"the end of another stream":           {a[0], a[1], a[2], a[3], b[4]},
		"the header of another stream":        {stranger.encode(), a[1], a[2], a[3], a[4]},
		"something behind its end":            append(a[:5:5], []byte{0}),
		"another stream behind its end":       append(a[:5:5], b...),
		"what is no stream":                   {[]byte(strings.Repeat("PK", 300))},
		"the end comes where a frame belongs": {a[0], a[4]},
	} {
		if _, err := read(bytes.NewReader(bytes.Join(parts, nil))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// crafted is a stream with sound CRCs, whatever it says.
func crafted(h Header, list ...any) []byte {
	b := h.encode()
	crc := binary.LittleEndian.Uint32(b[headerBytes-crcBytes:])
	for i := 0; i < len(list); i += 2 {
		f, body := list[i].(frame), list[i+1].([]byte)
		f.number = uint64(i/2 + 1)
		head := f.encode(nil)
		crc = bind(crc, head, body)
		b = binary.LittleEndian.AppendUint32(append(append(b, head...), body...), crc)
	}
	return b
}

func packed(p []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return nil
	}
	return z.EncodeAll(p, nil)
}

func TestAStreamThatSaysWhatCannotBeIsRefused(t *testing.T) {
	h := Header{Volume: "v", Snapshot: "s", SizeBytes: 10 * block}
	bomb := packed(make([]byte, 64<<20))
	zeros := make([]byte, block)
	last := frame{kind: end}
	for name, whole := range map[string][]byte{
		"a body that becomes far more than a frame": crafted(h, frame{compressed, uint32(len(bomb)), 0, 0, MaxDataBytes}, bomb, last, []byte{}),
		"a body that becomes less":                  crafted(h, frame{compressed, uint32(len(packed(zeros))), 0, 0, 2 * block}, packed(zeros), last, []byte{}),
		"a body that is not zstd":                   crafted(h, frame{compressed, 5, 0, 0, block}, []byte("hello"), last, []byte{}),
		"data longer than a frame":                  crafted(h, frame{plain, MaxDataBytes + block, 0, 0, MaxDataBytes + block}, make([]byte, MaxDataBytes+block), last, []byte{}),
		"data behind the size":                      crafted(h, frame{plain, block, 0, 10 * block, block}, zeros, last, []byte{}),
		"a hole over the size":                      crafted(h, frame{hole, 0, 0, 9 * block, 2 * block}, []byte{}, last, []byte{}),
		"a hole that goes round":                    crafted(h, frame{hole, 0, 0, 9 * block, 1<<64 - block}, []byte{}, last, []byte{}),
		"a hole of nothing":                         crafted(h, frame{hole, 0, 0, 0, 0}, []byte{}, last, []byte{}),
		"a hole with a body":                        crafted(h, frame{hole, 3, 0, 0, block}, []byte("abc"), last, []byte{}),
		"data over data":                            crafted(h, frame{plain, block, 0, block, block}, zeros, frame{plain, block, 0, 0, block}, zeros, last, []byte{}),
		"a part of a block":                         crafted(h, frame{plain, 512, 0, 0, 512}, zeros[:512], last, []byte{}),
		"data that do not begin with a block":       crafted(h, frame{plain, block, 0, 512, block}, zeros, last, []byte{}),
		"an unknown kind":                           crafted(h, frame{5, 0, 0, 0, block}, []byte{}, last, []byte{}),
		"wrong totals":                              crafted(h, frame{plain, block, 0, 0, block}, zeros, last, []byte{}),
		"a body of 4 GiB":                           crafted(h, frame{plain, 1<<32 - 1, 0, 0, block}, []byte{}),
		"no size":                                   crafted(Header{}, last, []byte{}),
		"a size that no volume has":                 crafted(Header{SizeBytes: maxSizeBytes + block}, last, []byte{}),
		"a base that is larger":                     crafted(Header{SizeBytes: block, Base: &Base{SizeBytes: 2 * block}}, last, []byte{}),
	} {
		if _, err := read(bytes.NewReader(whole)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	if _, err := read(bytes.NewReader(crafted(h, last, []byte{}))); err != nil {
		t.Errorf("one that says nothing wrong: %v", err)
	}
	huge := packed(make([]byte, 256<<20))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := read(bytes.NewReader(crafted(h, frame{compressed, uint32(len(huge)), 0, 0, MaxDataBytes}, huge)))
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; err == nil || taken > 32<<20 {
		t.Errorf("256 MiB in a frame: %v, and took %d bytes", err, taken)
	}
}

func TestAStreamOfALaterVersionIsNamedSo(t *testing.T) {
	whole := write(t, changes, fewChanges...)
	binary.LittleEndian.PutUint16(whole[16:], Version+1)
	if _, err := read(bytes.NewReader(whole)); !errors.Is(err, ErrVersion) {
		t.Errorf("%v, want ErrVersion", err)
	}
}

func TestAWriterRefusesWhatNoReaderTakes(t *testing.T) {
	for _, h := range []Header{
		{},
		{SizeBytes: maxSizeBytes + 1},
		{SizeBytes: block, Volume: strings.Repeat("v", 64)},
		{SizeBytes: block, Base: &Base{SizeBytes: block, Snapshot: strings.Repeat("v", 64)}},
		{SizeBytes: block, Base: &Base{SizeBytes: 2 * block}},
	} {
		if _, err := NewWriter(io.Discard, h); err == nil {
			t.Errorf("%+v is taken", h)
		}
	}
	w, err := NewWriter(io.Discard, changes)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Hole(4*block, block), w.Data(5*block, make([]byte, block))); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"what was written already": w.Hole(5*block, block),
		"a part of a block":        w.Data(6*block, make([]byte, 3)),
		"an empty hole":            w.Hole(6*block, 0),
		"what is beyond the end":   w.Hole(6*block, 40*block),
	} {
		if err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if err := w.Close(); err != nil {
		t.Errorf("after what was refused: %v", err)
	}
	if w.Hole(8*block, block) == nil || w.Close() == nil {
		t.Error("something is taken behind the end")
	}
	if got := w.Totals(); got != (Totals{block, block}) {
		t.Errorf("totals are %+v", got)
	}
}

func TestAnErrorOfTheFileIsNotCalledDamage(t *testing.T) {
	whole := write(t, changes, fewChanges...)
	broken := errors.New("broken")
	for _, n := range []int{0, 10, headerBytes, headerBytes + 5, len(whole) - 3, len(whole)} {
		_, err := read(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
			t.Errorf("at byte %d: %v", n, err)
		}
	}
	for n := range 8 {
		w, err := NewWriter(&brittle{left: n}, changes)
		if err == nil {
			err = errors.Join(w.Hole(0, block), w.Data(block, make([]byte, block)), w.Close())
		}
		if err == nil {
			t.Errorf("it is written whole by %d writes", n)
		}
	}
}

// brittle takes so many writes.
type brittle struct{ left int }

func (b *brittle) Write(p []byte) (int, error) {
	if b.left--; b.left < 0 {
		return 0, errors.New("broken")
	}
	return len(p), nil
}

// Whatever the bytes are, they are refused, or they are what is written anew from
// what they say.
func FuzzAStreamOfAnyBytes(f *testing.F) {
	seeds := [][]byte{
		write(f, changes, fewChanges...),
		write(f, Header{SizeBytes: block}),
		crafted(changes, frame{compressed, uint32(len(packed(make([]byte, block)))), 0, 0, block}, packed(make([]byte, block)), frame{kind: end, offsetBytes: block}, []byte{}),
		crafted(changes, frame{hole, 0, 0, 9 * block, 1<<64 - block}, []byte{}),
	}
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := read(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var again bytes.Buffer
		w, err := NewWriter(&again, r.Header())
		for err == nil {
			var x Extent
			if x, err = r.Next(); err != nil {
				break
			}
			if x.Data == nil {
				err = w.Hole(x.OffsetBytes, x.LengthBytes)
			} else {
				err = w.Data(x.OffsetBytes, x.Data)
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if second, err := read(&again); err != nil || strings.Join(second[1:], "\n") != strings.Join(first[1:], "\n") {
			t.Fatalf("written anew it is %q, %v, not %q", second, err, first)
		}
	})
}

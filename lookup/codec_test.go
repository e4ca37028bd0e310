package lookup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

// tb is what *testing.T, *testing.F and *rapid.T have in common.
type tb interface{ Fatalf(string, ...any) }

func mustEncode(t tb, table *Table) []byte {
	var buf bytes.Buffer
	if err := table.EncodeTo(&buf); err != nil {
		t.Fatalf("EncodeTo: %v", err)
	}
	return buf.Bytes()
}

func mustDecode(t tb, body []byte) *Table {
	r := bytes.NewReader(append(slices.Clone(body), "next"...))
	table, err := Decode(r)
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	if r.Len() != len("next") {
		t.Fatalf("Decode left %d bytes, want what follows the body, 4", r.Len())
	}
	return table
}

// samples are tables of every kind of leaf.
func samples() map[string]*Table {
	m := map[string]*Table{"empty": NewTable(), "one block": NewTable(), "far": NewTable(), "uniform": NewTable(), "mixed": NewTable()}
	m["one block"].Set(77, 1, Zero)
	m["far"].Set(MaxBlocks-1, 1, Data)
	m["uniform"].Set(0, midBlocks+LeafBlocks, Data)
	m["uniform"].Set(0, 2*LeafBlocks, Zero)
	mixed := m["mixed"]
	mixed.Set(LeafBlocks-3, 9, Data)
	for b := BlockNum(4 * LeafBlocks); b < 5*LeafBlocks; b += 3 {
		mixed.Set(b, 1, Data+State(b%2))
	}
	mixed.Set(5*LeafBlocks, LeafBlocks, Data)
	return m
}

func TestATableSurvivesItsEncoding(t *testing.T) {
	for name, table := range samples() {
		body := mustEncode(t, table)
		same := mustDecode(t, body)
		if !slices.Equal(slices.Collect(table.Extents(0, MaxBlocks)), slices.Collect(same.Extents(0, MaxBlocks))) {
			t.Errorf("%s: extents differ", name)
		}
		d1, z1 := table.Counts()
		if d2, z2 := same.Counts(); d1 != d2 || z1 != z2 {
			t.Errorf("%s: counts %d, %d, want %d, %d", name, d2, z2, d1, z1)
		}
		if slow, err := Decode(iotest.OneByteReader(bytes.NewReader(body))); err != nil || !bytes.Equal(mustEncode(t, slow), body) {
			t.Errorf("%s: by single bytes: %v", name, err)
		}
		for cut := range body {
			if _, err := Decode(bytes.NewReader(body[:cut])); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s: cut at %d of %d: %v", name, cut, len(body), err)
			}
		}
	}
	for name, most := range map[string]int{"empty": 1, "one block": 12, "far": 20, "uniform": 12, "mixed": leafBytes + 64} {
		if n := len(mustEncode(t, samples()[name])); n > most {
			t.Errorf("%s takes %d bytes, want at most %d", name, n, most)
		}
	}
}

func TestAMalformedBodyIsCorrupt(t *testing.T) {
	item := func(k itemKind, count uint64) []byte {
		return binary.AppendUvarint(nil, count<<itemKindBits|uint64(k))
	}
	run := func(n uint64, s State) []byte { return binary.AppendUvarint(nil, n<<stateBits|uint64(s)) }
	for name, body := range map[string][]byte{
		"nothing":                       nil,
		"an end with a count":           item(itemEnd, 1),
		"an unknown kind":               item(7, 1),
		"no leaves":                     item(itemData, 0),
		"leaves past the volume":        item(itemData, maxLeaves+1),
		"a skip past the volume":        item(itemAbsent, maxLeaves+1),
		"a count that wraps":            item(itemAbsent, 1<<60-1),
		"a leaf after the last":         slices.Concat(item(itemAbsent, maxLeaves), item(itemData, 1)),
		"two dense leaves":              item(itemDense, 2),
		"a dense leaf with state 3":     slices.Concat(item(itemDense, 1), bytes.Repeat([]byte{0xc0}, leafBytes), item(itemEnd, 0)),
		"a run of no blocks":            slices.Concat(item(itemRuns, 2), run(0, Data), run(LeafBlocks, Zero)),
		"a run of state 3":              slices.Concat(item(itemRuns, 1), run(LeafBlocks, 3)),
		"a run past the leaf":           slices.Concat(item(itemRuns, 2), run(9, Data), run(LeafBlocks-8, Zero)),
		"runs that end before it":       slices.Concat(item(itemRuns, 1), run(LeafBlocks-1, Data), item(itemEnd, 0)),
		"a number without end":          bytes.Repeat([]byte{0x80}, 20),
		"a number of more than 63 bits": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
	} {
		if _, err := Decode(bytes.NewReader(body)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrorsOfReaderAndWriterAreHandedOn(t *testing.T) {
	broken := errors.New("broken")
	body := mustEncode(t, samples()["mixed"])
	r := io.MultiReader(bytes.NewReader(body[:len(body)/2]), iotest.ErrReader(broken))
	if _, err := Decode(r); !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
		t.Errorf("Decode: %v", err)
	}
	_, w := io.Pipe()
	if err := w.CloseWithError(broken); err != nil {
		t.Fatal(err)
	}
	if err := samples()["mixed"].EncodeTo(w); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("EncodeTo: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, table := range samples() {
		f.Add(mustEncode(f, table))
	}
	f.Add([]byte{7<<itemKindBits | 4})
	f.Fuzz(func(t *testing.T, body []byte) {
		table, err := Decode(bytes.NewReader(body))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("not ErrCorrupt: %v", err)
			}
			return
		}
		if most := int64(len(body))*2048 + 34<<20; table.MemoryBytes() > most {
			t.Fatalf("%d bytes made %d bytes of table", len(body), table.MemoryBytes())
		}
		if data, zero := table.Counts(); data+zero > 1<<30 {
			return // correct or not, too slow to look at by the thousand
		}
		again := mustEncode(t, table)
		if same := mustDecode(t, again); !bytes.Equal(mustEncode(t, same), again) {
			t.Fatal("the second encoding differs from the first")
		}
		var data, zero uint64
		for e := range table.Extents(0, MaxBlocks) {
			if e.State == Data {
				data += e.Count
			} else {
				zero += e.Count
			}
		}
		if d, z := table.Counts(); d != data || z != zero {
			t.Fatalf("Counts = %d, %d, extents have %d, %d", d, z, data, zero)
		}
	})
}

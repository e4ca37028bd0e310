package lookup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrCorrupt says that bytes are no encoded table.
var ErrCorrupt = errors.New("lookup: corrupt table")

// The body of an encoded table is a sequence of items for its leaves from block 0
// on, and an end. An item is a uvarint (count << 3 | kind) and what kind says:
//
//	itemEnd     count 0. All leaves after it are absent
//	itemAbsent  count leaves all absent
//	itemData    count leaves all data
//	itemZero    count leaves all zero
//	itemRuns    one leaf of count runs, each a uvarint (blocks << 2 | state),
//	            blocks at least 1, together LeafBlocks
//	itemDense   count 1. One leaf: 512 little-endian words of 32 states, block 0
//	            in the lowest two bits
//
// Magic, version and CRC are those of the file that the body lies in.
const (
	itemEnd    = 0
	itemAbsent = itemKind(1 + Absent)
	itemData   = itemKind(1 + Data)
	itemZero   = itemKind(1 + Zero)
	itemRuns   = itemKind(4)
	itemDense  = itemKind(5)
)

type itemKind uint8

const (
	itemKindBits = 3
	leafBytes    = leafWords * 8
	flushBytes   = 64 << 10
)

// EncodeTo writes the table's body to w in pieces of about 64 KiB. It needs no
// lock: of a block that is written meanwhile it writes the state before or
// after. The errors are those of w.
func (t *Table) EncodeTo(w io.Writer) error {
	t = t.unpacked()
	e := encoder{w: w}
	next := BlockNum(0)
	for b, c := range t.cells() {
		e.uniform(Absent, uint64(b-next)/LeafBlocks)
		e.leaf(c.Load().still())
		next = b + LeafBlocks
	}
	return e.end()
}

type encoder struct {
	w     io.Writer
	err   error
	buf   []byte
	state State  // of the uniform leaves not yet written
	same  uint64 // how many they are
}

func (e *encoder) uniform(s State, leaves uint64) {
	if leaves > 0 && s != e.state {
		e.flushUniform()
		e.state = s
	}
	e.same += leaves
}

func (e *encoder) flushUniform() {
	if e.same > 0 {
		e.item(itemAbsent+itemKind(e.state), e.same)
	}
	e.same = 0
}

func (e *encoder) item(k itemKind, count uint64) {
	if len(e.buf) >= flushBytes {
		e.flush()
	}
	e.buf = binary.AppendUvarint(e.buf, count<<itemKindBits|uint64(k))
}

// leaf encodes a leaf that no writer changes.
func (e *encoder) leaf(l *leaf) {
	if s, ok := uniformState(l); ok {
		e.uniform(s, 1)
		return
	}
	e.flushUniform()
	var room [leafBytes]byte
	if runs, count, ok := l.appendRuns(room[:0]); ok {
		e.item(itemRuns, count)
		e.buf = append(e.buf, runs...)
		return
	}
	e.item(itemDense, 1)
	for _, w := range l {
		e.buf = binary.LittleEndian.AppendUint64(e.buf, w)
	}
}

// appendRuns encodes the leaf's runs if that is shorter than the leaf itself.
func (l *leaf) appendRuns(to []byte) (runs []byte, count uint64, ok bool) {
	for i := uint64(0); i < LeafBlocks; count++ {
		s := l.get(i)
		n := l.stretch(i, LeafBlocks-i, s)
		to = binary.AppendUvarint(to, n<<stateBits|uint64(s))
		if len(to) >= leafBytes {
			return nil, 0, false
		}
		i += n
	}
	return to, count, true
}

func (e *encoder) end() error {
	if e.state != Absent {
		e.flushUniform()
	}
	e.item(itemEnd, 0)
	e.flush()
	return e.err
}

func (e *encoder) flush() {
	if e.err == nil {
		if _, err := e.w.Write(e.buf); err != nil {
			e.err = fmt.Errorf("lookup: writing table: %w", err)
		}
	}
	e.buf = e.buf[:0]
}

// Decode reads a body that EncodeTo wrote, and not a byte more. It reads by
// bytes, so r had better be an io.ByteReader: a bufio.Reader, a bytes.Reader.
// Every body that EncodeTo can't have meant, a truncated one too, is ErrCorrupt;
// other errors are those of r. A body makes no more memory than about a thousand
// times its length and 32 MiB.
func Decode(r io.Reader) (*Table, error) { return decode(r, &builder{leaves: NewTable()}) }

// DecodePacked is Decode of a table that nobody sets blocks in any more.
func DecodePacked(r io.Reader) (*Table, error) { return decode(r, new(builder)) }

func decode(r io.Reader, to *builder) (*Table, error) {
	in, ok := r.(byteReader)
	if !ok {
		in = &oneByte{Reader: r}
	}
	for b := BlockNum(0); ; {
		leaves, err := decodeItem(in, to, b)
		if err != nil {
			return nil, err
		}
		if leaves == 0 {
			return to.table(), nil
		}
		b += BlockNum(leaves * LeafBlocks)
	}
}

// decodeItem reads one item into the leaves from block b on and returns how many
// leaves it covers, 0 at the end.
func decodeItem(in byteReader, to *builder, b BlockNum) (leaves uint64, err error) {
	tag, err := uvarint(in)
	if err != nil {
		return 0, err
	}
	count, kind := tag>>itemKindBits, itemKind(tag%(1<<itemKindBits))
	room := uint64(MaxBlocks-b) / LeafBlocks
	switch {
	case kind == itemEnd && count == 0:
		return 0, nil
	case kind == itemEnd || count == 0:
		return 0, fmt.Errorf("%w: item %d of count %d", ErrCorrupt, kind, count)
	case room == 0:
		return 0, fmt.Errorf("%w: leaves past the largest volume", ErrCorrupt)
	}
	switch kind {
	case itemAbsent, itemData, itemZero:
		if count > room {
			return 0, fmt.Errorf("%w: leaves past the largest volume", ErrCorrupt)
		}
		to.set(b, count*LeafBlocks, State(kind-itemAbsent))
		return count, nil
	case itemRuns:
		return 1, decodeRuns(in, to, b, count)
	case itemDense:
		if count != 1 {
			return 0, fmt.Errorf("%w: dense leaf of count %d", ErrCorrupt, count)
		}
		return 1, decodeDense(in, to, b)
	}
	return 0, fmt.Errorf("%w: item of kind %d", ErrCorrupt, kind)
}

func decodeRuns(in byteReader, to *builder, b BlockNum, count uint64) error {
	left := uint64(LeafBlocks)
	for ; count > 0; count-- {
		run, err := uvarint(in)
		if err != nil {
			return err
		}
		n, s := run>>stateBits, State(run%(1<<stateBits))
		if n == 0 || n > left || s > Zero {
			return fmt.Errorf("%w: run of %d blocks, state %d, with %d left in the leaf", ErrCorrupt, n, s, left)
		}
		if s != Absent {
			to.set(b+BlockNum(LeafBlocks-left), n, s)
		}
		left -= n
	}
	if left > 0 {
		return fmt.Errorf("%w: runs end %d blocks before their leaf", ErrCorrupt, left)
	}
	return nil
}

func decodeDense(in byteReader, to *builder, b BlockNum) error {
	var raw [leafBytes]byte
	if _, err := io.ReadFull(in, raw[:]); err != nil {
		return readError(err)
	}
	l := new(leaf)
	for i := range l {
		l[i] = binary.LittleEndian.Uint64(raw[i*8:])
		if l[i]&(l[i]>>1)&lowBits != 0 {
			return fmt.Errorf("%w: invalid state in a dense leaf", ErrCorrupt)
		}
	}
	to.leaf(b, l)
	return nil
}

type byteReader interface {
	io.Reader
	io.ByteReader
}

// oneByte reads single bytes from a reader that has no ReadByte, without taking
// bytes past the body from it.
type oneByte struct {
	io.Reader
	b [1]byte
}

func (o *oneByte) ReadByte() (byte, error) {
	_, err := io.ReadFull(o.Reader, o.b[:])
	return o.b[0], err
}

// uvarint reads a uvarint of at most 63 bits: no field is longer.
func uvarint(in io.ByteReader) (uint64, error) {
	if b, ok := in.(*bufio.Reader); ok { // of a table file, which may be long
		p, _ := b.Peek(2)
		switch {
		case len(p) > 0 && p[0] < 0x80:
			_, err := b.Discard(1)
			return uint64(p[0]), err
		case len(p) > 1 && p[1] < 0x80:
			_, err := b.Discard(2)
			return uint64(p[0]&0x7f) | uint64(p[1])<<7, err
		}
	}
	var v uint64
	for shift := 0; shift < 63; shift += 7 {
		c, err := in.ReadByte()
		if err != nil {
			return 0, readError(err)
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: number too long", ErrCorrupt)
}

func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: truncated: %w", ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("lookup: reading table: %w", err)
}

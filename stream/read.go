package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Reader reads one stream. One goroutine uses it at a time. It holds two frames'
// worth of memory, whatever the stream says.
type Reader struct {
	from       io.Reader
	header     Header
	zstd       *zstd.Decoder
	crc        uint32 // of the last frame
	number     uint64
	afterBytes int64 // where the last extent ended
	totals     Totals
	head       [frameBytes]byte
	body       []byte
	data       []byte
	ended      error // what Next goes on to return
}

// Extent is a range of the state: its bytes, or that it reads as zeros.
type Extent struct {
	OffsetBytes, LengthBytes int64
	// Data is nil for a hole. It is valid until the next call of Next.
	Data []byte
}

// NewReader reads the header. Errors: ErrCorrupt, ErrVersion, those of from.
func NewReader(from io.Reader) (*Reader, error) {
	var b [headerBytes]byte
	if err := readFull(from, b[:]); err != nil {
		return nil, err
	}
	h, err := decodeHeader(&b)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(MaxDataBytes))
	if err != nil {
		return nil, fmt.Errorf("read a stream: %w", err)
	}
	return &Reader{from: from, header: h, zstd: z, crc: binary.LittleEndian.Uint32(b[headerBytes-crcBytes:])}, nil
}

// Header says what the stream is of.
func (r *Reader) Header() Header { return r.header }

// Totals returns what was read up to now.
func (r *Reader) Totals() Totals { return r.totals }

// Close gives the memory back. It does not close what is read from.
func (r *Reader) Close() { r.zstd.Close() }

// Next returns the next extent. io.EOF says that the stream was whole: its end came
// and is right. Errors: ErrCorrupt, those of from; they stay.
func (r *Reader) Next() (Extent, error) {
	if r.ended != nil {
		return Extent{}, r.ended
	}
	x, err := r.next()
	r.ended = err
	return x, err
}

func (r *Reader) next() (Extent, error) {
	f, err := r.frame()
	if err != nil {
		return Extent{}, err
	}
	if f.kind == end {
		return Extent{}, r.end(f)
	}
	if !f.within(r.afterBytes, r.header.SizeBytes) {
		return Extent{}, r.corrupt("%d bytes at %d do not follow those that end at %d of %d", f.lengthBytes, f.offsetBytes, r.afterBytes, r.header.SizeBytes)
	}
	x := Extent{OffsetBytes: int64(f.offsetBytes), LengthBytes: int64(f.lengthBytes)}
	r.afterBytes = x.OffsetBytes + x.LengthBytes
	switch f.kind {
	case hole:
		r.totals.HoleBytes += x.LengthBytes
		return x, nil
	case plain:
		x.Data = r.body
	case compressed:
		r.data, err = r.zstd.DecodeAll(r.body, r.data[:0])
		if err != nil || int64(len(r.data)) != x.LengthBytes {
			return Extent{}, r.corrupt("its %d bytes make %d, not %d (%v)", len(r.body), len(r.data), x.LengthBytes, err)
		}
		x.Data = r.data
	}
	r.totals.DataBytes += x.LengthBytes
	return x, nil
}

// frame reads a frame and its body, and holds them against their CRC.
func (r *Reader) frame() (frame, error) {
	r.number++
	if err := readFull(r.from, r.head[:]); err != nil {
		return frame{}, err
	}
	f, err := decodeFrame(&r.head)
	if err != nil {
		return f, r.corrupt("%w", err)
	}
	n := int(f.bodyBytes) + crcBytes
	if cap(r.body) < n {
		r.body = make([]byte, MaxDataBytes+crcBytes)
	}
	b := r.body[:n]
	if err := readFull(r.from, b); err != nil {
		return f, err
	}
	r.body = b[:f.bodyBytes]
	r.crc = bind(r.crc, r.head[:], r.body)
	if binary.LittleEndian.Uint32(b[f.bodyBytes:]) != r.crc || f.number != r.number {
		return f, r.corrupt("it is damaged, or of another place or stream")
	}
	return f, nil
}

// end looks at the totals, and that nothing follows.
func (r *Reader) end(f frame) error {
	if f.offsetBytes != uint64(r.totals.DataBytes) || f.lengthBytes != uint64(r.totals.HoleBytes) {
		return r.corrupt("its totals are not those of the frames before")
	}
	var b [1]byte
	switch n, err := io.ReadFull(r.from, b[:]); {
	case n > 0:
		return fmt.Errorf("%w: something follows its end", ErrCorrupt)
	case !errors.Is(err, io.EOF):
		return err
	}
	return io.EOF
}

func (r *Reader) corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: frame %d: %w", ErrCorrupt, r.number, fmt.Errorf(format, args...))
}

func readFull(from io.Reader, b []byte) error {
	_, err := io.ReadFull(from, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it was cut off: %w", ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return err
}

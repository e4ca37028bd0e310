package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Writer writes one stream. One goroutine uses it at a time. After an error nothing
// more can be written: what is there is no whole stream, and its reader will say so.
type Writer struct {
	to         io.Writer
	header     Header
	zstd       *zstd.Encoder
	crc        uint32 // of the last frame
	number     uint64
	afterBytes int64 // where the last extent ended
	totals     Totals
	head       []byte
	packed     []byte
	failed     error
}

// NewWriter writes the header. Names and sizes that no stream can have are errors.
func NewWriter(to io.Writer, h Header) (*Writer, error) {
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("write a stream: %w", err)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("write a stream: %w", err)
	}
	w := &Writer{to: to, header: h, zstd: z}
	b := h.encode()
	w.crc = binary.LittleEndian.Uint32(b[headerBytes-crcBytes:])
	_, err = to.Write(b)
	return w, err
}

// Data writes bytes from an offset on: whole blocks, but at the end of the state,
// behind all that was written before.
func (w *Writer) Data(off int64, p []byte) error {
	for len(p) > 0 {
		part := p[:min(len(p), MaxDataBytes)]
		body, kind := part, byte(plain)
		if w.packed = w.zstd.EncodeAll(part, w.packed[:0]); len(w.packed) < len(part) {
			body, kind = w.packed, compressed
		}
		if err := w.extent(frame{kind: kind, bodyBytes: uint32(len(body)), offsetBytes: uint64(off), lengthBytes: uint64(len(part))}, body); err != nil {
			return err
		}
		w.totals.DataBytes += int64(len(part))
		off, p = off+int64(len(part)), p[len(part):]
	}
	return nil
}

// Hole writes that a range, as Data's, reads as zeros.
func (w *Writer) Hole(off, lengthBytes int64) error {
	if err := w.extent(frame{kind: hole, offsetBytes: uint64(off), lengthBytes: uint64(lengthBytes)}, nil); err != nil {
		return err
	}
	w.totals.HoleBytes += lengthBytes
	return nil
}

// Close writes the end. It does not close what it writes to.
func (w *Writer) Close() error {
	err := w.frame(frame{kind: end, offsetBytes: uint64(w.totals.DataBytes), lengthBytes: uint64(w.totals.HoleBytes)}, nil)
	if w.failed == nil {
		w.failed = errors.New("the stream has its end already")
	}
	return err
}

// Totals returns what was written up to now.
func (w *Writer) Totals() Totals { return w.totals }

func (w *Writer) extent(f frame, body []byte) error {
	if w.failed == nil && !f.within(w.afterBytes, w.header.SizeBytes) {
		return fmt.Errorf("write a stream: %d bytes at %d do not follow those that end at %d of %d", f.lengthBytes, f.offsetBytes, w.afterBytes, w.header.SizeBytes)
	}
	w.afterBytes = int64(f.offsetBytes + f.lengthBytes)
	return w.frame(f, body)
}

func (w *Writer) frame(f frame, body []byte) error {
	if w.failed != nil {
		return w.failed
	}
	w.number++
	f.number = w.number
	w.head = f.encode(w.head[:0])
	w.crc = bind(w.crc, w.head, body)
	for _, part := range [][]byte{w.head, body, binary.LittleEndian.AppendUint32(nil, w.crc)} {
		if _, err := w.to.Write(part); err != nil {
			w.failed = err
			return err
		}
	}
	return nil
}

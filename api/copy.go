package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/lookup"
)

// Import copies src into a volume, from its first byte on, and flushes it.
// Holes of src, where it is a file that knows them, and blocks of zeros become
// holes of the volume. progress is told of each stretch that was sent, in
// bytes. A sizeBytes of -1 says that src is a stream: it is read to its end.
// Errors: those of the call, of src, and io.ErrUnexpectedEOF when src is
// shorter than sizeBytes.
func Import(ctx context.Context, c Client, volume string, src *os.File, sizeBytes int64, progress func(int64)) (dataBytes, holeBytes int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a source that fails must not end the stream as if it were whole
	stream, err := c.Import(ctx)
	if err != nil {
		return 0, 0, err
	}
	if err := stream.Send(&tidemarkv1.ImportRequest{Volume: volume}); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	err = read(src, sizeBytes, func(off int64, data []byte, hole int64) error {
		m := &tidemarkv1.ImportRequest{OffsetBytes: off}
		if data != nil {
			m.Content = &tidemarkv1.ImportRequest_Data{Data: data}
		} else {
			m.Content = &tidemarkv1.ImportRequest_HoleBytes{HoleBytes: hole}
		}
		if err := stream.Send(m); err != nil {
			return sendError{err}
		}
		progress(int64(len(data)) + hole)
		return nil
	})
	if _, refused := err.(sendError); err != nil && !refused {
		return 0, 0, err
	}
	// After a send that failed, the answer says why.
	done, err := stream.CloseAndReceive()
	if err != nil {
		return 0, 0, err
	}
	return done.GetDataBytes(), done.GetHoleBytes(), nil
}

// sendError marks that the stream broke, not the source.
type sendError struct{ error }

// read yields the ranges of src in ascending order, each with data or with the
// length of a hole.
func read(src *os.File, sizeBytes int64, yield func(off int64, data []byte, hole int64) error) error {
	if sizeBytes < 0 {
		_, err := readData(src, 0, 1<<63-1, yield)
		return err
	}
	for off := int64(0); off < sizeBytes; {
		data, end := nextData(src, off, sizeBytes)
		if data > off {
			if err := yield(off, nil, data-off); err != nil {
				return err
			}
		}
		n, err := readData(io.NewSectionReader(src, data, end-data), data, end-data, yield)
		if err != nil {
			return err
		}
		if n < end-data {
			return fmt.Errorf("read %s: it became shorter meanwhile: %w", src.Name(), io.ErrUnexpectedEOF)
		}
		off = end
	}
	return nil
}

// nextData returns the first range of data at or after off, cut to sizeBytes;
// where src knows no holes, all the rest.
func nextData(src *os.File, off, sizeBytes int64) (begin, end int64) {
	begin, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // hole to the end, or past it
		if info, err := src.Stat(); err == nil && info.Size() < sizeBytes {
			return off, sizeBytes // the read will find its end
		}
		return sizeBytes, sizeBytes
	case err != nil:
		return off, sizeBytes
	}
	end, err = unix.Seek(int(src.Fd()), begin, unix.SEEK_HOLE)
	if err != nil {
		end = sizeBytes
	}
	return min(begin, sizeBytes), min(end, sizeBytes)
}

// readData reads up to limitBytes and yields them from offset off on, blocks of
// zeros as holes. It returns how much it read.
func readData(r io.Reader, off, limitBytes int64, yield func(int64, []byte, int64) error) (total int64, err error) {
	buf := make([]byte, chunkBytes)
	for total < limitBytes {
		n, err := io.ReadFull(r, buf[:min(chunkBytes, limitBytes-total)])
		if e := split(off+total, buf[:n], yield); e != nil {
			return total, e
		}
		total += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("read the source: %w", err)
		}
	}
	return total, nil
}

// split yields p as stretches of blocks that are all zero, or not.
func split(off int64, p []byte, yield func(int64, []byte, int64) error) error {
	for len(p) > 0 {
		hole := isZero(p[:min(lookup.BlockSize, len(p))])
		n := min(lookup.BlockSize, len(p))
		for n < len(p) && isZero(p[n:min(n+lookup.BlockSize, len(p))]) == hole {
			n = min(n+lookup.BlockSize, len(p))
		}
		data, holeBytes := p[:n], int64(0)
		if hole {
			data, holeBytes = nil, int64(n)
		}
		if err := yield(off, data, holeBytes); err != nil {
			return err
		}
		off, p = off+int64(n), p[n:]
	}
	return nil
}

var zeros [lookup.BlockSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// Target takes what an export yields, in ascending order: WriteAt for data,
// Hole for a range that reads as zeros. Resize comes first, with the size.
type Target interface {
	io.WriterAt
	Resize(sizeBytes int64) error
	Hole(off, lengthBytes int64) error
}

// Export copies a snapshot ("VOLUME@SNAPSHOT") or a live volume to dst. Blocks
// of zeros count as holes. progress is told of each stretch that arrived, and
// size once of all. Errors: those of the call and of dst.
func Export(ctx context.Context, c Client, name string, dst Target, size, progress func(bytes int64)) (dataBytes, holeBytes int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Export(ctx, &tidemarkv1.ExportRequest{Name: name})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = stream.Close() }()
	if !stream.Receive() {
		return 0, 0, stream.Err()
	}
	sizeBytes := stream.Msg().GetSizeBytes()
	size(sizeBytes)
	if err := dst.Resize(sizeBytes); err != nil {
		return 0, 0, err
	}
	store := func(off int64, data []byte, hole int64) error {
		progress(int64(len(data)) + hole)
		dataBytes, holeBytes = dataBytes+int64(len(data)), holeBytes+hole
		if data == nil {
			return dst.Hole(off, hole)
		}
		_, err := dst.WriteAt(data, off)
		return err
	}
	for stream.Receive() {
		m := stream.Msg()
		if data := m.GetData(); data != nil {
			err = split(m.GetOffsetBytes(), data, store)
		} else {
			err = store(m.GetOffsetBytes(), nil, m.GetHoleBytes())
		}
		if err != nil {
			return 0, 0, err
		}
	}
	if err := stream.Err(); err != nil {
		return 0, 0, err
	}
	return dataBytes, holeBytes, ended(name, dataBytes+holeBytes, sizeBytes)
}

// ended is nil if as much of an export arrived as there is.
func ended(name string, got, want int64) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("export of %s ended at %d of %d bytes: %w", name, got, want, io.ErrUnexpectedEOF)
}

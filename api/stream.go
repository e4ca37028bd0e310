package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/stream"
)

// bufferBytes is how much of a stream is read and written at once: a frame may be short.
const bufferBytes = 256 << 10

// ExportStream writes a snapshot ("VOLUME@SNAPSHOT") to dst as a stream (package
// stream): all of it, or, if since is not empty, what it has that this older one of
// the same volume has not. It waits until they are sealed. Blocks of zeros count as
// holes; a stream of all has none. size and progress are as Export's. Errors: those
// of the call and of dst; what was written before one is no whole stream.
func ExportStream(ctx context.Context, c Client, name, since string, dst io.Writer, size, progress func(bytes int64)) (stream.Header, stream.Totals, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from, err := c.Export(ctx, &tidemarkv1.ExportRequest{Name: name, Since: since, UntilSealed: true})
	if err != nil {
		return stream.Header{}, stream.Totals{}, err
	}
	defer func() { _ = from.Close() }()
	if !from.Receive() {
		return stream.Header{}, stream.Totals{}, from.Err()
	}
	begin := from.Msg()
	h, err := headerOf(name, since, begin)
	if err != nil {
		return h, stream.Totals{}, err
	}
	want, got := begin.GetSizeBytes(), int64(0)
	if since != "" {
		want = begin.GetChangedBytes()
	}
	size(want)
	buffered := bufio.NewWriterSize(dst, bufferBytes)
	w, err := stream.NewWriter(buffered, h)
	if err != nil {
		return h, stream.Totals{}, err
	}
	write := func(off int64, data []byte, hole int64) error {
		switch {
		case data != nil:
			return w.Data(off, data)
		case since != "":
			return w.Hole(off, hole)
		}
		return nil // of all, what is not there is zeros
	}
	for from.Receive() {
		m := from.Msg()
		if data := m.GetData(); data != nil {
			err = split(m.GetOffsetBytes(), data, write)
		} else {
			err = write(m.GetOffsetBytes(), nil, m.GetHoleBytes())
		}
		if err != nil {
			return h, stream.Totals{}, err
		}
		n := int64(len(m.GetData())) + m.GetHoleBytes()
		got += n
		progress(n)
	}
	if err := from.Err(); err != nil {
		return h, stream.Totals{}, err
	}
	if err := ended(name, got, want); err != nil {
		return h, stream.Totals{}, err
	}
	if err := w.Close(); err != nil {
		return h, stream.Totals{}, err
	}
	return h, w.Totals(), buffered.Flush()
}

// headerOf makes the header of a stream from the first message of an export.
func headerOf(name, since string, m *tidemarkv1.ExportResponse) (h stream.Header, err error) {
	h.Volume, h.Snapshot, _ = strings.Cut(name, "@")
	h.SizeBytes = m.GetSizeBytes()
	if h.Hash, err = sealed.ParseHash(m.GetHash()); err != nil || since == "" {
		return h, err
	}
	h.Base = &stream.Base{SizeBytes: m.GetBaseSizeBytes()}
	_, h.Base.Snapshot, _ = strings.Cut(since, "@")
	h.Base.Hash, err = sealed.ParseHash(m.GetBaseHash())
	return h, err
}

// Apply reads a stream to its end and makes a snapshot of a volume of it: of a new
// volume, if the stream is of all of a snapshot, else of one that holds its base.
// After an error nothing has changed. Errors: those of the call and of package
// stream.
func Apply(ctx context.Context, c Client, volume string, src io.Reader) (*tidemarkv1.ApplyResponse, error) {
	from, err := stream.NewReader(bufio.NewReaderSize(src, bufferBytes))
	if err != nil {
		return nil, err
	}
	defer from.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	to, err := c.Apply(ctx)
	if err != nil {
		return nil, err
	}
	send := func(m *tidemarkv1.ApplyRequest) error {
		if err := to.Send(m); err != nil {
			return sendError{err}
		}
		return nil
	}
	err = sendAll(from, volume, send)
	// Without the end the server lets go what it has, and has done so when it answers.
	// After a send that failed, the answer says why.
	done, refused := to.CloseAndReceive()
	if _, broke := err.(sendError); err != nil && !broke {
		return nil, err
	}
	return done, refused
}

// sendAll sends what a stream says; the end, when it was found to be whole.
func sendAll(from *stream.Reader, volume string, send func(*tidemarkv1.ApplyRequest) error) error {
	h := from.Header()
	header := &tidemarkv1.ApplyHeader{Volume: volume, Snapshot: h.Snapshot, SizeBytes: h.SizeBytes, Hash: h.Hash.String()}
	if h.Base != nil {
		header.BaseSizeBytes, header.BaseHash = h.Base.SizeBytes, h.Base.Hash.String()
	}
	if err := send(&tidemarkv1.ApplyRequest{Header: header}); err != nil {
		return err
	}
	for {
		x, err := from.Next()
		if errors.Is(err, io.EOF) {
			return send(&tidemarkv1.ApplyRequest{Content: &tidemarkv1.ApplyRequest_End{End: true}})
		}
		if err != nil {
			return fmt.Errorf("%w; nothing has changed", err)
		}
		m := &tidemarkv1.ApplyRequest{OffsetBytes: x.OffsetBytes}
		if x.Data != nil {
			m.Content = &tidemarkv1.ApplyRequest_Data{Data: x.Data}
		} else {
			m.Content = &tidemarkv1.ApplyRequest_HoleBytes{HoleBytes: x.LengthBytes}
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

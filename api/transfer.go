package api

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

const (
	maxImportBytes = 4 << 20  // data of one import message
	chunkBytes     = 1 << 20  // data of one message that this package sends
	trimBytes      = 1 << 30  // longest trim at once: a trim holds the lock of its range
	windowBytes    = 64 << 20 // extents looked up at once
)

func (s *service) Import(ctx context.Context, stream *connect.ClientStream[tidemarkv1.ImportRequest]) (*tidemarkv1.ImportResponse, error) {
	if !stream.Receive() {
		return nil, wireError(fmt.Errorf("%w: import without a message", store.ErrInvalid), nil)
	}
	if err := s.may(ctx, rpc.TidemarkServiceImportProcedure, stream.Msg().GetVolume()); err != nil {
		return nil, wireError(err, nil)
	}
	view, err := s.store.OpenView(stream.Msg().GetVolume() + ":request")
	if err != nil {
		return nil, wireError(err, nil)
	}
	done, err := importInto(view, stream)
	if err == nil {
		err = view.Flush()
	}
	if e := view.Close(); err == nil {
		err = e
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, wireError(fmt.Errorf("import: %w", err), nil)
	}
	return done, nil
}

// importInto writes the message at hand and all that follow.
func importInto(view *volume.View, stream *connect.ClientStream[tidemarkv1.ImportRequest]) (*tidemarkv1.ImportResponse, error) {
	done := &tidemarkv1.ImportResponse{}
	for {
		m := stream.Msg()
		switch content := m.GetContent().(type) {
		case *tidemarkv1.ImportRequest_Data:
			if _, err := view.WriteAt(content.Data, m.GetOffsetBytes()); err != nil {
				return nil, err
			}
			done.DataBytes += int64(len(content.Data))
		case *tidemarkv1.ImportRequest_HoleBytes:
			if err := makeHole(view, m.GetOffsetBytes(), content.HoleBytes); err != nil {
				return nil, err
			}
			done.HoleBytes += content.HoleBytes
		}
		if !stream.Receive() {
			return done, stream.Err()
		}
	}
}

func makeHole(view interface {
	Trim(off, lengthBytes int64) error
}, off, lengthBytes int64) error {
	if lengthBytes < 0 {
		return fmt.Errorf("%w: hole of %d bytes", store.ErrInvalid, lengthBytes)
	}
	for lengthBytes > 0 {
		n := min(lengthBytes, trimBytes)
		if err := view.Trim(off, n); err != nil {
			return err
		}
		off, lengthBytes = off+n, lengthBytes-n
	}
	return nil
}

func (s *service) Export(ctx context.Context, r *tidemarkv1.ExportRequest, stream *connect.ServerStream[tidemarkv1.ExportResponse]) error {
	names := []string{r.GetName()}
	if r.GetSince() != "" {
		names = append(names, r.GetSince())
	}
	if err := s.may(ctx, rpc.TidemarkServiceExportProcedure, names...); err != nil {
		return wireError(err, nil)
	}
	if r.GetSince() != "" {
		return s.exportSince(ctx, r, stream)
	}
	view, err := s.openExport(r.GetName())
	if err != nil {
		return wireError(err, nil)
	}
	// It has only read: there is nothing that its close could lose.
	defer func() { _ = view.Close() }()
	hash, err := s.hash(ctx, r)
	if err != nil {
		return wireError(err, nil)
	}
	if err := stream.Send(&tidemarkv1.ExportResponse{SizeBytes: view.SizeBytes(), Hash: hash}); err != nil {
		return err
	}
	buf := make([]byte, chunkBytes)
	for off := int64(0); off < view.SizeBytes(); off += windowBytes {
		if ctx.Err() != nil {
			return wireError(fmt.Errorf("export: %w", context.Cause(ctx)), nil)
		}
		if err := exportWindow(view, off, min(windowBytes, view.SizeBytes()-off), buf, stream.Send); err != nil {
			return wireError(fmt.Errorf("export: %w", err), nil)
		}
	}
	return nil
}

// hash is the content hash of what is exported, empty if that has none.
func (s *service) hash(ctx context.Context, r *tidemarkv1.ExportRequest) (string, error) {
	if r.GetUntilSealed() {
		info, err := s.store.Sealed(ctx, r.GetName())
		return info.Hash, err
	}
	if !strings.Contains(r.GetName(), "@") {
		return "", nil
	}
	info, err := s.store.Snapshot(r.GetName())
	return info.Hash, err
}

// exportSince sends what a snapshot has that an older one has not. Both are held
// open meanwhile, so that neither goes.
func (s *service) exportSince(ctx context.Context, r *tidemarkv1.ExportRequest, stream *connect.ServerStream[tidemarkv1.ExportResponse]) error {
	begin := &tidemarkv1.ExportResponse{}
	var view *volume.View
	for i, name := range []string{r.GetSince(), r.GetName()} {
		info, err := s.store.Sealed(ctx, name)
		if err != nil {
			return wireError(err, nil)
		}
		opened, err := s.store.OpenView(name)
		if err != nil {
			return wireError(err, nil)
		}
		defer func() { _ = opened.Close() }()
		view = opened
		if i == 0 {
			begin.BaseSizeBytes, begin.BaseHash = info.SizeBytes, info.Hash
		} else {
			begin.SizeBytes, begin.Hash = info.SizeBytes, info.Hash
		}
	}
	err := s.store.Diff(r.GetSince(), r.GetName(), func(x store.DiffExtent) error {
		begin.ChangedBytes += x.LengthBytes
		return nil
	})
	if err != nil {
		return wireError(err, nil)
	}
	if err := stream.Send(begin); err != nil {
		return err
	}
	buf := make([]byte, chunkBytes)
	err = s.store.Diff(r.GetSince(), r.GetName(), func(x store.DiffExtent) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return sendRange(view, x.OffsetBytes, stretch{x.LengthBytes, !x.Data}, buf, stream.Send)
	})
	if err != nil {
		err = fmt.Errorf("export: %w", err)
	}
	return wireError(err, nil)
}

// openExport opens a snapshot, or a live volume at request scope: a caller who
// only reads must not hold up a preserve as a session would.
func (s *service) openExport(name string) (*volume.View, error) {
	if strings.Contains(name, ":") {
		return nil, fmt.Errorf("%w: export %q: give it as VOLUME or VOLUME@SNAPSHOT", store.ErrInvalid, name)
	}
	if !strings.Contains(name, "@") {
		name += ":request"
	}
	return s.store.OpenView(name)
}

// exportWindow sends one range. The extents are collected first: a range that
// others write keeps each of its bytes in one message. buf is for the data.
func exportWindow(view *volume.View, off, lengthBytes int64, buf []byte, send func(*tidemarkv1.ExportResponse) error) error {
	var stretches []stretch
	err := view.Extents(off, lengthBytes, func(e volume.Extent) bool {
		stretches = appendStretch(stretches, stretch{e.LengthBytes, e.State != lookup.Data})
		return true
	})
	if err != nil {
		return err
	}
	for _, s := range stretches {
		if err := sendRange(view, off, s, buf, send); err != nil {
			return err
		}
		off += s.lengthBytes
	}
	return nil
}

// sendRange sends a range that begins at off.
func sendRange(view *volume.View, off int64, s stretch, buf []byte, send func(*tidemarkv1.ExportResponse) error) error {
	if s.hole {
		return send(&tidemarkv1.ExportResponse{OffsetBytes: off, Content: &tidemarkv1.ExportResponse_HoleBytes{HoleBytes: s.lengthBytes}})
	}
	for end := off + s.lengthBytes; off < end; {
		p := buf[:min(chunkBytes, end-off)]
		if _, err := view.ReadAt(p, off); err != nil {
			return err
		}
		if err := send(&tidemarkv1.ExportResponse{OffsetBytes: off, Content: &tidemarkv1.ExportResponse_Data{Data: p}}); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}

// stretch is a range that is all hole or all data.
type stretch struct {
	lengthBytes int64
	hole        bool
}

// appendStretch joins s to the last one if they are alike.
func appendStretch(list []stretch, s stretch) []stretch {
	if n := len(list); n > 0 && list[n-1].hole == s.hole {
		list[n-1].lengthBytes += s.lengthBytes
		return list
	}
	return append(list, s)
}

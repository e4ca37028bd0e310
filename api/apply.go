package api

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

func (s *service) Apply(ctx context.Context, stream *connect.ClientStream[tidemarkv1.ApplyRequest]) (*tidemarkv1.ApplyResponse, error) {
	if !stream.Receive() {
		return nil, wireError(fmt.Errorf("%w: apply without a message", store.ErrInvalid), nil)
	}
	h := stream.Msg().GetHeader()
	if err := s.may(ctx, rpc.TidemarkServiceApplyProcedure, h.GetVolume()); err != nil {
		return nil, wireError(err, nil)
	}
	in, err := s.store.Receive(store.ReceiveRequest{
		Volume: h.GetVolume(), Snapshot: h.GetSnapshot(), SizeBytes: h.GetSizeBytes(), Hash: h.GetHash(),
		BaseHash: h.GetBaseHash(), BaseSizeBytes: h.GetBaseSizeBytes(),
	})
	if err != nil {
		return nil, wireError(err, nil)
	}
	done, err := applyTo(in, stream)
	if err == nil {
		var snapshot store.SnapshotInfo
		if snapshot, err = in.Commit(ctx); err == nil {
			done.Snapshot = toSnapshot(snapshot)
		}
	}
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx)
	}
	if e := in.Close(); err == nil { // before the answer: then what did not get in is gone
		err = e
	}
	if err != nil {
		return nil, wireError(fmt.Errorf("apply: %w", err), nil)
	}
	return done, nil
}

// applyTo writes all that comes up to the end.
func applyTo(in *store.Incoming, stream *connect.ClientStream[tidemarkv1.ApplyRequest]) (*tidemarkv1.ApplyResponse, error) {
	done := &tidemarkv1.ApplyResponse{}
	for stream.Receive() {
		m := stream.Msg()
		switch content := m.GetContent().(type) {
		case *tidemarkv1.ApplyRequest_Data:
			if _, err := in.WriteAt(content.Data, m.GetOffsetBytes()); err != nil {
				return nil, err
			}
			done.DataBytes += int64(len(content.Data))
		case *tidemarkv1.ApplyRequest_HoleBytes:
			if err := makeHole(in, m.GetOffsetBytes(), content.HoleBytes); err != nil {
				return nil, err
			}
			done.HoleBytes += content.HoleBytes
		case *tidemarkv1.ApplyRequest_End:
			return done, nil
		}
	}
	return nil, errors.Join(stream.Err(), fmt.Errorf("%w: it ended without its end", store.ErrInvalid))
}

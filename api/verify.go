package api

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// progressEvery is how often a call that lasts says how far it is.
const progressEvery = 200 * time.Millisecond

func (s *service) VerifySnapshot(ctx context.Context, r *tidemarkv1.VerifySnapshotRequest, stream *connect.ServerStream[tidemarkv1.VerifySnapshotResponse]) error {
	if err := s.may(ctx, rpc.TidemarkServiceVerifySnapshotProcedure, r.GetName()); err != nil {
		return wireError(err, nil)
	}
	p := progress{stream: stream}
	report, err := s.store.VerifySnapshot(ctx, r.GetName(), p.tell)
	p.stop()
	// What is corrupt is the result that was asked for, not a failure to get one.
	if err != nil && (!errors.Is(err, store.ErrCorrupt) || report.Snapshot == "") {
		if ctx.Err() != nil {
			err = fmt.Errorf("verify: %w", context.Cause(ctx))
		}
		return wireError(err, nil)
	}
	return stream.Send(&tidemarkv1.VerifySnapshotResponse{
		Content: &tidemarkv1.VerifySnapshotResponse_Report{Report: toVerifyReport(report, err)},
	})
}

// progress sends how far a verification is, now and then. It may be told from
// several goroutines.
type progress struct {
	mu     sync.Mutex
	stream *connect.ServerStream[tidemarkv1.VerifySnapshotResponse] // nil: no more
	last   time.Time
}

func (p *progress) tell(doneBytes, totalBytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stream == nil || time.Since(p.last) < progressEvery {
		return
	}
	p.last = time.Now()
	// A caller that is gone ends the call's context, and with it the work.
	_ = p.stream.Send(&tidemarkv1.VerifySnapshotResponse{
		Content: &tidemarkv1.VerifySnapshotResponse_Progress{Progress: &tidemarkv1.VerifyProgress{DoneBytes: doneBytes, TotalBytes: totalBytes}},
	})
}

func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stream = nil
}

func toVerifyReport(r store.VerifyReport, corrupt error) *tidemarkv1.VerifyReport {
	report := &tidemarkv1.VerifyReport{
		Snapshot:  r.Snapshot,
		Hash:      r.Hash,
		ReadBytes: r.ReadBytes,
		Direct:    r.Direct,
		BadBlocks: r.BadBlocks,
		Bad:       each(r.Bad, toBadBlock),
		Took:      durationpb.New(r.Took),
	}
	if corrupt != nil {
		report.Corrupt = oneLine(corrupt)
	}
	return report
}

func toBadBlock(b store.BadBlock) *tidemarkv1.BadBlock {
	return &tidemarkv1.BadBlock{Image: uint64(b.Image), OffsetBytes: b.OffsetBytes, Why: b.Why}
}

// Verify asks the server to verify a snapshot, tells progress, in bytes, how far
// it is, and returns the result. Errors: those of the call; bad blocks are none.
func Verify(ctx context.Context, c Client, name string, progress func(doneBytes, totalBytes int64)) (*tidemarkv1.VerifyReport, error) {
	stream, err := c.VerifySnapshot(ctx, &tidemarkv1.VerifySnapshotRequest{Name: name})
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if report := stream.Msg().GetReport(); report != nil {
			return report, nil
		}
		progress(stream.Msg().GetProgress().GetDoneBytes(), stream.Msg().GetProgress().GetTotalBytes())
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return nil, errors.New("the server ended the verification without a result")
}

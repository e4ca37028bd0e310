package api

import (
	"context"
	"errors"
	"os"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// ErrNoServer is what a client's calls wrap when nobody answers at its address.
var ErrNoServer = errors.New("no server")

// conditions maps what the store reports to what goes over the wire; the first
// match counts.
var conditions = []struct {
	is     error
	reason tidemarkv1.Reason
	code   connect.Code
}{
	{store.ErrInvalid, tidemarkv1.Reason_REASON_INVALID, connect.CodeInvalidArgument},
	{volume.ErrRange, tidemarkv1.Reason_REASON_INVALID, connect.CodeInvalidArgument},
	{store.ErrNotFound, tidemarkv1.Reason_REASON_NOT_FOUND, connect.CodeNotFound},
	{store.ErrExists, tidemarkv1.Reason_REASON_EXISTS, connect.CodeAlreadyExists},
	{store.ErrInUse, tidemarkv1.Reason_REASON_IN_USE, connect.CodeFailedPrecondition},
	{store.ErrHeld, tidemarkv1.Reason_REASON_HELD, connect.CodeFailedPrecondition},
	{store.ErrClock, tidemarkv1.Reason_REASON_CLOCK, connect.CodeFailedPrecondition},
	{store.ErrDraining, tidemarkv1.Reason_REASON_DRAINING, connect.CodeFailedPrecondition},
	{store.ErrAborted, tidemarkv1.Reason_REASON_ABORTED, connect.CodeAborted},
	{store.ErrLimit, tidemarkv1.Reason_REASON_LIMIT, connect.CodeResourceExhausted},
	{store.ErrHighWater, tidemarkv1.Reason_REASON_LIMIT, connect.CodeResourceExhausted},
	{unix.ENOSPC, tidemarkv1.Reason_REASON_NO_SPACE, connect.CodeResourceExhausted},
	{store.ErrClosed, tidemarkv1.Reason_REASON_CLOSED, connect.CodeUnavailable},
	{access.ErrDenied, tidemarkv1.Reason_REASON_DENIED, connect.CodePermissionDenied},
	{errUnproved, tidemarkv1.Reason_REASON_DENIED, connect.CodeUnauthenticated},
	{store.ErrCorrupt, tidemarkv1.Reason_REASON_CORRUPT, connect.CodeDataLoss},
	{store.ErrDiffers, tidemarkv1.Reason_REASON_DIFFERS, connect.CodeFailedPrecondition},
	{context.Canceled, tidemarkv1.Reason_REASON_UNSPECIFIED, connect.CodeCanceled},
	{os.ErrDeadlineExceeded, tidemarkv1.Reason_REASON_UNSPECIFIED, connect.CodeDeadlineExceeded},
	{context.DeadlineExceeded, tidemarkv1.Reason_REASON_UNSPECIFIED, connect.CodeDeadlineExceeded},
	{nil, tidemarkv1.Reason_REASON_UNSPECIFIED, connect.CodeInternal},
}

// wireError turns an error of the store into one of the API, with the report
// that came with it. A nil error stays nil.
func wireError(err error, report *tidemarkv1.PreserveReport) error {
	if err == nil {
		return nil
	}
	c := conditions[0]
	for _, c = range conditions {
		if errors.Is(err, c.is) {
			break
		}
	}
	wire := connect.NewError(c.code, errors.New(oneLine(err)))
	detail, e := connect.NewErrorDetail(&tidemarkv1.ErrorDetail{Reason: c.reason, Report: report})
	if e == nil {
		wire.AddDetail(detail)
	}
	return wire
}

// oneLine is the text of an error; joined ones are lines, and the API promises one.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// Detail returns the reason of an error that a call returned and what came
// with it; an empty detail when the service did not say.
func Detail(err error) *tidemarkv1.ErrorDetail {
	var wire *connect.Error
	if errors.As(err, &wire) {
		for _, d := range wire.Details() {
			if v, e := d.Value(); e == nil {
				if detail, ok := v.(*tidemarkv1.ErrorDetail); ok {
					return detail
				}
			}
		}
	}
	return &tidemarkv1.ErrorDetail{}
}

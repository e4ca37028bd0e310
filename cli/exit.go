package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/store"
)

// Exit codes of every command.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitTaken    = 4 // exists, in use or held
	exitDraining = 5
	exitAborted  = 6
	exitNoServer = 7
	exitDenied   = 8
)

// exitTexts stand in the help of the commands that can end so.
var exitTexts = map[int]string{
	exitDone:     "done",
	exitFailed:   "failed",
	exitUsage:    "usage: a bad flag, argument, size or name",
	exitNotFound: "not found: no such volume, snapshot or process",
	exitTaken:    "exists already, is in use, or is held",
	exitDraining: "still draining: the snapshot exists and waits for older processes",
	exitAborted:  "aborted, by its deadline or by a conflict",
	exitNoServer: "no server answers",
	exitDenied:   "not allowed: the server does not know the caller, or gives it no right to this",
}

var exitCodes = map[tidemarkv1.Reason]int{
	tidemarkv1.Reason_REASON_INVALID:   exitUsage,
	tidemarkv1.Reason_REASON_NOT_FOUND: exitNotFound,
	tidemarkv1.Reason_REASON_EXISTS:    exitTaken,
	tidemarkv1.Reason_REASON_IN_USE:    exitTaken,
	tidemarkv1.Reason_REASON_DRAINING:  exitDraining,
	tidemarkv1.Reason_REASON_ABORTED:   exitAborted,
	tidemarkv1.Reason_REASON_LIMIT:     exitFailed,
	tidemarkv1.Reason_REASON_NO_SPACE:  exitFailed,
	tidemarkv1.Reason_REASON_CLOSED:    exitNoServer,
	tidemarkv1.Reason_REASON_DENIED:    exitDenied,
	tidemarkv1.Reason_REASON_CORRUPT:   exitFailed,
	tidemarkv1.Reason_REASON_HELD:      exitTaken,
	tidemarkv1.Reason_REASON_CLOCK:     exitFailed,
	tidemarkv1.Reason_REASON_DIFFERS:   exitFailed,
}

// exitError ends the program with a code. An empty line prints nothing: the
// code alone is the message.
type exitError struct {
	code int
	line string
}

func (e *exitError) Error() string { return e.line }

func failed(format string, args ...any) error {
	return &exitError{exitFailed, fmt.Sprintf(format, args...)}
}

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Sprintf(format, args...)}
}

// hint adds what to do next to an error of one reason.
func hint(err error, reason tidemarkv1.Reason, next string) error {
	if err == nil || api.Detail(err).GetReason() != reason {
		return err
	}
	line, code := explain(err)
	return &exitError{code, line + "; " + next}
}

// explain turns any error into one line and an exit code.
func explain(err error) (line string, code int) {
	var (
		exit *exitError
		wire *connect.Error
	)
	switch {
	case errors.As(err, &exit):
		return exit.line, exit.code
	case errors.Is(err, api.ErrNoServer):
		return noServer(err), exitNoServer
	case errors.Is(err, context.Canceled):
		return "interrupted", exitFailed
	case errors.Is(err, api.ErrExposed):
		return lastCause(err).Error() + "; give --api-ca", exitUsage
	case distrust(err) != "":
		return oneLine(distrust(err)), exitDenied
	case errors.Is(err, api.ErrBadAddr):
		return err.Error(), exitUsage
	case errors.Is(err, api.ErrAddrInUse), errors.Is(err, store.ErrInUse):
		return err.Error(), exitTaken
	case errors.Is(err, store.ErrNotFound):
		return err.Error(), exitNotFound
	case errors.As(err, &wire) && strings.Contains(wire.Message(), "client conn could not be established"):
		// net/http forgets what the server said before it broke off.
		return "lost the server: it broke off the connection at once; over TLS, show a certificate that its --tls-client-ca signed, with --api-cert and --api-key", exitNoServer
	case errors.As(err, &wire) && isLost(err):
		return "lost the server: " + oneLine(lastCause(err).Error()), exitNoServer
	case errors.As(err, &wire):
		line := oneLine(wire.Message())
		if api.Detail(err).GetReason() == tidemarkv1.Reason_REASON_NO_SPACE {
			line += "; make room on the file system of the data directory"
		}
		return line, wireCode(wire)
	}
	return oneLine(err.Error()), exitFailed
}

// noServer says where nobody answers; what the system call said does not help.
func noServer(err error) string {
	text := err.Error()
	if at := strings.Index(text, api.ErrNoServer.Error()); at >= 0 {
		text = text[at:]
	}
	if where, _, ok := strings.Cut(text, ": dial "); ok {
		text = where
	}
	return text + "; start one with tidemark serve, or say where it is with --api or TIDEMARK_API"
}

// isLost says whether the connection broke under a call.
func isLost(err error) bool {
	return errors.As(err, new(*net.OpError)) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

// lastCause is the innermost error: what the system said.
func lastCause(err error) error {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err
}

func wireCode(wire *connect.Error) int {
	if code, ok := exitCodes[api.Detail(wire).GetReason()]; ok {
		return code
	}
	if wire.Code() == connect.CodeUnavailable {
		return exitNoServer
	}
	return exitFailed
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

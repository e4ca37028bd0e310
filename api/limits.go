package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// What callers may do to a server at once, those over unix sockets and all the
// others apart: a flood from the network shuts nobody on this machine out. A call
// beyond it is refused with REASON_LIMIT, a connection closed.
const (
	maxCalls        = 1024
	maxTransfers    = 16 // imports, exports, comparisons and verifications: each has megabytes in memory
	maxConnections  = 256
	maxStreams      = 128 // calls of one HTTP/2 connection
	maxRequestBytes = 1 << 20
	maxHeaderBytes  = 64 << 10
	// bodyTimeout is how long a request that is one message may take to arrive,
	// or the rest of one that is refused, and headerTimeout its header.
	bodyTimeout   = 30 * time.Second
	headerTimeout = 10 * time.Second
	// idleTimeout is how long a connection without a call is kept.
	idleTimeout = 2 * time.Minute
	// stallTimeout is how long a caller may leave a message of an answer
	// unread, or send nothing of an import.
	stallTimeout = time.Minute
)

// paced holds callers to their time: a call that nobody reads or feeds ends,
// whatever becomes of it in next.
func paced(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := &pace{ResponseWriter: w, control: http.NewResponseController(w), patience: stallTimeout}
		if isLocal(r.Context()) {
			p.patience = 0
		}
		// No deadline can be set for a connection that has failed, nor in a test
		// that has none.
		_ = p.control.SetReadDeadline(time.Now().Add(bodyTimeout))
		next.ServeHTTP(p, r)
		if r.ProtoMajor > 1 {
			p.Flush() // all but the end, which waits for no window
			return
		}
		// The server sends what is left of the answer, and reads what is left of
		// the body; then it sets deadlines of its own.
		_ = p.control.SetReadDeadline(time.Now().Add(bodyTimeout))
		_ = p.control.SetWriteDeadline(p.deadline())
	})
}

// pace is the ResponseWriter of a call whose caller must go on reading. Those on
// this machine may pause, as a pipe does: it is theirs.
type pace struct {
	http.ResponseWriter
	control  *http.ResponseController
	patience time.Duration // 0: without end
}

func (p *pace) deadline() (t time.Time) {
	if p.patience > 0 {
		t = time.Now().Add(p.patience)
	}
	return t
}

// Write sets the deadline for itself alone: the next message may be long in the making.
func (p *pace) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(p.deadline())
	n, err := p.ResponseWriter.Write(b)
	_ = p.control.SetWriteDeadline(time.Time{})
	return n, err
}

// Flush implements http.Flusher. A caller that is gone shows at the next write.
func (p *pace) Flush() {
	_ = p.control.SetWriteDeadline(p.deadline())
	_ = p.control.Flush()
	_ = p.control.SetWriteDeadline(time.Time{})
}

// Unwrap is for http.ResponseController.
func (p *pace) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// pacedBody is a body that must go on arriving.
type pacedBody struct {
	io.ReadCloser
	pace *pace
}

func (b pacedBody) Read(p []byte) (int, error) {
	_ = b.pace.control.SetReadDeadline(b.pace.deadline())
	n, err := b.ReadCloser.Read(p)
	_ = b.pace.control.SetReadDeadline(time.Time{}) // a message may be long in the writing
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("nothing arrived for %v: %w", b.pace.patience, err)
	}
	return n, err
}

// limits bounds what calls take of the server: a request that is one message is
// received, in its time, before the service sees it; calls are counted. It
// stands within paced.
type limits struct {
	next          http.Handler
	local, remote places
}

type places struct{ calls, transfers chan struct{} }

func newPlaces() places {
	return places{make(chan struct{}, maxCalls), make(chan struct{}, maxTransfers)}
}

func newLimits(next http.Handler) *limits {
	return &limits{next: next, local: newPlaces(), remote: newPlaces()}
}

func (l *limits) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	all := l.remote
	if isLocal(r.Context()) {
		all = l.local
	}
	places, what := all.calls, "calls"
	switch r.URL.Path {
	case rpc.TidemarkServiceImportProcedure, rpc.TidemarkServiceApplyProcedure, rpc.TidemarkServiceExportProcedure, rpc.TidemarkServiceVerifySnapshotProcedure, rpc.TidemarkServiceDiffSnapshotsProcedure:
		places, what = all.transfers, "imports, exports, comparisons and verifications"
	}
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	default:
		refuse(w, r, fmt.Errorf("%w: %d %s at once are allowed; try again later", store.ErrLimit, cap(places), what))
		return
	}
	if r.URL.Path != rpc.TidemarkServiceImportProcedure && r.URL.Path != rpc.TidemarkServiceApplyProcedure {
		if err := receive(w, r); err != nil {
			refuse(w, r, err)
			return
		}
	} else if p, ok := w.(*pace); ok {
		r.Body = pacedBody{r.Body, p}
	}
	l.next.ServeHTTP(w, r)
}

// receive replaces the body of a request by what it holds, and lifts the deadline.
func receive(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return fmt.Errorf("%w: a request of more than %d bytes", store.ErrInvalid, maxRequestBytes)
	case err != nil:
		return fmt.Errorf("%w: the request did not arrive: %w", store.ErrInvalid, err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// refuse answers a call that goes no further. Over HTTP/1 the connection goes
// with it, rather than the rest of the body being awaited; over HTTP/2 other
// calls share it. What the caller does not read of the answer is lost.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
	_ = connect.NewErrorWriter().Write(w, r, wireError(err, nil))
}

// A door closes connections beyond maxConnections, of each network apart.
type door struct {
	mu     sync.Mutex
	inside map[net.Conn]string // network
	count  map[string]int
}

func newDoor() *door { return &door{inside: map[net.Conn]string{}, count: map[string]int{}} }

// pass is the server's ConnState.
func (d *door) pass(nc net.Conn, state http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch state {
	case http.StateNew:
		network := nc.LocalAddr().Network()
		if d.count[network] >= maxConnections {
			_ = nc.Close()
			return
		}
		d.inside[nc] = network
		d.count[network]++
	case http.StateClosed, http.StateHijacked:
		if network, ok := d.inside[nc]; ok {
			delete(d.inside, nc)
			d.count[network]--
		}
	}
}

package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// What callers may do to a server at once. A call beyond it is refused with
// REASON_LIMIT, a connection closed.
const (
	maxCalls        = 1024
	maxTransfers    = 16  // imports, exports and verifications: each has megabytes in memory
	maxConnections  = 256 // over TCP, and as many over unix sockets
	maxStreams      = 128 // calls of one HTTP/2 connection
	maxRequestBytes = 1 << 20
	maxHeaderBytes  = 64 << 10
	// bodyTimeout is how long a request that is one message may take to arrive,
	// and headerTimeout its header.
	bodyTimeout   = 30 * time.Second
	headerTimeout = 10 * time.Second
	// idleTimeout is how long a connection without a call is kept.
	idleTimeout = 2 * time.Minute
)

// limits bounds what calls take of the server: a request that is one message is
// received, in its time, before the service sees it; calls are counted.
type limits struct {
	next      http.Handler
	refuse    *connect.ErrorWriter
	calls     chan struct{} // a place for each
	transfers chan struct{}
}

func newLimits(next http.Handler) *limits {
	return &limits{
		next:      next,
		refuse:    connect.NewErrorWriter(),
		calls:     make(chan struct{}, maxCalls),
		transfers: make(chan struct{}, maxTransfers),
	}
}

func (l *limits) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	places, what := l.calls, "calls"
	switch r.URL.Path {
	case rpc.TidemarkServiceImportProcedure, rpc.TidemarkServiceExportProcedure, rpc.TidemarkServiceVerifySnapshotProcedure:
		places, what = l.transfers, "imports, exports and verifications"
	}
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	default:
		l.fail(w, r, fmt.Errorf("%w: %d %s at once are allowed; try again later", store.ErrLimit, cap(places), what))
		return
	}
	if r.URL.Path != rpc.TidemarkServiceImportProcedure {
		if err := receive(w, r); err != nil {
			l.fail(w, r, err)
			return
		}
	}
	l.next.ServeHTTP(w, r)
}

// receive replaces the body of a request by what it holds.
func receive(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return fmt.Errorf("%w: a request of more than %d bytes", store.ErrInvalid, maxRequestBytes)
	case err != nil:
		return fmt.Errorf("%w: the request did not arrive: %w", store.ErrInvalid, err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// fail refuses a call. What the caller does not read of it is lost.
func (l *limits) fail(w http.ResponseWriter, r *http.Request, err error) {
	_ = l.refuse.Write(w, r, wireError(err, nil))
}

// A door closes connections beyond maxConnections, for TCP and for unix sockets
// apart: a flood from the network shuts nobody on this machine out.
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

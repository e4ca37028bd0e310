package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/store"
)

// pingAfter is how long an HTTP/2 connection may be silent before its peer is
// asked whether it lives: a process held over TCP is torn when it does not.
const pingAfter = 15 * time.Second

// Info is what a server tells about itself.
type Info struct {
	Version       string
	DataDirectory string // absolute
	NBD           []Addr // as a client on this machine reaches them
}

// Server serves the API on any number of listeners, over HTTP/1.1 and HTTP/2
// without TLS.
type Server struct {
	http *http.Server
	end  context.CancelCauseFunc // of every call's context
}

// NewServer returns a server that controls s. Logger may be nil.
func NewServer(s *store.Store, info Info, logger *slog.Logger) *Server {
	path, handler := tidemarkv1connect.NewTidemarkServiceHandler(
		&service{store: s, info: &tidemarkv1.GetServerInfoResponse{
			Version:       info.Version,
			DataDirectory: info.DataDirectory,
			NbdAddresses:  each(info.NBD, Addr.String),
		}},
		connect.WithReadMaxBytes(maxImportBytes+1<<10),
		connect.WithCompression("gzip", nil, nil), // blocks over a local socket gain nothing
	)
	mux := http.NewServeMux()
	mux.Handle(path, handler)
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	ctx, end := context.WithCancelCause(context.Background())
	return &Server{end: end, http: &http.Server{
		// A web page that the user visits must not reach a local server.
		Handler:           http.NewCrossOriginProtection().Handler(mux),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		Protocols:         protocols(true),
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}}
}

func protocols(http1 bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(http1)
	p.SetUnencryptedHTTP2(true)
	return p
}

// Serve accepts connections until Shutdown (then it returns nil) or until l
// fails, and closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API on %v: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops accepting, breaks off the calls that wait (a preserve goes on
// in the store, a held process is torn), and returns when all have answered or
// ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	s.end(fmt.Errorf("%w: the server is shutting down", store.ErrClosed))
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("shut the API down: %w", err), s.http.Close())
	}
	return nil
}

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

	"github.com/tidemark/tidemark/access"
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
	NBDTLS        bool   // its clients must use TLS
}

// Options of a Server.
type Options struct {
	Info Info
	// Guard answers for callers over TCP, who must show a certificate or a token;
	// with its certificate, TCP is served over TLS. Nil: callers over TCP are
	// refused. Over a unix socket everybody may do everything.
	Guard *access.Guard
	// Logger is told, at debug level, of connections that failed. Nil discards.
	Logger *slog.Logger
}

// Server serves the API on any number of listeners, over HTTP/1.1 and HTTP/2.
type Server struct {
	http *http.Server
	end  context.CancelCauseFunc // of every call's context
}

// NewServer returns a server that controls s.
func NewServer(s *store.Store, o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	path, handler := tidemarkv1connect.NewTidemarkServiceHandler(
		&service{store: s, guard: o.Guard, logger: o.Logger, info: &tidemarkv1.GetServerInfoResponse{
			Version:       o.Info.Version,
			DataDirectory: o.Info.DataDirectory,
			NbdAddresses:  each(o.Info.NBD, Addr.String),
			NbdTls:        o.Info.NBDTLS,
		}},
		connect.WithReadMaxBytes(maxImportBytes+1<<10),
		connect.WithCompression("gzip", nil, nil), // blocks over a local socket gain nothing
	)
	mux := http.NewServeMux()
	mux.Handle(path, handler)
	addProfiles(mux)
	ctx, end := context.WithCancelCause(context.Background())
	return &Server{end: end, http: &http.Server{
		// A web page that the user visits must not reach a local server.
		Handler:           paced(http.NewCrossOriginProtection().Handler(identify(o.Guard, newLimits(mux)))),
		ConnContext:       markLocal,
		TLSConfig:         o.Guard.TLS(o.Guard.HasTokens(), "h2", "http/1.1"),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		Protocols:         protocols(true),
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter, WriteByteTimeout: stallTimeout, MaxConcurrentStreams: maxStreams},
		ConnState:         newDoor().pass,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}}
}

func protocols(http1 bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(http1)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

// Serve accepts connections until Shutdown (then it returns nil) or until l
// fails, and closes l.
func (s *Server) Serve(l net.Listener) error {
	serve := s.http.Serve
	if s.http.TLSConfig != nil && l.Addr().Network() != "unix" {
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	if err := serve(l); !errors.Is(err, http.ErrServerClosed) {
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

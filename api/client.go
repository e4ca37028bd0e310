package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
)

// ErrExposed says that a token would cross a network where anybody may read it.
var ErrExposed = errors.New("a token is shown beyond this machine only over TLS")

// Client calls a server. Its methods may run at the same time.
type Client = tidemarkv1connect.TidemarkServiceClient

// Credentials are what a client shows to a server over TCP.
type Credentials struct {
	// TLS is nil for none. The server's certificate must be for the host of the
	// address.
	TLS *tls.Config
	// Token is empty for none.
	Token string
}

// NewClient returns a client of the server at a. It connects at the first call;
// calls wrap ErrNoServer when nobody answers, and ErrExposed when they would show
// a token in the clear. Over a unix socket nothing is shown.
func NewClient(a Addr, show Credentials) Client {
	if a.network == "unix" {
		show = Credentials{}
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := a.Dial(ctx)
			if err != nil && ctx.Err() == nil {
				err = fmt.Errorf("%w answers on %v: %w", ErrNoServer, a, err)
			}
			return c, err
		},
		// HTTP/2 alone: an import that the server refuses half-way reads why.
		Protocols: protocols(false),
		HTTP2:     &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
	}
	base := "http://tidemark"
	if show.TLS != nil {
		transport.TLSClientConfig, base = show.TLS.Clone(), "https://"+a.address
	}
	return tidemarkv1connect.NewTidemarkServiceClient(
		&http.Client{Transport: bearer{transport, a, show}},
		base,
		connect.WithAcceptCompression("gzip", nil, nil),
	)
}

// bearer shows a token with each call (RFC 6750).
type bearer struct {
	next http.RoundTripper
	to   Addr
	show Credentials
}

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.show.Token != "" {
		if b.show.TLS == nil && !b.to.Loopback() {
			return nil, fmt.Errorf("%w, and %v is beyond it", ErrExposed, b.to)
		}
		r = r.Clone(r.Context()) // the caller's is not to be changed
		r.Header.Set("Authorization", "Bearer "+b.show.Token)
	}
	return b.next.RoundTrip(r)
}

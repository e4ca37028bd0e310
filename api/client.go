package api

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
)

// Client calls a server. Its methods may run at the same time.
type Client = tidemarkv1connect.TidemarkServiceClient

// NewClient returns a client of the server at a. It connects at the first call;
// calls wrap ErrNoServer when nobody answers.
func NewClient(a Addr) Client {
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
	return tidemarkv1connect.NewTidemarkServiceClient(
		&http.Client{Transport: transport},
		"http://tidemark",
		connect.WithAcceptCompression("gzip", nil, nil),
	)
}

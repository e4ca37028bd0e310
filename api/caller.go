package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/tidemark/tidemark/access"
)

// errUnproved: a caller over TCP showed neither a certificate nor a token that
// the server knows.
var errUnproved = errors.New("the server does not know you")

type (
	localKey  struct{} // of a connection's context: it came over a unix socket
	callerKey struct{} // of a call's context: its access.Client
)

// markLocal is an http.Server's ConnContext.
func markLocal(ctx context.Context, c net.Conn) context.Context {
	if c.LocalAddr().Network() == "unix" {
		return context.WithValue(ctx, localKey{}, true)
	}
	return ctx
}

func isLocal(ctx context.Context) bool {
	local, _ := ctx.Value(localKey{}).(bool)
	return local
}

// caller returns who calls.
func caller(ctx context.Context) access.Client {
	c, _ := ctx.Value(callerKey{}).(access.Client)
	return c
}

// identify lets a call pass when it came over the unix socket, or with a
// verified certificate, or with a known token. One that shows a token which is
// not known is refused whatever else it shows.
func identify(guard *access.Guard, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := prove(guard, r)
		if err != nil {
			w.Header().Set("Connection", "close") // over HTTP/2 too: all its calls are as bad
			refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

func prove(guard *access.Guard, r *http.Request) (c access.Client, err error) {
	if c.Local = isLocal(r.Context()); c.Local {
		return c, nil
	}
	proved := r.TLS != nil && len(r.TLS.VerifiedChains) > 0
	if proved {
		c.Certificate = access.Names(r.TLS.VerifiedChains[0][0])
	}
	if header := r.Header.Get("Authorization"); header != "" {
		token, bearer := strings.CutPrefix(header, "Bearer ")
		if c.Token, proved = guard.Token(strings.TrimSpace(token)); !bearer || !proved {
			return c, fmt.Errorf("%w: this token is not in its --api-token-file", errUnproved)
		}
	}
	if !proved {
		return c, fmt.Errorf("%w: it wants a client certificate (--api-cert, --api-key) or a token (--api-token-file)", errUnproved)
	}
	return c, nil
}

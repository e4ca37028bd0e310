package access

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"
)

// Files are what a Guard reads; empty names are left out. Certificate and Key
// belong together, and ClientCA needs them.
type Files struct {
	Certificate, Key string // the server's, PEM
	ClientCA         string // authorities that sign the clients' certificates, PEM
	Tokens           string // see Tokens
	List             string // see List
}

// Guard answers for clients by what stands in the files. Its methods may be
// called at the same time. A nil Guard lets everybody do everything.
//
// The files are read by Open and by Reload, all of them or, if one is bad, none:
// never half of a change. (Rejected: to look at their times at each connection.
// It would find a certificate whose key is not there yet.) A connection that is
// open keeps what it was given.
type Guard struct {
	files Files
	now   func() time.Time
	read  atomic.Pointer[contents]
}

// contents are the files as last read.
type contents struct {
	pair    tls.Certificate
	clients *x509.CertPool // nil: certificates are not asked for
	tokens  *Tokens
	list    *List
}

// Open reads the files. Errors name the file and what is wrong with it.
func Open(files Files) (*Guard, error) {
	g := &Guard{files: files, now: time.Now}
	return g, g.Reload()
}

// Reload reads the files anew. After an error all is as it was.
func (g *Guard) Reload() error {
	next := &contents{}
	for _, load := range []func(*contents) error{g.loadTLS, g.loadTokens, g.loadList} {
		if err := load(next); err != nil {
			return err
		}
	}
	g.read.Store(next)
	return nil
}

func (g *Guard) loadTLS(c *contents) (err error) {
	if g.files.Certificate != "" {
		if c.pair, err = loadPair(g.files.Certificate, g.files.Key, x509.ExtKeyUsageServerAuth, g.now()); err != nil {
			return err
		}
	}
	if g.files.ClientCA != "" {
		c.clients, err = loadAuthorities(g.files.ClientCA, g.now())
	}
	return err
}

func (g *Guard) loadTokens(c *contents) error {
	if g.files.Tokens == "" {
		return nil
	}
	text, err := read("token file", g.files.Tokens)
	if err != nil {
		return err
	}
	if c.tokens, err = ParseTokens(text); err != nil {
		return fmt.Errorf("token file %s: %w", g.files.Tokens, err)
	}
	return nil
}

func (g *Guard) loadList(c *contents) error {
	if g.files.List == "" {
		return nil
	}
	text, err := read("access list", g.files.List)
	if err != nil {
		return err
	}
	if c.list, err = ParseList(text); err != nil {
		return fmt.Errorf("access list %s: %w", g.files.List, err)
	}
	return nil
}

// Expires is when the server's certificate does; zero without one.
func (g *Guard) Expires() time.Time {
	if leaf := g.read.Load().pair.Leaf; leaf != nil {
		return leaf.NotAfter
	}
	return time.Time{}
}

// TLS returns a configuration for servers, TLS 1.2 and 1.3, that follows Reload;
// nil without a certificate. With a ClientCA a client must show a certificate,
// or may, if optional; without one it is not asked. protocols are for ALPN.
func (g *Guard) TLS(optional bool, protocols ...string) *tls.Config {
	if g == nil || g.files.Certificate == "" {
		return nil
	}
	config := func() *tls.Config {
		c := g.read.Load()
		config := &tls.Config{
			MinVersion:   tls.VersionTLS12,
			NextProtos:   protocols,
			Certificates: []tls.Certificate{c.pair},
			// A ticket would bring a client back past the authorities of now.
			SessionTicketsDisabled: true,
			// What is sent here is large or urgent; short first records help neither.
			DynamicRecordSizingDisabled: true,
		}
		if c.clients != nil {
			config.ClientCAs, config.ClientAuth = c.clients, tls.RequireAndVerifyClientCert
			if optional {
				config.ClientAuth = tls.VerifyClientCertIfGiven
			}
		}
		return config
	}
	outer := config()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return config(), nil }
	return outer
}

// HasTokens tells whether there is a file of tokens.
func (g *Guard) HasTokens() bool { return g != nil && g.files.Tokens != "" }

// Token returns the name of a token that the server knows.
func (g *Guard) Token(token string) (name string, known bool) {
	if g == nil {
		return "", false
	}
	return g.read.Load().tokens.Name(token)
}

// Rights returns what the client may do with an export: "VOLUME" or
// "VOLUME@SNAPSHOT", which need not exist.
func (g *Guard) Rights(c Client, export string) Rights { return g.list().Rights(c, export) }

// Names returns ErrDenied if the access list has nothing for the client.
func (g *Guard) Names(c Client) error {
	if g.list().Names(c) {
		return nil
	}
	return fmt.Errorf("%w: %s is not on the server's access list", ErrDenied, c)
}

// Check returns ErrDenied if the client lacks the right on an export.
func (g *Guard) Check(c Client, need Rights, export string) error {
	if g.Rights(c, export).Has(need) {
		return nil
	}
	return fmt.Errorf("%w: the server's access list gives %s no right to %s %q", ErrDenied, c, need, export)
}

func (g *Guard) list() *List {
	if g == nil {
		return nil
	}
	return g.read.Load().list
}

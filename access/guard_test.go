package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/certtest"
)

// lab is a directory with an authority, and a server's and a client's
// certificates that it signed.
type lab struct {
	*testing.T
	dir       string
	authority *certtest.Authority
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t, t.TempDir(), certtest.New(t)}
	l.authority.WriteOwn(l.path("ca.pem"))
	l.issue(l.authority, "server", nil)
	l.issue(l.authority, "client", nil)
	return l
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *lab) issue(a *certtest.Authority, name string, change func(*x509.Certificate)) {
	l.Helper()
	a.Write(a.Issue(change, name, "localhost"), l.path(name+".pem"), l.path(name+".key"))
}

func (l *lab) file(name, text string) string {
	l.Helper()
	l.must(os.WriteFile(l.path(name), []byte(text), 0o600))
	return l.path(name)
}

// Every way in which the files can be wrong is told at the start, with the file.
func TestWhatIsWrongWithTheFilesIsToldAtTheStart(t *testing.T) {
	l := newLab(t)
	day := 24 * time.Hour
	at := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
	}
	l.issue(l.authority, "expired", at(-2*day, -day))
	l.issue(l.authority, "early", at(day, 2*day))
	l.issue(l.authority, "clientonly", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	l.issue(l.authority, "open", nil)
	l.must(os.Chmod(l.path("open.key"), 0o644))
	certtest.New(t, at(-2*day, -day)).WriteOwn(l.path("oldca.pem"))
	l.file("empty.pem", "")
	l.file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	l.file("broken.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
	l.file("locked.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
	l.must(os.Mkdir(l.path("directory"), 0o700))
	l.file("tokens", "nobody\n")
	l.file("access.yaml", "tokens: {}\nuser: {}\n")

	for _, test := range []struct {
		certificate, key, ca, tokens, list string
		want                               string
	}{
		{certificate: "no.pem", key: "server.key", want: "certificate DIR/no.pem: no such file or directory"},
		{certificate: "directory", key: "server.key", want: "certificate DIR/directory: is a directory"},
		{certificate: "empty.pem", key: "server.key", want: "certificate DIR/empty.pem: there is no certificate in it; a PEM file with BEGIN CERTIFICATE is needed"},
		{certificate: "server.key", key: "server.key", want: "certificate DIR/server.key: there is no certificate in it; a PEM file with BEGIN CERTIFICATE is needed"},
		{certificate: "broken.pem", key: "server.key", want: "certificate DIR/broken.pem: x509: malformed certificate"},
		{certificate: "expired.pem", key: "expired.key", want: "certificate DIR/expired.pem: it has expired on "},
		{certificate: "early.pem", key: "early.key", want: "certificate DIR/early.pem: it is not valid yet: it begins on "},
		{certificate: "clientonly.pem", key: "clientonly.key", want: "certificate DIR/clientonly.pem: its extended key usage does not allow it for a server"},
		{certificate: "server.pem", key: "no.key", want: "key DIR/no.key: no such file or directory"},
		{certificate: "server.pem", key: "client.key", want: "key DIR/client.key does not belong to certificate DIR/server.pem: is it another's, or did only one of the two change?"},
		{certificate: "server.pem", key: "server.pem", want: "key DIR/server.pem: there is no private key in it; a PEM file with BEGIN PRIVATE KEY is needed"},
		{certificate: "server.pem", key: "broken.key", want: "key DIR/broken.key can't be read as a private key: PKCS #8, SEC 1 or PKCS #1 in PEM is needed"},
		{certificate: "server.pem", key: "locked.key", want: "key DIR/locked.key is encrypted; the server asks for no password, give it a key without one"},
		{certificate: "open.pem", key: "open.key", want: "key DIR/open.key is open to every user of this machine (mode 0644); chmod 600 it"},
		{ca: "no.pem", want: "certificate DIR/no.pem: no such file or directory"},
		{ca: "empty.pem", want: "certificate DIR/empty.pem: there is no certificate in it; a PEM file with BEGIN CERTIFICATE is needed"},
		{ca: "oldca.pem", want: "certificate DIR/oldca.pem: it has expired on "},
		{tokens: "no", want: "token file DIR/no: no such file or directory"},
		{tokens: "tokens", want: "token file DIR/tokens: line 1: write NAME sha256:HEX, as tidemark token new prints it"},
		{tokens: "empty.pem", want: "token file DIR/empty.pem: it has no token; tidemark token new NAME prints a line for it"},
		{list: "no", want: "access list DIR/no: no such file or directory"},
		{list: "access.yaml", want: `access list DIR/access.yaml: line 2: unknown field "user"; allowed are certificates, local, tokens`},
	} {
		in := func(name string) string {
			if name == "" {
				return ""
			}
			return l.path(name)
		}
		_, err := Open(Files{in(test.certificate), in(test.key), in(test.ca), in(test.tokens), in(test.list)})
		want := strings.ReplaceAll(test.want, "DIR", l.dir)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if _, err := Open(Files{l.path("server.pem"), l.path("server.key"), l.path("ca.pem"), "", ""}); err != nil {
		t.Errorf("good files: %v", err)
	}
}

// handshake connects a client to a server of the guard and returns how the
// server and the client see it.
func (l *lab) handshake(g *Guard, optional bool, change func(*tls.Config)) (names []string, err error) {
	l.Helper()
	trust, e := ClientTLS(l.path("ca.pem"), l.path("client.pem"), l.path("client.key"), time.Now())
	l.must(e)
	trust.ServerName = "localhost"
	change(trust)
	ours, theirs := l.pair() // buffered, as net.Pipe is not: both ends may talk at once
	server, client := tls.Server(ours, g.TLS(optional)), tls.Client(theirs, trust)
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		err := client.HandshakeContext(ctx)
		if err == nil {
			_, err = client.Read(make([]byte, 1)) // TLS 1.3 refuses a certificate only then
		}
		_ = theirs.Close()
		answered <- err
	}()
	err = server.HandshakeContext(ctx)
	if chains := server.ConnectionState().VerifiedChains; err == nil && len(chains) > 0 {
		names = Names(chains[0][0])
	}
	if err == nil {
		_, _ = server.Write([]byte{1})
	}
	_ = ours.Close()
	return names, errors.Join(err, <-answered)
}

// pair returns both ends of a connection.
func (l *lab) pair() (accepted, dialed net.Conn) {
	l.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	l.must(err)
	defer func() { _ = listener.Close() }()
	dialed, err = net.Dial("tcp", listener.Addr().String())
	l.must(err)
	accepted, err = listener.Accept()
	l.must(err)
	return accepted, dialed
}

func TestOnlyClientsOfTheAuthorityComeIn(t *testing.T) {
	l := newLab(t)
	l.issue(certtest.New(t), "stranger", nil) // of an authority of the same name
	g, err := Open(Files{l.path("server.pem"), l.path("server.key"), l.path("ca.pem"), "", ""})
	l.must(err)
	as := func(name string) func(*tls.Config) {
		pair, err := tls.LoadX509KeyPair(l.path(name+".pem"), l.path(name+".key"))
		l.must(err)
		return func(c *tls.Config) { c.Certificates = []tls.Certificate{pair} }
	}
	nobody := func(c *tls.Config) { c.Certificates = nil }
	for version := uint16(tls.VersionTLS12); version <= tls.VersionTLS13; version++ {
		in := func(who func(*tls.Config)) func(*tls.Config) {
			return func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version; who(c) }
		}
		if names, err := l.handshake(g, false, in(as("client"))); err != nil || strings.Join(names, " ") != "client localhost" {
			t.Errorf("a client of the authority is %q: %v", names, err)
		}
		if _, err := l.handshake(g, false, in(as("stranger"))); err == nil {
			t.Error("a client of another authority came in")
		}
		if _, err := l.handshake(g, false, in(nobody)); err == nil {
			t.Error("a client without a certificate came in")
		}
		if names, err := l.handshake(g, true, in(nobody)); err != nil || names != nil {
			t.Errorf("where certificates are optional, a client without one is %q: %v", names, err)
		}
		if _, err := l.handshake(g, true, in(as("stranger"))); err == nil {
			t.Error("where certificates are optional, one of another authority came in")
		}
	}
	old := func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }
	if _, err := l.handshake(g, false, old); err == nil {
		t.Error("TLS 1.1 is served")
	}
}

func TestReloadTakesAllFilesOrNone(t *testing.T) {
	l := newLab(t)
	token, line, err := NewToken("t")
	l.must(err)
	tokens := l.file("tokens", line)
	list := l.file("access.yaml", "tokens: {t: [{exports: [a], rights: [read]}]}")
	g, err := Open(Files{l.path("server.pem"), l.path("server.key"), l.path("ca.pem"), tokens, list})
	l.must(err)
	who := Client{Token: "t"}
	if name, known := g.Token(token); !known || name != "t" || g.Check(who, Read, "a") != nil || !errors.Is(g.Check(who, Write, "a"), ErrDenied) {
		t.Error("the first files do not count")
	}

	// The list would be good, the tokens are not: all stays.
	l.file("access.yaml", "tokens: {t: [{exports: [a], rights: [write]}]}")
	l.file("tokens", "t sha256:half")
	if err := g.Reload(); err == nil {
		t.Error("a bad file was taken")
	}
	if _, known := g.Token(token); !known || g.Check(who, Write, "a") == nil {
		t.Error("half of a change was taken")
	}

	_, other, err := NewToken("t")
	l.must(err)
	l.file("tokens", other)
	next := certtest.New(t)
	next.WriteOwn(l.path("ca.pem"))
	l.issue(next, "server", nil)
	config := g.TLS(false) // as a server has it since its start
	l.must(g.Reload())
	if _, known := g.Token(token); known || g.Check(who, Write, "a") != nil {
		t.Error("the new files do not count")
	}
	served, err := config.GetConfigForClient(nil)
	l.must(err)
	if err := served.Certificates[0].Leaf.CheckSignatureFrom(authority(t, l.path("ca.pem"))); err != nil {
		t.Errorf("the old certificate is served: %v", err)
	}
}

func authority(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	list, err := readCertificates(file)
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

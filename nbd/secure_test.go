package nbd

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// startTLS takes a talk from the plain handshake on over TLS.
func (k *talk) startTLS(config *tls.Config) {
	k.t.Helper()
	k.expect(k.option(wire.OptStartTLS, nil), "ACK")
	secure := tls.Client(k.nc, config)
	if err := secure.Handshake(); err != nil {
		k.t.Fatal(err)
	}
	k.nc = secure
}

func TestTLSModes(t *testing.T) {
	a := certtest.New(t)
	for _, c := range []struct {
		mode  TLSMode
		plain string // the answer to an option without TLS
	}{
		{TLSAllow, "ACK"},
		{TLSRequire, "TLS_REQD this server wants TLS first"},
	} {
		t.Run(fmt.Sprint(c.mode), func(t *testing.T) {
			m := newMemory(testSize)
			k := dialWith(t, m, Options{TLS: a.Server(), TLSMode: c.mode})
			last := func(replies []string) []string { return replies[len(replies)-1:] }
			k.expect(k.option(wire.OptStructuredReply, nil), c.plain)
			k.expect(last(k.option(wire.OptList, nil)), c.plain)
			k.expect(last(k.option(wire.OptInfo, goData("disk"))), c.plain)
			if c.mode == TLSRequire {
				k.expect(k.option(77, nil), c.plain)
				k.expect(k.option(77, make([]byte, 1<<20)), c.plain)
				k.expect(k.option(wire.OptGo, goData("nope")), c.plain)
			}
			k.expect(k.option(wire.OptStartTLS, []byte("x")), "INVALID NBD_OPT_STARTTLS takes no data")
			k.startTLS(a.Client(""))
			k.expect(k.option(wire.OptStartTLS, nil), "INVALID TLS is in use already")
			k.enterForm(wire.Extended, wire.ContextAllocation)
			k.expect(k.command(wire.Request{Command: wire.CmdWrite, Length: 6}, "secret"), `none""`)
			k.expect(k.command(wire.Request{Command: wire.CmdRead, Length: 6}, ""), `data 0 "secret"`)
			k.send(k.message(wire.Request{Command: wire.CmdDisc}, ""))
			if _, err := k.nc.Read(make([]byte, 1)); err == nil || err.Error() != "EOF" { // close_notify, not a cut
				t.Errorf("the end of TLS is %v", err)
			}
			if closeAfterDisc(m) {
				t.Errorf("torn")
			}
		})
	}
	t.Run("TLS required refuses EXPORT_NAME by hanging up", func(t *testing.T) {
		k := dialWith(t, newMemory(testSize), Options{TLS: a.Server(), TLSMode: TLSRequire})
		k.send(wire.AppendOption(nil, wire.OptExportName, []byte("disk")))
		k.expectClosed()
	})
	t.Run("TLS required lets the client go without", func(t *testing.T) {
		k := dialWith(t, newMemory(testSize), Options{TLS: a.Server(), TLSMode: TLSRequire})
		k.expect(k.option(wire.OptAbort, nil), "ACK")
		k.expectClosed()
	})
	t.Run("TLS required has nothing for a client without fixed newstyle", func(t *testing.T) {
		client, server := socketPair(t)
		go NewServer(newMemory(testSize), Options{TLS: a.Server(), TLSMode: TLSRequire}).ServeConn(server)
		k := &talk{t: t, nc: client}
		k.hello(0)
		k.expectClosed()
	})
	t.Run("EXPORT_NAME over TLS", func(t *testing.T) {
		k := dialWith(t, newMemory(testSize), Options{TLS: a.Server(), TLSMode: TLSRequire})
		k.startTLS(a.Client(""))
		k.send(wire.AppendOption(nil, wire.OptExportName, []byte("disk")))
		k.receive(8 + 2)
		k.expect(k.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")
	})
}

func TestWhatWasAgreedWithoutTLSIsForgotten(t *testing.T) {
	a := certtest.New(t)
	for _, option := range []uint32{wire.OptStructuredReply, wire.OptExtendedHeaders} {
		k := dialWith(t, newMemory(testSize), Options{TLS: a.Server(), TLSMode: TLSAllow})
		k.expect(k.option(option, nil), "ACK")
		k.expect(k.option(wire.OptSetMeta, metaData("disk", wire.ContextAllocation)), "CONTEXT 1 base:allocation", "ACK")
		k.startTLS(a.Client(""))
		k.expect(k.option(wire.OptSetMeta, metaData("disk", wire.ContextAllocation)),
			"INVALID metadata contexts need structured replies or extended headers first")
		k.enterForm(wire.Simple)
		k.expect(k.command(wire.Request{Command: wire.CmdRead, Length: 1}, ""), `simple 0 "\x00"`)
		k.expect(k.command(wire.Request{Command: wire.CmdBlockStatus, Length: 1}, ""), "simple 22")
	}
}

// TestNothingPlainIsTakenForTheClients: what a middleman sends behind
// NBD_OPT_STARTTLS must not count as sent over TLS.
func TestNothingPlainIsTakenForTheClients(t *testing.T) {
	a := certtest.New(t)
	injected := append(wire.AppendOption(nil, wire.OptStartTLS, nil), wire.AppendOption(nil, wire.OptGo, goData("disk"))...)
	m := newMemory(testSize)
	k := dialWith(t, m, Options{TLS: a.Server(), TLSMode: TLSAllow})
	k.send(injected)
	k.expectClosed()
	// Behind the reply, it fails as TLS.
	k = dialWith(t, m, Options{TLS: a.Server(), TLSMode: TLSRequire})
	k.expect(k.option(wire.OptStartTLS, nil), "ACK")
	k.send(wire.AppendOption(nil, wire.OptGo, goData("disk")))
	for {
		if _, err := k.nc.Read(make([]byte, 100)); err != nil { // after an alert, maybe
			break
		}
	}
	if m.opened.Load() != 0 {
		t.Errorf("the export was opened")
	}
}

// known is a Backend that notes who asks.
type known struct {
	*memory
	clients chan Client
}

func (b known) List(c Client) []string {
	b.clients <- c
	return b.memory.List(c)
}

func (b known) Open(name string, c Client) (Device, Info, error) {
	b.clients <- c
	return b.memory.Open(name, c)
}

func TestTheBackendKnowsTheClient(t *testing.T) {
	a, stranger := certtest.New(t), certtest.New(t)
	for _, c := range []struct {
		name   string
		client *tls.Config
		auth   tls.ClientAuthType
		want   string // empty: the handshake of TLS fails
	}{
		{"without a certificate", a.Client(""), tls.VerifyClientCertIfGiven, "TLS true, names []"},
		{"by common name and DNS names", a.Client("alice", "host.example", "other.example"), tls.VerifyClientCertIfGiven, "TLS true, names [alice host.example other.example]"},
		{"by DNS names alone", &tls.Config{RootCAs: a.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{a.Issue(nil, "", "host.example")}},
			tls.RequireAndVerifyClientCert, "TLS true, names [host.example]"},
		{"not by a certificate that nobody verified", a.Client("alice"), tls.RequireAnyClientCert, "TLS true, names []"},
		{"never by a stranger's certificate", &tls.Config{RootCAs: a.Pool(), ServerName: "localhost", Certificates: stranger.Client("alice").Certificates}, tls.VerifyClientCertIfGiven, ""},
		{"never by one that has expired", &tls.Config{RootCAs: a.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{
			a.Issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "alice")}}, tls.VerifyClientCertIfGiven, ""},
		{"never without a certificate that is required", a.Client(""), tls.RequireAndVerifyClientCert, ""},
	} {
		for version := uint16(tls.VersionTLS12); version <= tls.VersionTLS13; version++ {
			t.Run(fmt.Sprintf("%s/%s", c.name, tls.VersionName(version)), func(t *testing.T) {
				b := known{newMemory(testSize), make(chan Client, 10)}
				server := a.Server()
				server.ClientAuth = c.auth
				k := dialWith(t, b, Options{TLS: server, TLSMode: TLSAllow})
				k.option(wire.OptList, nil)
				if who := <-b.clients; who.TLS || who.Names != nil || who.Remote == nil {
					t.Errorf("without TLS the client is %+v", who)
				}
				k.expect(k.option(wire.OptStartTLS, nil), "ACK")
				config := c.client.Clone()
				config.MinVersion, config.MaxVersion = version, version
				k.nc = tls.Client(k.nc, config)
				// The client may believe that its certificate was taken until it reads.
				_, err := k.nc.Write(wire.AppendOption(nil, wire.OptList, nil))
				if err == nil {
					_, err = k.nc.Read(make([]byte, 1))
				}
				if (err == nil) != (c.want != "") {
					t.Fatalf("TLS: %v", err)
				}
				if err != nil {
					if len(b.clients) != 0 {
						t.Errorf("the backend was asked")
					}
					return
				}
				if who := <-b.clients; fmt.Sprintf("TLS %t, names %v", who.TLS, who.Names) != c.want {
					t.Errorf("the client is %+v, not %s", who, c.want)
				}
			})
		}
	}
}

func TestTLSBefore12IsRefused(t *testing.T) {
	a := certtest.New(t)
	server := a.Server()
	server.MinVersion = tls.VersionTLS10 // the server knows better
	k := dialWith(t, newMemory(testSize), Options{TLS: server, TLSMode: TLSAllow})
	k.expect(k.option(wire.OptStartTLS, nil), "ACK")
	old := a.Client("")
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if err := tls.Client(k.nc, old).Handshake(); err == nil {
		t.Errorf("TLS 1.1 is spoken")
	}
}

func TestTLSWithoutACertificateFailsByItself(t *testing.T) {
	a := certtest.New(t)
	k := dialWith(t, newMemory(testSize), Options{TLSMode: TLSRequire})
	k.expect(k.option(wire.OptStartTLS, nil), "ACK")
	if err := tls.Client(k.nc, a.Client("")).Handshake(); err == nil {
		t.Errorf("TLS without a certificate")
	}
}

func TestTheHandshakesDeadlineIsForTLSToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := certtest.New(t)
		client, server := net.Pipe()
		defer func() { _ = client.Close() }()
		begin := time.Now()
		go NewServer(newMemory(testSize), Options{TLS: a.Server(), TLSMode: TLSRequire, HandshakeTimeout: time.Minute}).ServeConn(server)
		k := &talk{t: t, nc: client}
		k.hello(wire.ClientFixedNewstyle)
		k.expect(k.option(wire.OptStartTLS, nil), "ACK")
		k.expectClosed() // a client that goes silent in place of a ClientHello
		if d := time.Since(begin); d < time.Minute || d > time.Minute+10*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

// enterTLS takes a talk over TLS to the transmission phase.
func enterTLS(t testing.TB, b Backend, form wire.Form) *talk {
	t.Helper()
	a := certtest.New(t)
	k := dialWith(t, b, Options{TLS: a.Server(), TLSMode: TLSRequire})
	k.startTLS(a.Client(""))
	k.enterForm(form)
	return k
}

func TestTransfersOfEverySizeKeepTheirBytesOverTLS(t *testing.T) {
	const size = 5 << 20
	pattern := make([]byte, size)
	for i := range pattern {
		pattern[i] = byte(i ^ i>>8 ^ i>>16)
	}
	for _, cold := range []bool{false, true} {
		m := newMemory(size)
		m.cold.Store(cold)
		a := certtest.New(t)
		p := newPool(t, m, Options{TLS: a.Server(), TLSMode: TLSRequire})
		if cold {
			p.server.budget.passLimit = 0 // without a pass everything still works
		}
		k := p.socket()
		k.hello(wire.ClientFixedNewstyle)
		k.startTLS(a.Client(""))
		k.enterForm(wire.Extended)
		for i, n := range []int{1, 4096, 16 << 10, passBytes - 1, passBytes, passBytes + 1, 4 << 20} {
			off := uint64(7 * i)
			k.expect(k.command(wire.Request{Command: wire.CmdWrite, Offset: off, Length: uint64(n)}, string(pattern[i:i+n])), `none""`)
			read := wire.Request{Command: wire.CmdRead, Offset: off, Length: uint64(n)}
			k.send(k.message(read, ""))
			if b := k.receive(wire.ExtendedSize + 8 + n); !bytes.Equal(b[wire.ExtendedSize+8:], pattern[i:i+n]) {
				t.Errorf("%d bytes came back changed", n)
			}
		}
		p.end()
	}
}

// TestRequestsThatComeTogetherAreAllAnsweredOverTLS, however records cut them.
func TestRequestsThatComeTogetherAreAllAnsweredOverTLS(t *testing.T) {
	const count = 2000
	for _, piece := range []int{1 << 20, 5000, 33} {
		k := enterTLS(t, newMemory(testSize), wire.Structured)
		var message []byte
		for i := range uint64(count) {
			message = wire.Request{Command: wire.CmdWrite, Cookie: i, Offset: i * 8, Length: 8}.Append(message)
			message = fmt.Appendf(message, "%08d", i)
		}
		go func() {
			for len(message) > 0 {
				n, err := k.nc.Write(message[:min(piece, len(message))])
				if err != nil {
					return
				}
				message = message[n:]
			}
		}()
		for i := range uint64(count) {
			k.expect(k.reply(wire.Request{Command: wire.CmdWrite, Cookie: i}), "simple 0")
		}
		k.expect(k.command(wire.Request{Command: wire.CmdRead, Offset: (count - 1) * 8, Length: 8}, ""), fmt.Sprintf("data %d %q", (count-1)*8, "00001999"))
	}
}

func TestASilentClientHoldsNoPass(t *testing.T) {
	client, server := socketPair(t)
	b := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, time.Minute)
	p := newPassage(b.open(server))
	read := make([]byte, passBytes)
	for _, n := range []int{waitBytes, 3 * waitBytes} {
		if _, err := client.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < n; {
			k, err := p.Read(read)
			if err != nil {
				t.Fatal(err)
			}
			got += k
		}
		p.full = true // as if what it sent last had filled a pass, too
		if err := server.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Read(read); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("it was not silent: %v", err)
		}
		if len(p.in) != waitBytes || b.passes.Load() != 0 {
			t.Errorf("it waits with %d bytes and %d passes", len(p.in), b.passes.Load())
		}
		if err := server.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAClientThatDoesNotReadHoldsAPassOnlyForWhatNeedsIt(t *testing.T) {
	for _, c := range []struct{ bytes, passes int64 }{{30, 0}, {recordBytes, 0}, {recordBytes + 1, 1}, {8 << 20, 1}} {
		synctest.Test(t, func(t *testing.T) {
			a := certtest.New(t)
			client, server := net.Pipe()
			b := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, time.Minute)
			begin := make(chan bool)
			go func() {
				_ = tls.Client(client, a.Client("")).Handshake()
				close(begin)
			}()
			account := b.open(server)
			secure, err := newSecureConn(account, secured(a.Server()))
			if err != nil {
				t.Fatal(err)
			}
			<-begin
			ended := make(chan error)
			go func() {
				_, err := secure.Write(make([]byte, c.bytes))
				ended <- err
			}()
			synctest.Wait()
			if n := b.passes.Load(); n != c.passes || account.held() != c.passes*passBytes {
				t.Errorf("for %d bytes, %d passes and %d bytes are held", c.bytes, n, account.held())
			}
			_ = client.Close()
			if err := <-ended; err == nil {
				t.Errorf("nobody read %d bytes", c.bytes)
			}
			_ = secure.Close()
			if n := b.passes.Load(); n != 0 {
				t.Errorf("%d passes are left", n)
			}
		})
	}
}

func TestShutdownOverTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := certtest.New(t)
		m := newMemory(testSize)
		client, server := net.Pipe()
		defer func() { _ = client.Close() }()
		s := NewServer(m, Options{TLS: a.Server(), TLSMode: TLSRequire})
		go s.ServeConn(server)
		k := &talk{t: t, nc: client}
		k.hello(wire.ClientFixedNewstyle)
		k.startTLS(a.Client(""))
		k.enter(true)
		release := m.setHold()
		flush := wire.Request{Command: wire.CmdFlush, Cookie: 1}
		k.send(flush.Append(nil))
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()
		synctest.Wait()
		k.expect(k.command(wire.Request{Command: wire.CmdWrite, Cookie: 2, Length: 4}, "late"), "error 108 server is shutting down")
		release()
		k.expect(k.reply(flush), "simple 0")
		k.expectClosed()
		if err := <-done; err != nil || closeAfterDisc(m) || !bytes.Equal(m.bytes(0, 4), make([]byte, 4)) {
			t.Errorf("torn, or %v, or a late write", err)
		}
	})
}

func TestAClientThatGoesWithoutAWordTearsOverTLS(t *testing.T) {
	for name, leave := range map[string]func(k *talk){
		"by closing the socket": func(k *talk) { _ = k.nc.(*tls.Conn).NetConn().Close() },
		"by closing TLS":        func(k *talk) { _ = k.nc.Close() },
		"in a record": func(k *talk) {
			socket := k.nc.(*tls.Conn).NetConn()
			_, _ = socket.Write([]byte{23, 3, 3, 1, 0, 'x'})
			_ = socket.Close()
		},
		"by a record that is forged": func(k *talk) {
			_, _ = k.nc.(*tls.Conn).NetConn().Write(append([]byte{23, 3, 3, 0, 60}, make([]byte, 60)...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(testSize)
			k := enterTLS(t, m, wire.Structured)
			k.expect(k.command(wire.Request{Command: wire.CmdFlush}, ""), "simple 0")
			leave(k)
			if torn := <-m.closed; !torn {
				t.Errorf("not torn")
			}
		})
	}
}

// counting counts the writes of a socket.
type counting struct {
	net.Conn
	writes atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestABatchOverTLSIsOneWriteOfTheSocket(t *testing.T) {
	const count, length = 16, 4096 // more than one record of TLS
	a := certtest.New(t)
	client, server := socketPair(t)
	socket := &counting{Conn: server}
	go NewServer(newMemory(testSize), Options{TLS: a.Server(), TLSMode: TLSRequire}).ServeConn(socket)
	k := &talk{t: t, nc: client}
	k.hello(wire.ClientFixedNewstyle)
	k.startTLS(a.Client(""))
	k.enterForm(wire.Extended)
	before := socket.writes.Load()
	k.send(bytes.Repeat(k.message(wire.Request{Command: wire.CmdRead, Length: length}, ""), count))
	k.receive(count * (wire.ExtendedSize + 8 + length))
	if n := socket.writes.Load() - before; n != 1 {
		t.Errorf("%d replies are %d writes", count, n)
	}
}

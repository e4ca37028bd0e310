package nbd

import (
	"crypto/tls"
	"net"
	"sync"
	"syscall"
)

// A secureConn is the server's side of TLS over a socket, with as few system
// calls as without: crypto/tls writes each record by itself and returns one
// record a Read, of at most 16 KiB.
//
//  1. A Write is one write of the socket for each passBytes of records, if
//     the budget has a pass; otherwise for each record.
//  2. A Read takes every record that one read of the socket brought, as far as
//     its p has room: requests that came together are answered together. One
//     read of the socket is up to a pass while the client is busy.
//  3. It waits for the socket only while it has nothing to return.
//  4. A connection that is silent holds waitBytes beside what crypto/tls does.
//
// One goroutine reads and one at a time writes, as with every connection of
// this package; crypto/tls may write from within a Read.
type secureConn struct {
	*tls.Conn
	socket *passage
}

// newSecureConn does the handshake of TLS over a's socket, whose deadlines hold
// for it. On an error the connection is of no more use.
func newSecureConn(a *account, config *tls.Config) (*secureConn, error) {
	p := newPassage(a)
	c := &secureConn{Conn: tls.Server(p, config), socket: p}
	err := c.Handshake()
	if err != nil {
		p.end()
	}
	return c, err
}

// Close implements net.Conn, for the goroutine that reads.
func (c *secureConn) Close() error {
	defer c.socket.end()
	return c.Conn.Close()
}

// secured is config as this server uses it.
func secured(config *tls.Config) *tls.Config {
	if config == nil {
		config = &tls.Config{} // without a certificate every handshake fails
	}
	config = config.Clone()
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	// A connection lasts, so that to begin one may cost; a ticket would carry
	// over what a certificate was good for.
	config.SessionTicketsDisabled = true
	// Requests and replies come in batches: short first records are of no use.
	config.DynamicRecordSizingDisabled = true
	return config
}

// namesOf lists what a client's certificate was verified for: its common name,
// and its DNS names.
func namesOf(state tls.ConnectionState) []string {
	if len(state.VerifiedChains) == 0 {
		return nil
	}
	leaf := state.VerifiedChains[0][0]
	var names []string
	if leaf.Subject.CommonName != "" {
		names = append(names, leaf.Subject.CommonName)
	}
	return append(names, leaf.DNSNames...)
}

// Read implements net.Conn by 2 and 3.
func (c *secureConn) Read(p []byte) (n int, err error) {
	n, err = c.Conn.Read(p)
	c.socket.dry = true
	for err == nil && n < len(p) {
		var more int
		more, err = c.Conn.Read(p[n:])
		n += more
	}
	c.socket.dry = false
	if n > 0 {
		err = nil // errDry, or one that the next Read returns again
	}
	return n, err
}

// Write implements net.Conn by 1.
func (c *secureConn) Write(p []byte) (n int, err error) {
	c.socket.hold(len(p))
	n, err = c.Conn.Write(p)
	if letErr := c.socket.let(); err == nil && letErr != nil {
		return 0, letErr
	}
	return n, err
}

const (
	passBytes   = 128 << 10
	waitBytes   = 2 << 10
	recordBytes = 16 << 10 // the most of a Write that one record carries
)

var passes = sync.Pool{New: func() any { return new([passBytes]byte) }}

// A passage is the socket as crypto/tls sees it.
type passage struct {
	net.Conn
	account *account // over Conn; it has the passes

	// Of the goroutine that reads.
	lobby [waitBytes]byte
	wide  *[passBytes]byte // in place of lobby while the client is busy
	in    []byte           // lobby or wide
	r, w  int              // in[r:w] is received and not yet read
	full  bool             // the last read of the socket filled in: more is to come
	dry   bool             // what is not received counts as not there

	// As in an intake.
	raw      syscall.RawConn
	attempt  func(fd uintptr) bool
	patience patience
	got      int
	gotErr   error

	mu   sync.Mutex
	held *[passBytes]byte // nil: writes go through
	n    int              // held[:n] is to be written
	err  error            // the first of a write; TLS can't go on after it
}

// errDry: no more is received. To crypto/tls it is a time-out, after which a
// read may be tried again.
var errDry net.Error = dryError{}

type dryError struct{}

func (dryError) Error() string   { return "nbd: no more TLS records at hand" }
func (dryError) Timeout() bool   { return true }
func (dryError) Temporary() bool { return true }

func newPassage(a *account) *passage {
	p := &passage{Conn: a.nc, account: a}
	p.in = p.lobby[:]
	p.attempt = p.try
	if socket, ok := a.nc.(syscall.Conn); ok {
		if raw, err := socket.SyscallConn(); err == nil {
			p.raw = raw
		}
	}
	return p
}

// Read implements net.Conn.
func (p *passage) Read(b []byte) (int, error) {
	if p.r == p.w {
		if p.dry {
			return 0, errDry
		}
		n, err := p.receive()
		p.r, p.w, p.full = 0, n, n == len(p.in)
		if n == 0 {
			return 0, err
		}
	}
	n := copy(b, p.in[p.r:p.w])
	p.r += n
	return n, nil
}

// receive is one read of the socket. Where that can't be told from a wait, it
// is taken for one.
func (p *passage) receive() (int, error) {
	if p.raw == nil {
		p.narrow()
		return p.Conn.Read(p.in)
	}
	if err := p.raw.Read(p.attempt); err != nil {
		return 0, err
	}
	return p.got, p.gotErr
}

// try reads what the socket has; false when that is nothing.
func (p *passage) try(fd uintptr) bool {
	if p.full {
		p.widen()
	} else {
		p.narrow()
	}
	var waits bool
	if p.got, waits, p.gotErr = p.patience.read(fd, p.in); waits {
		p.full = false
		p.narrow()
	}
	return !waits
}

// end is called when nothing is read any more.
func (p *passage) end() {
	p.narrow()
	p.patience.sleep()
}

// widen makes in wide, if there is a pass.
func (p *passage) widen() {
	if p.wide == nil && p.account.takePass() {
		p.wide = passes.Get().(*[passBytes]byte)
		p.in = p.wide[:]
	}
}

// narrow gives wide back; nothing is in it.
func (p *passage) narrow() {
	if p.wide != nil {
		p.in = p.lobby[:]
		passes.Put(p.wide)
		p.wide = nil
		p.account.leavePass()
	}
}

// hold gathers what a Write of sizeBytes writes until let, if that is more than
// one record.
func (p *passage) hold(sizeBytes int) {
	if sizeBytes <= recordBytes || !p.account.takePass() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held, p.n = passes.Get().(*[passBytes]byte), 0
}

// let writes what hold gathered.
func (p *passage) let() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		return nil
	}
	err := p.flush()
	passes.Put(p.held)
	p.held = nil
	p.account.leavePass()
	return err
}

// Write implements net.Conn.
func (p *passage) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		return p.account.Write(b)
	}
	if p.n+len(b) > len(p.held) {
		if err := p.flush(); err != nil {
			return 0, err
		}
	}
	if len(b) > len(p.held) {
		return p.account.Write(b)
	}
	p.n += copy(p.held[p.n:], b)
	return len(b), nil
}

func (p *passage) flush() error {
	if p.err == nil && p.n > 0 {
		_, p.err = p.account.Write(p.held[:p.n])
		p.n = 0
	}
	return p.err
}

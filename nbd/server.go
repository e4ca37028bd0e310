package nbd

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Server. The zero value is usable.
type Options struct {
	// HandshakeTimeout is how long a client may take until it has chosen an
	// export; 0 is 30 s.
	HandshakeTimeout time.Duration
	// MaxConnections that have chosen an export, at once; one more is closed at
	// once. 0 is DefaultMaxConnections. Those in the handshake are limited
	// apart: the oldest of too many makes room.
	MaxConnections int
	// ClientBufferBytes bounds the payloads and replies of one connection that
	// are in work; 0 is 64 MiB. One request is always let in.
	ClientBufferBytes int64
	// TotalBufferBytes bounds what all connections together have in work
	// beyond 24 KiB each; 0 is 1 GiB, the least is MinTotalBufferBytes.
	TotalBufferBytes int64
	// StallTimeout is how long a client may make no progress with half a
	// payload, or with a reply that it does not read, while others wait for
	// the memory that it holds; 0 is 30 s, the least is 10 ms.
	StallTimeout time.Duration
	// TLS is the server's side of TLS, of at least version 1.2 whatever it
	// says; needed unless TLSMode is TLSOff.
	TLS *tls.Config
	// TLSMode says whether clients may or must use it.
	TLSMode TLSMode
	// Logger is told why a connection ended abnormally: at debug level, as a
	// warning if the server cut a client off for others. Nil discards.
	Logger *slog.Logger
}

// A TLSMode is what a Server does about NBD_OPT_STARTTLS ("Server-side
// requirements" of TLS support).
type TLSMode int

// The modes of the protocol.
const (
	// TLSOff refuses it (NOTLS).
	TLSOff TLSMode = iota
	// TLSAllow lets the client choose (SELECTIVETLS; which exports want it is
	// for the Backend to say, of a Client without TLS). It protects nobody
	// from a middleman who leaves NBD_OPT_STARTTLS out.
	TLSAllow
	// TLSRequire refuses every other option until TLS is up (FORCEDTLS).
	TLSRequire
)

var (
	// ErrServerClosed is what Serve returns after Shutdown.
	ErrServerClosed = errors.New("nbd: server closed")
	// ErrHangs is what Shutdown wraps when calls of a Device did not return.
	ErrHangs = errors.New("requests hang")

	errEvicted = errors.New("nbd: the handshake made room for a newer one")
	errLeft    = errors.New("nbd: the export had to be closed")
	errFull    = errors.New("nbd: as many connections as are allowed")
)

// maxHandshakes is how many connections may be without an export at once.
const maxHandshakes = 256

// DefaultMaxConnections is half the file descriptors that the process may have,
// without those of handshakes: the other half is for the files behind exports.
// (The Go runtime has raised the soft limit to the hard one.)
func DefaultMaxConnections() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return maxHandshakes
	}
	return max(int(min(limit.Cur, math.MaxInt32))/2-maxHandshakes, minConnections)
}

// minConnections is the default where descriptors are very few.
const minConnections = 16

// Server serves the exports of a Backend on any number of listeners. Its
// methods may run at the same time.
type Server struct {
	backend Backend
	options Options
	closing atomic.Bool
	budget  *budget

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*connection]struct{}
	young     *list.List    // of *connection: those in the handshake, oldest first
	settled   int           // connections that have chosen an export
	emptied   chan struct{} // closed when closing and conns is empty
}

// A connection is one that is open.
type connection struct {
	nc      net.Conn // as it was accepted: closing it ends all that runs over it
	account *account
	since   time.Time

	// Guarded by Server.mu.
	young   *list.Element // in Server.young
	settled bool
	export  string // once it is settled

	told    atomic.Bool // to leave
	evicted bool
}

// NewServer returns a server of b's exports.
func NewServer(b Backend, o Options) *Server {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 30 * time.Second
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = DefaultMaxConnections()
	}
	if o.ClientBufferBytes == 0 {
		o.ClientBufferBytes = 64 << 20
	}
	if o.TotalBufferBytes == 0 {
		o.TotalBufferBytes = 1 << 30
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = 30 * time.Second
	}
	if o.TLSMode != TLSOff {
		o.TLS = secured(o.TLS)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		backend:   b,
		options:   o,
		budget:    newBudget(o.TotalBufferBytes, o.ClientBufferBytes, o.StallTimeout),
		listeners: map[net.Listener]struct{}{},
		conns:     map[*connection]struct{}{},
		young:     list.New(),
		emptied:   make(chan struct{}),
	}
}

// Serve accepts connections until Shutdown (ErrServerClosed) or until l fails,
// and closes l.
func (s *Server) Serve(l net.Listener) error {
	defer func() { _ = l.Close() }()
	if !s.addListener(l) {
		return ErrServerClosed
	}
	defer s.removeListener(l)
	for pause := acceptPause; ; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = acceptPause
			go s.ServeConn(nc)
		case s.closing.Load():
			return ErrServerClosed
		case outOfDescriptors(err):
			// Connections that end will free some; to give up would refuse
			// clients for ever.
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
		default:
			return fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err)
		}
	}
}

// acceptPause is the first wait for file descriptors.
const acceptPause = 5 * time.Millisecond

func outOfDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ECONNABORTED)
}

// ServeConn serves one connection until it ends, and closes it.
func (s *Server) ServeConn(nc net.Conn) {
	defer func() { _ = nc.Close() }()
	c, err := s.addConn(nc)
	if err != nil {
		s.report(nc, err)
		return
	}
	defer s.removeConn(c)
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
	}
	s.report(nc, s.serveConn(c))
}

func (s *Server) serveConn(c *connection) error {
	export, err := s.handshake(c)
	if err == nil {
		err = export.serve()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.evicted:
		return errEvicted
	case c.told.Load():
		return errLeft
	}
	return err
}

func (s *Server) report(nc net.Conn, err error) {
	level := slog.LevelDebug
	switch {
	case errors.Is(err, errDisconnected):
		return
	case errors.Is(err, errStalled):
		level = slog.LevelWarn
	}
	s.options.Logger.Log(context.Background(), level, "nbd connection ended", "remote", nc.RemoteAddr().String(), "reason", err)
}

// Shutdown stops accepting, finishes the requests that were received whole,
// answers later ones with ESHUTDOWN, and closes each connection once it is
// idle; when ctx ends, it closes those that are left. It returns when every
// Device is closed: ctx's error if some had to be cut off. A Device whose calls
// do not return is not waited for longer than cutGrace: then the error wraps
// ErrHangs too, and names the exports.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := s.closing.CompareAndSwap(false, true)
	for l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.conns {
		_ = c.nc.SetReadDeadline(longAgo) // wakes the intake
	}
	if first && len(s.conns) == 0 {
		close(s.emptied)
	}
	s.mu.Unlock()

	select {
	case <-s.emptied:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		_ = c.nc.Close()
	}
	s.mu.Unlock()
	grace := time.NewTimer(cutGrace)
	defer grace.Stop()
	select {
	case <-s.emptied:
		return fmt.Errorf("nbd: shutdown cut connections off: %w", ctx.Err())
	case <-grace.C:
		return fmt.Errorf("nbd: shutdown: %w: %s: %w", ErrHangs, s.hanging(), ctx.Err())
	}
}

// leave ends the connection: at once, or when it has answered what it has received.
func (c *connection) leave(now bool) {
	c.told.Store(true)
	if now {
		_ = c.nc.Close()
		return
	}
	_ = c.nc.SetReadDeadline(longAgo) // wakes the intake
}

var longAgo = time.Unix(1, 0)

// cutGrace is how long connections that were cut off may take to end.
const cutGrace = time.Second

// hanging names some of the connections that are left.
func (s *Server) hanging() string {
	const most = 5
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for c := range s.conns {
		if len(names) == most {
			names = append(names, fmt.Sprintf("and %d more", len(s.conns)-most))
			break
		}
		export := "no export yet"
		if c.settled {
			export = fmt.Sprintf("export %q", c.export)
		}
		names = append(names, fmt.Sprintf("%s (client %q, connected for %v, %d requests with workers)",
			export, c.nc.RemoteAddr(), time.Since(c.since).Round(time.Second), c.account.inWork()))
	}
	return strings.Join(names, ", ")
}

// Connections is the number of open connections, handshakes included.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// addConn registers nc and starts the clock of its handshake.
func (s *Server) addConn(nc net.Conn) (*connection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return nil, ErrServerClosed
	}
	if s.settled >= s.options.MaxConnections {
		return nil, errFull
	}
	if err := nc.SetDeadline(time.Now().Add(s.options.HandshakeTimeout)); err != nil {
		return nil, fmt.Errorf("nbd: set the handshake's deadline: %w", err)
	}
	if s.young.Len() >= maxHandshakes {
		oldest := s.young.Remove(s.young.Front()).(*connection)
		oldest.young, oldest.evicted = nil, true
		_ = oldest.nc.Close()
	}
	c := &connection{nc: nc, account: s.budget.open(nc), since: time.Now()}
	c.young = s.young.PushBack(c)
	s.conns[c] = struct{}{}
	return c, nil
}

// settle notes that c has chosen an export, before it is told that it has it;
// an error if it must go.
func (s *Server) settle(c *connection, export string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case c.young == nil:
		return errEvicted
	case s.settled >= s.options.MaxConnections:
		return errFull
	}
	s.young.Remove(c.young)
	c.young, c.settled, c.export = nil, true, export
	s.settled++
	return nil
}

func (s *Server) removeConn(c *connection) {
	c.account.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	switch {
	case c.young != nil:
		s.young.Remove(c.young)
	case c.settled:
		s.settled--
	}
	if s.closing.Load() && len(s.conns) == 0 {
		close(s.emptied)
	}
}

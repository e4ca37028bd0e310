package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options of a Server. The zero value is usable.
type Options struct {
	// HandshakeTimeout is how long a client may take until it has chosen an
	// export; 0 is 30 s.
	HandshakeTimeout time.Duration
	// MaxConnections open at once, 0 for no limit; one more is closed at once.
	MaxConnections int
	// Logger is told, at debug level, why a connection ended abnormally. Nil
	// discards.
	Logger *slog.Logger
}

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("nbd: server closed")

// Server serves the exports of a Backend on any number of listeners. Its
// methods may run at the same time.
type Server struct {
	backend Backend
	options Options
	closing atomic.Bool

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]struct{}
	emptied   chan struct{} // closed when closing and conns is empty
}

// NewServer returns a server of b's exports.
func NewServer(b Backend, o Options) *Server {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		backend:   b,
		options:   o,
		listeners: map[net.Listener]struct{}{},
		conns:     map[net.Conn]struct{}{},
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
	if err := s.addConn(nc); err != nil {
		s.report(nc, err)
		return
	}
	defer s.removeConn(nc)
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
	}
	export, err := s.handshake(nc)
	if err == nil {
		err = export.serve()
	}
	s.report(nc, err)
}

func (s *Server) report(nc net.Conn, err error) {
	if !errors.Is(err, errDisconnected) {
		s.options.Logger.Debug("nbd connection ended", "remote", nc.RemoteAddr().String(), "reason", err)
	}
}

// Shutdown stops accepting, finishes the requests that were received whole,
// answers later ones with ESHUTDOWN, and closes each connection once it is
// idle; when ctx ends, it closes those that are left. It returns when every
// Device is closed: ctx's error if some had to be cut off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := s.closing.CompareAndSwap(false, true)
	for l := range s.listeners {
		_ = l.Close()
	}
	for nc := range s.conns {
		_ = nc.SetReadDeadline(longAgo) // wakes the intake
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
	for nc := range s.conns {
		_ = nc.Close()
	}
	s.mu.Unlock()
	<-s.emptied
	return fmt.Errorf("nbd: shutdown cut connections off: %w", ctx.Err())
}

var longAgo = time.Unix(1, 0)

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
func (s *Server) addConn(nc net.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return ErrServerClosed
	}
	if limit := s.options.MaxConnections; limit > 0 && len(s.conns) >= limit {
		return fmt.Errorf("nbd: more than %d connections", limit)
	}
	if err := nc.SetDeadline(time.Now().Add(s.options.HandshakeTimeout)); err != nil {
		return fmt.Errorf("nbd: set the handshake's deadline: %w", err)
	}
	s.conns[nc] = struct{}{}
	return nil
}

func (s *Server) removeConn(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, nc)
	if s.closing.Load() && len(s.conns) == 0 {
		close(s.emptied)
	}
}

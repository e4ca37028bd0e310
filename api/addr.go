package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxUnixPathBytes is what sockaddr_un holds besides the final NUL.
const maxUnixPathBytes = 107

var (
	// ErrBadAddr says that a text is no address, and what is allowed.
	ErrBadAddr = errors.New("not an address")
	// ErrAddrInUse says that another process listens there.
	ErrAddrInUse = errors.New("address in use")
)

// Addr is where a server listens: a unix socket or a TCP port. The zero value
// is none.
type Addr struct {
	network string // "unix" or "tcp"
	address string // path, or host:port
}

// UnixAddr returns the address of a unix socket. Slashes at the start of the path
// become one, since unix:// is the start of the other form of an address. Errors:
// ErrBadAddr when the path is empty or too long.
func UnixAddr(path string) (Addr, error) {
	if strings.HasPrefix(path, "//") {
		path = "/" + strings.TrimLeft(path, "/")
	}
	switch {
	case path == "":
		return Addr{}, fmt.Errorf("%w: unix: without a path; write unix:PATH", ErrBadAddr)
	case len(path) > maxUnixPathBytes:
		return Addr{}, fmt.Errorf("%w: the path of unix:%s has %d bytes, a socket's may have %d; choose a shorter one, or one relative to the working directory",
			ErrBadAddr, path, len(path), maxUnixPathBytes)
	}
	return Addr{"unix", path}, nil
}

// ParseAddr reads "unix:PATH", "unix:///PATH" or "HOST:PORT" (an IPv6 host in
// brackets; an empty host is every address of the machine). Errors: ErrBadAddr.
func ParseAddr(text string) (Addr, error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		if rest, ok := strings.CutPrefix(path, "//"); ok {
			if !strings.HasPrefix(rest, "/") {
				return Addr{}, fmt.Errorf("%w: %q: an absolute path follows unix://", ErrBadAddr, text)
			}
			path = rest
		}
		return UnixAddr(path)
	}
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return Addr{}, fmt.Errorf("%w: %q; write unix:PATH or HOST:PORT", ErrBadAddr, text)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Addr{}, fmt.Errorf("%w: %q: the port is a number from 0 to 65535", ErrBadAddr, text)
	}
	return Addr{"tcp", text}, nil
}

// String returns the address in a form that ParseAddr reads.
func (a Addr) String() string {
	if a.network == "unix" {
		return "unix:" + a.address
	}
	return a.address
}

// Reachable returns the address as a client on this machine, with any working
// directory, reaches it: the absolute path, or loopback for every address.
func (a Addr) Reachable() (Addr, error) {
	if a.network == "unix" {
		path, err := filepath.Abs(a.address)
		return Addr{"unix", path}, err
	}
	host, port, err := net.SplitHostPort(a.address)
	if err != nil {
		return a, err
	}
	switch ip := net.ParseIP(host); {
	case host == "" || ip != nil && ip.Equal(net.IPv4zero):
		host = "127.0.0.1"
	case ip != nil && ip.IsUnspecified():
		host = "::1"
	}
	return Addr{"tcp", net.JoinHostPort(host, port)}, nil
}

// Loopback tells whether only this machine reaches the address: a unix socket,
// a loopback IP, or localhost. Any other name may be anywhere.
func (a Addr) Loopback() bool {
	if a.network == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(a.address)
	ip, e := netip.ParseAddr(host)
	return err == nil && (host == "localhost" || e == nil && ip.IsLoopback())
}

// TCP tells whether the address is a TCP port.
func (a Addr) TCP() bool { return a.network == "tcp" }

// NBDURI returns the NBD URI of an export served at the address, with TLS or
// without (the uri specification of the NBD project: nbd://, nbds://,
// nbd+unix:// and nbds+unix://).
func (a Addr) NBDURI(export string, tls bool) string {
	u := url.URL{Scheme: "nbd", Host: a.address, Path: "/" + export}
	if tls {
		u.Scheme = "nbds"
	}
	if a.network == "unix" {
		query := "socket=" + strings.ReplaceAll(url.QueryEscape(a.address), "%2F", "/")
		return u.Scheme + "+unix://" + u.EscapedPath() + "?" + query
	}
	return u.String()
}

// Dial connects to the address.
func (a Addr) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, a.network, a.address)
}

// Listen listens at the address and returns it as bound, port 0 made real. A
// unix socket that a dead server left is removed: one where nobody answers. If
// private, a unix socket has mode 0600 from its first instant. Errors:
// ErrAddrInUse.
func (a Addr) Listen(private bool) (net.Listener, Addr, error) {
	var c net.ListenConfig
	if a.network == "unix" {
		if err := a.removeStale(); err != nil {
			return nil, a, err
		}
		if private {
			// bind(2) gives the new file the mode of the socket's own inode.
			c.Control = func(_, _ string, raw syscall.RawConn) error {
				var err error
				if e := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
					return e
				}
				return err
			}
		}
	}
	l, err := c.Listen(context.Background(), a.network, a.address)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, a, fmt.Errorf("%w: %v; stop the process that listens there, or choose another address", ErrAddrInUse, a)
	case err != nil:
		return nil, a, fmt.Errorf("listen on %v: %w", a, err)
	}
	if a.network == "tcp" {
		_, port, _ := net.SplitHostPort(l.Addr().String())
		host, _, _ := net.SplitHostPort(a.address)
		a.address = net.JoinHostPort(host, port)
	}
	return l, a, nil
}

// removeStale removes the socket of a server that is gone.
func (a Addr) removeStale() error {
	info, err := os.Lstat(a.address)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %v: %w", a, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: %s exists and is no socket; choose another path", ErrAddrInUse, a.address)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := a.Dial(ctx)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%w: %v; a server answers there: stop it, or choose another path", ErrAddrInUse, a)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w: %v: %w", ErrAddrInUse, a, err)
	}
	if err := os.Remove(a.address); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of a dead server: %w", err)
	}
	return nil
}

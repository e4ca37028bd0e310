// Package client is a small NBD client, for tools and tests.
//
// It asks for extended headers, or else structured replies, and the contexts
// base:allocation and qemu:allocation-depth, and does without where a server
// lacks them. TLS it asks for when it is told to, and never does without.
package client

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// ErrClosed is what calls return on a client that was closed, or whose server
// has gone.
var ErrClosed = errors.New("nbd client: connection closed")

// A RefusedError is the server's refusal of an export.
type RefusedError struct {
	Export string
	Reason string // the server's words, or what its reply code means
	// Unknown tells that there is no such export, rather than that it is not
	// for this client, or not now.
	Unknown bool
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("nbd client: server refuses export %q: %s", e.Export, e.Reason)
}

// A CommandError is the server's refusal of a command. It has the protocol's
// error value, and unwraps to nothing.
type CommandError struct {
	Errno   uint32 // of doc/proto.md, "Error values"; the same numbers as Linux's
	Message string // the server's words, may be empty
}

func (e *CommandError) Error() string {
	text := wire.Errno(e.Errno).Error()
	if e.Message != "" && e.Message != text {
		text += ": " + e.Message
	}
	return "nbd client: server: " + text
}

// Client is one connection to an export. Its methods may run at the same time,
// and their requests are in flight together; but a call that begins after Close
// or Abort returns ErrClosed. A range may be of any length: what is more than
// the server takes at once goes as several requests.
type Client struct {
	socket    net.Conn
	nc        net.Conn // the socket, or TLS over it
	sizeBytes int64
	flags     uint16
	form      wire.Form
	contexts  map[uint32]string // by id
	maxBytes  int64             // payload of one request

	sending sync.Mutex // held while requests are written; taken before mu
	out     outbox     // of who holds sending

	mu     sync.Mutex
	flight flight // calls that wait for their replies
	queue  []*call
	wrote  sync.Cond // with mu: call.lent of some call is over
	err    error     // why there will be no more replies

	owed     owed
	received chan struct{} // closed when receive has ended
}

// Extent is a stretch of an export with one state.
type Extent struct {
	Length int64  // bytes
	Hole   bool   // base:allocation, NBD_STATE_HOLE
	Zero   bool   // base:allocation, NBD_STATE_ZERO
	Depth  uint32 // qemu:allocation-depth; 0 also when the server does not offer it
}

// LocalName is the name that a server has at a unix socket, to TLS.
const LocalName = "localhost"

// A Dialer says how to open an export. The zero value is what Dial uses.
type Dialer struct {
	// TLS, if it is set, is insisted on: a server without it is refused. Its
	// ServerName, if empty, is the host that is dialled: localhost, at a unix socket.
	TLS *tls.Config
	// Compact does without extended headers, also where the server has them.
	Compact bool
}

// Dial opens the export that an NBD URI names:
// nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT.
func Dial(ctx context.Context, uri string) (*Client, error) { return Dialer{}.Dial(ctx, uri) }

// Dial opens the export that an NBD URI names, as the function Dial does, or
// over TLS: nbds+unix:///EXPORT?socket=PATH or nbds://HOST[:PORT]/EXPORT. The
// URI must say whether TLS is used.
func (d Dialer) Dial(ctx context.Context, uri string) (*Client, error) {
	a, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	switch {
	case a.TLS && d.TLS == nil:
		return nil, fmt.Errorf("nbd client: %q asks for TLS, for which there are no certificates here", uri)
	case !a.TLS && d.TLS != nil:
		return nil, fmt.Errorf("nbd client: %q does not ask for TLS: it begins with nbds:// or nbds+unix://", uri)
	}
	return d.DialExport(ctx, a.Network, a.Addr, a.Export)
}

// An Address is what an NBD URI says.
type Address struct {
	Network, Addr string // as net.Dial takes them: "unix" or "tcp"
	Export        string
	TLS           bool
}

// ParseURI takes an NBD URI apart (doc/uri.md of the NBD project). Export
// names are percent-encoded in it; query parameters other than socket are refused.
func ParseURI(uri string) (Address, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Address{}, fmt.Errorf("nbd client: %w", err)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Address{}, fmt.Errorf("nbd client: query of %q: %w", uri, err)
	}
	socket := query.Get("socket")
	query.Del("socket")
	for parameter := range query {
		return Address{}, fmt.Errorf("nbd client: unknown parameter %q in %q", parameter, uri)
	}
	a := Address{Export: strings.TrimPrefix(u.Path, "/"), TLS: strings.HasPrefix(u.Scheme, "nbds")}
	switch scheme := strings.Replace(u.Scheme, "nbds", "nbd", 1); {
	case scheme == "nbd+unix" && socket != "" && u.Host == "":
		a.Network, a.Addr = "unix", socket
		return a, nil
	case scheme == "nbd" && socket == "" && u.Hostname() != "":
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		a.Network, a.Addr = "tcp", net.JoinHostPort(u.Hostname(), port)
		return a, nil
	}
	return Address{}, fmt.Errorf("nbd client: %q is none of nbd[s]+unix:///EXPORT?socket=PATH and nbd[s]://HOST[:PORT]/EXPORT", uri)
}

// DialExport opens an export at a network address ("unix" or "tcp"). ctx bounds
// the dialling and the handshake.
func DialExport(ctx context.Context, network, addr, export string) (*Client, error) {
	return Dialer{}.DialExport(ctx, network, addr, export)
}

// DialExport is the function of the same name, as d says.
func (d Dialer) DialExport(ctx context.Context, network, addr, export string) (*Client, error) {
	if d.TLS != nil && d.TLS.ServerName == "" {
		d.TLS = d.TLS.Clone()
		d.TLS.ServerName = LocalName
		if network == "tcp" {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, fmt.Errorf("nbd client: %w", err)
			}
			d.TLS.ServerName = host
		}
	}
	var plain net.Dialer
	nc, err := plain.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd client: %w", err)
	}
	return d.NewClient(ctx, nc, export)
}

// NewClient opens an export over a connection, which is the client's from then
// on, also when it fails.
func NewClient(ctx context.Context, nc net.Conn, export string) (*Client, error) {
	return Dialer{}.NewClient(ctx, nc, export)
}

// NewClient is the function of the same name, as d says. With TLS, over what
// was not dialled here, the ServerName must be set.
func (d Dialer) NewClient(ctx context.Context, nc net.Conn, export string) (*Client, error) {
	c := &Client{
		socket:   nc,
		nc:       nc,
		contexts: map[uint32]string{},
		maxBytes: 32 << 20, // what every server takes that says nothing else
		received: make(chan struct{}),
	}
	c.wrote.L = &c.mu
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	err := c.handshake(ctx, d, export)
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline is or will be in the past
	}
	if err != nil {
		_ = nc.Close()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("nbd client: open %q: %w", export, err)
	}
	go c.receive()
	return c, nil
}

// SizeBytes is the export's size.
func (c *Client) SizeBytes() int64 { return c.sizeBytes }

// ReadOnly tells whether the server said that it takes no writes.
func (c *Client) ReadOnly() bool { return c.flags&wire.ReadOnly != 0 }

// MultiConn tells whether the server said that a flush covers all connections.
func (c *Client) MultiConn() bool { return c.flags&wire.CanMultiConn != 0 }

// MaxBytes is the most that one request reads or writes; the calls that take
// longer ranges make several of them.
func (c *Client) MaxBytes() int64 { return c.maxBytes }

// Extended tells whether server and client agreed on extended headers.
func (c *Client) Extended() bool { return c.form == wire.Extended }

// ReadAt implements io.ReaderAt: io.EOF for what is beyond the end.
func (c *Client) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errNegative
	}
	whole := len(p)
	p = p[:max(0, min(int64(len(p)), c.sizeBytes-off))]
	for n < len(p) {
		piece := p[n : n+int(min(int64(len(p)-n), c.maxBytes))]
		if err := c.transfer(wire.CmdRead, 0, off+int64(n), piece); err != nil {
			return n, err
		}
		n += len(piece)
	}
	if n < whole {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (c *Client) WriteAt(p []byte, off int64) (int, error) { return c.write(p, off, 0) }

// WriteFUA is WriteAt that returns when p is durable.
func (c *Client) WriteFUA(p []byte, off int64) (int, error) { return c.write(p, off, wire.FlagFUA) }

func (c *Client) write(p []byte, off int64, flags uint16) (n int, err error) {
	if off < 0 {
		return 0, errNegative
	}
	for n < len(p) {
		piece := p[n : n+int(min(int64(len(p)-n), c.maxBytes))]
		if err := c.transfer(wire.CmdWrite, flags, off+int64(n), piece); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// Flush returns when all writes completed before are durable.
func (c *Client) Flush() error {
	return c.transfer(wire.CmdFlush, 0, 0, nil)
}

// Trim gives a range back.
func (c *Client) Trim(off, lengthBytes int64) error {
	return c.ranged(wire.CmdTrim, 0, off, lengthBytes)
}

// WriteZeroes makes a range read zeros; noHole keeps its storage.
func (c *Client) WriteZeroes(off, lengthBytes int64, noHole bool) error {
	var flags uint16
	if noHole {
		flags = wire.FlagNoHole
	}
	return c.ranged(wire.CmdZeroes, flags, off, lengthBytes)
}

// Cache asks the server to have a range in memory soon.
func (c *Client) Cache(off, lengthBytes int64) error {
	return c.ranged(wire.CmdCache, 0, off, lengthBytes)
}

// maxRange is the longest range of a command without payload, in whole blocks.
func (c *Client) maxRange() int64 {
	if c.form == wire.Extended {
		return math.MaxInt64
	}
	return math.MaxUint32 &^ 4095
}

func (c *Client) ranged(command, flags uint16, off, lengthBytes int64) error {
	if off < 0 || lengthBytes < 0 {
		return errNegative
	}
	for done := int64(0); done < lengthBytes; {
		n := min(lengthBytes-done, c.maxRange())
		if err := c.do(&call{request: c.request(command, flags, off+done, n)}); err != nil {
			return err
		}
		done += n
	}
	return nil
}

var errNegative = errors.New("nbd client: negative offset or length")

// ErrNoBlockStatus means that the server does not offer base:allocation.
var ErrNoBlockStatus = errors.New("nbd client: server offers no block status")

// BlockStatus returns the extents of a range, equal neighbours as one.
func (c *Client) BlockStatus(off, lengthBytes int64) ([]Extent, error) {
	if off < 0 || lengthBytes < 0 {
		return nil, errNegative
	}
	if len(c.contexts) == 0 {
		return nil, ErrNoBlockStatus
	}
	var extents []Extent
	for done := int64(0); done < lengthBytes; {
		k := &call{
			request: c.request(wire.CmdBlockStatus, 0, off+done, min(lengthBytes-done, c.maxRange())),
			status:  map[string][]descriptor{},
		}
		if err := c.do(k); err != nil {
			return extents, err
		}
		told := k.extents()
		if len(told) == 0 {
			return extents, fmt.Errorf("nbd client: block status at %d: empty reply", off+done)
		}
		for _, e := range told {
			done += e.Length
			if last := len(extents) - 1; last >= 0 && sameState(extents[last], e) {
				extents[last].Length += e.Length
			} else {
				extents = append(extents, e)
			}
		}
	}
	return extents, nil
}

func sameState(a, b Extent) bool {
	a.Length = b.Length
	return a == b
}

// Close says NBD_CMD_DISC and closes the connection. Calls in flight are
// waited for by the server, but return ErrClosed.
func (c *Client) Close() error {
	c.sending.Lock()
	r := c.request(wire.CmdDisc, 0, 0, 0)
	_, err := c.nc.Write(c.form.AppendRequest(nil, &r))
	if secure, ok := c.nc.(*tls.Conn); ok {
		_ = secure.CloseWrite() // the server may have been first
	}
	c.sending.Unlock()
	if abortErr := c.Abort(); err == nil {
		err = abortErr
	}
	return err
}

// Abort closes the connection without NBD_CMD_DISC, as a crash would.
func (c *Client) Abort() error {
	err := c.socket.Close()
	<-c.received
	if errors.Is(err, net.ErrClosed) { // receive was first: the server closed it
		return nil
	}
	return err
}

func (c *Client) request(command, flags uint16, off, lengthBytes int64) wire.Request {
	if c.form == wire.Extended && command == wire.CmdWrite {
		flags |= wire.FlagPayloadLen
	}
	return wire.Request{Command: command, Flags: flags, Offset: uint64(off), Length: uint64(lengthBytes)}
}

// A descriptor is an extent of one context.
type descriptor struct{ length, flags uint64 }

// extents puts the contexts of a reply together, as far as all of them tell.
func (k *call) extents() []Extent {
	allocation, hasAllocation := k.status[wire.ContextAllocation]
	depth, hasDepth := k.status[wire.ContextDepth]
	var extents []Extent
	for left := k.request.Length; left > 0; {
		n, e := left, Extent{}
		if hasAllocation {
			if len(allocation) == 0 {
				break
			}
			n = min(n, allocation[0].length)
			e.Hole = allocation[0].flags&uint64(wire.StateHole) != 0
			e.Zero = allocation[0].flags&uint64(wire.StateZero) != 0
		}
		if hasDepth {
			if len(depth) == 0 {
				break
			}
			n = min(n, depth[0].length)
			e.Depth = uint32(depth[0].flags)
		}
		if !hasAllocation && !hasDepth {
			break
		}
		allocation, depth = cut(allocation, n), cut(depth, n)
		e.Length = int64(n)
		extents = append(extents, e)
		left -= n
	}
	return extents
}

// cut drops n bytes off the front of d.
func cut(d []descriptor, n uint64) []descriptor {
	if len(d) == 0 {
		return d
	}
	if d[0].length -= n; d[0].length == 0 {
		return d[1:]
	}
	return d
}

// handshake negotiates up to the transmission phase.
func (c *Client) handshake(ctx context.Context, d Dialer, export string) error {
	var hello [wire.HelloSize]byte
	if _, err := io.ReadFull(c.nc, hello[:]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if binary.BigEndian.Uint64(hello[:]) != wire.MagicHello || binary.BigEndian.Uint64(hello[8:]) != wire.MagicOption {
		return errors.New("greeting is not NBD's (newstyle)")
	}
	offered := binary.BigEndian.Uint16(hello[16:])
	if offered&wire.FlagFixedNewstyle == 0 {
		return errors.New("server does not do fixed newstyle")
	}
	flags := binary.BigEndian.AppendUint32(nil, uint32(offered&(wire.FlagFixedNewstyle|wire.FlagNoZeroes)))
	if _, err := c.nc.Write(flags); err != nil {
		return fmt.Errorf("flags: %w", err)
	}
	if d.TLS != nil {
		if err := c.startTLS(ctx, d.TLS); err != nil {
			return err
		}
	}
	if err := c.chooseForm(d.Compact); err != nil {
		return err
	}
	name := wire.AppendString(nil, export)
	if c.form != wire.Simple {
		queries := binary.BigEndian.AppendUint32(name[:len(name):len(name)], 2)
		queries = wire.AppendString(queries, wire.ContextAllocation)
		queries = wire.AppendString(queries, wire.ContextDepth)
		// A refusal is no failure: OptGo will tell if it is the export's.
		if _, err := c.option(wire.OptSetMeta, queries, c.noteContext); err != nil {
			return err
		}
	}
	asked := binary.BigEndian.AppendUint16(name[:len(name):len(name)], 1)
	asked = binary.BigEndian.AppendUint16(asked, wire.InfoBlockSize)
	refusal, err := c.option(wire.OptGo, asked, c.noteInfo)
	switch {
	case err != nil:
		return err
	case refusal != nil:
		return &RefusedError{Export: export, Reason: refusal.reason, Unknown: refusal.kind == wire.RepErrUnknown}
	case c.flags&wire.HasFlags == 0:
		return errors.New("server told no size")
	}
	return nil
}

// startTLS goes on over TLS. That the server refuses is an error: to go on
// without is what a middleman would want.
func (c *Client) startTLS(ctx context.Context, config *tls.Config) error {
	refusal, err := c.option(wire.OptStartTLS, nil, nil)
	switch {
	case err != nil:
		return err
	case refusal != nil:
		return fmt.Errorf("server refuses TLS: %s", refusal.reason)
	}
	secure := tls.Client(c.socket, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.nc = secure
	return nil
}

// chooseForm agrees on the best form of messages that the server has.
func (c *Client) chooseForm(compact bool) error {
	if !compact {
		refusal, err := c.option(wire.OptExtendedHeaders, nil, nil)
		if err != nil {
			return err
		}
		if refusal == nil {
			c.form = wire.Extended
			return nil
		}
	}
	refusal, err := c.option(wire.OptStructuredReply, nil, nil)
	if err == nil && refusal == nil {
		c.form = wire.Structured
	}
	return err
}

func (c *Client) noteContext(kind uint32, data []byte) {
	if kind == wire.RepMetaContext && len(data) >= 4 {
		c.contexts[binary.BigEndian.Uint32(data)] = string(data[4:])
	}
}

func (c *Client) noteInfo(kind uint32, data []byte) {
	if kind != wire.RepInfo || len(data) < 2 {
		return
	}
	switch info, data := binary.BigEndian.Uint16(data), data[2:]; {
	case info == wire.InfoExport && len(data) == 10:
		c.sizeBytes = int64(binary.BigEndian.Uint64(data))
		c.flags = binary.BigEndian.Uint16(data[8:])
	case info == wire.InfoBlockSize && len(data) == 12:
		// Not less than a block: a server that says 0 would have us loop.
		c.maxBytes = max(4096, min(c.maxBytes, int64(binary.BigEndian.Uint32(data[8:]))))
	}
}

// lastWords returns why a server that has hung up did so, if TLS had it say that:
// of a client's certificate it says so only when the client thinks that all is well.
func (c *Client) lastWords() error {
	if _, ok := c.nc.(*tls.Conn); !ok {
		return nil
	}
	if _, err := c.nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// maxReplyBytes is the longest reply to an option that is believed.
const maxReplyBytes = 64 << 10

// A refusal is a server's no to an option.
type refusal struct {
	kind   uint32 // of its reply
	reason string
}

// option sends an option and gives each reply but the last to note. no is nil
// unless the server refused the option.
func (c *Client) option(option uint32, data []byte, note func(kind uint32, data []byte)) (no *refusal, err error) {
	if _, err := c.nc.Write(wire.AppendOption(nil, option, data)); err != nil {
		if why := c.lastWords(); why != nil {
			err = why
		}
		return nil, fmt.Errorf("option %d: %w", option, err)
	}
	for {
		var header [wire.OptReplySize]byte
		if _, err := io.ReadFull(c.nc, header[:]); err != nil {
			return nil, fmt.Errorf("reply to option %d: %w", option, err)
		}
		kind, length := binary.BigEndian.Uint32(header[12:]), binary.BigEndian.Uint32(header[16:])
		if binary.BigEndian.Uint64(header[:]) != wire.MagicOptReply || binary.BigEndian.Uint32(header[8:]) != option || length > maxReplyBytes {
			return nil, fmt.Errorf("reply to option %d: malformed", option)
		}
		reply := make([]byte, length)
		if _, err := io.ReadFull(c.nc, reply); err != nil {
			return nil, fmt.Errorf("reply to option %d: %w", option, err)
		}
		switch {
		case kind == wire.RepAck:
			return nil, nil
		case kind&wire.RepErr != 0 && len(reply) > 0:
			return &refusal{kind, string(reply)}, nil
		case kind&wire.RepErr != 0:
			return &refusal{kind, fmt.Sprintf("error %d", kind&^wire.RepErr)}, nil
		case note != nil:
			note(kind, reply)
		}
	}
}

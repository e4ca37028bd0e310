package nbd

import (
	"errors"
	"net"
	"time"
)

// Errors of Backend.Open. Their wrapped text is shown to the client in the
// option's error reply, so it is one line and says what is allowed.
var (
	// ErrUnknownExport: there is no such export (NBD_REP_ERR_UNKNOWN).
	ErrUnknownExport = errors.New("nbd: no such export")
	// ErrBadExportName: the name can't be one (NBD_REP_ERR_INVALID).
	ErrBadExportName = errors.New("nbd: bad export name")
	// ErrRefused: the export exists and may not be opened now or in this way
	// (NBD_REP_ERR_POLICY).
	ErrRefused = errors.New("nbd: export refused")
)

// Errors of a Device with an NBD error value of their own. An error may also
// carry its value itself, by a method NBDErrno() uint32.
var (
	// ErrReadOnly becomes EPERM, as does fs.ErrPermission.
	ErrReadOnly = errors.New("nbd: export is read-only")
	// ErrShutdown becomes ESHUTDOWN: the device takes no more requests.
	ErrShutdown = errors.New("nbd: server is shutting down")
)

// Client is who asks, as far as the server knows at that moment.
type Client struct {
	Remote net.Addr
	// TLS tells that the connection is encrypted.
	TLS bool
	// Names are what the client's certificate was verified for, its common
	// name first, then its DNS names; none without such a certificate.
	Names []string
}

// Backend resolves export names. Its methods may run at the same time, and
// keep no Client's Names.
type Backend interface {
	// List returns the names that NBD_OPT_LIST shows c.
	List(c Client) []string
	// Open opens an export; each call is met by one Device.Close. A probe
	// (NBD_OPT_INFO, the metadata context options) opens and closes too.
	// Errors wrap ErrUnknownExport, ErrBadExportName or ErrRefused; any other
	// is shown as a refusal.
	Open(name string, c Client) (Device, Info, error)
}

// Info is what the handshake tells of an export.
type Info struct {
	Description string
	ReadOnly    bool
	MultiConn   bool // NBD_FLAG_CAN_MULTI_CONN: a flush on one connection covers them all
}

// Device is an open export, as one connection sees it. All methods but Close
// may run at the same time. The server checks ranges and read-only first, and
// keeps no slice after a call: neither may a Device.
type Device interface {
	// SizeBytes is fixed for the life of the Device.
	SizeBytes() int64
	// TryReadAt is ReadAt that never waits for a disk or another request's:
	// image.ErrWouldBlock, p's contents undefined, where it would have to. It
	// runs on the goroutine that serves the whole connection.
	TryReadAt(p []byte, off int64) (int, error)
	ReadAt(p []byte, off int64) (int, error)
	// TryWriteAt is to WriteAt as TryReadAt is to ReadAt. With
	// image.ErrWouldBlock the write is repeated whole by WriteAt. It may leave to
	// Publish what is to be done once for a batch of requests.
	TryWriteAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Trim gives a range back; it may read as anything, here zeros.
	Trim(off, lengthBytes int64) error
	// WriteZeroes makes a range read zeros; noHole keeps its storage.
	WriteZeroes(off, lengthBytes int64, noHole bool) error
	// Cache asks that a range be in memory soon, so that reads need not wait.
	// It promises nothing.
	Cache(off, lengthBytes int64) error
	// Flush makes every completed write durable. It also follows each command
	// with FUA, before the reply.
	Flush() error
	// Extents yields consecutive extents from off until yield returns false
	// or lengthBytes are told; at least one, or an error.
	Extents(off, lengthBytes int64, yield func(Extent) bool) error
	// Publish is called before replies are handed to the socket, of any command: what
	// they tell is to survive the death of the server when it returns nil. Else none of
	// them is sent, and the connection is closed.
	Publish() error
	// Served is called when replies were handed to the socket, with the
	// arrival of the oldest request among them.
	Served(arrival time.Time)
	// Close is called once, after every other call has returned. torn: the
	// connection died without NBD_CMD_DISC, and not by Server.Shutdown.
	Close(torn bool)
}

// Evictable is a Device that may have to be closed before its client wants it.
type Evictable interface {
	// OnEvict is called once, when the client has chosen the export. leave tells the
	// client to go: its connection is closed when the requests that were received
	// have been answered or, if now, at once. leave does not wait, and may be called
	// at any time, also after Close, and more than once.
	OnEvict(leave func(now bool))
}

// Compared is a Device that can tell where it may differ from older states of what it
// shows, as "qemu:dirty-bitmap:NAME". What it shows never changes.
type Compared interface {
	Device
	// Bases lists the names of the older states.
	Bases() []string
	// Since opens the differences from one of them; one Close meets each. It is to be
	// cheap: clients may ask often. Errors: there is none of that name for this client.
	Since(name string) (Bitmap, error)
}

// Bitmap is where a Device may differ from an older state. Its methods may run at the
// same time, but for Close, which is the last, before that of the Device.
type Bitmap interface {
	// Extents yields consecutive stretches from off, dirty or not, until yield returns
	// false or lengthBytes are told.
	Extents(off, lengthBytes int64, yield func(lengthBytes int64, dirty bool) bool)
	Close()
}

// Extent is a stretch of an export with one state.
type Extent struct {
	Length int64  // bytes, > 0
	Hole   bool   // no storage is allocated (NBD_STATE_HOLE)
	Zero   bool   // reads as zeros (NBD_STATE_ZERO)
	Depth  uint32 // of qemu:allocation-depth: 1 the newest image, 2 the one below, 0 nobody holds it
}

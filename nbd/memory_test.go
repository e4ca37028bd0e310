package nbd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tidemark/tidemark/image"
)

// memory is a Device, and the Backend of the one export "disk" that has it.
type memory struct {
	info  Info
	cold  atomic.Bool // the Try methods would block
	fails atomic.Pointer[error]

	staged     atomic.Bool // something was written in place, and not published
	unwritable atomic.Bool // what is staged can't be published

	hold    atomic.Pointer[chan struct{}] // calls that may wait do so until it is closed
	running atomic.Int64                  // calls that may wait
	flushes atomic.Int64
	cached  atomic.Int64 // bytes that were to be
	served  atomic.Int64
	opened  atomic.Int64
	closed  chan bool // torn, of each Close

	mu    sync.Mutex
	data  []byte
	dirty []bool // by block of memoryBlock bytes: not a hole
}

const memoryBlock = 4096

func newMemory(sizeBytes int) *memory {
	return &memory{
		data:   make([]byte, sizeBytes),
		dirty:  make([]bool, (sizeBytes+memoryBlock-1)/memoryBlock),
		closed: make(chan bool, 100),
	}
}

func (m *memory) List(Client) []string { return []string{"disk", "other"} }

func (m *memory) Open(name string, _ Client) (Device, Info, error) {
	switch name {
	case "disk", "other":
		m.opened.Add(1)
		return m, m.info, nil
	case "":
		return nil, Info{}, fmt.Errorf("%w: the name is empty; there are: disk", ErrBadExportName)
	case "busy":
		return nil, Info{}, fmt.Errorf("%w: busy is in use", ErrRefused)
	}
	return nil, Info{}, fmt.Errorf("%w: %q", ErrUnknownExport, name)
}

func (m *memory) SizeBytes() int64 { return int64(len(m.data)) }

// wait is where a call that may wait does.
func (m *memory) wait() error {
	m.running.Add(1)
	defer m.running.Add(-1)
	if hold := m.hold.Load(); hold != nil {
		<-*hold
	}
	return m.fail()
}

func (m *memory) fail() error {
	if err := m.fails.Load(); err != nil {
		return *err
	}
	return nil
}

func (m *memory) TryReadAt(p []byte, off int64) (int, error) {
	if m.cold.Load() {
		return 0, image.ErrWouldBlock
	}
	return m.read(p, off, m.fail())
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return m.read(p, off, m.wait()) }

func (m *memory) read(p []byte, off int64, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(p, m.data[off:off+int64(len(p))]), nil
}

func (m *memory) TryWriteAt(p []byte, off int64) (int, error) {
	if m.cold.Load() {
		return 0, fmt.Errorf("write: %w", image.ErrWouldBlock)
	}
	m.staged.Store(true)
	return m.write(p, off, m.fail())
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) { return m.write(p, off, m.wait()) }

func (m *memory) write(p []byte, off int64, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark(off, int64(len(p)), true)
	return copy(m.data[off:off+int64(len(p))], p), nil
}

// mark notes a range as data, or its whole blocks as holes.
func (m *memory) mark(off, n int64, data bool) {
	first, end := off/memoryBlock, (off+n+memoryBlock-1)/memoryBlock
	if !data {
		first, end = (off+memoryBlock-1)/memoryBlock, (off+n)/memoryBlock
	}
	for b := first; b < end; b++ {
		m.dirty[b] = data
	}
}

func (m *memory) Trim(off, n int64) error { return m.WriteZeroes(off, n, false) }

func (m *memory) WriteZeroes(off, n int64, noHole bool) error {
	if err := m.wait(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	m.mark(off, n, noHole)
	return nil
}

func (m *memory) Cache(off, n int64) error {
	if err := m.wait(); err != nil {
		return err
	}
	m.cached.Add(n)
	return nil
}

func (m *memory) Flush() error {
	if err := m.wait(); err != nil {
		return err
	}
	m.flushes.Add(1)
	return nil
}

func (m *memory) Extents(off, n int64, yield func(Extent) bool) error {
	if err := m.wait(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := off / memoryBlock; b*memoryBlock < off+n; b++ {
		e := Extent{Length: min((b+1)*memoryBlock, int64(len(m.data))) - max(off, b*memoryBlock), Depth: 1}
		if !m.dirty[b] {
			e.Hole, e.Zero, e.Depth = true, true, 0
		}
		if !yield(e) { // the last one may be longer than what is asked
			break
		}
	}
	return nil
}

func (m *memory) Publish() error {
	if m.unwritable.Load() {
		return errPlain
	}
	m.staged.Store(false)
	return nil
}

func (m *memory) Served(time.Time) { m.served.Add(1) }
func (m *memory) Close(torn bool)  { m.closed <- torn }

// setFailure makes every later call fail; nil ends it.
func (m *memory) setFailure(err error) {
	if err == nil {
		m.fails.Store(nil)
		return
	}
	m.fails.Store(&err)
}

// setHold makes every later call that may wait do so until release is called.
func (m *memory) setHold() (release func()) {
	hold := make(chan struct{})
	m.hold.Store(&hold)
	return func() {
		m.hold.Store(nil)
		close(hold)
	}
}

func (m *memory) bytes(off, n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.data[off : off+n])
}

// errDeclared has an NBD error value of its own.
type errDeclared uint32

func (e errDeclared) Error() string    { return "declared" }
func (e errDeclared) NBDErrno() uint32 { return uint32(e) }

var errPlain = errors.New("the disk is on fire")

// socketPair returns the two ends of a connection with buffers.
func socketPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

package store_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/nbd/client"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
	"github.com/tidemark/tidemark/volume/historytest"
)

var histories = historytest.Flags(12)

// NBD clients of every scope write, read, trim and die while preserves are made;
// what they saw must be what the rules allow. See historytest.
func TestHistoryOfConcurrentNBDClientsIsOneTheRulesAllow(t *testing.T) {
	histories.Test(t, func(load historytest.Load) (historytest.Target, func()) {
		target := serveHistory(t, load)
		return target, target.close
	})
}

// served is a store with an NBD server before it, as a Target of histories.
type served struct {
	*simStore
	t      *testing.T
	server *nbd.Server
	socket string
	ended  chan error
}

var _ historytest.Target = (*served)(nil)

func serveHistory(t *testing.T, load historytest.Load) *served {
	s := &simStore{sim: vfs.NewSim(t.TempDir())}
	var err error
	if s.Store, err = store.Open(dataDir, store.Options{FS: s.sim, MaxDraining: 12, IndexBytes: 1}); err != nil {
		t.Fatal(err)
	}
	for _, name := range load.VolumeNames() {
		if err := s.Create(name, load.SizeBytes()); err != nil {
			t.Fatal(err)
		}
	}
	h := &served{s, t, nbd.NewServer(exports{s.Store}, nbd.Options{}), filepath.Join(t.TempDir(), "nbd.sock"), make(chan error, 1)}
	listener, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { h.ended <- h.server.Serve(listener) }()
	return h
}

func (h *served) close() {
	h.t.Helper()
	if err := h.server.Shutdown(context.Background()); err != nil {
		h.t.Error(err)
	}
	if err := <-h.ended; !errors.Is(err, nbd.ErrServerClosed) {
		h.t.Error(err)
	}
	if err := h.Close(); err != nil {
		h.t.Error(err)
	}
}

// Open implements historytest.Target.
func (h *served) Open(export string) (historytest.Disk, error) {
	c, err := client.DialExport(context.Background(), "unix", h.socket, export)
	if err != nil {
		return nil, err
	}
	return connection{c}, nil
}

// Settle implements historytest.Target.
func (h *served) Settle(volumes []string) error {
	for _, name := range volumes {
		snapshots, err := h.Store.Snapshots(name)
		if err != nil {
			return err
		}
		for _, s := range snapshots {
			if err := h.WaitSealed(context.Background(), name+"@"+s.Name); err != nil {
				return err
			}
		}
		view, err := h.OpenView(name)
		if err != nil {
			return err
		}
		if err := errors.Join(view.Volume().CheckIndex(), view.Close()); err != nil {
			return err
		}
	}
	return nil
}

// exports shows a store to an NBD server.
type exports struct{ *store.Store }

func (e exports) List(nbd.Client) []string { return e.Exports() }

func (e exports) Open(name string, _ nbd.Client) (nbd.Device, nbd.Info, error) {
	view, err := e.OpenView(name)
	if err != nil {
		return nil, nbd.Info{}, errors.Join(nbd.ErrUnknownExport, err)
	}
	return device{view}, nbd.Info{ReadOnly: view.ReadOnly(), MultiConn: view.Scope() != volume.ScopeSession}, nil
}

type device struct{ *volume.View }

func (d device) Extents(_, lengthBytes int64, yield func(nbd.Extent) bool) error {
	yield(nbd.Extent{Length: lengthBytes}) // no client of a history asks
	return nil
}

func (d device) Close(torn bool) {
	if torn {
		_ = d.CloseTorn()
		return
	}
	_ = d.View.Close()
}

// connection is an NBD client as a Disk.
type connection struct{ *client.Client }

func (c connection) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Client.ReadAt(p, off)
	return n, meaning(err)
}

func (c connection) WriteAt(p []byte, off int64) (int, error) {
	n, err := c.Client.WriteAt(p, off)
	return n, meaning(err)
}

func (c connection) Trim(off, lengthBytes int64) error {
	return meaning(c.Client.Trim(off, lengthBytes))
}

func (c connection) WriteZeroes(off, lengthBytes int64, noHole bool) error {
	return meaning(c.Client.WriteZeroes(off, lengthBytes, noHole))
}

func (c connection) Flush() error     { return meaning(c.Client.Flush()) }
func (c connection) CloseTorn() error { return c.Abort() }
func (c connection) MayDie() bool     { return true }

// meaning says what an error of the client tells about the request's effect.
func meaning(err error) error {
	var command *client.CommandError
	switch {
	case errors.As(err, &command) && command.Errno == uint32(syscall.EPERM):
		return errors.Join(historytest.ErrRefused, err)
	case errors.Is(err, client.ErrClosed):
		return errors.Join(historytest.ErrUnanswered, err)
	}
	return err
}

package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// backend shows a store's volumes to the NBD server, to each client what the
// guard gives it.
type backend struct {
	store *store.Store
	guard *access.Guard
}

var _ nbd.Backend = backend{}

func (b backend) List(c nbd.Client) []string {
	return slices.DeleteFunc(b.store.Exports(), func(name string) bool {
		return !b.guard.Rights(proved(c), name).Has(access.Read)
	})
}

func (b backend) Open(name string, c nbd.Client) (nbd.Device, nbd.Info, error) {
	name, readOnly, err := b.admit(name, proved(c))
	if err != nil {
		return nil, nbd.Info{}, refuse(err)
	}
	view, err := b.store.OpenView(name)
	if err != nil {
		return nil, nbd.Info{}, refuse(err)
	}
	var dev nbd.Device = device{view}
	if strings.Contains(name, "@") {
		who := proved(c)
		who.Certificate = slices.Clone(who.Certificate)
		dev = compared{device{view}, b, name, who}
	}
	return dev, nbd.Info{
		ReadOnly: readOnly || view.ReadOnly(),
		// A flush covers the whole volume, whoever wrote; but a session is one
		// connection, and a second one would be another process.
		MultiConn: view.Scope() != volume.ScopeSession,
	}, nil
}

// admit returns the export to open for a client, or access.ErrDenied, whether
// there is such a one or not. A client that may only read gets request scope:
// with a longer one it would hold up the preserves of others.
func (b backend) admit(name string, who access.Client) (export string, readOnly bool, err error) {
	base, scope, _ := strings.Cut(name, ":")
	if err := b.guard.Check(who, access.Read, base); err != nil {
		return "", false, err
	}
	if b.guard.Rights(who, base).Has(access.Write) || strings.Contains(base, "@") {
		return name, false, nil
	}
	if scope != "" && scope != "request" {
		return "", false, fmt.Errorf("%w, and the scope %q is for clients that write", b.guard.Check(who, access.Write, base), scope)
	}
	return base + ":request", true, nil
}

// proved is what the guard takes for a client of the NBD server.
func proved(c nbd.Client) access.Client {
	return access.Client{Certificate: c.Names, Local: c.Remote != nil && c.Remote.Network() == "unix"}
}

// refuse says to the NBD server which of its replies fits.
func refuse(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return refusal{err, nbd.ErrUnknownExport}
	case errors.Is(err, store.ErrInvalid):
		return refusal{err, nbd.ErrBadExportName}
	}
	return refusal{err, nbd.ErrRefused}
}

// refusal shows the store's words with the meaning of one of nbd's errors.
type refusal struct {
	error
	means error
}

func (r refusal) Unwrap() []error { return []error{r.error, r.means} }

// device is a view as the NBD server sees it.
type device struct{ *volume.View }

var (
	_ nbd.Device    = device{}
	_ nbd.Evictable = device{}
)

// compared is a snapshot as the NBD server sees it: it can tell what has changed
// since older ones, those that its client may read too.
type compared struct {
	device
	of   backend
	name string // VOLUME@SNAPSHOT
	who  access.Client
}

var _ nbd.Compared = compared{}

func (c compared) Bases() (bases []string) {
	older, _ := c.of.store.Older(c.name) // it is open, so it is there
	for _, full := range older {
		if c.of.guard.Rights(c.who, full).Has(access.Read) {
			_, base, _ := strings.Cut(full, "@")
			bases = append(bases, base)
		}
	}
	return bases
}

func (c compared) Since(base string) (nbd.Bitmap, error) {
	volumeName, _, _ := strings.Cut(c.name, "@")
	full := volumeName + "@" + base
	if err := c.of.guard.Check(c.who, access.Read, full); err != nil {
		return nil, err
	}
	changes, err := c.of.store.Changes(full, c.name)
	if err != nil {
		return nil, err
	}
	return bitmap{changes}, nil
}

// bitmap is a snapshot's changes as the NBD server sees them.
type bitmap struct{ *store.Changes }

func (b bitmap) Close() { _ = b.Changes.Close() } // it has only read

func (d device) Extents(off, lengthBytes int64, yield func(nbd.Extent) bool) error {
	return d.View.Extents(off, lengthBytes, func(e volume.Extent) bool {
		return yield(nbd.Extent{
			Length: e.LengthBytes,
			Hole:   e.State != lookup.Data,
			Zero:   e.State != lookup.Data,
			Depth:  uint32(e.Depth),
		})
	})
}

func (d device) Close(torn bool) {
	// A view that is closed has nothing left to lose: its errors tell nobody
	// anything that a flush has not.
	if torn {
		_ = d.CloseTorn()
		return
	}
	_ = d.View.Close()
}

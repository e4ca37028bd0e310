package cli

import (
	"errors"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// backend shows a store's volumes to the NBD server.
type backend struct{ store *store.Store }

var _ nbd.Backend = backend{}

func (b backend) List() []string { return b.store.Exports() }

func (b backend) Open(name string) (nbd.Device, nbd.Info, error) {
	view, err := b.store.OpenView(name)
	if err != nil {
		return nil, nbd.Info{}, refuse(err)
	}
	return device{view}, nbd.Info{
		ReadOnly: view.ReadOnly(),
		// A flush covers the whole volume, whoever wrote; but a session is one
		// connection, and a second one would be another process.
		MultiConn: view.Scope() != volume.ScopeSession,
	}, nil
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

var _ nbd.Device = device{}

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

package nbd

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// errnoOf finds the protocol's value for a Device's error.
func errnoOf(err error) wire.Errno {
	var own interface{ NBDErrno() uint32 }
	switch {
	case err == nil:
		return wire.OK
	case errors.As(err, &own):
		if e := wire.Errno(own.NBDErrno()); e != wire.OK && e.Known() {
			return e
		}
		return wire.EIO
	case errors.Is(err, ErrReadOnly), errors.Is(err, fs.ErrPermission):
		return wire.EPERM
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return wire.ENOSPC
	case errors.Is(err, ErrShutdown):
		return wire.ESHUTDOWN
	}
	return wire.EIO
}

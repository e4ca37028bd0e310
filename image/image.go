// Package image says where the blocks of a volume lie.
//
// An Image is a plain array of bytes, sparse, addressed from zero. It knows no
// volume, no lookup table and no snapshot: which of its bytes mean anything is
// its table's business. Package image/file keeps one in sparse files, image/mem
// in memory; imagetest holds every implementation to the same contract.
package image

import (
	"errors"
	"fmt"
	"math"
)

// ID names an image in a data directory. IDs are never used twice; 0 is none.
type ID uint64

// ErrWouldBlock is returned by TryReadAt when the bytes are not at hand
// without waiting for the disk.
var ErrWouldBlock = errors.New("image: would block")

// ErrSyncFailed is wrapped by every Sync of an image from the first one that
// failed on: what was written before it may be lost, and a retry that succeeds
// would prove nothing.
var ErrSyncFailed = errors.New("image: a sync failed, the writes before it may be lost")

// ErrCorrupt is wrapped by a read of an image that has checksums, when what it
// holds is not what was stored. The bytes read are undefined.
var ErrCorrupt = errors.New("image: corrupt")

// ErrNotBegun is wrapped by a Sync that could not be begun, for want of a file
// descriptor: nothing was promised or lost, and the next one may succeed.
var ErrNotBegun = errors.New("image: the sync could not be begun")

// ErrRange is wrapped by any call whose range begins below 0 or ends beyond
// the largest int64.
var ErrRange = errors.New("image: range out of bounds")

// CheckRange returns an error that wraps ErrRange unless all of the range is
// addressable.
func CheckRange(off, lengthBytes int64) error {
	if off < 0 || lengthBytes < 0 || off > math.MaxInt64-lengthBytes {
		return fmt.Errorf("%w: %d bytes at %d", ErrRange, lengthBytes, off)
	}
	return nil
}

// Image stores bytes. All methods may run at the same time from any number of
// goroutines; callers keep overlapping writes apart (the lock table's work).
type Image interface {
	// ReadAt fills p from off. Bytes never written, or punched, read as zeros
	// at any offset; there is no end of file. n < len(p) only with an error.
	ReadAt(p []byte, off int64) (n int, err error)
	// TryReadAt is ReadAt that does not wait for the disk: ErrWouldBlock, with
	// the contents of p undefined, when it would have to.
	TryReadAt(p []byte, off int64) (n int, err error)
	// WriteAt stores p at off. An error leaves the range undefined.
	WriteAt(p []byte, off int64) (n int, err error)
	// Punch makes a range read zeros and gives its storage back.
	Punch(off, lengthBytes int64) error
	// Zero makes a range read zeros and keeps (or reserves) its storage.
	Zero(off, lengthBytes int64) error
	// Prefetch begins to bring a range to where TryReadAt finds it, without a
	// promise, and does not wait for the disk.
	Prefetch(off, lengthBytes int64) error
	// WriteBack writes a range back gently, without a promise. Its error is a
	// failed Sync.
	WriteBack(off, lengthBytes int64) error
	// Sync makes every completed write, punch and zero durable. An error that
	// does not wrap ErrNotBegun is final: no later Sync may claim those writes.
	Sync() error
	// Allocated returns the bytes of storage that the image takes up.
	Allocated() (sizeBytes int64, err error)
	Close() error
}

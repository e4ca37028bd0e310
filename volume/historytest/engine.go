package historytest

import (
	"errors"

	"github.com/tidemark/tidemark/volume"
	"github.com/tidemark/tidemark/volume/volumetest"
)

// ErrRefused is what a Disk's errors wrap when the request had no effect, and
// never will have.
var ErrRefused = errors.New("refused")

// ErrUnanswered is what they wrap when nobody can tell: the connection died.
var ErrUnanswered = errors.New("no answer")

// Disk is an open export. Its methods may be called at the same time; Close and
// CloseTorn once. Other errors than ErrRefused and ErrUnanswered are faults.
type Disk interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Trim(off, lengthBytes int64) error
	WriteZeroes(off, lengthBytes int64, noHole bool) error
	Flush() error
	Close() error
	// CloseTorn closes it as the death of the client does: also while requests
	// are in flight if MayDie says so.
	CloseTorn() error
	// MayDie tells whether CloseTorn may come while requests are in flight.
	MayDie() bool
}

// Target is what a history is made with. Its methods may be called at the same
// time, and are those of volumetest.Target.
type Target interface {
	Open(export string) (Disk, error)
	Begin(token string, volumes []string) error
	End(token string, torn bool) error
	Preserve(volumetest.Command) volumetest.Answer
	Snapshots(name string) ([]volumetest.Snapshot, error)
	// Settle returns when every snapshot of the volumes is sealed.
	Settle(volumes []string) error
}

// NewEngine returns a Target that is a bare volume.Engine in memory with volumes
// of that size, and what checks it at the end.
func NewEngine(volumes []string, sizeBytes int64) (Target, error) {
	e := engine{volumetest.NewEngine(maxDraining)}
	for _, name := range volumes {
		if err := e.Create(name, sizeBytes); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// maxDraining is large enough for all preserves of a history to drain at once.
const maxDraining = maxViews

type engine struct{ volumetest.Target }

func (e engine) Open(export string) (Disk, error) {
	view, err := e.Target.Open(export)
	if err != nil {
		return nil, err
	}
	return View{view}, nil
}

// Settle compares the index with the tables too.
func (e engine) Settle(volumes []string) error {
	for _, name := range volumes {
		view, err := e.Target.Open(name)
		if err != nil {
			return err
		}
		vluns := view.Volume().VLUNs()
		for _, k := range vluns[:len(vluns)-1] {
			<-k.Drained()
		}
		if err := errors.Join(view.Volume().CheckIndex(), view.Close()); err != nil {
			return err
		}
	}
	return nil
}

// View is a volume.View as a Disk.
type View struct{ *volume.View }

// ReadAt implements Disk.
func (w View) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.View.ReadAt(p, off)
	return n, refused(err)
}

// WriteAt implements Disk.
func (w View) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.View.WriteAt(p, off)
	return n, refused(err)
}

// Trim implements Disk.
func (w View) Trim(off, lengthBytes int64) error { return refused(w.View.Trim(off, lengthBytes)) }

// WriteZeroes implements Disk.
func (w View) WriteZeroes(off, lengthBytes int64, noHole bool) error {
	return refused(w.View.WriteZeroes(off, lengthBytes, noHole))
}

// Flush implements Disk.
func (w View) Flush() error { return refused(w.View.Flush()) }

// MayDie implements Disk: a View is closed after its last request.
func (w View) MayDie() bool { return false }

func refused(err error) error {
	if errors.Is(err, volume.ErrEnded) {
		return errors.Join(ErrRefused, err)
	}
	return err
}

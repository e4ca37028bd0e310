package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// busyWriter is a client of a part of a volume.
type busyWriter struct {
	name  string
	holds []byte // the whole volume
	first int    // block of its part
	rng   *rand.Rand
	wrote chan struct{} // it has written once more

	mu  sync.Mutex // held by a write: what is in holds is in the volume
	hot int        // the first of those blocks that it writes to now
}

// hotBlocks are written to between two snapshots: the others stay in older images.
const hotBlocks = 8

// partBlocks is how much of a volume is one writer's.
const partBlocks = lifeBlocks / 2

// run writes, trims, flushes and reads until stop is closed.
func (w *busyWriter) run(s *store.Store, stop <-chan struct{}) error {
	view, err := s.OpenView(w.name)
	if err != nil {
		return err
	}
	for {
		select {
		case <-stop:
			return view.Close()
		default:
		}
		if err := w.step(view); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", w.name, err), view.Close())
		}
		select {
		case w.wrote <- struct{}{}:
		default:
		}
	}
}

func (w *busyWriter) step(view *volume.View) error {
	if err := w.write(view); err != nil {
		return err
	}
	if w.rng.IntN(4) == 0 {
		if err := view.Flush(); err != nil {
			return err
		}
	}
	block, got := w.first+w.rng.IntN(partBlocks-1), make([]byte, 2*4096)
	if _, err := view.ReadAt(got, int64(block)*4096); err != nil {
		return err
	}
	if !bytes.Equal(got, w.holds[block*4096:][:len(got)]) {
		return fmt.Errorf("blocks %d and %d read other bytes than were written", block, block+1)
	}
	return nil
}

// write writes whole blocks or a part of one, or trims.
func (w *busyWriter) write(view *volume.View) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	off, n := (w.hot+w.rng.IntN(hotBlocks-3))*4096, (1+w.rng.IntN(4))*4096
	switch w.rng.IntN(6) {
	case 0:
		clear(w.holds[off:][:n])
		return view.Trim(int64(off), int64(n))
	case 1:
		off, n = off+100, 700
	}
	data := bytes.Repeat([]byte{byte(1 + w.rng.IntN(255))}, n)
	copy(w.holds[off:], data)
	_, err := view.WriteAt(data, int64(off))
	return err
}

// busyLife is a life with writers beside it.
type busyLife struct {
	*lives
	writers []*busyWriter
	stop    chan struct{}
	ended   chan error
}

// join lets writers begin, each on its part of a volume.
func (l *busyLife) join(name string) {
	for first := 0; first < lifeBlocks; first += partBlocks {
		w := &busyWriter{
			name: name, holds: l.holds[name], first: first, hot: first,
			rng: rand.New(rand.NewPCG(uint64(len(l.writers)), 2)), wrote: make(chan struct{}),
		}
		l.writers = append(l.writers, w)
		go func() { l.ended <- w.run(l.store, l.stop) }()
	}
}

// snapshot preserves a volume between two writes of each of its writers.
func (l *busyLife) snapshot(name string) (full string) {
	l.t.Helper()
	for _, w := range l.writers {
		if w.name == name {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.hot = w.first + l.rng.IntN(partBlocks-hotBlocks)
		}
	}
	l.made++
	full = fmt.Sprintf("%s@s%d", name, l.made)
	preserveAs(l.t, l.store, name, fmt.Sprintf("s%d", l.made))
	l.holds[full] = bytes.Clone(l.holds[name])
	return full
}

// goOn returns when each writer has written once more.
func (l *busyLife) goOn() {
	l.t.Helper()
	for _, w := range l.writers {
		select {
		case <-w.wrote:
		case err := <-l.ended:
			l.t.Fatalf("a writer has ended: %v", err)
		}
	}
}

// end stops the writers.
func (l *busyLife) end() {
	l.t.Helper()
	close(l.stop)
	for range l.writers {
		l.must(<-l.ended)
	}
	l.writers = nil
}

func TestConcurrentWritersBesidePunchesAndFoldsLoseNothing(t *testing.T) {
	for name, shared := range map[string]bool{"with storage that can't be shared": false, "with storage that is shared": true} {
		t.Run(name, func(t *testing.T) {
			const fold, rounds = 2, 16
			var folds atomic.Int32
			sim := vfs.NewSim(memoryDir(t))
			sim.Clones = shared
			disk := vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
				if op.Kind == vfs.OpRename && path.Ext(op.NewName) == ".sum" { // a seal renames none
					folds.Add(1)
				}
				return nil
			}}
			l := &busyLife{lives: newLifeOn(t, 1, disk, "data"), stop: make(chan struct{}), ended: make(chan error, 16)}
			l.fold = fold
			l.reopen()
			l.join("v")
			for round := range rounds {
				l.goOn()
				for _, name := range l.names(false) {
					_, err := l.store.Sealed(t.Context(), l.snapshot(name))
					l.must(err)
				}
				if round%12 == 0 {
					list := l.names(true)
					l.clone(list[len(list)/2])
					l.join(fmt.Sprintf("c%d", l.made))
				}
				for len(l.names(true)) > 6 {
					l.deleteSome()
				}
				l.store.Reclaim() // what the writers hide since goes too
			}
			l.end()
			l.store.AwaitPunches()
			if given := l.store.Reclaiming().GivenBackBytes; folds.Load() == 0 || given == 0 {
				t.Errorf("%d images were folded, and %d bytes given back: it has proved nothing", folds.Load(), given)
			}
			l.folded(fold)
			l.check()
			l.reopen()
			l.check()
		})
	}
}

// folded holds the images against the limit of those without a name. What lies below
// the head of a clone is not folded over it, and what has a name in another volume is
// needed.
func (l *busyLife) folded(limit int) {
	l.t.Helper()
	heads, named := len(l.names(false))-1, len(l.names(true))
	for _, v := range l.store.Volumes() {
		if v.Images > named+heads+limit+1 {
			l.t.Errorf("%s has %d images, with %d snapshots, %d heads of clones and at most %d without a name", v.Name, v.Images, named, heads, limit)
		}
	}
}

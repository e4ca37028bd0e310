package volume

import (
	"sync/atomic"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/mem"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
)

// Memory is a Keeper that keeps nothing: images in memory, names forgotten. It
// serves tests of the mechanism, and programs that want a preserve of a RAM disk.
type Memory struct {
	last atomic.Uint64
	// NewImage, if set, makes the images instead of mem.New.
	NewImage func(image.ID) image.Image
	// OnPrepare, if set, runs in Prepare.
	OnPrepare func(Plan) error
}

var _ Keeper = (*Memory)(nil)

// Prepare implements Keeper.
func (m *Memory) Prepare(p Plan) ([]Next, error) {
	if m.OnPrepare != nil {
		if err := m.OnPrepare(p); err != nil {
			return nil, err
		}
	}
	next := make([]Next, len(p.Volumes))
	for i := range next {
		next[i].ID, next[i].Image = m.image()
	}
	return next, nil
}

// Discard implements Keeper.
func (m *Memory) Discard(*Preserve) error { return nil }

// Drained implements Keeper: in memory, to be drained is to be sealed.
func (m *Memory) Drained(k *VLUN) { k.SetSealed(k.Image()) }

// Config returns the Config of a new, empty volume.
func (m *Memory) Config(name string, sizeBytes int64, s Scope) Config {
	id, img := m.image()
	return Config{Name: name, Scope: s, Log: new(MemoryLog), Chain: []Link{
		{ID: id, Image: img, Table: lookup.NewTable(), SizeBytes: sizeBytes},
	}}
}

func (m *Memory) image() (image.ID, image.Image) {
	id := image.ID(m.last.Add(1))
	if m.NewImage != nil {
		return id, m.NewImage(id)
	}
	return id, mem.New()
}

// MemoryLog is a Log that only counts.
type MemoryLog struct{ end, committed atomic.Uint64 }

var _ Log = (*MemoryLog)(nil)

// Ready implements Log.
func (l *MemoryLog) Ready() bool { return true }

// Append implements Log.
func (l *MemoryLog) Append(c []journal.Change) (journal.LSN, error) {
	return journal.LSN(l.end.Add(uint64(len(c)))), nil
}

// Stage implements Log.
func (l *MemoryLog) Stage(c []journal.Change) (journal.LSN, error) { return l.Append(c) }

// Publish implements Log.
func (l *MemoryLog) Publish() error { return nil }

// MarkDrained implements Log.
func (l *MemoryLog) MarkDrained(image.ID) error { return nil }

// MarkFailed implements Log.
func (l *MemoryLog) MarkFailed() error { return nil }

// End implements Log.
func (l *MemoryLog) End() journal.LSN { return journal.LSN(l.end.Load()) }

// Committed implements Log.
func (l *MemoryLog) Committed() journal.LSN { return journal.LSN(l.committed.Load()) }

// Commit implements Log.
func (l *MemoryLog) Commit(to journal.LSN, _ journal.Basis) error {
	l.committed.Store(uint64(to))
	return nil
}

// Holds implements Log.
func (l *MemoryLog) Holds(image.ID) int64 { return 0 }

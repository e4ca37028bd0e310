package store

import (
	"context"
	"fmt"
	"time"
)

// Mark says how full the file system of a data directory may be. One of the two is
// set; the zero Mark is never reached.
type Mark struct {
	// UsedPercent, 1 to 100: it is reached when so much of the file system is used, as
	// df counts.
	UsedPercent int
	// FreeBytes: it is reached when less is free.
	FreeBytes int64
}

// String says when it is reached.
func (m Mark) String() string {
	switch {
	case m.UsedPercent > 0:
		return fmt.Sprintf("%d%% used", m.UsedPercent)
	case m.FreeBytes > 0:
		return fmt.Sprintf("less than %d bytes free", m.FreeBytes)
	}
	return "never"
}

func (m Mark) check(name string) error {
	if m.UsedPercent < 0 || m.UsedPercent > 100 || m.FreeBytes < 0 || m.UsedPercent > 0 && m.FreeBytes > 0 {
		return fmt.Errorf("%w: %s at %d%% used, %d bytes free: allowed is one of 1 to 100%% used, and some bytes free", ErrInvalid, name, m.UsedPercent, m.FreeBytes)
	}
	return nil
}

// reached tells whether a file system is as full as that.
func (m Mark) reached(s Space) bool {
	if m.UsedPercent > 0 {
		percent := int64(m.UsedPercent)
		return s.UsedBytes() >= s.TotalBytes/100*percent+s.TotalBytes%100*percent/100
	}
	return s.FreeBytes < m.FreeBytes
}

// Space is the room on the file system of a data directory, for users without
// privileges, and its marks.
type Space struct {
	TotalBytes, FreeBytes     int64
	WarnAt, RefusePreservesAt Mark
}

// UsedBytes is what is taken, by whomever.
func (s Space) UsedBytes() int64 { return max(0, s.TotalBytes-s.FreeBytes) }

// String says how full it is.
func (s Space) String() string {
	return fmt.Sprintf("%.1f%% full, with %d bytes free", 100*float64(s.UsedBytes())/float64(max(1, s.TotalBytes)), s.FreeBytes)
}

// Space asks the file system how full it is.
func (s *Store) Space() (Space, error) {
	free, err := s.fs.Free(s.dir)
	if err != nil {
		return Space{}, fmt.Errorf("how much is free: %w", err)
	}
	total, err := s.fs.Total(s.dir)
	if err != nil {
		return Space{}, fmt.Errorf("how much there is in all: %w", err)
	}
	return Space{TotalBytes: total, FreeBytes: free, WarnAt: s.water.warn, RefusePreservesAt: s.water.refuse}, nil
}

// waterMarks are the two marks of a store. Data written after a preserve takes new room, and a
// directory that nobody looks at fills up: so there is a word of warning, and a
// line from which on nothing is begun that makes writes cost more. It is no
// reserve: what is refused depends on how full the file system is at that moment,
// by whomever.
type waterMarks struct{ warn, refuse Mark }

func (m *waterMarks) set(warn, refuse Mark) error {
	*m = waterMarks{warn, refuse}
	if err := warn.check("warn"); err != nil {
		return err
	}
	return refuse.check("refuse preserves")
}

func (m *waterMarks) any() bool { return m.warn != Mark{} || m.refuse != Mark{} }

// belowMark returns ErrHighWater when no preserve or clone is to be made.
func (s *Store) belowMark() error {
	if s.water.refuse == (Mark{}) {
		return nil
	}
	space, err := s.Space()
	if err != nil {
		return err
	}
	if s.water.refuse.reached(space) {
		return fmt.Errorf("%w: the file system of the data directory is %v, and at %v no preserve or clone is made: make room, or delete snapshots", ErrHighWater, space, s.water.refuse)
	}
	return nil
}

// marksEvery is how often the marks are looked at.
const marksEvery = 10 * time.Second

// watchMarks logs when a mark is reached, and when it is not any more: once each.
func (s *Store) watchMarks() {
	ctx, end := s.scans.join(context.Background())
	defer end()
	warned, refused, said := false, false, ""
	for {
		space, err := s.Space()
		switch {
		case err == nil:
			said = ""
			warned = s.crossed(s.water.warn, space, warned, "make room, or delete snapshots")
			refused = s.crossed(s.water.refuse, space, refused, "no preserve or clone is made until there is room; writes go on")
		case err.Error() != said:
			said = err.Error()
			s.logger.Error("watch how full the file system is", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(marksEvery):
		}
	}
}

// crossed tells whether a mark is reached, and says so if it was not before, or
// the other way round.
func (s *Store) crossed(m Mark, space Space, before bool, next string) (reached bool) {
	switch reached = m.reached(space); {
	case reached && !before:
		s.logger.Warn("the file system of the data directory is "+space.String()+": "+next, "mark", m.String())
	case before && !reached:
		s.logger.Info("the file system of the data directory is "+space.String()+", below its mark again", "mark", m.String())
	}
	return reached
}

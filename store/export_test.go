package store

import "github.com/tidemark/tidemark/volume"

// Checkpoint folds the journal of a volume, as its growth would have it folded.
func (s *Store) Checkpoint(name string) error {
	d, err := s.disk(name)
	if err != nil {
		return err
	}
	return d.journal.Checkpoint()
}

// ScansEnd is closed when verifying and scrubbing have to end.
func (s *Store) ScansEnd() <-chan struct{} { return s.scans.ctx.Done() }

// WorkEnds returns a channel that is closed when the background work on a volume
// has to end.
func (s *Store) WorkEnds(name string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volumes[name].ctx.Done()
}

// EndWork ends the background work on a volume, as a delete does first.
func (s *Store) EndWork(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[name].cancel()
}

// AwaitPunches waits until nothing is left to seal, to punch or to fold.
func (s *Store) AwaitPunches() {
	q := &s.sealer
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queue)+len(q.punches) > 0 || q.folds || q.working {
		q.rested.Wait()
	}
}

// RecordWhileNameless records the image of a snapshot when a delete has taken the
// name away on the disk and not yet in memory, if anybody can at that time, and lets
// nothing be punched, which records the image too. restore ends the first.
func (s *Store) RecordWhileNameless(full string) (restore func()) {
	s.mu.Lock()
	d, k, _, _ := s.snapshotLocked(full)
	s.mu.Unlock()
	s.sealer.mu.Lock()
	s.sealer.opened = false
	s.sealer.mu.Unlock()
	nameDropped = func() {
		if s.chains.TryRLock() {
			s.chains.RUnlock()
			_ = s.putLinks(d, volume.Sealed, k)
		}
	}
	return func() { nameDropped = nil }
}

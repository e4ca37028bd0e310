package store

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

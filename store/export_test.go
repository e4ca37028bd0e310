package store

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// Checkpoint folds the journal of a volume, as its growth would have it folded.
func (s *Store) Checkpoint(name string) error {
	d, err := s.disk(name)
	if err != nil {
		return err
	}
	return s.checkpoint(d)
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

// RemovingInPieces has all files removed as large ones are.
func RemovingInPieces(o Options) Options {
	o.atOnceBytes = 1
	return o
}

// AwaitPunches waits until nothing is left to seal, to remove, to punch or to fold.
func (s *Store) AwaitPunches() {
	q := &s.sealer
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queue) > 0 || q.toReclaim() || q.working {
		q.rested.Wait()
	}
}

// SealAgain has those sealed now whose seal has failed.
func (s *Store) SealAgain() {
	q := &s.sealer
	q.mu.Lock()
	failed := slices.SortedFunc(maps.Keys(q.later), func(a, b *volume.VLUN) int { return cmp.Compare(a.ImageID(), b.ImageID()) })
	q.mu.Unlock()
	for _, k := range failed {
		q.enqueue(k)
	}
}

// Unsealed is how many images below its newest a volume has that are not sealed.
func (s *Store) Unsealed(name string) (n int) {
	d, err := s.disk(name)
	if err != nil {
		panic(err)
	}
	vluns := d.volume.VLUNs()
	for _, k := range vluns[:len(vluns)-1] {
		if k.State() != volume.Sealed {
			n++
		}
	}
	return n
}

// AwaitSpares waits until no images are being made ahead.
func (s *Store) AwaitSpares() { s.spares.filling.Wait() }

// FoldNow looks for images to fold, as a delete makes it.
func (s *Store) FoldNow() { s.sealer.foldAgain() }

// HasJoined tells whether the sealer, on whose goroutine it is asked, knows of images
// what they cover together.
func (s *Store) HasJoined() bool { return s.sealer.joined.table != nil }

// HoldPunches lets nothing be punched until release.
func (s *Store) HoldPunches() (release func()) {
	s.sealer.mu.Lock()
	defer s.sealer.mu.Unlock()
	s.sealer.opened = false
	return s.sealer.open
}

// OnHoldersFound sets what is called when it is found who holds an image that is to
// be punched, before the files of one of them are held. restore ends that.
func OnHoldersFound(f func()) (restore func()) {
	holdersFound = f
	return func() { holdersFound = nil }
}

// OnTableRead sets what is called when a comparison has read a table. restore ends that.
func OnTableRead(f func()) (restore func()) {
	tableRead = f
	return func() { tableRead = nil }
}

// ChangesIn is Changes of these tables.
func ChangesIn(tables ...lookup.Runs) *Changes { return &Changes{tables: tables} }

// DifferencesIn is what a comparison makes of these tables.
func DifferencesIn(shared, older, newer []lookup.Runs) *lookup.Table {
	c := comparison{shared: shared, older: older, newer: newer}
	return c.differences()
}

// RecordWhileNameless records the image of a snapshot when a delete has taken the
// name away on the disk and not yet in memory, if anybody can at that time, and lets
// nothing be punched, which records the image too. restore ends the first.
func (s *Store) RecordWhileNameless(full string) (restore func()) {
	s.mu.Lock()
	d, k, _, _ := s.snapshotLocked(full)
	s.mu.Unlock()
	s.HoldPunches()
	nameDropped = func() {
		if s.chains.TryRLock() {
			s.chains.RUnlock()
			_ = s.putLinks(d, volume.Sealed, k)
		}
	}
	return func() { nameDropped = nil }
}

// Place is where a block of data lies.
type Place struct {
	Image image.ID
	Block lookup.BlockNum
}

// Shown lists what every view shows of the first so many blocks, by its name, and
// Held what the tables of all images hold: one block after the other.
func (s *Store) Shown(blocks lookup.BlockNum) (shown map[string]map[Place]bool, held map[Place]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	shown, held = map[string]map[Place]bool{}, map[Place]bool{}
	for _, d := range s.byVolume {
		chain := d.volume.VLUNs()
		for i, k := range chain {
			name := d.record.Name
			if snap := d.snapshots[k]; snap != nil {
				name += "@" + snap.name
			} else if !k.Live() || d.record.Past {
				name = ""
			}
			for b := range blocks {
				if k.Table().Get(b) == lookup.Data {
					held[Place{k.ImageID(), b}] = true
				}
				for _, j := range slices.Backward(chain[:i+1]) {
					state := j.Table().Get(b)
					if state == lookup.Absent {
						continue
					}
					if state == lookup.Data && name != "" {
						if shown[name] == nil {
							shown[name] = map[Place]bool{}
						}
						shown[name][Place{j.ImageID(), b}] = true
					}
					break
				}
			}
		}
	}
	return shown, held
}

// Layer is an image in a tree that MeasureLayers measures.
type Layer struct {
	Table *lookup.Table
	Below int // position of the layer below, -1 for none
	View  bool
}

// MeasureLayers counts the blocks that each layer's view stores and has for itself,
// and those of all together.
func MeasureLayers(layers []Layer) (stored, unique []int64, together Sizes, unseenBytes int64) {
	t := &tree{root: &node{}}
	nodes := make([]*node, len(layers))
	for i, l := range layers {
		nodes[i] = &node{cursor: cursorOf(l.Table), own: true, view: l.View, counted: l.View}
		below := t.root
		if l.Below >= 0 {
			below = nodes[l.Below]
		}
		below.above = append(below.above, nodes[i])
	}
	t.number(t.root, 0)
	t.measure()
	for _, n := range nodes {
		stored, unique = append(stored, n.stored), append(unique, n.unique)
	}
	return stored, unique, t.together, t.unseenBytes
}

// KeepUnnamed returns options with which images without a name stay, whether somebody
// sees a block of them or not.
func KeepUnnamed(o Options) Options {
	o.keepUnnamed = true
	return o
}

// DeadBlocks counts the blocks of sealed images that nobody sees, when all of them have
// been given back that the store knows of.
func (s *Store) DeadBlocks() (n uint64) {
	s.AwaitPunches()
	s.mu.Lock()
	sealed := map[image.ID]bool{}
	for _, d := range s.byVolume {
		for k := range d.sealed {
			sealed[k.ImageID()] = true
		}
	}
	s.mu.Unlock()
	var kept joined
	for id := range sealed { // in any order
		alone, err := s.findDead(context.Background(), id, new(joined), nil)
		after, again := s.findDead(context.Background(), id, &kept, nil)
		if err := errors.Join(err, again); err != nil {
			panic(err)
		}
		n += max(blocksIn(alone), blocksIn(after)) // what others have joined changes nothing
	}
	return n
}

// DeleteNameOf takes a snapshot's name away and does no more, as a delete that ends
// there.
func (s *Store) DeleteNameOf(full string) error {
	named, err := s.deletable(full)
	if err != nil {
		return err
	}
	_, err = s.nameless(named...)
	return err
}

// Branches counts the volumes of a name: the present one and its pasts.
func (s *Store) Branches(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.branchesLocked(name))
}

// Pieces are those in which what a table has between two blocks is punched, or all.
func Pieces(t *lookup.Table, from, to lookup.BlockNum, all bool, do func(from, to lookup.BlockNum, dataBytes int64) error) error {
	if all {
		return everyPiece(t, from, to, do)
	}
	return deadPieces(t, from, to, do)
}

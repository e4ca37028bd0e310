package store

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// seal is what is recorded of a sealed image. All chains that the image stands in
// share it. Guarded by Store.mu.
type seal struct {
	hash     sealed.Hash
	scrubbed time.Time // all of it, to its end
	read     time.Time // the last time that it was begun
	bad      badBlocks
	table    uint64 // mark of its table file, 0: the journal has the table
	punched  bool   // its view may have lost blocks since, and then has another hash
	due      bool   // blocks that its table has not may still be in the file
	unsure   bool   // and nobody knows which; so it begins in each life of the server
}

// mayLack tells whether blocks may be gone that the checksum file still has.
func (rec *seal) mayLack() bool { return rec.punched || rec.due }

// record writes it into a link.
func (rec *seal) record(l *catalog.Link) {
	l.Sealed, l.Hash, l.Scrubbed, l.Bad = true, rec.hash.String(), rec.scrubbed, rec.bad
	l.Table, l.Punched, l.Due = rec.table, rec.punched, rec.due
}

// openSums opens the checksum file of a sealed image, and holds it against its table
// and against what is recorded of it.
func openSums(fsys vfs.FS, dir string, id image.ID, sizeBytes int64, t *lookup.Table, rec *seal) (*sealed.Sums, error) {
	sums, err := sealed.OpenSums(fsys, imagesDir(dir), id, false)
	if err != nil {
		return nil, err
	}
	if err := sums.Matches(t, rec.hash, sizeBytes, rec.mayLack()); err != nil {
		return nil, errors.Join(err, sums.Close())
	}
	return sums, nil
}

// holder is a volume in whose chain an image stands, and its VLUN there. Below a
// sealed image that stands in two chains both are the same.
type holder struct {
	disk *disk
	vlun *volume.VLUN
}

// holdersLocked lists in whose chains an image stands, by volume ID; Store.mu is
// held.
func (s *Store) holdersLocked(id image.ID) (list []holder) {
	for _, d := range s.byVolume {
		if k := d.vlunLocked(id); k != nil {
			list = append(list, holder{d, k})
		}
	}
	slices.SortFunc(list, func(a, b holder) int { return cmp.Compare(a.disk.record.ID, b.disk.record.ID) })
	return list
}

// vlunLocked returns the VLUN of a volume whose own image it is, nil if there is
// none; Store.mu is held.
func (d *disk) vlunLocked(id image.ID) *volume.VLUN {
	if d.images[id] == nil {
		return nil
	}
	vluns := d.volume.VLUNs()
	i, found := slices.BinarySearchFunc(vluns, id, byImage)
	if !found {
		return nil // it is being added
	}
	return vluns[i]
}

// byImage is the order of a chain.
func byImage(k *volume.VLUN, id image.ID) int { return cmp.Compare(k.ImageID(), id) }

// heldElsewhere tells whether an image stands in another chain than d's.
func (s *Store) heldElsewhere(d *disk) func(image.ID) bool {
	return func(id image.ID) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(s.holdersLocked(id), func(h holder) bool { return h.disk != d })
	}
}

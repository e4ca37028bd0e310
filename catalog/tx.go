package catalog

import (
	"bytes"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/tidemark/tidemark/image"
)

// Tx is what an Update changes, seen by nobody else before the commit. It is
// for the goroutine and the time of the Update's function only.
//
// A record that Load would refuse by itself is refused when it is put. What
// Load asks of a chain as a whole is the caller's to keep; only the tips of
// the volumes touched are looked at before the commit, since to read a chain
// of a thousand would make its preserve wait.
type Tx struct {
	catalog *Catalog
	bolt    *bolt.Tx
	bucket  *bolt.Bucket
	meta    meta
	touched map[VolumeID]image.ID // the newest image put in it, 0 if none
	changed bool
}

func (c *Catalog) begin() (*Tx, error) {
	boltTx, err := c.db.Begin(true)
	if err != nil {
		return nil, err
	}
	tx := &Tx{catalog: c, bolt: boltTx, bucket: boltTx.Bucket([]byte(bucketName)), touched: make(map[VolumeID]image.ID)}
	if _, err := decode(metaKey, tx.bucket.Get(metaKey), &tx.meta); err != nil {
		tx.giveUp()
		return nil, err
	}
	return tx, nil
}

// run takes over what is pending, runs change, and stores the meta record, in the order
// of drafts and Updates (log, L1).
func (tx *Tx) run(change func(tx *Tx) error) error {
	l := &tx.catalog.log
	l.mu.Lock()
	defer l.mu.Unlock()
	tx.meta.counters = tx.catalog.drawn
	for _, f := range l.pending {
		for _, r := range f.records {
			l := linkOf(r.key)
			tx.touch(l.Volume, l.Image)
			if err := tx.store(r.key, r.value); err != nil {
				return fmt.Errorf("update catalog: %w", err)
			}
		}
	}
	if err := change(tx); err != nil || !tx.changed {
		return err
	}
	tx.meta.Logging, tx.meta.Logged = l.recorded, l.drafted
	if err := tx.finish(); err != nil {
		return fmt.Errorf("update catalog: %w", err)
	}
	return nil
}

// giveUp may come after a commit, and then does nothing.
func (tx *Tx) giveUp() { _ = tx.bolt.Rollback() }

// finish looks at the tips and stores the meta record.
func (tx *Tx) finish() error {
	for v := range tx.touched {
		if err := tx.checkTip(v); err != nil {
			return err
		}
	}
	tx.meta.Transaction = uint64(tx.bolt.ID())
	value, err := encode(metaKey, tx.meta)
	if err != nil {
		return err
	}
	return tx.bucket.Put(metaKey, value)
}

func (tx *Tx) checkTip(v VolumeID) error {
	if tx.bucket.Get(volumeKey(v)) == nil {
		return nil // deleted, with its links
	}
	key, value := tx.lastLink(v, tx.touched[v])
	if key == nil {
		key, value = tx.lastLink(v, 0)
	}
	if key == nil {
		return fmt.Errorf("volume %d would have no image", v)
	}
	var tip Link
	if _, err := decode(key, value, &tip); err != nil {
		return err
	}
	tip.Volume = v
	return tip.checkTip()
}

func (l Link) checkTip() error {
	if l.Sealed || l.Snapshot != nil {
		return fmt.Errorf("volume %d would have no tip: its last image is sealed or a snapshot", l.Volume)
	}
	return nil
}

// lastLink finds the last link of a volume at or after the image from. It goes
// forward only: before the commit, Cursor.Prev stops at a page that deletions
// of this transaction made empty.
func (tx *Tx) lastLink(v VolumeID, from image.ID) (key, value []byte) {
	cursor := tx.bucket.Cursor()
	for k, val := cursor.Seek(linkKey(v, from)); bytes.HasPrefix(k, linkKeys(v)); k, val = cursor.Next() {
		key, value = k, val
	}
	return key, value
}

// NewVolumeID draws an id that no volume ever had.
func (tx *Tx) NewVolumeID() (VolumeID, error) {
	id, err := draw(&tx.catalog.drawn.NextVolume)
	tx.counted()
	return id, err
}

// NewImageID draws an id that no image ever had, greater than all before.
func (tx *Tx) NewImageID() (image.ID, error) {
	id, err := draw(&tx.catalog.drawn.NextImage)
	tx.counted()
	return id, err
}

// NewCutID implements Links.
func (tx *Tx) NewCutID() (uint64, error) {
	id, err := draw(&tx.catalog.drawn.NextCut)
	tx.counted()
	return id, err
}

func draw[T ~uint64](next *T) (T, error) {
	if *next+1 == 0 {
		return 0, fmt.Errorf("all ids are used up")
	}
	*next++
	return *next - 1, nil
}

func (tx *Tx) counted() {
	tx.meta.counters = tx.catalog.drawn
	tx.changed = true
}

// PutVolume inserts or replaces a volume. Its name must be its own, but of those
// that are Past or Staged.
func (tx *Tx) PutVolume(v Volume) error {
	if err := v.check(tx.meta.counters); err != nil {
		return err
	}
	cursor := tx.bucket.Cursor()
	for key, value := cursor.Seek([]byte{volumePrefix}); key != nil && key[0] == volumePrefix; key, value = cursor.Next() {
		var other Volume
		if _, err := decode(key, value, &other); err != nil {
			return err
		}
		if other.Name == v.Name && other.named() && v.named() && !bytes.Equal(key, volumeKey(v.ID)) {
			return fmt.Errorf("put volume %d: another has the name %q", v.ID, v.Name)
		}
	}
	tx.touch(v.ID, 0)
	return tx.put(volumeKey(v.ID), v)
}

// DeleteVolume deletes a volume and its links.
func (tx *Tx) DeleteVolume(id VolumeID) error {
	if tx.bucket.Get(volumeKey(id)) == nil {
		return fmt.Errorf("delete volume %d: no such volume", id)
	}
	var keys [][]byte // first, since a cursor loses its place by a deletion
	cursor := tx.bucket.Cursor()
	for key, _ := cursor.Seek(linkKeys(id)); bytes.HasPrefix(key, linkKeys(id)); key, _ = cursor.Next() {
		keys = append(keys, bytes.Clone(key))
	}
	for _, key := range append(keys, volumeKey(id)) {
		if err := tx.delete(key); err != nil {
			return err
		}
	}
	return nil
}

// PutLink implements Links.
func (tx *Tx) PutLink(l Link) error {
	if err := tx.checkLink(l, tx.meta.counters); err != nil {
		return err
	}
	tx.touch(l.Volume, l.Image)
	return tx.put(linkKey(l.Volume, l.Image), l)
}

// checkLink looks at a link that is to be put.
func (tx *Tx) checkLink(l Link, next counters) error {
	if err := l.check(next); err != nil {
		return err
	}
	if tx.bucket.Get(volumeKey(l.Volume)) == nil {
		return fmt.Errorf("put link of image %d: no volume %d", l.Image, l.Volume)
	}
	return nil
}

// DeleteLink takes an image out of a chain.
func (tx *Tx) DeleteLink(v VolumeID, i image.ID) error {
	if tx.bucket.Get(linkKey(v, i)) == nil {
		return fmt.Errorf("delete link: volume %d has no image %d", v, i)
	}
	tx.touch(v, 0)
	return tx.delete(linkKey(v, i))
}

// PutGroup inserts or replaces a group. That its volumes exist, and are in no other
// group that is their default, is the caller's to keep.
func (tx *Tx) PutGroup(g Group) error {
	if g.Name == "" {
		return fmt.Errorf("put group: it has no name")
	}
	if err := g.check(); err != nil {
		return err
	}
	return tx.put(groupKey(g.Name), g)
}

// DeleteGroup deletes a group, and none of its volumes.
func (tx *Tx) DeleteGroup(name string) error {
	if tx.bucket.Get(groupKey(name)) == nil {
		return fmt.Errorf("delete group %q: no such group", name)
	}
	return tx.delete(groupKey(name))
}

func (tx *Tx) touch(v VolumeID, put image.ID) { tx.touched[v] = max(tx.touched[v], put) }

// store and delete keep count and sum.

func (tx *Tx) put(key []byte, body any) error {
	value, err := encode(key, body)
	if err != nil {
		return err
	}
	return tx.store(key, value)
}

func (tx *Tx) store(key, value []byte) error {
	if err := tx.uncount(key); err != nil {
		return err
	}
	crc, err := verify(key, value)
	if err != nil {
		return err
	}
	tx.meta.Records++
	tx.meta.Sum += uint64(crc)
	tx.changed = true
	return tx.bucket.Put(key, value)
}

func (tx *Tx) delete(key []byte) error {
	if err := tx.uncount(key); err != nil {
		return err
	}
	tx.changed = true
	return tx.bucket.Delete(key)
}

func (tx *Tx) uncount(key []byte) error {
	old := tx.bucket.Get(key)
	if old == nil {
		return nil
	}
	crc, err := verify(key, old)
	if err != nil {
		return err
	}
	tx.meta.Records--
	tx.meta.Sum -= uint64(crc)
	return nil
}

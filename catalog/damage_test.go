package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/tidemark/tidemark/internal/vfs"
)

func sealEnvelope(key, value []byte) {
	binary.LittleEndian.PutUint32(value[crcPosition:], recordCRC(key, value))
}

// catalogFile returns the file of a catalog with one volume and so many
// snapshots. Without any, bbolt keeps the bucket in line; with 30 it is a
// branch over leaves.
func catalogFile(t testing.TB, snapshots int) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "catalog")
	c := mustOpen(t, vfs.OS{}, name)
	mustUpdate(t, c, func(tx *Tx) error {
		tx.Saw(time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC))
		return errors.Join(addVolume(tx, "a"), tx.PutSchedule(Schedule{Target: "a", Every: "1h", Keep: "1d:1h"}))
	})
	for n := range snapshots {
		volumes := mustLoad(t, c).Volumes
		mustUpdate(t, c, func(tx *Tx) error { return preserve(tx, fmt.Sprint("s", n), volumes...) })
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// Every bit of the whole file is flipped, of each page in use and of the rest.
// What comes of it: each flip in the content of a page in use (both meta pages,
// the root, branches and leaves; headers, elements, keys, values) is found by
// the walk, by the record's CRC, or, where the page id in a branch flips to that
// of an older copy of the page, by the transaction in the meta record. Those that go unseen are in free pages, and
// in the zeros behind the content of a page in use, which nobody reads: in
// each page they are a tail of it, and the records read are the same.
func TestEveryFlippedBitIsFoundOrOutsideTheContent(t *testing.T) {
	for what, snapshots := range map[string]int{"bucket in line": 0, "branch over leaves": 30} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			file := catalogFile(t, snapshots)
			want, _, err := readPages(bytes.Clone(file))
			if err != nil {
				t.Fatal(err)
			}
			pagesInUse := 0
			for page := 0; page < len(file); page += pageSizeBytes {
				contentBytes, tailBegan := 0, false
				for at := page; at < page+pageSizeBytes; at++ {
					found := 0
					for bit := range 8 {
						file[at] ^= 1 << bit
						if damageIsFound(file, want) {
							found++
						}
						file[at] ^= 1 << bit
					}
					switch {
					case found == 0:
						tailBegan = true
						if contentBytes > 0 && file[at] != 0 {
							t.Fatalf("byte %d is not padding, and flips of it go unseen", at)
						}
					case found < 8 || tailBegan:
						t.Fatalf("byte %d: %d of 8 flips are found, and flips before it are not", at, found)
					default:
						contentBytes++
					}
				}
				if contentBytes > 0 {
					pagesInUse++
				}
			}
			if least := map[int]int{0: 3, 30: 6}[snapshots]; pagesInUse < least {
				t.Errorf("flips were found in %d pages only", pagesInUse)
			}
		})
	}
}

// damageIsFound does what Open does, short of parsing what is unchanged.
func damageIsFound(file []byte, want []record) bool {
	got, transaction, err := readPages(file)
	if err != nil {
		return true
	}
	if len(got) != len(want) {
		_, _, err := decodeState(got, transaction)
		return err != nil
	}
	for i := range got {
		if !bytes.Equal(got[i].key, want[i].key) || !bytes.Equal(got[i].value, want[i].value) {
			if _, err := verify(got[i].key, got[i].value); err != nil {
				return true
			}
			_, _, err := decodeState(got, transaction) // sound by itself: of an older page
			return err != nil
		}
	}
	return false
}

// The same flips through the front door, at every 241st byte: the catalog says
// what is wrong, or serves and updates as if nothing had been.
func TestACatalogWithAFlippedBitIsRefusedOrWhole(t *testing.T) {
	file := catalogFile(t, 30)
	name := filepath.Join(t.TempDir(), "catalog")
	_, want, err := func() (meta, State, error) {
		records, transaction, err := readPages(file)
		if err != nil {
			return meta{}, State{}, err
		}
		return decodeState(records, transaction)
	}()
	if err != nil {
		t.Fatal(err)
	}
	refused, served := 0, 0
	for at := 0; at < len(file); at += 241 {
		flipped := bytes.Clone(file)
		flipped[at] ^= 1 << (at % 8)
		if err := os.WriteFile(name, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		wrong, err := Check(vfs.OS{}, name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Open(vfs.OS{}, name)
		if err != nil {
			refused++
			if !errors.Is(err, ErrCorrupt) || len(wrong) == 0 {
				t.Errorf("byte %d: Open returned %v, Check %q", at, err, wrong)
			}
			continue
		}
		served++
		if got := mustLoad(t, c); !reflect.DeepEqual(got, want) || len(wrong) != 0 {
			t.Errorf("byte %d: other records are served, Check says %q", at, wrong)
		}
		mustUpdate(t, c, func(tx *Tx) error { return addVolume(tx, "b") })
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if wrong, err := Check(vfs.OS{}, name); err != nil || wrong != nil {
			t.Errorf("byte %d: after an Update Check returned %q, %v", at, wrong, err)
		}
	}
	if refused == 0 || served == 0 {
		t.Errorf("%d refused, %d served: one kind was not tried", refused, served)
	}
}

func TestARecordThatIsMissingStaleOrInExcessIsFound(t *testing.T) {
	for what, tamper := range map[string]func(b *bolt.Bucket) error{
		"missing": func(b *bolt.Bucket) error { return b.Delete(linkKey(1, 2)) },
		"stale": func(b *bolt.Bucket) error { // sound by itself
			value, err := encode(linkKey(1, 2), Link{SizeBytes: 4096})
			return errors.Join(err, b.Put(linkKey(1, 2), value))
		},
		"in excess": func(b *bolt.Bucket) error {
			value, err := encode(linkKey(1, 9), Link{SizeBytes: 4096})
			return errors.Join(err, b.Put(linkKey(1, 9), value))
		},
	} {
		t.Run(what, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "catalog")
			if err := os.WriteFile(name, catalogFile(t, 3), 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := openBolt(name)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bolt.Tx) error { return tamper(tx.Bucket([]byte(bucketName))) })
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			_, err = Open(vfs.OS{}, name)
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "were committed") {
				t.Errorf("Open returned %v", err)
			}
		})
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte("m"), []byte("TT....{}"), false)
	f.Add(metaKey, []byte(`T`+"\x01"+`....{"dirID":"x","nextVolume":1,"records":2,"sum":3}`), true)
	f.Add(volumeKey(1), []byte(`T`+"\x01"+`....{"name":"a","sizeBytes":4096,"scope":"request","created":"2024-01-02T03:04:05Z"}`), true)
	f.Add(groupKey("g"), []byte(`T`+"\x01"+`....{"volumes":["a","b"],"default":true,"created":"2024-01-02T03:04:05Z"}`), true)
	f.Add(linkKey(1, 2), []byte(`T`+"\x01"+`....{"sizeBytes":1,"snapshot":{"name":"s","torn":["t"],"drainNanoseconds":5}}`), true)
	f.Add(scheduleKey("a"), []byte(`T`+"\x02"+`....{"every":"1h","keep":"1d:1h","since":"2024-01-02T03:04:05Z"}`), true)
	f.Fuzz(func(t *testing.T, key, value []byte, sealed bool) {
		value = bytes.Clone(value)
		if sealed && len(value) >= envelopeBytes { // past the CRC
			sealEnvelope(key, value)
		}
		_, _, err := decodeState([]record{{key, value}}, 0)
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
			t.Fatalf("an error of no kind: %v", err)
		}
		for _, body := range []any{new(meta), new(Volume), new(Link), new(Group), new(Schedule)} {
			if _, err := decode(key, value, body); err != nil {
				continue
			}
			again, err := encode(key, body)
			if err != nil {
				t.Fatalf("%T was decoded and is not encoded: %v", body, err)
			}
			back := reflect.New(reflect.TypeOf(body).Elem()).Interface()
			if _, err := decode(key, again, back); err != nil {
				t.Fatalf("%T: %v", body, err)
			}
			first, _ := json.Marshal(body)
			second, _ := json.Marshal(back)
			if !bytes.Equal(first, second) {
				t.Fatalf("%s came back as %s", first, second)
			}
		}
	})
}

// FuzzReadPages lays a patch over a sound file. What the walk lets through,
// bbolt must be able to read.
func FuzzReadPages(f *testing.F) {
	file := catalogFile(f, 30)
	f.Add(uint32(0), []byte{})
	f.Add(uint32(pageHeaderBytes+44), []byte{0xc9, 0xce}) // 2^46 pages in use: bbolt would list those that are free
	f.Add(uint32(2*pageSizeBytes+8), []byte{1, 0, 255, 255})
	f.Add(uint32(pageHeaderBytes+16), []byte{2})
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		patched := bytes.Clone(file)
		copy(patched[int(at)%len(patched):], patch)
		for id := range 2 { // past the checksum
			body := patched[id*pageSizeBytes+pageHeaderBytes:][:boltMetaBytes]
			sum := fnv.New64a()
			_, _ = sum.Write(body[:56])
			native.PutUint64(body[56:], sum.Sum64())
		}
		records, _, err := readPages(patched)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		name := filepath.Join(t.TempDir(), "catalog")
		if err := os.WriteFile(name, patched, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := openBolt(name)
		if err != nil {
			t.Fatalf("bbolt refuses what the walk let through: %v", err)
		}
		defer func() { _ = db.Close() }()
		err = db.Update(func(tx *bolt.Tx) error {
			n := 0
			err := tx.Bucket([]byte(bucketName)).ForEach(func(key, value []byte) error {
				if n >= len(records) || !bytes.Equal(key, records[n].key) || !bytes.Equal(value, records[n].value) {
					return fmt.Errorf("record %d differs", n)
				}
				n++
				return nil
			})
			return errors.Join(err, tx.Bucket([]byte(bucketName)).Put([]byte("x"), []byte("y")))
		})
		if err != nil {
			t.Fatalf("bbolt reads something else: %v", err)
		}
	})
}

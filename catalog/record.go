package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/tidemark/tidemark/image"
)

// Keys. Each link has its own, so that a preserve of a volume with a thousand
// snapshots rewrites two small records; big endian, so that bbolt's order is
// the order of the chain.
//
//	'm'                                     meta
//	'v' volume id (8, big endian)           Volume
//	'l' volume id (8) image id (8)          Link
//	's' target                              Schedule
//	'g' name                                Group
const (
	volumePrefix = 'v'
	linkPrefix   = 'l'
	groupPrefix  = 'g'
)

var metaKey = []byte{'m'}

func volumeKey(id VolumeID) []byte {
	return binary.BigEndian.AppendUint64([]byte{volumePrefix}, uint64(id))
}

func linkKey(v VolumeID, i image.ID) []byte {
	return binary.BigEndian.AppendUint64(linkKeys(v), uint64(i))
}

// linkOf is a link as far as its key tells.
func linkOf(key []byte) Link {
	return Link{Volume: VolumeID(binary.BigEndian.Uint64(key[1:])), Image: image.ID(binary.BigEndian.Uint64(key[9:]))}
}

func groupKey(name string) []byte { return append([]byte{groupPrefix}, name...) }

// linkKeys is what the keys of all links of a volume begin with.
func linkKeys(v VolumeID) []byte {
	return binary.BigEndian.AppendUint64([]byte{linkPrefix}, uint64(v))
}

// Values. Every value, the meta record's too, is an envelope around JSON:
//
//	0  1  magic 'T'
//	1  1  format version, 1; the envelope is the same in every version
//	2  4  CRC-32C, little endian, of key, version byte and body
//	6  -  body: one JSON object
const (
	formatVersion   = 2
	envelopeMagic   = 'T'
	envelopeBytes   = 6
	versionPosition = 1
	crcPosition     = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// counters are the ids that come next.
type counters struct {
	NextVolume VolumeID `json:"nextVolume"`
	NextImage  image.ID `json:"nextImage"`
	NextCut    uint64   `json:"nextCut"`
}

// after is the counters with those of x taken for drawn too.
func (c counters) after(x counters) counters {
	return counters{max(c.NextVolume, x.NextVolume), max(c.NextImage, x.NextImage), max(c.NextCut, x.NextCut)}
}

// meta is the record about all others, rewritten in each commit.
type meta struct {
	DirID string `json:"dirID"`
	counters
	// Records is their number, without this one; Sum adds up their CRCs.
	Records uint64 `json:"records"`
	Sum     uint64 `json:"sum"`
	// Transaction is the number of the bbolt transaction that wrote it. Count
	// and sum alone would fit a page of an older commit that holds this record
	// and all that changed since: one flipped bit in a page id leads there.
	Transaction uint64 `json:"transaction"`
	// Seen is State.Seen.
	Seen time.Time `json:"seen,omitzero"`
	// Logging: there is a log, whose frames above the number Logged count.
	Logging bool   `json:"logging,omitempty"`
	Logged  uint64 `json:"logged,omitempty"`
}

// record is a key and its value as bbolt stores them.
type record struct{ key, value []byte }

func encode(key []byte, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode record %x: %w", key, err)
	}
	value := append([]byte{envelopeMagic, formatVersion, 0, 0, 0, 0}, text...)
	binary.LittleEndian.PutUint32(value[crcPosition:], recordCRC(key, value))
	return value, nil
}

// decode fills body from a record and returns the record's CRC. Errors:
// ErrCorrupt, ErrFormat.
func decode(key, value []byte, body any) (crc uint32, err error) {
	crc, err = verify(key, value)
	if err != nil {
		return 0, err
	}
	d := json.NewDecoder(bytes.NewReader(value[envelopeBytes:]))
	d.DisallowUnknownFields()
	if err := d.Decode(body); err != nil {
		return 0, fmt.Errorf("%w: record %x: %v", ErrCorrupt, key, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("%w: record %x: something follows its body", ErrCorrupt, key)
	}
	return crc, nil
}

// verify looks at the envelope alone.
func verify(key, value []byte) (crc uint32, err error) {
	if len(value) < envelopeBytes || value[0] != envelopeMagic {
		return 0, fmt.Errorf("%w: record %x: no envelope", ErrCorrupt, key)
	}
	crc = binary.LittleEndian.Uint32(value[crcPosition:])
	if crc != recordCRC(key, value) {
		return 0, fmt.Errorf("%w: record %x: wrong CRC", ErrCorrupt, key)
	}
	if v := value[versionPosition]; v != formatVersion {
		return 0, fmt.Errorf("%w: record %x has version %d, this program reads %d", ErrFormat, key, v, formatVersion)
	}
	return crc, nil
}

func recordCRC(key, value []byte) uint32 {
	crc := crc32.Update(0, castagnoli, key)
	crc = crc32.Update(crc, castagnoli, value[versionPosition:versionPosition+1])
	return crc32.Update(crc, castagnoli, value[envelopeBytes:])
}

package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
)

// witness is the file `journal-witness`, which says what the syncs of a life
// have returned (J7). It is written in place and unsynced, after the sync that
// it tells of. So what it says is true whenever it is found, and after a power
// cut it may be less than the truth. It is another file than the segments so
// that it outlives what takes their end away, whole sectors or the file.
//
//	 0  magic "TideWtns"
//	 8  u32 version, u32 zero
//	16  u64 volume ID
//	24  u64 life
//	32  u64 number of a segment
//	40  u64 offset: all of the life up to here, in that segment, is durable
//	48  u32 CRC of the frame that ends there, or of the header
//	52  u32 1 if a sync of this life has failed, or of one that rested since, else 0
//	56  u32 CRC of bytes 0-55
//
// Behind that, in the same sector, are the marks of a rest: which images have
// drained (J9). They count while the first part speaks of the same life. Where
// there are none it is zeros, or the file ends after 60 bytes.
//
//	 60  u32 zero
//	 64  u64 life
//	 72  boot ID, 16 bytes
//	 88  u64 count
//	 96  IDs of as many images, u64 each, at most 32; then zeros
//	352  u32 CRC of bytes 64-351
//
// A file of no bytes, or of zeros, says nothing: a power cut in Create leaves it.
//
// Rejected: a frame behind each commit that says so. It lies in the sector of
// the commit, so that one lost write takes both; and after a failed sync of the
// segment it is lost with the rest.
type witness struct {
	name   string
	volume uint64

	mu   sync.Mutex // held across a write to the page cache
	file vfs.File
	said testimony
}

// testimony is what a witness says.
type testimony struct {
	life    uint64
	durable place
	failed  bool
}

// marks are the images that have drained while a journal rested after a life.
type marks struct {
	life   uint64
	boot   bootID
	images []image.ID // at most mostDrained
}

// place is where a frame, or a header, ends. Its CRC stands for the whole chain
// before it.
type place struct {
	segment uint64
	end     int64
	crc     uint32
}

const (
	witnessFile  = "journal-witness"
	witnessMagic = "TideWtns"
	witnessBytes = 60

	marksBytes  = 296 // with the zeros before them
	mostDrained = 32
)

func witnessName(dir string) string { return path.Join(dir, witnessFile) }

// openWitness makes the file if it is missing; its entry is durable after the
// next SyncDir.
func openWitness(o *Options) (*witness, error) {
	name := witnessName(o.Dir)
	f, err := o.FS.Open(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open witness: %w", err)
	}
	return &witness{name: name, volume: o.VolumeID, file: f}, nil
}

// begin says that a life has begun and is durable up to p; the marks of the rest
// before it are in its first segment. It syncs. A failure that was noted while the
// journal rested stays (J9).
func (w *witness) begin(life uint64, p place) error {
	err := w.say(func(t *testimony) { t.life, t.durable = life, p })
	if err == nil {
		err = w.write(make([]byte, marksBytes), witnessBytes)
	}
	if err == nil {
		err = w.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("begin in %s: %w", w.name, err)
	}
	return nil
}

// saw says that a sync has returned.
func (w *witness) saw(p place) error { return w.say(func(t *testimony) { t.durable = p }) }

// fail says that a sync has failed, for good.
func (w *witness) fail() error { return w.say(func(t *testimony) { t.failed = true }) }

// rest says which images have drained while the journal rests, under the present boot
// ID: at most mostDrained.
func (w *witness) rest(boot bootID, images []image.ID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(encodeMarks(marks{w.said.life, boot, images}), witnessBytes)
}

func (w *witness) say(what func(*testimony)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	what(&w.said)
	return w.write(encodeWitness(w.volume, w.said), 0)
}

func (w *witness) write(b []byte, off int64) error {
	if _, err := w.file.WriteAt(b, off); err != nil {
		return fmt.Errorf("write %s: %w", w.name, err)
	}
	return nil
}

func encodeWitness(volume uint64, t testimony) []byte {
	b := append(make([]byte, 0, witnessBytes), witnessMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, volume)
	b = binary.LittleEndian.AppendUint64(b, t.life)
	b = binary.LittleEndian.AppendUint64(b, t.durable.segment)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.durable.end))
	b = binary.LittleEndian.AppendUint32(b, t.durable.crc)
	failed := uint32(0)
	if t.failed {
		failed = 1
	}
	b = binary.LittleEndian.AppendUint32(b, failed)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// errNoWitness: the file is missing or damaged. What it knew is lost, marks too; no
// change is.
var errNoWitness = errors.New("what it knew of syncs is lost, and with it the proof that the end of the journal is whole")

func encodeMarks(m marks) []byte {
	b := make([]byte, 4, marksBytes)
	b = binary.LittleEndian.AppendUint64(b, m.life)
	b = append(b, m.boot[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(m.images)))
	for _, id := range m.images {
		b = binary.LittleEndian.AppendUint64(b, uint64(id))
	}
	b = b[:marksBytes-crcBytes]
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[4:], castagnoli))
}

// readWitness returns what the file says, of syncs and of a rest. It fails with
// errNoWitness or errNoMarks (then the testimony is right), or because the file can't
// be read.
func readWitness(o *Options) (testimony, marks, error) {
	name := witnessName(o.Dir)
	f, err := o.FS.Open(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return testimony{}, marks{}, fmt.Errorf("%s is missing: %w", name, errNoWitness)
	}
	if err != nil {
		return testimony{}, marks{}, fmt.Errorf("open witness: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	var room [witnessBytes + marksBytes + 1]byte
	n, err := f.ReadAt(room[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return testimony{}, marks{}, fmt.Errorf("read %s: %w", name, err)
	}
	t, err := decodeWitness(room[:min(n, witnessBytes)], o.VolumeID)
	if err != nil {
		return testimony{}, marks{}, fmt.Errorf("%s: %w", name, err)
	}
	m, err := decodeMarks(room[min(n, witnessBytes):n])
	if err != nil {
		return t, marks{}, fmt.Errorf("%s: %w", name, err)
	}
	return t, m, nil
}

func decodeWitness(b []byte, volume uint64) (testimony, error) {
	if isZero(b) {
		return testimony{}, nil
	}
	if len(b) != witnessBytes || string(b[:8]) != witnessMagic ||
		binary.LittleEndian.Uint32(b[56:]) != crc32.Checksum(b[:56], castagnoli) {
		return testimony{}, fmt.Errorf("damaged: %w", errNoWitness)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return testimony{}, fmt.Errorf("%w %d", ErrVersion, v)
	}
	if v := binary.LittleEndian.Uint64(b[16:]); v != volume {
		return testimony{}, fmt.Errorf("%w: it belongs to volume %d, not %d", ErrCorrupt, v, volume)
	}
	failed := binary.LittleEndian.Uint32(b[52:])
	if failed > 1 {
		return testimony{}, fmt.Errorf("%w: neither failed nor not: %d", ErrCorrupt, failed)
	}
	return testimony{
		life: binary.LittleEndian.Uint64(b[24:]),
		durable: place{
			segment: binary.LittleEndian.Uint64(b[32:]),
			end:     int64(binary.LittleEndian.Uint64(b[40:])),
			crc:     binary.LittleEndian.Uint32(b[48:]),
		},
		failed: failed == 1,
	}, nil
}

// errNoMarks: what follows the testimony is damaged.
var errNoMarks = errors.New("which images drained while the journal rested is lost")

func decodeMarks(b []byte) (marks, error) {
	if len(b) <= marksBytes && isZero(b) {
		return marks{}, nil
	}
	const imagesAt, crcAt = 36, marksBytes - crcBytes
	count := uint64(mostDrained + 1)
	if len(b) == marksBytes && isZero(b[:4]) && binary.LittleEndian.Uint32(b[crcAt:]) == crc32.Checksum(b[4:crcAt], castagnoli) {
		count = binary.LittleEndian.Uint64(b[28:])
	}
	if count > mostDrained || !isZero(b[imagesAt+8*count:crcAt]) {
		return marks{}, fmt.Errorf("damaged: %w", errNoMarks)
	}
	m := marks{life: binary.LittleEndian.Uint64(b[4:]), boot: bootID(b[12:28]), images: make([]image.ID, count)}
	for i := range m.images {
		m.images[i] = image.ID(binary.LittleEndian.Uint64(b[imagesAt+8*i:]))
	}
	return m, nil
}

package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// openTwice opens what a disk holds. It may be refused; what is recovered must
// stay.
func openTwice(t *testing.T, o Options) {
	_ = Check(o)
	_, r, err := Open(o)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("open: %v", err)
		}
		return
	}
	_, again := reopen(t, o)
	for id, tab := range r.Tables {
		var was, is bytes.Buffer
		must(t, tab.EncodeTo(&was))
		must(t, again.Tables[id].EncodeTo(&is))
		if !bytes.Equal(was.Bytes(), is.Bytes()) {
			t.Fatalf("the table of image %d changed between two recoveries", id)
		}
	}
}

func FuzzSegmentOfAnyBytes(f *testing.F) {
	whole, ends := segment1(f, simOptions("a", 1))
	f.Add(whole)
	f.Add(whole[:ends[2]+3])
	f.Add(whole[:headerBytes])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, seg []byte) {
		openTwice(t, withSegment1(t, "a", seg))
		openTwice(t, withSegment1(t, "b", seg))
	})
}

// Frames of any kinds and payloads, with CRCs that are right.
func FuzzFramesOfAnyPayload(f *testing.F) {
	change := appendChange(nil, data(1, 5))
	f.Add(byte(0), change, byte(1), []byte{1, 0, 0, 0, 0, 0, 0, 0}, uint32(0), false)
	f.Add(byte(2), make([]byte, 16), byte(3), []byte{}, uint32(90), false)
	f.Add(byte(0), appendChange(change, Change{1, 1, 1 << 20, lookup.Zero}), byte(4), []byte{}, uint32(0), false)
	f.Add(byte(5), change, byte(1), make([]byte, 8), uint32(1000), true)
	f.Add(byte(0), change, byte(1), appendCommit(nil, 1, Basis{Blocks: []Block{{1, 5, make([]byte, lookup.BlockSize)}}}), uint32(0), false)
	f.Add(byte(1), appendCommit(nil, 0, Basis{Blocks: []Block{{1, 5, make([]byte, lookup.BlockSize)}}}), byte(1), appendCommit(nil, 0, Basis{Synced: []image.ID{1, 2}}), uint32(0), false)
	kinds := []kind{kindChanges, kindCommit, kindDrained, kindNext, kindClosed, kind([]byte("what"))}
	f.Fuzz(func(t *testing.T, kind1 byte, payload1 []byte, kind2 byte, payload2 []byte, durable uint32, unchained bool) {
		o := simOptions("a", 1)
		j := create(t, o)
		j.buf = append(beginFrame(nil), payload1...)
		must(t, j.put(j.buf, kinds[int(kind1)%len(kinds)]))
		j.cur.durable = int64(durable)
		if unchained {
			j.cur.crc++
		}
		j.buf = append(beginFrame(nil), payload2...)
		must(t, j.put(j.buf, kinds[int(kind2)%len(kinds)]))
		openTwice(t, copyOf(t, o))
		o = copyOf(t, o)
		openTwice(t, o.underBoot("b"))
	})
}

func FuzzBaseFile(f *testing.F) {
	f.Add(encodeBase(7, base{1, nil}))
	f.Add(encodeBase(7, base{9, map[image.ID]LSN{1: 5, 2: 1 << 40}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, file []byte) {
		file = withCRC(file)
		found, err := decodeBase(file, 7)
		if err == nil && !bytes.Equal(encodeBase(7, found), file) || err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("%+v, %v", found, err)
		}
	})
}

func FuzzWitnessFile(f *testing.F) {
	f.Add(encodeWitness(7, testimony{1, place{1, headerBytes, 77}, false}))
	f.Add(encodeWitness(7, testimony{3, place{5, 1 << 30, 0}, true}))
	f.Add(make([]byte, witnessBytes))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, file []byte) {
		file = withCRC(file)
		said, err := decodeWitness(file, 7)
		if err == nil && said != (testimony{}) && !bytes.Equal(encodeWitness(7, said), file) ||
			err != nil && !errors.Is(err, errNoWitness) && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("%+v, %v", said, err)
		}
		o := simOptions("a", 1)
		must(t, create(t, o).Close())
		writeFile(t, o, witnessName(o.Dir), file)
		openTwice(t, copyOf(t, o))
	})
}

func FuzzMarks(f *testing.F) {
	f.Add(encodeMarks(marks{}))
	f.Add(encodeMarks(marks{3, bootID{1}, []image.ID{5, 1 << 40}}))
	f.Add(make([]byte, marksBytes))
	f.Fuzz(func(t *testing.T, file []byte) {
		if len(file) > 4 {
			file = append(file[:4:4], withCRC(file[4:])...)
		}
		found, err := decodeMarks(file)
		if err == nil && !isZero(file) && !bytes.Equal(encodeMarks(found), file) || err != nil && !errors.Is(err, errNoMarks) {
			t.Fatalf("%+v, %v", found, err)
		}
		o := simOptions("a", 1)
		must(t, create(t, o).Close())
		writeFile(t, o, witnessName(o.Dir), append(readFile(t, o, witnessName(o.Dir))[:witnessBytes], file...))
		openTwice(t, copyOf(t, o))
	})
}

// withCRC makes the CRC at the end of a file right, so that what it covers is
// read.
func withCRC(file []byte) []byte {
	if len(file) < crcBytes {
		return file
	}
	body := file[:len(file)-crcBytes]
	return binary.LittleEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, castagnoli))
}

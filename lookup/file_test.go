package lookup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
)

// What is read from a table file can be written and read again: also what has a
// CRC that is right, as no damage is likely to have.
func FuzzTableFile(f *testing.F) {
	encode := func(t *Table, mark uint64) []byte {
		var b bytes.Buffer
		if err := t.EncodeFile(&b, FileHead{Owner: 7, Image: 1, Mark: mark}); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	table := NewTable()
	table.Set(3, 70000, Data)
	table.Set(9, 4, Zero)
	f.Add(encode(table, 9))
	f.Add(encode(NewTable(), 0))
	f.Add([]byte(fileMagic))
	f.Fuzz(func(t *testing.T, file []byte) {
		if n := len(file) - crcBytes; n >= 0 {
			file = binary.LittleEndian.AppendUint32(file[:n:n], crc32.Checksum(file[:n], castagnoli))
		}
		table, mark, err := DecodeFile(bytes.NewReader(file), int64(len(file)), 7, 1, DecodePacked)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		var again bytes.Buffer
		if err := table.EncodeFile(&again, FileHead{Owner: 7, Image: 1, Mark: mark}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := DecodeFile(bytes.NewReader(again.Bytes()), int64(again.Len()), 7, 1, DecodePacked); err != nil {
			t.Fatalf("what was read can't be written and read again: %v", err)
		}
	})
}

func TestATableFileIsOfItsOwnerAndImageOnlyAndEveryFlippedBitIsFound(t *testing.T) {
	table := NewTable()
	table.Set(5, 100, Data)
	var b bytes.Buffer
	if err := table.EncodeFile(&b, FileHead{Owner: 7, Image: 1, Mark: 3}); err != nil {
		t.Fatal(err)
	}
	decode := func(owner, image uint64) error {
		_, _, err := DecodeFile(bytes.NewReader(b.Bytes()), int64(b.Len()), owner, image, Decode)
		return err
	}
	if err := decode(7, 1); err != nil {
		t.Error(err)
	}
	if err := decode(8, 1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("of another owner: %v", err)
	}
	if err := decode(7, 2); !errors.Is(err, ErrCorrupt) {
		t.Errorf("of another image: %v", err)
	}
	for bit := range b.Len() * 8 {
		b.Bytes()[bit/8] ^= 1 << (bit % 8)
		if decode(7, 1) == nil {
			t.Fatalf("bit %d flipped: not found", bit)
		}
		b.Bytes()[bit/8] ^= 1 << (bit % 8)
	}
}

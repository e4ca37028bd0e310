package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// Of writes that a flush follows all is there, of the others any sectors.
func TestReplayLosesOnlyWhatNoFlushFollows(t *testing.T) {
	const sector = 512
	logged := binary.LittleEndian.AppendUint64(nil, magic)
	logged = binary.LittleEndian.AppendUint64(logged, version)
	logged = binary.LittleEndian.AppendUint64(logged, 5)
	logged = binary.LittleEndian.AppendUint32(logged, sector)
	pad := func() { logged = append(logged, make([]byte, (sector-len(logged)%sector)%sector)...) }
	pad()
	add := func(at, count, flags uint64, mark string, data []byte) {
		for _, n := range []uint64{at, count, flags, uint64(len(mark))} {
			logged = binary.LittleEndian.AppendUint64(logged, n)
		}
		logged = append(logged, mark...)
		pad()
		logged = append(logged, data...)
	}
	fill := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n*sector) }
	add(0, 2, 0, "", fill('a', 2))
	add(0, 0, isFlush, "", nil)
	add(0, 0, isMark, "one", nil)
	add(1, 2, 0, "", fill('b', 2))
	add(3, 1, isFUA, "", fill('c', 1))

	dir := t.TempDir()
	log, target := filepath.Join(dir, "log"), filepath.Join(dir, "target")
	if err := os.WriteFile(log, logged, 0o600); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, seed := range []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"} {
		if err := os.WriteFile(target, make([]byte, 4*sector), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run([]string{log, target, "5", seed}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(target)
		if err != nil {
			t.Fatal(err)
		}
		is := string([]byte{got[0], got[sector], got[2*sector], got[3*sector]})
		if seed == "0" && is != "abbc" {
			t.Errorf("with nothing lost the disk has %q", is)
		}
		seen[is] = true
	}
	for is := range seen {
		switch is {
		case "abbc", "aabc", "ab\x00c", "aa\x00c":
		default:
			t.Errorf("the disk has %q", is)
		}
	}
	if len(seen) < 2 {
		t.Errorf("seen only %v", seen)
	}
}

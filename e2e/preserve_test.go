package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"
)

func TestEverySnapshotOfTwoVolumesIsAPrefixOfDependentWritesAndNeverChanges(t *testing.T) {
	byCommand, byAPI := *rounds, 10**rounds // the API's follow each other at once
	s := newRaceServer(t)
	s.create(chainVolumeSize, chainVolumes...)
	chains := newChains()
	l := startLoad(t, s, chains, 0)
	c := s.client()
	var all []kept
	var first [][2][]byte
	for i := range byCommand + byAPI {
		name, until := fmt.Sprintf("p%d", i), "sealing"
		if i%5 == 4 {
			until = "sealed"
		}
		k, err := preserveChains(chains, name, func() error {
			if i < byCommand {
				s.tidemark("preserve", "db", "wal", "--name", name, "--until", until)
				return nil // or it has failed the test
			}
			return preserve(t.Context(), c, name)
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, k)
		first = append(first, s.both("@"+name)) // under the load
	}
	if errs := l.stop(); len(errs) > 0 {
		t.Fatal(errs)
	}
	t.Logf("%d writes, %d preserves", l.acked.Load(), len(all))
	for range 2 {
		for i, k := range all {
			s.mustHold(chains, k)
			if now := s.both("@" + k.name); !bytes.Equal(now[0], first[i][0]) || !bytes.Equal(now[1], first[i][1]) {
				t.Errorf("snapshot %s has changed since its preserve was answered", k.name)
			}
		}
		s.mustHaveAll(chains)
		s.stop()
		s.check()
		s.start()
	}
}

// fioBytes is what each of fio's passes writes to a volume.
const (
	fioBytes  = 8 << 20
	fioPasses = 2
	fioDepth  = 16
)

func TestFioVerifiesTheLiveViewAndEverySnapshotIsAPrefixOfItsWrites(t *testing.T) {
	s := newRaceServer(t)
	s.create("8MiB", "one", "many")
	fio := command(t, "fio", "--name=global", "--ioengine=nbd", "--rw=randwrite", "--bs=4k",
		fmt.Sprintf("--size=%d", fioBytes), fmt.Sprintf("--loops=%d", fioPasses), "--randrepeat=0",
		"--verify=crc32c", "--verify_backlog=128", "--verify_fatal=1", "--verify_state_save=0",
		"--name=one", "--uri="+s.uri("one"), "--iodepth=1",
		"--name=many", "--uri="+s.uri("many"), fmt.Sprintf("--iodepth=%d", fioDepth))
	type end struct {
		out []byte
		err error
	}
	ended := make(chan end, 1)
	go func() {
		out, err := fio.CombinedOutput()
		ended <- end{out, err}
	}()
	count := 0
	var e end
	for running := true; running; {
		name := fmt.Sprintf("p%d", count)
		s.tidemark("preserve", "one", "many", "--name", name, "--until", "sealed")
		count++
		select {
		case e = <-ended:
			running = false
		default:
		}
	}
	if e.err != nil {
		t.Fatalf("fio: %v\n%s", e.err, e.out)
	}
	t.Logf("%d preserves", count)
	whole := 0
	for i := range count {
		for volume, depth := range map[string]int{"one": 1, "many": fioDepth} {
			export := fmt.Sprintf("%s@p%d", volume, i)
			n, err := fioPrefix(s.content(export), depth)
			if err != nil {
				t.Errorf("%s: %v", export, err)
			}
			if n > 0 && n < fioPasses*fioBytes/4096 {
				whole++
			}
		}
	}
	if whole == 0 {
		t.Error("no preserve met fio at work")
	}
	s.stop()
	s.check()
}

// fioPrefix says how many writes of fio a volume holds. Each block of fio's has
// its write's number and checksums (struct verify_header, fio's verify.h), and
// each pass writes each block once, so the numbers tell what is missing: with
// depth writes in flight, up to depth-1 that had begun before the last one.
func fioPrefix(content []byte, depth int) (written int, err error) {
	const pass = fioBytes / 4096
	numbers := make([]int, 0, pass) // of the next write after each block's; 0: none
	for off := 0; off < len(content); off += 4096 {
		n, err := fioNumber(content[off:off+4096], off)
		if err != nil {
			return 0, err
		}
		numbers = append(numbers, n)
		written = max(written, n)
	}
	start := (written - 1) / pass * pass // of the last pass
	here := 0
	for block, n := range numbers {
		switch {
		case n > start:
			here++
		case start > 0 && n <= start-pass:
			return 0, fmt.Errorf("block %d has write %d, of a pass that was over before write %d began", block, n-1, written-1)
		}
	}
	if missing := written - start - here; missing >= depth {
		return 0, fmt.Errorf("it has write %d, and misses %d before it; with depth %d, less than %d can be in flight", written-1, missing, depth, depth)
	}
	return written, nil
}

// fioNumber checks one block of fio's and returns its number plus 1; 0 if fio
// did not write it.
func fioNumber(block []byte, off int) (int, error) {
	const headerBytes, checkBytes = 40, 4
	if [4096]byte(block) == [4096]byte{} {
		return 0, nil
	}
	number := int(binary.LittleEndian.Uint16(block[34:]))
	switch {
	case binary.LittleEndian.Uint16(block) != 0xacca:
		return 0, fmt.Errorf("at %d: no header of fio's", off)
	case binary.LittleEndian.Uint64(block[16:]) != uint64(off):
		return 0, fmt.Errorf("at %d: the block of offset %d", off, binary.LittleEndian.Uint64(block[16:]))
	case binary.LittleEndian.Uint32(block[36:]) != fioSum(block[:36]):
		return 0, fmt.Errorf("at %d: write %d: bad checksum of the header", off, number)
	case binary.LittleEndian.Uint32(block[headerBytes:]) != fioSum(block[headerBytes+checkBytes:]):
		return 0, fmt.Errorf("at %d: write %d: bad checksum", off, number)
	}
	return number + 1, nil
}

// fioSum is CRC32C as fio has it, without the last inversion.
func fioSum(b []byte) uint32 { return ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func TestTheCheckOfFiosBlocksFindsWhatIsMissingOrTorn(t *testing.T) {
	const pass = fioBytes / 4096
	holding := func(upTo int, without ...int) []byte { // in order of the blocks
		content := make([]byte, fioBytes)
		for n := range upTo {
			if !slices.Contains(without, n) {
				fioBlock(content, n)
			}
		}
		return content
	}
	torn := holding(9)
	torn[5*4096+2048]++
	moved := holding(9)
	copy(moved[7*4096:], moved[6*4096:7*4096])
	for _, test := range []struct {
		name    string
		content []byte
		depth   int
		n       int
		whole   bool
	}{
		{"nothing", holding(0), 1, 0, true},
		{"a part of the first pass", holding(9), 1, 9, true},
		{"a later pass", holding(2*pass + 3), 1, 2*pass + 3, true},
		{"one missing at depth 1", holding(9, 4), 1, 0, false},
		{"one missing in a later pass", holding(pass+9, pass+4), 1, 0, false},
		{"one missing at depth 2", holding(9, 4), 2, 9, true},
		{"two missing at depth 2", holding(9, 4, 5), 2, 0, false},
		{"one missing of a pass that was over", holding(pass+9, 20), 2, 0, false},
		{"a torn block", torn, 2, 0, false},
		{"a block elsewhere", moved, 2, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if n, err := fioPrefix(test.content, test.depth); n != test.n || (err == nil) != test.whole {
				t.Errorf("held %d, %v", n, err)
			}
		})
	}
}

// fioBlock makes the block of fio's write n, the blocks being written in order.
func fioBlock(content []byte, n int) {
	off := n * 4096 % len(content)
	b := content[off : off+4096]
	binary.LittleEndian.PutUint16(b, 0xacca)
	binary.LittleEndian.PutUint64(b[16:], uint64(off))
	binary.LittleEndian.PutUint16(b[34:], uint16(n))
	binary.LittleEndian.PutUint32(b[36:], fioSum(b[:36]))
	binary.LittleEndian.PutUint32(b[40:], fioSum(b[44:]))
}

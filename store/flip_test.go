package store_test

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
)

var rotFiles = flag.String("rot.files", "", "only bits of files whose name in the directory matches this `REGEXP`")

var rotBits = flag.Int("rot.bits", 40, "bits that are flipped in each file of a data directory; 0: all, and of those that check does not find one in 31 is opened with")

// Any bit of a closed data directory may flip: Check finds it, or Open refuses
// it, or it is provably harmless: every byte of every view and all that the lists
// say are what they were. The image of the live volume has no sums yet.
func TestAFlippedBitAnywhereIsFoundOrHarmless(t *testing.T) {
	o := store.Options{JournalBytes: 64 << 10} // with little room for frames: to flip zeros proves little
	s, dir := rotStore(t, o)
	w := openView(t, s, "v")
	write(t, w, 0, 'd')
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	live := imageOf(t, s, dir, 2, "img")
	closeStore(t, s)
	s = openWith(t, dir, o)
	want := allSeen(t, s)
	closeStore(t, s)
	rng := rand.New(rand.NewPCG(5, 6))
	harmless := map[string]int{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || name == live || !regexp.MustCompile(*rotFiles).MatchString(name[len(dir):]) {
			return err
		}
		for _, bit := range bitsToFlip(t, name, rng) {
			if !flipIsFound(t, dir, name, bit, want) {
				harmless[filepath.Base(name)]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("harmless: %v", harmless)
}

// bitsToFlip are all of a file, or some: half of them where something is.
func bitsToFlip(t *testing.T, name string, rng *rand.Rand) (bits []int64) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if *rotBits == 0 {
		for bit := range int64(len(data)) * 8 {
			bits = append(bits, bit)
		}
		return bits
	}
	for len(data) > 0 && len(bits) < *rotBits {
		bit := rng.Int64N(int64(len(data)) * 8)
		for len(bits)%2 == 0 && data[bit/8] == 0 && bit/8 < int64(len(data))-1 {
			bit += 8
		}
		bits = append(bits, bit)
	}
	return bits
}

func flipIsFound(t *testing.T, dir, name string, bit int64, want string) bool {
	t.Helper()
	flipBit(t, name, bit)
	defer flipBit(t, name, bit)
	r, err := store.Check(dir, nil, store.CheckOptions{})
	if err != nil || len(r.Findings) > 0 {
		return true
	}
	if *rotBits == 0 && bit%31 != 0 { // bits that nobody reads are many, and to open takes long
		return false
	}
	t.Run(fmt.Sprintf("%s_%d", filepath.Base(name), bit), func(t *testing.T) { changesNothing(t, dir, name, bit, want) })
	return false
}

// changesNothing opens a copy of a directory in which a bit is flipped that check
// does not find. It is a test of its own, so that what it opens goes with it.
func changesNothing(t *testing.T, dir, name string, bit int64, want string) {
	copied := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(copied, store.Options{FS: vfs.OS{}})
	if err != nil {
		t.Fatalf("bit %d of %s: check finds nothing, and it does not open: %v", bit, name, err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	if got := allSeen(t, s); got != want {
		t.Errorf("bit %d of %s: nobody finds it, and it changes\n%s\nto\n%s", bit, name, want, got)
	}
}

func flipBit(t *testing.T, name string, bit int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, bit/8); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (bit % 8)
	if _, err := f.WriteAt(b, bit/8); err != nil {
		t.Fatal(err)
	}
}

// allSeen is all that a client can see of a store.
func allSeen(t *testing.T, s *store.Store) string {
	t.Helper()
	var all strings.Builder
	for _, name := range s.Exports() {
		w := openView(t, s, name)
		p := make([]byte, w.SizeBytes())
		if _, err := w.ReadAt(p, 0); err != nil {
			fmt.Fprintf(&all, "%s: %v\n", name, err)
		}
		fmt.Fprintf(&all, "%s %x\n", name, sha256.Sum256(p))
		_ = w.Close()
	}
	snapshots, err := s.Snapshots("")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range snapshots {
		fmt.Fprintf(&all, "%+v\n", info)
	}
	for _, v := range s.Volumes() {
		v.AllocatedBytes, v.Connections = 0, 0
		fmt.Fprintf(&all, "%+v\n", v)
	}
	return all.String()
}

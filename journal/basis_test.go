package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// filled is a block full of a letter.
func filled(id image.ID, b lookup.BlockNum, letter byte) Block {
	return Block{id, b, bytes.Repeat([]byte{letter}, lookup.BlockSize)}
}

func blocks(list ...Block) Basis { return Basis{Blocks: list} }

// stores notes what Open does to images.
func stores(o Options) (noting Options, did *[]string) {
	did = new([]string)
	o.StoreBlock = func(b Block) error {
		if len(b.Data) != lookup.BlockSize || !bytes.Equal(b.Data, bytes.Repeat(b.Data[:1], lookup.BlockSize)) {
			return fmt.Errorf("block %d is not whole", b.Block)
		}
		*did = append(*did, fmt.Sprintf("store %d:%d=%c", b.Image, b.Block, b.Data[0]))
		return nil
	}
	o.SyncImage = func(id image.ID) error {
		*did = append(*did, fmt.Sprintf("sync %d", id))
		return nil
	}
	return o, did
}

func TestWhatCommitsHoldIsStoredWhereThePageCacheHasLostIt(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(j *Journal) error
		boot string
		want []string
	}{
		{"after a power cut, the last of each block", func(j *Journal) error {
			return errors.Join(j.Commit(1, blocks(filled(1, 1, 'a'), filled(1, 7, 'b'), filled(2, 1, 'c'))), j.Commit(1, blocks(filled(1, 1, 'd'))))
		}, "b", []string{"store 1:1=d", "store 1:7=b", "sync 1", "store 2:1=c", "sync 2"}},
		{"after a kill, as the page cache may be that of another mount", func(j *Journal) error {
			return j.Commit(1, blocks(filled(1, 1, 'a')))
		}, "a", []string{"store 1:1=a", "sync 1", "sync 1", "sync 2"}},
		{"but where a block was written since, which the journal was told", func(j *Journal) error {
			err := j.Commit(1, blocks(filled(1, 1, 'a'), filled(1, 2, 'b'), filled(1, 7, 'c')))
			_, err2 := j.Append([]Change{data(1, 2)})
			_, err3 := j.Append([]Change{{1, 7, 1, lookup.Zero}, data(1, 7)})
			return errors.Join(err, err2, err3)
		}, "a", []string{"store 1:1=a", "sync 1", "sync 1", "sync 2"}},
		{"and where it was written since the commit began", func(j *Journal) error {
			_, err := j.Append([]Change{data(1, 1)})
			return errors.Join(err, j.Commit(1, blocks(filled(1, 1, 'a'))))
		}, "a", []string{"sync 1", "sync 2"}},
		{"what an image was synced over counts no more", func(j *Journal) error {
			return errors.Join(j.Commit(1, blocks(filled(1, 1, 'a'), filled(2, 2, 'b'))), j.Commit(1, Basis{Synced: []image.ID{1}}))
		}, "b", []string{"store 2:2=b", "sync 2"}},
		{"what is stored after a sync counts", func(j *Journal) error {
			return errors.Join(j.Commit(1, blocks(filled(1, 1, 'a'))), j.Commit(1, Basis{Synced: []image.ID{1}}), j.Commit(1, blocks(filled(1, 2, 'b'))))
		}, "b", []string{"store 1:2=b", "sync 1"}},
		{"of an image that has gone nothing counts", func(j *Journal) error {
			return j.Commit(1, blocks(filled(3, 1, 'a')))
		}, "b", nil},
		{"nothing is held, and nothing done", func(j *Journal) error {
			return errors.Join(j.Commit(1, blocks(filled(1, 1, 'a'))), j.Commit(1, Basis{Synced: []image.ID{1, 2}}))
		}, "a", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := simOptions("a", 1, 2)
			j := create(t, o)
			appendTo(t, j, data(1, 1), data(1, 2), data(1, 7), data(2, 1), data(2, 2))
			must(t, c.do(j))
			recovering, did := stores(o.underBoot(c.boot))
			_, r := reopen(t, recovering)
			wantHeld(t, r.Tables[1], 1, 2, 7)
			if !slices.Equal(*did, c.want) {
				t.Errorf("open did %q, want %q", *did, c.want)
			}
			*did = nil
			reopen(t, recovering.underBoot("c"))
			if len(*did) > 0 {
				t.Errorf("the open after it did %q, but nothing is held any more", *did)
			}
		})
	}
}

func TestAnOpenThatCantStoreWhatIsHeldChangesNothing(t *testing.T) {
	o := simOptions("a", 1)
	j := create(t, o)
	appendTo(t, j, data(1, 1))
	must(t, j.Commit(1, blocks(filled(1, 1, 'a'))))
	cut, did := stores(o.underBoot("b"))
	broken := cut
	full := errors.New("no space left")
	broken.StoreBlock = func(Block) error { return full }
	if _, _, err := Open(broken); !errors.Is(err, full) {
		t.Fatalf("open: %v, want %v", err, full)
	}
	broken = cut
	broken.SyncImage = func(image.ID) error { return full }
	if _, _, err := Open(broken); !errors.Is(err, full) {
		t.Fatalf("open: %v, want %v", err, full)
	}
	*did = nil
	reopen(t, cut)
	if want := []string{"store 1:1=a", "sync 1"}; !slices.Equal(*did, want) {
		t.Errorf("the next open did %q, want %q", *did, want)
	}
}

// What recovery has synced it commits; then older data is held no more, also if it came
// no further and the power goes.
func TestWhatRecoveryHasSyncedIsNotStoredOver(t *testing.T) {
	o := simOptions("a", 1)
	j := create(t, o)
	appendTo(t, j, data(1, 1))
	must(t, j.Commit(1, blocks(filled(1, 1, 'a'))))
	must(t, j.Commit(appendTo(t, j, Change{1, 1, 1, lookup.Zero}), Basis{}))
	appendTo(t, j, data(1, 1)) // with newer data, which a kill leaves
	broken := o
	fault := failing(&broken)
	*fault = func(op vfs.Op) error {
		if op.Kind == vfs.OpRename {
			return errFault
		}
		return nil
	}
	if _, _, err := Open(broken); !errors.Is(err, errFault) {
		t.Fatalf("open: %v, want %v", err, errFault)
	}
	cut, did := stores(o.underBoot("b"))
	_, r := reopen(t, cut)
	if wantHeld(t, r.Tables[1], 1); len(*did) > 0 {
		t.Errorf("open did %q", *did)
	}
}

func TestBlocksThatTablesDontWantAreNotStored(t *testing.T) {
	o := simOptions("a", 1)
	j := create(t, o)
	appendTo(t, j, data(1, 1), data(1, 2))
	must(t, j.Commit(1, blocks(filled(1, 1, 'a'), filled(1, 2, 'b'))))
	must(t, j.Commit(appendTo(t, j, Change{1, 1, 1, lookup.Absent}), Basis{}))
	cut, did := stores(o.underBoot("b"))
	reopen(t, cut)
	if want := []string{"store 1:2=b", "sync 1"}; !slices.Equal(*did, want) {
		t.Errorf("open did %q, want %q", *did, want)
	}
}

// A client may have stored what looks like the frames of a journal.
func TestFramesInTheDataOfClientsAreNone(t *testing.T) {
	o := simOptions("a", 1)
	other := create(t, o) // of the same volume, in an earlier life
	appendTo(t, other, data(1, 1))
	must(t, other.Commit(1, Basis{}))
	frames := readFile(t, o, segmentName(o.Dir, 1))[headerBytes:other.cur.end]

	o = simOptions("a", 1)
	j := create(t, o)
	appendTo(t, j, data(1, 1))
	block := Block{1, 1, make([]byte, lookup.BlockSize)}
	copy(block.Data[:], frames) // wherever it comes to lie: at each offset that a frame may have
	for at := 0; at+2*len(frames) < len(block.Data); at += len(frames) {
		copy(block.Data[at+at/len(frames)%frameAlign:], frames)
	}
	must(t, j.Commit(1, blocks(block)))
	name := segmentName(o.Dir, 1)
	b := readFile(t, o, name)
	b[j.cur.end-1]++ // the commit is torn
	writeFile(t, o, name, b)
	writeFile(t, o, witnessName(o.Dir), nil)
	if _, r, err := Open(o.underBoot("a")); err != nil || len(held(r.Tables[1])) != 1 {
		t.Errorf("open: %v", err)
	}
}

func TestASegmentThatHoldsDataIsNotFoldedNorTheJournalClosed(t *testing.T) {
	o := simOptions("a", 1)
	j := create(t, o)
	appendTo(t, j, data(1, 1), data(1, 2))
	must(t, j.Commit(1, blocks(filled(1, 1, 'a'), filled(1, 2, 'b'))))
	if n := j.Holds(1); n != 2*lookup.BlockSize {
		t.Errorf("it holds %d bytes", n)
	}
	must(t, errors.Join(j.Checkpoint(), j.Commit(appendTo(t, j, data(1, 3)), Basis{}), j.Checkpoint()))
	killed, did := stores(copyOf(t, o).underBoot("b"))
	reopen(t, killed)
	if want := []string{"store 1:1=a", "store 1:2=b", "sync 1"}; !slices.Equal(*did, want) {
		t.Errorf("open did %q, want %q", *did, want)
	}
	other := create(t, simOptions("a", 1))
	must(t, other.Commit(0, blocks(filled(1, 1, 'a'))))
	if err := other.Close(); !errors.Is(err, ErrUncommitted) {
		t.Errorf("close: %v, want %v", err, ErrUncommitted)
	}
	must(t, errors.Join(j.Commit(2, Basis{Synced: []image.ID{1}}), j.Checkpoint()))
	if n := j.Holds(1); n != 0 || len(j.closed) > 0 {
		t.Errorf("it holds %d bytes, and %d segments wait to be folded", n, len(j.closed))
	}
	must(t, j.Close())
}

func TestAJournalAsksNotToHoldDataWhenNoTableChangesAnyMore(t *testing.T) {
	j := create(t, simOptions("a", 1))
	appendTo(t, j, data(1, 1))
	must(t, j.Commit(1, blocks(filled(1, 1, 'a'))))
	for n := range calmCommits {
		if j.IsCalm() {
			t.Fatalf("it asks after %d commits", n)
		}
		must(t, j.Commit(1, blocks(filled(1, 1, 'b'))))
	}
	if !j.IsCalm() {
		t.Errorf("it does not ask after %d commits", calmCommits)
	}
	must(t, j.Commit(1, Basis{Synced: []image.ID{1}}))
	if j.IsCalm() {
		t.Error("it asks though it holds nothing")
	}
}

func TestACommitThatIsDamagedIsCorrupt(t *testing.T) {
	whole := appendCommit(nil, 1, Basis{Synced: []image.ID{1, 300}, Blocks: []Block{filled(1, 1, 'a'), filled(2, 500, 'b')}})
	if c, err := parseCommit(whole); err != nil || c.upTo != 1 || !slices.Equal(c.synced, []image.ID{1, 300}) || len(c.blocks) != 2 ||
		c.blocks[1].image != 2 || c.blocks[1].block != 500 || whole[c.blocks[1].at] != 'b' {
		t.Fatalf("parsed %+v, %v", c, err)
	}
	for n := range whole {
		_, err := parseCommit(whole[:n])
		between := n == len(whole)-lookup.BlockSize-3 // the first block is whole, and the second not begun
		if ok := n == 8 || n == 12 || between; (err == nil) != ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("the first %d bytes of %d: %v", n, len(whole), err)
		}
	}
}

// Version 2 had commits of the LSN alone.
func TestASegmentOfVersion2IsRead(t *testing.T) {
	h := header{volume: 7, number: 1, life: 1}
	h.boot, _ = readBootID(simOptions("a").FS)
	b := h.appendTo(nil)
	binary.LittleEndian.PutUint32(b[8:], oldestSegmentVersion)
	crc := crc32.Checksum(b[:headerBytes-crcBytes], castagnoli)
	binary.LittleEndian.PutUint32(b[headerBytes-crcBytes:], crc)
	for _, f := range []struct {
		kind    kind
		payload []byte
	}{{kindChanges, appendChange(nil, data(1, 1))}, {kindCommit, binary.LittleEndian.AppendUint64(nil, 1)}} {
		at := len(b)
		b, crc = h.endFrame(append(beginFrame(b), f.payload...), at, f.kind, crc, 0)
	}
	_, r := reopen(t, withSegment1(t, "b", b))
	wantHeld(t, r.Tables[1], 1)
}

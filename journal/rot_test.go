package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
)

// Whatever becomes of one file, by a flipped bit, by an old block in the place
// of the right one, or by a lost end: a journal of which all is committed says
// that it is corrupt, or gives exactly the tables that it would have given.

// files are the contents of a journal's directory by base name.
type files map[string][]byte

// past is what a directory once was, and is.
type past struct {
	now      files
	versions map[string][][]byte // every content that a file had, by base name
	synced   map[string][]int    // the lengths at which syncs began that returned
}

// pasts makes the journals to damage: all have changes, some 4n of them, and all
// are committed.
func pasts(t testing.TB, n int) map[string]past {
	t.Helper()
	found := map[string]past{}
	o := simOptions("a", 1, 2)
	disk := o.FS.(booted).FS
	p := past{versions: map[string][][]byte{}, synced: map[string][]int{}}
	remember := func(name string) []byte {
		b := readFile(t, Options{FS: disk}, name)
		base := path.Base(name)
		if v := p.versions[base]; len(v) == 0 || !bytes.Equal(v[len(v)-1], b) {
			p.versions[base] = append(v, b)
		}
		return b
	}
	o.FS = booted{vfs.Fault{FS: disk, Hook: func(op vfs.Op) error {
		switch op.Kind {
		case vfs.OpWrite, vfs.OpTruncate:
			remember(op.Name)
		case vfs.OpSync:
			p.synced[path.Base(op.Name)] = append(p.synced[path.Base(op.Name)], len(remember(op.Name)))
		case vfs.OpRename:
			if _, err := disk.Size(op.NewName); err == nil {
				remember(op.NewName)
			}
		}
		return nil
	}}, "a"}
	snapshot := func(name string) {
		p.now = files{}
		names, err := o.FS.ReadDir(o.Dir)
		must(t, err)
		for _, base := range names {
			p.now[base] = readFile(t, Options{FS: disk}, path.Join(o.Dir, base))
		}
		found[name] = past{maps.Clone(p.now), maps.Clone(p.versions), maps.Clone(p.synced)}
	}

	j := create(t, o)
	write := func(n int) {
		for i := range n {
			id, b := image.ID(1+i%2), uint64(j.End())
			appendTo(t, j, Change{id, lookup.BlockNum(2 * (b % 300)), 1 + b%2, lookup.Data + lookup.State(b%2)})
			if i%7 == 3 {
				must(t, j.Commit(j.End()-2, Basis{}))
			}
		}
	}
	write(4 * n)
	must(t, j.MarkDrained(2))
	must(t, j.Commit(j.End(), Basis{}))
	snapshot("after a commit")
	must(t, j.Checkpoint())
	snapshot("after a segment was closed")
	write(2 * n)
	must(t, j.Commit(j.End(), Basis{}))
	snapshot("after a commit in the second segment")
	must(t, j.Checkpoint())
	snapshot("after a checkpoint")
	must(t, j.Close())
	snapshot("after a close")
	j, _ = reopen(t, o)
	snapshot("after an open")
	must(t, j.Close())
	snapshot("after an open and a close")
	j, _ = reopen(t, o)
	write(n)
	must(t, j.Commit(j.End(), Basis{}))
	j, _ = reopen(t, o)
	write(3)
	must(t, j.Commit(j.End(), Basis{}))
	snapshot("after a commit in the life after a death")
	return found
}

// lay puts files on a new disk.
func (f files) lay(t testing.TB, boot string) Options {
	o := simOptions(boot, 1, 2)
	for base, b := range f {
		writeFile(t, o, path.Join(o.Dir, base), b)
	}
	return o
}

// with is f with another content of one file; nil: without it.
func (f files) with(base string, b []byte) files {
	c := maps.Clone(f)
	if c[base] = b; b == nil {
		delete(c, base)
	}
	return c
}

// readOnly are the tables that Open would give. It does what Open does up to
// where that begins to write.
func readOnly(o Options) (map[image.ID]*lookup.Table, error) {
	h, err := readHistory(&o, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer h.close()
	r, _, err := h.replay(&o)
	if err != nil {
		return nil, err
	}
	return r.Tables, nil
}

func opened(o Options) (map[image.ID]*lookup.Table, error) {
	_, r, err := Open(o)
	if err != nil {
		return nil, err
	}
	return r.Tables, nil
}

func inBytes(t testing.TB, tables map[image.ID]*lookup.Table) string {
	t.Helper()
	var b bytes.Buffer
	for _, id := range slices.Sorted(maps.Keys(tables)) {
		must(t, tables[id].EncodeTo(&b))
	}
	return b.String()
}

// wantSafe fails the test if the damage on a disk is neither found nor without
// effect.
func wantSafe(t *testing.T, o Options, read func(Options) (map[image.ID]*lookup.Table, error), want, what string) {
	t.Helper()
	tables, err := read(o)
	switch {
	case err == nil && inBytes(t, tables) != want:
		t.Fatalf("%s: other tables, and nobody noticed", what)
	case err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion):
		t.Fatalf("%s: %v, want ErrCorrupt or ErrVersion", what, err)
	}
}

// wantFound is wantSafe of the real thing, and of Check.
func wantFound(t *testing.T, f files, want, what string) {
	t.Helper()
	o := f.lay(t, "b")
	findings := Check(o)
	wantSafe(t, o, func(o Options) (map[image.ID]*lookup.Table, error) {
		tables, err := opened(o)
		if err != nil && len(findings) == 0 {
			t.Fatalf("%s: open says %v, check finds nothing", what, err)
		}
		return tables, err
	}, want, what)
}

func eachPast(t *testing.T, n int, test func(t *testing.T, p past, want string)) {
	for name, p := range pasts(t, n) {
		t.Run(name, func(t *testing.T) {
			tables, err := opened(p.now.lay(t, "b"))
			must(t, err)
			if findings := Check(p.now.lay(t, "b")); len(findings) > 0 {
				t.Fatalf("undamaged: %q", findings)
			}
			test(t, p, inBytes(t, tables))
		})
	}
}

func TestNoFlippedBitGoesUnnoticedAndMatters(t *testing.T) {
	eachPast(t, 3, func(t *testing.T, p past, want string) {
		for base, whole := range p.now {
			same, other := p.now.lay(t, "a"), p.now.lay(t, "b")
			for bit := range 8 * len(whole) {
				bad := slices.Clone(whole)
				bad[bit/8] ^= 1 << (bit % 8)
				what := fmt.Sprintf("%s with bit %d of byte %d flipped", base, bit%8, bit/8)
				writeFile(t, other, path.Join(other.Dir, base), bad)
				wantSafe(t, other, readOnly, want, what)
				if bit%5 == 0 {
					writeFile(t, same, path.Join(same.Dir, base), bad)
					wantSafe(t, same, readOnly, want, what)
				}
				if bit%61 == 0 {
					wantFound(t, p.now.with(base, bad), want, what)
				}
			}
		}
	})
}

func TestNoOldBlockInPlaceOfAnotherGoesUnnoticedAndMatters(t *testing.T) {
	const blockBytes = 512
	eachPast(t, 10, func(t *testing.T, p past, want string) {
		tried := map[string]bool{}
		try := func(base string, bad []byte, what string) {
			if key := base + string(bad); !tried[key] {
				tried[key] = true
				wantFound(t, p.now.with(base, bad), want, base+what)
			}
		}
		for base, whole := range p.now {
			if base != baseFile { // without one there is no journal, as the caller knows better
				wantFound(t, p.now.with(base, nil), want, base+" lost")
			}
			for _, lengthBytes := range p.synced[base] {
				try(base, whole[:min(len(whole), lengthBytes)], " cut off where a sync had returned")
			}
			for other, versions := range p.versions {
				for _, old := range versions {
					if other == base {
						try(base, old, " as it once was")
					}
					for from := 0; from < len(whole); from += blockBytes {
						for to := from + blockBytes; to < len(whole)+blockBytes; to += blockBytes {
							bad := slices.Clone(whole)
							clear(bad[from:min(to, len(bad))])
							if from < len(old) {
								copy(bad[from:min(to, len(bad))], old[from:])
							}
							try(base, bad, " with old blocks of "+other)
						}
					}
				}
			}
		}
	})
}

func TestACheckpointFoldsNoFrameThatWasNotWrittenThere(t *testing.T) {
	o := simOptions("a", 1)
	j := create(t, o)
	before := j.cur.crc
	must(t, j.Commit(appendTo(t, j, data(1, 1)), Basis{}))
	must(t, j.rotate())
	must(t, j.Commit(appendTo(t, j, data(1, 2)), Basis{}))
	// The first frame is another one, and the rest goes on from it: a chain as
	// right as the one that was written.
	s := j.closed[0]
	b := readFile(t, o, s.name)[:headerBytes]
	for prev, r := before, newSegmentReader(bytes.NewReader(readFile(t, o, s.name)), s.end, before, s.salt); r.off < s.end; {
		f, ok, err := r.next()
		if must(t, err); !ok {
			t.Fatal("no frame")
		}
		payload := slices.Clone(f.payload)
		if f.kind == kindChanges {
			payload = appendChange(nil, data(1, 9))
		}
		at := len(b)
		b, prev = s.endFrame(append(beginFrame(b), payload...), at, f.kind, prev, 0)
	}
	writeFile(t, o, s.name, b)
	if err := j.Checkpoint(); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("checkpoint: %v, want ErrCorrupt", err)
	}
	if _, lsn, err := readAnyTable(&o, 1); lsn != 0 || err != nil {
		t.Fatalf("a table file of LSN %d, %v", lsn, err)
	}
}

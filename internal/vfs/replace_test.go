package vfs_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/internal/vfs"
)

func writeString(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

var (
	oldContent = strings.Repeat("old", 1000)
	newContent = strings.Repeat("new!", 50_000)
)

func TestReplaceLeavesOneOfTheTwoContentsAtAnyCut(t *testing.T) {
	sim := vfs.NewSim(t.TempDir())
	must(t, vfs.Replace(sim, "f", writeString(oldContent)))
	before := sim.Ops()
	must(t, vfs.Replace(sim, "f", writeString(newContent)))
	rng := rand.New(rand.NewPCG(5, 5))
	seen := map[bool]int{}
	for at := before; at <= sim.Ops(); at++ {
		for range 50 {
			got := readFile(t, sim.PowerCut(at, rng), "f")
			if got != oldContent && got != newContent {
				t.Fatalf("cut at %d: %d bytes that are neither", at, len(got))
			}
			if at == sim.Ops() && got != newContent {
				t.Fatalf("cut after Replace returned: the old content")
			}
			seen[got == newContent]++
		}
	}
	if seen[false] == 0 || seen[true] == 0 {
		t.Errorf("cuts left old and new content %v times: the simulation is too kind", seen)
	}
}

func TestReplaceThatFailsLeavesTheOldFile(t *testing.T) {
	errWrite := errors.New("writer gave up")
	for _, c := range []struct {
		name  string
		fail  vfs.OpKind
		err   error
		write func(io.Writer) error
		want  string
	}{
		{"open", vfs.OpOpen, syscall.EACCES, writeString(newContent), oldContent},
		{"write", vfs.OpWrite, syscall.ENOSPC, writeString(newContent), oldContent},
		{"short write", vfs.OpWrite, vfs.ShortError{N: 100, Err: syscall.ENOSPC}, writeString(newContent), oldContent},
		{"sync", vfs.OpSync, syscall.EIO, writeString(newContent), oldContent},
		{"close", vfs.OpClose, syscall.EIO, writeString(newContent), oldContent},
		{"rename", vfs.OpRename, syscall.EIO, writeString(newContent), oldContent},
		{"the caller's writer", 0, errWrite, func(w io.Writer) error {
			return errors.Join(writeString("half")(w), errWrite)
		}, oldContent},
		{"sync of the directory, when it is too late", vfs.OpSyncDir, syscall.EIO, writeString(newContent), newContent},
	} {
		t.Run(c.name, func(t *testing.T) {
			sim := vfs.NewSim(t.TempDir())
			must(t, vfs.Replace(sim, "f", writeString(oldContent)))
			err := vfs.Replace(vfs.Fault{FS: sim, Hook: func(op vfs.Op) error {
				if op.Kind == c.fail {
					return c.err
				}
				return nil
			}}, "f", c.write)
			if !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
			wantFile(t, sim, "f", c.want)
			wantNames(t, sim, "/", "f")
		})
	}
}

func TestFaultShowsEachOperationBeforeItRuns(t *testing.T) {
	var seen []string
	fsys := vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: func(op vfs.Op) error {
		seen = append(seen, strings.TrimSpace(fmt.Sprintf("%v %s %s%d+%d %s", op.Kind, op.Name, op.NewName, op.Off, op.Len, op.Handle)))
		return nil
	}}
	f, err := vfs.Labelled{FS: fsys, Label: "seal"}.Open("f", 0o102, 0o600)
	must(t, err)
	must(t, second(f.WriteAt(make([]byte, 5), 7)))
	must(t, second(f.ReadAt(make([]byte, 5), 7)))
	must(t, second(f.TryReadAt(make([]byte, 5), 7)))
	must(t, f.Truncate(9))
	must(t, f.Sync())
	must(t, f.Close())
	must(t, fsys.Rename("f", "g"))
	must(t, fsys.SyncDir("/"))
	want := []string{
		"open f 0+0 seal", "write f 7+5 seal", "read f 7+5 seal", "tryread f 7+5 seal", "truncate f 0+9 seal",
		"sync f 0+0 seal", "close f 0+0 seal", "rename f g0+0", "syncdir / 0+0",
	}
	if !slices.Equal(seen, want) {
		t.Errorf("seen\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
}

func TestAShortTransferDoesItsPart(t *testing.T) {
	var fault error
	sim := vfs.NewSim(t.TempDir())
	fsys := vfs.Fault{FS: sim, Hook: func(vfs.Op) error { return fault }}
	writeFile(t, fsys, "f", "0123456789")
	f, err := fsys.Open("f", 2, 0)
	must(t, err)
	fault = vfs.ShortError{N: 3}
	if n, err := f.WriteAt([]byte("abcdef"), 0); n != 3 || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("write: %d, %v", n, err)
	}
	p := make([]byte, 6)
	if n, err := f.ReadAt(p, 0); n != 3 || string(p) != "abc\x00\x00\x00" || err == nil {
		t.Errorf("read: %d, %q, %v", n, p, err)
	}
	fault = syscall.EIO
	if n, err := f.ReadAt(p, 0); n != 0 || !errors.Is(err, syscall.EIO) {
		t.Errorf("failed read: %d, %v", n, err)
	}
	wantFile(t, sim, "f", "abc3456789")
}

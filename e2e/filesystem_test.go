package e2e

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestAFileSystemIsWholeInTheSnapshot(t *testing.T) {
	s := newServer(t)
	s.create("64MiB", "db")
	tree := makeTree(t)
	live := s.mount("db")
	run(t, "mkfs.ext4", "-q", "-d", tree, live)
	run(t, "qemu-io", "-f", "raw", "-c", "flush", s.uri("db"))
	s.tidemark("preserve", "db", "--name", "p")
	s.overwrite("db", 3000)

	if r := attempt(t, "e2fsck", "-fn", live); r.code == 0 {
		t.Errorf("the live volume still is a file system:\n%s", r.stdout)
	}
	kept := s.mount("db@p", "-r")
	run(t, "e2fsck", "-fn", kept)
	out := t.TempDir()
	run(t, "debugfs", "-R", "rdump / "+out, kept)
	if err := os.RemoveAll(filepath.Join(out, "lost+found")); err != nil { // mkfs made it
		t.Fatal(err)
	}
	if got, want := listTree(t, out), listTree(t, tree); !slices.Equal(got, want) {
		t.Errorf("the snapshot has\n%.2000s\nwant\n%.2000s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// mount shows an export as a file, with nbdfuse, until the end of the test.
func (s *server) mount(export string, flags ...string) (file string) {
	t := s.t
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "disk")
	// nbdfuse says that it is ready by writing its number: to a pipe here.
	ready := filepath.Join(dir, "ready")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(ready, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pipe.Close() }()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatalf("nbdfuse needs FUSE: %v", err)
	}
	cmd := command(t, "nbdfuse", append(flags, "-P", ready, file, s.uri(export))...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	told := make(chan error, 1)
	go func() {
		_, err := pipe.Read(make([]byte, 32))
		told <- err
	}()
	select {
	case err := <-exited:
		t.Fatalf("nbdfuse of %s ended: %v", export, err)
	case err := <-told:
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if r := attempt(t, "fusermount3", "-u", file); r.code != 0 {
			t.Errorf("fusermount3: %s", r.stderr)
		}
		if err := <-exited; err != nil {
			t.Errorf("nbdfuse of %s: %v", export, err)
		}
	})
	return file
}

// overwrite writes so many blocks at random over a volume.
func (s *server) overwrite(volume string, blocks int) {
	s.t.Helper()
	c := s.dial(volume)
	random := rand.NewChaCha8([32]byte{2})
	p := make([]byte, 4096)
	for range blocks {
		_, _ = random.Read(p) // it never fails
		off := int64(random.Uint64() % uint64(c.SizeBytes()/512-8) * 512)
		if _, err := c.WriteAt(p, off); err != nil {
			s.t.Fatal(err)
		}
	}
	if _, err := c.WriteAt(p, 1024); err != nil { // the superblock for certain
		s.t.Fatal(err)
	}
}

// makeTree makes a tree of files of many sizes.
func makeTree(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	random := rand.NewChaCha8([32]byte{3})
	for d := range 8 {
		dir := filepath.Join(root, fmt.Sprintf("directory %d", d), "below")
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		for f, sizeBytes := range []int{0, 1, 4095, 4096, 4097, 100_000, 1 << 20} {
			p := make([]byte, sizeBytes)
			_, _ = random.Read(p)
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d", f)), p, 0o640); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("file1", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// listTree describes each file of a tree, with what is in it.
func listTree(t *testing.T, root string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		line := strings.TrimPrefix(path, root) + " " + info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(content), sha256.Sum256(content))
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// damagedStore is a closed data directory with a volume of two snapshots, so
// that every kind of structure is in it.
func damagedStore(t *testing.T, closeIt bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, dir)
	if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	w := openView(t, s, "v")
	for i, name := range []string{"one", "two"} {
		write(t, w, int64(i)*4096, 'a')
		mustPreserve(t, s, name, "v")
	}
	write(t, w, 0, 'b')
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if closeIt {
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	// A copy of it open: with a journal that has something in it.
	copied := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return copied
}

// one returns the single file that a pattern below dir matches, or the first.
func one(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("nothing matches %s (%v)", pattern, err)
	}
	return found[0]
}

// flip turns a bit of a file over, at a place counted from its end if negative.
func flip(t *testing.T, name string, at int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if at < 0 {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		at += info.Size()
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func TestCheckNamesEachKindOfDamage(t *testing.T) {
	for _, c := range []struct {
		name   string
		open   bool // damage what a server left that did not close
		damage func(t *testing.T, dir string)
		want   string
	}{
		{"a flipped bit in a catalog record", false, func(t *testing.T, dir string) {
			name := filepath.Join(dir, "catalog.db")
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			// Every copy of the record: older pages of the file hold some too.
			if err := os.WriteFile(name, []byte(strings.ReplaceAll(string(data), `"consistency"`, `"consisTency"`)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "catalog"},
		{"a catalog cut short", false, func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "catalog.db"), 5000); err != nil {
				t.Fatal(err)
			}
		}, "catalog"},
		{"a flipped bit in a journal header", false, func(t *testing.T, dir string) { flip(t, one(t, dir, "volumes/*/journal-0*"), 20) }, "journal-"},
		{"a flipped bit in a committed journal frame", true, func(t *testing.T, dir string) { flip(t, one(t, dir, "volumes/*/journal-0*"), 100) }, "journal-"},
		{"a missing journal segment", false, func(t *testing.T, dir string) { remove(t, one(t, dir, "volumes/*/journal-0*")) }, "journal"},
		{"a flipped bit in the record of where the journal begins", false, func(t *testing.T, dir string) { flip(t, one(t, dir, "volumes/*/journal-base"), 12) }, "journal-base"},
		{"a flipped bit in a table", false, func(t *testing.T, dir string) { flip(t, one(t, dir, "volumes/*/table-*"), -6) }, "table-"},
		{"a table cut short", false, func(t *testing.T, dir string) {
			if err := os.Truncate(one(t, dir, "volumes/*/table-*"), 10); err != nil {
				t.Fatal(err)
			}
		}, "table-"},
		{"a flipped bit in the table of a sealed image", false, func(t *testing.T, dir string) { flip(t, one(t, dir, "images/*.tab"), -6) }, ".tab"},
		{"a missing table of a sealed image", false, func(t *testing.T, dir string) { remove(t, one(t, dir, "images/*.tab")) }, "has lost its table"},
		{"a missing image", false, func(t *testing.T, dir string) { remove(t, one(t, dir, "images/*01.img")) }, "image 1 is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := damagedStore(t, !c.open)
			if r, err := store.Check(dir, nil, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
				t.Fatalf("before the damage: %v %v", r.Findings, err)
			}
			c.damage(t, dir)
			r, err := store.Check(dir, nil, store.CheckOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(r.Findings, "\n"), c.want) {
				t.Errorf("the findings are %q, want one that names %q", r.Findings, c.want)
			}
		})
	}
}

func TestCheckOfWhatIsNoDataDirectoryIsAnError(t *testing.T) {
	if _, err := store.Check(t.TempDir(), nil, store.CheckOptions{}); err == nil {
		t.Error("want an error")
	}
}

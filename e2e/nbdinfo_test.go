package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNbdinfoSeesThreeImages(t *testing.T) {
	s := newServer(t)
	s.create("16MiB", "db")
	s.tidemark("volume", "create", "jobs", "--size", "1MiB", "--scope", "session")
	qemuIO(t, s.uri("db"), "write -P 1 0 4M", "write -P 1 8M 1M")
	s.tidemark("preserve", "db", "--name", "first")
	qemuIO(t, s.uri("db"), "write -P 2 1M 64k", "discard 2M 1M", "write -P 2 9M 4k", "write -z 10M 64k", "write -z -u 11M 64k")
	s.tidemark("preserve", "db", "--name", "second")
	qemuIO(t, s.uri("db"), "write -P 3 1088k 64k", "write -P 3 2560k 512", "discard 8M 512k", "write -P 3 15M 1M")

	for name, args := range map[string][]string{
		"info":         {"--no-content", s.uri("db")},
		"info-second":  {"--no-content", s.uri("db@second")},
		"info-session": {"--no-content", s.uri("db:session")},
		"list":         {"--list", "--no-content", s.uri("")},
		"map":          {"--map", s.uri("db")},
		"map-first":    {"--map", s.uri("db@first")},
		"map-second":   {"--map", s.uri("db@second")},
		"totals":       {"--map", "--totals", s.uri("db")},
		"depth":        {"--map=qemu:allocation-depth", s.uri("db")},
		"depth-first":  {"--map=qemu:allocation-depth", s.uri("db@first")},
		"depth-second": {"--map=qemu:allocation-depth", s.uri("db@second")},
		"dirty-second": {"--map=qemu:dirty-bitmap:first", s.uri("db@second")},
	} {
		t.Run(name, func(t *testing.T) { golden(t, "nbdinfo-"+name, s.normal(run(t, "nbdinfo", args...))) })
	}
}

// normal takes out of a client's output what differs from run to run.
func (s *server) normal(text string) string {
	return strings.ReplaceAll(text, s.path("nbd.sock"), "SOCKET")
}

// golden compares with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(readFile(t, path)); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", path, got, want)
	}
}

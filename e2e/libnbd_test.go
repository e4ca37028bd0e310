package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestLibnbd runs each case of the Python scripts against a server of its own,
// built with the race detector. It must end in order afterwards, and every view
// must be at the next start as it was: what is read before comes by the index
// in memory, what is read after it from the tables on disk.
func TestLibnbd(t *testing.T) {
	if r := attempt(t, "python3", "-c", "import nbd"); r.code != 0 {
		t.Fatalf("libnbd for Python is not installed (python3-libnbd): run ci/install.sh\n%s", r.stderr)
	}
	for script, c := range map[string]struct {
		python string
		size   string
		names  []string
	}{
		"scopes.py":   {"python3", "4MiB", []string{"db", "wal"}},
		"protocol.py": {"python3", "64MiB", []string{"db"}},
		"extended.py": {newer(t, "python3"), "1TiB", []string{"db"}},
	} {
		cases := strings.Fields(run(t, c.python, "-B", script))
		if len(cases) == 0 {
			t.Errorf("%s has no cases", script)
		}
		for _, name := range cases {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newRaceServer(t)
				s.create(c.size, c.names...)
				cmd := command(t, c.python, "-B", script, name)
				cmd.Env = append(os.Environ(), "TIDEMARK_SOCKET="+s.path("nbd.sock"), "TIDEMARK_API="+s.api())
				if r := finish(t, cmd); r.code != 0 {
					t.Errorf("%s", r.stderr)
				}
				before := s.sums()
				s.stop()
				s.check()
				s.start()
				if after := s.sums(); !maps.Equal(after, before) {
					t.Errorf("the views are not what they were before the restart: %x, %x", after, before)
				}
				s.stop()
			})
		}
	}
}

var listed = regexp.MustCompile(`export="(.*)":`)

// sums has a checksum of every view that the server lists.
func (s *server) sums() map[string][32]byte {
	s.t.Helper()
	sums := map[string][32]byte{}
	for _, m := range listed.FindAllStringSubmatch(run(s.t, "nbdinfo", "--list", "--no-content", s.uri("")), -1) {
		sums[m[1]] = s.sum(m[1])
	}
	if len(sums) == 0 {
		s.t.Error("the server lists no export")
	}
	return sums
}

// sum is a checksum of a view: of the offset, length and bytes of each extent
// that the server does not say reads zeros.
func (s *server) sum(export string) (sum [32]byte) {
	s.t.Helper()
	c := s.dial(export)
	defer func() { _ = c.Close() }() // only read
	extents, err := c.BlockStatus(0, c.SizeBytes())
	if err != nil {
		s.t.Fatal(err)
	}
	h := sha256.New()
	var off int64
	for _, e := range extents {
		if !e.Zero {
			_, _ = fmt.Fprintln(h, off, e.Length)
			if _, err := io.Copy(h, io.NewSectionReader(c, off, e.Length)); err != nil {
				s.t.Fatal(err)
			}
		}
		off += e.Length
	}
	h.Sum(sum[:0])
	return sum
}

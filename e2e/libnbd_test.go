package e2e

import (
	"os"
	"strings"
	"testing"
)

// TestLibnbd runs each case of the Python scripts against a server of its own,
// built with the race detector, which must end in order afterwards.
func TestLibnbd(t *testing.T) {
	if r := attempt(t, "python3", "-c", "import nbd"); r.code != 0 {
		t.Fatalf("libnbd for Python is not installed (python3-libnbd): run ci/install.sh\n%s", r.stderr)
	}
	for _, script := range []string{"scopes.py", "protocol.py"} {
		cases := strings.Fields(run(t, "python3", "-B", script))
		if len(cases) == 0 {
			t.Errorf("%s has no cases", script)
		}
		for _, name := range cases {
			t.Run(name, func(t *testing.T) {
				s := newRaceServer(t)
				s.create("64MiB", "db")
				if script == "scopes.py" {
					s.create("64MiB", "wal")
				}
				cmd := command(t, "python3", "-B", script, name)
				cmd.Env = append(os.Environ(), "TIDEMARK_SOCKET="+s.path("nbd.sock"), "TIDEMARK_API="+s.api())
				if r := finish(t, cmd); r.code != 0 {
					t.Errorf("%s", r.stderr)
				}
				s.stop()
				s.check()
			})
		}
	}
}

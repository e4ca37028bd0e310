package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var (
	rounds = flag.Int("e2e.rounds", 6, "how often the kill tests kill the server, and how many preserves others make by command")
	update = flag.Bool("e2e.update", false, "write the golden files anew")
)

// built is the directory of the programs under test, for the whole run.
var built string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	var err error
	if built, err = os.MkdirTemp("", "tidemark-e2e"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(built) }()
	if err := build("tidemark", "0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// The distribution's Python has the distribution's libnbd; mkfs.ext4 and
	// its kin are not on everybody's path. run -- CMD and the scripts find
	// tidemark there too.
	path := strings.Join([]string{built, "/usr/bin", "/usr/sbin", "/sbin", os.Getenv("PATH")}, ":")
	for name, value := range map[string]string{
		"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "TIDEMARK_API": "",
		"GORACE": "atexit_sleep_ms=0", // else a program with the race detector sleeps a second before it exits
	} {
		if err := os.Setenv(name, value); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// build builds the program under a name; with CGO it has the race detector.
func build(name, cgo string) error {
	args := []string{"build", "-o", filepath.Join(built, name)}
	if cgo == "1" {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "../cmd/tidemark")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return nil
}

// raceProgram is the program with the race detector, which makes the server
// exit with 66 if it finds anything.
var raceProgram = sync.OnceValues(func() (string, error) {
	return filepath.Join(built, "tidemark-race"), build("tidemark-race", "1")
})

// A result is how a program ended.
type result struct {
	code           int
	stdout, stderr string
}

// attempt runs a program to its end, whatever that is.
func attempt(t *testing.T, name string, args ...string) result {
	t.Helper()
	return finish(t, command(t, name, args...))
}

// command is a program that is not yet run. What the test's clean-up needs must
// not end with the test's context, so none does.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is not installed: run ci/install.sh (%v)", name, err)
	}
	return exec.Command(name, args...)
}

// newer is a client of a newer distribution, which ci/clients.sh has put beside
// that of the machine.
func newer(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join("/opt/tidemark-clients/bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not installed: run ci/clients.sh (%v)", name, err)
	}
	return path
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// run runs a program that must succeed and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := attempt(t, name, args...)
	if r.code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// decode reads JSON that a program printed.
func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

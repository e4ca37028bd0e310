package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/nbd/client"
)

// A server is a running tidemark serve over a directory of its own. Its methods
// but start, stop and kill may run at the same time.
type server struct {
	t       *testing.T
	program string
	flags   []string // of serve, besides the addresses
	dir     string   // short: the path of a unix socket has little room
	cmd     *exec.Cmd
	mu      sync.Mutex
	log     bytes.Buffer
	read    sync.WaitGroup
}

// newServer starts a server, which the end of the test kills if it still runs.
func newServer(t *testing.T) *server {
	t.Helper()
	return newServerOf(t, filepath.Join(built, "tidemark"))
}

// newServerWith is newServer with more flags.
func newServerWith(t *testing.T, flags ...string) *server {
	t.Helper()
	return newServerOf(t, filepath.Join(built, "tidemark"), flags...)
}

// newRaceServer is newServer with the race detector in the server.
func newRaceServer(t *testing.T) *server {
	t.Helper()
	program, err := raceProgram()
	if err != nil {
		t.Fatal(err)
	}
	return newServerOf(t, program)
}

func newServerOf(t *testing.T, program string, flags ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "tm")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, program: program, flags: flags, dir: dir}
	t.Cleanup(func() {
		_ = s.end(syscall.SIGKILL) // what matters was asserted by stop
		if t.Failed() {
			t.Logf("the server said:\n%s", s.said())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s.start()
	return s
}

// start starts the server and waits until it says that it serves.
func (s *server) start() {
	s.t.Helper()
	args := []string{"serve", "--data", s.path("data"), "--nbd", "unix:" + s.path("nbd.sock"), "--nbd", "127.0.0.1:0", "--api", s.api()}
	s.cmd = exec.Command(s.program, append(args, s.flags...)...)
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ready := make(chan bool, 1)
	s.read.Go(func() {
		told := false
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			s.mu.Lock()
			fmt.Fprintln(&s.log, lines.Text())
			s.mu.Unlock()
			if !told && strings.HasPrefix(lines.Text(), "tidemark: serving ") {
				told = true
				ready <- true
			}
		}
		if !told {
			ready <- false
		}
	})
	if !<-ready {
		_ = s.end(syscall.SIGKILL)
		s.t.Fatalf("the server did not start:\n%s", s.said())
	}
}

func (s *server) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// stop ends the server in order: it must exit with 0.
func (s *server) stop() {
	s.t.Helper()
	if err := s.end(syscall.SIGTERM); err != nil {
		s.t.Fatalf("the server ended with %v:\n%s", err, s.said())
	}
}

// kill ends the server as a crash would.
func (s *server) kill() { _ = s.end(syscall.SIGKILL) }

// end signals the server and waits for its end.
func (s *server) end(signal os.Signal) error {
	if s.cmd.ProcessState != nil {
		return nil
	}
	if err := s.cmd.Process.Signal(signal); err != nil {
		return err
	}
	s.read.Wait()
	return s.cmd.Wait()
}

// check looks at the data directory of a server that does not run.
func (s *server) check() {
	s.t.Helper()
	if r := attempt(s.t, "tidemark", "check", "--data", s.path("data")); r.code != 0 {
		s.t.Fatalf("tidemark check: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }
func (s *server) api() string             { return "unix:" + s.path("api.sock") }

// uri is the NBD URI of an export.
func (s *server) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + s.path("nbd.sock")
}

var tcpAddr = regexp.MustCompile(`127\.0\.0\.1:[0-9]+`)

// tcp is the NBD URI of an export over TCP.
func (s *server) tcp(export string) string {
	return "nbd://" + tcpAddr.FindString(s.said()) + "/" + export
}

// client is a client of the server's API.
func (s *server) client() api.Client {
	s.t.Helper()
	addr, err := api.ParseAddr(s.api())
	if err != nil {
		s.t.Fatal(err)
	}
	return api.NewClient(addr, api.Credentials{})
}

// tidemark runs a command against the server; it must succeed.
func (s *server) tidemark(args ...string) string {
	s.t.Helper()
	return run(s.t, "tidemark", append([]string{"--api", s.api()}, args...)...)
}

// try runs a command against the server, whatever its end.
func (s *server) try(args ...string) result {
	s.t.Helper()
	return attempt(s.t, "tidemark", append([]string{"--api", s.api()}, args...)...)
}

// create creates volumes of one size.
func (s *server) create(size string, names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.tidemark("volume", "create", name, "--size", size)
	}
}

// snapshot is what snapshot show and preserve say of a snapshot in JSON.
type snapshot struct {
	Volume        string   `json:"volume"`
	Snapshot      string   `json:"snapshot"`
	State         string   `json:"state"`
	Consistency   string   `json:"consistency"`
	Conflicts     int      `json:"conflicts"`
	TornProcesses []string `json:"tornProcesses"`
}

func (s *server) show(name string) snapshot {
	s.t.Helper()
	return decode[snapshot](s.t, s.tidemark("snapshot", "show", name, "--json"))
}

// dial opens an export until the end of the test.
func (s *server) dial(export string) *client.Client {
	s.t.Helper()
	c, err := client.Dial(s.t.Context(), s.uri(export))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Abort() })
	return c
}

// content reads a whole export.
func (s *server) content(export string) []byte {
	s.t.Helper()
	c := s.dial(export)
	defer func() { _ = c.Close() }() // only read
	all := make([]byte, c.SizeBytes())
	if _, err := c.ReadAt(all, 0); err != nil {
		s.t.Fatal(err)
	}
	return all
}

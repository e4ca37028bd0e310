package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd/client"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"tidemark": func() { os.Exit(Main()) },
	})
}

// TestScripts runs testdata/script: the real program against real servers. The servers
// are this test's program, and have the race detector if it has; commands are built
// without, since with it each takes a quarter of a second to start. The scripts have
// these commands beside testscript's own:
//
//	start NAME CMD...        run a server until it says that it serves; NAME.pid has its id,
//	                         $NBD and $API what it serves on (NBD: the last)
//	shutdown NAME            SIGTERM; its log is NAME.log then, and it must exit with 0
//	sigkill NAME             SIGKILL
//	ok LINE CMD...           exit code 0, and LINE is all that it prints
//	fails CODE LINE CMD...   that exit code, nothing on stdout, and LINE on stderr
//	exits CODE CMD...        that exit code; stdout and stderr may be looked at
//	connect NAME URI         open an NBD connection, and leave it open
//	usable NAME BYTES        the connection sees that size, and may use it all
//	disconnect NAME          close it
//	gone NAME                the server has closed it
//	image FILE RANGE...      a sparse file; RANGE is data OFF LEN, or end LEN
//	blocks FILE MAX          the file takes at most MAX KiB on the disk
//	authority NAME           make NAME.pem, the certificate of an authority
//	issue AUTHORITY NAME     make NAME.pem and NAME.key, a certificate that it signed
//	hangup NAME LINE         SIGHUP, and wait until the server logs LINE
func TestScripts(t *testing.T) {
	commands := t.TempDir()
	build := exec.Command("go", "build", "-o", commands, "../cmd/tidemark")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	own := map[string]func(*testscript.TestScript, bool, []string){
		"start":      startServer,
		"shutdown":   stopServer,
		"sigkill":    killServer,
		"ok":         ok,
		"fails":      fails,
		"exits":      exitsWith,
		"connect":    connectClient,
		"usable":     usable,
		"disconnect": disconnect,
		"gone":       gone,
		"image":      makeImage,
		"blocks":     blocks,
		"authority":  makeAuthority(t),
		"issue":      issue,
		"hangup":     hangup,
	}
	// testscript's own would go before them: its stop ends a script there, as passed.
	for _, name := range []string{"cd", "chmod", "cmp", "cmpenv", "cp", "env", "exec", "exists", "grep", "kill", "mkdir", "mv", "rm", "skip", "stderr", "stdin", "stdout", "stop", "symlink", "unquote", "wait"} {
		if own[name] != nil {
			t.Fatalf("the command %s is testscript's own", name)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Values[servers{}] = map[string]*server{}
			env.Values[clients{}] = map[string]*client.Client{}
			env.Values[authorities{}] = map[string]*certtest.Authority{}
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TIDEMARK_API", "")
			env.Setenv("TZ", "UTC")
			env.Setenv("SERVERS", strings.Split(env.Getenv("PATH"), ":")[0])
			env.Setenv("PATH", commands+":"+env.Getenv("PATH"))
			return nil
		},
		Cmds: own,
	})
}

// servers is the key of the running servers of a script.
type servers struct{}

// server is a running process and what it has said so far.
type server struct {
	cmd   *exec.Cmd
	log   bytes.Buffer
	read  sync.WaitGroup
	lines chan string // what it logs, from its start on; closed at its end
}

func startServer(ts *testscript.TestScript, _ bool, args []string) {
	s := &server{cmd: exec.Command(args[1], args[2:]...), lines: make(chan string, 1000)}
	s.cmd.Dir = ts.MkAbs(".")
	s.cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "TZ=UTC", "NOTIFY_SOCKET="+ts.Getenv("NOTIFY_SOCKET"))
	path, err := exec.LookPath(filepath.Join(ts.Getenv("SERVERS"), args[1]))
	if err == nil {
		s.cmd.Path, s.cmd.Err = path, nil
	}
	stderr, err := s.cmd.StderrPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pid"), fmt.Append(nil, s.cmd.Process.Pid), 0o600))
	ts.Defer(func() { _ = s.end(syscall.SIGKILL) })
	ts.Value(servers{}).(map[string]*server)[args[0]] = s
	s.read.Go(func() {
		defer close(s.lines)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&s.log, lines.Text())
			select {
			case s.lines <- lines.Text():
			default: // more than any script waits for
			}
		}
	})
	ready := s.await("serving")
	if ready == "" {
		_ = s.end(syscall.SIGKILL)
		ts.Fatalf("%s did not start: %s", args[0], s.log.String())
	}
	if at := regexp.MustCompile(`on NBD (?:.*, )?(\S+), API (\S+)$`).FindStringSubmatch(ready); at != nil {
		ts.Setenv("NBD", at[1])
		ts.Setenv("API", at[2])
	}
}

// await returns the next line of the log that has the text, empty if none comes.
func (s *server) await(text string) string {
	for line := range s.lines {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

func hangup(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(servers{}).(map[string]*server)[args[0]]
	ts.Check(s.cmd.Process.Signal(syscall.SIGHUP))
	if s.await(args[1]) == "" {
		ts.Fatalf("%s does not say %q: %s", args[0], args[1], s.log.String())
	}
}

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

func stopServer(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(servers{}).(map[string]*server)[args[0]]
	err := s.end(syscall.SIGTERM)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".log"), s.log.Bytes(), 0o600))
	if err != nil {
		ts.Fatalf("%s: %v: %s", args[0], err, s.log.String())
	}
}

func killServer(ts *testscript.TestScript, _ bool, args []string) {
	_ = ts.Value(servers{}).(map[string]*server)[args[0]].end(syscall.SIGKILL)
}

func ok(ts *testscript.TestScript, _ bool, args []string) {
	result(ts, 0, args[1:])
	same(ts, "stdout", ts.ReadFile("stdout"), args[0])
	same(ts, "stderr", ts.ReadFile("stderr"), "")
}

func fails(ts *testscript.TestScript, _ bool, args []string) {
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	result(ts, code, args[2:])
	same(ts, "stdout", ts.ReadFile("stdout"), "")
	same(ts, "stderr", ts.ReadFile("stderr"), args[1])
}

func exitsWith(ts *testscript.TestScript, _ bool, args []string) {
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	result(ts, code, args[1:])
}

// result runs a command that must end with a code.
func result(ts *testscript.TestScript, want int, args []string) {
	var exit *exec.ExitError
	got := 0
	if err := ts.Exec(args[0], args[1:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("%s: exit code %d, want %d", strings.Join(args, " "), got, want)
	}
}

func same(ts *testscript.TestScript, what, got, want string) {
	if want != "" {
		want += "\n"
	}
	if got != want {
		ts.Fatalf("%s:\n%swant:\n%s", what, got, want)
	}
}

// clients is the key of the open connections of a script.
type clients struct{}

func connectClient(ts *testscript.TestScript, _ bool, args []string) {
	c, err := client.Dial(context.Background(), args[1])
	ts.Check(err)
	ts.Defer(func() { _ = c.Abort() })
	ts.Value(clients{}).(map[string]*client.Client)[args[0]] = c
}

func usable(ts *testscript.TestScript, _ bool, args []string) {
	c := ts.Value(clients{}).(map[string]*client.Client)[args[0]]
	sizeBytes, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	if c.SizeBytes() != sizeBytes {
		ts.Fatalf("size %d, want %d", c.SizeBytes(), sizeBytes)
	}
	last := sizeBytes - 4096
	wrote, read := bytes.Repeat([]byte{7}, 4096), make([]byte, 4096)
	for _, off := range []int64{0, last} {
		_, err := c.WriteAt(wrote, off)
		ts.Check(err)
		ts.Check(c.Flush())
		_, err = c.ReadAt(read, off)
		ts.Check(err)
		if !bytes.Equal(read, wrote) {
			ts.Fatalf("other bytes at %d", off)
		}
	}
	ts.Check(c.WriteZeroes(last, 4096, true))
	ts.Check(c.Trim(0, 4096))
	_, err = c.BlockStatus(0, min(sizeBytes, 1<<30))
	ts.Check(err)
}

func disconnect(ts *testscript.TestScript, _ bool, args []string) {
	// The server may be faster: then there is nothing left to close.
	_ = ts.Value(clients{}).(map[string]*client.Client)[args[0]].Close()
}

func gone(ts *testscript.TestScript, _ bool, args []string) {
	c := ts.Value(clients{}).(map[string]*client.Client)[args[0]]
	if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, client.ErrClosed) {
		ts.Fatalf("a read of %s: %v, want a connection that is closed", args[0], err)
	}
}

func makeImage(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer func() { ts.Check(f.Close()) }()
	for args = args[1:]; len(args) > 0; {
		switch args[0] {
		case "data":
			off, err := parseSize(args[1])
			if args[1] == "0" {
				off, err = 0, nil
			}
			ts.Check(err)
			n, err := parseSize(args[2])
			ts.Check(err)
			_, err = io.Copy(io.NewOffsetWriter(f, off), io.LimitReader(rand.NewChaCha8([32]byte{1}), n))
			ts.Check(err)
			args = args[3:]
		case "end":
			n, err := parseSize(args[1])
			ts.Check(err)
			ts.Check(f.Truncate(n))
			args = args[2:]
		default:
			ts.Fatalf("image: %s", args[0])
		}
	}
}

func blocks(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	limit, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	if got := info.Sys().(*syscall.Stat_t).Blocks / 2; got > limit {
		ts.Fatalf("%s takes %d KiB, more than %d", args[0], got, limit)
	}
}

// authorities is the key of the authorities of a script.
type authorities struct{}

// makeAuthority returns the command; t is of all scripts, and fails only if no key
// can be made.
func makeAuthority(t *testing.T) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		a := certtest.New(t)
		a.WriteOwn(ts.MkAbs(args[0] + ".pem"))
		ts.Value(authorities{}).(map[string]*certtest.Authority)[args[0]] = a
	}
}

func issue(ts *testscript.TestScript, _ bool, args []string) {
	a := ts.Value(authorities{}).(map[string]*certtest.Authority)[args[0]]
	a.Write(a.Issue(nil, args[1], "localhost"), ts.MkAbs(args[1]+".pem"), ts.MkAbs(args[1]+".key"))
}

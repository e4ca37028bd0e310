package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/store"
)

// withProgram is a directory of one program, check, which is a script.
func withProgram(t *testing.T, script string) *programs {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "drills")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	addProgram(t, dir, "check", script, 0o755)
	p, err := openPrograms(dir, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := api.ParseAddr("unix:/run/nbd.sock")
	if err != nil {
		t.Fatal(err)
	}
	p.serveAt(addr, false)
	return p
}

func addProgram(t *testing.T, dir, name, script string, mode os.FileMode) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := errors.Join(os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o600), os.Chmod(file, mode)); err != nil {
		t.Fatal(err)
	}
}

func runCheck(t *testing.T, p *programs) store.Drill {
	t.Helper()
	d, err := p.Drill(t.Context(), "check", "db@a", "db-drill-abc")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAProgramFindsTheCloneAndLittleElse(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/notify")
	t.Setenv("LANG", "C.UTF-8")
	d := runCheck(t, withProgram(t, "env; pwd; readlink /proc/self/fd/0; echo to stderr >&2; exit 7"))
	for _, line := range []string{
		"TIDEMARK_URI=nbd+unix:///db-drill-abc?socket=/run/nbd.sock", "TIDEMARK_VOLUME=db-drill-abc", "TIDEMARK_SNAPSHOT=db@a",
		"LANG=C.UTF-8", "PATH=" + os.Getenv("PATH"), "/", "/dev/null", "to stderr",
	} {
		if !strings.Contains("\n"+d.Output, "\n"+line+"\n") {
			t.Errorf("no %q in\n%s", line, d.Output)
		}
	}
	if strings.Contains(d.Output, "NOTIFY_SOCKET") || d.ExitCode != 7 || d.Command != "check" {
		t.Errorf("%+v", d)
	}
}

func TestTheLastThatAProgramPrintsIsKept(t *testing.T) {
	d := runCheck(t, withProgram(t, "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo the end"))
	if len(d.Output) != drillOutputBytes || !strings.HasSuffix(d.Output, "xx\nthe end\n") || d.ExitCode != 0 {
		t.Errorf("%d bytes of output, exit code %d", len(d.Output), d.ExitCode)
	}
}

func TestAProgramThatTakesTooLongHasFailed(t *testing.T) {
	p := withProgram(t, "trap '' TERM\necho begun\nwhile :; do sleep 0.01; done")
	p.timeout, p.grace = 50*time.Millisecond, 50*time.Millisecond
	if d := runCheck(t, p); d.ExitCode != 124 || !strings.HasSuffix(d.Output, "\ntidemark: ended by force after 50ms (serve --drill-timeout)\n") {
		t.Errorf("%+v", d)
	}
}

func TestAProgramThatASignalEndedHasFailed(t *testing.T) {
	if d := runCheck(t, withProgram(t, "kill -KILL $$")); d.ExitCode != 128+9 {
		t.Errorf("%+v", d)
	}
}

// A pipe ends when nobody has it open any more.
func TestNothingIsLeftOfAProgram(t *testing.T) {
	const all = "trap '' TERM\nexec 3>\"$HOME/pipe\"\nsleep 1000 &\n(trap '' TERM; sleep 1000) &\necho here >&3\n"
	for what, c := range map[string]struct {
		script string
		cancel bool
		want   error
	}{
		"it has ended":     {all + "exit 0", false, nil},
		"it is to be gone": {all + "while :; do wait; done", true, context.Canceled},
	} {
		t.Run(what, func(t *testing.T) {
			t.Setenv("HOME", t.TempDir())
			name := filepath.Join(os.Getenv("HOME"), "pipe")
			if err := unix.Mkfifo(name, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			gone := make(chan error, 1)
			go func() {
				pipe, err := os.Open(name)
				if err == nil {
					_, err = pipe.Read(make([]byte, 100))
				}
				if c.cancel {
					cancel()
				}
				if err == nil {
					_, err = io.ReadAll(pipe)
				}
				gone <- err
			}()
			p := withProgram(t, c.script)
			p.grace = time.Millisecond
			if d, err := p.Drill(ctx, "check", "db@a", "c"); !errors.Is(err, c.want) || d.ExitCode != 0 {
				t.Errorf("%+v, %v", d, err)
			}
			if err := <-gone; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatIsNoProgramIsNoResult(t *testing.T) {
	p := withProgram(t, "")
	if err := os.WriteFile(filepath.Join(p.dir, "data"), []byte("\x00\x01\x02"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(p.dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if d, err := p.Drill(t.Context(), "data", "db@a", "c"); err == nil || d != (store.Drill{}) {
		t.Errorf("%+v, %v", d, err)
	}
	p.served = make(chan struct{}) // the server is not that far
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := p.Drill(ctx, "check", "db@a", "c"); !errors.Is(err, context.Canceled) || d != (store.Drill{}) {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestWhatOthersMayChangeIsNotRun(t *testing.T) {
	p := withProgram(t, "")
	in := func(name string) string { return filepath.Join(p.dir, name) }
	for name, mode := range map[string]os.FileMode{"of-group": 0o775, "of-all": 0o757, "no-program": 0o644} {
		addProgram(t, p.dir, name, "", mode)
	}
	if err := errors.Join(os.Symlink(in("check"), in("link")), os.Mkdir(in("directory"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		addProgram(t, p.dir, "of-another", "", 0o755)
		if err := os.Chown(in("of-another"), 12345, 0); err != nil {
			t.Fatal(err)
		}
	}
	const only = "the server has no such program; it has check"
	for name, say := range map[string]string{
		"of-group": "it has mode 0775", "of-all": "it has mode 0757", "no-program": "not executable", "link": "no regular file",
		"directory": "no regular file", "none": only, "of-another": "it belongs to user 12345",
	} {
		if name == "of-another" && os.Geteuid() != 0 {
			say = only // nobody else can make one
		}
		if err := p.Check(name); !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v, want one that says %q", name, err, say)
		}
		if d, err := p.Drill(t.Context(), name, "db@a", "c"); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: it ran: %+v", name, d)
		}
	}
	if err := p.Check("check"); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(p.dir, 0o777); err != nil { // later
		t.Fatal(err)
	}
	if err := p.Check("check"); !errors.Is(err, store.ErrInvalid) || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("of a directory that all may write to: %v", err)
	}
	for _, dir := range []string{p.dir, in("none"), in("check")} {
		if _, err := openPrograms(dir, time.Hour); err == nil {
			t.Errorf("%s is taken", dir)
		}
	}
}

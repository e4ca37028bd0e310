package cli

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a command to run.
type child struct {
	command        []string
	environment    []string // all of it
	stdin          io.Reader
	stdout, stderr io.Writer
	dir            string // where it works; empty: where this program does
	// alone: it has a process group of its own, which signals go to, and of which
	// nothing is left when the command itself has exited, or this program has.
	alone bool

	signaled bool // a signal was handed on to it
}

// pipeGrace is how long what a command has left running may hold its output open
// where that goes through this program.
const pipeGrace = 2 * time.Second

// execute runs a command to its end and hands signals on to it. failure says
// why it could not be started.
func execute(c *child, signals <-chan os.Signal) (code int, failure error) {
	cmd := exec.Command(c.command[0], c.command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = c.stdin, c.stdout, c.stderr, c.environment, c.dir
	cmd.WaitDelay = pipeGrace
	if c.alone {
		// The kernel's own word for "this program" is the thread that starts it, so
		// that has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return 127, err
		}
		return 126, err
	}
	exited := make(chan struct{})
	handed := make(chan struct{})
	go func() {
		defer close(handed)
		for {
			select {
			case s := <-signals:
				c.signaled = true
				c.signal(cmd.Process, s)
			case <-exited:
				return
			}
		}
	}()
	awaitExit(cmd.Process.Pid)
	close(exited)
	<-handed
	if c.alone {
		c.signal(cmd.Process, syscall.SIGKILL)
	}
	err := cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return exitFailed, err
}

// awaitExit returns when a child has exited, and leaves it to be waited for: until
// then nothing else has its number, or that of its group.
func awaitExit(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// signal sends a signal to what was started; it may have exited meanwhile.
func (c *child) signal(p *os.Process, s os.Signal) {
	if number, is := s.(syscall.Signal); is && c.alone {
		_ = syscall.Kill(-p.Pid, number)
		return
	}
	_ = p.Signal(s)
}

// lastBytes keeps the last of what is written to it, from any goroutine.
type lastBytes struct {
	most int

	mu   sync.Mutex
	kept []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, p[max(0, len(p)-l.most):]...)
	if over := len(l.kept) - l.most; over > 0 {
		l.kept = append(l.kept[:0], l.kept[over:]...)
	}
	return len(p), nil
}

func (l *lastBytes) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.kept)
}

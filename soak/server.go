package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/nbd/client"
)

// server is a tidemark process after the other over one data directory.
type server struct {
	program, dir string

	mu      sync.Mutex
	cmd     *exec.Cmd
	lives   int // this is the last of them
	started time.Time
	api     api.Client
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *server) start(ctx context.Context) error {
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own
	addr, err := api.UnixAddr(s.path("api.sock"))
	if err != nil {
		return err
	}
	if err := s.writeDrill(); err != nil {
		return err
	}
	cmd := exec.Command(s.program, "serve", "--data", s.path("data"), "--drills", s.path("drills"), "--nbd", "unix:"+s.path("nbd.sock"), "--api", addr.String(),
		"--checksum-cache", "8MiB", "--index-memory", "1MiB", "--reclaim-every", "20s", "--fold-above", "6", "--scrub-every", "2m", "--scrub-rate", "64MiB", "--shutdown-timeout", "60s")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	s.cmd, s.started, s.api = cmd, time.Now(), api.NewClient(addr, api.Credentials{})
	s.lives++
	s.mu.Unlock()
	for range 600 { // a minute: recovery may have much to do
		if _, err = s.client().GetServerInfo(ctx, &tidemarkv1.GetServerInfoRequest{}); err == nil || ctx.Err() != nil {
			return nil
		}
		pause(ctx, 100*time.Millisecond)
	}
	return fmt.Errorf("the server did not start; see %s: %w", log.Name(), err)
}

// drillProgram is the program that drills of schedules run.
const drillProgram = "look"

func (s *server) writeDrill() error {
	const text = "#!/bin/sh\ntest -n \"$TIDEMARK_URI\" && test -n \"$TIDEMARK_SNAPSHOT\"\n"
	err := os.MkdirAll(s.path("drills"), 0o700)
	return errors.Join(err, os.WriteFile(filepath.Join(s.path("drills"), drillProgram), []byte(text), 0o700))
}

func (s *server) client() api.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.api
}

// life numbers the present server, from 1.
func (s *server) life() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lives
}

// process returns the present server's process ID, and when it was started.
func (s *server) process() (pid int, started time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid, s.started
}

func (s *server) end(signal os.Signal) error {
	s.mu.Lock()
	cmd := s.cmd
	s.mu.Unlock()
	if err := cmd.Process.Signal(signal); err != nil {
		return err
	}
	return cmd.Wait()
}

func (s *server) stop() error {
	if err := s.end(syscall.SIGTERM); err != nil {
		return fmt.Errorf("the server ended with %w; see %s", err, s.path("log"))
	}
	return nil
}

func (s *server) kill() error {
	if err := s.end(syscall.SIGKILL); err != nil && !isExit(err) {
		return err
	}
	return nil
}

func isExit(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit)
}

// check is tidemark check: it must find nothing.
func (s *server) check() error {
	if out, err := exec.Command(s.program, "check", "--data", s.path("data")).CombinedOutput(); err != nil {
		return fmt.Errorf("tidemark check: %w\n%s", err, out)
	}
	return nil
}

// endAndStart stops or kills the server now and then, looks at what it left, and
// starts it again.
func (s *server) endAndStart(ctx context.Context, during time.Duration, done *counts) error {
	for end := time.Now().Add(during); ; {
		pause(ctx, 20*time.Second+rand.N(40*time.Second))
		if ctx.Err() != nil || time.Now().After(end) {
			return nil
		}
		var err error
		if rand.N(2) == 0 {
			err = s.stop()
			done.stops.Add(1)
		} else {
			err = s.kill()
			done.kills.Add(1)
		}
		if err == nil && rand.N(2) == 0 {
			err = s.check()
		}
		if err == nil {
			err = s.start(context.WithoutCancel(ctx))
		}
		if err != nil {
			return err
		}
	}
}

// open connects to an export as soon as the server is there.
func (s *server) open(ctx context.Context, export string) (*client.Client, error) {
	for {
		c, err := client.DialExport(ctx, "unix", s.path("nbd.sock"), export)
		var refused *client.RefusedError
		ending := strings.Contains(fmt.Sprint(err), nbd.ErrShutdown.Error())
		if err == nil || errors.As(err, &refused) && !ending || ctx.Err() != nil {
			return c, err
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// call repeats a command until a server answers it. One that met the end of a
// server may have been carried out: done tells such answers from failures.
func (s *server) call(ctx context.Context, command func(context.Context, api.Client) error, done func(error) bool) error {
	for again := false; ; again = true {
		err := command(ctx, s.client())
		if err == nil || over(ctx, err) || again && done(err) {
			return nil
		}
		if !gone(err) {
			return err
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// unless returns the error of a call, unless its time was over, the server ended, or
// it has one of these reasons.
func unless(ctx context.Context, err error, reasons ...tidemarkv1.Reason) error {
	if err == nil || over(ctx, err) || gone(err) || slices.Contains(reasons, reason(err)) {
		return nil
	}
	return err
}

// over tells whether a call failed because its time was over, which the server may
// see a moment before this side does.
func over(ctx context.Context, err error) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && connect.CodeOf(err) == connect.CodeDeadlineExceeded && time.Until(deadline) < time.Second
}

// gone tells whether a call failed because the server ended, or had not begun:
// then nobody said why.
func gone(err error) bool {
	var said *connect.Error
	return !errors.As(err, &said) || len(said.Details()) == 0 || reason(err) == tidemarkv1.Reason_REASON_CLOSED
}

func reason(err error) tidemarkv1.Reason { return api.Detail(err).GetReason() }

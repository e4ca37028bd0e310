package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process is a server that this program started, and that it alone ends.
type process struct {
	pid     int
	command string
	log     string
	ended   chan struct{} // nil for one that is not our child
	stopped bool          // its ID may be another's by now
}

// start runs a server until stop, and returns when it answers at an address.
func (b *bench) start(ctx context.Context, dir, network, addr, program string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the process has its own
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C ends this program, which ends the servers
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{
		pid: cmd.Process.Pid, command: b.commandText(dir, program, args), log: log.Name(), ended: make(chan struct{}),
	}
	go func() { _ = cmd.Wait(); close(p.ended) }() // why it ended stands in its log
	b.processes = append(b.processes, p)
	return p, p.await(ctx, network, addr)
}

// startDaemon runs a server that goes into the background by itself and leaves its
// process ID in a file.
func (b *bench) startDaemon(ctx context.Context, dir, pidFile, network, addr, program string, args ...string) (*process, error) {
	if _, err := output(ctx, program, args...); err != nil {
		return nil, err
	}
	p := &process{command: b.commandText(dir, program, args), log: filepath.Join(dir, "log")}
	for p.pid == 0 {
		text, _ := os.ReadFile(pidFile)
		p.pid, _ = strconv.Atoi(strings.TrimSpace(string(text))) // zero until it is written
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return nil, err
		}
	}
	b.processes = append(b.processes, p)
	return p, p.await(ctx, network, addr)
}

// await returns when somebody accepts connections at an address.
func (p *process) await(ctx context.Context, network, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute) // to open a directory that is very full
	defer cancel()
	for {
		var d net.Dialer
		nc, err := d.DialContext(ctx, network, addr)
		if err == nil {
			return nc.Close()
		}
		select {
		case <-p.ended:
			text, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended: %s", p.command, bytes.TrimSpace(text))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", p.command, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stop ends it, the hard way if it takes too long.
func (p *process) stop() error {
	if p.stopped || !p.runs() {
		return nil
	}
	p.stopped = true
	if err := syscall.Kill(p.pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("end %s: %w", p.command, err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !p.runs() {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("%s did not end, and was killed", p.command), syscall.Kill(p.pid, syscall.SIGKILL))
}

func (p *process) runs() bool {
	select {
	case <-p.ended:
		return false
	default:
		return syscall.Kill(p.pid, 0) == nil
	}
}

func (b *bench) stopAll() (err error) {
	for _, p := range b.processes {
		err = errors.Join(err, p.stop())
	}
	return err
}

// commandText is what somebody would type, with DIR for the server's directory and
// PKI for that of the certificates.
func (b *bench) commandText(dir, program string, args []string) string {
	if program == b.program {
		program = "tidemark"
	}
	return program + " " + strings.NewReplacer(dir, "DIR", filepath.Join(b.dir, "pki"), "PKI").Replace(strings.Join(args, " "))
}

// cpuSeconds is what a server and its children have used.
func (p *process) cpuSeconds() float64 {
	pids := []string{strconv.Itoa(p.pid)}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.pid))
	for _, file := range tasks {
		text, _ := os.ReadFile(file) // the thread may have ended
		pids = append(pids, strings.Fields(string(text))...)
	}
	ticks := 0
	for _, pid := range pids {
		stat, _ := os.ReadFile("/proc/" + pid + "/stat")
		ticks += statTicks(string(stat))
	}
	return float64(ticks) / 100 // USER_HZ, the same on all of Linux that Go knows
}

// statTicks sums utime, stime and those of children that were waited for.
func statTicks(stat string) (sum int) {
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:]) // a name may hold anything
	if len(fields) < 15 {
		return 0
	}
	for _, field := range fields[11:15] {
		n, _ := strconv.Atoi(field) // the kernel writes numbers
		sum += n
	}
	return sum
}

// coresUsed is the CPU that a server uses between two moments of a run, in cores;
// the result comes when the second has passed.
func coresUsed(ctx context.Context, p *process, from, to time.Duration) <-chan float64 {
	used := make(chan float64, 1)
	go func() {
		_ = pause(ctx, from) // if it ends early, the run fails by itself
		begin, before := time.Now(), p.cpuSeconds()
		_ = pause(ctx, to-from)
		used <- (p.cpuSeconds() - before) / time.Since(begin).Seconds()
	}()
	return used
}

// output runs a command to its end; what it said is in the error.
func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	// fio's jobs are sessions of their own, which it ends when it is asked to end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.Bytes(), nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

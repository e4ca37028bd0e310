// Package packaging holds what an installation needs beside the binary. There is
// no Go code in it but this test.
package packaging_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const unit = "tidemark.service"

// exposureLimit is what `systemd-analyze security` may say at most, in tenths;
// 0 is best, 100 is a unit that gives nothing up.
const exposureLimit = 15

// filterVariable has the numbers of the system calls that the child of
// TestTheServerRunsUnderTheUnitsSystemCallFilter may make.
const filterVariable = "TIDEMARK_TEST_SYSTEM_CALLS"

func TestMain(m *testing.M) {
	if numbers := os.Getenv(filterVariable); numbers != "" {
		fmt.Fprintln(os.Stderr, confine(numbers, os.Args[1:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestTheUnitExposesLittle(t *testing.T) {
	output(t, "systemd-analyze", "security", "--offline=true", "--no-pager", fmt.Sprintf("--threshold=%d", exposureLimit), unit)
}

func TestTheUnitIsWellFormed(t *testing.T) {
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	// verify wants a program that is there.
	here := filepath.Join(t.TempDir(), unit)
	if err := os.WriteFile(here, []byte(strings.ReplaceAll(string(text), "/usr/bin/tidemark", "/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := output(t, "systemd-analyze", "verify", "--man=no", here); strings.Contains(said, unit) {
		t.Error(said)
	}
}

// The server does all that it can do while every system call but those of the
// unit's filter fails with EPERM, as under systemd. It also says to the service
// manager when it is ready and when it stops.
func TestTheServerRunsUnderTheUnitsSystemCallFilter(t *testing.T) {
	dir := t.TempDir()
	tidemark := filepath.Join(dir, "tidemark")
	output(t, "go", "build", "-o", tidemark, "../cmd/tidemark")
	notified := listenNotify(t, filepath.Join(dir, "notify"))

	api := "unix:" + filepath.Join(dir, "api.sock")
	drills := filepath.Join(dir, "drills")
	script := "#!/bin/sh\nnbdcopy \"$TIDEMARK_URI\" \"$TMPDIR/copy\" && rm \"$TMPDIR/copy\"\n"
	if err := errors.Join(os.Mkdir(drills, 0o700), os.WriteFile(filepath.Join(drills, "check"), []byte(script), 0o700)); err != nil {
		t.Fatal(err)
	}
	server := exec.Command(os.Args[0], tidemark, "serve", "--data", filepath.Join(dir, "d"), "--drills", drills,
		"--nbd", "unix:"+filepath.Join(dir, "nbd.sock"), "--api", api)
	server.Env = append(os.Environ(), filterVariable+"="+allowed(t), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "TMPDIR="+dir)
	stderr, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill() })
	var log strings.Builder
	ended := make(chan error, 1)
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&log, lines.Text())
		}
		ended <- server.Wait()
	}()
	wait := func(state string) {
		t.Helper()
		select {
		case got := <-notified:
			if got != state {
				t.Errorf("the service manager is told %q, not %q", got, state)
			}
		case err := <-ended:
			t.Fatalf("the server ended: %v: %s", err, log.String())
		}
	}

	wait("READY=1")
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, slices.Repeat([]byte("tidemark"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	uri := "nbd+unix:///db?socket=" + filepath.Join(dir, "nbd.sock")
	for _, args := range [][]string{
		{"volume", "create", "db", "--size", "64MiB"},
		{"import", image, "db"},
		{"run", "--volume", "db", "--", "qemu-io", "-f", "raw", "-c", "write -P 7 1M 4k", "-c", "discard 2M 1M", "-c", "write -z 4M 1M", "-c", "flush", uri},
		{"preserve", "db", "--name", "a", "--until", "sealed"},
		{"snapshot", "verify", "db@a"},
		{"export", "db@a", image + ".out"},
		{"schedule", "set", "db", "--every", "1s", "--keep", "1h:1s", "--drill", "check"},
		{"drill", "db@a", "--", "sh", "-c", "until " + tidemark + " --api " + api + " schedule show db | grep '^last drill:.* passed'; do :; done"},
		{"schedule", "remove", "db"},
		{"volume", "resize", "db", "--size", "128MiB"},
		{"volume", "delete", "db", "--with-snapshots"},
	} {
		output(t, tidemark, append([]string{"--api", api}, args...)...)
	}
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wait("STOPPING=1")
	if err := <-ended; err != nil {
		t.Errorf("the server ended with %v", err)
	}
	if strings.Contains(log.String(), "not permitted") || strings.Contains(log.String(), "level=") {
		t.Errorf("the server is not content: %s", log.String())
	}
}

// listenNotify is the service manager's end.
func listenNotify(t *testing.T, path string) <-chan string {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	told := make(chan string, 10)
	go func() {
		for p := make([]byte, 100); ; {
			n, err := c.Read(p)
			if err != nil {
				return
			}
			told <- string(p[:n])
		}
	}()
	return told
}

// allowed returns the numbers of the system calls that the unit's filter lets
// through, which systemd names and the kernel numbers.
func allowed(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^SystemCallFilter=(~?)(.*)$`).FindAllStringSubmatch(string(text), -1) {
		for _, group := range strings.Fields(m[2]) {
			for _, name := range members(t, group) {
				names[name] = m[1] == ""
			}
		}
	}
	source := strings.TrimSpace(output(t, "go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys"))
	numbers, err := os.ReadFile(filepath.Join(source, "unix", "zsysnum_linux_"+runtime.GOARCH+".go"))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range regexp.MustCompile(`SYS_(\w+)\s+= (\d+)`).FindAllStringSubmatch(string(numbers), -1) {
		if names[strings.ToLower(m[1])] {
			list = append(list, m[2])
		}
	}
	if len(list) < 100 {
		t.Fatalf("only %d system calls are allowed: %v", len(list), list)
	}
	return strings.Join(list, ",")
}

// members returns the system calls of a group, and of the groups in it.
func members(t *testing.T, group string) (names []string) {
	t.Helper()
	if !strings.HasPrefix(group, "@") {
		return []string{group}
	}
	for line := range strings.Lines(output(t, "systemd-analyze", "syscall-filter", "--no-pager", group)) {
		word := strings.TrimSpace(line)
		switch {
		case word == "" || word == group || strings.HasPrefix(word, "#"):
		default:
			names = append(names, members(t, word)...)
		}
	}
	return names
}

// confine lets this process make these system calls alone, the others fail with
// EPERM, and becomes another program. It returns only if it can't.
func confine(numbers string, command []string) error {
	runtime.LockOSThread()
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // seccomp_data.nr
	for _, text := range strings.Split(numbers, ",") {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return err
		}
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(n), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); err != 0 {
		return fmt.Errorf("set the filter: %w", err)
	}
	environment := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, filterVariable) })
	return fmt.Errorf("start %s: %w", command[0], unix.Exec(command[0], command, environment))
}

// output runs a program that must succeed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	var missing *exec.Error
	if errors.As(err, &missing) {
		t.Fatalf("%v; ci/install.sh installs it", err)
	}
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

package e2e

import (
	"bufio"
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/nbd/client"
)

func TestAConnectedClientKeepsItsSizeOverAResize(t *testing.T) {
	s := newServer(t)
	s.create("1MiB", "db")
	// nbdsh stays connected while the volume grows.
	out := run(t, "nbdsh", "-u", s.uri("db"),
		"-c", "h.pwrite(b'a' * 512, (1 << 20) - 512)",
		"-c", "import subprocess",
		"-c", "subprocess.run(['tidemark', '--api', '"+s.api()+"', 'preserve', 'db', '--name', 'p'], check=True)",
		"-c", "subprocess.run(['tidemark', '--api', '"+s.api()+"', 'volume', 'resize', 'db', '--size', '3MiB'], check=True)",
		"-c", "h.pwrite(b'b' * 512, (1 << 20) - 512)",
		"-c", "h.flush()",
		"-c", "assert h.pread(512, (1 << 20) - 512) == b'b' * 512",
		"-c", "h.set_strict_mode(0)",
		"-c", `
try:
    h.pwrite(b'c' * 512, 1 << 20)
except nbd.Error as e:
    print('beyond its end:', e.errno)`,
		"-c", "print('size', h.get_size())")
	if !strings.Contains(out, "size 1048576\n") || !strings.Contains(out, "beyond its end: ENOSPC\n") {
		t.Errorf("nbdsh:\n%s", out)
	}
	for export, want := range map[string]int64{"db": 3 << 20, "db@p": 1 << 20} {
		got, err := strconv.ParseInt(strings.TrimSpace(run(t, "nbdinfo", "--size", s.uri(export))), 10, 64)
		if err != nil || got != want {
			t.Errorf("nbdinfo sees %d bytes of %s (%v), want %d", got, export, err, want)
		}
	}
	qemuIO(t, s.uri("db"), "read -P 0x62 1048064 512", "read -P 0 1M 2M", "write -P 1 2M 1M")
	qemuIO(t, s.uri("db@p"), "read -P 0x61 1048064 512")
	s.stop()
	s.check()
	s.start()
	qemuIO(t, s.uri("db"), "read -P 0x62 1048064 512", "read -P 1 2M 1M")
	qemuIO(t, s.uri("db@p"), "read -P 0x61 1048064 512")
}

func TestRunMakesACommandOneProcess(t *testing.T) {
	s := newServer(t)
	s.create("4MiB", "db", "wal")
	s.tidemark("run", "--volume", "db", "--", "sh", "-c", `qemu-io -f raw -c "write -P 1 0 64k" "$TIDEMARK_URI"`)
	// A preserve in its middle has all of it, and nothing of others.
	s.tidemark("run", "--volume", "db", "--volume", "wal", "--", "sh", "-ec", `
		export TIDEMARK_API=`+s.api()+`
		other=$(echo "$TIDEMARK_URI" | sed s/db:/wal:/)
		qemu-io -f raw -c "write -P 2 0 64k" "$TIDEMARK_URI"
		tidemark preserve db wal --name p --wait 1ms --on-timeout keep || test $? = 5
		qemu-io -f raw -c "write -P 3 64k 64k" "`+s.uri("db")+`"
		qemu-io -f raw -c "write -P 4 128k 64k" "$TIDEMARK_URI"
		qemu-io -f raw -c "write -P 5 0 64k" "$other"`)
	s.tidemark("preserve", "db", "wal", "--name", "q", "--until", "sealed")
	if p := s.show("db@p"); p.State != "sealed" || p.Consistency != "process" || len(p.TornProcesses) > 0 {
		t.Errorf("%+v", p)
	}
	qemuIO(t, s.uri("db@p"), "read -P 2 0 64k", "read -P 0 64k 64k", "read -P 4 128k 64k")
	qemuIO(t, s.uri("wal@p"), "read -P 5 0 64k")
	qemuIO(t, s.uri("db@q"), "read -P 2 0 64k", "read -P 3 64k 64k", "read -P 4 128k 64k")
}

func TestTheDeathOfRunTearsItsProcess(t *testing.T) {
	s := newServer(t)
	s.create("4MiB", "db")
	job := command(t, "tidemark", "--api", s.api(), "run", "--volume", "db", "--", "sh", "-c",
		`qemu-io -f raw -c "write -P 1 0 64k" "$TIDEMARK_URI" >&2; echo "$TIDEMARK_PROCESS"; read end`)
	stdin, err := job.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stdin.Close() }() // ends the orphan
	stdout, err := job.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	token, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if r := s.try("preserve", "db", "--name", "p", "--wait", "1ms", "--on-timeout", "keep"); r.code != 5 {
		t.Fatalf("preserve: exit code %d, %s", r.code, r.stderr)
	}
	if err := job.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = job.Wait() // says that it was killed
	s.tidemark("preserve", "db", "--until", "sealed")
	p := s.show("db@p")
	if p.Consistency != "mixed" || len(p.TornProcesses) != 1 || p.TornProcesses[0] != strings.TrimSpace(token) {
		t.Errorf("%+v, want process %s torn", p, token)
	}
	qemuIO(t, s.uri("db@p"), "read -P 1 0 64k")
}

func TestTheDeathOfTheServerTearsItsProcesses(t *testing.T) {
	s := newServer(t)
	s.create("4MiB", "db")
	token := strings.TrimSpace(s.tidemark("process", "begin", "--volume", "db"))
	qemuIO(t, s.uri("db:process:"+token), "write -P 1 0 64k")
	if r := s.try("preserve", "db", "--name", "p", "--wait", "1ms", "--on-timeout", "keep"); r.code != 5 {
		t.Fatalf("preserve: exit code %d, %s", r.code, r.stderr)
	}
	qemuIO(t, s.uri("db:process:"+token), "write -P 2 64k 64k")
	s.kill()
	s.check()
	s.start()
	s.tidemark("preserve", "db", "--until", "sealed")
	p := s.show("db@p")
	if p.State != "sealed" || p.Consistency != "interrupted" || len(p.TornProcesses) != 1 || p.TornProcesses[0] != token {
		t.Errorf("%+v, want it interrupted and process %s torn", p, token)
	}
	qemuIO(t, s.uri("db@p"), "read -P 1 0 64k", "read -P 2 64k 64k")
	if r := attempt(t, "nbdinfo", s.uri("db:process:"+token)); r.code == 0 {
		t.Errorf("a token outlived the server")
	}
}

func TestAKilledServerKeepsWhatPreservesLeftAtTheirDeadlines(t *testing.T) {
	s := newServer(t)
	s.create("1MiB", "db")
	session := s.dial("db:session")
	write := func(c *client.Client, value byte) { // the block of that number
		t.Helper()
		if _, err := c.WriteAt(bytes.Repeat([]byte{value}, 4096), int64(value)*4096); err != nil {
			t.Fatal(err)
		}
	}
	write(session, 1)
	for i, policy := range []struct {
		name string
		code int
	}{{"abort", 6}, {"degrade", 0}, {"keep", 5}} {
		if r := s.try("preserve", "db", "--name", policy.name, "--wait", "1ms", "--on-timeout", policy.name); r.code != policy.code {
			t.Fatalf("preserve --on-timeout %s: exit code %d, %s", policy.name, r.code, r.stderr)
		}
		write(session, byte(i+2))
	}
	write(s.dial("db"), 5)
	before := s.sums()
	s.kill()
	s.check()
	s.start()
	if after := s.sums(); !maps.Equal(after, before) {
		t.Errorf("the views are not what they were before the kill: %x, %x", after, before)
	}
	qemuIO(t, s.uri("db@degrade"), "read -P 1 4k 4k", "read -P 2 8k 4k", "read -P 0 12k 16k")
	qemuIO(t, s.uri("db@keep"), "read -P 3 12k 4k", "read -P 4 16k 4k", "read -P 0 20k 4k")
	qemuIO(t, s.uri("db"), "read -P 1 4k 4k", "read -P 4 16k 4k", "read -P 5 20k 4k")
	s.tidemark("preserve", "db", "--until", "sealed")
	if p := s.show("db@degrade"); p.Consistency != "request" || p.State != "sealed" {
		t.Errorf("%+v", p)
	}
	if p := s.show("db@keep"); p.Consistency != "interrupted" || p.State != "sealed" || len(p.TornProcesses) != 1 {
		t.Errorf("%+v", p)
	}
	if r := s.try("snapshot", "show", "db@abort"); r.code != 3 {
		t.Errorf("an aborted preserve came back: exit code %d, %s", r.code, r.stdout)
	}
}

func TestImportAndExportKeepHolesThroughFilesAndPipes(t *testing.T) {
	const sizeBytes = 32 << 20
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	image, dataBytes := sparseImage(t, in, sizeBytes)
	s := newServer(t)
	s.tidemark("import", in, "file", "--create")
	s.create("32MiB", "pipe")
	shell := func(line string) {
		t.Helper()
		run(t, "bash", "-ec", "set -o pipefail; export TIDEMARK_API="+s.api()+"; cd "+dir+"; "+line)
	}
	shell("cat in | tidemark import - pipe")
	for _, volume := range []string{"file", "pipe"} {
		t.Run(volume, func(t *testing.T) {
			if n := mapped(t, s.uri(volume)); n != dataBytes {
				t.Errorf("the volume holds %d bytes of data, not %d: holes did not stay holes", n, dataBytes)
			}
			s.tidemark("preserve", volume, "--name", "p")
			qemuIO(t, s.uri(volume), "write -P 9 0 32M")
			out := filepath.Join(t.TempDir(), "out")
			s.tidemark("export", volume+"@p", out)
			if !bytes.Equal(readFile(t, out), image) {
				t.Error("the export is not the image")
			}
			if n := diskBytes(t, out); n > dataBytes+1<<20 {
				t.Errorf("the export takes %d bytes on the disk: holes did not stay holes", n)
			}
			run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri(volume+"@p"), out)
			shell("tidemark export " + volume + "@p - | cmp - in")
			// An import over other data leaves nothing of it under the holes.
			s.tidemark("import", in, volume)
			run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri(volume), in)
			if r := s.try("export", volume, out); r.code != 4 {
				t.Errorf("export onto a file: exit code %d", r.code)
			}
			if err := os.Remove(out); err != nil {
				t.Error(err)
			}
		})
	}
}

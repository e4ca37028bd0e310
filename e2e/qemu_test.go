package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// qemuIO runs qemu-io's commands, each of which must succeed, patterns included.
func qemuIO(t *testing.T, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	if strings.Contains(uri, "@") {
		args = append(args, "-r")
	}
	args = append(args, uri)
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	// Not each failure of a command shows in the exit code.
	if out := run(t, "qemu-io", args...); strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Fatalf("qemu-io %s:\n%s", strings.Join(args, " "), out)
	}
}

func TestQemuIOFindsItsPatternsInTheLiveViewAndInTheSnapshot(t *testing.T) {
	s := newServer(t)
	s.create("64MiB", "db")
	qemuIO(t, s.uri("db"),
		"write -P 1 0 1M", "write -P 2 1M 1M", "write -P 3 4M 40M", "flush")
	s.tidemark("preserve", "db", "--name", "first")
	qemuIO(t, s.uri("db"),
		"write -P 4 512 512",      // a part of a block
		"write -P 5 8191 2",       // a byte of each of two blocks
		"write -f -P 6 64k 64k",   // FUA
		"write -z 128k 4k",        // NO_HOLE
		"write -z -u 132k 4k",     // may punch
		"write -z -u -n 136k 64k", // FAST_ZERO
		"write -z 201k 1k",        // zeros in a part of a block
		"discard 1M 512k",
		"discard 1537k 1k",
		"aio_write -P 7 4M 20M", "aio_write -P 8 24M 20M", "aio_flush",
		"flush")
	live := []string{
		"read -P 1 0 512", "read -P 4 512 512", "read -P 1 1k 7167", "read -P 5 8191 2", "read -P 1 8193 57343",
		"read -P 6 64k 64k", "read -P 0 128k 72k", "read -P 1 200k 1k", "read -P 0 201k 1k", "read -P 1 202k 822k",
		"read -P 0 1M 512k", "read -P 2 1536k 1k", "read -P 0 1537k 1k", "read -P 2 1538k 510k", "read -P 0 2M 2M",
		"read -P 7 4M 20M", "read -P 8 24M 20M", "read -P 0 44M 20M",
	}
	first := []string{"read -P 1 0 1M", "read -P 2 1M 1M", "read -P 0 2M 2M", "read -P 3 4M 40M", "read -P 0 44M 20M", "flush"}
	qemuIO(t, s.uri("db"), live...)
	qemuIO(t, s.uri("db@first"), first...)
	s.tidemark("preserve", "db", "--name", "second", "--until", "sealed")
	qemuIO(t, s.uri("db"), "discard 0 64M", "read -P 0 0 64M")
	qemuIO(t, s.uri("db@first"), first...)
	qemuIO(t, s.uri("db@second"), live...)

	s.stop()
	s.check()
	s.start()
	qemuIO(t, s.uri("db"), "read -P 0 0 64M")
	qemuIO(t, s.uri("db@first"), first...)
	qemuIO(t, s.uri("db@second"), live...)
}

func TestClientsConnectOverTCP(t *testing.T) {
	s := newServer(t)
	s.create("4MiB", "db")
	qemuIO(t, s.tcp("db"), "write -P 1 0 4M", "flush")
	s.tidemark("preserve", "db", "--name", "p")
	qemuIO(t, s.tcp("db:session"), "write -P 2 0 4M")
	copied := filepath.Join(t.TempDir(), "copy")
	run(t, "nbdcopy", s.tcp("db@p"), copied)
	if !bytes.Equal(readFile(t, copied), bytes.Repeat([]byte{1}, 4<<20)) {
		t.Error("nbdcopy read something else")
	}
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.tcp("db@p"), s.uri("db@p"))
	if list := run(t, "nbdinfo", "--list", s.tcp("")); !strings.Contains(list, `export="db@p":`) {
		t.Errorf("nbdinfo lists\n%s", list)
	}
}

func TestAWriteToASnapshotIsNotPermitted(t *testing.T) {
	s := newServer(t)
	s.create("1MiB", "db")
	s.tidemark("preserve", "db", "--name", "p")
	// qemu does not even try: the export says that it is read-only.
	r := attempt(t, "qemu-io", "-f", "raw", s.uri("db@p"), "-c", "write 0 512")
	if r.code == 0 || !strings.Contains(r.stderr, "Permission denied") {
		t.Errorf("qemu-io: exit code %d, %s", r.code, r.stderr)
	}
	// nbdsh sends them if it is told to.
	for _, call := range []string{
		"h.pwrite(b'x' * 512, 0)", "h.pwrite(b'x' * 512, 0, nbd.CMD_FLAG_FUA)", "h.zero(512, 0)", "h.trim(512, 0)",
	} {
		r := attempt(t, "nbdsh", "-u", s.uri("db@p"), "-c", "h.set_strict_mode(0)", "-c", call)
		if r.code == 0 || !strings.Contains(r.stderr, "Operation not permitted") {
			t.Errorf("%s: exit code %d, %s", call, r.code, r.stderr)
		}
	}
}

func TestQemuImgAndNbdcopyBringImagesInAndOut(t *testing.T) {
	const sizeBytes = 64 << 20
	dir := t.TempDir()
	raw, qcow2 := filepath.Join(dir, "in.raw"), filepath.Join(dir, "in.qcow2")
	image, dataBytes := sparseImage(t, raw, sizeBytes)
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)

	s := newServer(t)
	for name, bring := range map[string]func(t *testing.T, volume string){
		"qemu-img from raw": func(t *testing.T, volume string) {
			run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", raw, s.uri(volume))
		},
		"qemu-img from qcow2": func(t *testing.T, volume string) {
			run(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, s.uri(volume))
		},
		"nbdcopy with four connections": func(t *testing.T, volume string) {
			run(t, "nbdcopy", "--connections=4", "--flush", raw, s.uri(volume))
		},
	} {
		t.Run(name, func(t *testing.T) {
			volume := strings.ReplaceAll(name, " ", "-")
			s.create("64MiB", volume)
			bring(t, volume)
			s.tidemark("preserve", volume, "--name", "p")
			qemuIO(t, s.uri(volume), "write -P 99 0 64M")
			kept := s.uri(volume + "@p")
			if !bytes.Equal(s.content(volume+"@p"), image) {
				t.Fatal("the snapshot is not the image")
			}
			if n := mapped(t, kept); n != dataBytes {
				t.Errorf("the snapshot holds %d bytes of data, not %d: holes did not stay holes", n, dataBytes)
			}
			run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", kept, raw)
			run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", kept, qcow2)
			if r := attempt(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri(volume), raw); r.code != 1 {
				t.Errorf("compare with the live view, which differs: exit code %d, %s", r.code, r.stderr)
			}

			outs := map[string][]string{
				"raw":     {"qemu-img", "convert", "-f", "raw", "-O", "raw", kept, "OUT"},
				"qcow2":   {"qemu-img", "convert", "-f", "raw", "-O", "qcow2", kept, "OUT"},
				"nbdcopy": {"nbdcopy", "--connections=4", kept, "OUT"},
			}
			for kind, args := range outs {
				out := filepath.Join(t.TempDir(), kind)
				args[len(args)-1] = out
				run(t, args[0], args[1:]...)
				format := "raw"
				if kind == "qcow2" {
					format = "qcow2"
				}
				run(t, "qemu-img", "compare", "-f", format, "-F", "raw", out, raw)
				if n := diskBytes(t, out); n > dataBytes+1<<20 {
					t.Errorf("%s takes %d bytes on the disk: holes did not stay holes", kind, n)
				}
				if format == "raw" && !bytes.Equal(readFile(t, out), image) {
					t.Errorf("%s is not the image", kind)
				}
			}
		})
	}
}

// sparseImage writes a file with a MiB of data in each five, and returns what is in it and how much of that is data.
func sparseImage(t *testing.T, name string, sizeBytes int64) (image []byte, dataBytes int64) {
	t.Helper()
	image = make([]byte, sizeBytes)
	random := rand.NewChaCha8([32]byte{1})
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for off := int64(3 << 20); off < sizeBytes; off += 5 << 20 {
		piece := image[off : off+1<<20]
		_, _ = random.Read(piece) // it never fails
		if _, err := f.WriteAt(piece, off); err != nil {
			t.Fatal(err)
		}
		dataBytes += 1 << 20
	}
	if err := f.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	return image, dataBytes
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// diskBytes is what a file takes on the disk.
func diskBytes(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// mapped is how many bytes nbdinfo finds to be data.
func mapped(t *testing.T, uri string) (dataBytes int64) {
	t.Helper()
	for line := range strings.Lines(run(t, "nbdinfo", "--map", uri)) {
		var off, n int64
		var flags int
		if _, err := fmt.Sscan(line, &off, &n, &flags); err != nil {
			t.Fatalf("nbdinfo: %q: %v", line, err)
		}
		if flags == 0 {
			dataBytes += n
		}
	}
	return dataBytes
}

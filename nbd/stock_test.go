package nbd

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The clients that people use, from the packages libnbd-bin and qemu-utils: the
// tests fail where they are not installed.

// stock runs a client and returns what it printed.
func stock(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// stockServer serves m on a unix socket and returns the URI of its export.
func stockServer(t *testing.T, m *memory) string {
	t.Helper()
	_, dial, _ := serveOn(t, m, Options{})
	return "nbd+unix:///disk?socket=" + dial().RemoteAddr().String()
}

func TestNbdinfoSeesTheExport(t *testing.T) {
	m := newMemory(64 << 20)
	m.info = Info{Description: "of a test", MultiConn: true}
	_, _ = m.write(make([]byte, 8192), 4096, nil)
	uri := stockServer(t, m)

	var info struct {
		Protocol   string
		Structured bool
		Exports    []struct {
			Name            string   `json:"export-name"`
			Description     string   `json:"description"`
			SizeBytes       int64    `json:"export-size"`
			Contexts        []string `json:"contexts"`
			CanFUA          bool     `json:"can_fua"`
			CanMultiConn    bool     `json:"can_multi_conn"`
			CanFastZero     bool     `json:"can_fast_zero"`
			MaxPayloadBytes int64    `json:"block_size_maximum"`
		}
	}
	if err := json.Unmarshal([]byte(stock(t, "nbdinfo", "--json", uri)), &info); err != nil {
		t.Fatal(err)
	}
	e := info.Exports[0]
	if e.Name != "disk" || e.Description != "of a test" || e.SizeBytes != 64<<20 || !e.CanFUA || !e.CanMultiConn || !e.CanFastZero || e.MaxPayloadBytes != maxPayloadBytes ||
		strings.Join(e.Contexts, " ") != "base:allocation qemu:allocation-depth" || !info.Structured {
		t.Errorf("nbdinfo sees %+v", info)
	}
	list := stock(t, "nbdinfo", "--list", "--no-content", strings.Replace(uri, "disk", "", 1))
	if !strings.Contains(list, `export="disk"`) {
		t.Errorf("nbdinfo lists\n%s", list)
	}
	fields := strings.Fields(stock(t, "nbdinfo", "--map", uri))
	if got, want := strings.Join(fields, " "), "0 4096 3 hole,zero 4096 8192 0 data 12288 67096576 3 hole,zero"; got != want {
		t.Errorf("nbdinfo maps %q, want %q", got, want)
	}
	// nbdinfo does not show the server's words; qemu does.
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "raw", strings.Replace(uri, "disk", "nope", 1)).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no such export") {
		t.Errorf("qemu-io of no export: %v, %s", err, out)
	}
}

func TestQemuIOReadsWhatItWrote(t *testing.T) {
	m := newMemory(64 << 20)
	uri := stockServer(t, m)
	out := stock(t, "qemu-io", "-f", "raw", uri,
		"-c", "write -P 1 0 1M", "-c", "write -f -P 2 512 4k", "-c", "write -z 64k 64k", "-c", "write -z -u 1M 1M",
		"-c", "discard 256k 128k", "-c", "aio_write -P 3 4M 40M", "-c", "aio_flush", "-c", "flush",
		"-c", "read -P 1 0 512", "-c", "read -P 2 512 4k", "-c", "read -P 1 4608 60928", "-c", "read -P 0 64k 64k",
		"-c", "read -P 0 256k 128k", "-c", "read -P 3 4M 40M", "-c", "map")
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Errorf("qemu-io:\n%s", out)
	}
	if torn := closeAfterDisc(m); torn {
		t.Errorf("qemu-io's disconnect is torn")
	}
	if m.flushes.Load() < 2 {
		t.Errorf("flushed %d times", m.flushes.Load())
	}
	// qemu-io's exit status does not tell; its words do.
	sealed := newMemory(1 << 20)
	sealed.info.ReadOnly = true
	out = stock(t, "qemu-io", "-r", "-f", "raw", stockServer(t, sealed), "-c", "read -P 0 512 4k")
	if strings.Contains(out, "failed") {
		t.Errorf("qemu-io of a read-only export:\n%s", out)
	}
}

// closeAfterDisc returns the last Close so far, past those of probes.
func closeAfterDisc(m *memory) (torn bool) {
	for torn = <-m.closed; len(m.closed) > 0; {
		torn = <-m.closed
	}
	return torn
}

func TestNbdcopyWithFourConnectionsKeepsTheImage(t *testing.T) {
	const size = 48 << 20
	image := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	for off := 0; off < size; off += 4 << 20 { // every other MiB is a hole
		_, _ = random.Read(image[off : off+2<<20])
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, image, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cold := range []bool{false, true} {
		m := newMemory(size)
		m.info.MultiConn = true
		m.cold.Store(cold)
		uri := stockServer(t, m)
		stock(t, "nbdcopy", "--connections=4", "--flush", in, uri)
		if !bytes.Equal(m.bytes(0, size), image) {
			t.Fatalf("cold=%t: the device does not hold the image", cold)
		}
		stock(t, "nbdcopy", "--connections=4", uri, out)
		got, err := os.ReadFile(out)
		if err != nil || !bytes.Equal(got, image) {
			t.Fatalf("cold=%t: the copy differs (%v)", cold, err)
		}
	}
}

func TestQemuImgComparesOverTCP(t *testing.T) {
	m := newMemory(8 << 20)
	_, _ = m.write([]byte("some bytes"), 5<<20, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = NewServer(m, Options{}).Serve(l) }()
	t.Cleanup(func() { _ = l.Close() })
	uri := "nbd://" + l.Addr().String() + "/disk"
	file := filepath.Join(t.TempDir(), "raw")
	stock(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, file)
	stock(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, file)
}

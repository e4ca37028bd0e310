package e2e

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd/client"
)

// newSecureServer starts a server with TLS as mode says, that wants a
// certificate of its clients, and returns the directory of one's.
func newSecureServer(t *testing.T, mode string) (s *server, certificates string) {
	t.Helper()
	a := certtest.New(t)
	dir := a.WriteDir(a.Issue(nil, "server", "localhost"), "server")
	s = newServerWith(t, "--tls", mode, "--tls-cert", filepath.Join(dir, "server-cert.pem"),
		"--tls-key", filepath.Join(dir, "server-key.pem"), "--tls-client-ca", filepath.Join(dir, "ca-cert.pem"))
	return s, a.WriteDir(a.Issue(nil, "alice"), "client")
}

// nbds is the URI of an export over TLS and TCP, for clients by libnbd.
func (s *server) nbds(export, certificates string) string {
	return strings.Replace(strings.Replace(s.tcp(export), "nbd:", "nbds:", 1), "127.0.0.1", "localhost", 1) +
		"?tls-certificates=" + url.QueryEscape(certificates)
}

// qemuTLS is the arguments by which qemu's programs open an export over TLS and TCP.
func (s *server) qemuTLS(export, certificates string) []string {
	_, port, _ := strings.Cut(tcpAddr.FindString(s.said()), ":")
	return []string{
		"--object", "tls-creds-x509,id=tls,endpoint=client,verify-peer=on,dir=" + certificates,
		"--image-opts", "driver=nbd,host=localhost,port=" + port + ",export=" + export + ",tls-creds=tls",
	}
}

// TestStockClientsOverTLS runs those of both distributions against a server
// that insists on TLS.
func TestStockClientsOverTLS(t *testing.T) {
	s, certificates := newSecureServer(t, "require")
	s.create("64MiB", "db")
	image := filepath.Join(t.TempDir(), "image")
	want := bytes.Repeat([]byte("0123456789abcde\n"), 1<<20)
	if err := os.WriteFile(image, want, 0o600); err != nil {
		t.Fatal(err)
	}
	uri := s.nbds("db", certificates)

	for name, program := range map[string]func(string) string{
		"of the machine": func(name string) string { return name },
		"newer":          func(name string) string { return newer(t, name) },
	} {
		t.Run(name, func(t *testing.T) {
			if info := run(t, program("nbdinfo"), "--no-content", uri); !strings.Contains(info, "newstyle-fixed with TLS") || !strings.Contains(info, `export="db"`) {
				t.Errorf("nbdinfo:\n%s", info)
			}
			run(t, program("nbdcopy"), "--flush", image, uri)
			copied := filepath.Join(t.TempDir(), "copy")
			run(t, program("nbdcopy"), uri, copied)
			if got := readFile(t, copied); !bytes.Equal(got[:len(want)], want) {
				t.Errorf("nbdcopy brings back something else")
			}
			args := append(s.qemuTLS("db", certificates), "-c", "write -P 7 32M 4M", "-c", "flush", "-c", "read -P 7 32M 4M", "-c", "write -z -u 32M 4M", "-c", "map")
			if out := run(t, program("qemu-io"), args...); strings.Contains(out, "failed") || strings.Contains(out, "rror") {
				t.Errorf("qemu-io:\n%s", out)
			}
			if out := run(t, program("qemu-img"), append([]string{"info"}, s.qemuTLS("db", certificates)...)...); !strings.Contains(out, "64 MiB") {
				t.Errorf("qemu-img info:\n%s", out)
			}
			// Without TLS there is nothing but a refusal.
			for _, r := range []result{
				attempt(t, program("nbdinfo"), s.tcp("db")),
				attempt(t, program("nbdinfo"), "--list", s.uri("")),
				attempt(t, program("qemu-img"), "info", "-f", "raw", s.uri("db")),
			} {
				if r.code == 0 {
					t.Errorf("an answer without TLS:\n%s", r.stdout)
				}
			}
		})
	}
	t.Run("on a unix socket", func(t *testing.T) {
		// A socket has no name that a certificate could be for.
		uri := "nbds+unix:///db?socket=" + s.path("nbd.sock") + "&tls-hostname=localhost&tls-certificates=" + url.QueryEscape(certificates)
		run(t, newer(t, "nbdinfo"), "--no-content", uri)
	})
	t.Run("a stranger", func(t *testing.T) {
		stranger := certtest.New(t)
		mallory := stranger.WriteDir(stranger.Issue(nil, "mallory"), "client")
		if r := attempt(t, "nbdinfo", s.nbds("db", mallory)); r.code == 0 {
			t.Errorf("a stranger is let in:\n%s", r.stdout)
		}
	})
	s.stop()
	s.check()
}

func TestTLSIsTheClientsChoiceWhereItIsAllowed(t *testing.T) {
	s, certificates := newSecureServer(t, "allow")
	s.create("1MiB", "db")
	for uri, tls := range map[string]bool{
		s.nbds("db", certificates): true,
		s.tcp("db"):                false,
		s.uri("db"):                false,
	} {
		if info := run(t, "nbdinfo", "--no-content", uri); strings.Contains(info, "with TLS") != tls {
			t.Errorf("nbdinfo of %s:\n%s", uri, info)
		}
	}
	s.stop()
}

// TestNewerClientsUseExtendedHeaders without being asked to.
func TestNewerClientsUseExtendedHeaders(t *testing.T) {
	s := newServer(t)
	s.create("1TiB", "db")
	info := run(t, newer(t, "nbdinfo"), "--no-content", s.uri("db"))
	if !strings.Contains(info, "using extended packets") || !strings.Contains(info, "can_block_status_payload: true") {
		t.Errorf("nbdinfo:\n%s", info)
	}
	out := run(t, newer(t, "qemu-io"), "-f", "raw", s.uri("db"), "-c", "write -P 1 700G 1M", "-c", "write -z -u -n 0 600G",
		"-c", "read -P 1 700G 1M", "-c", "discard 699G 2047M", "-c", "read -P 0 700G 1M", "-c", "write -P 2 1G 2M", "-c", "flush", "-c", "map")
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Errorf("qemu-io:\n%s", out)
	}
	extents := strings.Join(strings.Fields(run(t, newer(t, "nbdinfo"), "--map", s.uri("db"))), " ")
	if want := "0 1073741824 3 hole,zero 1073741824 2097152 0 data 1075838976 1098435788800 3 hole,zero"; extents != want {
		t.Errorf("nbdinfo maps %q, not %q", extents, want)
	}
	file := filepath.Join(t.TempDir(), "copy")
	run(t, newer(t, "nbdcopy"), s.uri("db"), file)
	if out := run(t, newer(t, "qemu-img"), "compare", "-f", "raw", "-F", "raw", s.uri("db"), file); !strings.Contains(out, "identical") {
		t.Errorf("qemu-img compare:\n%s", out)
	}
	c, err := client.Dial(t.Context(), s.uri("db"))
	if err != nil {
		t.Fatal(err)
	}
	if !c.Extended() {
		t.Errorf("our own client has no extended headers")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	s.stop()
	s.check()
}

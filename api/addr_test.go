package api

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAddressesAreReadAndWritten(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"unix:a.sock", "unix:a.sock"},
		{"unix:/run/a.sock", "unix:/run/a.sock"},
		{"unix:///run/a.sock", "unix:/run/a.sock"},
		{"unix:////run/a.sock", "unix:/run/a.sock"},
		{"unix:////", "unix:/"},
		{"127.0.0.1:10809", "127.0.0.1:10809"},
		{"[::1]:0", "[::1]:0"},
		{":10809", ":10809"},
		{"unix:" + strings.Repeat("a", 107), "unix:" + strings.Repeat("a", 107)},
	} {
		a, err := ParseAddr(test.text)
		if err != nil || a.String() != test.want {
			t.Errorf("%q is %q (%v), want %q", test.text, a, err, test.want)
		}
	}
	for _, text := range []string{"", "unix:", "unix://", "unix://host/a.sock", "localhost", "::1:10809", "host:http", "host:65536", "unix:" + strings.Repeat("a", 108)} {
		if a, err := ParseAddr(text); !errors.Is(err, ErrBadAddr) {
			t.Errorf("%q is taken for %q (%v)", text, a, err)
		}
	}
}

func FuzzAddr(f *testing.F) {
	f.Add("unix:///run/a.sock")
	f.Add("[::1]:10809")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAddr(text)
		if err != nil {
			return
		}
		if again, err := ParseAddr(a.String()); err != nil || again != a {
			t.Errorf("%q is written %q and read back as %q (%v)", text, a, again, err)
		}
	})
}

func TestNBDURIsNameTheExport(t *testing.T) {
	for _, test := range []struct {
		addr, export string
		tls          bool
		want         string
	}{
		{"127.0.0.1:10809", "db:process:a.b-c_1", false, "nbd://127.0.0.1:10809/db:process:a.b-c_1"},
		{"[::1]:10809", "db", false, "nbd://[::1]:10809/db"},
		{"a.example:10809", "db", true, "nbds://a.example:10809/db"},
		{"unix:/run/nbd.sock", "db@a", false, "nbd+unix:///db@a?socket=/run/nbd.sock"},
		{"unix:/run/nbd.sock", "db@a", true, "nbds+unix:///db@a?socket=/run/nbd.sock"},
		{"unix:/a b/c&d.sock", "db", false, "nbd+unix:///db?socket=/a+b/c%26d.sock"},
	} {
		a, err := ParseAddr(test.addr)
		if got := a.NBDURI(test.export, test.tls); err != nil || got != test.want {
			t.Errorf("%s at %s: %s (%v), want %s", test.export, test.addr, got, err, test.want)
		}
	}
}

func TestOnlyThisMachineReachesLoopback(t *testing.T) {
	for text, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "unix:a.sock": true, "[::ffff:127.0.0.1]:1": true,
		":1": false, "0.0.0.0:1": false, "[::]:1": false, "10.0.0.1:1": false, "localhost.example:1": false, "[fe80::1]:1": false,
	} {
		a, err := ParseAddr(text)
		if err != nil || a.Loopback() != want {
			t.Errorf("%s: loopback %v (%v), want %v", text, a.Loopback(), err, want)
		}
	}
}

func TestReachableIsWhereAClientOnThisMachineGoes(t *testing.T) {
	here, err := filepath.Abs("a.sock")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		":1": "127.0.0.1:1", "0.0.0.0:1": "127.0.0.1:1", "[::]:1": "[::1]:1", "10.0.0.1:1": "10.0.0.1:1", "unix:a.sock": "unix:" + here,
	} {
		a, _ := ParseAddr(text)
		if got, err := a.Reachable(); err != nil || got.String() != want {
			t.Errorf("%s is reachable at %v (%v), want %s", text, got, err, want)
		}
	}
}

func TestListenTakesOverASocketOnlyWhenNobodyAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a, err := UnixAddr(path)
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := a.Listen(true)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	if _, _, err := a.Listen(true); !errors.Is(err, ErrAddrInUse) {
		t.Errorf("a second server listens: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as if it had been killed
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, _, err := a.Listen(false)
	if err != nil {
		t.Fatalf("the dead server's socket is in the way: %v", err)
	}
	defer func() { _ = second.Close() }()
	if c, err := a.Dial(context.Background()); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	if err := os.WriteFile(path+"file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file, _ := UnixAddr(path + "file")
	if _, _, err := file.Listen(true); !errors.Is(err, ErrAddrInUse) {
		t.Errorf("a file was taken for a socket: %v", err)
	}
}

package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/nbd/client"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// guardedBackend has volumes a and b (of session scope), each with a snapshot s.
func guardedBackend(t *testing.T, list string) backend {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "d"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	_, errA := s.CreateVolume("a", 1<<20, volume.ScopeRequest)
	_, errB := s.CreateVolume("b", 1<<20, volume.ScopeSession)
	_, errS := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"a", "b"}, Name: "s", Wait: time.Minute})
	_, errP := s.BeginProcess([]string{"a", "b"}, "p")
	file := filepath.Join(dir, "access.yaml")
	errF := os.WriteFile(file, []byte(list), 0o600)
	guard, errG := access.Open(access.Files{List: file})
	if err := errors.Join(errA, errB, errS, errP, errF, errG); err != nil {
		t.Fatal(err)
	}
	return backend{s, guard}
}

func TestAnNBDClientSeesAndOpensWhatItMay(t *testing.T) {
	b := guardedBackend(t, `
certificates:
  reader: [{exports: ["b", "a@*"], rights: [read]}]
  writer: [{exports: ["a"], rights: [write]}]
  keeper: [{exports: ["*"], rights: [preserve, admin]}]
local: [{exports: ["a"], rights: [read]}]
`)
	as := func(names ...string) nbd.Client { return nbd.Client{TLS: true, Names: names, Remote: &net.TCPAddr{}} }
	local := nbd.Client{Remote: &net.UnixAddr{Net: "unix"}}
	for _, test := range []struct {
		who    nbd.Client
		export string
		want   string // of the export: "rw", "ro"; empty: refused
	}{
		{as("reader"), "b", "ro"},
		{as("reader"), "b:request", "ro"},
		{as("reader"), "b:session", ""}, // it would hold up preserves
		{as("reader"), "b:process:p", ""},
		{as("reader"), "b@s", "ro"},
		{as("reader"), "a@s", "ro"},
		{as("reader"), "a", ""},
		{as("writer"), "a", "rw"},
		{as("writer"), "a:session", "rw"},
		{as("writer"), "a:process:p", "rw"},
		{as("writer"), "a@s", "ro"},
		{as("writer"), "b", ""},
		{as("writer"), "b:process:p", ""},
		{as("writer", "reader"), "b", "ro"},
		{as("keeper"), "a", ""}, // to preserve is not to read
		{as("nobody"), "a", ""},
		{as(), "a", ""},
		{local, "a", "ro"},
		{local, "b", ""},
		{nbd.Client{}, "a", ""},
	} {
		device, info, err := b.Open(test.export, test.who)
		got := ""
		if err == nil {
			got = map[bool]string{true: "ro", false: "rw"}[info.ReadOnly]
			device.Close(false)
		} else if !errors.Is(err, nbd.ErrRefused) || !errors.Is(err, access.ErrDenied) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v opens %s: %v", test.who.Names, test.export, err)
		}
		if got != test.want {
			t.Errorf("%v opens %s: %q, want %q", test.who.Names, test.export, got, test.want)
		}
	}
	for who, want := range map[string][]string{
		"reader": {"a@s", "b", "b@s"}, "writer": {"a", "a@s"}, "keeper": nil, "nobody": nil,
	} {
		if got := b.List(as(who)); !slices.Equal(got, want) {
			t.Errorf("%s sees %q, want %q", who, got, want)
		}
	}
	// A client that may not read b can't tell b from a volume that there is not.
	_, _, there := b.Open("b", as("writer"))
	_, _, absent := b.Open("x", as("writer"))
	if strings.ReplaceAll(there.Error(), `"b"`, `"x"`) != absent.Error() {
		t.Errorf("%v, but %v", there, absent)
	}
}

// A reader's connection is no process that a preserve waits for, and its writes
// are refused by the server, not by its own good will.
func TestAReaderNeitherWritesNorHoldsUpAPreserve(t *testing.T) {
	b := guardedBackend(t, `local: [{exports: ["b"], rights: [read]}]`)
	if _, err := b.store.EndProcess("p", false); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := nbd.NewServer(b, nbd.Options{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	c, err := client.DialExport(t.Context(), "unix", l.Addr().String(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	var refused *client.CommandError
	if _, err := c.WriteAt(make([]byte, 4096), 0); !errors.As(err, &refused) || refused.Errno != 1 {
		t.Errorf("a write: %v", err)
	}
	if err := c.WriteZeroes(0, 4096, false); !errors.As(err, &refused) || refused.Errno != 1 {
		t.Errorf("zeroes: %v", err)
	}
	if err := c.Trim(0, 4096); !errors.As(err, &refused) || refused.Errno != 1 {
		t.Errorf("a trim: %v", err)
	}
	report, err := b.store.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"b"}, Name: "t", Wait: time.Minute})
	if err != nil || report.ProcessesWaited != 0 {
		t.Errorf("a preserve beside a reader waited for %d: %v", report.ProcessesWaited, err)
	}
	if err := errors.Join(c.Close(), server.Shutdown(t.Context())); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
		t.Error(err)
	}
}

// A client compares with the older snapshots that it may read, and sees no others.
func TestAnNBDClientComparesWithWhatItMayRead(t *testing.T) {
	b := guardedBackend(t, `
certificates:
  all: [{exports: ["a", "a@*"], rights: [read]}]
  some: [{exports: ["a@t", "a@u"], rights: [read]}]
`)
	if _, err := b.store.EndProcess("p", false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"t", "u"} {
		if _, err := b.store.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"a"}, Name: name, Wait: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	for who, want := range map[string][]string{"all": {"s", "t"}, "some": {"t"}} {
		device, _, err := b.Open("a@u", nbd.Client{TLS: true, Names: []string{who}, Remote: &net.TCPAddr{}})
		if err != nil {
			t.Fatal(err)
		}
		c := device.(nbd.Compared)
		if got := c.Bases(); !slices.Equal(got, want) {
			t.Errorf("%s may compare with %q, want %q", who, got, want)
		}
		for _, base := range []string{"s", "t", "u", "none"} {
			bitmap, err := c.Since(base)
			if (err == nil) != slices.Contains(want, base) {
				t.Errorf("%s compares with %s: %v", who, base, err)
			}
			if err == nil {
				bitmap.Close()
			}
		}
		device.Close(false)
	}
	device, _, err := b.Open("a", nbd.Client{TLS: true, Names: []string{"all"}, Remote: &net.TCPAddr{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := device.(nbd.Compared); ok {
		t.Error("a live volume can be compared")
	}
	device.Close(false)
}

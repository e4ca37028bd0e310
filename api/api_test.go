package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// serve runs a server over a new store, with a volume v of 64 MiB.
func serve(t *testing.T) (Client, *Server, *store.Store) {
	t.Helper()
	return serveStore(t, store.Options{})
}

func serveStore(t *testing.T, o store.Options) (Client, *Server, *store.Store) {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "d"), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateVolume("v", 64<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	addr, err := UnixAddr(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	l, _, err := addr.Listen(true)
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(s, Options{Info: Info{Version: "test"}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(context.Background()), <-served, s.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return NewClient(addr, Credentials{}), server, s
}

func TestEveryConditionCrossesTheWire(t *testing.T) {
	report := &tidemarkv1.PreserveReport{ProcessesWaited: 3}
	for _, c := range conditions[:len(conditions)-1] {
		err := wireError(fmt.Errorf("volume v: %w", c.is), report)
		detail := Detail(fmt.Errorf("wrapped: %w", err))
		if connect.CodeOf(err) != c.code || detail.GetReason() != c.reason || detail.GetReport().GetProcessesWaited() != 3 {
			t.Errorf("%v arrives as %v, %v", c.is, connect.CodeOf(err), detail)
		}
	}
	if err := wireError(errors.New("disk on fire"), nil); connect.CodeOf(err) != connect.CodeInternal {
		t.Errorf("an unknown error arrives as %v", err)
	}
	if err := wireError(nil, nil); err != nil {
		t.Errorf("no error arrives as %v", err)
	}
	if err := wireError(errors.Join(io.EOF, unix.ENOSPC), nil); Detail(err).GetReason() != tidemarkv1.Reason_REASON_NO_SPACE || bytes.ContainsRune([]byte(err.Error()), '\n') {
		t.Errorf("joined errors arrive as %q", err)
	}
}

func TestEnumsOfTheWireAreThoseOfTheEngine(t *testing.T) {
	for _, pair := range []struct {
		engine fmt.Stringer
		wire   fmt.Stringer
		prefix string
	}{
		{volume.ScopeExplicit, toScope(volume.ScopeExplicit), "SCOPE_EXPLICIT"},
		{volume.Sealed, tidemarkv1.State(volume.Sealed) + 1, "STATE_SEALED"},
		{volume.ConsistencyInterrupted, tidemarkv1.Consistency(volume.ConsistencyInterrupted) + 1, "CONSISTENCY_INTERRUPTED"},
		{volume.TimeoutKeep, tidemarkv1.OnTimeout(volume.TimeoutKeep) + 1, "ON_TIMEOUT_KEEP"},
		{volume.ConflictAbort, tidemarkv1.OnConflict(volume.ConflictAbort) + 1, "ON_CONFLICT_ABORT"},
	} {
		if pair.wire.String() != pair.prefix {
			t.Errorf("%v is %v on the wire, want %s", pair.engine, pair.wire, pair.prefix)
		}
	}
	for _, w := range []tidemarkv1.OnTimeout{-1, 4, 99} {
		if _, err := fromPreserve(&tidemarkv1.PreserveRequest{OnTimeout: w}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("timeout policy %d: %v", w, err)
		}
	}
	r, err := fromPreserve(&tidemarkv1.PreserveRequest{})
	if err != nil || r.Wait != DefaultWait || r.OnTimeout != volume.TimeoutAbort || r.OnConflict != volume.ConflictCount {
		t.Errorf("the defaults are %+v (%v)", r, err)
	}
}

func TestAHeldProcessEndsWithItsHolder(t *testing.T) {
	client, _, s := serve(t)
	hold := func(ctx context.Context) (*connect.ServerStreamForClient[tidemarkv1.HoldProcessResponse], string) {
		stream, err := client.HoldProcess(ctx, &tidemarkv1.HoldProcessRequest{Volumes: []string{"v"}})
		if err != nil || !stream.Receive() {
			t.Fatal(err, stream.Err())
		}
		return stream, stream.Msg().GetProcess().GetToken()
	}
	keep := func(name string) {
		r := store.PreserveRequest{Volumes: []string{"v"}, Name: name, OnTimeout: volume.TimeoutKeep}
		if _, err := s.Preserve(t.Context(), r); !errors.Is(err, store.ErrDraining) {
			t.Fatal(err)
		}
	}
	torn := func(name string) int {
		if err := s.WaitSealed(t.Context(), "v@"+name); err != nil {
			t.Fatal(err)
		}
		snapshot, err := s.Snapshot("v@" + name)
		if err != nil {
			t.Fatal(err)
		}
		return len(snapshot.Torn)
	}

	t.Run("torn, when the stream breaks", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stream, _ := hold(ctx)
		keep("broken")
		cancel()
		_ = stream.Close()
		if torn("broken") != 1 {
			t.Error("the process is not listed as torn")
		}
	})
	t.Run("in order, by EndProcess, and the stream says so", func(t *testing.T) {
		stream, token := hold(t.Context())
		keep("ended")
		if _, err := client.EndProcess(t.Context(), &tidemarkv1.EndProcessRequest{Token: token}); err != nil {
			t.Fatal(err)
		}
		if stream.Receive() || stream.Err() != nil {
			t.Errorf("the stream ended with %v", stream.Err())
		}
		if torn("ended") != 0 {
			t.Error("the process is listed as torn")
		}
	})
	t.Run("a process that runs can be taken over, once", func(t *testing.T) {
		begun, err := client.BeginProcess(t.Context(), &tidemarkv1.BeginProcessRequest{Volumes: []string{"v"}})
		if err != nil {
			t.Fatal(err)
		}
		r := &tidemarkv1.HoldProcessRequest{Token: begun.GetProcess().GetToken()}
		first, err := client.HoldProcess(t.Context(), r)
		if err != nil || !first.Receive() {
			t.Fatal(err, first.Err())
		}
		second, err := client.HoldProcess(t.Context(), r)
		if err != nil || second.Receive() || Detail(second.Err()).GetReason() != tidemarkv1.Reason_REASON_IN_USE {
			t.Errorf("a second holder: %v, %v", err, second.Err())
		}
		if _, err := client.EndProcess(t.Context(), &tidemarkv1.EndProcessRequest{Token: r.GetToken()}); err != nil {
			t.Error(err)
		}
		third, err := client.HoldProcess(t.Context(), r)
		if err != nil || third.Receive() || Detail(third.Err()).GetReason() != tidemarkv1.Reason_REASON_NOT_FOUND {
			t.Errorf("a holder of an ended process: %v, %v", err, third.Err())
		}
	})
}

func TestShutdownBreaksOffTheCallsThatWait(t *testing.T) {
	client, server, _ := serve(t)
	stream, err := client.HoldProcess(t.Context(), &tidemarkv1.HoldProcessRequest{Volumes: []string{"v"}})
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stream.Receive() || Detail(stream.Err()).GetReason() != tidemarkv1.Reason_REASON_CLOSED {
		t.Errorf("the held process ended with %v", stream.Err())
	}
}

func TestAnImportThatIsRefusedSaysWhy(t *testing.T) {
	client, _, _ := serve(t)
	f := image(t, 8<<20, 0, 8<<20)
	for _, test := range []struct {
		what   string
		volume string
		size   int64
		reason tidemarkv1.Reason
	}{
		{"no such volume", "nope", 8 << 20, tidemarkv1.Reason_REASON_NOT_FOUND},
		{"a snapshot", "v@a", 8 << 20, tidemarkv1.Reason_REASON_INVALID},
		{"an export name", "v:session", 8 << 20, tidemarkv1.Reason_REASON_INVALID},
	} {
		_, _, err := Import(t.Context(), client, test.volume, f, test.size, func(int64) {})
		if Detail(err).GetReason() != test.reason {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if _, _, err := Import(t.Context(), client, "v", f, 9<<20, func(int64) {}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is shorter than it was: %v", err)
	}
}

func TestAServerThatIsNotThereIsTold(t *testing.T) {
	addr, _ := UnixAddr(filepath.Join(t.TempDir(), "s"))
	_, err := NewClient(addr, Credentials{}).ListVolumes(t.Context(), &tidemarkv1.ListVolumesRequest{})
	if !errors.Is(err, ErrNoServer) || !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v", err)
	}
}

// image makes a sparse file with one range of data.
func image(t *testing.T, sizeBytes, dataOff, dataBytes int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.NewOffsetWriter(f, dataOff), io.LimitReader(rand.NewChaCha8([32]byte{}), dataBytes)); err != nil {
		t.Fatal(err)
	}
	return f
}

// memory is an export's target.
type memory struct{ data []byte }

func (m *memory) Resize(sizeBytes int64) error { m.data = make([]byte, sizeBytes); return nil }

func (m *memory) WriteAt(p []byte, off int64) (int, error) { return copy(m.data[off:], p), nil }

func (m *memory) Hole(off, lengthBytes int64) error {
	clear(m.data[off : off+lengthBytes])
	return nil
}

func TestAnImportReplacesWhatWasThereAndAnExportReadsIt(t *testing.T) {
	client, _, s := serve(t)
	full := image(t, 64<<20, 0, 64<<20)
	if _, _, err := Import(t.Context(), client, "v", full, 64<<20, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	sparse := image(t, 48<<20+512, 5<<20+100, 3<<20)
	var sent int64
	data, hole, err := Import(t.Context(), client, "v", sparse, 48<<20+512, func(n int64) { sent += n })
	if err != nil || data+hole != 48<<20+512 || sent != data+hole || data > 3<<20+2*lookup.BlockSize {
		t.Fatalf("%d of data, %d of holes, %d told: %v", data, hole, sent, err)
	}
	want := make([]byte, 64<<20)
	read := func(f *os.File, n int) {
		if _, err := f.ReadAt(want[:n], 0); err != nil {
			t.Fatal(err)
		}
	}
	read(full, 64<<20)
	read(sparse, 48<<20+512)
	var got memory
	if _, hole, err = Export(t.Context(), client, "v", &got, func(int64) {}, func(int64) {}); err != nil || hole < 44<<20 {
		t.Fatalf("%d of holes: %v", hole, err)
	}
	if !bytes.Equal(got.data, want) {
		t.Error("the export differs from what was imported")
	}
	info, err := s.Volume("v")
	if err != nil || info.DataBytes > 20<<20 {
		t.Errorf("%d bytes stored (%v): the holes did not stay holes", info.DataBytes, err)
	}
}

func FuzzSplitLosesNothing(f *testing.F) {
	f.Add(uint16(4096), uint16(100), uint16(4096))
	f.Add(uint16(0), uint16(5000), uint16(12288))
	f.Fuzz(func(t *testing.T, before, data, after uint16) {
		p := make([]byte, int(before)+int(data)+int(after))
		for i := range data {
			p[int(before)+int(i)] = byte(i) | 1
		}
		var got []byte
		err := split(7, p, func(off int64, data []byte, hole int64) error {
			if off != 7+int64(len(got)) || (data == nil) != (hole > 0) {
				t.Fatalf("range at %d, %d of data, %d of hole", off, len(data), hole)
			}
			got = append(append(got, data...), make([]byte, hole)...)
			return nil
		})
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("%d bytes came back as %d (%v)", len(p), len(got), err)
		}
	})
}

package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// procedures are those of the service, and how their requests travel.
var procedures = []struct {
	path   string
	stream bool // each message, and the end, is led by a flag and a length
}{
	{rpc.TidemarkServiceGetServerInfoProcedure, false},
	{rpc.TidemarkServiceCreateVolumeProcedure, false},
	{rpc.TidemarkServiceListVolumesProcedure, false},
	{rpc.TidemarkServiceGetVolumeProcedure, false},
	{rpc.TidemarkServiceResizeVolumeProcedure, false},
	{rpc.TidemarkServiceDeleteVolumeProcedure, false},
	{rpc.TidemarkServicePreserveProcedure, false},
	{rpc.TidemarkServiceListSnapshotsProcedure, false},
	{rpc.TidemarkServiceGetSnapshotProcedure, false},
	{rpc.TidemarkServiceVerifySnapshotProcedure, true},
	{rpc.TidemarkServiceBeginProcessProcedure, false},
	{rpc.TidemarkServiceEndProcessProcedure, false},
	{rpc.TidemarkServiceListProcessesProcedure, false},
	{rpc.TidemarkServiceHoldProcessProcedure, true},
	{rpc.TidemarkServiceImportProcedure, true},
	{rpc.TidemarkServiceExportProcedure, true},
	{rpc.TidemarkServiceApplyProcedure, true},
	{rpc.TidemarkServiceHoldVolumeProcedure, true},
	{rpc.TidemarkServiceEndVolumeProcedure, false},
}

// inMemory is a store in memory with a volume v, its snapshot v@s and a process t.
func inMemory(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open("d", store.Options{FS: vfs.NewSim(t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	if _, err := s.CreateVolume("v", 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "s", Wait: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginProcess([]string{"v"}, "t"); err != nil {
		t.Fatal(err)
	}
	return s
}

// FuzzRequest sends any bytes as a request of any method: the server must not
// panic, must not call it its own fault, and must say so in one line.
func FuzzRequest(f *testing.F) {
	index := func(path string) uint8 {
		for i, p := range procedures {
			if p.path == path {
				return uint8(i)
			}
		}
		f.Fatalf("no procedure %s", path)
		return 0
	}
	add := func(path string, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(index(path), false, b)
	}
	for i := range procedures {
		f.Add(uint8(i), false, []byte{})
		f.Add(uint8(i), true, []byte(`{"name":"v"}`))
	}
	add(rpc.TidemarkServiceCreateVolumeProcedure, &tidemarkv1.CreateVolumeRequest{Name: "w", SizeBytes: 1 << 48, Scope: 2})
	add(rpc.TidemarkServiceCreateVolumeProcedure, &tidemarkv1.CreateVolumeRequest{Name: "../w", SizeBytes: -1, Scope: 99})
	add(rpc.TidemarkServiceHoldVolumeProcedure, &tidemarkv1.HoldVolumeRequest{})
	add(rpc.TidemarkServiceHoldVolumeProcedure, &tidemarkv1.HoldVolumeRequest{Volume: &tidemarkv1.CreateVolumeRequest{Name: "v", SizeBytes: 1 << 20}})
	add(rpc.TidemarkServiceEndVolumeProcedure, &tidemarkv1.EndVolumeRequest{Name: "v", Keep: true})
	add(rpc.TidemarkServiceResizeVolumeProcedure, &tidemarkv1.ResizeVolumeRequest{Name: "v", SizeBytes: 1<<63 - 1})
	add(rpc.TidemarkServiceDeleteVolumeProcedure, &tidemarkv1.DeleteVolumeRequest{Name: "v", WithSnapshots: true})
	add(rpc.TidemarkServicePreserveProcedure, &tidemarkv1.PreserveRequest{Volumes: []string{"v", "v"}, Name: "s"})
	add(rpc.TidemarkServicePreserveProcedure, &tidemarkv1.PreserveRequest{Volumes: []string{"v"}, Wait: &durationpb.Duration{Seconds: 1 << 62, Nanos: -1}, OnTimeout: 99})
	add(rpc.TidemarkServicePreserveProcedure, &tidemarkv1.PreserveRequest{Volumes: []string{"v"}, Wait: durationpb.New(0), OnTimeout: 2, OnConflict: 1, UntilSealed: true})
	add(rpc.TidemarkServiceGetSnapshotProcedure, &tidemarkv1.GetSnapshotRequest{Name: "v@s"})
	add(rpc.TidemarkServiceVerifySnapshotProcedure, &tidemarkv1.VerifySnapshotRequest{Name: "v@s"})
	add(rpc.TidemarkServiceBeginProcessProcedure, &tidemarkv1.BeginProcessRequest{Volumes: []string{"v"}, Token: "t"})
	add(rpc.TidemarkServiceEndProcessProcedure, &tidemarkv1.EndProcessRequest{Token: "t", Torn: true})
	add(rpc.TidemarkServiceHoldProcessProcedure, &tidemarkv1.HoldProcessRequest{Token: "t"})
	add(rpc.TidemarkServiceImportProcedure, &tidemarkv1.ImportRequest{Volume: "v", OffsetBytes: 100, Content: &tidemarkv1.ImportRequest_Data{Data: []byte("x")}})
	add(rpc.TidemarkServiceImportProcedure, &tidemarkv1.ImportRequest{Volume: "v", OffsetBytes: 1<<63 - 1, Content: &tidemarkv1.ImportRequest_HoleBytes{HoleBytes: 1<<63 - 1}})
	add(rpc.TidemarkServiceExportProcedure, &tidemarkv1.ExportRequest{Name: "v@s"})
	add(rpc.TidemarkServiceExportProcedure, &tidemarkv1.ExportRequest{Name: "v@s", Since: "v@s"})
	add(rpc.TidemarkServiceExportProcedure, &tidemarkv1.ExportRequest{Name: "v", UntilSealed: true})
	add(rpc.TidemarkServiceApplyProcedure, &tidemarkv1.ApplyRequest{Header: &tidemarkv1.ApplyHeader{Volume: "w", Snapshot: "s", SizeBytes: 1 << 20, Hash: strings.Repeat("0", 64)}})
	add(rpc.TidemarkServiceApplyProcedure, &tidemarkv1.ApplyRequest{Header: &tidemarkv1.ApplyHeader{Volume: "v", Snapshot: "t", SizeBytes: 1 << 62, Hash: "x", BaseHash: "y", BaseSizeBytes: -1}})
	f.Fuzz(func(t *testing.T, which uint8, asJSON bool, body []byte) {
		p := procedures[int(which)%len(procedures)]
		kind := map[bool]string{false: "proto", true: "json"}[asJSON]
		if p.stream {
			kind = "connect+" + kind
			body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
		}
		synctest.Test(t, func(t *testing.T) {
			server := NewServer(inMemory(t), Options{})
			ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), localKey{}, true), time.Minute) // of the bubble's clock
			defer cancel()
			r := httptest.NewRequestWithContext(ctx, http.MethodPost, p.path, bytes.NewReader(body))
			r.Header.Set("Content-Type", "application/"+kind)
			r.Header.Set("Connect-Protocol-Version", "1")
			w := httptest.NewRecorder()
			server.http.Handler.ServeHTTP(w, r)
			if e := failureOf(t, w, p.stream); e.Code == "internal" || e.Code == "unknown" || strings.Contains(e.Message, "\n") {
				t.Errorf("%s answers %s: %q", p.path, e.Code, e.Message)
			}
		})
	})
}

type failure struct{ Code, Message string }

// failureOf is the error in a response, if there is one.
func failureOf(t *testing.T, w *httptest.ResponseRecorder, stream bool) (f failure) {
	t.Helper()
	if !stream {
		if w.Code != http.StatusOK {
			if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil {
				t.Fatalf("status %d: %q", w.Code, w.Body)
			}
		}
		return f
	}
	for b := w.Body.Bytes(); len(b) >= 5; {
		n := int(binary.BigEndian.Uint32(b[1:]))
		if b[0]&2 != 0 {
			var end struct{ Error failure }
			if err := json.Unmarshal(b[5:5+n], &end); err != nil {
				t.Fatalf("the end of the stream is %q", b[5:5+n])
			}
			return end.Error
		}
		b = b[5+n:]
	}
	return f
}

func TestRequestThatIsTooLongIsRefused(t *testing.T) {
	c, _, _ := serve(t)
	_, err := c.GetVolume(t.Context(), &tidemarkv1.GetVolumeRequest{Name: strings.Repeat("v", maxRequestBytes)})
	if Detail(err).GetReason() != tidemarkv1.Reason_REASON_INVALID {
		t.Errorf("a request of a megabyte: %v", err)
	}
	if _, err := c.GetVolume(t.Context(), &tidemarkv1.GetVolumeRequest{Name: "v"}); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

func TestRequestThatDripsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := piped(t, nil)(true)
		go func() {
			_, _ = fmt.Fprintf(client, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: 10\r\n\r\n", rpc.TidemarkServiceGetVolumeProcedure)
			for err := error(nil); err == nil; time.Sleep(20 * time.Second) {
				_, err = client.Write([]byte{0})
			}
		}()
		begin := time.Now()
		_, _ = io.Copy(io.Discard, client)
		if d := time.Since(begin); d > 3*bodyTimeout {
			t.Errorf("it was heard for %v", d)
		}
		_ = client.Close()
		time.Sleep(time.Minute) // the client's last nap
	})
}

func TestWhoIsRefusedDoesNotKeepTheConnection(t *testing.T) {
	const announced = "POST " + rpc.TidemarkServiceListVolumesProcedure + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/proto\r\nContent-Length: 1000\r\n"
	for what, request := range map[string]string{
		"without a token":      announced + "\r\n",
		"with an unknown one":  announced + "Authorization: Bearer x\r\n\r\n",
		"from a page's script": announced + "Sec-Fetch-Site: cross-site\r\n\r\n",
		// An HTTP/2 window of no bytes: the answer can't be sent. Then POST / of x.
		"who takes no answer": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" +
			"\x00\x00\x06\x04\x00\x00\x00\x00\x00" + "\x00\x04\x00\x00\x00\x00" +
			"\x00\x00\x06\x01\x05\x00\x00\x00\x01" + "\x83\x86\x84\x41\x01x",
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := piped(t, nil)(false)
				go func() { _, _ = io.WriteString(client, request) }()
				if err := client.SetReadDeadline(time.Now().Add(10 * bodyTimeout)); err != nil {
					t.Fatal(err)
				}
				if err := hear(client); !errors.Is(err, io.EOF) {
					t.Errorf("it still has its connection: %v", err)
				}
			})
		})
	}
}

// hear reads to the end, and answers HTTP/2 pings: their peer lives.
func hear(nc net.Conn) error {
	r := bufio.NewReader(nc)
	for {
		head, err := r.Peek(9)
		if err != nil || bytes.HasPrefix(head, []byte("HTTP/1.1")) {
			_, e := io.Copy(io.Discard, r)
			return cmp.Or(err, e, io.EOF)
		}
		frame := make([]byte, 9+int(head[0])<<16+int(head[1])<<8+int(head[2]))
		if _, err := io.ReadFull(r, frame); err != nil {
			return err
		}
		if frame[3] == 6 && frame[4] == 0 { // PING, to be sent back with ACK
			frame[4] = 1
			if _, err := nc.Write(frame); err != nil {
				return err
			}
		}
	}
}

func TestTransferThatStandsStillEndsUnlessItComesFromThisMachine(t *testing.T) {
	http1, http2 := new(http.Protocols), new(http.Protocols)
	http1.SetHTTP1(true)
	http2.SetUnencryptedHTTP2(true)
	for _, test := range []struct {
		what  string
		over  *http.Protocols
		local bool
	}{
		{"HTTP/1.1", http1, false},
		{"HTTP/2", http2, false},
		{"HTTP/1.1, on this machine", http1, true},
		{"HTTP/2, on this machine", http2, true},
	} {
		t.Run(test.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				guard, token := tokenGuard(t)
				dial := piped(t, guard)
				ctx, cancel := context.WithTimeout(t.Context(), 10*stallTimeout) // of the bubble's clock
				defer cancel()
				ask := func(path string, body io.Reader) (*http.Response, error) {
					transport := &http.Transport{
						DialContext: func(context.Context, string, string) (net.Conn, error) { return dial(test.local), nil },
						Protocols:   test.over,
						HTTP2:       &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10},
					}
					t.Cleanup(transport.CloseIdleConnections)
					r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://x"+path, body)
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("Content-Type", "application/connect+json")
					r.Header.Set("Authorization", "Bearer "+token)
					return transport.RoundTrip(r)
				}
				message := func(text string) []byte {
					return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text))), text...)
				}

				// One that reads nothing for a while finds the end of its export missing.
				export, err := ask(rpc.TidemarkServiceExportProcedure, bytes.NewReader(message(`{"name":"v"}`)))
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * stallTimeout)
				b, err := io.ReadAll(export.Body)
				_ = export.Body.Close()
				if (err == nil) != test.local {
					t.Errorf("export: %d bytes, %v", len(b), err)
				}

				// One that sends nothing more has its answer before it has sent the end.
				body, more := io.Pipe()
				defer func() { _ = more.Close() }()
				time.AfterFunc(2*stallTimeout, func() { _ = more.Close() })
				go func() { _, _ = more.Write(message(`{"volume":"v"}`)) }()
				begin := time.Now()
				done, err := ask(rpc.TidemarkServiceImportProcedure, body)
				if ended := time.Since(begin) < 2*stallTimeout; ended == test.local || test.local && err != nil {
					t.Errorf("import: answered after %v, %v", time.Since(begin), err)
				}
				if err != nil {
					return // over HTTP/1.1 the answer may be lost with the connection
				}
				if b, err := io.ReadAll(done.Body); err == nil && test.over == http2 && strings.Contains(string(b), "nothing arrived for") == test.local {
					t.Errorf("import: answered %s", b)
				}
				_ = done.Body.Close()
			})
		})
	}
}

func TestTransfersOverTheUnixSocketHavePlacesOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, token := tokenGuard(t)
		dial := piped(t, guard)
		begin := func(unix bool) *bufio.Reader {
			client := dial(unix)
			go func() {
				_, _ = fmt.Fprintf(client, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/connect+proto\r\nContent-Length: 1000\r\n\r\n",
					rpc.TidemarkServiceImportProcedure, token)
			}()
			synctest.Wait()
			return bufio.NewReader(client)
		}
		for range maxTransfers {
			begin(false)
		}
		refused := begin(false)
		unix := begin(true)
		answer, err := http.ReadResponse(refused, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(answer.Body)
		if err != nil || !answer.Close || !strings.Contains(string(b), "resource_exhausted") {
			t.Errorf("one more: %v, %s", answer, b)
		}
		// Its connection ends, though it does not send the body.
		if _, err := refused.ReadByte(); err != io.EOF {
			t.Error(err)
		}
		synctest.Wait()
		if unix.Buffered() != 0 {
			t.Error("it shuts the unix socket")
		}
	})
}

// piped serves a store in memory, with a volume full of data, and returns how
// to connect to it: as over a unix socket, or as over TCP.
func piped(t *testing.T, guard *access.Guard) (dial func(unix bool) net.Conn) {
	t.Helper()
	l := pipes{make(chan net.Conn), make(chan struct{})}
	s := inMemory(t)
	view, err := s.OpenView("v")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := view.WriteAt(bytes.Repeat([]byte{1}, int(view.SizeBytes())), 0); err != nil {
		t.Fatal(err)
	}
	if err := view.Close(); err != nil {
		t.Fatal(err)
	}
	server := NewServer(s, Options{Guard: guard})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
	return func(unix bool) net.Conn {
		client, end := net.Pipe()
		t.Cleanup(func() { _ = client.Close() })
		if unix {
			end = local{end}
		}
		l.conns <- end
		return client
	}
}

// tokenGuard returns a guard who knows one token, and that.
func tokenGuard(t *testing.T) (g *access.Guard, token string) {
	t.Helper()
	token, line, err := access.NewToken("t")
	must(t, err)
	file := filepath.Join(t.TempDir(), "tokens")
	must(t, os.WriteFile(file, []byte(line+"\n"), 0o600))
	g, err = access.Open(access.Files{Tokens: file})
	must(t, err)
	return g, token
}

// pipes is a listener of what a test puts into it.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l pipes) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (pipes) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// local is a connection that seems to come over a unix socket.
type local struct{ net.Conn }

func (local) LocalAddr() net.Addr { return &net.UnixAddr{Net: "unix"} }

func TestCallsBeyondTheLimitAreRefused(t *testing.T) {
	held, inWork := make(chan struct{}), make(chan struct{}, maxTransfers+1)
	l := newLimits(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inWork <- struct{}{}
		<-held
	}))
	ask := func(path string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, path, strings.NewReader(""))
		r.Header.Set("Content-Type", "application/proto")
		l.ServeHTTP(w, r)
		return w
	}
	done := make(chan struct{})
	for range maxTransfers {
		go func() {
			ask(rpc.TidemarkServiceExportProcedure)
			done <- struct{}{}
		}()
	}
	for range maxTransfers {
		<-inWork
	}
	if w := ask(rpc.TidemarkServiceExportProcedure); !strings.Contains(w.Body.String(), "resource_exhausted") {
		t.Errorf("one more: %d %s", w.Code, w.Body)
	}
	close(held)
	ask(rpc.TidemarkServiceGetVolumeProcedure)
	for range maxTransfers {
		<-done
	}
}

func TestConnectionsOfEachNetworkAreLimitedApart(t *testing.T) {
	d := newDoor()
	enter := func(network string) (closed bool) {
		nc := &noted{network: network}
		d.pass(nc, http.StateNew)
		d.pass(nc, http.StateActive)
		return nc.closed
	}
	for n := range maxConnections {
		if enter("tcp") {
			t.Fatalf("connection %d is closed", n)
		}
	}
	if !enter("tcp") {
		t.Errorf("one more over TCP is let in")
	}
	nc := &noted{network: "unix"}
	d.pass(nc, http.StateNew)
	if nc.closed {
		t.Errorf("a flood over TCP shuts the unix socket")
	}
	for old := range d.inside {
		d.pass(old, http.StateClosed)
	}
	if enter("tcp") || d.count["unix"] != 0 {
		t.Errorf("who has left still counts: %v", d.count)
	}
}

// noted is a connection that notes its end.
type noted struct {
	net.Conn
	network string
	closed  bool
}

func (n *noted) LocalAddr() net.Addr { return &net.UnixAddr{Net: n.network} }
func (n *noted) Close() error        { n.closed = true; return nil }

func TestFloodOfCallsHarmsNoOther(t *testing.T) {
	c, _, s := serve(t)
	done := make(chan struct{})
	for range 50 {
		go func() {
			for range 20 {
				stream, err := c.Export(t.Context(), &tidemarkv1.ExportRequest{Name: "v"})
				if err == nil {
					_ = stream.Close() // without a look at it
				}
				_, _ = c.CreateVolume(t.Context(), &tidemarkv1.CreateVolumeRequest{Name: "??", SizeBytes: 1})
			}
			done <- struct{}{}
		}()
	}
	for range 50 {
		if _, err := c.GetVolume(t.Context(), &tidemarkv1.GetVolumeRequest{Name: "v"}); err != nil {
			t.Fatalf("beside a flood: %v", err)
		}
		<-done
	}
	if got := s.Volumes(); len(got) != 1 {
		t.Errorf("%d volumes", len(got))
	}
}

func TestListOf10000VolumesIsBounded(t *testing.T) {
	list := make([]store.VolumeInfo, 10_000)
	for i := range list {
		list[i].Name = fmt.Sprintf("%063d", i)
	}
	b, err := proto.Marshal(&tidemarkv1.ListVolumesResponse{Volumes: each(list, toVolume)})
	if err != nil || len(b) > 4<<20 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

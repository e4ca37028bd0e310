package api

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// guarded is a server on a TCP port of loopback, with volumes a and b, each with
// a snapshot s and a schedule.
type guarded struct {
	*testing.T
	addr  Addr
	store *store.Store
	dir   string
}

// guard runs a server with tokens of the names given, whose files are in dir, and an
// access list (empty: none).
func guard(t *testing.T, list string, withTLS bool, tokens ...string) *guarded {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "d"), store.Options{})
	must(t, err)
	for _, name := range []string{"a", "b"} {
		_, err := s.CreateVolume(name, 1<<20, volume.ScopeRequest)
		must(t, err)
	}
	_, err = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"a", "b"}, Name: "s", UntilSealed: true, Wait: time.Minute})
	must(t, err)
	for _, name := range []string{"a", "b"} {
		_, err := s.SetSchedule(name, store.ScheduleSettings{Every: "@yearly", Keep: "10y:1y"})
		must(t, err)
		_, err = s.CreateGroup(name+"group", []string{name}, false)
		must(t, err)
	}
	write := func(name, text string) string {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		return filepath.Join(dir, name)
	}
	var files access.Files
	var lines strings.Builder
	for _, name := range tokens {
		token, line, err := access.NewToken(name)
		must(t, err)
		lines.WriteString(line + "\n")
		write(name+".token", token)
	}
	if len(tokens) > 0 {
		files.Tokens = write("tokens", lines.String())
	}
	if list != "" {
		files.List = write("access.yaml", list)
	}
	if withTLS {
		authority := certtest.New(t)
		in := func(name string) string { return filepath.Join(dir, name) }
		authority.WriteOwn(in("ca.pem"))
		authority.Write(authority.Issue(nil, "server"), in("server.pem"), in("server.key"))
		authority.Write(authority.Issue(nil, "client"), in("client.pem"), in("client.key"))
		files.Certificate, files.Key, files.ClientCA = in("server.pem"), in("server.key"), in("ca.pem")
	}
	g, err := access.Open(files)
	must(t, err)
	addr, err := ParseAddr("127.0.0.1:0")
	must(t, err)
	l, bound, err := addr.Listen(true)
	must(t, err)
	server := NewServer(s, Options{Guard: g})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(context.Background()), <-served, s.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	return &guarded{t, bound, s, dir}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as returns a client that shows the token of a name.
func (g *guarded) as(name string) Client {
	text, err := os.ReadFile(filepath.Join(g.dir, name+".token"))
	must(g.T, err)
	return NewClient(g.addr, Credentials{Token: string(text)})
}

// calls has one call of each kind, over volume v, snapshot v@s and process p.
func calls(ctx context.Context, c Client, v, p string) map[string]func() error {
	snapshot := v + "@s"
	unary := func(_ any, err error) error { return err }
	return map[string]func() error{
		"GetServerInfo": func() error { return unary(c.GetServerInfo(ctx, &tidemarkv1.GetServerInfoRequest{})) },
		"CreateVolume": func() error {
			return unary(c.CreateVolume(ctx, &tidemarkv1.CreateVolumeRequest{Name: v + "new", SizeBytes: 1 << 20}))
		},
		"ListVolumes": func() error {
			r, err := c.ListVolumes(ctx, &tidemarkv1.ListVolumesRequest{})
			return found(err, slices.ContainsFunc(r.GetVolumes(), func(x *tidemarkv1.Volume) bool { return x.GetName() == v }))
		},
		"GetVolume": func() error { return unary(c.GetVolume(ctx, &tidemarkv1.GetVolumeRequest{Name: v})) },
		"ResizeVolume": func() error {
			return unary(c.ResizeVolume(ctx, &tidemarkv1.ResizeVolumeRequest{Name: v, SizeBytes: 2 << 20}))
		},
		"DeleteVolume": func() error { return unary(c.DeleteVolume(ctx, &tidemarkv1.DeleteVolumeRequest{Name: v})) },
		"Preserve": func() error {
			return unary(c.Preserve(ctx, &tidemarkv1.PreserveRequest{Volumes: []string{v}, Wait: durationpb.New(0)}))
		},
		"ListSnapshots": func() error {
			r, err := c.ListSnapshots(ctx, &tidemarkv1.ListSnapshotsRequest{})
			return found(err, slices.ContainsFunc(r.GetSnapshots(), func(x *tidemarkv1.Snapshot) bool { return x.GetVolume() == v }))
		},
		"GetSnapshot": func() error { return unary(c.GetSnapshot(ctx, &tidemarkv1.GetSnapshotRequest{Name: snapshot})) },
		"VerifySnapshot": func() error {
			return unary(Verify(ctx, c, snapshot, func(int64, int64) {}))
		},
		"BeginProcess": func() error {
			return unary(c.BeginProcess(ctx, &tidemarkv1.BeginProcessRequest{Volumes: []string{v}}))
		},
		"EndProcess": func() error { return unary(c.EndProcess(ctx, &tidemarkv1.EndProcessRequest{Token: p})) },
		"ListProcesses": func() error {
			r, err := c.ListProcesses(ctx, &tidemarkv1.ListProcessesRequest{})
			return found(err, slices.ContainsFunc(r.GetProcesses(), func(x *tidemarkv1.Process) bool { return x.GetToken() == p }))
		},
		"HoldProcess": func() error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := c.HoldProcess(ctx, &tidemarkv1.HoldProcessRequest{Volumes: []string{v}})
			if err == nil && !stream.Receive() {
				err = stream.Err()
			}
			return err
		},
		"CloneVolume": func() error {
			return unary(c.CloneVolume(ctx, &tidemarkv1.CloneVolumeRequest{Snapshot: snapshot, Name: v + "2"}))
		},
		"RollbackVolume": func() error {
			return unary(c.RollbackVolume(ctx, &tidemarkv1.RollbackVolumeRequest{Snapshot: snapshot}))
		},
		"CreateGroup": func() error {
			return unary(c.CreateGroup(ctx, &tidemarkv1.CreateGroupRequest{Name: v + "new", Volumes: []string{v}}))
		},
		"ChangeGroup": func() error {
			return unary(c.ChangeGroup(ctx, &tidemarkv1.ChangeGroupRequest{Name: v + "group", Remove: []string{v}}))
		},
		"DeleteGroup": func() error {
			err := unary(c.DeleteGroup(ctx, &tidemarkv1.DeleteGroupRequest{Name: v + "group"}))
			if err == nil {
				err = unary(c.CreateGroup(ctx, &tidemarkv1.CreateGroupRequest{Name: v + "group", Volumes: []string{v}}))
			}
			return err
		},
		"GetGroup": func() error { return unary(c.GetGroup(ctx, &tidemarkv1.GetGroupRequest{Name: v + "group"})) },
		"ListGroups": func() error {
			r, err := c.ListGroups(ctx, &tidemarkv1.ListGroupsRequest{})
			return found(err, slices.ContainsFunc(r.GetGroups(), func(x *tidemarkv1.Group) bool { return x.GetName() == v+"group" }))
		},
		"CloneGroup": func() error {
			return unary(c.CloneGroup(ctx, &tidemarkv1.CloneGroupRequest{Snapshot: v + "group@s", Name: v + "3"}))
		},
		"RollbackGroup": func() error {
			return unary(c.RollbackGroup(ctx, &tidemarkv1.RollbackGroupRequest{Snapshot: v + "group@s"}))
		},
		"HoldVolume": func() error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := c.HoldVolume(ctx, &tidemarkv1.HoldVolumeRequest{Volume: &tidemarkv1.CreateVolumeRequest{Name: v + "held", SizeBytes: 1 << 20}})
			if err == nil && !stream.Receive() {
				err = stream.Err()
			}
			return err
		},
		"EndVolume": func() error {
			return unary(c.EndVolume(ctx, &tidemarkv1.EndVolumeRequest{Name: v + "none"}))
		},
		"HoldDrill": func() error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := c.HoldDrill(ctx, &tidemarkv1.HoldDrillRequest{Name: snapshot})
			if err == nil && !stream.Receive() {
				err = stream.Err()
			}
			return err
		},
		"EndDrill": func() error {
			return unary(c.EndDrill(ctx, &tidemarkv1.EndDrillRequest{Snapshot: snapshot, Volume: "none"}))
		},
		"DeleteSnapshots": func() error {
			return unary(c.DeleteSnapshots(ctx, &tidemarkv1.DeleteSnapshotsRequest{Names: []string{v + "@none"}}))
		},
		"PreviewDelete": func() error {
			return unary(c.PreviewDelete(ctx, &tidemarkv1.PreviewDeleteRequest{Names: []string{snapshot}}))
		},
		"DiffSnapshots": func() error {
			return Diff(ctx, c, snapshot, v, func(int64, int64, bool) error { return nil })
		},
		"AwaitReclaim": func() error { return AwaitReclaim(ctx, c, func(*tidemarkv1.Reclaim) {}) },
		"HoldSnapshot": func() error {
			return unary(c.HoldSnapshot(ctx, &tidemarkv1.HoldSnapshotRequest{Name: snapshot}))
		},
		"ReleaseSnapshot": func() error {
			return unary(c.ReleaseSnapshot(ctx, &tidemarkv1.ReleaseSnapshotRequest{Name: snapshot}))
		},
		"LabelSnapshot": func() error {
			return unary(c.LabelSnapshot(ctx, &tidemarkv1.LabelSnapshotRequest{Name: snapshot, Set: map[string]string{"k": "v"}}))
		},
		"SetSchedule": func() error {
			return unary(c.SetSchedule(ctx, &tidemarkv1.SetScheduleRequest{Target: v, Every: "@yearly", Keep: "10y:1y"}))
		},
		"PreviewSchedule": func() error {
			return unary(c.PreviewSchedule(ctx, &tidemarkv1.PreviewScheduleRequest{Target: v, Every: "@yearly", Keep: "10y:1y"}))
		},
		"ListSchedules": func() error {
			r, err := c.ListSchedules(ctx, &tidemarkv1.ListSchedulesRequest{})
			return found(err, slices.ContainsFunc(r.GetSchedules(), func(x *tidemarkv1.Schedule) bool { return x.GetTarget() == v }))
		},
		"GetSchedule": func() error { return unary(c.GetSchedule(ctx, &tidemarkv1.GetScheduleRequest{Target: v})) },
		"RemoveSchedule": func() error {
			return unary(c.RemoveSchedule(ctx, &tidemarkv1.RemoveScheduleRequest{Target: v}))
		},
		"Import": func() error {
			stream, err := c.Import(ctx)
			if err != nil {
				return err
			}
			// A server that refuses says why in its answer, not here.
			_ = stream.Send(&tidemarkv1.ImportRequest{Volume: v})
			return unary(stream.CloseAndReceive())
		},
		"Apply": func() error {
			stream, err := c.Apply(ctx)
			if err != nil {
				return err
			}
			_ = stream.Send(&tidemarkv1.ApplyRequest{Header: &tidemarkv1.ApplyHeader{Volume: v + "3", Snapshot: "s", SizeBytes: 1 << 20, Hash: strings.Repeat("0", 64)}})
			_ = stream.Send(&tidemarkv1.ApplyRequest{Content: &tidemarkv1.ApplyRequest_End{End: true}})
			return unary(stream.CloseAndReceive())
		},
		"Export": func() error {
			stream, err := c.Export(ctx, &tidemarkv1.ExportRequest{Name: snapshot})
			if err == nil && !stream.Receive() {
				err = stream.Err()
			}
			if err == nil {
				err = stream.Close()
			}
			return err
		},
	}
}

// found is ErrDenied for a list that does not show what it was asked for.
func found(err error, there bool) error {
	if err == nil && !there {
		return access.ErrDenied
	}
	return err
}

// denied tells whether the server did not let a call do or see anything.
func denied(err error) bool {
	return errors.Is(err, access.ErrDenied) || Detail(err).GetReason() == tidemarkv1.Reason_REASON_DENIED
}

// Each call of the service has a right in the table, asks for that one, and is
// content with it. A call that is added fails here until it does.
func TestEveryCallNeedsItsRight(t *testing.T) {
	methods := tidemarkv1.File_tidemark_v1_tidemark_proto.Services().Get(0).Methods()
	const list = `
tokens:
  none: [{exports: [b], rights: [read, write, preserve, admin]}]
  read: [{exports: [a], rights: [read]}]
  write: [{exports: [a], rights: [write]}]
  preserve: [{exports: [a], rights: [preserve]}]
  admin: [{exports: ["a*"], rights: [admin]}]
`
	give := map[string]access.Rights{
		"none": 0, "read": access.Read, "write": access.Read | access.Write, "preserve": access.Preserve, "admin": access.Admin,
	}
	g := guard(t, list, false, "none", "read", "write", "preserve", "admin", "unlisted")
	for i := range methods.Len() {
		method := methods.Get(i)
		need, known := rights[procedure(method)]
		if !known {
			t.Errorf("%s has no right in the table", method.Name())
			continue
		}
		for name, has := range give {
			begun, err := g.store.BeginProcess([]string{"a"}, "")
			must(t, err)
			call := calls(t.Context(), g.as(name), "a", begun.Token)[string(method.Name())]
			if call == nil {
				t.Fatalf("%s is missing here", method.Name())
			}
			err = call()
			// Who may not use a process, or read a group, is told that there is none.
			hides := method.Name() == "EndProcess" || strings.HasSuffix(string(method.Name()), "Group")
			gone := hides && Detail(err).GetReason() == tidemarkv1.Reason_REASON_NOT_FOUND
			if got := !denied(err) && !gone; got != has.Has(need) {
				t.Errorf("%s with the right to %q: %v, and it needs %q", method.Name(), has, err, need)
			}
			_, _ = g.store.EndProcess(begun.Token, false) // if the call did not
		}
		if err := calls(t.Context(), g.as("unlisted"), "a", "p")[string(method.Name())](); !denied(err) {
			t.Errorf("%s lets in who is not on the list: %v", method.Name(), err)
		}
		if err := calls(t.Context(), NewClient(g.addr, Credentials{}), "a", "p")[string(method.Name())](); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("%s lets in who has shown nothing: %v", method.Name(), err)
		}
	}
	if methods.Len() != len(rights) {
		t.Errorf("%d calls, %d in the table", methods.Len(), len(rights))
	}
}

// The table in docs/access.md has each call where the code has it.
func TestTheDocumentOfRightsSaysWhatTheCodeDoes(t *testing.T) {
	text, err := os.ReadFile("../docs/access.md")
	must(t, err)
	_, table, found := strings.Cut(string(text), "\n| right | NBD | API |\n| --- | --- | --- |\n")
	table, _, ends := strings.Cut(table, "\n\n")
	if !found || !ends {
		t.Fatal("there is no table of rights")
	}
	rows := map[string]access.Rights{
		"(on the list at all)": 0, "read": access.Read, "write (and read)": access.Write, "preserve": access.Preserve, "admin": access.Admin,
	}
	says := map[string]access.Rights{}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "| \n"), "|")
		right, known := rows[strings.TrimSpace(cells[0])]
		if !known || len(cells) != 3 {
			t.Fatalf("a row of %q", cells)
		}
		for _, call := range strings.Split(strings.TrimSpace(cells[2]), ", ") {
			if _, twice := says[call]; twice {
				t.Errorf("%s stands twice", call)
			}
			says[call] = right
		}
	}
	for p, need := range rights {
		call := p[strings.LastIndex(p, "/")+1:]
		if got, there := says[call]; !there || got != need {
			t.Errorf("%s needs %q; in the table it stands at %q: %v", call, need, got, there)
		}
		delete(says, call)
	}
	for call := range says {
		t.Errorf("there is no call %s", call)
	}
}

func procedure(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

// A caller without a right can't tell a volume that it may not see from none.
func TestWhoMayNotReadLearnsNothingOfWhatThereIs(t *testing.T) {
	g := guard(t, "tokens: {t: [{exports: [a], rights: [read]}]}", false, "t")
	c := g.as("t")
	for name, call := range calls(t.Context(), c, "b", "none") {
		there, absent := call(), calls(t.Context(), c, "x", "none")[name]()
		strip := func(err error) string {
			if err == nil {
				return ""
			}
			return strings.NewReplacer(`"b`, `"x`, "group b", "group x").Replace(err.Error())
		}
		if strip(there) != strip(absent) {
			t.Errorf("%s: %v, but for a volume that there is not %v", name, there, absent)
		}
	}
	for _, name := range []string{"b", "x"} {
		r, err := c.ListSnapshots(t.Context(), &tidemarkv1.ListSnapshotsRequest{Volume: name})
		if err != nil || len(r.GetSnapshots()) != 0 {
			t.Errorf("snapshots of %s: %v, %v", name, r, err)
		}
	}
}

// Of many snapshots none is deleted if one of them can't be, or may not.
func TestADeleteLooksAtAllThatItIsToDelete(t *testing.T) {
	g := guard(t, "tokens: {a: [{exports: [a], rights: [admin]}], all: [{exports: ['*'], rights: [admin]}]}", false, "a", "all")
	remove := func(who string, names ...string) error {
		_, err := g.as(who).DeleteSnapshots(t.Context(), &tidemarkv1.DeleteSnapshotsRequest{Names: names})
		return err
	}
	if err := remove("a", "a@s", "b@s"); !denied(err) {
		t.Errorf("with no right to the second: %v", err)
	}
	if err := remove("all", "a@s", "b@s", "b@none"); Detail(err).GetReason() != tidemarkv1.Reason_REASON_NOT_FOUND {
		t.Errorf("without the third: %v", err)
	}
	if list, err := g.store.Snapshots(""); err != nil || len(list) != 2 {
		t.Errorf("left are %+v, %v", list, err)
	}
	must(t, remove("all", "a@s", "b@s"))
	if list, err := g.store.Snapshots(""); err != nil || len(list) != 0 {
		t.Errorf("left are %+v, %v", list, err)
	}
}

// What the schedule of a group lets go may be of a volume that has left the group.
func TestAScheduleOfAGroupNeedsTheRightToAllThatHasItsSnapshots(t *testing.T) {
	list := filepath.Join(t.TempDir(), "access.yaml")
	must(t, os.WriteFile(list, []byte("tokens: {t: [{exports: [mine], rights: [read, admin]}]}"), 0o600))
	guard, err := access.Open(access.Files{List: list})
	must(t, err)
	synctest.Test(t, func(t *testing.T) {
		s := &service{store: inMemory(t), guard: guard}
		for _, name := range []string{"mine", "theirs"} {
			_, err := s.store.CreateVolume(name, 1<<20, volume.ScopeRequest)
			must(t, err)
		}
		_, err := s.store.CreateGroup("g", []string{"mine", "theirs"}, false)
		must(t, err)
		_, err = s.store.SetSchedule("group:g", store.ScheduleSettings{Every: "1h", Keep: "1d:1h"})
		must(t, err)
		<-time.After(time.Hour) // of the bubble's clock
		synctest.Wait()
		_, err = s.store.ChangeGroup("g", nil, []string{"theirs"}, nil)
		must(t, err)
		ctx := probe{t.Context(), func() {}}
		set := func() error {
			_, err := s.SetSchedule(ctx, &tidemarkv1.SetScheduleRequest{Target: "group:g", Every: "1h", Keep: "1h:1h"})
			return err
		}
		preview := func() error {
			_, err := s.PreviewSchedule(ctx, &tidemarkv1.PreviewScheduleRequest{Target: "group:g", Every: "1h", Keep: "1h:1h"})
			return err
		}
		if err := errors.Join(preview(), set()); !denied(preview()) || !denied(set()) {
			t.Errorf("with snapshots of a volume that is another's: %v", err)
		}
		must(t, s.store.DeleteVolume("theirs", true))
		must(t, preview())
		must(t, set())
	})
}

// probe is a call's context that runs a function whenever it is asked who calls.
type probe struct {
	context.Context
	asked func()
}

func (p probe) Value(key any) any {
	if key == (callerKey{}) {
		p.asked()
		return access.Client{Token: "t"}
	}
	return p.Context.Value(key)
}

// A token can be guessed before its process begins: a caller who was let pass
// since there was no such process must not reach the one that begins then.
func TestNoProcessBeginsBetweenTheCheckOfRightsAndTheCall(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "access.yaml")
	must(t, os.WriteFile(list, []byte("tokens: {t: [{exports: [mine], rights: [write]}]}"), 0o600))
	guard, err := access.Open(access.Files{List: list})
	must(t, err)
	for path, body := range map[string]string{
		rpc.TidemarkServiceBeginProcessProcedure: `{"token":"guessed","volumes":["mine"]}`,
		rpc.TidemarkServiceEndProcessProcedure:   `{"token":"guessed","torn":true}`,
		rpc.TidemarkServiceHoldProcessProcedure:  `{"token":"guessed"}`,
	} {
		t.Run(path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &service{store: inMemory(t), guard: guard}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of the bubble's clock
				defer cancel()
				begun := false
				asked := func() {
					if begun || !s.holds.mu.TryLock() {
						return
					}
					defer s.holds.mu.Unlock()
					_, err := s.store.BeginProcess([]string{"v"}, "guessed")
					must(t, err)
					begun = true
				}
				kind := "application/json"
				if path == rpc.TidemarkServiceHoldProcessProcedure {
					kind = "application/connect+json"
					body = string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))) + body
				}
				r := httptest.NewRequestWithContext(probe{ctx, asked}, http.MethodPost, path, strings.NewReader(body))
				r.Header.Set("Content-Type", kind)
				w := httptest.NewRecorder()
				_, handler := rpc.NewTidemarkServiceHandler(s)
				handler.ServeHTTP(w, r)
				if begun {
					t.Errorf("one begins, and then the call says %s; now there are %+v", w.Body, s.store.Processes())
				}
			})
		})
	}
}

func TestTCPWantsACertificateOrAToken(t *testing.T) {
	g := guard(t, "", true, "t")
	trust := func(certificate, key string) *tls.Config {
		in := func(name string) string {
			if name == "" {
				return ""
			}
			return filepath.Join(g.dir, name)
		}
		c, err := access.ClientTLS(in("ca.pem"), in(certificate), in(key), time.Now())
		must(t, err)
		return c
	}
	text, err := os.ReadFile(filepath.Join(g.dir, "t.token"))
	must(t, err)
	other, _, err := access.NewToken("t")
	must(t, err)
	for _, test := range []struct {
		what string
		show Credentials
		want []connect.Code // none: it may
	}{
		{"a certificate", Credentials{TLS: trust("client.pem", "client.key")}, nil},
		{"a token", Credentials{TLS: trust("", ""), Token: string(text)}, nil},
		{"nothing", Credentials{TLS: trust("", "")}, []connect.Code{connect.CodeUnauthenticated}},
		{"another token", Credentials{TLS: trust("", ""), Token: other}, []connect.Code{connect.CodeUnauthenticated}},
		{"a certificate and another token", Credentials{TLS: trust("client.pem", "client.key"), Token: other}, []connect.Code{connect.CodeUnauthenticated}},
		// The server hangs up, which the client may meet while it still sends.
		{"no TLS", Credentials{Token: string(text)}, []connect.Code{connect.CodeUnavailable, connect.CodeCanceled}},
	} {
		for name, call := range calls(t.Context(), NewClient(g.addr, test.show), "a", "p") {
			if name != "ListVolumes" && name != "Export" && name != "Import" { // one of each kind
				continue
			}
			if err := call(); (err != nil) != (test.want != nil) || err != nil && !slices.Contains(test.want, connect.CodeOf(err)) {
				t.Errorf("%s with %s: %v", name, test.what, err)
			}
		}
	}
}

func TestATokenIsNotSentInTheClearBeyondThisMachine(t *testing.T) {
	addr, err := ParseAddr("192.0.2.1:1") // for documentation (RFC 5737): nobody is there
	must(t, err)
	_, err = NewClient(addr, Credentials{Token: "x"}).ListVolumes(t.Context(), &tidemarkv1.ListVolumesRequest{})
	if !errors.Is(err, ErrExposed) {
		t.Errorf("%v", err)
	}
}

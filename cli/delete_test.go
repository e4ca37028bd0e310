package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	rpc "github.com/tidemark/tidemark/api/tidemarkv1/tidemarkv1connect"
)

// deletesTwo is a server that deletes two snapshots, and no more.
type deletesTwo struct {
	rpc.UnimplementedTidemarkServiceHandler
	asked []*tidemarkv1.DeleteSnapshotRequest
}

func (d *deletesTwo) DeleteSnapshot(_ context.Context, r *tidemarkv1.DeleteSnapshotRequest) (*tidemarkv1.DeleteSnapshotResponse, error) {
	if d.asked = append(d.asked, r); len(d.asked) > 2 {
		return nil, connect.NewError(connect.CodeUnknown, errors.New("the disk is gone"))
	}
	return &tidemarkv1.DeleteSnapshotResponse{}, nil
}

func TestWhatWasDeletedBeforeAFailureIsTold(t *testing.T) {
	const why = "tidemark: the disk is gone\n"
	for _, c := range []struct {
		name, stdout, stderr string
		flags                []string
	}{
		{"as lines", "deleted snapshot v@a\ndeleted snapshot v@b\n", why, nil},
		{"beside JSON", "", "deleted v@a, v@b before this failed:\n" + why, []string{"--json"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			service := &deletesTwo{}
			mux := http.NewServeMux()
			mux.Handle(rpc.NewTidemarkServiceHandler(service))
			server := &http.Server{Handler: mux}
			server.Protocols = new(http.Protocols)
			server.Protocols.SetHTTP1(true)
			server.Protocols.SetUnencryptedHTTP2(true)
			go func() { _ = server.Serve(l) }()
			defer func() { _ = server.Close() }()

			var stdout, stderr bytes.Buffer
			code := run(t.Context(), append(c.flags, "--api", "unix:"+socket, "snapshot", "delete", "v@a", "v@b", "v@c", "v@d"), &stdout, &stderr)
			if code != exitFailed || stdout.String() != c.stdout || stderr.String() != c.stderr {
				t.Errorf("%d, %q, %q", code, &stdout, &stderr)
			}
			if len(service.asked) != 3 || len(service.asked[0].GetNext()) != 3 {
				t.Errorf("the server is asked for %v", service.asked)
			}
		})
	}
}

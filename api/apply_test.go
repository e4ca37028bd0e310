package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/stream"
	"github.com/tidemark/tidemark/volume"
)

// written is a stream of a state of 8 blocks of which the first is as said; of all of it, or
// since one that has another first block.
func written(t *testing.T, snapshot string, first, before byte) []byte {
	t.Helper()
	state := func(first byte) (h sealed.Hash) {
		h.Add(0, sealed.SumOf(bytes.Repeat([]byte{first}, 4096)))
		return h
	}
	h := stream.Header{Volume: "elsewhere", Snapshot: snapshot, SizeBytes: 8 * 4096, Hash: state(first)}
	if before != 0 {
		h.Base = &stream.Base{Snapshot: "older", SizeBytes: 8 * 4096, Hash: state(before)}
	}
	var b bytes.Buffer
	w, err := stream.NewWriter(&b, h)
	must(t, err)
	must(t, errors.Join(w.Data(0, bytes.Repeat([]byte{first}, 4096)), w.Close()))
	return b.Bytes()
}

func TestAStreamIsAppliedWholeOrNotAtAll(t *testing.T) {
	c, _, s := serve(t)
	apply := func(b []byte) (*tidemarkv1.ApplyResponse, error) {
		return Apply(t.Context(), c, "w", bytes.NewReader(b))
	}
	all, changes := written(t, "a", 1, 0), written(t, "b", 2, 1)

	broken := errors.New("broken")
	_, err := Apply(t.Context(), c, "w", io.MultiReader(bytes.NewReader(all[:len(all)-50]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("a source that breaks: %v", err)
	}
	if _, err := apply(all[:len(all)-1]); !errors.Is(err, stream.ErrCorrupt) {
		t.Errorf("a stream that is cut off: %v", err)
	}
	if _, err := apply(changes); Detail(err).GetReason() != tidemarkv1.Reason_REASON_NOT_FOUND {
		t.Errorf("changes of a volume that there is not: %v", err)
	}
	if len(s.Volumes()) != 1 {
		t.Errorf("something is left: %+v", s.Volumes())
	}
	done, err := apply(all)
	if err != nil || done.GetSnapshot().GetName() != "a" || done.GetDataBytes() != 4096 || done.GetSnapshot().GetHash() == "" {
		t.Errorf("%v, %v", done, err)
	}
	if _, err := apply(written(t, "b", 3, 2)); Detail(err).GetReason() != tidemarkv1.Reason_REASON_DIFFERS {
		t.Errorf("changes of another state: %v", err)
	}
	if done, err := apply(changes); err != nil || done.GetSnapshot().GetName() != "b" {
		t.Errorf("%v, %v", done, err)
	}
	if _, err := apply(written(t, "a", 3, 2)); Detail(err).GetReason() != tidemarkv1.Reason_REASON_EXISTS {
		t.Errorf("a name that is taken: %v", err)
	}
	v, err := s.Volume("w")
	if err != nil || v.Snapshots != 2 || v.Images != 3 {
		t.Errorf("%+v, %v", v, err)
	}
}

// A caller of the API that says something else than it sends, or does not say that
// it was all, changes nothing.
func TestWhatIsNotWhatTheHeaderSaysIsRefused(t *testing.T) {
	c, _, s := serve(t)
	header := &tidemarkv1.ApplyHeader{Volume: "w", Snapshot: "s", SizeBytes: 8 * 4096, Hash: sealed.Hash{}.String()}
	data := &tidemarkv1.ApplyRequest{Content: &tidemarkv1.ApplyRequest_Data{Data: bytes.Repeat([]byte{1}, 4096)}}
	end := &tidemarkv1.ApplyRequest{Content: &tidemarkv1.ApplyRequest_End{End: true}}
	for name, test := range map[string]struct {
		send []*tidemarkv1.ApplyRequest
		want tidemarkv1.Reason
	}{
		"nothing":                     {nil, tidemarkv1.Reason_REASON_INVALID},
		"no header":                   {[]*tidemarkv1.ApplyRequest{data, end}, tidemarkv1.Reason_REASON_INVALID},
		"no end":                      {[]*tidemarkv1.ApplyRequest{{Header: header}, data}, tidemarkv1.Reason_REASON_INVALID},
		"another content":             {[]*tidemarkv1.ApplyRequest{{Header: header}, data, end}, tidemarkv1.Reason_REASON_CORRUPT},
		"beyond the end":              {[]*tidemarkv1.ApplyRequest{{Header: header}, {OffsetBytes: 8 * 4096, Content: data.GetContent()}, end}, tidemarkv1.Reason_REASON_INVALID},
		"a hole of less than nothing": {[]*tidemarkv1.ApplyRequest{{Header: header}, {Content: &tidemarkv1.ApplyRequest_HoleBytes{HoleBytes: -1}}, end}, tidemarkv1.Reason_REASON_INVALID},
	} {
		to, err := c.Apply(t.Context())
		must(t, err)
		for _, m := range test.send {
			_ = to.Send(m) // the answer says why
		}
		if _, err := to.CloseAndReceive(); Detail(err).GetReason() != test.want {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if len(s.Volumes()) != 1 {
			t.Errorf("%s: something is left: %+v", name, s.Volumes())
		}
	}
}

func TestAnExportSinceIsOfTwoSealedSnapshotsOfOneVolume(t *testing.T) {
	c, _, s := serve(t)
	_, err := s.CreateVolume("w", 1<<20, volume.ScopeRequest)
	must(t, err)
	for _, r := range []store.PreserveRequest{{Volumes: []string{"v", "w"}, Name: "a"}, {Volumes: []string{"v"}, Name: "b"}} {
		r.Wait = time.Minute
		_, err := s.Preserve(context.Background(), r)
		must(t, err)
	}
	none := func(int64) {}
	for _, test := range []struct {
		name, since string
		want        tidemarkv1.Reason
	}{
		{"v@b", "v@a", 0},
		{"v@b", "", 0},
		{"v@b", "w@a", tidemarkv1.Reason_REASON_INVALID},
		{"v@b", "v", tidemarkv1.Reason_REASON_INVALID},
		{"v", "v@a", tidemarkv1.Reason_REASON_INVALID},
		{"v", "", tidemarkv1.Reason_REASON_INVALID},
		{"v@b", "v@none", tidemarkv1.Reason_REASON_NOT_FOUND},
		{"v@none", "v@a", tidemarkv1.Reason_REASON_NOT_FOUND},
	} {
		h, _, err := ExportStream(t.Context(), c, test.name, test.since, io.Discard, none, none)
		if (err != nil) != (test.want != 0) || Detail(err).GetReason() != test.want || err == nil && (h.Base == nil) != (test.since == "") {
			t.Errorf("%s since %q: %+v, %v", test.name, test.since, h, err)
		}
	}
}

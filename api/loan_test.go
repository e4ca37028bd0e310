package api

import (
	"testing"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// A volume that is being filled goes when the caller does, or with EndVolume, which
// may keep it; what has its name by then stays.
func TestANewVolumeEndsWithItsHolderUnlessItIsKept(t *testing.T) {
	client, _, s := serve(t)
	hold := func() (*tidemarkv1.HoldVolumeResponse, func() bool, func() error) {
		stream, err := client.HoldVolume(t.Context(), &tidemarkv1.HoldVolumeRequest{Volume: &tidemarkv1.CreateVolumeRequest{Name: "new", SizeBytes: 1 << 20}})
		if err != nil || !stream.Receive() {
			t.Fatal(err, stream.Err())
		}
		return stream.Msg(), stream.Receive, stream.Close
	}
	end := func(r *tidemarkv1.HoldVolumeResponse, keep bool) error {
		_, err := client.EndVolume(t.Context(), &tidemarkv1.EndVolumeRequest{Name: r.GetVolume().GetName(), Token: r.GetToken(), Keep: keep})
		return err
	}
	want := func(what string, err error, reason tidemarkv1.Reason) {
		t.Helper()
		if Detail(err).GetReason() != reason {
			t.Errorf("%s: %v, want %v", what, err, reason)
		}
	}
	one, more, _ := hold()
	must(t, end(one, false))
	if more() {
		t.Error("the call goes on")
	}
	want("a second end", end(one, true), tidemarkv1.Reason_REASON_NOT_FOUND)

	two, _, leave := hold()
	_ = leave()
	for len(s.Volumes()) > 1 { // it ends when the server notices
		if _, err := s.Volume("v"); err != nil {
			t.Fatal(err)
		}
	}
	want("the end of one that was given up", end(two, true), tidemarkv1.Reason_REASON_NOT_FOUND)

	three, more, leave := hold()
	want("an end by an older token", end(two, false), tidemarkv1.Reason_REASON_NOT_FOUND)
	must(t, end(three, true))
	if more() {
		t.Error("the call goes on")
	}
	_ = leave()
	if _, err := s.Volume("new"); err != nil {
		t.Error(err)
	}

	// One that another took the name of is not that one.
	must(t, s.DeleteVolume("new", false))
	four, _, leave := hold()
	must(t, s.DeleteVolume("new", false))
	five, _, _ := hold()
	_ = leave()
	want("the end of one that was deleted", end(four, false), tidemarkv1.Reason_REASON_NOT_FOUND)
	must(t, end(five, true))
}

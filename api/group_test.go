package api

import (
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// A call on a group needs its right on every volume of it. Who may not read one of
// them is told that there is no such group, who may read them that the right is
// missing, and of a default group that was not named nothing but that.
func TestACallOnAGroupNeedsItsRightOnEveryVolumeOfIt(t *testing.T) {
	const list = `
tokens:
  half: [{exports: [a], rights: [read, write, preserve, admin]}]
  reader: [{exports: [a], rights: [read, write, preserve, admin]}, {exports: [b], rights: [read]}]
  all: [{exports: [a, b], rights: [read, write, preserve, admin]}]
`
	g := guard(t, list, false, "half", "reader", "all")
	_, err := g.store.CreateGroup("g", []string{"a", "b"}, true)
	must(t, err)
	ctx := t.Context()
	unary := func(_ any, err error) tidemarkv1.Reason { return Detail(err).GetReason() }
	for who, want := range map[string]struct{ named, byDefault tidemarkv1.Reason }{
		"half":   {tidemarkv1.Reason_REASON_NOT_FOUND, tidemarkv1.Reason_REASON_DENIED},
		"reader": {tidemarkv1.Reason_REASON_DENIED, tidemarkv1.Reason_REASON_DENIED},
		"all":    {0, 0},
	} {
		c := g.as(who)
		calls := map[string]tidemarkv1.Reason{
			"preserve":      unary(c.Preserve(ctx, &tidemarkv1.PreserveRequest{Groups: []string{"g"}, Wait: durationpb.New(0)})),
			"process":       unary(c.BeginProcess(ctx, &tidemarkv1.BeginProcessRequest{Groups: []string{"g"}, Token: who})),
			"clone":         unary(c.CloneGroup(ctx, &tidemarkv1.CloneGroupRequest{Snapshot: "g@s", Name: "n"})),
			"rollback":      unary(c.RollbackGroup(ctx, &tidemarkv1.RollbackGroupRequest{Snapshot: "g@s", Disconnect: true})),
			"change":        unary(c.ChangeGroup(ctx, &tidemarkv1.ChangeGroupRequest{Name: "g", Remove: []string{"a"}})),
			"put back":      unary(c.ChangeGroup(ctx, &tidemarkv1.ChangeGroupRequest{Name: "g", Add: []string{"a"}})),
			"of a, default": unary(c.BeginProcess(ctx, &tidemarkv1.BeginProcessRequest{Volumes: []string{"a"}})),
		}
		for what, got := range calls {
			expect := want.named
			switch {
			case what == "of a, default":
				expect = want.byDefault
			case what == "clone" && who == "all": // it has no right to n-a and n-b
				expect = tidemarkv1.Reason_REASON_DENIED
			}
			if got != expect {
				t.Errorf("%s by %s: %v, want %v", what, who, got, expect)
			}
		}
	}
}

// The clone of a drill goes when the caller does, and with EndDrill; only that is
// recorded, once.
func TestTheCloneOfADrillEndsWithItsHolder(t *testing.T) {
	client, _, s := serve(t)
	if _, err := client.Preserve(t.Context(), &tidemarkv1.PreserveRequest{Volumes: []string{"v"}, Name: "s", UntilSealed: true}); err != nil {
		t.Fatal(err)
	}
	hold := func() (*tidemarkv1.HoldDrillResponse, func() bool, func() error) {
		stream, err := client.HoldDrill(t.Context(), &tidemarkv1.HoldDrillRequest{Name: "v"})
		if err != nil || !stream.Receive() {
			t.Fatal(err, stream.Err())
		}
		return stream.Msg(), stream.Receive, stream.Close
	}
	end := func(r *tidemarkv1.HoldDrillResponse) error {
		_, err := client.EndDrill(t.Context(), &tidemarkv1.EndDrillRequest{
			Snapshot: r.GetSnapshot(), Volume: r.GetVolume().GetName(), Result: &tidemarkv1.Drill{Command: "c", ExitCode: 2},
		})
		return err
	}
	one, more, _ := hold()
	must(t, end(one))
	if more() {
		t.Error("the call goes on")
	}
	if err := end(one); Detail(err).GetReason() != tidemarkv1.Reason_REASON_NOT_FOUND {
		t.Errorf("a second end: %v", err)
	}
	two, _, leave := hold()
	_ = leave()
	for len(s.Volumes()) > 1 { // it ends when the server notices
		if err := s.WaitSealed(t.Context(), "v@s"); err != nil {
			t.Fatal(err)
		}
	}
	if err := end(two); Detail(err).GetReason() != tidemarkv1.Reason_REASON_NOT_FOUND {
		t.Errorf("the end of one that was given up: %v", err)
	}
	if info, err := s.Snapshot("v@s"); err != nil || info.Drill.ExitCode != 2 || info.Drill.Command != "c" {
		t.Errorf("%+v, %v", info.Drill, err)
	}
}

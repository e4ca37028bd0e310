package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) snapshotHoldCommand() *cobra.Command {
	var until string
	c := &cobra.Command{
		Use:   "hold VOLUME@SNAPSHOT [--until DATE]",
		Short: "Keep a snapshot from being deleted",
		Long: `Keep a snapshot from being deleted: by snapshot delete, by volume delete
--with-snapshots, by a schedule. It is held until 'tidemark snapshot release'.

With --until it is locked until then: nothing releases it before, and another
hold with --until only makes it longer. DATE is a day, which begins at midnight
in UTC; a time as 2027-01-31T12:00:00Z; or a time from now as 12h, 30d or 1y.

The server's clock counts. If it was moved back since a hold was last looked at,
holds with a date are neither made nor judged until it is right again: what is
held so can't be deleted. Who may move the clock ahead can end a hold.`,
		Example:           "  tidemark snapshot hold db@before-upgrade\n  tidemark snapshot hold db@audit-2026 --until 2036-12-31\n  tidemark snapshot hold db@monday --until 30d",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSnapshots(),
		RunE:              func(c *cobra.Command, args []string) error { return a.holdSnapshot(c, args[0], until) },
	}
	c.Flags().StringVar(&until, "until", "", "`DATE` until which nothing releases it")
	completeWords(c, "until", []string{"30d", "1y"})
	return exits(c, exitNotFound, exitTaken, exitDraining, exitNoServer)
}

func (a *app) holdSnapshot(c *cobra.Command, name, until string) error {
	if until == "" && c.Flags().Changed("until") {
		return usage("--until is empty: give a date, or leave it out for a hold that release ends")
	}
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.HoldSnapshot(c.Context(), &tidemarkv1.HoldSnapshotRequest{Name: name, Until: until})
	if err != nil {
		return seeSnapshots(err)
	}
	if a.json {
		return a.printJSON(asSnapshot(r.GetSnapshot()))
	}
	return a.printf("snapshot %s is held %s\n", name, holdText(r.GetSnapshot()))
}

func (a *app) snapshotReleaseCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:   "release VOLUME@SNAPSHOT",
		Short: "End a hold",
		Long: `End a hold that has no date, or whose date has passed. While the date is to come
it is refused, and nothing changes.`,
		Example:           "  tidemark snapshot release db@before-upgrade",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSnapshots(),
		RunE:              func(c *cobra.Command, args []string) error { return a.releaseSnapshot(c, args[0]) },
	}, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) releaseSnapshot(c *cobra.Command, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ReleaseSnapshot(c.Context(), &tidemarkv1.ReleaseSnapshotRequest{Name: name})
	if err != nil {
		return seeSnapshots(err)
	}
	if a.json {
		return a.printJSON(asSnapshot(r.GetSnapshot()))
	}
	return a.printf("snapshot %s is not held\n", name)
}

func (a *app) snapshotLabelCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:   "label VOLUME@SNAPSHOT {KEY=VALUE | KEY-}...",
		Short: "Set and remove labels of a snapshot",
		Long: `Set labels of a snapshot, KEY=VALUE, and remove others, KEY-. KEY is up to 63
letters, digits, dots, underscores, slashes and hyphens, with a letter or digit
at both ends; VALUE is up to 255 bytes of text.`,
		Example:           "  tidemark snapshot label db@before-upgrade release=4.2 ticket-\n  tidemark snapshot ls --label release=4.2",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeSnapshots(),
		RunE:              func(c *cobra.Command, args []string) error { return a.labelSnapshot(c, args[0], args[1:]) },
	}, exitNotFound, exitDraining, exitNoServer)
}

func (a *app) labelSnapshot(c *cobra.Command, name string, changes []string) error {
	request := &tidemarkv1.LabelSnapshotRequest{Name: name}
	set := labelsFlag{}
	for _, change := range changes {
		if key, remove := strings.CutSuffix(change, "-"); remove && key != "" && !strings.Contains(key, "=") {
			request.Remove = append(request.Remove, key)
		} else if err := set.Set(change); err != nil {
			return usage("label %q: %v, or KEY- to remove one", change, err)
		}
	}
	for _, key := range request.GetRemove() {
		if _, both := set[key]; both {
			return usage("label %s is both set and removed", key)
		}
	}
	request.Set = set
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.LabelSnapshot(c.Context(), request)
	if err != nil {
		return seeSnapshots(err)
	}
	if a.json {
		return a.printJSON(asSnapshot(r.GetSnapshot()))
	}
	labels := labelText(r.GetSnapshot().GetLabels(), ", ")
	if labels == "" {
		return a.printf("snapshot %s has no labels\n", name)
	}
	return a.printf("snapshot %s has the labels %s\n", name, labels)
}

// labelsFlag is a flag KEY=VALUE that may be given again and again.
type labelsFlag map[string]string

func (f labelsFlag) String() string { return labelText(f, ",") }
func (f labelsFlag) Type() string   { return "KEY=VALUE" }

func (f labelsFlag) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return fmt.Errorf("give it as KEY=VALUE")
	}
	if was, twice := f[key]; twice && was != value {
		return fmt.Errorf("%s has two values", key)
	}
	f[key] = value
	return nil
}

func labelText(labels map[string]string, between string) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return strings.Join(list, between)
}

// holdText says until when a snapshot is held; empty if nobody ever held it.
func holdText(s *tidemarkv1.Snapshot) string {
	until := formatTime(s.GetHeldUntil())
	switch {
	case s.GetHeld() && s.GetHeldUntil() != nil:
		return "until it is released, and not before " + until
	case s.GetHeld():
		return "until it is released"
	case s.GetHeldUntil() != nil && s.GetHeldUntil().AsTime().Before(time.Now()):
		return "until " + until + ", which has passed"
	case s.GetHeldUntil() != nil:
		return "until " + until
	}
	return ""
}

// holdWord is what a list says of it: held, the date if that is to come, or nothing.
func holdWord(s *tidemarkv1.Snapshot) string {
	switch {
	case s.GetHeld():
		return "held"
	case s.GetHeldUntil() != nil && time.Now().Before(s.GetHeldUntil().AsTime()):
		return s.GetHeldUntil().AsTime().Format(time.DateOnly)
	}
	return "-"
}

// seeSnapshots says where the names are.
func seeSnapshots(err error) error {
	return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
}

package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) snapshotCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "snapshot",
		Short:   "List, show, compare, verify, label, hold and delete snapshots",
		Example: "  tidemark snapshot ls db\n  tidemark snapshot verify db@before-upgrade\n  tidemark snapshot delete db@before-upgrade",
	}, a.snapshotListCommand(), a.snapshotShowCommand(), a.snapshotDiffCommand(), a.snapshotVerifyCommand(),
		a.snapshotLabelCommand(), a.snapshotHoldCommand(), a.snapshotReleaseCommand(), a.snapshotDeleteCommand())
}

func (a *app) snapshotListCommand() *cobra.Command {
	labels, sizes := labelsFlag{}, false
	c := &cobra.Command{
		Use:     "list [VOLUME]",
		Aliases: []string{"ls"},
		Short:   "List the snapshots of a volume, or of all",
		Long: `List snapshots, oldest first.

STATE is draining while processes begun before the cut still run, sealing while
the snapshot is written back, then sealed: immutable and durable.

HOLDS is process (every process begun before the cut is whole), request (every
request is), mixed (some processes are whole, others died or crossed the cut)
or interrupted (the server or the machine stopped: all that was flushed).

VERIFIED is what came of the last comparison with its checksums: ok, bad,
running, or - for none yet. HASH is the beginning of its content hash.

HELD is held, or the day until which it is held (see snapshot hold).

WAITS-FOR names the processes and older snapshots that keep it draining.

DATA is what was written between the snapshot before and this one. --sizes
measures the snapshots too, in one pass over the volume's tables: some 0.15 s
for a thousand with 4 GiB of scattered writes.

` + sizesHelp + `
What several would give back together is what 'snapshot delete --dry-run' says.

While the room of deleted snapshots is given back, a line on stderr says how far
that is.`,
		Example:           "  tidemark snapshot list\n  tidemark snapshot ls db --label release=4.2\n  tidemark snapshot ls db --sizes\n  tidemark snapshot ls db --json | jq -r '.snapshots[].snapshot'",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.listSnapshots(c, &tidemarkv1.ListSnapshotsRequest{Volume: strings.Join(args, ""), Labels: labels, Sizes: sizes})
		},
	}
	c.Flags().BoolVar(&sizes, "sizes", false, "measure what is stored and what is unique")
	c.Flags().Var(labels, "label", "only those with this label; may be given again")
	return exits(c, exitNotFound, exitNoServer)
}

func (a *app) listSnapshots(c *cobra.Command, ask *tidemarkv1.ListSnapshotsRequest) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ListSnapshots(c.Context(), ask)
	if err != nil {
		return seeVolumes(err)
	}
	if a.json {
		return a.printJSON(map[string]any{"snapshots": each(r.GetSnapshots(), asSnapshot), "reclaim": asReclaim(r.GetReclaim())})
	}
	rows := each(r.GetSnapshots(), func(s *tidemarkv1.Snapshot) []string {
		row := []string{
			fullName(s), formatTime(s.GetCutTime()), formatAge(s.GetCutTime(), time.Now()), snapshotState(s), word(s.GetConsistency()),
			formatSize(s.GetSizeBytes()), formatSize(s.GetDataBytes()), strconv.FormatUint(s.GetConflicts(), 10),
			verificationWord(s.GetVerification()), fmt.Sprintf("%.12s", orDash(s.GetHash())),
			holdWord(s), orDash(labelText(s.GetLabels(), ",")), orDash(strings.Join(s.GetWaitsFor(), ",")),
		}
		if !ask.GetSizes() {
			return row
		}
		z := s.GetSizes()
		return append(row, sizeOrDash(z, (*tidemarkv1.Sizes).GetStoredBytes), sizeOrDash(z, (*tidemarkv1.Sizes).GetUniqueBytes), sizeOrDash(z, (*tidemarkv1.Sizes).GetSharedBytes))
	})
	heading := "SNAPSHOT CUT AGE STATE HOLDS SIZE DATA CONFLICTS VERIFIED HASH HELD LABELS WAITS-FOR"
	if ask.GetSizes() {
		heading += " STORED UNIQUE SHARED"
	}
	err = a.printTable(heading, rows)
	if text := reclaimText(r.GetReclaim()); err == nil && text != "" {
		_, err = fmt.Fprintln(a.stderr, text)
	}
	return err
}

func fullName(s *tidemarkv1.Snapshot) string { return s.GetVolume() + "@" + s.GetName() }

func snapshotState(s *tidemarkv1.Snapshot) string {
	if s.GetFailed() != "" {
		return "failed"
	}
	return word(s.GetState())
}

func (a *app) snapshotShowCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "show VOLUME@SNAPSHOT",
		Short:             "Show one snapshot",
		Long:              "Show one snapshot, and what it takes.\n\n" + sizesHelp,
		Example:           "  tidemark snapshot show db@before-upgrade\n  tidemark snapshot show db@before-upgrade --json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSnapshots(),
		RunE:              func(c *cobra.Command, args []string) error { return a.showSnapshot(c, args[0]) },
	}, exitNotFound, exitNoServer)
}

func (a *app) showSnapshot(c *cobra.Command, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.GetSnapshot(c.Context(), &tidemarkv1.GetSnapshotRequest{Name: name})
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	s := r.GetSnapshot()
	if a.json {
		return a.printJSON(asSnapshot(s))
	}
	drain := "still draining"
	if s.GetState() != tidemarkv1.State_STATE_DRAINING {
		drain = formatSpan(s.GetDrainDuration().AsDuration())
	}
	return a.printFields(
		[2]string{"volume", s.GetVolume()},
		[2]string{"snapshot", s.GetName()},
		[2]string{"size", fmt.Sprintf("%s (%d bytes)", formatSize(s.GetSizeBytes()), s.GetSizeBytes())},
		[2]string{"state", word(s.GetState())},
		[2]string{"holds", consistencyText(s.GetConsistency())},
		[2]string{"cut", formatTime(s.GetCutTime())},
		[2]string{"drain", drain},
		[2]string{"conflicts", strconv.FormatUint(s.GetConflicts(), 10)},
		[2]string{"stored", sizesText(s.GetSizes())},
		[2]string{"data", formatSize(s.GetDataBytes())},
		[2]string{"torn", strings.Join(s.GetTornProcesses(), ", ")},
		[2]string{"waits for", strings.Join(s.GetWaitsFor(), ", ")},
		[2]string{"hash", s.GetHash()},
		[2]string{"verified", verificationText(s.GetVerification())},
		[2]string{"schedule", s.GetSchedule()},
		[2]string{"labels", labelText(s.GetLabels(), ", ")},
		[2]string{"held", holdText(s)},
		[2]string{"failed", s.GetFailed()},
		[2]string{"drill", printable(drillText(s.GetDrill()))},
		[2]string{"drill output", drillOutput(s.GetDrill())},
	)
}

func consistencyText(c tidemarkv1.Consistency) string {
	return map[tidemarkv1.Consistency]string{
		tidemarkv1.Consistency_CONSISTENCY_PROCESS:     "every process whole (process)",
		tidemarkv1.Consistency_CONSISTENCY_REQUEST:     "every request whole (request)",
		tidemarkv1.Consistency_CONSISTENCY_MIXED:       "some processes whole (mixed)",
		tidemarkv1.Consistency_CONSISTENCY_INTERRUPTED: "all that was flushed (interrupted)",
	}[c]
}

// snapshotJSON is a snapshot in --json.
type snapshotJSON struct {
	Volume        string     `json:"volume"`
	Snapshot      string     `json:"snapshot"`
	SizeBytes     int64      `json:"sizeBytes"`
	State         string     `json:"state"`
	Consistency   string     `json:"consistency"`
	CutTime       *time.Time `json:"cutTime"`
	DrainSeconds  float64    `json:"drainSeconds"`
	Conflicts     uint64     `json:"conflicts"`
	TornProcesses []string   `json:"tornProcesses"`
	WaitsFor      []string   `json:"waitsFor"`
	DataBytes     int64      `json:"dataBytes"`
	Failed        string     `json:"failed,omitempty"`
	Hash          string     `json:"hash,omitempty"`

	Verification *verificationJSON `json:"verification"`

	Schedule  string            `json:"schedule,omitempty"`
	Labels    map[string]string `json:"labels"`
	Held      bool              `json:"held"`
	HeldUntil *time.Time        `json:"heldUntil"`
	Drill     *drillJSON        `json:"drill,omitempty"`
	*sizesJSON
}

func asSnapshot(s *tidemarkv1.Snapshot) snapshotJSON {
	return snapshotJSON{
		s.GetVolume(), s.GetName(), s.GetSizeBytes(), word(s.GetState()), word(s.GetConsistency()), jsonTime(s.GetCutTime()),
		s.GetDrainDuration().AsDuration().Seconds(), s.GetConflicts(), listed(s.GetTornProcesses()), listed(s.GetWaitsFor()),
		s.GetDataBytes(), s.GetFailed(), s.GetHash(), asVerification(s.GetVerification()),
		s.GetSchedule(), labelled(s.GetLabels()), s.GetHeld(), jsonTime(s.GetHeldUntil()), asDrill(s.GetDrill()), asSizes(s.GetSizes()),
	}
}

// labelled is {} in JSON, never null.
func labelled(labels map[string]string) map[string]string {
	if labels == nil {
		return map[string]string{}
	}
	return labels
}

// listed is [] in JSON, never null.
func listed(list []string) []string { return append([]string{}, list...) }

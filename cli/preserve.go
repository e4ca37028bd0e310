package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) preserveCommand() *cobra.Command {
	var (
		name       string
		wait       time.Duration
		onTimeout  = choice{"abort", []string{"abort", "degrade", "keep"}}
		onConflict = choice{"count", []string{"count", "abort"}}
		until      = choice{"sealing", []string{"sealing", "sealed"}}
		labels     = labelsFlag{}
		groups     []string
	)
	c := &cobra.Command{
		Use:   "preserve {VOLUME | --group GROUP}...",
		Short: "Keep volumes as they are at one instant",
		Long: `Keep one or more volumes as they are at one instant, the cut, while their
clients go on; --group GROUP stands for the volumes of a group. The command
answers when the cut is durable and every I/O process begun before it has ended:
the snapshots are exact then, and read-only as the NBD exports VOLUME@NAME. They
are sealed in the background; --until sealed waits for that too.

The server keeps the deadline of --wait, also when this command is gone. What it
does then is --on-timeout: abort gives the preserve up, degrade cuts again and
waits for requests only, keep leaves the snapshot draining.

A conflict is a read or write by an older process of a block that was written
after the cut. --on-conflict abort gives the preserve up instead of counting it.

--json prints {"cutTime","drainSeconds","largestStallSeconds","processesWaited",
"snapshots":[{"volume","snapshot","state","consistency","conflicts"}]}, then
"largestStallBeforeSeconds" and "tookSeconds"; also with exit codes 5 and 6.`,
		Example: `  tidemark preserve db
  tidemark preserve db wal --name before-upgrade --until sealed --label release=4.2
  tidemark preserve --group shop --name before-upgrade
  tidemark preserve db --wait 5s --on-timeout degrade --json`,
		ValidArgsFunction: a.completeVolumes(1 << 20),
		RunE: func(c *cobra.Command, volumes []string) error {
			if len(volumes)+len(groups) == 0 {
				return usage("name at least one VOLUME, or a --group")
			}
			return a.preserve(c, &tidemarkv1.PreserveRequest{
				Volumes:     volumes,
				Groups:      groups,
				Name:        name,
				Wait:        durationpb.New(wait),
				OnTimeout:   tidemarkv1.OnTimeout(onTimeout.number()),
				OnConflict:  tidemarkv1.OnConflict(onConflict.number()),
				UntilSealed: until.value == "sealed",
				Labels:      labels,
			})
		},
	}
	c.Flags().StringVar(&name, "name", "", "`NAME` of the snapshots (default the time of the cut, as 20060102T150405.000Z)")
	c.Flags().StringArrayVar(&groups, "group", nil, "`GROUP` whose volumes are preserved too; repeat it for more")
	c.Flags().DurationVar(&wait, "wait", api.DefaultWait, "`DURATION` to wait for older processes, as 500ms, 60s or 2m")
	c.Flags().Var(&onTimeout, "on-timeout", "what to do when they have not ended by then")
	c.Flags().Var(&onConflict, "on-conflict", "what to do at a conflict")
	c.Flags().Var(&until, "until", "the state to wait for")
	c.Flags().Var(labels, "label", "label of the snapshots; may be given again")
	completeWords(c, "on-timeout", onTimeout.allowed)
	completeWords(c, "on-conflict", onConflict.allowed)
	completeWords(c, "until", until.allowed)
	a.completeFlag(c, "group", listGroupNames)
	return exits(c, exitNotFound, exitTaken, exitDraining, exitAborted, exitNoServer)
}

func (a *app) preserve(c *cobra.Command, r *tidemarkv1.PreserveRequest) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	answer, err := server.Preserve(c.Context(), r)
	if c.Context().Err() != nil {
		return failed("interrupted; the server goes on with the preserve, see tidemark snapshot list")
	}
	report := answer.GetReport()
	if err != nil {
		report = api.Detail(err).GetReport()
	}
	if report != nil && (err == nil || len(report.GetSnapshots()) > 0 || a.json) {
		if e := a.printReport(report); e != nil {
			return e
		}
	}
	return seeNames(err, r.GetGroups())
}

func (a *app) printReport(r *tidemarkv1.PreserveReport) error {
	if a.json {
		return a.printJSON(asReport(r))
	}
	var conflicts uint64
	for _, s := range r.GetSnapshots() {
		if err := a.printf("%s: %s\n", fullName(s), outcome(s)); err != nil {
			return err
		}
		conflicts += s.GetConflicts()
	}
	return a.printFields(
		[2]string{"cut", formatTime(r.GetCutTime())},
		[2]string{"drain", fmt.Sprintf("%s, waited for %s", formatSpan(r.GetDrainDuration().AsDuration()), plural(int(r.GetProcessesWaited()), "process"))},
		[2]string{"longest request", fmt.Sprintf("%s, and %s in as long a time before", requestSpan(r.GetLargestStall()), requestSpan(r.GetLargestStallBefore()))},
		[2]string{"conflicts", conflictText(conflicts)},
	)
}

// outcome says what a snapshot is; one that drains may yet become less whole.
func outcome(s *tidemarkv1.Snapshot) string {
	if s.GetState() == tidemarkv1.State_STATE_DRAINING {
		return "draining"
	}
	return word(s.GetState()) + ", " + consistencyText(s.GetConsistency())
}

// requestSpan is the longest time of a request, of which there may be none.
func requestSpan(d *durationpb.Duration) string {
	if d.AsDuration() == 0 {
		return "none"
	}
	return formatSpan(d.AsDuration())
}

func conflictText(n uint64) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprintf("%d: processes touched blocks that were written after the cut", n)
}

// reportJSON is the answer of preserve in --json.
type reportJSON struct {
	CutTime                   *time.Time     `json:"cutTime"`
	DrainSeconds              float64        `json:"drainSeconds"`
	LargestStallSeconds       float64        `json:"largestStallSeconds"`
	ProcessesWaited           int32          `json:"processesWaited"`
	Snapshots                 []preserveJSON `json:"snapshots"`
	LargestStallBeforeSeconds float64        `json:"largestStallBeforeSeconds"`
	TookSeconds               float64        `json:"tookSeconds"`
}

type preserveJSON struct {
	Volume      string `json:"volume"`
	Snapshot    string `json:"snapshot"`
	State       string `json:"state"`
	Consistency string `json:"consistency"`
	Conflicts   uint64 `json:"conflicts"`
}

func asReport(r *tidemarkv1.PreserveReport) reportJSON {
	return reportJSON{
		CutTime:             jsonTime(r.GetCutTime()),
		DrainSeconds:        r.GetDrainDuration().AsDuration().Seconds(),
		LargestStallSeconds: r.GetLargestStall().AsDuration().Seconds(),
		ProcessesWaited:     r.GetProcessesWaited(),
		Snapshots: each(r.GetSnapshots(), func(s *tidemarkv1.Snapshot) preserveJSON {
			return preserveJSON{s.GetVolume(), s.GetName(), word(s.GetState()), word(s.GetConsistency()), s.GetConflicts()}
		}),
		LargestStallBeforeSeconds: r.GetLargestStallBefore().AsDuration().Seconds(),
		TookSeconds:               r.GetTook().AsDuration().Seconds(),
	}
}

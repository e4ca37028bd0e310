package cli

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// groupTarget begins the target of a schedule that is a group's.
const groupTarget = "group:"

func (a *app) scheduleCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "schedule",
		Short:   "Preserve volumes again and again, and let old snapshots go",
		Example: "  tidemark schedule set db --every 1h --keep 24h:1h,30d:1d,1y:1mo\n  tidemark schedule set group:shop --every 15m --keep 24h:1h\n  tidemark schedule ls",
	}, a.scheduleSetCommand(), a.scheduleListCommand(), a.scheduleShowCommand(), a.scheduleRemoveCommand())
}

func (a *app) scheduleSetCommand() *cobra.Command {
	set := scheduleFlags{onTimeout: choice{"abort", []string{"abort", "degrade"}}}
	var dryRun bool
	c := &cobra.Command{
		Use:   "set VOLUME|group:GROUP --every WHEN --keep POLICY [--drill NAME [--drill-every WHEN]]",
		Short: "Set or replace the schedule of a volume or a group",
		Long: `Set or replace the schedule of a volume. The server preserves it whenever it is
due, names the snapshot by its time, and then deletes those that are to be kept
no more. It deletes only what this schedule has made, and nothing that is held,
open or draining: that has its turn the next time.

With group:GROUP it is the schedule of a group: the volumes that it has just
then are preserved at one cut. POLICY says what is kept of each, by itself, and
of a volume that has left the group too, as long as the group has a schedule.

WHEN is a period, as 15m, 1h, 1d or 1w, counted on the clock (1h is at each full
hour, 1w on Mondays); or five fields of cron; or @hourly, @daily, @weekly,
@monthly, @yearly. All times are UTC. What was due while no server ran is made
up for by one snapshot at its start.

POLICY says for how long one is kept in each stretch of time. As an example,
24h:1h,30d:1d,1y:1mo is one an hour for 24 hours, one a day for 30 days and one
a month for a year. The oldest of each stretch is the one; the newest of all is
always kept.

A preserve waits for processes begun before it, for the time of --wait, and then
does what --on-timeout says, as in 'tidemark preserve': abort gives it up,
degrade cuts again and waits for requests only. A volume of --scope session with
a client that never leaves has no scheduled snapshot without degrade. What comes
due while a preserve waits is left out.

A schedule that can't make a snapshot tells it in the log and in 'schedule
list', deletes nothing, and tries again the next time.

With --drill the server tries whether snapshots of the schedule can be restored,
as 'tidemark drill' does: it runs NAME, a program of its --drills directory, on
a clone of the newest one, and records on it whether it passed. It does so when
the snapshot is sealed, of each or, with --drill-every, of the first after each
WHEN; at once if one is due now. No snapshot is late for a drill: what comes due
while one runs is left out. Of each volume the newest snapshot that was drilled,
and the newest that passed, are kept beside what POLICY keeps. What failed is in
the log and in 'schedule list'; 'snapshot show' has what NAME printed.

--dry-run changes nothing, and tells when it would be due and what it would
delete now.`,
		Example: `  tidemark schedule set db --every 1h --keep 24h:1h,30d:1d,1y:1mo
  tidemark schedule set group:shop --every 15m --keep 24h:1h,30d:1d
  tidemark schedule set vm --every 1h --keep 24h:1h --wait 5s --on-timeout degrade
  tidemark schedule set db --every 1h --keep 24h:1h,30d:1d --drill check-db
  tidemark schedule set db --every 1h --keep 24h:1h --drill check-db --drill-every 1d
  tidemark schedule set db --every '30 2 * * 1-5' --keep 4w:1d --dry-run`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, listTargets),
		RunE: func(c *cobra.Command, args []string) error {
			if err := set.check(c); err != nil {
				return err
			}
			if dryRun {
				return a.previewSchedule(c, args[0], set)
			}
			return a.setSchedule(c, args[0], set)
		},
	}
	c.Flags().StringVar(&set.every, "every", "", "`WHEN` it is due: a period as 1h, or as cron says")
	c.Flags().StringVar(&set.keep, "keep", "", "`POLICY` of what is kept, as 24h:1h,30d:1d,1y:1mo")
	c.Flags().StringVar(&set.drill, "drill", "", "`NAME` of the server's program that looks at clones of the snapshots")
	c.Flags().StringVar(&set.drillEvery, "drill-every", "", "`WHEN` it does (default each snapshot)")
	c.Flags().DurationVar(&set.wait, "wait", api.DefaultWait, "`DURATION` to wait for older processes, as 500ms, 60s or 2m")
	c.Flags().Var(&set.onTimeout, "on-timeout", "what to do when they have not ended by then")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; tell when it would be due and what it would delete")
	mustHave(c, "every")
	mustHave(c, "keep")
	completeWords(c, "every", []string{"15m", "1h", "1d", "1w", "@hourly", "@daily", "@weekly", "@monthly"})
	completeWords(c, "keep", []string{"24h:1h,30d:1d,1y:1mo"})
	a.completeFlag(c, "drill", listDrills)
	completeWords(c, "drill-every", []string{"1d", "1w", "@daily", "@weekly", "@monthly"})
	completeWords(c, "on-timeout", set.onTimeout.allowed)
	return exits(c, exitNotFound, exitNoServer)
}

// scheduleFlags are what is said of a schedule.
type scheduleFlags struct {
	every, keep, drill, drillEvery string
	wait                           time.Duration
	onTimeout                      choice
}

// check refuses what the server would take for nothing said.
func (f scheduleFlags) check(c *cobra.Command) error {
	every := c.Flags().Changed("drill-every")
	switch {
	case c.Flags().Changed("drill") && f.drill == "":
		return usage("--drill is empty: name a program, or leave it out for no drills")
	case every && f.drill == "":
		return usage("--drill-every %q: say by --drill what is to run", f.drillEvery)
	case every && f.drillEvery == "":
		return usage("--drill-every is empty: give a period as 1d, or leave it out for each snapshot")
	}
	return nil
}

func (a *app) setSchedule(c *cobra.Command, target string, set scheduleFlags) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.SetSchedule(c.Context(), &tidemarkv1.SetScheduleRequest{
		Target: target, Every: set.every, Keep: set.keep, Drill: set.drill, DrillEvery: set.drillEvery,
		Wait: durationpb.New(set.wait), OnTimeout: tidemarkv1.OnTimeout(set.onTimeout.number()),
	})
	if err != nil {
		return seeTargets(err, target)
	}
	x := r.GetSchedule()
	if a.json {
		return a.printJSON(asSchedule(x))
	}
	drills := ""
	if x.GetDrill() != "" {
		drills = fmt.Sprintf("; %s drills %s", x.GetDrill(), drillPeriod(x))
	}
	return a.printf("%s is preserved every %s, next at %s; up to %s%s kept%s\n", target, set.every, formatTime(x.GetNextTime()), plural(int(x.GetMost()), "snapshot"), ofEach(target), drills)
}

// ofEach says of what a schedule keeps so many at most, where that is not clear.
func ofEach(target string) string {
	if strings.HasPrefix(target, groupTarget) {
		return " of each volume"
	}
	return ""
}

// drillPeriod says which snapshots a schedule drills.
func drillPeriod(x *tidemarkv1.Schedule) string {
	if x.GetDrillEvery() == "" {
		return "each snapshot"
	}
	return "one snapshot every " + x.GetDrillEvery()
}

func (a *app) previewSchedule(c *cobra.Command, target string, set scheduleFlags) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.PreviewSchedule(c.Context(), &tidemarkv1.PreviewScheduleRequest{
		Target: target, Every: set.every, Keep: set.keep, Drill: set.drill, DrillEvery: set.drillEvery,
		Wait: durationpb.New(set.wait), OnTimeout: tidemarkv1.OnTimeout(set.onTimeout.number()),
	})
	if err != nil {
		return seeTargets(err, target)
	}
	if a.json {
		return a.printJSON(map[string]any{"next": each(r.GetNextTimes(), jsonTime), "delete": listed(r.GetExpired())})
	}
	for _, next := range r.GetNextTimes() {
		if err := a.printf("would preserve %s at %s\n", target, formatTime(next)); err != nil {
			return err
		}
	}
	for _, name := range r.GetExpired() {
		if err := a.printf("would delete %s now\n", name); err != nil {
			return err
		}
	}
	if len(r.GetExpired()) == 0 {
		return a.printf("would delete nothing now\n")
	}
	return nil
}

func (a *app) scheduleListCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the schedules",
		Long: `List the schedules. TARGET is a volume, or group:GROUP. NEXT is when each is
due, LAST the cut of the newest snapshot that it made, SNAPSHOTS how many it
made that are there, on all volumes of a group together, and on those that have
left it. STATE is ok, or failed when it did not do what was due the last time;
'tidemark schedule show' says why. DRILL is what came of the last drills: passed
or failed, and of which snapshot, by its cut; of a group, of the volume that
failed. It is failed too when no drill could be made, none if none was yet, and
- without --drill.`,
		Example: `  tidemark schedule list
  tidemark schedule ls --json | jq -r '.schedules[] | select(.failed) | .target'
  tidemark schedule ls --json | jq -r '.schedules[].drill.last[]? | select(.passed | not) | .snapshot'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.listSchedules(c) },
	}, exitNoServer)
}

func (a *app) listSchedules(c *cobra.Command) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ListSchedules(c.Context(), &tidemarkv1.ListSchedulesRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"schedules": each(r.GetSchedules(), asSchedule)})
	}
	rows := each(r.GetSchedules(), func(x *tidemarkv1.Schedule) []string {
		return []string{
			x.GetTarget(), x.GetEvery(), x.GetKeep(), orDash(formatTime(x.GetNextTime())), orDash(formatTime(x.GetLastTime())),
			strconv.Itoa(int(x.GetSnapshots())), scheduleState(x), scheduleDrill(x),
		}
	})
	return a.printTable("TARGET EVERY KEEP NEXT LAST SNAPSHOTS STATE DRILL", rows)
}

func scheduleState(x *tidemarkv1.Schedule) string {
	if x.GetFailed() != "" {
		return "failed"
	}
	return "ok"
}

// scheduleDrill says in a word or two how the drills of a schedule go: a failure first.
func scheduleDrill(x *tidemarkv1.Schedule) string {
	last := ""
	for _, d := range x.GetDrilled() {
		if d.GetDrill().GetExitCode() != 0 {
			return "failed " + d.GetName()
		}
		last = "passed " + d.GetName()
	}
	switch {
	case x.GetDrill() == "":
		return "-"
	case x.GetDrillFailed() != "":
		return "failed"
	}
	return cmp.Or(last, "none")
}

func (a *app) scheduleShowCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "show VOLUME|group:GROUP",
		Short:             "Show the schedule of a volume or a group",
		Example:           "  tidemark schedule show db\n  tidemark schedule show group:shop --json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, listScheduleTargets),
		RunE:              func(c *cobra.Command, args []string) error { return a.showSchedule(c, args[0]) },
	}, exitNotFound, exitNoServer)
}

func (a *app) showSchedule(c *cobra.Command, target string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.GetSchedule(c.Context(), &tidemarkv1.GetScheduleRequest{Target: target})
	if err != nil {
		return seeSchedules(err)
	}
	x := r.GetSchedule()
	if a.json {
		return a.printJSON(asSchedule(x))
	}
	return a.printFields(
		[2]string{"target", x.GetTarget()},
		[2]string{"every", x.GetEvery()},
		[2]string{"keep", x.GetKeep()},
		[2]string{"wait", x.GetWait().AsDuration().String() + ", then " + word(x.GetOnTimeout())},
		[2]string{"next", orDash(formatTime(x.GetNextTime()))},
		[2]string{"last", orDash(formatTime(x.GetLastTime()))},
		[2]string{"snapshots", fmt.Sprintf("%d, at most %d%s", x.GetSnapshots(), x.GetMost(), ofEach(x.GetTarget()))},
		[2]string{"failed", x.GetFailed()},
		[2]string{"drill", drillSetting(x)},
		[2]string{"drilling", x.GetDrilling()},
		[2]string{"last drill", strings.Join(each(x.GetDrilled(), func(d *tidemarkv1.DrilledSnapshot) string {
			return d.GetName() + " " + drillText(d.GetDrill())
		}), "\n\t")},
		[2]string{"drill failed", x.GetDrillFailed()},
	)
}

// drillSetting is what a schedule says of drills, empty if it has none.
func drillSetting(x *tidemarkv1.Schedule) string {
	if x.GetDrill() == "" {
		return ""
	}
	return x.GetDrill() + ", " + drillPeriod(x)
}

func (a *app) scheduleRemoveCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "remove VOLUME|group:GROUP",
		Aliases:           []string{"rm"},
		Short:             "Remove the schedule of a volume or a group",
		Long:              "Remove the schedule of a volume or a group. The snapshots that it made stay,\nuntil somebody deletes them or sets another schedule of the same volume or\ngroup. A drill that runs ends.",
		Example:           "  tidemark schedule remove db\n  tidemark schedule remove group:shop",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, listScheduleTargets),
		RunE:              func(c *cobra.Command, args []string) error { return a.removeSchedule(c, args[0]) },
	}, exitNotFound, exitNoServer)
}

func (a *app) removeSchedule(c *cobra.Command, target string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	if _, err := server.RemoveSchedule(c.Context(), &tidemarkv1.RemoveScheduleRequest{Target: target}); err != nil {
		return seeSchedules(err)
	}
	if a.json {
		return a.printJSON(map[string]any{"removed": target})
	}
	return a.printf("removed the schedule of %s; its snapshots stay\n", target)
}

// seeTargets says where the targets of schedules are.
func seeTargets(err error, target string) error {
	if strings.HasPrefix(target, groupTarget) {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark group list")
	}
	return seeVolumes(err)
}

// seeSchedules says where the schedules are.
func seeSchedules(err error) error {
	return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark schedule list")
}

// scheduleJSON is a schedule in --json.
type scheduleJSON struct {
	Target    string     `json:"target"` // a volume, or group:GROUP
	Every     string     `json:"every"`
	Keep      string     `json:"keep"`
	Next      *time.Time `json:"next"`
	Last      *time.Time `json:"last"`
	Snapshots int32      `json:"snapshots"`
	Most      int32      `json:"most"`
	// WaitSeconds for older processes, and then OnTimeout: abort or degrade.
	WaitSeconds float64 `json:"waitSeconds"`
	OnTimeout   string  `json:"onTimeout"`
	Failed      string  `json:"failed,omitempty"`
	// Drill is left out where there is none.
	Drill *scheduleDrillJSON `json:"drill,omitempty"`
}

// scheduleDrillJSON is what a schedule has to say of drills.
type scheduleDrillJSON struct {
	Program string        `json:"program"`
	Every   string        `json:"every,omitempty"` // left out: each snapshot
	Running string        `json:"running,omitempty"`
	Failed  string        `json:"failed,omitempty"`
	Last    []drilledJSON `json:"last"`
}

// drilledJSON is the last drill of a volume.
type drilledJSON struct {
	Snapshot    string     `json:"snapshot"`
	Time        *time.Time `json:"time"`
	TookSeconds float64    `json:"tookSeconds"`
	Passed      bool       `json:"passed"`
	ExitCode    int32      `json:"exitCode"`
}

func asSchedule(x *tidemarkv1.Schedule) scheduleJSON {
	return scheduleJSON{
		x.GetTarget(), x.GetEvery(), x.GetKeep(), jsonTime(x.GetNextTime()), jsonTime(x.GetLastTime()), x.GetSnapshots(), x.GetMost(),
		x.GetWait().AsDuration().Seconds(), word(x.GetOnTimeout()), x.GetFailed(), asScheduleDrill(x),
	}
}

func asScheduleDrill(x *tidemarkv1.Schedule) *scheduleDrillJSON {
	if x.GetDrill() == "" {
		return nil
	}
	return &scheduleDrillJSON{
		x.GetDrill(), x.GetDrillEvery(), x.GetDrilling(), x.GetDrillFailed(),
		each(x.GetDrilled(), func(s *tidemarkv1.DrilledSnapshot) drilledJSON {
			d := s.GetDrill()
			return drilledJSON{s.GetName(), jsonTime(d.GetTime()), d.GetTook().AsDuration().Seconds(), d.GetExitCode() == 0, d.GetExitCode()}
		}),
	}
}

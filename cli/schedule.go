package cli

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) scheduleCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "schedule",
		Short:   "Preserve volumes again and again, and let old snapshots go",
		Example: "  tidemark schedule set db --every 1h --keep 24h:1h,30d:1d,1y:1mo\n  tidemark schedule ls",
	}, a.scheduleSetCommand(), a.scheduleListCommand(), a.scheduleShowCommand(), a.scheduleRemoveCommand())
}

func (a *app) scheduleSetCommand() *cobra.Command {
	var every, keep string
	var dryRun bool
	c := &cobra.Command{
		Use:   "set VOLUME|group:GROUP --every WHEN --keep POLICY",
		Short: "Set or replace the schedule of a volume or a group",
		Long: `Set or replace the schedule of a volume. The server preserves it whenever it is
due, names the snapshot by its time, and then deletes those that are to be kept
no more. It deletes only what this schedule has made, and nothing that is held,
open or draining: that has its turn the next time. With group:GROUP all volumes
of the group are preserved at one cut; what each keeps is its own.

WHEN is a period, as 15m, 1h, 1d or 1w, counted on the clock (1h is at each full
hour, 1w on Mondays); or five fields of cron; or @hourly, @daily, @weekly,
@monthly, @yearly. All times are UTC. What was due while no server ran is made
up for by one snapshot at its start.

POLICY says for how long one is kept in each stretch of time. As an example,
24h:1h,30d:1d,1y:1mo is one an hour for 24 hours, one a day for 30 days and one
a month for a year. The oldest of each stretch is the one; the newest of all is
always kept.

A preserve waits a minute for processes begun before it, and is given up then. A
schedule that can't make a snapshot tells it in the log and in 'schedule list',
deletes nothing, and tries again the next time.

--dry-run changes nothing, and tells when it would be due and what it would
delete now.`,
		Example: `  tidemark schedule set db --every 1h --keep 24h:1h,30d:1d,1y:1mo
  tidemark schedule set group:shop --every 15m --keep 24h:1h,30d:1d
  tidemark schedule set db --every '30 2 * * 1-5' --keep 4w:1d --dry-run`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(c *cobra.Command, args []string) error {
			if dryRun {
				return a.previewSchedule(c, args[0], every, keep)
			}
			return a.setSchedule(c, args[0], every, keep)
		},
	}
	c.Flags().StringVar(&every, "every", "", "`WHEN` it is due: a period as 1h, or as cron says")
	c.Flags().StringVar(&keep, "keep", "", "`POLICY` of what is kept, as 24h:1h,30d:1d,1y:1mo")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; tell when it would be due and what it would delete")
	mustHave(c, "every")
	mustHave(c, "keep")
	completeWords(c, "every", []string{"15m", "1h", "1d", "1w", "@hourly", "@daily", "@weekly", "@monthly"})
	completeWords(c, "keep", []string{"24h:1h,30d:1d,1y:1mo"})
	return exits(c, exitNotFound, exitNoServer)
}

func (a *app) setSchedule(c *cobra.Command, target, every, keep string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.SetSchedule(c.Context(), &tidemarkv1.SetScheduleRequest{Target: target, Every: every, Keep: keep})
	if err != nil {
		return seeVolumes(err)
	}
	x := r.GetSchedule()
	if a.json {
		return a.printJSON(asSchedule(x))
	}
	return a.printf("%s is preserved every %s, next at %s; up to %s kept\n", target, every, formatTime(x.GetNextTime()), plural(int(x.GetMost()), "snapshot"))
}

func (a *app) previewSchedule(c *cobra.Command, target, every, keep string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.PreviewSchedule(c.Context(), &tidemarkv1.PreviewScheduleRequest{Target: target, Every: every, Keep: keep})
	if err != nil {
		return seeVolumes(err)
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
		Long: `List the schedules. NEXT is when each is due, LAST the cut of the newest
snapshot that it made, SNAPSHOTS how many it made that are there. STATE is ok,
or failed when it did not do what was due the last time; 'tidemark schedule
show' says why.`,
		Example: "  tidemark schedule list\n  tidemark schedule ls --json | jq -r '.schedules[] | select(.failed) | .volume'",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.listSchedules(c) },
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
			strconv.Itoa(int(x.GetSnapshots())), scheduleState(x),
		}
	})
	return a.printTable("TARGET EVERY KEEP NEXT LAST SNAPSHOTS STATE", rows)
}

func scheduleState(x *tidemarkv1.Schedule) string {
	if x.GetFailed() != "" {
		return "failed"
	}
	return "ok"
}

func (a *app) scheduleShowCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "show VOLUME|group:GROUP",
		Short:             "Show the schedule of a volume",
		Example:           "  tidemark schedule show db\n  tidemark schedule show db --json",
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
		[2]string{"volume", x.GetTarget()},
		[2]string{"every", x.GetEvery()},
		[2]string{"keep", x.GetKeep()},
		[2]string{"next", orDash(formatTime(x.GetNextTime()))},
		[2]string{"last", orDash(formatTime(x.GetLastTime()))},
		[2]string{"snapshots", fmt.Sprintf("%d, at most %d", x.GetSnapshots(), x.GetMost())},
		[2]string{"failed", x.GetFailed()},
	)
}

func (a *app) scheduleRemoveCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "remove VOLUME|group:GROUP",
		Aliases:           []string{"rm"},
		Short:             "Remove the schedule of a volume",
		Long:              "Remove the schedule of a volume. The snapshots that it made stay, until somebody\ndeletes them or sets another schedule.",
		Example:           "  tidemark schedule remove db",
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

// seeSchedules says where the schedules are.
func seeSchedules(err error) error {
	return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark schedule list")
}

// scheduleJSON is a schedule in --json.
type scheduleJSON struct {
	Volume    string     `json:"volume"`
	Every     string     `json:"every"`
	Keep      string     `json:"keep"`
	Next      *time.Time `json:"next"`
	Last      *time.Time `json:"last"`
	Snapshots int32      `json:"snapshots"`
	Most      int32      `json:"most"`
	Failed    string     `json:"failed,omitempty"`
}

func asSchedule(x *tidemarkv1.Schedule) scheduleJSON {
	return scheduleJSON{
		x.GetTarget(), x.GetEvery(), x.GetKeep(), jsonTime(x.GetNextTime()), jsonTime(x.GetLastTime()), x.GetSnapshots(), x.GetMost(), x.GetFailed(),
	}
}

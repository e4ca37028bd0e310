package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) groupCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "group",
		Short: "Create, change, list and delete groups of volumes",
		Long: `A group is volumes under one name. They are preserved at one instant (preserve
--group), and cloned or rolled back to such an instant together, all or none
(clone --group, rollback --group).

A group follows the names of its volumes: a rollback changes nothing in it, a
volume that is deleted leaves it, and with its last volume it goes, and so does
its schedule. A volume may be in many groups.`,
		Example: "  tidemark group create shop db wal\n  tidemark preserve --group shop --name before-upgrade\n  tidemark rollback --group shop@before-upgrade",
	}, a.groupCreateCommand(), a.groupAddCommand(), a.groupRemoveCommand(), a.groupListCommand(), a.groupShowCommand(), a.groupDeleteCommand())
}

func (a *app) groupCreateCommand() *cobra.Command {
	var isDefault bool
	c := &cobra.Command{
		Use:   "create GROUP VOLUME...",
		Short: "Create a group of volumes",
		Long: `Create a group of volumes.

With --default it is the default group of its volumes' processes: 'process
begin' and 'run' that name one of them name them all, so that a preserve of any
of them waits for the process. (A session is one connection, to one volume, and
stays so.) A volume is in one such group at most.`,
		Example:           "  tidemark group create shop db wal\n  tidemark group create shop db wal --default",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.afterFirst(nil, listVolumeNames),
		RunE: func(c *cobra.Command, args []string) error {
			return a.createGroup(c, &tidemarkv1.CreateGroupRequest{Name: args[0], Volumes: args[1:], Default: isDefault})
		},
	}
	c.Flags().BoolVar(&isDefault, "default", false, "a process that names one of the volumes names them all")
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) createGroup(c *cobra.Command, request *tidemarkv1.CreateGroupRequest) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.CreateGroup(c.Context(), request)
	if err != nil {
		return seeVolumes(err)
	}
	return a.printGroup("created group", r.GetGroup())
}

// printGroup says what was done to a group, and what is in it now.
func (a *app) printGroup(done string, g *tidemarkv1.Group) error {
	if a.json {
		return a.printJSON(asGroup(g))
	}
	return a.printf("%s %s: %s\n", done, g.GetName(), strings.Join(g.GetVolumes(), ", "))
}

func (a *app) groupAddCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "add GROUP VOLUME...",
		Short:             "Put volumes into a group",
		Example:           "  tidemark group add shop images",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.afterFirst(listGroupNames, listVolumeNames),
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeGroup(c, &tidemarkv1.ChangeGroupRequest{Name: args[0], Add: args[1:]})
		},
	}, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) groupRemoveCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:   "remove GROUP VOLUME...",
		Short: "Take volumes out of a group",
		Long: `Take volumes out of a group. The volumes stay, and their snapshots. Those that
the schedule of the group has made it still lets go when they expire, but for
the newest of each volume. A group has at least one volume: delete it instead of
taking out the last.`,
		Example:           "  tidemark group remove shop images",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.afterFirst(listGroupNames, listVolumeNames),
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeGroup(c, &tidemarkv1.ChangeGroupRequest{Name: args[0], Remove: args[1:]})
		},
	}, exitNotFound, exitNoServer)
}

func (a *app) changeGroup(c *cobra.Command, request *tidemarkv1.ChangeGroupRequest) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ChangeGroup(c.Context(), request)
	if err != nil {
		return seeGroups(err)
	}
	return a.printGroup("group", r.GetGroup())
}

// seeGroups says where the names are.
func seeGroups(err error) error {
	return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark group list")
}

func (a *app) groupListCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the groups",
		Long: `List the groups, sorted by name. DEFAULT says whether a process that names one
of its volumes names them all.`,
		Example: "  tidemark group list\n  tidemark group ls --json | jq -r '.groups[].name'",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.listGroups(c) },
	}, exitNoServer)
}

func (a *app) listGroups(c *cobra.Command) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ListGroups(c.Context(), &tidemarkv1.ListGroupsRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"groups": each(r.GetGroups(), asGroup)})
	}
	rows := each(r.GetGroups(), func(g *tidemarkv1.Group) []string {
		return []string{g.GetName(), strings.Join(g.GetVolumes(), ","), strconv.FormatBool(g.GetDefault()), formatAge(g.GetCreateTime(), time.Now())}
	})
	return a.printTable("NAME VOLUMES DEFAULT AGE", rows)
}

func (a *app) groupShowCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "show GROUP",
		Short:             "Show one group",
		Example:           "  tidemark group show shop\n  tidemark group show shop --json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, listGroupNames),
		RunE:              func(c *cobra.Command, args []string) error { return a.showGroup(c, args[0]) },
	}, exitNotFound, exitNoServer)
}

func (a *app) showGroup(c *cobra.Command, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.GetGroup(c.Context(), &tidemarkv1.GetGroupRequest{Name: name})
	if err != nil {
		return seeGroups(err)
	}
	g := r.GetGroup()
	if a.json {
		return a.printJSON(asGroup(g))
	}
	return a.printFields(
		[2]string{"name", g.GetName()},
		[2]string{"volumes", strings.Join(g.GetVolumes(), ", ")},
		[2]string{"default", strconv.FormatBool(g.GetDefault())},
		[2]string{"created", formatTime(g.GetCreateTime())},
	)
}

func (a *app) groupDeleteCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:     "delete GROUP",
		Aliases: []string{"rm"},
		Short:   "Delete a group, and none of its volumes",
		Long: `Delete a group, and none of its volumes. Its schedule goes with it. All
snapshots stay, those of the schedule too: nothing lets them go any more but
'tidemark snapshot delete', or the schedule of a new group of that name, if
their volume is in it.`,
		Example:           "  tidemark group delete shop",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, listGroupNames),
		RunE:              func(c *cobra.Command, args []string) error { return a.deleteGroup(c, args[0]) },
	}, exitNotFound, exitNoServer)
}

func (a *app) deleteGroup(c *cobra.Command, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	if _, err := server.DeleteGroup(c.Context(), &tidemarkv1.DeleteGroupRequest{Name: name}); err != nil {
		return seeGroups(err)
	}
	if a.json {
		return a.printJSON(map[string]any{"deleted": name})
	}
	return a.printf("deleted group %s\n", name)
}

func (a *app) cloneGroup(c *cobra.Command, snapshot, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.CloneGroup(c.Context(), &tidemarkv1.CloneGroupRequest{Snapshot: snapshot, Name: name})
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark group list and snapshot list")
	}
	if a.json {
		return a.printJSON(map[string]any{"group": asGroup(r.GetGroup()), "volumes": each(r.GetVolumes(), asVolume)})
	}
	return a.printGroup("cloned "+snapshot+" as group", r.GetGroup())
}

func (a *app) rollbackGroup(c *cobra.Command, request *tidemarkv1.RollbackGroupRequest) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.RollbackGroup(c.Context(), request)
	if err != nil {
		err = hintDisconnect(err, request.GetDisconnect())
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark group list and snapshot list")
	}
	if a.json {
		return a.printJSON(map[string]any{"volumes": each(r.GetVolumes(), asVolume), "kept": listed(r.GetKept())})
	}
	names := each(r.GetVolumes(), (*tidemarkv1.Volume).GetName)
	if err := a.printf("volumes %s are again what %s holds\n", strings.Join(names, ", "), request.GetSnapshot()); err != nil {
		return err
	}
	if len(r.GetKept()) > 0 {
		return a.printf("what they held before is %s\n", strings.Join(r.GetKept(), ", "))
	}
	return nil
}

// groupJSON is a group in --json.
type groupJSON struct {
	Name    string     `json:"name"`
	Volumes []string   `json:"volumes"`
	Default bool       `json:"default"`
	Created *time.Time `json:"created"`
}

func asGroup(g *tidemarkv1.Group) groupJSON {
	return groupJSON{g.GetName(), listed(g.GetVolumes()), g.GetDefault(), jsonTime(g.GetCreateTime())}
}

func listGroupNames(ctx context.Context, server api.Client) (names []string) {
	r, err := server.ListGroups(ctx, &tidemarkv1.ListGroupsRequest{})
	if err != nil {
		return nil
	}
	return each(r.GetGroups(), (*tidemarkv1.Group).GetName)
}

// listGroupSnapshotNames lists the snapshots of groups, as GROUP@SNAPSHOT: the names
// that the first volume of each has.
func listGroupSnapshotNames(ctx context.Context, server api.Client) (names []string) {
	r, err := server.ListGroups(ctx, &tidemarkv1.ListGroupsRequest{})
	if err != nil {
		return nil
	}
	for _, g := range r.GetGroups() {
		list, err := server.ListSnapshots(ctx, &tidemarkv1.ListSnapshotsRequest{Volume: g.GetVolumes()[0]})
		if err != nil {
			return nil
		}
		for _, s := range list.GetSnapshots() {
			names = append(names, g.GetName()+"@"+s.GetName())
		}
	}
	return names
}

// afterFirst completes the first argument with one kind of names (nil: none), and all
// others with another.
func (a *app) afterFirst(first, others func(context.Context, api.Client) []string) completer {
	return func(c *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
		switch {
		case len(args) > 0:
			return a.complete(1<<20, others)(c, args, to)
		case first == nil:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.complete(1, first)(c, args, to)
	}
}

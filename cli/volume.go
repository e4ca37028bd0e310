package cli

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) volumeCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "volume",
		Short:   "Create, list, resize and delete volumes",
		Example: "  tidemark volume create db --size 10GiB\n  tidemark volume ls",
	}, a.volumeCreateCommand(), a.volumeListCommand(), a.volumeShowCommand(), a.volumeResizeCommand(), a.volumeDeleteCommand())
}

func (a *app) volumeCreateCommand() *cobra.Command {
	var size sizeFlag
	scope := choice{"request", []string{"request", "session"}}
	c := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create an empty volume",
		Long: `Create an empty volume. It reads as zeros and takes no space until it is
written.

NAME is a letter or a digit, then up to 62 letters, digits, dots, underscores
and hyphens. SIZE is a number of bytes, or of KiB, MiB, GiB, TiB (10G is 10GiB).

--scope says what a preserve waits for on a connection that asks for nothing
else: request, each command by itself, or session, the whole connection.`,
		Example: "  tidemark volume create db --size 10GiB\n  tidemark volume create jobs --size 512M --scope session",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.createVolume(c, args[0], int64(size), tidemarkv1.Scope(scope.number()))
		},
	}
	c.Flags().Var(&size, "size", "size of the volume")
	c.Flags().Var(&scope, "scope", "scope of a plain connection")
	mustHave(c, "size")
	completeWords(c, "scope", scope.allowed)
	c.ValidArgsFunction = cobra.NoFileCompletions
	return exits(c, exitTaken, exitNoServer)
}

func (a *app) createVolume(c *cobra.Command, name string, sizeBytes int64, scope tidemarkv1.Scope) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.CreateVolume(c.Context(), &tidemarkv1.CreateVolumeRequest{Name: name, SizeBytes: sizeBytes, Scope: scope})
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_EXISTS, "choose another name, or see tidemark volume list")
	}
	if a.json {
		return a.printJSON(asVolume(r.GetVolume()))
	}
	return a.printf("created volume %s, %s\n", name, formatSize(r.GetVolume().GetSizeBytes()))
}

func (a *app) volumeListCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the volumes",
		Long: `List the volumes, sorted by name.

DATA is what the volume and its snapshots hold, DISK what they take up on the
disk. CLIENTS counts open connections. STATE is ok, or failed when the volume
takes no writes any more; 'tidemark volume show' says why.`,
		Example: "  tidemark volume list\n  tidemark volume ls --json | jq -r '.volumes[].name'",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.listVolumes(c) },
	}, exitNoServer)
}

func (a *app) listVolumes(c *cobra.Command) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ListVolumes(c.Context(), &tidemarkv1.ListVolumesRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"volumes": each(r.GetVolumes(), asVolume)})
	}
	rows := each(r.GetVolumes(), func(v *tidemarkv1.Volume) []string {
		return []string{
			v.GetName(), formatSize(v.GetSizeBytes()), word(v.GetScope()), strconv.Itoa(int(v.GetSnapshots())),
			formatSize(v.GetDataBytes()), formatSize(v.GetAllocatedBytes()), strconv.Itoa(int(v.GetConnections())),
			formatAge(v.GetCreateTime(), time.Now()), volumeState(v),
		}
	})
	return a.printTable("NAME SIZE SCOPE SNAPSHOTS DATA DISK CLIENTS AGE STATE", rows)
}

func volumeState(v *tidemarkv1.Volume) string {
	if v.GetFailed() != "" {
		return "failed"
	}
	return "ok"
}

func (a *app) volumeShowCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:               "show NAME",
		Short:             "Show one volume",
		Example:           "  tidemark volume show db\n  tidemark volume show db --json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVolumes(1),
		RunE:              func(c *cobra.Command, args []string) error { return a.showVolume(c, args[0]) },
	}, exitNotFound, exitNoServer)
}

func (a *app) showVolume(c *cobra.Command, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.GetVolume(c.Context(), &tidemarkv1.GetVolumeRequest{Name: name})
	if err != nil {
		return seeVolumes(err)
	}
	v := r.GetVolume()
	if a.json {
		return a.printJSON(asVolume(v))
	}
	return a.printFields(
		[2]string{"name", v.GetName()},
		[2]string{"size", fmt.Sprintf("%s (%d bytes)", formatSize(v.GetSizeBytes()), v.GetSizeBytes())},
		[2]string{"scope", word(v.GetScope())},
		[2]string{"created", formatTime(v.GetCreateTime())},
		[2]string{"snapshots", strconv.Itoa(int(v.GetSnapshots()))},
		[2]string{"images", strconv.Itoa(int(v.GetImages()))},
		[2]string{"data", formatSize(v.GetDataBytes())},
		[2]string{"disk", formatSize(v.GetAllocatedBytes())},
		[2]string{"clients", strconv.Itoa(int(v.GetConnections()))},
		[2]string{"processes", strconv.Itoa(int(v.GetProcesses()))},
		[2]string{"failed", v.GetFailed()},
	)
}

// seeVolumes says where the names are.
func seeVolumes(err error) error {
	return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark volume list")
}

func (a *app) volumeResizeCommand() *cobra.Command {
	var size sizeFlag
	c := &cobra.Command{
		Use:   "resize NAME --size SIZE",
		Short: "Grow a volume",
		Long: `Grow a volume. A connected client keeps the size that it has seen and may go on;
a new connection sees the new size. Snapshots keep the size of their cut.

A volume can't shrink: export what is to stay into a smaller one.`,
		Example:           "  tidemark volume resize db --size 20GiB",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVolumes(1),
		RunE:              func(c *cobra.Command, args []string) error { return a.resizeVolume(c, args[0], int64(size)) },
	}
	c.Flags().Var(&size, "size", "new size of the volume")
	mustHave(c, "size")
	return exits(c, exitNotFound, exitNoServer)
}

func (a *app) resizeVolume(c *cobra.Command, name string, sizeBytes int64) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ResizeVolume(c.Context(), &tidemarkv1.ResizeVolumeRequest{Name: name, SizeBytes: sizeBytes})
	if err != nil {
		return seeVolumes(err)
	}
	if a.json {
		return a.printJSON(asVolume(r.GetVolume()))
	}
	if err := a.printf("volume %s has %s now\n", name, formatSize(r.GetVolume().GetSizeBytes())); err != nil {
		return err
	}
	if n := int(r.GetVolume().GetConnections()); n > 0 {
		return a.printf("%s on the old size until connecting again\n", plural(n, "client"))
	}
	return nil
}

func (a *app) volumeDeleteCommand() *cobra.Command {
	var withSnapshots bool
	c := &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete a volume",
		Long: `Delete a volume and all its data. A volume with snapshots is deleted only with
--with-snapshots; one that a client or a process uses, never.`,
		Example:           "  tidemark volume delete db\n  tidemark volume rm db --with-snapshots",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeVolumes(1),
		RunE:              func(c *cobra.Command, args []string) error { return a.deleteVolume(c, args[0], withSnapshots) },
	}
	c.Flags().BoolVar(&withSnapshots, "with-snapshots", false, "delete its snapshots too")
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) deleteVolume(c *cobra.Command, name string, withSnapshots bool) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	_, err = server.DeleteVolume(c.Context(), &tidemarkv1.DeleteVolumeRequest{Name: name, WithSnapshots: withSnapshots})
	if err != nil {
		return seeVolumes(err)
	}
	if a.json {
		return a.printJSON(map[string]any{"deleted": name})
	}
	return a.printf("deleted volume %s\n", name)
}

// volumeJSON is a volume in --json.
type volumeJSON struct {
	Name           string     `json:"name"`
	SizeBytes      int64      `json:"sizeBytes"`
	Scope          string     `json:"scope"`
	Created        *time.Time `json:"created"`
	Snapshots      int32      `json:"snapshots"`
	Images         int32      `json:"images"`
	DataBytes      int64      `json:"dataBytes"`
	AllocatedBytes int64      `json:"allocatedBytes"`
	Connections    int32      `json:"connections"`
	Processes      int32      `json:"processes"`
	Failed         string     `json:"failed,omitempty"`
}

func asVolume(v *tidemarkv1.Volume) volumeJSON {
	return volumeJSON{
		v.GetName(), v.GetSizeBytes(), word(v.GetScope()), jsonTime(v.GetCreateTime()), v.GetSnapshots(), v.GetImages(),
		v.GetDataBytes(), v.GetAllocatedBytes(), v.GetConnections(), v.GetProcesses(), v.GetFailed(),
	}
}

// each converts a list; the result of an empty one is [] in JSON, not null.
func each[T, W any](list []T, convert func(T) W) []W {
	out := make([]W, len(list))
	for i, v := range list {
		out[i] = convert(v)
	}
	return out
}

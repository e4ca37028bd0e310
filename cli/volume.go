package cli

import (
	"fmt"
	"strconv"
	"strings"
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
	var from string
	scope := choice{"request", []string{"request", "session"}}
	flags := newImageFlags()
	c := &cobra.Command{
		Use:   "create NAME {--size SIZE | --from FILE}",
		Short: "Create a volume, empty or from an image",
		Long: `Create a volume. It is empty: it reads as zeros and takes no space until it is
written. With --from it begins as the image FILE is; then it is as large as the
image, rounded up to 4 KiB, or as --size says, which may be more. When FILE
can't be imported whole, there is no volume. --from - is the standard input, and
takes --size.

NAME is a letter or a digit, then up to 62 letters, digits, dots, underscores
and hyphens. SIZE is a number of bytes, or of KiB, MiB, GiB, TiB (10G is 10GiB).

--scope says what a preserve waits for on a connection that asks for nothing
else: request, each command by itself, or session, the whole connection.

` + formatHelp,
		Example: "  tidemark volume create db --size 10GiB\n  tidemark volume create web --from debian.qcow2 --size 40GiB\n  tidemark volume create jobs --size 512M --scope session",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			request := &tidemarkv1.CreateVolumeRequest{Name: args[0], SizeBytes: int64(size), Scope: tidemarkv1.Scope(scope.number())}
			switch {
			case from != "":
				return a.createVolumeFrom(c, request, from, flags)
			case c.Flags().Changed("format") || c.Flags().Changed("allow-backing"):
				return usage("--format and --allow-backing are of no use without --from FILE")
			case size == 0:
				return usage("give --size SIZE for an empty volume, or --from FILE for one that begins as an image")
			}
			return a.createVolume(c, request)
		},
	}
	c.Flags().Var(&size, "size", "size of the volume")
	c.Flags().Var(&scope, "scope", "scope of a plain connection")
	c.Flags().StringVar(&from, "from", "", "image `FILE` that the volume begins as")
	flags.add(c)
	completeWords(c, "scope", scope.allowed)
	c.ValidArgsFunction = cobra.NoFileCompletions
	return exits(c, exitTaken, exitNoServer)
}

const otherVolumeName = "choose another name, or see tidemark volume list"

func (a *app) createVolume(c *cobra.Command, request *tidemarkv1.CreateVolumeRequest) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.CreateVolume(c.Context(), request)
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_EXISTS, otherVolumeName)
	}
	if a.json {
		return a.printJSON(asVolume(r.GetVolume()))
	}
	return a.printf("created volume %s, %s\n", request.GetName(), formatSize(r.GetVolume().GetSizeBytes()))
}

func (a *app) createVolumeFrom(c *cobra.Command, request *tidemarkv1.CreateVolumeRequest, file string, flags *imageFlags) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	src, err := openSource(c.Context(), file, flags)
	if err != nil {
		return err
	}
	defer src.close()
	switch sizeBytes := request.GetSizeBytes(); {
	case sizeBytes == 0 && src.sizeBytes < 0:
		return usage("the size of %s is not known before its end: give --size too", file)
	case sizeBytes == 0:
		request.SizeBytes = src.volumeBytes()
	case sizeBytes < src.sizeBytes:
		return usage("--size is %d bytes, and the image has %d: give as much, or leave --size out", sizeBytes, src.sizeBytes)
	}
	moved, err := a.createFrom(c, server, src, request, otherVolumeName)
	if err != nil {
		return err
	}
	r, err := server.GetVolume(c.Context(), &tidemarkv1.GetVolumeRequest{Name: request.GetName()})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(asVolume(r.GetVolume()))
	}
	return a.printf("created volume %s, %s, from %s: %s\n", request.GetName(), formatSize(r.GetVolume().GetSizeBytes()), file, moved)
}

func (a *app) volumeListCommand() *cobra.Command {
	var sizes bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the volumes",
		Long: `List the volumes, sorted by name.

DATA is what the volume and its snapshots hold, DISK what they take up on the
disk. CLIENTS counts open connections. STATE is ok, or failed when the volume
takes no writes any more; 'tidemark volume show' says why.

--sizes measures each volume too, in one pass over its tables: some 0.15 s for
a thousand snapshots with 4 GiB of scattered writes.

` + sizesHelp + `
ALL and ALL-UNIQUE are those of the volume and its snapshots together: each
block counts once, and what is unique to them goes with the volume.`,
		Example: "  tidemark volume list\n  tidemark volume ls --sizes\n  tidemark volume ls --json | jq -r '.volumes[].name'",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.listVolumes(c, sizes) },
	}
	c.Flags().BoolVar(&sizes, "sizes", false, "measure what is stored and what is unique")
	return exits(c, exitNoServer)
}

func (a *app) listVolumes(c *cobra.Command, sizes bool) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ListVolumes(c.Context(), &tidemarkv1.ListVolumesRequest{Sizes: sizes})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"volumes": each(r.GetVolumes(), asVolume)})
	}
	rows := each(r.GetVolumes(), func(v *tidemarkv1.Volume) []string {
		row := []string{
			v.GetName(), formatSize(v.GetSizeBytes()), word(v.GetScope()), strconv.Itoa(int(v.GetSnapshots())),
			formatSize(v.GetDataBytes()), formatSize(v.GetAllocatedBytes()), strconv.Itoa(int(v.GetConnections())),
			formatAge(v.GetCreateTime(), time.Now()), volumeState(v),
		}
		if !sizes {
			return row
		}
		now, all := v.GetSizes(), v.GetSizesWithSnapshots()
		return append(row, sizeOrDash(now, (*tidemarkv1.Sizes).GetStoredBytes), sizeOrDash(now, (*tidemarkv1.Sizes).GetUniqueBytes), sizeOrDash(now, (*tidemarkv1.Sizes).GetSharedBytes),
			sizeOrDash(all, (*tidemarkv1.Sizes).GetStoredBytes), sizeOrDash(all, (*tidemarkv1.Sizes).GetUniqueBytes))
	})
	heading := "NAME SIZE SCOPE SNAPSHOTS DATA DISK CLIENTS AGE STATE"
	if sizes {
		heading += " STORED UNIQUE SHARED ALL ALL-UNIQUE"
	}
	return a.printTable(heading, rows)
}

func volumeState(v *tidemarkv1.Volume) string {
	if v.GetFailed() != "" {
		return "failed"
	}
	return "ok"
}

func (a *app) volumeShowCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:   "show NAME",
		Short: "Show one volume",
		Long: `Show one volume, and what it takes.

` + sizesHelp + `
With its snapshots together each block counts once, and what is unique to them
goes with the volume. Unseen is what is to be given back yet.`,
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
	unseen := ""
	if v.GetUnseenBytes() > 0 {
		unseen = formatSize(v.GetUnseenBytes())
	}
	return a.printFields(
		[2]string{"name", v.GetName()},
		[2]string{"size", fmt.Sprintf("%s (%d bytes)", formatSize(v.GetSizeBytes()), v.GetSizeBytes())},
		[2]string{"scope", word(v.GetScope())},
		[2]string{"created", formatTime(v.GetCreateTime())},
		[2]string{"snapshots", strconv.Itoa(int(v.GetSnapshots()))},
		[2]string{"images", strconv.Itoa(int(v.GetImages()))},
		[2]string{"stored", sizesText(v.GetSizes())},
		[2]string{"with snapshots", sizesText(v.GetSizesWithSnapshots())},
		[2]string{"unseen", unseen},
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

// seeExports is seeVolumes of a command that was given a volume or a snapshot.
func seeExports(err error, name string) error {
	if strings.Contains(name, "@") {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	return seeVolumes(err)
}

// seeNames is seeVolumes of a command that may have been given groups too.
func seeNames(err error, groups []string) error {
	if len(groups) == 0 {
		return seeVolumes(err)
	}
	return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark volume list and group list")
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
		Long: `Delete a volume and all its data; what is large gives its room back in the
background. A volume with snapshots is deleted only with --with-snapshots; one
that a client or a process uses, never.`,
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

	*sizesJSON
	WithSnapshots *sizesJSON `json:"withSnapshots,omitempty"`
	UnseenBytes   *int64     `json:"unseenBytes,omitempty"`
}

func asVolume(v *tidemarkv1.Volume) volumeJSON {
	var unseenBytes *int64
	if v.GetSizes() != nil {
		unseenBytes = &v.UnseenBytes
	}
	return volumeJSON{
		v.GetName(), v.GetSizeBytes(), word(v.GetScope()), jsonTime(v.GetCreateTime()), v.GetSnapshots(), v.GetImages(),
		v.GetDataBytes(), v.GetAllocatedBytes(), v.GetConnections(), v.GetProcesses(), v.GetFailed(),
		asSizes(v.GetSizes()), asSizes(v.GetSizesWithSnapshots()), unseenBytes,
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

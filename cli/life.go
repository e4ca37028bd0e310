package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) cloneCommand() *cobra.Command {
	var group string
	c := &cobra.Command{
		Use:   "clone {VOLUME@SNAPSHOT | --group GROUP@SNAPSHOT} NEW",
		Short: "Make a volume that begins as a snapshot is",
		Long: `Make a volume that begins as a snapshot is. Nothing is copied: it is there at
once, and takes room only for what is written to it. A clone is a volume like
any other. What it needs of the snapshot's images stays when the snapshot, or
its volume, is deleted. The snapshot need not be sealed yet: no clone waits for
its checksums, only until what was not flushed of it is on the disk.

--group clones a snapshot of each volume of a group: they must be of one cut, as
'preserve --group' makes them. Of NEW, db and wal the clones are named NEW-db
and NEW-wal, and NEW is a group of them. All are made, or none.`,
		Example:           "  tidemark clone db@monday db-test\n  tidemark clone --group shop@monday try\n  tidemark snapshot delete db@monday   # db-test keeps what it needs",
		ValidArgsFunction: a.completeSnapshots(),
		RunE: func(c *cobra.Command, args []string) error {
			if group != "" {
				if len(args) != 1 {
					return usage("with --group GROUP@SNAPSHOT give the name of the new group, and nothing else")
				}
				return a.cloneGroup(c, group, args[0])
			}
			if len(args) != 2 {
				return usage("give VOLUME@SNAPSHOT and the name of the clone, or --group GROUP@SNAPSHOT and a name")
			}
			return a.clone(c, args[0], args[1])
		},
	}
	c.Flags().StringVar(&group, "group", "", "`GROUP@SNAPSHOT` to clone instead of one volume")
	a.completeFlag(c, "group", listGroupSnapshotNames)
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) clone(c *cobra.Command, snapshot, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.CloneVolume(c.Context(), &tidemarkv1.CloneVolumeRequest{Snapshot: snapshot, Name: name})
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	if a.json {
		return a.printJSON(asVolume(r.GetVolume()))
	}
	return a.printf("cloned %s as volume %s, %s\n", snapshot, name, formatSize(r.GetVolume().GetSizeBytes()))
}

func (a *app) rollbackCommand() *cobra.Command {
	var keep, group string
	var discard, disconnect bool
	c := &cobra.Command{
		Use:   "rollback {VOLUME@SNAPSHOT | --group GROUP@SNAPSHOT}",
		Short: "Make a volume again what a snapshot of it holds",
		Long: `Make a volume again what a snapshot of it holds, at once and at any size:
nothing is copied. The present state is kept as a snapshot first, unless
--discard is given, and every snapshot stays, the newer ones too. A snapshot
need not be sealed yet, as for 'tidemark clone'.

It refuses while a client is connected to the volume or a process named it.
With --disconnect it ends that: the clients of the volume (not of its snapshots)
are disconnected, each when the requests that it has sent are answered, or after
2 s; the processes end as torn, with all their volumes. A client that connects
again sees the volume as it is then; while it is rolled back none gets in.

--group rolls back all volumes of a group, or none, to their snapshots of one
cut, as 'preserve --group' makes them; what they hold is kept as one cut too.`,
		Example:           "  tidemark rollback db@before-upgrade\n  tidemark rollback db@before-upgrade --disconnect\n  tidemark rollback --group shop@before-upgrade\n  tidemark rollback db@before-upgrade --keep broken\n  tidemark rollback db@before-upgrade --discard",
		ValidArgsFunction: a.completeSnapshots(),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case group == "" && len(args) == 1:
				return a.rollback(c, &tidemarkv1.RollbackVolumeRequest{Snapshot: args[0], Keep: keep, Discard: discard, Disconnect: disconnect})
			case group != "" && len(args) == 0:
				return a.rollbackGroup(c, &tidemarkv1.RollbackGroupRequest{Snapshot: group, Keep: keep, Discard: discard, Disconnect: disconnect})
			}
			return usage("give one VOLUME@SNAPSHOT, or --group GROUP@SNAPSHOT")
		},
	}
	c.Flags().StringVar(&group, "group", "", "`GROUP@SNAPSHOT` to roll back to, all volumes of the group")
	c.Flags().BoolVar(&disconnect, "disconnect", false, "disconnect the clients and end the processes of the volume")
	a.completeFlag(c, "group", listGroupSnapshotNames)
	c.Flags().StringVar(&keep, "keep", "", "`NAME` of the snapshot that keeps the present state (default before-rollback- and the time)")
	c.Flags().BoolVar(&discard, "discard", false, "let the present state go")
	c.MarkFlagsMutuallyExclusive("keep", "discard")
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

// hintDisconnect says what lets a rollback end the use of a volume, unless it was given.
func hintDisconnect(err error, given bool) error {
	if given {
		return err
	}
	return hint(err, tidemarkv1.Reason_REASON_IN_USE, "or give --disconnect")
}

func (a *app) rollback(c *cobra.Command, request *tidemarkv1.RollbackVolumeRequest) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.RollbackVolume(c.Context(), request)
	if err != nil {
		err = hintDisconnect(err, request.GetDisconnect())
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	if a.json {
		return a.printJSON(map[string]any{"volume": asVolume(r.GetVolume()), "kept": r.GetKept()})
	}
	if err := a.printf("volume %s is again what %s holds\n", r.GetVolume().GetName(), request.GetSnapshot()); err != nil {
		return err
	}
	if r.GetKept() != "" {
		return a.printf("what it held before is %s\n", r.GetKept())
	}
	return nil
}

func (a *app) snapshotDeleteCommand() *cobra.Command {
	var dryRun, wait bool
	c := &cobra.Command{
		Use:     "delete VOLUME@SNAPSHOT...",
		Aliases: []string{"rm"},
		Short:   "Delete snapshots",
		Long: `Delete snapshots. It returns at once and copies nothing: blocks that no volume
and no other snapshot shows give their room back in the background, the others
stay where they lie. Clones of a deleted snapshot go on.

One that still drains, that a client has open, that is being verified or that is
held is not deleted. Of many, all are deleted in one step, or none is.

--dry-run deletes nothing, and tells how much room all of them together would
give back: what neither a volume nor another snapshot shows. --wait returns when
nothing of what was deleted, now or before, is left to give back; 'tidemark
snapshot list' says how far that is.`,
		Example:           "  tidemark snapshot delete db@before-upgrade\n  tidemark snapshot delete db@monday db@tuesday --dry-run\n  tidemark snapshot ls db --json | jq -r '.snapshots[:-3][] | .volume+\"@\"+.snapshot' | xargs tidemark snapshot rm",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSnapshots(),
		RunE:              func(c *cobra.Command, args []string) error { return a.deleteSnapshots(c, args, dryRun, wait) },
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "delete nothing; tell how much room it would give back")
	c.Flags().BoolVar(&wait, "wait", false, "wait until the room is given back")
	c.MarkFlagsMutuallyExclusive("dry-run", "wait")
	return exits(c, exitNotFound, exitTaken, exitDraining, exitNoServer)
}

func (a *app) deleteSnapshots(c *cobra.Command, names []string, dryRun, wait bool) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	freedBytes, before, sizes := int64(0), int64(0), (*tidemarkv1.Sizes)(nil)
	if wait {
		volume, _, _ := strings.Cut(names[0], "@")
		r, err := server.ListSnapshots(c.Context(), &tidemarkv1.ListSnapshotsRequest{Volume: volume})
		if err != nil {
			return seeVolumes(err)
		}
		before = r.GetReclaim().GetGivenBackBytes()
	}
	if dryRun || wait {
		r, err := server.PreviewDelete(c.Context(), &tidemarkv1.PreviewDeleteRequest{Names: names})
		if err != nil {
			return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
		}
		freedBytes, sizes = r.GetFreedBytes(), r.GetSizes()
	}
	if dryRun && a.json {
		return a.printJSON(map[string]any{"freedBytes": freedBytes, "sizes": asSizes(sizes)})
	}
	if dryRun {
		return a.printf("%s would be given back\n", formatSize(freedBytes))
	}
	if _, err := server.DeleteSnapshots(c.Context(), &tidemarkv1.DeleteSnapshotsRequest{Names: names}); err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	for _, name := range names {
		if !a.json {
			if err := a.printf("deleted snapshot %s\n", name); err != nil {
				return err
			}
		}
	}
	given := map[string]any{"deleted": names}
	if wait {
		n, err := a.awaitReclaim(c, server, before, freedBytes)
		if err != nil {
			return err
		}
		if !a.json {
			return a.printf("%s given back\n", formatSize(n))
		}
		given["givenBackBytes"] = n
	}
	if a.json {
		return a.printJSON(given)
	}
	return nil
}

// awaitReclaim shows a bar of what was given back and moved, with what is left of both,
// and returns what was given back since it was so much before.
func (a *app) awaitReclaim(c *cobra.Command, server api.Client, before, expectedBytes int64) (givenBytes int64, err error) {
	bar := newProgress(a.stderr)
	defer bar.stop()
	var moved, moving int64 // of folds that have ended, and of the one that runs
	err = api.AwaitReclaim(c.Context(), server, func(r *tidemarkv1.Reclaim) {
		givenBytes = r.GetGivenBackBytes() - before
		if r.GetFolding() {
			if r.GetDoneBytes() < moving {
				moved += moving
			}
			moving = r.GetDoneBytes()
		}
		done := givenBytes + moved + moving
		bar.reach(done, max(expectedBytes, done+max(0, r.GetLeftBytes())))
	})
	return givenBytes, err
}

// reclaimText says in a line how far it is to give room back; empty if nothing is
// left.
func reclaimText(r *tidemarkv1.Reclaim) string {
	if r.GetImagesLeft() == 0 {
		return ""
	}
	text := "giving back the room of deleted snapshots: "
	if r.GetFolding() {
		text = "folding what deleted snapshots have left: "
	}
	text += plural(int(r.GetImagesLeft()), "image") + " left"
	if r.GetLeftBytes() > 0 {
		text += ", " + formatSize(r.GetLeftBytes())
	}
	if r.GetLeft() != nil {
		text += fmt.Sprintf(" at %s/s: %s", formatSize(r.GetBytesPerSecond()), formatSpan(r.GetLeft().AsDuration()))
	}
	return text
}

// reclaimJSON is the same in --json; nil if nothing is left.
type reclaimJSON struct {
	ImagesLeft     int32   `json:"imagesLeft"`
	Folding        bool    `json:"folding"`
	DoneBytes      int64   `json:"doneBytes"`
	TotalBytes     int64   `json:"totalBytes"`
	LeftBytes      int64   `json:"leftBytes"`
	BytesPerSecond int64   `json:"bytesPerSecond"`
	LeftSeconds    float64 `json:"leftSeconds"`
}

func asReclaim(r *tidemarkv1.Reclaim) *reclaimJSON {
	if r.GetImagesLeft() == 0 {
		return nil
	}
	return &reclaimJSON{r.GetImagesLeft(), r.GetFolding(), r.GetDoneBytes(), r.GetTotalBytes(), r.GetLeftBytes(), r.GetBytesPerSecond(), r.GetLeft().AsDuration().Seconds()}
}

func (a *app) snapshotDiffCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:   "diff VOLUME@SNAPSHOT VOLUME[@SNAPSHOT]",
		Short: "List where two states of a volume differ",
		Long: `List where a snapshot of a volume, or the volume as it is now, may differ from
another snapshot: the blocks that were written or trimmed since what both
share. Only tables are read, no data: it takes as long as there are changes. A
block that was written with what it held before is listed too. A snapshot that
still drains is not compared; those that are can't be deleted meanwhile.`,
		Example:           "  tidemark snapshot diff db@monday db@tuesday\n  tidemark snapshot diff db@monday db --json | jq '[.extents[].lengthBytes] | add'",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.complete(2, listSnapshotNames, listVolumeNames),
		RunE:              func(c *cobra.Command, args []string) error { return a.diff(c, args[0], args[1]) },
	}, exitNotFound, exitDraining, exitNoServer)
}

// diffJSON is a comparison in --json.
type diffJSON struct {
	From      string       `json:"from"`
	To        string       `json:"to"`
	DataBytes int64        `json:"dataBytes"`
	ZeroBytes int64        `json:"zeroBytes"`
	Extents   []extentJSON `json:"extents"`
}

type extentJSON struct {
	OffsetBytes int64 `json:"offsetBytes"`
	LengthBytes int64 `json:"lengthBytes"`
	Data        bool  `json:"data"`
}

func (a *app) diff(c *cobra.Command, from, to string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	d := diffJSON{From: from, To: to, Extents: []extentJSON{}}
	if err := api.Diff(c.Context(), server, from, to, func(off, n int64, data bool) error {
		d.Extents = append(d.Extents, extentJSON{off, n, data})
		if data {
			d.DataBytes += n
		} else {
			d.ZeroBytes += n
		}
		return nil
	}); err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	if a.json {
		return a.printJSON(d)
	}
	rows := each(d.Extents, func(x extentJSON) []string {
		holds := "zeros"
		if x.Data {
			holds = "data"
		}
		return []string{strconv.FormatInt(x.OffsetBytes, 10), strconv.FormatInt(x.LengthBytes, 10), holds}
	})
	if err := a.printTable("OFFSET LENGTH HOLDS", rows); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stderr, "%s: %s of data, %s of zeros\n", plural(len(d.Extents), "extent"), formatSize(d.DataBytes), formatSize(d.ZeroBytes))
	return err
}

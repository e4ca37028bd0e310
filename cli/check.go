package cli

import (
	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/store"
)

func (a *app) checkCommand() *cobra.Command {
	var data string
	var o store.CheckOptions
	c := &cobra.Command{
		Use:   "check",
		Short: "Check a data directory that no server has open",
		Long: `Check a data directory that no server has open, and change nothing: catalog,
journals, tables, images, and every block of sealed snapshots against its
checksum. Each finding is a line; without one, a line says that all is well, and
what was looked at.`,
		Example: "  tidemark check\n  tidemark check --quick\n  tidemark check --data /srv/tidemark --json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.check(data, o) },
	}
	c.Flags().StringVar(&data, "data", defaultData, "data `DIRECTORY`")
	c.Flags().BoolVar(&o.Quick, "quick", false, "leave the data of sealed snapshots unread")
	return exits(c, exitNotFound, exitTaken)
}

func (a *app) check(data string, o store.CheckOptions) error {
	r, err := store.Check(data, nil, o)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(map[string]any{
			"data": data, "findings": listed(r.Findings), "volumes": r.Volumes, "snapshots": r.Snapshots,
			"images": r.Images, "blocksRead": r.BlocksRead,
		})
	} else {
		err = a.printFindings(data, r)
	}
	if err == nil && len(r.Findings) > 0 {
		return failed("%s in %s; keep a copy of it before you repair anything", plural(len(r.Findings), "finding"), data)
	}
	return err
}

func (a *app) printFindings(data string, r store.CheckReport) error {
	if len(r.Findings) == 0 {
		return a.printf("%s: all is well: %s, %s, %s; %s of sealed data read\n", data, plural(r.Volumes, "volume"),
			plural(r.Snapshots, "snapshot"), plural(r.Images, "image"), plural(int(r.BlocksRead), "block"))
	}
	for _, f := range r.Findings {
		if err := a.printf("%s\n", f); err != nil {
			return err
		}
	}
	return nil
}

package cli

import (
	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/store"
)

func (a *app) checkCommand() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "check",
		Short: "Check a data directory that no server has open",
		Long: `Check a data directory that no server has open, and change nothing: catalog,
journals, tables, images, and the checksums of sealed snapshots. Each finding is
a line; without one, a line says that all is well.`,
		Example: "  tidemark check\n  tidemark check --data /srv/tidemark --json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.check(data) },
	}
	c.Flags().StringVar(&data, "data", defaultData, "data `DIRECTORY`")
	return exits(c, exitNotFound, exitTaken)
}

func (a *app) check(data string) error {
	findings, err := store.Check(data, nil)
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(map[string]any{"data": data, "findings": listed(findings)})
	} else {
		err = a.printFindings(data, findings)
	}
	if err == nil && len(findings) > 0 {
		return failed("%s in %s; keep a copy of it before you repair anything", plural(len(findings), "finding"), data)
	}
	return err
}

func (a *app) printFindings(data string, findings []string) error {
	if len(findings) == 0 {
		return a.printf("%s: all is well\n", data)
	}
	for _, f := range findings {
		if err := a.printf("%s\n", f); err != nil {
			return err
		}
	}
	return nil
}

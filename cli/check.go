package cli

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/internal/vfs"
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
	findings, err := store.Check(data, vfs.OS{})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, store.ErrNotFound):
		return &exitError{exitNotFound, fmt.Sprintf("no data directory at %s; name it with --data", data)}
	case errors.Is(err, store.ErrInUse):
		return &exitError{exitTaken, fmt.Sprintf("a server has %s open; stop it to check", data)}
	case err != nil:
		return err
	}
	switch {
	case a.json:
		err = a.printJSON(map[string]any{"data": data, "findings": listed(findings)})
	case len(findings) == 0:
		err = a.printf("%s: all is well\n", data)
	}
	if !a.json {
		for _, f := range findings {
			err = errors.Join(err, a.printf("%s\n", f))
		}
	}
	if err == nil && len(findings) > 0 {
		return failed("%s in %s", plural(len(findings), "finding"), data)
	}
	return err
}

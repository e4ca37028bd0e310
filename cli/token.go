package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/access"
)

func (a *app) tokenCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "token",
		Short: "Make tokens for the API over TCP",
		Long: `Make tokens for the API over TCP. A token is a secret that a caller shows with
each call; the server knows only its SHA-256 hash.`,
		Example: "  tidemark token new nightly --out nightly.token >> tokens",
	}, a.tokenNewCommand())
}

func (a *app) tokenNewCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "new NAME",
		Short: "Make a token, and the line for the server's --api-token-file",
		Long: `Make a token, and the line that stands for it in the file that the server reads
(serve --api-token-file). NAME is what the access list calls it.

The token is shown this once, or written to the new file --out with mode 0600;
then the line is all that is printed. A caller gives the file by
--api-token-file or TIDEMARK_API_TOKEN_FILE, or the token itself by
TIDEMARK_API_TOKEN; never on a command line, which every user of a machine may
read.

A server reads its files again at SIGHUP. Take a line out, and the token ends.`,
		Example: "  tidemark token new nightly --out nightly.token >> tokens\n  tidemark token new laptop",
		Args:    cobra.ExactArgs(1),
		RunE:    func(_ *cobra.Command, args []string) error { return a.newToken(args[0], out) },
	}
	c.Flags().StringVar(&out, "out", "", "new `FILE` for the token; it is not printed then")
	c.ValidArgsFunction = cobra.NoFileCompletions
	return exits(c, exitTaken)
}

func (a *app) newToken(name, out string) error {
	token, line, err := access.NewToken(name)
	if err != nil {
		return usage("%v", err)
	}
	if out == "" {
		if a.json {
			return usage("a token is never printed as JSON; give --out FILE")
		}
		return a.printf("token:  %s\nline for the server's --api-token-file:\n%s\n", token, line)
	}
	if err := writeToken(out, token); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]string{"name": name, "file": out, "line": line})
	}
	return a.printf("%s\n", line)
}

// writeToken makes a file that only its owner may read.
func writeToken(name, token string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		return &exitError{exitTaken, name + " exists; choose another file"}
	}
	if err != nil {
		return failed("%v", err)
	}
	_, err = fmt.Fprintln(f, token)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = os.Remove(name) // half a token is none
		return failed("%v", err)
	}
	return nil
}

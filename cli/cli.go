// Package cli is the command line: it reads flags, calls the server's API, and
// prints what it says. It does no I/O on volumes itself, but for bench, which is
// a client of any NBD server, and for images of formats other than raw, which
// qemu-img reads and writes over NBD. Only serve and check touch a data directory: serve
// wires store, nbd and api together, check looks at one that no server has open.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
)

const (
	defaultData = "./tidemark-data"
	apiVariable = "TIDEMARK_API"
)

// Main runs the command of os.Args and returns the exit code. The first SIGINT
// or SIGTERM ends it in order, the second at once.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// run executes one command line.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	// The recipes return what explain knows; any other error is cobra's own,
	// about flags and arguments.
	line, code := explain(err)
	if !errors.As(err, new(*recipeError)) {
		line, code = oneLine(err.Error()), exitUsage
	}
	if code == exitUsage {
		line += fmt.Sprintf("; see %s --help", command.CommandPath())
	}
	if line != "" {
		note(stderr, "%s", line)
	}
	return code
}

// recipeError marks an error as one that a command returned, not the parser.
type recipeError struct{ error }

func (e *recipeError) Unwrap() error { return e.error }

// app is what all commands share: the flags that stand before or after the
// verb, and where the output goes.
type app struct {
	apiFlag     string
	credentials credentialFlags
	json        bool
	stdout      io.Writer
	stderr      io.Writer
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	a := &app{stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:   "tidemark",
		Short: "Block storage that keeps volumes as they were, without pausing them",
		Long: `Tidemark serves volumes over NBD. Its preserve command keeps any number of
volumes as they are at one instant, without pausing, draining or copying
anything on the I/O path.

Every command but serve, check and token talks to a running server, by default
over ./tidemark-data/api.sock; name another with --api or TIDEMARK_API, as
unix:PATH or HOST:PORT. (bench also talks to any NBD server.)

Over TCP the server wants a client certificate (--api-ca, --api-cert, --api-key)
or a token (--api-token-file; --api-ca too unless the server is on loopback).`,
		Example: `  tidemark serve &
  tidemark volume create db --size 10GiB
  nbdinfo nbd://127.0.0.1/db
  tidemark preserve db --name before-upgrade
  tidemark export db@before-upgrade db.img`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	group(root)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.PersistentFlags().StringVar(&a.apiFlag, "api", "", "`ADDR` of the server's API: unix:PATH or HOST:PORT (default $TIDEMARK_API, else unix:./tidemark-data/api.sock)")
	a.credentials.add(root)
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	root.SetUsageTemplate(root.UsageTemplate() + "{{with .Annotations.exit}}\nExit codes:\n{{.}}{{end}}")
	root.AddGroup(
		&cobra.Group{ID: "server", Title: "Server:"},
		&cobra.Group{ID: "volumes", Title: "Volumes and snapshots:"},
		&cobra.Group{ID: "processes", Title: "I/O processes:"},
		&cobra.Group{ID: "data", Title: "Data in and out:"},
		&cobra.Group{ID: "other", Title: "Other:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("server", a.serveCommand(), a.infoCommand(), a.checkCommand())
	add("volumes", a.volumeCommand(), a.groupCommand(), a.preserveCommand(), a.snapshotCommand(), a.scheduleCommand(), a.cloneCommand(), a.rollbackCommand(), a.drillCommand())
	add("processes", a.processCommand(), a.runCommand())
	add("data", a.importCommand(), a.exportCommand())
	add("other", a.benchCommand(), a.tokenCommand(), a.versionCommand())
	root.SetHelpCommandGroupID("other")
	root.SetCompletionCommandGroupID("other")
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	finish(root)
	return root
}

// finish gives every command what all have alike.
func finish(c *cobra.Command) {
	if c.HasParent() && c.Name() == "help" || strings.HasPrefix(c.CommandPath(), "tidemark completion") {
		describeBuiltin(c)
	}
	if c.Annotations["exit"] == "" {
		exits(c)
	}
	if recipe := c.RunE; recipe != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := recipe(c, args); err != nil {
				return &recipeError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		finish(sub)
	}
}

// describeBuiltin gives the commands that cobra brings an example.
func describeBuiltin(c *cobra.Command) {
	switch c.Name() {
	case "help":
		c.Example = "  tidemark help volume create"
	case "completion":
		c.Example = "  source <(tidemark completion bash)"
	default:
		c.Example = "  tidemark completion " + c.Name() + " > completion." + c.Name()
	}
}

// group is a command that only holds others.
func group(c *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		line := fmt.Sprintf("unknown command %q for %q", args[0], c.CommandPath())
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			line += "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return usage("%s", line)
	}
	c.SuggestionsMinimumDistance = 2
	c.AddCommand(subs...)
	return c
}

// exits writes a command's exit codes into its help; 0, 1 and 2 stand for all,
// and a server that may be missing may also say no.
func exits(c *cobra.Command, more ...int) *cobra.Command {
	var text strings.Builder
	if slices.Contains(more, exitNoServer) {
		more = append(more, exitDenied)
	}
	for _, code := range slices.Concat([]int{exitDone, exitFailed, exitUsage}, more) {
		fmt.Fprintf(&text, "  %d  %s\n", code, exitTexts[code])
	}
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	c.Annotations["exit"] = text.String()
	return c
}

// server returns a client of the server that the flags or the environment name.
func (a *app) server() (api.Client, error) {
	addr, err := a.serverAddr()
	if err != nil {
		return nil, err
	}
	if !addr.TCP() {
		return api.NewClient(addr, api.Credentials{}), nil
	}
	show, err := a.credentials.load()
	if err != nil {
		return nil, err
	}
	return api.NewClient(addr, show), nil
}

func (a *app) serverAddr() (api.Addr, error) {
	for _, given := range []struct{ from, text string }{{"--api", a.apiFlag}, {apiVariable, os.Getenv(apiVariable)}} {
		if given.text == "" {
			continue
		}
		addr, err := api.ParseAddr(given.text)
		if err != nil {
			return addr, fmt.Errorf("%s: %w", given.from, err)
		}
		return addr, nil
	}
	return api.UnixAddr(socketIn(defaultData))
}

// socketIn is where a server has its API by default.
func socketIn(dataDirectory string) string { return filepath.Join(dataDirectory, "api.sock") }

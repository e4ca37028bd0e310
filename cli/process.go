package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) processCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "process",
		Short: "Begin, end and list I/O processes",
		Long: `An I/O process is one or more requests that belong together: a preserve keeps
all of them or none. An explicit process has a token; every connection to the
NBD export VOLUME:process:TOKEN belongs to it.`,
		Example: "  TOKEN=$(tidemark process begin --volume db)\n  nbdcopy new.img nbd://127.0.0.1/db:process:$TOKEN\n  tidemark process end $TOKEN",
	}, a.processBeginCommand(), a.processEndCommand(), a.processListCommand())
}

func (a *app) processBeginCommand() *cobra.Command {
	var (
		volumes, groups []string
		token           string
	)
	c := &cobra.Command{
		Use:   "begin {--volume VOLUME | --group GROUP}...",
		Short: "Begin a process over the named volumes and print its token",
		Long: `Begin an explicit process over the named volumes and print its token. It lasts
until 'tidemark process end' or the end of the server; every preserve of one of
its volumes waits for it until then. 'tidemark run' ends it by itself.

It may use the volumes of each --group too, and those of each volume's default
group ('group create --default').`,
		Example: "  TOKEN=$(tidemark process begin --volume db --volume wal)\n  tidemark process begin --volume db --token nightly",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.beginProcess(c, volumes, groups, token) },
	}
	c.Flags().StringArrayVar(&volumes, "volume", nil, "`VOLUME` that the process may use; repeat it for more")
	c.Flags().StringVar(&token, "token", "", "`TOKEN` to use: up to 64 letters, digits, dots, underscores and hyphens (default made by the server)")
	c.Flags().StringArrayVar(&groups, "group", nil, "`GROUP` whose volumes the process may use; repeat it for more")
	c.MarkFlagsOneRequired("volume", "group")
	a.completeFlag(c, "volume", listVolumeNames)
	a.completeFlag(c, "group", listGroupNames)
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) beginProcess(c *cobra.Command, volumes, groups []string, token string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.BeginProcess(c.Context(), &tidemarkv1.BeginProcessRequest{Volumes: volumes, Groups: groups, Token: token})
	if err != nil {
		return seeNames(err, groups)
	}
	if a.json {
		return a.printJSON(asProcess(r.GetProcess()))
	}
	return a.printf("%s\n", r.GetProcess().GetToken())
}

func (a *app) processEndCommand() *cobra.Command {
	var torn bool
	c := &cobra.Command{
		Use:   "end TOKEN",
		Short: "End a process",
		Long: `End an explicit process: the preserves that wait for it go on. With --torn the
snapshots list it as one that died before it was done.`,
		Example:           "  tidemark process end $TOKEN\n  tidemark process end nightly --torn",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, listTokens),
		RunE:              func(c *cobra.Command, args []string) error { return a.endProcess(c, args[0], torn) },
	}
	c.Flags().BoolVar(&torn, "torn", false, "it died before it was done")
	return exits(c, exitNotFound, exitNoServer)
}

func (a *app) endProcess(c *cobra.Command, token string, torn bool) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.EndProcess(c.Context(), &tidemarkv1.EndProcessRequest{Token: token, Torn: torn})
	if err != nil {
		return seeProcesses(err)
	}
	if a.json {
		return a.printJSON(asProcess(r.GetProcess()))
	}
	return a.printf("ended process %s\n", token)
}

// seeProcesses says where the tokens are.
func seeProcesses(err error) error {
	return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark process list")
}

func (a *app) processListCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the processes that run, and who waits for them",
		Long: `List the session and explicit processes that run.

WRITES-TO is live, or the snapshot that waits for the process; WAITED-FOR-BY
lists the snapshots that wait, SINCE how long the oldest of them does.`,
		Example: "  tidemark process list\n  tidemark process ls --json | jq '.processes[] | select(.waitedFor != [])'",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.listProcesses(c) },
	}, exitNoServer)
}

func (a *app) listProcesses(c *cobra.Command) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.ListProcesses(c.Context(), &tidemarkv1.ListProcessesRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"processes": each(r.GetProcesses(), asProcess)})
	}
	rows := each(r.GetProcesses(), func(p *tidemarkv1.Process) []string {
		return []string{
			p.GetToken(), word(p.GetScope()), strings.Join(p.GetVolumes(), ","), formatAge(p.GetBeginTime(), time.Now()),
			strconv.Itoa(int(p.GetConnections())), orDash(strings.Join(p.GetBound(), ",")),
			orDash(strings.Join(p.GetWaitedFor(), ",")), formatAge(p.GetWaitedSince(), time.Now()),
		}
	})
	return a.printTable("TOKEN SCOPE VOLUMES AGE CLIENTS WRITES-TO WAITED-FOR-BY SINCE", rows)
}

// processJSON is a process in --json.
type processJSON struct {
	Token       string     `json:"token"`
	Scope       string     `json:"scope"`
	Volumes     []string   `json:"volumes"`
	Begun       *time.Time `json:"begun"`
	Connections int32      `json:"connections"`
	Bound       []string   `json:"bound"`
	WaitedFor   []string   `json:"waitedFor"`
	WaitedSince *time.Time `json:"waitedSince"`
}

func asProcess(p *tidemarkv1.Process) processJSON {
	return processJSON{
		p.GetToken(), word(p.GetScope()), listed(p.GetVolumes()), jsonTime(p.GetBeginTime()), p.GetConnections(),
		listed(p.GetBound()), listed(p.GetWaitedFor()), jsonTime(p.GetWaitedSince()),
	}
}

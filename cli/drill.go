package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) drillCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "drill VOLUME[@SNAPSHOT] -- CMD [ARG]...",
		Short: "Try whether a snapshot can be restored, and record it",
		Long: `Try whether a snapshot is of use: clone it, run a command over the clone (a file
system check, a database, a script), and delete the clone. Without @SNAPSHOT it
is the newest snapshot of the volume that has drained; it need not be sealed
yet, as for 'tidemark clone'. CMD finds in its environment

  TIDEMARK_URI       the NBD URI of the clone, which may be written to
  TIDEMARK_VOLUME    the name of the clone, VOLUME-drill- and something
  TIDEMARK_SNAPSHOT  the snapshot, as VOLUME@SNAPSHOT

The snapshot passes if CMD exits with 0, and fails otherwise. That, and the last
4 KiB of what CMD printed, is recorded on the snapshot: see 'tidemark snapshot
show'. The last drill counts. Nothing is recorded if CMD can't be run, or if a
signal came, which is handed on to CMD.

The server deletes the clone in every case, also when this command or the server
dies, and disconnects what CMD may have left connected to it.

With --json what CMD prints goes to stderr.`,
		Example: `  tidemark drill db@monday -- sh -c 'nbdcopy "$TIDEMARK_URI" db.img && e2fsck -fn db.img'
  tidemark drill db -- ./pg-amcheck-over-nbd`,
		ValidArgsFunction: a.complete(1, listVolumeNames, listSnapshotNames),
		RunE: func(c *cobra.Command, args []string) error {
			if c.ArgsLenAtDash() != 1 || len(args) < 2 {
				return usage("give one VOLUME or VOLUME@SNAPSHOT, then -- and the command to run over its clone")
			}
			return a.drill(c, args[0], args[1:])
		},
	}
	return exits(c, exitNotFound, exitDraining, exitNoServer)
}

func (a *app) drill(c *cobra.Command, name string, command []string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	// Until there is a clone a signal ends it all; then it is CMD's to answer.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context()))
	defer cancel() // and the clone goes
	waits := context.AfterFunc(c.Context(), cancel)
	base, tls, err := nbdAddr(ctx, server)
	if err != nil {
		return err
	}
	held, err := holdDrill(ctx, server, name)
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	signals, stop := takeSignals()
	defer stop()
	if !waits() {
		return failed("interrupted; nothing is recorded")
	}
	output := &lastBytes{most: drillOutputBytes}
	run := child{
		command: command, stdin: os.Stdin, stdout: io.MultiWriter(a.stdout, output), stderr: io.MultiWriter(a.stderr, output),
		environment: append(os.Environ(), drillEnvironment(base.NBDURI(held.GetVolume().GetName(), tls), held.GetVolume().GetName(), held.GetSnapshot())...),
	}
	if a.json {
		run.stdout = run.stderr
	}
	begun := time.Now()
	code, failure := execute(&run, signals)
	switch {
	case failure != nil:
		return failed("%v; nothing is recorded", failure)
	case run.signaled || len(signals) > 0:
		return failed("interrupted; nothing is recorded")
	}
	r, err := server.EndDrill(ctx, &tidemarkv1.EndDrillRequest{
		Snapshot: held.GetSnapshot(), Volume: held.GetVolume().GetName(),
		Result: &tidemarkv1.Drill{
			Took: durationpb.New(time.Since(begun)), Command: strings.ToValidUTF8(strings.Join(command, " "), ""),
			ExitCode: int32(code), Output: strings.ToValidUTF8(output.text(), ""),
		},
	})
	if err != nil {
		line, code := explain(err)
		return &exitError{code, fmt.Sprintf("the drill ended, and was not recorded: %s", line)}
	}
	return a.tellDrill(r.GetSnapshot())
}

// drillEnvironment is what a program that looks at a clone finds there of it.
func drillEnvironment(uri, clone, snapshot string) []string {
	return []string{"TIDEMARK_URI=" + uri, "TIDEMARK_VOLUME=" + clone, "TIDEMARK_SNAPSHOT=" + snapshot}
}

// holdDrill begins a drill, whose clone lasts as long as ctx.
func holdDrill(ctx context.Context, server api.Client, name string) (*tidemarkv1.HoldDrillResponse, error) {
	stream, err := server.HoldDrill(ctx, &tidemarkv1.HoldDrillRequest{Name: name})
	if err != nil {
		return nil, err
	}
	if !stream.Receive() {
		return nil, errors.Join(stream.Err(), stream.Close())
	}
	return stream.Msg(), nil
}

func (a *app) tellDrill(s *tidemarkv1.Snapshot) error {
	d := s.GetDrill()
	if a.json {
		if err := a.printJSON(asSnapshot(s)); err != nil {
			return err
		}
	} else if d.GetExitCode() == 0 {
		return a.printf("%s passed, in %s\n", fullName(s), formatSpan(d.GetTook().AsDuration()))
	}
	if d.GetExitCode() != 0 {
		return failed("%s failed: exit code %d of %s", fullName(s), d.GetExitCode(), d.GetCommand())
	}
	return nil
}

// drillOutputBytes is how much a server keeps of what a command prints.
const drillOutputBytes = 4 << 10

// drillJSON is a drill in --json.
type drillJSON struct {
	Time        *time.Time `json:"time"`
	TookSeconds float64    `json:"tookSeconds"`
	Passed      bool       `json:"passed"`
	ExitCode    int32      `json:"exitCode"`
	Command     string     `json:"command"`
	Output      string     `json:"output"`
}

func asDrill(d *tidemarkv1.Drill) *drillJSON {
	if d == nil {
		return nil
	}
	return &drillJSON{jsonTime(d.GetTime()), d.GetTook().AsDuration().Seconds(), d.GetExitCode() == 0, d.GetExitCode(), d.GetCommand(), d.GetOutput()}
}

// drillText is a drill in a line, empty if there was none.
func drillText(d *tidemarkv1.Drill) string {
	if d == nil {
		return ""
	}
	result := "passed"
	if d.GetExitCode() != 0 {
		result = fmt.Sprintf("failed (exit code %d)", d.GetExitCode())
	}
	return fmt.Sprintf("%s, %s, in %s: %s", result, formatTime(d.GetTime()), formatSpan(d.GetTook().AsDuration()), d.GetCommand())
}

// drillOutput is the last that it printed, a line below the other.
func drillOutput(d *tidemarkv1.Drill) string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(d.GetOutput(), "\t", " "), "\n"), "\n")
	return strings.Join(each(lines, printable), "\n\t")
}

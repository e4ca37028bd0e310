package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) runCommand() *cobra.Command {
	var volumes, groups []string
	c := &cobra.Command{
		Use:   "run {--volume VOLUME | --group GROUP}... -- CMD [ARG]...",
		Short: "Run a command as one I/O process",
		Long: `Run a command as one explicit I/O process over the named volumes: a preserve has
all that it writes, or nothing. CMD finds in its environment

  TIDEMARK_PROCESS  the token of the process
  TIDEMARK_URI      the NBD URI of the first volume, under that token (nbds://
                    where the server wants TLS); without --volume it is the
                    first by name
  TIDEMARK_VOLUMES  all volumes of the process, with spaces between: those
                    named, of each --group, and of each volume's default group

The process ends when CMD exits, in whatever way; when 'tidemark run' itself or
the server dies before that, it ends torn. SIGINT, SIGTERM, SIGHUP and SIGQUIT
are handed on to CMD.

The exit code is CMD's, or 128 and the number of the signal that ended it; 127
when there is no such program, 126 when it can't be run. The codes below are for
what happens before CMD starts.`,
		Example: `  tidemark run --volume db -- sh -c 'nbdcopy new.img "$TIDEMARK_URI"'
  tidemark run --volume db --volume wal -- ./nightly-job
  tidemark run --group shop -- ./nightly-job`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, command []string) error { return a.run(c, volumes, groups, command) },
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringArrayVar(&volumes, "volume", nil, "`VOLUME` that the process may use; repeat it for more")
	c.Flags().StringArrayVar(&groups, "group", nil, "`GROUP` whose volumes the process may use; repeat it for more")
	c.MarkFlagsOneRequired("volume", "group")
	a.completeFlag(c, "volume", listVolumeNames)
	a.completeFlag(c, "group", listGroupNames)
	return exits(c, exitNotFound, exitNoServer)
}

func (a *app) run(c *cobra.Command, volumes, groups, command []string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	// A signal is CMD's to answer; until it has exited, the process stays.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context()))
	defer cancel()
	signals, stop := takeSignals()
	defer stop()

	base, tls, err := nbdAddr(ctx, server)
	if err != nil {
		return err
	}
	held, err := hold(ctx, server, &tidemarkv1.HoldProcessRequest{Volumes: volumes, Groups: groups})
	if err != nil {
		return seeNames(err, groups)
	}
	token, all := held.Msg().GetProcess().GetToken(), held.Msg().GetProcess().GetVolumes()
	code, failure := execute(&child{command: command, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environment: append(os.Environ(),
		"TIDEMARK_PROCESS="+token,
		"TIDEMARK_URI="+base.NBDURI(append(volumes, all...)[0]+":process:"+token, tls),
		"TIDEMARK_VOLUMES="+strings.Join(all, " "),
	)}, signals)
	_, err = server.EndProcess(ctx, &tidemarkv1.EndProcessRequest{Token: token})
	switch {
	case failure != nil:
		return &exitError{code, failure.Error()}
	case err != nil && code == exitDone:
		line, code := explain(err)
		return &exitError{code, "the process did not end in order, snapshots may list it as torn: " + line}
	case code != exitDone:
		return &exitError{code: code}
	}
	return nil
}

// takeSignals has the signals that end a program sent to a channel instead.
func takeSignals() (signals chan os.Signal, stop func()) {
	signals = make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	return signals, func() { signal.Stop(signals) }
}

// nbdAddr asks the server where it serves volumes, and whether with TLS.
func nbdAddr(ctx context.Context, server api.Client) (addr api.Addr, tls bool, err error) {
	info, err := server.GetServerInfo(ctx, &tidemarkv1.GetServerInfoRequest{})
	if err != nil {
		return addr, false, err
	}
	if len(info.GetNbdAddresses()) == 0 {
		return addr, false, failed("the server serves no NBD; start it with --nbd ADDR")
	}
	addr, err = api.ParseAddr(info.GetNbdAddresses()[0])
	return addr, info.GetNbdTls(), err
}

// hold begins a process that lasts as long as the stream, and receives it.
func hold(ctx context.Context, server api.Client, r *tidemarkv1.HoldProcessRequest) (*connect.ServerStreamForClient[tidemarkv1.HoldProcessResponse], error) {
	stream, err := server.HoldProcess(ctx, r)
	if err != nil {
		return nil, err
	}
	if !stream.Receive() {
		return nil, errors.Join(stream.Err(), stream.Close())
	}
	return stream, nil
}

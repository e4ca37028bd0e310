package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/store"
)

const defaultNBD = "127.0.0.1:10809"

// serveOptions are the flags of serve.
type serveOptions struct {
	data            string
	nbd             []string
	api             string
	logFormat       choice
	logLevel        choice
	shutdownTimeout time.Duration
	maxDraining     int
	maxConnections  int
}

func (a *app) serveCommand() *cobra.Command {
	o := serveOptions{
		logFormat: choice{"text", []string{"text", "json"}},
		logLevel:  choice{"info", []string{"debug", "info", "warn", "error"}},
	}
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve the volumes of a data directory",
		Long: `Serve the volumes of a data directory over NBD, and the API that every other
command uses. The directory is made if it does not exist; one server has it.

ADDR is unix:PATH, unix:///PATH or HOST:PORT. Neither NBD nor the API knows
passwords: give them a unix socket or loopback unless the network is yours. The
API's unix socket has mode 0600. --api is where this server listens; it does not
follow TIDEMARK_API.

A line on stderr says when it is ready. SIGTERM or SIGINT stops accepting,
finishes what was accepted, flushes and exits; a second one ends at once, which
loses nothing that was flushed.`,
		Example: `  tidemark serve
  tidemark serve --data /srv/tidemark --nbd 127.0.0.1:10809 --nbd unix:/run/tidemark/nbd.sock
  tidemark serve --data /srv/tidemark --api unix:/run/tidemark/api.sock --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.api = a.apiFlag
			return a.serve(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.data, "data", defaultData, "data `DIRECTORY`")
	f.StringArrayVar(&o.nbd, "nbd", []string{defaultNBD}, "`ADDR` to serve NBD on; repeat it for more")
	f.Var(&o.logFormat, "log-format", "format of the log on stderr")
	f.Var(&o.logLevel, "log-level", "least level that is logged")
	f.DurationVar(&o.shutdownTimeout, "shutdown-timeout", 10*time.Second, "`DURATION` that a shutdown may take")
	f.IntVar(&o.maxDraining, "max-draining", 8, "`NUMBER` of snapshots of a volume that may drain at once; a preserve beyond it is refused")
	f.IntVar(&o.maxConnections, "max-connections", 0, "`NUMBER` of NBD connections at once; 0 is no limit")
	completeWords(c, "log-format", o.logFormat.allowed)
	completeWords(c, "log-level", o.logLevel.allowed)
	return exits(c, exitTaken)
}

// serve opens the directory, then listens, then says that it is ready: nobody
// reaches a server that may yet fail to start.
func (a *app) serve(ctx context.Context, o serveOptions) error {
	nbdAddrs, apiAddr, err := o.addresses()
	if err != nil {
		return err
	}
	log := newServerLog(a.stderr, o)
	s, err := store.Open(o.data, store.Options{Logger: log.logger, MaxDraining: o.maxDraining})
	if err != nil {
		return cannotOpen(err)
	}
	for _, line := range s.Recovery() {
		log.tell("recovery: "+line, "recovery", "found", line)
	}
	return serveStore(ctx, s, o, nbdAddrs, apiAddr, log)
}

// cannotOpen says what to do about a directory that does not open.
func cannotOpen(err error) error {
	line, code := explain(err)
	switch {
	case errors.Is(err, store.ErrInUse):
		line += "; stop it, or choose another --data"
	case errors.Is(err, store.ErrFormat):
		line += "; choose another --data"
	case errors.Is(err, syscall.ENOSPC):
		line += "; make room on its file system"
	}
	return &exitError{code, line}
}

func (o serveOptions) addresses() (nbdAddrs []api.Addr, apiAddr api.Addr, err error) {
	if o.maxDraining < 1 {
		return nil, apiAddr, usage("--max-draining %d: it must be 1 or more", o.maxDraining)
	}
	if o.maxConnections < 0 {
		return nil, apiAddr, usage("--max-connections %d: it must be 0 (no limit) or more", o.maxConnections)
	}
	for _, text := range o.nbd {
		addr, err := api.ParseAddr(text)
		if err != nil {
			return nil, apiAddr, fmt.Errorf("--nbd: %w", err)
		}
		nbdAddrs = append(nbdAddrs, addr)
	}
	if o.api == "" {
		apiAddr, err = api.UnixAddr(socketIn(o.data))
	} else {
		apiAddr, err = api.ParseAddr(o.api)
	}
	if err != nil {
		err = fmt.Errorf("--api: %w", err)
	}
	return nbdAddrs, apiAddr, err
}

// serveStore serves an open store until ctx ends or a listener fails, and
// closes it in order: first the frontends, whose requests must finish, then the
// store, which flushes.
func serveStore(ctx context.Context, s *store.Store, o serveOptions, nbdAddrs []api.Addr, apiAddr api.Addr, log serverLog) error {
	f, err := listen(s, o, nbdAddrs, apiAddr, log)
	if err != nil {
		// Nothing was served, so there is nothing to wait for.
		return errors.Join(err, s.Close(ctx))
	}
	log.tell(f.ready(o.data), "serving", "data", o.data, "nbd", texts(f.nbdAddrs), "api", f.apiAddr.String())
	served := f.serve(ctx)
	log.tell("shutting down", "shutting down")
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.shutdownTimeout)
	defer cancel()
	return errors.Join(served, f.shutdown(end), s.Close(end))
}

// frontends are the listeners and the servers behind them.
type frontends struct {
	nbdAddrs []api.Addr
	apiAddr  api.Addr
	accept   []func() error
	nbd      *nbd.Server
	api      *api.Server
}

func listen(s *store.Store, o serveOptions, nbdAddrs []api.Addr, apiAddr api.Addr, log serverLog) (_ *frontends, err error) {
	f := &frontends{nbd: nbd.NewServer(backend{s}, nbd.Options{MaxConnections: o.maxConnections, Logger: log.logger})}
	var open []net.Listener
	defer func() {
		if err != nil {
			for _, l := range open {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	info := api.Info{Version: versionText()}
	for _, addr := range nbdAddrs {
		l, bound, err := addr.Listen(false)
		if err != nil {
			return nil, err
		}
		open, f.nbdAddrs = append(open, l), append(f.nbdAddrs, bound)
		reachable, err := bound.Reachable()
		if err != nil {
			return nil, err
		}
		info.NBD = append(info.NBD, reachable)
		f.accept = append(f.accept, func() error {
			if err := f.nbd.Serve(l); !errors.Is(err, nbd.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	if info.DataDirectory, err = filepath.Abs(o.data); err != nil {
		return nil, err
	}
	l, bound, err := apiAddr.Listen(true)
	if err != nil {
		return nil, err
	}
	f.apiAddr = bound
	f.api = api.NewServer(s, info, log.logger)
	f.accept = append(f.accept, func() error { return f.api.Serve(l) })
	return f, nil
}

func (f *frontends) ready(data string) string {
	return fmt.Sprintf("serving %s on NBD %s, API %v", data, strings.Join(texts(f.nbdAddrs), ", "), f.apiAddr)
}

func texts(addrs []api.Addr) []string { return each(addrs, api.Addr.String) }

// serve returns when ctx ends (nil) or when accepting fails somewhere.
func (f *frontends) serve(ctx context.Context) error {
	ended := make(chan error, len(f.accept))
	for _, accept := range f.accept {
		go func() { ended <- accept() }()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

// shutdown ends both servers at the same time.
func (f *frontends) shutdown(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- f.api.Shutdown(ctx) }()
	return errors.Join(f.nbd.Shutdown(ctx), <-ended)
}

// serverLog is where a server says things: plain lines among a text log, or
// records of a JSON log.
type serverLog struct {
	logger *slog.Logger
	tell   func(line, message string, attrs ...any)
}

func newServerLog(w io.Writer, o serveOptions) serverLog {
	var level slog.Level
	programmed(level.UnmarshalText([]byte(o.logLevel.value)))
	options := &slog.HandlerOptions{Level: level}
	if o.logFormat.value == "json" {
		logger := slog.New(slog.NewJSONHandler(w, options))
		return serverLog{logger, func(_, message string, attrs ...any) { logger.Info(message, attrs...) }}
	}
	return serverLog{
		slog.New(slog.NewTextHandler(w, options)),
		func(line, _ string, _ ...any) { note(w, "%s", line) },
	}
}

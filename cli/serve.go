package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/access"
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
	protect         protectOptions
	clientBuffer    limitFlag
	totalBuffer     limitFlag
	stallTimeout    time.Duration
	reserve         limitFlag
	warnAt          markFlag
	refuseAt        markFlag
	scrubEvery      time.Duration
	reclaimEvery    time.Duration
	foldAbove       int
	reclaimRate     limitFlag
	reclaimPercent  int
	checksumCache   limitFlag
	indexMemory     limitFlag
	scrubRate       limitFlag
	drills          string
	drillTimeout    time.Duration
}

func (a *app) serveCommand() *cobra.Command {
	o := serveOptions{
		logFormat: choice{"text", []string{"text", "json"}},
		logLevel:  choice{"info", []string{"debug", "info", "warn", "error"}},

		protect:       protectOptions{tls: choice{"off", []string{"off", "allow", "require"}}},
		clientBuffer:  64 << 20,
		totalBuffer:   1 << 30,
		reserve:       store.DefaultReserveBytes,
		warnAt:        markFlag{UsedPercent: 90},
		checksumCache: store.DefaultSumCacheBytes,
		indexMemory:   store.DefaultIndexBytes,
		scrubRate:     store.DefaultScrubBytesPerSecond,
		reclaimRate:   store.DefaultReclaimBytesPerSecond,
	}
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve the volumes of a data directory",
		Long: `Serve the volumes of a data directory over NBD, and the API that every other
command uses. The directory is made if it does not exist; one server has it.

ADDR is unix:PATH, unix:///PATH or HOST:PORT. --api is where this server
listens; it does not follow TIDEMARK_API.

NBD beyond loopback is served only with --tls require and the authority of its
clients' certificates, --tls-client-ca; or with --insecure. The API's unix
socket has mode 0600. Over TCP its callers show a client certificate of the same
authority, or a token whose hash stands in --api-token-file ('tidemark token
new'); beyond loopback always over TLS.

Without --access, everybody who has shown that may do everything. With it, a
client may do what the list says, and nothing if it does not stand there:

  certificates:                # CN or DNS name of the client's certificate
    web1.example:
      - exports: [web, "web-*"]
        rights: [read, write]
  tokens:                      # names of 'tidemark token new', on the API
    nightly:
      - exports: ["*"]
        rights: [read, preserve]
  local:                       # unix sockets of NBD, without a certificate
    - exports: ["db@*"]
      rights: [read]

The rights are read, write (and read), preserve, and admin (create, resize and
delete). A pattern of volumes covers their snapshots; one with an @ snapshots
alone. Whoever may only read gets a read-only export. The API's unix socket may
do everything.

A MARK says how full the file system of the data directory may be: 95% (used, as
df counts), or 10GiB (that is to stay free), or off. --warn-at has the log say
that it is reached, and that it is not any more. From --refuse-preserves-at on
no preserve, clone or rollback is made; writes are never refused by it.

--drills is a directory of programs that look at clones of snapshots ('tidemark
drill'), for 'tidemark schedule set --drill'. They run as the server's user, one
at a time, in /, with PATH, HOME, LANG and TMPDIR of its environment and the
variables of 'tidemark drill'. Hence the directory and each program in it must
belong to root or that user, and be writable by nobody else. One that still runs
after --drill-timeout is ended, with what it has started in its process group,
and has failed with exit code 124.

SIGHUP reads certificates, tokens and the access list again; open connections
keep what they have. A line on stderr says when the server is ready; a service
manager is told by NOTIFY_SOCKET. SIGTERM or SIGINT stops accepting, finishes
what was accepted, flushes and exits; a second one ends at once, which loses
nothing that was flushed.`,
		Example: `  tidemark serve
  tidemark serve --data /srv/tidemark --nbd 127.0.0.1:10809 --nbd unix:/run/tidemark/nbd.sock
  tidemark serve --data /srv/tidemark --api unix:/run/tidemark/api.sock --log-format json
  tidemark serve --nbd unix:/run/tidemark/nbd.sock --drills /etc/tidemark/drills
  tidemark serve --nbd 10.0.0.1:10809 --api 10.0.0.1:10810 --tls require \
    --tls-cert server.pem --tls-key server.key --tls-client-ca clients.pem \
    --access access.yaml`,
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
	f.IntVar(&o.maxConnections, "max-connections", 0, "`NUMBER` of NBD connections at once; 0 is half of the file descriptors that the server may open, less 256")
	f.Var(&o.clientBuffer, "client-buffer", "`SIZE` of the requests and replies that one NBD connection may have in work")
	f.Var(&o.totalBuffer, "total-buffer", "`SIZE` of those of all NBD connections together")
	f.DurationVar(&o.stallTimeout, "stall-timeout", 30*time.Second, "`DURATION` after which an NBD client that makes no progress is cut off while others wait for its memory")
	f.Var(&o.reserve, "reserve", "`SIZE` of the room that is kept for the server's own records on a full disk; 0 keeps none")
	f.Var(&o.warnAt, "warn-at", "`MARK` from which on the log warns that the file system of the data directory fills up")
	f.Var(&o.refuseAt, "refuse-preserves-at", "`MARK` from which on no preserve, clone or rollback is made")
	f.Var(&o.checksumCache, "checksum-cache", "`SIZE` of the memory for checksums of snapshots")
	f.Var(&o.indexMemory, "index-memory", "`SIZE` of the memory that says which image holds a block, for all volumes; what it has no room for is asked image by image")
	f.DurationVar(&o.reclaimEvery, "reclaim-every", time.Minute, "`DURATION` in which what deleted snapshots have left is looked at for blocks that nobody shows any more; 0 is only at the next delete")
	f.IntVar(&o.foldAbove, "fold-above", store.DefaultFoldAbove, "`NUMBER` of images without a name, which deleted snapshots leave, from which on a volume's are folded into their neighbours; 0 is never")
	f.Var(&o.reclaimRate, "reclaim-rate", "`SIZE` that folding may copy in a second")
	f.IntVar(&o.reclaimPercent, "reclaim-percent", store.DefaultReclaimPercent, "`PERCENT` of the time that giving back room and folding may work while clients are served; when nobody asks for anything they take all of it")
	f.DurationVar(&o.scrubEvery, "scrub-every", 7*24*time.Hour, "`DURATION` in which every sealed snapshot is read and compared with its checksums once; 0 is never")
	f.Var(&o.scrubRate, "scrub-rate", "`SIZE` that this may read in a second")
	f.StringVar(&o.drills, "drills", "", "`DIRECTORY` of the programs that schedules may name for their drills")
	f.DurationVar(&o.drillTimeout, "drill-timeout", time.Hour, "`DURATION` after which such a program is ended, and has failed")
	f.Var(&o.protect.tls, "tls", "what NBD clients may do without TLS")
	f.StringVar(&o.protect.certificate, "tls-cert", "", "`FILE` of the server's certificate and its chain, PEM")
	f.StringVar(&o.protect.key, "tls-key", "", "`FILE` of its private key, PEM")
	f.StringVar(&o.protect.clientCA, "tls-client-ca", "", "`FILE` of the authorities that sign the clients' certificates, PEM; then clients must show one")
	f.StringVar(&o.protect.access, "access", "", "`FILE` of the access list, YAML")
	f.StringVar(&o.protect.tokens, "api-token-file", "", "`FILE` of the hashes of the tokens that the API accepts over TCP")
	f.BoolVar(&o.protect.insecure, "insecure", false, "serve NBD beyond loopback to whoever connects")
	completeWords(c, "tls", o.protect.tls.allowed)
	completeWords(c, "log-format", o.logFormat.allowed)
	completeWords(c, "log-level", o.logLevel.allowed)
	return exits(c, exitTaken)
}

// serve says what is wrong with its flags and files, opens the directory, then
// listens, then says that it is ready: nobody reaches a server that may yet fail
// to start.
func (a *app) serve(ctx context.Context, o serveOptions) error {
	go tendHeap(ctx)
	nbdAddrs, apiAddr, err := o.addresses()
	if err != nil {
		return err
	}
	if err := errors.Join(o.limits(), o.protect.check(nbdAddrs, apiAddr)); err != nil {
		return err
	}
	guard, err := access.Open(o.protect.files())
	if err != nil {
		return failed("%v", err)
	}
	drills, err := o.programs()
	if err != nil {
		return err
	}
	log := newServerLog(a.stderr, o)
	options := store.Options{
		Logger: log.logger, MaxDraining: o.maxDraining, ReserveBytes: int64(o.reserve),
		WarnAt: store.Mark(o.warnAt), RefusePreservesAt: store.Mark(o.refuseAt),
		SumCacheBytes: int64(o.checksumCache), IndexBytes: int64(o.indexMemory), ReclaimEvery: o.reclaimEvery,
		FoldAbove: cmp.Or(o.foldAbove, -1), ReclaimBytesPerSecond: int64(o.reclaimRate), ReclaimPercent: o.reclaimPercent, ScrubEvery: o.scrubEvery, ScrubBytesPerSecond: int64(o.scrubRate),
	}
	if drills != nil {
		options.Driller = drills
	}
	s, err := store.Open(o.data, options)
	if err != nil {
		return cannotOpen(err)
	}
	for _, line := range s.Recovery() {
		log.tell("recovery: "+line, "recovery", "found", line)
	}
	warn(log.logger, o.data, guard)
	if !o.protect.empty() {
		defer reloadAtHangup(guard, log)()
	}
	return serveStore(ctx, s, o, guard, nbdAddrs, apiAddr, drills, log)
}

// programs are those of --drills, nil without.
func (o serveOptions) programs() (*programs, error) {
	if o.drills == "" {
		return nil, nil
	}
	p, err := openPrograms(o.drills, o.drillTimeout)
	if err != nil {
		return nil, usage("--drills: %v", err)
	}
	return p, nil
}

// warn tells what is not wrong, but not right either.
func warn(logger *slog.Logger, data string, guard *access.Guard) {
	// Open makes it 0700; one that is wider was made by somebody with a reason.
	if info, err := os.Stat(data); err == nil && info.Mode().Perm()&0o077 != 0 {
		logger.Warn("others may look into the data directory; chmod 700 it", "data", data, "mode", fmt.Sprintf("%04o", info.Mode().Perm()))
	}
	if end := guard.Expires(); !end.IsZero() && time.Until(end) < 14*24*time.Hour {
		logger.Warn("the server's certificate expires soon", "on", end.UTC().Format(time.RFC3339))
	}
}

// reloadAtHangup reads the guard's files again at each SIGHUP, until the
// function that it returns is called.
func reloadAtHangup(guard *access.Guard, log serverLog) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	end := make(chan struct{})
	go func() {
		for {
			select {
			case <-end:
				return
			case <-hangups:
			}
			if err := guard.Reload(); err != nil {
				log.logger.Error("certificates, tokens and access list stay as they were", "err", err)
				continue
			}
			log.tell("certificates, tokens and access list read again", "reloaded")
		}
	}()
	return func() { signal.Stop(hangups); close(end) }
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

// limits refuses numbers that make no sense.
func (o serveOptions) limits() error {
	switch {
	case o.maxDraining < 1:
		return usage("--max-draining %d: it must be 1 or more", o.maxDraining)
	case o.maxConnections < 0:
		return usage("--max-connections %d: it must be 0 (half of the file descriptors) or more", o.maxConnections)
	case o.clientBuffer == 0 || o.totalBuffer == 0 || o.scrubRate == 0 || o.checksumCache == 0 || o.indexMemory == 0:
		return usage("--client-buffer, --total-buffer, --scrub-rate, --checksum-cache and --index-memory must be more than 0")
	case o.stallTimeout <= 0:
		return usage("--stall-timeout %v: it must be more than 0", o.stallTimeout)
	case o.stallTimeout < time.Second:
		return usage("--stall-timeout %v: it must be 1s or more", o.stallTimeout)
	case o.foldAbove < 0:
		return usage("--fold-above %d: it must be 0 (never) or more", o.foldAbove)
	case o.reclaimRate == 0:
		return usage("--reclaim-rate must be more than 0")
	case o.reclaimPercent < 1 || o.reclaimPercent > 100:
		return usage("--reclaim-percent %d: it must be 1 to 100", o.reclaimPercent)
	case o.reclaimEvery < 0:
		return usage("--reclaim-every %v: it must be 0 (never) or more", o.reclaimEvery)
	case o.drillTimeout < time.Second:
		return usage("--drill-timeout %v: it must be 1s or more", o.drillTimeout)
	case o.scrubEvery < 0:
		return usage("--scrub-every %v: it must be 0 (never) or more", o.scrubEvery)
	}
	return nil
}

// serveStore serves an open store until ctx ends or a listener fails, and
// closes it in order: first the frontends, whose requests must finish, then the
// store, which flushes.
func serveStore(ctx context.Context, s *store.Store, o serveOptions, guard *access.Guard, nbdAddrs []api.Addr, apiAddr api.Addr, drills *programs, log serverLog) error {
	f, err := listen(s, o, guard, nbdAddrs, apiAddr, log)
	if err != nil {
		// Nothing was served, so there is nothing to wait for.
		return errors.Join(err, s.Close(ctx))
	}
	if drills != nil {
		drills.serveAt(f.reachable, o.protect.mode() == nbd.TLSRequire)
	}
	log.tell(f.ready(o.data), "serving", "data", o.data, "nbd", texts(f.nbdAddrs), "api", f.apiAddr.String())
	log.report(notify("READY=1"))
	served := f.serve(ctx)
	log.tell("shutting down", "shutting down")
	log.report(notify("STOPPING=1"))
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.shutdownTimeout)
	defer cancel()
	s.EndSchedules()
	err = errors.Join(served, f.shutdown(end))
	if errors.Is(err, nbd.ErrHangs) {
		return errors.Join(err, closeHanging(end, s))
	}
	return errors.Join(err, s.Close(end))
}

// closeGrace is how long a store may take to close whose requests hang.
const closeGrace = time.Second

// closeHanging closes a store, or gives it up, for its flush would most likely
// hang too.
func closeHanging(ctx context.Context, s *store.Store) error {
	closed := make(chan error, 1)
	go func() { closed <- s.Close(ctx) }()
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case err := <-closed:
		return err
	case <-grace.C:
		return errors.New("the server ends without closing the data directory; what was acknowledged is there unless the machine fails too")
	}
}

// frontends are the listeners and the servers behind them.
type frontends struct {
	nbdAddrs  []api.Addr
	reachable api.Addr // the first of them, for whoever is on this machine
	apiAddr   api.Addr
	accept    []func() error
	nbd       *nbd.Server
	api       *api.Server
}

func listen(s *store.Store, o serveOptions, guard *access.Guard, nbdAddrs []api.Addr, apiAddr api.Addr, log serverLog) (_ *frontends, err error) {
	f := &frontends{nbd: nbd.NewServer(backend{s, guard}, nbd.Options{
		MaxConnections:    o.maxConnections,
		ClientBufferBytes: int64(o.clientBuffer),
		TotalBufferBytes:  int64(o.totalBuffer),
		StallTimeout:      o.stallTimeout,
		TLS:               guard.TLS(false),
		TLSMode:           o.protect.mode(),
		Logger:            log.logger,
	})}
	var open []net.Listener
	defer func() {
		if err != nil {
			for _, l := range open {
				err = errors.Join(err, l.Close())
			}
		}
	}()
	info := api.Info{Version: versionText(), NBDTLS: o.protect.mode() == nbd.TLSRequire}
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
	f.apiAddr, f.reachable = bound, info.NBD[0]
	f.api = api.NewServer(s, api.Options{Info: info, Guard: guard, Logger: log.logger})
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

// report logs an error that stops nothing.
func (l serverLog) report(err error) {
	if err != nil {
		l.logger.Warn(err.Error())
	}
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

package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/load"
	"github.com/tidemark/tidemark/nbd/client"
)

// benchFlags are the flags of bench.
type benchFlags struct {
	kind, pattern choice
	mix           int
	block         sizeFlag
	region        sizeFlag
	load          load.Options
	overwrite     bool
	ca, cert, key string
}

func (a *app) benchCommand() *cobra.Command {
	f := &benchFlags{
		kind:    choice{"read", []string{"read", "write", "mix"}},
		pattern: choice{"rand", []string{"rand", "seq"}},
		block:   4 << 10,
	}
	c := &cobra.Command{
		Use:   "bench URI|VOLUME",
		Short: "Measure how fast an NBD server is",
		Long: `Send requests to an NBD server, this one or any other, for a while, and show how
many it answers and how long each takes. URI is nbd://HOST[:PORT]/EXPORT,
nbd+unix:///EXPORT?socket=PATH, or the same with nbds, over TLS; a VOLUME is
looked for where the server of --api serves it.

Every connection keeps --depth requests in flight and has a part of the region
of its own. What begins after the warm-up and before the end counts, and is
waited for. A request's latency is from when it is handed to the connection
until its reply has been received.

With --rate, requests are due at steady times, and latency is from when one was
due: one that had to wait because the server was busy with others counts as
slow. Without it a server that stalls is asked less, and its latencies look
better than what clients would see that come on their own time ("coordinated
omission"). Requests that the server fell behind with so far that they never
began are counted as "late".

Writes destroy what the export holds: they need --overwrite. --verify reads
every block back that was written, and fails if one holds anything but what was
written there last. Ctrl-C ends a run early and prints what was measured.

--json prints {"requests","iops","bytesPerSecond","seconds","errors","late",
"latency":{"meanSeconds","p50Seconds","p90Seconds","p99Seconds","p99.9Seconds",
"p99.99Seconds","maxSeconds"},"histogram":[{"uptoSeconds","count"}]}; for a mix
also "read" and "write", with the same fields, and "flush" for --flush-every.
With --verify there is "verifiedBlocks".`,
		Example: `  tidemark bench db
  tidemark bench nbd://127.0.0.1/db --depth 32 --connections 4
  tidemark bench 'nbd+unix:///db?socket=/run/nbd.sock' --rw write --overwrite --verify
  tidemark bench db --rw mix --mix 70 --overwrite --rate 5000 --flush-every 100
  tidemark bench db --pattern seq --block-size 1MiB --json | jq .bytesPerSecond`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(1, listVolumeNames, listSnapshotNames),
		RunE:              func(c *cobra.Command, args []string) error { return a.bench(c, args[0], f) },
	}
	flags := c.Flags()
	flags.Var(&f.kind, "rw", "what the requests do")
	flags.IntVar(&f.mix, "mix", 70, "`PERCENT` of the requests of --rw mix that read")
	flags.Var(&f.pattern, "pattern", "the order in which blocks are used")
	flags.Var(&f.block, "block-size", "of a request, a multiple of 512")
	flags.IntVar(&f.load.Depth, "depth", 1, "requests in flight on each connection")
	flags.IntVar(&f.load.Connections, "connections", 1, "connections")
	flags.DurationVar(&f.load.Duration, "duration", 10*time.Second, "how long it is measured")
	flags.DurationVar(&f.load.Warmup, "warmup", time.Second, "how long the requests go on before")
	flags.IntVar(&f.load.FlushEvery, "flush-every", 0, "flush after `N` writes of a connection; 0: never")
	flags.BoolVar(&f.load.FUA, "fua", false, "have each write durable before it is answered")
	flags.Var(&f.region, "region", "use only so much of the export, from its beginning (default all)")
	flags.Float64Var(&f.load.Rate, "rate", 0, "requests due in a second, with latency from when each was due; 0: as fast as it can")
	flags.Uint64Var(&f.load.Seed, "seed", 0, "another `NUMBER` gives other random blocks")
	flags.BoolVar(&f.load.Verify, "verify", false, "after writes, read back what was written and compare")
	flags.BoolVar(&f.overwrite, "overwrite", false, "let the writes destroy what the export holds")
	flags.StringVar(&f.ca, "tls-ca", "", "`FILE` of the authorities that the certificate of an nbds server is checked against (default the system's)")
	flags.StringVar(&f.cert, "tls-cert", "", "`FILE` of the client certificate to show an nbds server")
	flags.StringVar(&f.key, "tls-key", "", "`FILE` of its private key")
	completeWords(c, "rw", f.kind.allowed)
	completeWords(c, "pattern", f.pattern.allowed)
	return exits(c, exitNotFound, exitNoServer)
}

func (a *app) bench(c *cobra.Command, target string, f *benchFlags) error {
	if err := f.fillIn(c); err != nil {
		return err
	}
	uri, err := a.benchURI(c.Context(), target)
	if err != nil {
		return err
	}
	dialer, err := f.dialer(uri)
	if err != nil {
		return err
	}
	bar := a.newBenchBar(&f.load)
	result, err := load.Run(c.Context(), func(ctx context.Context) (*client.Client, error) { return dialer.Dial(ctx, uri) }, f.load)
	bar.stop()
	if err != nil && result.Total().Requests == 0 {
		return benchFailure(err)
	}
	if printErr := a.printBench(&result, f); printErr != nil {
		return printErr
	}
	return benchFailure(err)
}

// fillIn makes the load's options of the flags.
func (f *benchFlags) fillIn(c *cobra.Command) error {
	switch f.kind.value {
	case "read":
		f.load.ReadPercent = 100
	case "mix":
		f.load.ReadPercent = f.mix
		if f.mix < 1 || f.mix > 99 {
			return usage("--mix %d: it must be from 1 to 99", f.mix)
		}
	}
	if f.kind.value != "mix" && c.Flags().Changed("mix") {
		return usage("--mix is of no use without --rw mix")
	}
	if f.kind.value != "read" && !f.overwrite {
		return usage("--rw %s destroys what the export holds; if that is meant, say --overwrite", f.kind.value)
	}
	// The zero values of the options have another meaning.
	if f.load.Depth < 1 || f.load.Connections < 1 {
		return usage("--depth and --connections must be 1 or more")
	}
	if f.pattern.value == "seq" {
		f.load.Pattern = load.Sequential
	}
	f.load.BlockBytes, f.load.RegionBytes = int(f.block), int64(f.region)
	return nil
}

// benchURI makes an URI of a volume's name.
func (a *app) benchURI(ctx context.Context, target string) (string, error) {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "nbd+unix:") || strings.HasPrefix(target, "nbds+unix:") {
		if _, err := client.ParseURI(target); err != nil {
			return "", usage("%s", benchText(err))
		}
		return target, nil
	}
	server, err := a.server()
	if err != nil {
		return "", err
	}
	base, tls, err := nbdAddr(ctx, server)
	if err != nil {
		return "", err
	}
	return base.NBDURI(target, tls), nil
}

// dialer has the TLS that the URI asks for.
func (f *benchFlags) dialer(uri string) (d client.Dialer, err error) {
	if (f.cert == "") != (f.key == "") {
		return d, usage("--tls-cert and --tls-key belong together: give both or none")
	}
	if !strings.HasPrefix(uri, "nbds") {
		if f.ca != "" || f.cert != "" {
			return d, usage("%s does not ask for TLS; write nbds://, or leave --tls-ca and --tls-cert out", uri)
		}
		return d, nil
	}
	if d.TLS, err = access.ClientTLS(f.ca, f.cert, f.key, time.Now()); err != nil {
		return d, failed("%v", err)
	}
	return d, nil
}

// benchFailure says what went wrong in the words of the command line.
func benchFailure(err error) error {
	var (
		option  *load.OptionError
		refused *client.RefusedError
		untrust *tls.CertificateVerificationError
	)
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &option):
		return usage("%s", option)
	case errors.As(err, &refused) && refused.Unknown:
		return &exitError{exitNotFound, benchText(refused)}
	case errors.As(err, &untrust):
		return &exitError{exitDenied, fmt.Sprintf("the server's certificate is not to be trusted: %v; say who signs it with --tls-ca", untrust.Err)}
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return &exitError{exitNoServer, "no server answers: " + benchText(err)}
	}
	return failed("%s", benchText(err))
}

// benchText is an error without the names of the packages that it went through.
func benchText(err error) string {
	return strings.NewReplacer("load: ", "", "nbd client: ", "").Replace(oneLine(err.Error()))
}

// benchBar shows how far a run is.
type benchBar struct {
	*progress
	say atomic.Pointer[string]
}

func (a *app) newBenchBar(o *load.Options) *benchBar {
	b := &benchBar{progress: newProgress(a.stderr)}
	b.say.Store(new(string))
	total := o.Warmup + o.Duration
	b.startSteps(int64(total), func() string { return *b.say.Load() })
	var last load.Progress
	o.Progress = func(p load.Progress) {
		text := "warm-up"
		switch {
		case p.Verifying:
			text = fmt.Sprintf("verified %d of %s", p.Verified, plural(int(p.ToVerify), "block"))
		case p.Elapsed-last.Elapsed < 10*time.Millisecond: // of too little to tell
			text = *b.say.Load()
		case p.Elapsed > o.Warmup:
			text = fmt.Sprintf("%.0f IOPS", float64(p.Requests-last.Requests)/(p.Elapsed-last.Elapsed).Seconds())
		}
		last = p
		b.say.Store(&text)
		b.reach(int64(p.Elapsed), int64(total))
	}
	return b
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// A peer is a server that is measured.
type peer struct {
	name  string
	keeps bool // what was flushed: one that does not is shown, but is nobody's measure
	after bool // is in the state after a snapshot; runs the core workloads only
	over  string
	start func(b *bench, ctx context.Context, p place) (*server, error)
}

// peers begin with Tidemark. Each says over what it is measured.
var peers = []peer{
	{name: "tidemark", keeps: true, over: "unix tcp tls", start: startTidemark},
	{name: "nbdkit file", keeps: true, over: "unix tcp tls", start: startNBDKit("file", "file=FILE")},
	{name: "nbdkit memory", over: "unix", start: startNBDKit("memory", "size=SIZE")},
	{name: "nbd-server", keeps: true, over: "unix tcp", start: startNBDServer},
	{name: "qemu-nbd raw, threads", keeps: true, over: "unix tcp tls", start: startQEMURaw("threads")},
	{name: "qemu-nbd raw, io_uring", keeps: true, over: "unix", start: startQEMURaw("io_uring")},
	{name: "qemu-nbd qcow2", keeps: true, over: "unix", start: startQcow2},
	{name: "qcow2, fresh overlay", keeps: true, after: true, over: "unix", start: startOverlay("cluster_size=64k")},
	{name: "qcow2, fresh overlay with extended_l2", keeps: true, after: true, over: "unix", start: startOverlay("extended_l2=on,cluster_size=64k")},
	{name: "qcow2, internal snapshot", keeps: true, after: true, over: "unix", start: startInternal},
}

// storageDaemon is the peer that takes snapshots while its clients go on.
var storageDaemon = peer{name: "qemu-storage-daemon", keeps: true, over: "unix", start: startStorageDaemon}

// A place is where a server keeps its data, and how clients reach it.
type place struct {
	dir           string
	network, addr string // of the NBD socket
	tls           string // directory of PEM files, or empty
	sizeBytes     int64
	flags         []string // more of Tidemark's
}

// newPlace makes a directory, and finds a port if one is needed.
func (b *bench) newPlace(over string) (p place, err error) {
	p = place{network: "unix", sizeBytes: b.sizeBytes}
	if p.dir, err = os.MkdirTemp(b.dir, ""); err != nil {
		return p, err
	}
	p.addr = filepath.Join(p.dir, "nbd.sock")
	if over == "unix" {
		return p, nil
	}
	if over == "tls" {
		p.tls = filepath.Join(b.dir, "pki")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return p, err
	}
	p.network, p.addr = "tcp", l.Addr().String()
	return p, l.Close()
}

func (p place) file(name string) string { return filepath.Join(p.dir, name) }

func (p place) uri(export string) string {
	scheme := "nbd"
	if p.tls != "" {
		scheme = "nbds"
	}
	if p.network == "unix" {
		return fmt.Sprintf("%s+unix:///%s?socket=%s", scheme, export, p.addr)
	}
	return fmt.Sprintf("%s://%s/%s", scheme, p.addr, export)
}

// port is the TCP port, as the commands of others take it.
func (p place) port() string {
	_, port, _ := net.SplitHostPort(p.addr) // it came from a listener
	return port
}

// A server is a peer that runs.
type server struct {
	name, uri string
	place     place
	process   *process
	setUp     []string                                                      // commands before its own, as they are shown
	files     string                                                        // pattern of those that clients' data lies in
	fresh     func(context.Context) error                                   // nil, or puts it into its state after a snapshot again
	tidemark  func(ctx context.Context, args ...string) ([]byte, error)     // its command line, if it is one
	client    api.Client                                                    // of its API over a connection that stays, if it is one
	snapshot  func(ctx context.Context, number int, others ...string) error // nil if it has none beside running clients
	again     func(ctx context.Context) error                               // starts one that was stopped; nil if it can't
	close     func() error                                                  // nil, or what else there is to close
}

// run starts a peer.
func (b *bench) run(ctx context.Context, p peer, where place) (*server, error) {
	s, err := p.start(b, ctx, where)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	s.name, s.place = p.name, where
	return s, nil
}

// end stops a server and removes what it kept.
func (s *server) end() error {
	var err error
	if s.close != nil {
		err = s.close()
	}
	return errors.Join(err, s.process.stop(), os.RemoveAll(s.place.dir))
}

// commands are what somebody would type to have the same.
func (s *server) commands() string {
	return strings.Join(append(s.setUp, s.process.command), "\n")
}

func startTidemark(b *bench, ctx context.Context, p place) (*server, error) {
	listen := p.addr
	if p.network == "unix" {
		listen = "unix:" + p.addr
	}
	args := append([]string{"serve", "--data", p.file("data"), "--nbd", listen, "--log-level", "warn"}, p.flags...)
	if p.tls != "" {
		args = append(args, "--tls", "require", "--tls-cert", filepath.Join(p.tls, "server-cert.pem"), "--tls-key", filepath.Join(p.tls, "server-key.pem"))
	}
	process, err := b.start(ctx, p.dir, p.network, p.addr, b.program, args...)
	if err != nil {
		return nil, err
	}
	s := &server{uri: p.uri("v"), process: process, files: p.file("data/images/*.img")}
	s.again = func(ctx context.Context) (err error) {
		s.process, err = b.start(ctx, p.dir, p.network, p.addr, b.program, args...)
		return err
	}
	s.tidemark = func(ctx context.Context, args ...string) ([]byte, error) {
		return output(ctx, b.program, append(args, "--api", "unix:"+p.file("data/api.sock"))...)
	}
	socket, err := api.UnixAddr(p.file("data/api.sock"))
	if err != nil {
		return nil, errors.Join(err, process.stop())
	}
	s.client = api.NewClient(socket, api.Credentials{})
	s.snapshot = func(ctx context.Context, number int, others ...string) error {
		_, err := s.preserve(ctx, number, append(others, "v")...)
		return err
	}
	return s, s.create(ctx, "v", p.sizeBytes)
}

// preserve makes snapshots of volumes, and returns how long the server says it took.
func (s *server) preserve(ctx context.Context, number int, volumes ...string) (time.Duration, error) {
	r, err := s.client.Preserve(ctx, &tidemarkv1.PreserveRequest{Volumes: volumes, Name: "p" + strconv.Itoa(number)})
	return r.GetReport().GetTook().AsDuration(), err
}

// create makes a volume; the API may be a moment later than NBD.
func (s *server) create(ctx context.Context, volume string, sizeBytes int64) error {
	_, err := s.tidemark(ctx, "volume", "create", volume, "--size", strconv.FormatInt(sizeBytes>>20, 10)+"MiB")
	return err
}

func startNBDKit(plugin, arg string) func(*bench, context.Context, place) (*server, error) {
	return func(b *bench, ctx context.Context, p place) (*server, error) {
		if err := sparse(p.file("file"), p.sizeBytes); err != nil {
			return nil, err
		}
		args := []string{"-f", "-U", p.addr}
		if p.network == "tcp" {
			args = []string{"-f", "-i", "127.0.0.1", "-p", p.port()}
		}
		if p.tls != "" {
			args = append(args, "--tls=require", "--tls-certificates="+p.tls)
		}
		arg := strings.NewReplacer("FILE", p.file("file"), "SIZE", strconv.FormatInt(p.sizeBytes, 10)).Replace(arg)
		process, err := b.start(ctx, p.dir, p.network, p.addr, "nbdkit", append(args, plugin, arg)...)
		return &server{uri: p.uri(""), process: process, files: p.file("file")}, err
	}
}

// startNBDServer starts one that forks a process for each connection.
func startNBDServer(b *bench, ctx context.Context, p place) (*server, error) {
	listen := "unixsock = " + p.addr
	if p.network == "tcp" {
		listen = "listenaddr = 127.0.0.1\nport = " + p.port()
	}
	config := fmt.Sprintf("[generic]\n%s\n[v]\nexportname = %s\nflush = true\nfua = true\n", listen, p.file("file"))
	if err := errors.Join(os.WriteFile(p.file("config"), []byte(config), 0o644), sparse(p.file("file"), p.sizeBytes)); err != nil {
		return nil, err
	}
	process, err := b.startDaemon(ctx, p.dir, p.file("pid"), p.network, p.addr, "nbd-server", "-C", p.file("config"), "-p", p.file("pid"))
	shown := "# DIR/config: " + strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(config), p.dir, "DIR"), "\n", "; ")
	return &server{uri: p.uri("v"), process: process, setUp: []string{shown}, files: p.file("file")}, err
}

func startQEMURaw(aio string) func(*bench, context.Context, place) (*server, error) {
	return func(b *bench, ctx context.Context, p place) (*server, error) {
		if err := sparse(p.file("file"), p.sizeBytes); err != nil {
			return nil, err
		}
		process, err := b.startQEMU(ctx, p, "raw", p.file("file"), "--aio="+aio)
		return &server{uri: p.uri(""), process: process, files: p.file("file")}, err
	}
}

func startQcow2(b *bench, ctx context.Context, p place) (*server, error) {
	s := &server{uri: p.uri(""), files: p.file("*.qcow2")}
	err := b.createQcow2(ctx, s, p)
	if err != nil {
		return nil, err
	}
	s.process, err = b.startQEMU(ctx, p, "qcow2", p.file("base.qcow2"))
	return s, err
}

// startOverlay starts with an empty overlay over a full image, which is what a
// snapshot leaves; fresh makes it empty again.
func startOverlay(options string) func(*bench, context.Context, place) (*server, error) {
	return func(b *bench, ctx context.Context, p place) (*server, error) {
		s, err := b.fullQcow2(ctx, p)
		if err != nil {
			return nil, err
		}
		create := []string{"create", "-q", "-f", "qcow2", "-o", options, "-b", p.file("base.qcow2"), "-F", "qcow2", p.file("overlay.qcow2")}
		s.setUp = append(s.setUp, b.commandText(p.dir, "qemu-img", create))
		s.fresh = func(ctx context.Context) error {
			if err := s.process.stop(); err != nil {
				return err
			}
			if _, err := output(ctx, "qemu-img", create...); err != nil {
				return err
			}
			s.process, err = b.startQEMU(ctx, p, "qcow2", p.file("overlay.qcow2"))
			return err
		}
		return s, s.fresh(ctx)
	}
}

// startInternal starts with a full image that was just snapshotted in itself.
func startInternal(b *bench, ctx context.Context, p place) (*server, error) {
	s, err := b.fullQcow2(ctx, p)
	if err != nil {
		return nil, err
	}
	create := []string{"snapshot", "-c", "s", p.file("base.qcow2")}
	s.setUp = append(s.setUp, b.commandText(p.dir, "qemu-img", create))
	first := true
	s.fresh = func(ctx context.Context) error {
		if err := s.process.stop(); err != nil {
			return err
		}
		if !first {
			if _, err := output(ctx, "qemu-img", "snapshot", "-d", "s", p.file("base.qcow2")); err != nil {
				return err
			}
		}
		first = false
		if _, err := output(ctx, "qemu-img", create...); err != nil {
			return err
		}
		s.process, err = b.startQEMU(ctx, p, "qcow2", p.file("base.qcow2"))
		return err
	}
	return s, s.fresh(ctx)
}

// fullQcow2 is a server over an image that was filled.
func (b *bench) fullQcow2(ctx context.Context, p place) (*server, error) {
	s, err := startQcow2(b, ctx, p)
	if err != nil {
		return nil, err
	}
	return s, b.fill(ctx, s, fillBytes)
}

// createQcow2 makes an empty image, and shows how among the commands.
func (b *bench) createQcow2(ctx context.Context, s *server, p place) error {
	args := []string{"create", "-q", "-f", "qcow2", p.file("base.qcow2"), strconv.FormatInt(p.sizeBytes, 10)}
	s.setUp = append(s.setUp, b.commandText(p.dir, "qemu-img", args))
	_, err := output(ctx, "qemu-img", args...)
	return err
}

func (b *bench) startQEMU(ctx context.Context, p place, format, file string, more ...string) (*process, error) {
	args := []string{"-t", "-e", "16", "-f", format, "--cache=writeback"}
	if p.network == "unix" {
		args = append(args, "-k", p.addr)
	} else {
		args = append(args, "-b", "127.0.0.1", "-p", p.port())
	}
	if p.tls != "" {
		args = append(args, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=no,dir="+p.tls, "--tls-creds", "tls0")
	}
	return b.start(ctx, p.dir, p.network, p.addr, "qemu-nbd", append(append(args, more...), file)...)
}

// sparse makes a file that holds nothing yet.
func sparse(file string, sizeBytes int64) error {
	return errors.Join(os.WriteFile(file, nil, 0o644), os.Truncate(file, sizeBytes))
}

// Command demo shows what preserve does, on a real server over NBD: it starts
// bin/tidemark on a temporary directory, lets writers write to two volumes,
// preserves both in the middle, and checks by reading the snapshots back that
// they are exact and that nobody waited. It needs no root and no network.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/nbd/client"
)

const (
	blockBytes  = 4096
	volumeBytes = 64 << 20
	blocks      = volumeBytes / blockBytes
	writing     = 3 * time.Second // before the preserve, and after it
	preserves   = 5
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "tidemark-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := startServer(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()

	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
	say("A server runs on %s, with two volumes of 64 MiB.", dir)
	for _, v := range []string{"orders", "ledger"} {
		if _, err := s.tidemark("volume", "create", v, "--size", "64MiB"); err != nil {
			return err
		}
	}

	w := &writer{server: s}
	if err := w.start(ctx); err != nil {
		return err
	}
	say("A writer numbers its writes 1, 2, 3 ...; it writes number n to a random block of `orders`, waits for the")
	say("answer, and only then writes n to `ledger`. So a copy of both that holds n in one must hold all before n.")
	pause(ctx, writing)

	say("\nPreserving both volumes, %d times, while it writes:", preserves)
	reports := make([]report, preserves)
	for i := range reports {
		if reports[i], err = s.preserve(fmt.Sprintf("p%d", i+1), w); err != nil {
			return err
		}
		r := reports[i]
		say("  p%d: the command took %.1f ms, %d of the writer's requests were answered meanwhile, the longest in %.2f ms",
			i+1, r.tookMillis, r.during, r.longestMillis)
		pause(ctx, 200*time.Millisecond)
	}

	job, err := s.wholeJob(w)
	if err != nil {
		return err
	}
	pause(ctx, writing)
	if err := w.stop(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted")
	}

	say("\nReading the snapshots back over NBD:")
	for i, r := range reports {
		last, err := s.verifyPrefix(fmt.Sprintf("p%d", i+1), w)
		if err != nil {
			return err
		}
		say("  p%d holds the writes 1 to %d of %d, whole, none after them, in both volumes.", i+1, last, w.n.Load())
		if last < r.ackedBefore {
			return fmt.Errorf("p%d lacks write %d, which was answered before the command", i+1, last+1)
		}
	}
	say("  One more was asked for in the middle of a job of 200 writes under one token; it holds all %d of them,", job)
	say("  though half were written after the command; the command waited for the job, the writer for nobody.")

	before, near := w.longest(reports)
	say("\nThe writer's longest wait for an answer: %.2f ms while a preserve ran, %.2f ms otherwise (%d writes).", near, before, 2*w.n.Load())
	say("It never waited for a preserve, and each snapshot is exact.")
	return nil
}

// server is a tidemark under a temporary directory.
type server struct {
	dir, bin, socket string
	cmd              *exec.Cmd
}

func startServer(ctx context.Context, dir string) (*server, error) {
	bin, err := filepath.Abs("bin/tidemark")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, bin: bin, socket: filepath.Join(dir, "nbd.sock")}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	s.cmd = exec.Command(bin, "serve", "--data", filepath.Join(dir, "data"), "--nbd", "unix:"+s.socket)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s (make build makes it): %w", bin, err)
	}
	for range 200 { // 10 s
		if _, err := s.tidemark("volume", "list"); err == nil {
			return s, nil
		}
		pause(ctx, 50*time.Millisecond)
	}
	text, _ := os.ReadFile(log.Name())
	return nil, errors.Join(fmt.Errorf("the server did not start: %s", text), s.stop())
}

func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.cmd.Wait()
}

func (s *server) tidemark(args ...string) ([]byte, error) {
	cmd := exec.Command(s.bin, args...)
	cmd.Env = append(os.Environ(), "TIDEMARK_API=unix:"+filepath.Join(s.dir, "data", "api.sock"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("tidemark %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout, nil
}

func (s *server) dial(ctx context.Context, export string) (*client.Client, error) {
	return client.DialExport(ctx, "unix", s.socket, export)
}

// report is what was seen of one preserve.
type report struct {
	from, to      time.Time
	tookMillis    float64
	during        int
	longestMillis float64
	ackedBefore   uint64
}

func (s *server) preserve(name string, w *writer) (report, error) {
	r := report{ackedBefore: w.n.Load(), from: time.Now()}
	text, err := s.tidemark("preserve", "orders", "ledger", "--name", name, "--json")
	if err != nil {
		return r, err
	}
	r.to = time.Now()
	var answer struct{ TookSeconds float64 }
	if err := json.Unmarshal(text, &answer); err != nil {
		return r, err
	}
	r.tookMillis = answer.TookSeconds * 1e3
	for _, a := range w.answersBetween(r.from, r.to) {
		r.during++
		r.longestMillis = max(r.longestMillis, a.millis)
	}
	return r, nil
}

// writer writes numbers. Each block that it writes holds one number, all over.
type writer struct {
	server  *server
	n       atomic.Uint64 // the last number that both volumes have answered
	where   []int         // where[i] is the block of number i+1
	cancel  context.CancelFunc
	done    chan error
	answers chan []answer
	seen    []answer
}

// answer is one request's time.
type answer struct {
	at     time.Time
	millis float64
}

func (w *writer) start(ctx context.Context) error {
	ctx, w.cancel = context.WithCancel(ctx)
	w.done, w.answers = make(chan error, 1), make(chan []answer, 1)
	w.answers <- nil
	orders, err := w.server.dial(ctx, "orders")
	if err != nil {
		return err
	}
	ledger, err := w.server.dial(ctx, "ledger")
	if err != nil {
		return err
	}
	go func() {
		w.done <- func() error {
			for n := uint64(1); ctx.Err() == nil; n++ {
				b := rand.IntN(blocks - 1) // the last block is the job's
				w.where = append(w.where, b)
				for _, c := range []*client.Client{orders, ledger} {
					if err := w.put(c, b, n); err != nil {
						return err
					}
				}
				w.n.Store(n)
			}
			return errors.Join(orders.Close(), ledger.Close())
		}()
	}()
	return nil
}

func (w *writer) put(c *client.Client, b int, n uint64) error {
	begun := time.Now()
	if _, err := c.WriteAt(numbered(n), int64(b)*blockBytes); err != nil {
		return err
	}
	end := time.Now()
	w.answers <- append(<-w.answers, answer{end, float64(end.Sub(begun).Microseconds()) / 1e3})
	return nil
}

func numbered(n uint64) []byte {
	p := make([]byte, blockBytes)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
	return p
}

func (w *writer) answersBetween(from, to time.Time) (list []answer) {
	all := <-w.answers
	for _, a := range all {
		if a.at.After(from) && a.at.Before(to) {
			list = append(list, a)
		}
	}
	w.answers <- all
	return list
}

func (w *writer) stop() error {
	w.cancel()
	err := <-w.done
	w.seen = <-w.answers
	return err
}

// longest returns the longest answer away from preserves, and during them.
func (w *writer) longest(reports []report) (away, during float64) {
	for _, a := range w.seen {
		if slices.ContainsFunc(reports, func(r report) bool { return a.at.After(r.from) && a.at.Before(r.to) }) {
			during = max(during, a.millis)
		} else {
			away = max(away, a.millis)
		}
	}
	return away, during
}

// wholeJob writes 200 blocks under one token, asks for a preserve after half of
// them, and counts how many the snapshot holds.
func (s *server) wholeJob(w *writer) (held int, err error) {
	ctx := context.Background()
	if _, err := s.tidemark("process", "begin", "--volume", "orders", "--volume", "ledger", "--token", "job"); err != nil {
		return 0, err
	}
	const jobBytes = 200
	conns := map[string]*client.Client{}
	for _, v := range []string{"orders", "ledger"} {
		if conns[v], err = s.dial(ctx, v+":process:job"); err != nil {
			return 0, err
		}
	}
	half := func(from, to int) error {
		for i := from; i < to; i++ {
			for _, c := range conns { // a byte each of the last block
				if _, err := c.WriteAt([]byte{1}, volumeBytes-blockBytes+int64(i)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := half(0, jobBytes/2); err != nil {
		return 0, err
	}
	const name = "job-whole"
	preserved := make(chan error, 1)
	go func() {
		_, err := s.tidemark("preserve", "orders", "ledger", "--name", name)
		preserved <- err
	}()
	for { // the snapshot is listed from its cut on
		text, err := s.tidemark("snapshot", "list")
		if err != nil {
			return 0, err
		}
		if strings.Contains(string(text), name) {
			break
		}
	}
	if err := half(jobBytes/2, jobBytes); err != nil {
		return 0, err
	}
	for _, c := range conns {
		if err := c.Close(); err != nil {
			return 0, err
		}
	}
	if _, err := s.tidemark("process", "end", "job"); err != nil {
		return 0, err
	}
	if err := <-preserved; err != nil {
		return 0, err
	}
	for v := range conns {
		snapshot, err := s.dial(ctx, v+"@"+name)
		if err != nil {
			return 0, err
		}
		p := make([]byte, jobBytes)
		if _, err := snapshot.ReadAt(p, volumeBytes-blockBytes); err != nil {
			return 0, err
		}
		if held = strings.Count(string(p), "\x01"); held != jobBytes {
			return held, fmt.Errorf("%s@%s holds %d of the job's %d writes", v, name, held, jobBytes)
		}
		if err := snapshot.Close(); err != nil {
			return 0, err
		}
	}
	return held, nil
}

// verifyPrefix reads a snapshot of both volumes and checks that together they
// are what the writer's first `last` numbers make, whole: every block of
// `orders` as after last, every block of `ledger` as after last or last-1.
func (s *server) verifyPrefix(name string, w *writer) (last uint64, err error) {
	orders, err := s.readAll("orders@" + name)
	if err != nil {
		return 0, err
	}
	ledger, err := s.readAll("ledger@" + name)
	if err != nil {
		return 0, err
	}
	last = slices.Max(orders)
	if err := w.explain("orders", orders, last); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	if l := slices.Max(ledger); l != last && w.explain("ledger", ledger, last) != nil {
		last-- // the cut fell between the two writes of one number
	}
	return last, w.explain("ledger", ledger, last)
}

// explain checks that a volume holds the writes 1 to last and no other.
func (w *writer) explain(what string, got []uint64, last uint64) error {
	want := make([]uint64, blocks)
	for i, b := range w.where[:last] {
		want[b] = uint64(i) + 1
	}
	for b := range blocks - 1 {
		if got[b] != want[b] {
			return fmt.Errorf("block %d of %s holds write %d, want %d: not the writes 1 to %d", b, what, got[b], want[b], last)
		}
	}
	return nil
}

// readAll returns the number in each block, and fails where a block holds two.
func (s *server) readAll(export string) ([]uint64, error) {
	c, err := s.dial(context.Background(), export)
	if err != nil {
		return nil, err
	}
	numbers := make([]uint64, blocks)
	p := make([]byte, 1<<20)
	for off := int64(0); off < volumeBytes; off += int64(len(p)) {
		if _, err := c.ReadAt(p, off); err != nil {
			return nil, err
		}
		for i := 0; i < len(p); i += blockBytes {
			b := (off + int64(i)) / blockBytes
			numbers[b] = binary.LittleEndian.Uint64(p[i:])
			for j := 8; j < blockBytes && b < blocks-1; j += 8 {
				if binary.LittleEndian.Uint64(p[i+j:]) != numbers[b] {
					return nil, fmt.Errorf("block %d of %s is torn", b, export)
				}
			}
		}
	}
	numbers[blocks-1] = 0 // the job's
	return numbers, c.Close()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

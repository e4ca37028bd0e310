package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// watch measures the server while it lives.
type watch struct {
	server  *server
	began   time.Time
	half    time.Duration // from then on it is one life
	samples []sample
}

// sample is what the server takes at one time.
type sample struct {
	at       time.Duration // since the start
	pid      int
	measures [len(measures)]int64
}

// measures are what is measured. Slack is what any of them may grow by without
// being asked why: volumes come and go, and snapshots with them; and the cache of
// checksums fills up, to 64 MiB.
var measures = [...]struct {
	name  string
	unit  int64 // of the report
	slack int64
}{
	{"memory (RSS, MiB)", 1 << 20, 160 << 20},
	{"heap (MiB)", 1 << 20, 96 << 20},
	{"goroutines", 1, 100},
	{"file descriptors", 1, 300},
	{"disk (MiB)", 1 << 20, 3 * 512 << 20},
}

const every = 5 * time.Second

func (w *watch) run(ctx context.Context, duration time.Duration) error {
	w.began, w.half = time.Now(), duration/2
	next := w.half
	for ctx.Err() == nil {
		pause(ctx, every)
		if s, ok := w.sample(ctx); ok {
			w.samples = append(w.samples, s)
		}
		if time.Since(w.began) > next && w.profile(ctx) == nil { // should the heap grow, it says why
			next += duration / 8
		}
	}
	return nil
}

// profile writes what the server's heap holds to a file in the directory.
func (w *watch) profile(ctx context.Context) error {
	over := http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", w.server.path("api.sock"))
	}}
	defer over.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tidemark/debug/pprof/heap?gc=1", nil)
	if err != nil {
		return err
	}
	answer, err := over.RoundTrip(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	heap, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(w.server.path(fmt.Sprintf("heap-%ds", int(time.Since(w.began).Seconds()))), heap, 0o600)
}

// sample measures, unless the server is about to end or has just begun.
func (w *watch) sample(ctx context.Context) (s sample, ok bool) {
	pid, started := w.server.process()
	if time.Since(started) < every {
		return s, false
	}
	info, err := w.server.client().GetServerInfo(ctx, &tidemarkv1.GetServerInfoRequest{})
	if err != nil {
		return s, false
	}
	rss, err1 := residentBytes(pid)
	files, err2 := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	disk, err3 := diskBytes(w.server.path("data"))
	if errors.Join(err1, err2, err3) != nil {
		return s, false
	}
	s = sample{at: time.Since(w.began), pid: pid}
	s.measures = [...]int64{rss, info.GetHeapBytes(), info.GetGoroutines(), int64(len(files)), disk}
	return s, true
}

// residentBytes is the second field of statm (proc_pid_statm(5)), in bytes.
func residentBytes(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0, fmt.Errorf("statm: %q", text)
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// diskBytes is what a directory's files take up. Files that go meanwhile take none.
func diskBytes(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreMissing(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lastLife cuts the samples of the second half into three parts.
func (w *watch) lastLife() (parts [3][]sample) {
	var life []sample
	for _, s := range w.samples {
		if s.at > w.half && s.pid == w.samples[len(w.samples)-1].pid {
			life = append(life, s)
		}
	}
	third := len(life) / 3
	return [3][]sample{life[:third], life[third : 2*third], life[2*third:]}
}

func median(samples []sample, measure int) int64 {
	if len(samples) == 0 {
		return 0
	}
	values := make([]int64, len(samples))
	for i, s := range samples {
		values[i] = s.measures[measure]
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func (w *watch) report(out io.Writer, done *counts) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d writes, %d trims, %d flushes, %d reads; %d connections, %d of them under an explicit process; %d processes of two connections to a group\n",
		done.writes.Load(), done.trims.Load(), done.flushes.Load(), done.reads.Load(), done.sessions.Load()+done.processes.Load(), done.processes.Load(), done.pairs.Load())
	fmt.Fprintf(&b, "%d preserves, %d more given up; snapshots, or what was made of them, read back %d times, %d times with what such a process wrote in both; verified %d times, deleted %d times\n",
		done.preserves.Load(), done.aborted.Load(), done.snapshotsRead.Load(), done.pairsRead.Load(), done.verified.Load(), done.letGo.Load())
	fmt.Fprintf(&b, "%d clones, %d drills, %d holds and %d deletes that they refused, %d streams, %d rollbacks, %d looks at schedules; %d groups lived and were deleted\n",
		done.clones.Load(), done.drills.Load(), done.holds.Load(), done.refused.Load(), done.streams.Load(), done.rollbacks.Load(), done.scheduled.Load(), done.generations.Load())
	fmt.Fprintf(&b, "the server was killed %d times and stopped %d times; %d connections meant harm\n\n",
		done.kills.Load(), done.stops.Load(), done.attacks.Load())
	var table bytes.Buffer
	fmt.Fprintln(&table, "median in the last life's\tfirst third\tsecond\tlast\tmost at any time")
	parts := w.lastLife()
	for i, m := range measures {
		most := int64(0)
		for _, s := range w.samples {
			most = max(most, s.measures[i])
		}
		fmt.Fprintf(&table, "%s\t%d\t%d\t%d\t%d\n", m.name, median(parts[0], i)/m.unit, median(parts[1], i)/m.unit, median(parts[2], i)/m.unit, most/m.unit)
	}
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, err1 := t.Write(table.Bytes())
	err2 := t.Flush()
	_, err3 := out.Write(b.Bytes())
	return errors.Join(err1, err2, err3)
}

// flat returns an error for each measure that grows through the last life.
func (w *watch) flat() (err error) {
	parts := w.lastLife()
	if len(parts[0]) == 0 {
		return nil // too short to tell
	}
	for i, m := range measures {
		first, second, last := median(parts[0], i), median(parts[1], i), median(parts[2], i)
		if first < second && second < last && last > first+m.slack {
			err = errors.Join(err, fmt.Errorf("%s grows: %d, %d, %d", m.name, first/m.unit, second/m.unit, last/m.unit))
		}
	}
	return err
}

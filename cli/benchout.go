package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tidemark/tidemark/load"
)

// benchPart is the requests of one kind.
type benchPart struct {
	name  string
	stats load.Stats
}

// benchParts are the kinds of requests that a run had.
func benchParts(r *load.Result, f *benchFlags) (parts []benchPart) {
	if f.load.ReadPercent > 0 {
		parts = append(parts, benchPart{"read", r.Reads})
	}
	if f.load.ReadPercent < 100 {
		parts = append(parts, benchPart{"write", r.Writes})
	}
	if f.load.FlushEvery > 0 {
		parts = append(parts, benchPart{"flush", r.Flushes})
	}
	return parts
}

var percentiles = []struct {
	name    string
	percent float64
}{{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"p99.99", 99.99}}

func (a *app) printBench(r *load.Result, f *benchFlags) error {
	parts := benchParts(r, f)
	if a.json {
		return a.printJSON(asBench(r, parts, f))
	}
	if err := a.printf("%s\n\n", benchTitle(r, f)); err != nil {
		return err
	}
	if err := a.printBenchTable(r, parts); err != nil {
		return err
	}
	for _, p := range parts {
		if p.stats.Requests == 0 {
			continue
		}
		if err := a.printf("\n%s latency\n%s", p.name, histogramText(histogram(&p.stats))); err != nil {
			return err
		}
	}
	if r.Late > 0 {
		if err := a.printf("\nlate: %s were due and never began: the server fell behind the rate\n", plural(int(r.Late), "request")); err != nil {
			return err
		}
	}
	if r.Verified > 0 {
		return a.printf("\nverified: %s hold what was written last\n", plural(int(r.Verified), "block"))
	}
	return nil
}

func benchTitle(r *load.Result, f *benchFlags) string {
	order := map[string]string{"rand": "random", "seq": "sequential"}[f.pattern.value]
	what := f.kind.value + "s"
	if f.kind.value == "mix" {
		what = fmt.Sprintf("%d/%d reads and writes", f.mix, 100-f.mix)
	}
	title := fmt.Sprintf("%s %s of %s, depth %d, %s, %s", order, what, formatSize(int64(f.block)), f.load.Depth, plural(f.load.Connections, "connection"), formatSpan(r.Took))
	if f.load.Rate > 0 {
		title += fmt.Sprintf(", %g a second due", f.load.Rate)
	}
	return title
}

// printBenchTable has a column for each kind of requests.
func (a *app) printBenchTable(r *load.Result, parts []benchPart) error {
	t := tabwriter.NewWriter(a.stdout, 10, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, value func(s *load.Stats) string) {
		_, _ = fmt.Fprintf(t, "%-8s\t", name) // Flush has the error
		for i := range parts {
			_, _ = fmt.Fprintf(t, "%s\t", value(&parts[i].stats))
		}
		_, _ = fmt.Fprintln(t)
	}
	_, _ = fmt.Fprintf(t, "%-8s\t", "")
	for _, p := range parts {
		_, _ = fmt.Fprintf(t, "%s\t", p.name)
	}
	_, _ = fmt.Fprintln(t)
	row("requests", func(s *load.Stats) string { return fmt.Sprint(s.Requests) })
	row("IOPS", func(s *load.Stats) string { return fmt.Sprintf("%.0f", r.PerSecond(s.Requests)) })
	row("MiB/s", func(s *load.Stats) string {
		if s.Bytes == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f", r.PerSecond(s.Bytes)/(1<<20))
	})
	row("errors", func(s *load.Stats) string { return fmt.Sprint(s.Errors) })
	latency := func(name string, of func(s *load.Stats) time.Duration) {
		row(name, func(s *load.Stats) string {
			if s.Requests == 0 {
				return "-"
			}
			return formatSpan(of(s))
		})
	}
	latency("mean", (*load.Stats).Mean)
	for _, p := range percentiles {
		latency(p.name, func(s *load.Stats) time.Duration { return s.Percentile(p.percent) })
	}
	latency("max", (*load.Stats).Max)
	return t.Flush()
}

// A bucket is how many requests took up to so long, and longer than the bucket
// before.
type bucket struct {
	upto  time.Duration
	count int64
}

// histogram sorts requests into buckets whose bounds are 1, 2, 5, 10, 20 ...
// microseconds, from the first to the last that has any.
func histogram(s *load.Stats) (buckets []bucket) {
	if s.Requests == 0 {
		return nil
	}
	upto, step := time.Microsecond, 0
	add := func(latency time.Duration, count int64) {
		for latency > upto {
			step++
			upto = bound(step)
			if len(buckets) > 0 {
				buckets = append(buckets, bucket{upto: upto})
			}
		}
		if len(buckets) == 0 {
			buckets = append(buckets, bucket{upto: upto})
		}
		buckets[len(buckets)-1].count += count
	}
	for _, bar := range s.Latency.Distribution() {
		if bar.Count > 0 {
			add(time.Duration(bar.To), bar.Count)
		}
	}
	return buckets
}

// bound is the upper bound of the bucket of a number.
func bound(step int) time.Duration {
	b := []time.Duration{1, 2, 5}[step%3] * time.Microsecond
	for range step / 3 {
		b *= 10
	}
	return b
}

// barColumns is how wide the longest bar is.
const barColumns = 44

// histogramText draws a bar for each bucket, for 80 columns.
func histogramText(buckets []bucket) string {
	most, all := int64(0), int64(0)
	for _, b := range buckets {
		most, all = max(most, b.count), all+b.count
	}
	var text strings.Builder
	for _, b := range buckets {
		line := fmt.Sprintf("  <= %7s |%-*s %6.2f %%", formatBound(b.upto), barColumns, barText(b.count, most), 100*float64(b.count)/float64(all))
		fmt.Fprintf(&text, "%s %10d\n", line, b.count)
	}
	return text.String()
}

// formatBound writes a bucket's bound.
func formatBound(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%d s", d/time.Second)
	case d >= time.Millisecond:
		return fmt.Sprintf("%d ms", d/time.Millisecond)
	}
	return fmt.Sprintf("%d us", d/time.Microsecond)
}

// barText is a bar of eighths of columns; what is not nothing can be seen.
func barText(count, most int64) string {
	if count == 0 {
		return ""
	}
	eighths := max(1, int(count*barColumns*8/most))
	return strings.Repeat("\u2588", eighths/8) + []string{"", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589"}[eighths%8]
}

// benchJSON is a result in --json.
type benchJSON struct {
	benchPartJSON
	Late           int64          `json:"late"`
	VerifiedBlocks *int64         `json:"verifiedBlocks,omitempty"`
	Read           *benchPartJSON `json:"read,omitempty"`
	Write          *benchPartJSON `json:"write,omitempty"`
	Flush          *benchPartJSON `json:"flush,omitempty"`
}

// benchPartJSON is requests of one kind, or of all.
type benchPartJSON struct {
	Requests       int64              `json:"requests"`
	IOPS           float64            `json:"iops"`
	BytesPerSecond float64            `json:"bytesPerSecond"`
	Seconds        float64            `json:"seconds"`
	Errors         int64              `json:"errors"`
	Latency        map[string]float64 `json:"latency"`
	Histogram      []bucketJSON       `json:"histogram"`
}

type bucketJSON struct {
	UptoSeconds float64 `json:"uptoSeconds"`
	Count       int64   `json:"count"`
}

func asBench(r *load.Result, parts []benchPart, f *benchFlags) benchJSON {
	total := r.Total()
	all := benchJSON{benchPartJSON: asBenchPart(r, &total), Late: r.Late}
	if f.load.Verify {
		all.VerifiedBlocks = &r.Verified
	}
	for _, p := range parts {
		part := asBenchPart(r, &p.stats)
		switch {
		case p.name == "flush":
			all.Flush = &part
		case f.kind.value != "mix": // it is all
		case p.name == "read":
			all.Read = &part
		default:
			all.Write = &part
		}
	}
	return all
}

func asBenchPart(r *load.Result, s *load.Stats) benchPartJSON {
	p := benchPartJSON{
		Requests: s.Requests, IOPS: r.PerSecond(s.Requests), BytesPerSecond: r.PerSecond(s.Bytes), Seconds: r.Took.Seconds(), Errors: s.Errors,
		Latency:   map[string]float64{"meanSeconds": s.Mean().Seconds(), "maxSeconds": s.Max().Seconds()},
		Histogram: each(histogram(s), func(b bucket) bucketJSON { return bucketJSON{b.upto.Seconds(), b.count} }),
	}
	for _, q := range percentiles {
		p.Latency[q.name+"Seconds"] = s.Percentile(q.percent).Seconds()
	}
	return p
}

package cli

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/tidemark/tidemark/load"
)

func TestAHistogramFitsATerminalAndLosesNothing(t *testing.T) {
	s := load.Stats{Latency: hdrhistogram.New(1, int64(time.Hour), 3)}
	for latency, count := range map[time.Duration]int64{
		700: 5, time.Microsecond: 1, 15 * time.Microsecond: 1_000_000_000, 18 * time.Microsecond: 3, 90 * time.Microsecond: 1, 30 * time.Second: 2,
	} {
		if err := s.Latency.RecordValues(int64(latency), count); err != nil {
			t.Fatal(err)
		}
		s.Requests += count
	}
	buckets := histogram(&s)
	all, before := int64(0), time.Duration(0)
	for _, b := range buckets {
		if b.upto <= before {
			t.Errorf("a bucket up to %v after one up to %v", b.upto, before)
		}
		all, before = all+b.count, b.upto
	}
	if all != s.Requests || buckets[0] != (bucket{time.Microsecond, 6}) || buckets[4] != (bucket{20 * time.Microsecond, 1_000_000_003}) || before != 50*time.Second {
		t.Errorf("%d requests in %v", all, buckets)
	}
	for line := range strings.Lines(histogramText(buckets)) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if bar := barText(1, 1_000_000_000); bar != "\u258f" {
		t.Errorf("a bucket of one is drawn as %q", bar)
	}
	if bar := barText(7, 7); bar != strings.Repeat("\u2588", barColumns) {
		t.Errorf("the largest bucket is drawn as %q", bar)
	}
	if empty := histogram(&load.Stats{Latency: hdrhistogram.New(1, 10, 3)}); empty != nil {
		t.Errorf("no requests are in %v", empty)
	}
}

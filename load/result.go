package load

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what a run measured.
type Result struct {
	Took    time.Duration // what was measured, without warm-up: Duration, or until the run was ended
	Reads   Stats
	Writes  Stats
	Flushes Stats
	// Late are the requests that were due, with a rate, and were never begun: so
	// far had the server fallen behind. Their latencies would be the longest.
	Late int64
	// Verified is how many blocks were read back and found right.
	Verified int64
}

// Total is reads and writes together.
func (r *Result) Total() Stats {
	t := newStats()
	t.merge(&r.Reads)
	t.merge(&r.Writes)
	return *t
}

// Stats are the requests of one kind that began while it was measured.
type Stats struct {
	Requests int64 // answered without an error
	Bytes    int64
	Errors   int64
	// Latency is in nanoseconds, with three digits; never nil in a Result of a
	// run that began.
	Latency *hdrhistogram.Histogram
}

// maxLatency is the longest that is told from longer ones.
const maxLatency = time.Hour

func newStats() *Stats {
	return &Stats{Latency: hdrhistogram.New(1, int64(maxLatency), 3)}
}

func (s *Stats) add(latency time.Duration, bytes int) {
	s.Requests++
	s.Bytes += int64(bytes)
	_ = s.Latency.RecordValue(int64(min(max(latency, 1), maxLatency))) // no error: it is in the range
}

func (s *Stats) merge(other *Stats) {
	if other == nil || other.Latency == nil {
		return
	}
	s.Requests += other.Requests
	s.Bytes += other.Bytes
	s.Errors += other.Errors
	s.Latency.Merge(other.Latency)
}

// PerSecond is how many a second some requests or bytes were.
func (r *Result) PerSecond(count int64) float64 {
	if r.Took <= 0 {
		return 0
	}
	return float64(count) / r.Took.Seconds()
}

// Mean is the mean latency.
func (s *Stats) Mean() time.Duration { return time.Duration(s.Latency.Mean()) }

// Max is the longest latency.
func (s *Stats) Max() time.Duration { return time.Duration(s.Latency.Max()) }

// Percentile is the latency that so many per cent of the requests did not exceed.
func (s *Stats) Percentile(p float64) time.Duration {
	return time.Duration(s.Latency.ValueAtPercentile(p))
}

// result puts together what the streams measured. They have ended.
func result(streams []*stream, o *Options) Result {
	r := Result{Took: o.Duration, Reads: *newStats(), Writes: *newStats(), Flushes: *newStats()}
	for _, s := range streams {
		s.mu.Lock()
		end := o.Warmup + o.Duration
		if s.stopped > 0 && s.stopped < end {
			end = s.stopped
			r.Took = max(0, min(r.Took, end-o.Warmup))
		}
		r.Reads.merge(s.reads)
		r.Writes.merge(s.writes)
		r.Flushes.merge(s.flushes)
		r.Late += max(0, s.schedule.dueBefore(end)-s.schedule.count)
		s.mu.Unlock()
	}
	return r
}

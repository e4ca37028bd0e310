package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A request of fio's latency log.
type request struct {
	endSeconds, latencyMillis float64 // since 1970, to the millisecond
}

// A span is the time from a command's begin to its end, in seconds since 1970.
type span struct{ begin, end float64 }

// window is what counts as near, before a command's begin and after its end.
const window = 0.050 // seconds

// parseLog reads a latency log of fio: time, latency in ns, and more.
func parseLog(r io.Reader) ([]request, error) {
	var requests []request
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ", ", 3)
		if len(fields) < 3 {
			return nil, fmt.Errorf("fio's log: %q", lines.Text())
		}
		ended, err := strconv.ParseInt(fields[0], 10, 64)
		latency, latencyErr := strconv.ParseInt(fields[1], 10, 64)
		if err := errors.Join(err, latencyErr); err != nil {
			return nil, fmt.Errorf("fio's log: %w", err)
		}
		requests = append(requests, request{float64(ended) / 1e3, float64(latency) / 1e6})
	}
	return requests, lines.Err()
}

// sortRequests sorts requests into those that ended within the window of a
// command's span, and those apart: the others from the first command on. The rates
// are those of the second before each command and of the second after it, or of
// less where commands come more often.
func sortRequests(requests []request, spans []span, every float64) (map[string]float64, error) {
	if len(requests) == 0 || len(spans) == 0 {
		return nil, errors.New("no requests, or no commands, to sort")
	}
	slices.SortFunc(requests, func(x, y request) int { return cmp.Compare(x.endSeconds, y.endSeconds) })
	var near, apart, lead []float64
	first, next := spans[0].begin-window, 0
	for _, r := range requests {
		for next < len(spans)-1 && r.endSeconds > spans[next].end+window {
			next++
		}
		switch {
		case spans[next].begin-window <= r.endSeconds && r.endSeconds <= spans[next].end+window:
			near = append(near, r.latencyMillis)
		case r.endSeconds > first:
			apart = append(apart, r.latencyMillis)
		case r.endSeconds > requests[0].endSeconds+0.5:
			lead = append(lead, r.latencyMillis)
		}
	}
	var command, before, after, ratios []float64
	second := min(1, every)
	for _, s := range spans {
		command = append(command, (s.end-s.begin)*1e3)
		before = append(before, rate(requests, s.begin-second, s.begin))
		after = append(after, rate(requests, s.end, s.end+second))
		ratios = append(ratios, after[len(after)-1]/max(1, before[len(before)-1]))
	}
	for _, list := range [][]float64{near, apart, lead, command} {
		slices.Sort(list)
	}
	return map[string]float64{
		"iops": rate(requests, first, requests[len(requests)-1].endSeconds),
		"near": float64(len(near)), "apart": float64(len(apart)),
		"nearP999Millis": percentile(near, 0.999), "nearMaxMillis": percentile(near, 1),
		"apartP999Millis": percentile(apart, 0.999), "apartMaxMillis": percentile(apart, 1),
		"leadP999Millis": percentile(lead, 0.999), "leadMaxMillis": percentile(lead, 1),
		"ratioP999": percentile(near, 0.999) / percentile(apart, 0.999), "ratioMax": percentile(near, 1) / percentile(apart, 1),
		"commandP50Millis": percentile(command, 0.5), "commandMaxMillis": percentile(command, 1),
		"before": median(before), "after": median(after), "afterToBefore": median(ratios),
	}, finite(near, apart)
}

// finite refuses what makes ratios that are none.
func finite(near, apart []float64) error {
	if len(near) == 0 || len(apart) == 0 || apart[len(apart)-1] <= 0 {
		return fmt.Errorf("%d requests near a command and %d apart: nothing to compare", len(near), len(apart))
	}
	return nil
}

// rate is the requests a second that ended from begin to before end; they are in
// order.
func rate(requests []request, begin, end float64) float64 {
	at := func(t float64) int {
		i, _ := slices.BinarySearchFunc(requests, t, func(r request, t float64) int { return cmp.Compare(r.endSeconds, t) })
		return i
	}
	return float64(at(end)-at(begin)) / (end - begin)
}

// A moment is 20 ms of the requests around a snapshot.
type moment struct {
	Millis     float64 `json:"ms"` // of its begin, since the snapshot's command
	Requests   float64 `json:"n"`
	WorstMilli float64 `json:"worst"`
}

const momentMillis = 20

// around has the requests from 1 s before a command to 2 s after it.
func around(requests []request, command span) []moment {
	moments := make([]moment, 3000/momentMillis)
	for i := range moments {
		moments[i].Millis = float64(i*momentMillis) - 1000
	}
	for _, r := range requests {
		i := int(math.Floor(((r.endSeconds-command.begin)*1e3 + 1000) / momentMillis))
		if i >= 0 && i < len(moments) {
			moments[i].Requests++
			moments[i].WorstMilli = max(moments[i].WorstMilli, r.latencyMillis)
		}
	}
	return moments
}

// percentile is the least of values in order that a part p of them, 0 to 1, does not
// exceed (nearest rank); 0 if there are none.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
}

// median leaves the order of values alone; of an even number it is the mean of two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

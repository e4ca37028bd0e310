package main

import (
	"math"
	"strings"
	"testing"
)

// Two commands of 100 ms, at 10 s and at 11 s.
var twoSpans = []span{{10, 10.1}, {11, 11.1}}

func TestRequestsAreNearACommandWithinTheWindowOfItsSpan(t *testing.T) {
	requests := []request{
		{8, 1},                  // the first half second is left out
		{9, 2},                  // the lead
		{9.94, 3},               // still the lead, 60 ms before the first command
		{9.96, 40}, {10.14, 50}, // near, before its begin and after its end
		{10.16, 4}, {10.9, 5}, // apart
		{11.05, 60}, // near the second
		{11.2, 6},   // apart
	}
	values, err := sortRequests(requests, twoSpans, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"near": 3, "apart": 3, "nearMaxMillis": 60, "apartMaxMillis": 6, "leadMaxMillis": 3, "iops": 5 / (11.2 - 9.95), "ratioMax": 10, "ratioP999": 10,
		"before": 3, "after": 2.5, "afterToBefore": (4.0/3 + 1.0/3) / 2,
	} {
		if got := values[name]; math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got := values["commandP50Millis"]; math.Abs(got-100) > 1e-3 {
		t.Errorf("a command of 100 ms took %v", got)
	}
}

func TestNothingToCompareIsAnError(t *testing.T) {
	for name, requests := range map[string][]request{
		"no request": nil, "none near": {{9.5, 1}, {10.5, 1}}, "none apart": {{10, 1}}, "no time apart": {{10, 1}, {10.5, 0}},
	} {
		if _, err := sortRequests(requests, twoSpans, 1); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLogOfFio(t *testing.T) {
	requests, err := parseLog(strings.NewReader("1700000000123, 45000, 1, 4096, 0, 0\n1700000000124, 1500000, 1, 4096, 8192, 0\n"))
	if err != nil || len(requests) != 2 || requests[1] != (request{1700000000.124, 1.5}) {
		t.Errorf("%v, %v", requests, err)
	}
	for _, bad := range []string{"x, 1, 1\n", "1\n", "1, y, 1\n"} {
		if _, err := parseLog(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestMomentsAroundACommand(t *testing.T) {
	moments := around([]request{{8.9, 9}, {9.0, 1}, {9.99, 2}, {10.0, 7}, {10.01, 3}, {13, 9}}, span{10, 10.1})
	at := 1000 / momentMillis
	if m := moments[at]; m.Millis != 0 || m.Requests != 2 || m.WorstMilli != 7 {
		t.Errorf("at the command: %+v", m)
	}
	if m := moments[at-1]; m.Requests != 1 || m.WorstMilli != 2 {
		t.Errorf("before it: %+v", m)
	}
	if m := moments[0]; m.Requests != 1 {
		t.Errorf("a second before it: %+v", m)
	}
}

func TestMedianAndPercentile(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v", c.values, got)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("nothing has a median")
	}
	sorted := []float64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	if percentile(sorted, 0.5) != 4 || percentile(sorted, 0.99) != 9 || percentile(sorted, 1) != 9 || percentile(nil, 0.5) != 0 {
		t.Error("percentile")
	}
}

package keep_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark/tidemark/keep"
)

// at reads a time as 2026-03-01 10:30, or with seconds.
func at(t testing.TB, text string) time.Time {
	t.Helper()
	for _, form := range []string{"2006-01-02 15:04", time.DateTime} {
		if v, err := time.Parse(form, text); err == nil {
			return v
		}
	}
	t.Fatalf("time %q", text)
	return time.Time{}
}

func policy(t testing.TB, text string) keep.Policy {
	t.Helper()
	p, err := keep.ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOfEachBucketTheOldestIsKeptAndTheNewestOfAll(t *testing.T) {
	for what, c := range map[string]struct {
		policy, now string
		snapshots   []string
		expired     []string
	}{
		"none":    {"24h:1h", "2026-03-02 10:30", nil, nil},
		"the one": {"24h:1h", "2026-03-02 10:30", []string{"2020-01-01 00:00"}, nil},
		"one an hour": {
			"24h:1h", "2026-03-02 10:30",
			[]string{"2026-03-02 08:00", "2026-03-02 08:59", "2026-03-02 09:00", "2026-03-02 09:30", "2026-03-02 10:00", "2026-03-02 10:20"},
			[]string{"2026-03-02 08:59", "2026-03-02 09:30"},
		},
		"in any order": {
			"24h:1h", "2026-03-02 10:30",
			[]string{"2026-03-02 10:20", "2026-03-02 08:59", "2026-03-02 10:00", "2026-03-02 08:00"},
			[]string{"2026-03-02 08:59"},
		},
		"as long as a bit of the bucket is within the time": {
			"24h:1h", "2026-03-02 10:59",
			[]string{"2026-03-01 09:59", "2026-03-01 10:00", "2026-03-01 10:30", "2026-03-02 10:59"},
			[]string{"2026-03-01 09:59", "2026-03-01 10:30"},
		},
		"and then no more": {
			"24h:1h", "2026-03-02 11:00",
			[]string{"2026-03-01 10:00", "2026-03-01 10:30", "2026-03-02 10:59"},
			[]string{"2026-03-01 10:00", "2026-03-01 10:30"},
		},
		"first hours, then days, then months": {
			"24h:1h,30d:1d,1y:1mo", "2026-03-20 12:30",
			[]string{
				"2025-01-31 00:00", "2025-02-28 00:00", "2025-03-10 00:00", "2025-03-31 00:00", "2025-04-02 00:00", "2026-02-01 00:00",
				"2026-02-17 00:00", "2026-02-18 00:00", "2026-02-18 12:00", "2026-02-19 00:00", "2026-03-19 00:00", "2026-03-19 11:00", "2026-03-19 12:00", "2026-03-20 12:00",
			},
			[]string{"2025-01-31 00:00", "2025-02-28 00:00", "2025-03-31 00:00", "2026-02-17 00:00", "2026-02-18 12:00", "2026-03-19 11:00"},
		},
		"weeks begin on Monday": {
			"4w:1w", "2026-03-06 00:00", // a Friday
			[]string{"2026-02-28 23:00", "2026-03-01 23:59", "2026-03-02 00:00", "2026-03-03 00:00"},
			[]string{"2026-03-01 23:59"},
		},
		"years and quarters are those of the calendar": {
			"1y:3mo,10y:1y", "2026-12-31 00:00",
			[]string{"2024-12-31 00:00", "2025-01-01 00:00", "2026-01-01 00:00", "2026-03-31 00:00", "2026-04-01 00:00", "2026-12-31 00:00"},
			[]string{"2026-03-31 00:00"},
		},
		"at the same time the first given": {
			"24h:1h", "2026-03-02 10:30",
			[]string{"2026-03-02 09:00", "2026-03-02 09:00", "2026-03-02 10:00"},
			[]string{"2026-03-02 09:00"},
		},
		"what is still to come stays": {
			"24h:1h", "2026-03-02 10:30",
			[]string{"2026-03-02 09:00", "2027-01-01 00:00", "2027-01-01 00:01", "2028-01-01 00:00"}, nil,
		},
	} {
		t.Run(what, func(t *testing.T) {
			var times []time.Time
			for _, s := range c.snapshots {
				times = append(times, at(t, s))
			}
			var got, want []string
			for _, i := range policy(t, c.policy).Expired(times, at(t, c.now)) {
				got = append(got, c.snapshots[i])
			}
			want = slices.Clone(c.expired)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("expired are %q, want %q", got, want)
			}
		})
	}
}

func TestAPolicyThatIsNotOneIsRefused(t *testing.T) {
	for _, text := range []string{
		"", "24h", "24h:", ":1h", "24h:1h,", "24h:1h;30d:1d", "1h:24h", "24h:0h", "0h:0h", "-24h:1h", "24h:1h,30d:30m", "24h:1h,12h:2h",
		"24h:1h,24h:2h", "1y:1mo5d", "100y:1h", "1000y:1y", "24H:1H", "24h:1h:1m", "1y:1s",
		"2s:1s,3s:2s,4s:3s,5s:4s,6s:5s,7s:6s,8s:7s,9s:8s,10s:9s", strings.Repeat("9", 100) + "d:1h",
		"99y99y99y99y99y99y99y99y99y99y:1y",
	} {
		if p, err := keep.ParsePolicy(text); err == nil {
			t.Errorf("policy %q is taken, and keeps %d", text, p.Most())
		} else if !strings.Contains(err.Error(), "24h:1h,30d:1d,1y:1mo") || strings.Contains(err.Error(), "\n") {
			t.Errorf("policy %q: %v: it does not say in a line what is allowed", text, err)
		}
	}
}

func TestMostCountsTheBucketsThatATimeMayTouch(t *testing.T) {
	for text, want := range map[string]int{
		"24h:1h": 26, "30d:1d": 32, "1y:1mo": 14, "24h:1h,30d:1d,1y:1mo": 70, "90m:1h": 4, "10y:1y": 12, "1mo:1mo": 4, "59d:1mo": 4, "60d:1mo": 5 /* February and March have 59 days */, "1y:3mo": 6,
	} {
		if got := policy(t, text).Most(); got != want {
			t.Errorf("%s keeps %d at most, want %d", text, got, want)
		}
	}
}

// somePolicy draws a policy of up to three parts.
func somePolicy(t *rapid.T) keep.Policy {
	parts := [][]string{{"3h:10m", "24h:1h", "2d:90m"}, {"30d:1d", "9d:12h", "8w:1w"}, {"1y:1mo", "400d:3mo", "3y:1y", "1y:30d"}}
	var text []string
	for _, some := range parts {
		if rapid.Bool().Draw(t, "part") {
			text = append(text, rapid.SampledFrom(some).Draw(t, "tier"))
		}
	}
	if text == nil {
		text = []string{"24h:1h"}
	}
	p, err := keep.ParsePolicy(strings.Join(text, ","))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Snapshots are made at any time and deleted when they have expired, now or later.
// What has expired once stays so, whatever of it is deleted first.
func TestWhatHasExpiredIsNeverNeededLater(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := somePolicy(t)
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 2*365*24).Draw(t, "begin")) * time.Hour)
		var there []time.Time
		dead := map[time.Time]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{1, 7, 30, 60, 60 * 5, 60 * 24, 60 * 24 * 9, 60 * 24 * 40}).Draw(t, "minutes")) * time.Minute)
			there = append(there, now)
			expired := map[time.Time]bool{}
			for _, i := range p.Expired(there, now) {
				expired[there[i]] = true
			}
			for was := range dead {
				if slices.Contains(there, was) && !expired[was] {
					t.Fatalf("%s: %v had expired, and at %v it is kept", p, was, now)
				}
			}
			if kept := len(there) - len(expired); kept > p.Most() {
				t.Fatalf("%s keeps %d, more than %d", p, kept, p.Most())
			}
			if expired[now] {
				t.Fatalf("%s: the newest has expired", p)
			}
			for x := range expired {
				dead[x] = true
			}
			there = slices.DeleteFunc(there, func(x time.Time) bool { return expired[x] && rapid.IntRange(0, 3).Draw(t, "later") > 0 })
		}
	})
}

// What is kept is what would be kept had nothing been deleted before: the past is
// not thinned by how often one looks.
func TestItDoesNotMatterHowOftenOneLooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := somePolicy(t)
		now := time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
		var all, thinned []time.Time
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 5000).Draw(t, "minutes")) * time.Minute)
			all, thinned = append(all, now), append(thinned, now)
			thinned = without(thinned, p.Expired(thinned, now))
		}
		if want := without(all, p.Expired(all, now)); !slices.Equal(thinned, want) {
			t.Fatalf("%s: %v is kept, want %v", p, thinned, want)
		}
	})
}

func without(times []time.Time, gone []int) (kept []time.Time) {
	for i, x := range times {
		if !slices.Contains(gone, i) {
			kept = append(kept, x)
		}
	}
	return kept
}

func TestAYearOfHourlySnapshotsEndsBounded(t *testing.T) {
	p := policy(t, "24h:1h,30d:1d,1y:1mo")
	begin := at(t, "2026-01-15 00:00")
	var there []time.Time
	for h := range 400 * 24 {
		now := begin.Add(time.Duration(h) * time.Hour)
		there = append(there, now)
		there = without(there, p.Expired(there, now))
		if len(there) > p.Most() {
			t.Fatalf("at %v there are %d, more than %d", now, len(there), p.Most())
		}
	}
	var want []time.Time // 2027-02-18 23:00 is the last
	for _, s := range []string{"2026-02", "2026-03", "2026-04", "2026-05", "2026-06", "2026-07", "2026-08", "2026-09", "2026-10", "2026-11", "2026-12", "2027-01"} {
		want = append(want, at(t, s+"-01 00:00"))
	}
	for d := at(t, "2027-01-19 00:00"); d.Before(at(t, "2027-02-18 00:00")); d = d.Add(24 * time.Hour) {
		want = append(want, d)
	}
	for h := at(t, "2027-02-17 23:00"); !h.After(at(t, "2027-02-18 23:00")); h = h.Add(time.Hour) {
		want = append(want, h)
	}
	if !slices.Equal(there, want) {
		t.Errorf("%v is left, want %v", there, want)
	}
}

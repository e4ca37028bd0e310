package keep_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark/tidemark/keep"
)

func TestPeriodsAreOnTheClockAndCronIsInUTC(t *testing.T) {
	for _, c := range []struct{ every, after, next string }{
		{"1h", "2026-03-01 10:30", "2026-03-01 11:00"},
		{"1h", "2026-03-01 11:00", "2026-03-01 12:00"},
		{"15m", "2026-03-01 10:16", "2026-03-01 10:30"},
		{"1h30m", "2026-03-01 00:10", "2026-03-01 01:30"},
		{"90s", "2026-03-01 00:00:10", "2026-03-01 00:01:30"},
		{"1d", "2026-03-01 10:30", "2026-03-02 00:00"},
		{"1w", "2026-03-01 10:30", "2026-03-02 00:00"}, // from a Sunday to Monday
		{"@hourly", "2026-03-01 10:30", "2026-03-01 11:00"},
		{"@daily", "2026-03-01 10:30", "2026-03-02 00:00"},
		{"@monthly", "2026-03-01 10:30", "2026-04-01 00:00"},
		{"30 2 * * 1-5", "2026-02-28 10:30", "2026-03-02 02:30"},
		{"0 0 29 2 *", "2026-03-01 00:00", "2028-02-29 00:00"},
		{"*/20 * * * *", "2026-03-01 10:40", "2026-03-01 11:00"},
	} {
		e, err := keep.ParseEvery(c.every)
		if err != nil {
			t.Error(err)
			continue
		}
		local := at(t, c.after).In(time.FixedZone("somewhere", 5*3600+1800))
		if got := e.Next(local); !got.Equal(at(t, c.next)) {
			t.Errorf("every %s after %s: %v, want %s", c.every, c.after, got, c.next)
		}
		if e.String() != c.every {
			t.Errorf("every %s says %q", c.every, e)
		}
	}
}

func TestAnEveryThatIsNotOneIsRefused(t *testing.T) {
	for _, text := range []string{
		"", "1", "h", "0s", "-1h", "1mo", "1y", "500ms", "11000d", "1h ", "* * * *", "* * * * * *", "60 * * * *", "0 0 30 2 *", "@every 1h", "@reboot", "@often",
		"TZ=UTC", "TZ=UTC * * * * *", "CRON_TZ=UTC 0 0 * * *", "*/0 * * * *", "a b c d e", strings.Repeat("1,", 1000) + "1 * * * *",
	} {
		if e, err := keep.ParseEvery(text); err == nil {
			t.Errorf("every %q is taken; the next is %v", text, e.Next(time.Now()))
		} else if !strings.Contains(err.Error(), "15m") || strings.Contains(err.Error(), "\n") {
			t.Errorf("every %q: %v: it does not say in a line what is allowed", text, err)
		}
	}
}

func TestOneIsDueHoweverManyWereMissed(t *testing.T) {
	for _, c := range []struct {
		every, last, now string
		due              bool
	}{
		{"1h", "2026-03-01 10:00", "2026-03-01 10:59", false},
		{"1h", "2026-03-01 10:00", "2026-03-01 11:00", true},
		{"1h", "2026-03-01 10:00:03", "2026-03-01 11:00", true}, // made a little late
		{"1h", "2026-03-01 10:00", "2026-06-01 00:10", true},
		{"@daily", "2026-03-01 10:00", "2026-03-01 23:59", false},
		{"@daily", "2026-03-01 10:00", "2026-03-05 00:00", true},
		{"1h", "2026-03-01 10:00", "2026-02-01 00:00", false}, // the clock was moved back
	} {
		e, err := keep.ParseEvery(c.every)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Due(at(t, c.last), at(t, c.now)); got != c.due {
			t.Errorf("every %s, last at %s, at %s: due is %v", c.every, c.last, c.now, got)
		}
	}
	if (keep.Every{}).Due(time.Time{}, time.Now()) {
		t.Error("nothing is due")
	}
}

func TestTheNextTimeIsAlwaysLater(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, err := keep.ParseEvery(rapid.SampledFrom([]string{"1s", "7m", "1h", "1d", "1w", "@daily", "*/7 3-9 * * *", "0 0 31 * *"}).Draw(t, "every"))
		if err != nil {
			t.Fatal(err)
		}
		after := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "s"), rapid.Int64Range(0, 1e9-1).Draw(t, "ns"))
		if next := e.Next(after); !next.After(after) || e.Due(after, after) || !e.Due(after, next) {
			t.Fatalf("every %s: after %v comes %v", e, after, next)
		}
	})
}

func TestTheEndOfAHoldIsADayATimeOrASpan(t *testing.T) {
	now := at(t, "2026-03-01 10:30")
	for text, want := range map[string]string{
		"2027-01-01": "2027-01-01 00:00", "2027-01-01T12:00:00Z": "2027-01-01 12:00", "2027-01-01T12:00:00+02:00": "2027-01-01 10:00",
		"30d": "2026-03-31 10:30", "1mo": "2026-04-01 10:30", "1y": "2027-03-01 10:30", "1y1d": "2027-03-02 10:30", "2020-01-01": "2020-01-01 00:00",
	} {
		if got, err := keep.ParseUntil(text, now); err != nil || !got.Equal(at(t, want)) {
			t.Errorf("until %s: %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "tomorrow", "30", "-30d", "2027-13-01", "2027-01-01 12:00", "12:00", "0000-01-01", "1000y"} {
		if got, err := keep.ParseUntil(text, now); err == nil {
			t.Errorf("until %q is taken: %v", text, got)
		} else if !strings.Contains(err.Error(), "30d") {
			t.Errorf("until %q: %v: it does not say what is allowed", text, err)
		}
	}
}

// Whatever is given is read or refused, and what is read can be worked with.
func FuzzWhatPeopleGive(f *testing.F) {
	for _, text := range []string{"1h", "24h:1h,30d:1d,1y:1mo", "*/5 1-7,9 * * MON", "@daily", "2027-01-01", "TZ= *", "0 0 L * ?"} {
		f.Add(text)
	}
	now := time.Date(2026, 3, 1, 10, 30, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := keep.ParseEvery(text); err == nil {
			if next := e.Next(now); !next.IsZero() && !next.After(now) {
				t.Errorf("every %q: after %v comes %v", text, now, next)
			}
		}
		if p, err := keep.ParsePolicy(text); err == nil {
			if most := p.Most(); most < 2 || len(p.Expired([]time.Time{now.Add(-time.Hour), now}, now)) > 1 {
				t.Errorf("policy %q keeps %d at most", text, most)
			}
		}
		if until, err := keep.ParseUntil(text, now); err == nil && until.IsZero() {
			t.Errorf("until %q is no time", text)
		}
	})
}

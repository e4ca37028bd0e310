package keep

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Every is when a schedule is due: after fixed periods, or as cron says. All of it
// is in UTC. The zero value is never due.
type Every struct {
	text   string
	period time.Duration // 0: cron says
	cron   cron.Schedule
}

// everyAllowed stands in every refusal.
const everyAllowed = "allowed are a period from 1s to 10y as 15m, 1h, 1d or 1w, five fields of cron as \"30 2 * * 1-5\", and @hourly, @daily, @weekly, @monthly or @yearly; times are UTC"

// cronParser takes what crontab(5) has: five fields, and words for the common.
var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// mostPeriod is the longest period.
const mostPeriod = 10 * 365 * day

// ParseEvery reads a period (1h, 15m, 1d, 1w), or when cron would run: five fields,
// or @daily and its like. A period is counted on the clock, not from the last time:
// 1h is at each full hour, 1d at midnight, 1w on Mondays. The error says what is
// allowed.
func ParseEvery(text string) (Every, error) {
	if s, ok := parseSpan(text); ok {
		if s.months > 0 || s.fixed > mostPeriod {
			return Every{}, fmt.Errorf("every %q: months differ in length; %s", text, everyAllowed)
		}
		return Every{text: text, period: s.fixed}, nil
	}
	// The parser would take a time zone, which may be unknown where the schedule is
	// read again, and @every, which is a period of another kind.
	if strings.Contains(text, "=") || strings.HasPrefix(text, "@every") || len(text) > 200 {
		return Every{}, fmt.Errorf("every %q: %s", text, everyAllowed)
	}
	schedule, err := cronParser.Parse(text)
	if err != nil {
		return Every{}, fmt.Errorf("every %q: %w; %s", text, err, everyAllowed)
	}
	e := Every{text: text, cron: schedule}
	if e.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Every{}, fmt.Errorf("every %q: there is no such day; %s", text, everyAllowed)
	}
	return e, nil
}

// String is the text that it was read from.
func (e Every) String() string { return e.text }

// Next is the first time after another; the zero time if it never comes.
func (e Every) Next(after time.Time) time.Time {
	switch after = after.UTC().Round(0); { // by the clock, which may be set meanwhile
	case e.period > 0:
		return after.Truncate(e.period).Add(e.period)
	case e.cron != nil:
		return e.cron.Next(after)
	}
	return time.Time{}
}

// Due tells whether a time has come since the last one: however many were missed
// meanwhile, one is due now.
func (e Every) Due(last, now time.Time) bool {
	next := e.Next(last)
	return !next.IsZero() && !next.After(now)
}

package keep

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tidemark/tidemark/internal/lazy"
)

// day is 24 hours: all is reckoned in UTC.
const day = 24 * time.Hour

// span is a length of time as people write it. Months and years have no fixed
// length, so they are counted apart.
type span struct {
	months int
	fixed  time.Duration
}

// Units of a span.
var units = map[string]span{
	"s": {fixed: time.Second}, "m": {fixed: time.Minute}, "h": {fixed: time.Hour},
	"d": {fixed: day}, "w": {fixed: 7 * day}, "mo": {months: 1}, "y": {months: 12},
}

var (
	spanForm = lazy.Regexp(`^(?:[0-9]{1,9}(?:mo|[smhdwy]))+$`)
	spanPart = lazy.Regexp(`([0-9]+)(mo|[smhdwy])`)
)

// mostSpan keeps sums and dates far from where they overflow.
const mostSpan = 100 * 365 * day

// parseSpan reads numbers with units, as 90s, 15m, 1h30m, 2d, 1w, 1mo or 1y.
func parseSpan(text string) (sum span, ok bool) {
	if len(text) > 40 || !spanForm().MatchString(text) {
		return span{}, false
	}
	for _, part := range spanPart().FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(part[1])
		unit := units[part[2]]
		if n > int(mostSpan/(unit.least())) {
			return span{}, false
		}
		sum.months += n * unit.months
		sum.fixed += time.Duration(n) * unit.fixed
		if sum.least() > mostSpan {
			return span{}, false
		}
	}
	return sum, sum.least() > 0
}

// least is how long the span is for certain: a month is taken for 30 days, a year
// for 365.
func (s span) least() time.Duration {
	return s.fixed + time.Duration(s.months/12*365+s.months%12*30)*day
}

// ParseUntil reads the end of a hold: a time in RFC 3339, a day as 2006-01-02 (its
// beginning, in UTC), or a span from now, as 12h, 30d or 1y. The error says what is
// allowed. Whether it is still to come is the caller's to ask.
func ParseUntil(text string, now time.Time) (time.Time, error) {
	if s, ok := parseSpan(text); ok {
		return now.UTC().AddDate(0, s.months, 0).Add(s.fixed), nil
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, text); err == nil && t.Year() > 0 && t.Year() < 10000 {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("date %q: allowed are 2006-01-02, 2006-01-02T15:04:05Z, or a time from now as 12h, 30d, 6mo, 1y", text)
}

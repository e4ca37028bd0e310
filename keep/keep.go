// Package keep says when a schedule is due, and which of the snapshots that it made
// are to go. It is pure: it knows times and nothing of snapshots.
package keep

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Policy says what is kept: for so long, one in each bucket of time. So 24h:1h,30d:1d
// keeps one an hour for a day, and one a day for 30 days.
//
// Buckets lie on the clock, in UTC: hours, days from midnight, weeks from Monday,
// months, years. What is kept of a bucket is the oldest in it, for as long as any of
// the bucket is within the time; besides, the newest of all is kept. Hence:
//
//  1. Dead is for ever: what has expired never would be kept later, as long as only
//     what has expired is deleted. In a bucket there is an older one, which stays as
//     long as the bucket counts.
//  2. What is kept is bounded by Most, however often snapshots are made.
//
// What is not past yet, since the clock was moved back, is kept and not counted.
type Policy struct {
	text  string
	tiers []tier
}

// tier keeps one in each bucket for a time.
type tier struct {
	within time.Duration
	each   span // either months or a fixed length
}

const policyAllowed = "allowed is a list as 24h:1h,30d:1d,1y:1mo: for how long, and one in each how long, both growing"

// mostTiers bounds a policy; mostKept bounds what one may keep.
const (
	mostTiers = 8
	mostKept  = 10000
)

// ParsePolicy reads a list of WITHIN:EACH, as 24h:1h,30d:1d,1y:1mo. In WITHIN a month
// counts 30 days and a year 365. The error says what is allowed.
func ParsePolicy(text string) (Policy, error) {
	p := Policy{text: text}
	refuse := func(why string) (Policy, error) {
		return Policy{}, fmt.Errorf("keep %q: %s; %s", text, why, policyAllowed)
	}
	for part := range strings.SplitSeq(text, ",") {
		long, short, _ := strings.Cut(part, ":")
		within, ok := parseSpan(long)
		each, also := parseSpan(short)
		switch {
		case !ok || !also:
			return refuse(fmt.Sprintf("%q is not two lengths of time", part))
		case each.months > 0 && each.fixed > 0:
			return refuse(fmt.Sprintf("%q is months and something", short))
		case within.least() < each.least():
			return refuse(fmt.Sprintf("%s is shorter than %s", long, short))
		}
		if n := len(p.tiers); n > 0 && (within.least() <= p.tiers[n-1].within || each.least() <= p.tiers[n-1].each.least()) {
			return refuse(fmt.Sprintf("%q does not follow on the one before", part))
		}
		p.tiers = append(p.tiers, tier{within.least(), each})
	}
	if len(p.tiers) > mostTiers {
		return refuse(fmt.Sprintf("it has more than %d parts", mostTiers))
	}
	if p.Most() > mostKept {
		return refuse(fmt.Sprintf("it keeps up to %d, more than %d", p.Most(), mostKept))
	}
	return p, nil
}

// String is the text that it was read from.
func (p Policy) String() string { return p.text }

// Expired returns which of the snapshots, given by the times of their cuts in any
// order, the policy keeps no more: their indices, the oldest first.
func (p Policy) Expired(snapshots []time.Time, now time.Time) (expired []int) {
	order := make([]int, len(snapshots))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return snapshots[i].Compare(snapshots[j]) })
	last := make([]time.Time, len(p.tiers)) // the end of the bucket that was last seen
	for n, i := range order {
		kept := n == len(order)-1 || snapshots[i].After(now)
		for j, t := range p.tiers {
			end := t.each.bucketEnd(snapshots[i])
			oldest := n == 0 || end.After(last[j])
			last[j] = end
			kept = kept || oldest && end.After(now.Add(-t.within))
		}
		if !kept {
			expired = append(expired, i)
		}
	}
	return expired
}

// Most bounds how many it keeps of the snapshots up to now.
func (p Policy) Most() int {
	most := 1 // the newest
	for _, t := range p.tiers {
		most += t.buckets()
	}
	return most
}

// buckets is in how many buckets a stretch of the tier's time may lie at most: one
// more than fit between the first and the last of them.
func (t tier) buckets() int {
	if t.each.months == 0 {
		return int((t.within+t.each.fixed-1)/t.each.fixed) + 1
	}
	between := 0
	for (span{months: (between + 1) * t.each.months}).shortest() < t.within {
		between++
	}
	return between + 2
}

// shortest is how short so many months in a row can be: around a year that has a
// leap day less than its place would give it.
func (s span) shortest() time.Duration {
	first := time.Date(1896, 1, 1, 0, 0, 0, 0, time.UTC)
	starts := make([]time.Duration, 0, 12*9)
	for i := range cap(starts) {
		starts = append(starts, first.AddDate(0, i+s.months, 0).Sub(first.AddDate(0, i, 0)))
	}
	return slices.MinFunc(starts, cmp.Compare)
}

// bucketEnd is when the bucket ends that a time lies in: the first moment after it.
func (s span) bucketEnd(t time.Time) time.Time {
	t = t.UTC()
	if s.months == 0 {
		return t.Truncate(s.fixed).Add(s.fixed)
	}
	month := t.Year()*12 + int(t.Month()) - 1
	return time.Date(0, time.Month(month-month%s.months+s.months+1), 1, 0, 0, 0, 0, time.UTC)
}

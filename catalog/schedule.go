package catalog

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/keep"
)

// Schedule makes snapshots of its target again and again, and deletes those of them
// that are not to be kept any more.
type Schedule struct {
	// Target is the name of a volume, or what else the store can resolve to volumes,
	// which has a colon in it ("group:G").
	Target string `json:"-"` // in the key
	// Every and Keep are what package keep reads.
	Every string `json:"every"`
	Keep  string `json:"keep"`
	// Drill names the program that looks at clones of its snapshots; empty: none does.
	// DrillEvery is how often, as Every; empty: of each snapshot.
	Drill      string `json:"drill,omitempty"`
	DrillEvery string `json:"drillEvery,omitempty"`
	// Wait is how long a preserve waits for older processes; nil: as long as the store
	// waits where nobody said. OnTimeout is what it does then: "degrade", or empty: it is
	// given up.
	Wait      *time.Duration `json:"waitNanoseconds,omitempty"`
	OnTimeout string         `json:"onTimeout,omitempty"`
	// Since is when it was set: what was due before is not missed.
	Since time.Time `json:"since"`
}

// ScheduleDegrades is the OnTimeout of a Schedule whose preserves cut again.
const ScheduleDegrades = "degrade"

// schedulePrefix begins the key of a schedule: its target follows.
const schedulePrefix = 's'

func scheduleKey(target string) []byte { return append([]byte{schedulePrefix}, target...) }

// mostTargetBytes bounds a key, mostProgramBytes the name of a file.
const (
	mostTargetBytes  = 255
	mostProgramBytes = 255
)

// check looks at what a schedule says by itself.
func (x Schedule) check() error {
	_, badEvery := keep.ParseEvery(x.Every)
	_, badKeep := keep.ParsePolicy(x.Keep)
	_, badDrill := keep.ParseEvery(x.DrillEvery)
	switch {
	case x.Target == "" || len(x.Target) > mostTargetBytes:
		return fmt.Errorf("schedule of %q: the target has %d bytes, not 1 to %d", x.Target, len(x.Target), mostTargetBytes)
	case badEvery != nil:
		return fmt.Errorf("schedule of %s: %w", x.Target, badEvery)
	case badKeep != nil:
		return fmt.Errorf("schedule of %s: %w", x.Target, badKeep)
	case x.DrillEvery != "" && badDrill != nil:
		return fmt.Errorf("schedule of %s: drill %w", x.Target, badDrill)
	case x.DrillEvery != "" && x.Drill == "":
		return fmt.Errorf("schedule of %s: it says when to drill, and not what runs", x.Target)
	case x.Wait != nil && *x.Wait < 0:
		return fmt.Errorf("schedule of %s: it waits for %v", x.Target, *x.Wait)
	case x.OnTimeout != "" && x.OnTimeout != ScheduleDegrades:
		return fmt.Errorf("schedule of %s: on timeout %q is not %q or empty", x.Target, x.OnTimeout, ScheduleDegrades)
	case len(x.Drill) > mostProgramBytes || strings.ContainsAny(x.Drill, "/\x00") || strings.HasPrefix(x.Drill, "."):
		return fmt.Errorf("schedule of %s: drill %q is no name of a file", x.Target, x.Drill)
	}
	return nil
}

// checkSchedules holds schedules to volumes that are there.
func checkSchedules(state *State, note func(error)) {
	for _, x := range state.Schedules {
		note(x.check())
		there := func(v VolumeState) bool { return v.Name == x.Target && !v.Past && !v.Staged }
		if !strings.Contains(x.Target, ":") && !slices.ContainsFunc(state.Volumes, there) {
			note(fmt.Errorf("schedule of %s: no such volume", x.Target))
		}
	}
}

// PutSchedule inserts or replaces the schedule of a target. That the target is there
// is the caller's to keep.
func (tx *Tx) PutSchedule(x Schedule) error {
	if err := x.check(); err != nil {
		return err
	}
	return tx.put(scheduleKey(x.Target), x)
}

// DeleteSchedule deletes the schedule of a target, if it has one.
func (tx *Tx) DeleteSchedule(target string) error {
	key := scheduleKey(target)
	if tx.bucket.Get(key) == nil {
		return nil
	}
	return tx.delete(key)
}

// Saw records that it is so late: State.Seen never goes back.
func (tx *Tx) Saw(t time.Time) {
	if t = t.UTC().Round(0); t.After(tx.meta.Seen) {
		tx.meta.Seen = t
		tx.changed = true
	}
}

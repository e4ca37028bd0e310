package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// printJSON prints one value, indented.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printTable prints rows under a heading, in columns; the heading alone for an
// empty list.
func (a *app) printTable(heading string, rows [][]string) error {
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	rows = append([][]string{strings.Fields(heading)}, rows...)
	for _, row := range rows {
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// printFields prints names and values, one a line; those without a value are
// left out.
func (a *app) printFields(fields ...[2]string) error {
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		if f[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(t, "%s:\t%s\n", f[0], f[1]); err != nil {
			return err
		}
	}
	return t.Flush()
}

func (a *app) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(a.stdout, format, args...)
	return err
}

// note prints a line for people that is no result. There is nowhere to report
// an error of it.
func note(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, "tidemark: "+format+"\n", args...)
}

// word returns the word of an enum's value, as in SCOPE_REQUEST: request.
func word(e interface {
	protoreflect.Enum
	Type() protoreflect.EnumType
},
) string {
	name := string(e.Descriptor().Values().ByNumber(e.Number()).Name())
	return strings.ToLower(name[strings.LastIndex(name, "_")+1:])
}

// formatTime writes a time of this machine to the millisecond.
func formatTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format("2006-01-02T15:04:05.000Z07:00")
}

// jsonTime is RFC 3339 in UTC; nil for a time that is not set.
func jsonTime(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime()
	return &at
}

// formatAge says how long ago a time is, in one unit.
func formatAge(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	age := max(0, now.Sub(t.AsTime()))
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}} {
		if age >= 2*u.unit {
			return fmt.Sprintf("%d%s", age/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%ds", age/time.Second)
}

// formatSpan writes a duration with three digits.
func formatSpan(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.3g ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d us", d.Microseconds())
}

// plural writes a count with its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if strings.HasSuffix(noun, "s") {
		return fmt.Sprintf("%d %ses", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// choice is a flag that takes one of a few words.
type choice struct {
	value   string
	allowed []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.allowed, "|") }

func (c *choice) Set(text string) error {
	for _, w := range c.allowed {
		if w == text {
			c.value = w
			return nil
		}
	}
	return fmt.Errorf("allowed are %s", strings.Join(c.allowed, ", "))
}

// number is the value's number in its wire enum, which begins with 1.
func (c *choice) number() int32 {
	for i, w := range c.allowed {
		if w == c.value {
			return int32(i + 1)
		}
	}
	return 0
}

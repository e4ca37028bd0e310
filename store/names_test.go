package store

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/volume"
)

// FuzzExportName holds parseExport against the grammar, written a second time
// as one expression, and against the way back.
func FuzzExportName(f *testing.F) {
	grammar := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(:request|:session|:process:[A-Za-z0-9._-]{1,64}|@[A-Za-z0-9][A-Za-z0-9._-]{0,62})?$`)
	for _, name := range []string{
		"", "v", "v:request", "v:session", "v:process:t", "v@s", "v@s:session", "@", "@s", ":", "v:", "v@", "v:process:", "v:process",
		"v@s@t", "v:process:t:u", "v\n", "v\x00", "../v", ".v", "-v", "vé", strings.Repeat("v", 63), strings.Repeat("v", 64),
		"v:process:" + strings.Repeat("t", 64), "v:process:" + strings.Repeat("t", 65), "v@" + strings.Repeat("s", 64), "v@20060102T150405.000Z",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		x, err := parseExport(name)
		switch {
		case (err == nil) != grammar.MatchString(name):
			t.Fatalf("%q: %v", name, err)
		case err == nil && formatExport(x) != name:
			t.Fatalf("%q is read as %q", name, formatExport(x))
		case err != nil && (!errors.Is(err, ErrInvalid) || strings.ContainsAny(err.Error(), "\n\x00")):
			t.Fatalf("%q: %q", name, err)
		}
		// Where a snapshot is wanted, the same.
		v, s, err := splitSnapshot(name)
		if err == nil && v+"@"+s != name {
			t.Fatalf("%q is taken apart as %q and %q", name, v, s)
		}
	})
}

// formatExport is the name that x was read from.
func formatExport(x export) string {
	switch {
	case x.snapshot != "":
		return x.volume + "@" + x.snapshot
	case x.token != "":
		return x.volume + ":process:" + x.token
	case x.plain:
		return x.volume
	case x.scope == volume.ScopeSession:
		return x.volume + ":session"
	}
	return x.volume + ":request"
}

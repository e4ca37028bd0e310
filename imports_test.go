package tidemark_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/tidemark/tidemark"

// levels says which package may import which: only one of a lower line. A new
// package fails the test until it has its place here. Tests are free.
var levels = [][]string{
	{"internal/yield", "internal/certtest", "internal/lazy"},
	{"internal/vfs", "lookup", "nbd/internal/wire", "api/tidemarkv1", "access", "keep"},
	{"image", "blocklock", "nbd/client", "api/tidemarkv1/tidemarkv1connect"},
	{"image/file", "image/mem", "image/sealed", "image/imagetest", "load"},
	{"journal", "catalog", "stream"},
	{"volume"},
	{"volume/volumetest", "store"},
	{"nbd", "volume/historytest"},
	{"api"},
	{"cli"}, // its serve command wires store, nbd and api; every other talks to api
	{"cmd/tidemark", "demo", "soak", "e2e", "packaging", "guest/replay", "mutants", "bench"},
	{""}, // the documentation of the whole
}

// forbidden are imports that the levels would allow and the design does not:
// the mechanism knows no path names and no names that last, a frontend no
// engine.
var forbidden = map[string][]string{
	"volume": {"internal/vfs", "image/file", "catalog"},
	"nbd":    {"store", "volume", "journal", "catalog", "internal/vfs"},
	"store":  {"nbd/client", "nbd/internal/wire", "api/tidemarkv1"},
}

func TestImportsPointDownOnly(t *testing.T) {
	level := make(map[string]int)
	for i, names := range levels {
		for _, name := range names {
			level[name] = i
		}
	}
	for name, imports := range packages(t) {
		from, placed := level[name]
		if !placed {
			t.Errorf("package %q has no place in levels", name)
			continue
		}
		for _, imported := range imports {
			if to, placed := level[imported]; placed && to >= from {
				t.Errorf("%s imports %s, which is not below it", name, imported)
			}
			for _, never := range forbidden[name] {
				if imported == never {
					t.Errorf("%s imports %s, which it must not know", name, imported)
				}
			}
		}
	}
}

// packages returns what each package of this module imports of this module.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			t.Fatalf("go list: %v: %s", err, failed.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	all := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name := inModule(fields[0])
		all[name] = []string{}
		for _, imported := range fields[1:] {
			if strings.HasPrefix(imported, module+"/") {
				all[name] = append(all[name], inModule(imported))
			}
		}
	}
	return all
}

func inModule(path string) string { return strings.TrimPrefix(strings.TrimPrefix(path, module), "/") }

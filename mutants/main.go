// Command mutants asks the tests whether they can fail: it breaks the code in
// one place at a time, each a way to lose data that a careful person might
// write, and runs the tests that should notice. A mutant that survives is a
// missing test. Nothing in the tree is changed: the go command is shown the
// broken file in place of the real one (go help build, -overlay).
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A mutant is one change of one file.
type mutant struct {
	name     string // what is broken, in words
	file     string // from the root of the module
	old, new string // old stands in the file exactly once
	and      []edit // further changes, where one alone does not compile
	packages string // whose tests should notice; empty: that of the file
	tests    string // -run, where the whole package would take long
	flags    string // of the test binary
}

type edit struct{ old, new string }

func main() {
	only := flag.String("run", "", "only mutants whose name matches this `REGEXP`")
	flag.Usage = func() {
		_, _ = fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./mutants [-run REGEXP], in the root of the module; exits with 1 if a mutant survives")
		flag.PrintDefaults()
	}
	flag.Parse()
	chosen, err := regexp.Compile(*only)
	if err == nil {
		err = run(os.Stdout, chosen)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// run tries every chosen mutant and writes a table of what noticed it.
func run(out io.Writer, chosen *regexp.Regexp) error {
	survivors := 0
	if _, err := fmt.Fprintln(out, "| mutant | noticed by |\n| --- | --- |"); err != nil {
		return err
	}
	for _, m := range all {
		if !chosen.MatchString(m.name) {
			continue
		}
		noticed, err := m.try()
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if noticed == "" {
			noticed = "**nobody**"
			survivors++
		}
		if _, err := fmt.Fprintf(out, "| %s | %s |\n", m.name, noticed); err != nil {
			return err
		}
	}
	if survivors > 0 {
		return fmt.Errorf("%d survived", survivors)
	}
	return nil
}

// mutate returns the broken text of the file.
func (m mutant) mutate(text string) (string, error) {
	for _, e := range append([]edit{{m.old, m.new}}, m.and...) {
		if n := strings.Count(text, e.old); n != 1 {
			return "", fmt.Errorf("%s holds this %d times, not once:\n%s", m.file, n, e.old)
		}
		text = strings.Replace(text, e.old, e.new, 1)
	}
	return text, nil
}

// try runs the tests against the mutant and says which failed first; "" if none.
func (m mutant) try() (noticed string, err error) {
	text, err := os.ReadFile(filepath.FromSlash(m.file))
	if err != nil {
		return "", err
	}
	broken, err := m.mutate(string(text))
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "tidemark-mutant-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	overlay, err := overlayOf(dir, m.file, broken)
	if err != nil {
		return "", err
	}
	output, failed := m.test(overlay)
	if !failed {
		return "", nil
	}
	return firstFailure(output)
}

func overlayOf(dir, file, broken string) (overlay string, err error) {
	replaced, err := filepath.Abs(filepath.FromSlash(file))
	if err != nil {
		return "", err
	}
	by := filepath.Join(dir, "mutant.go")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {replaced: by}})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, errors.Join(os.WriteFile(by, []byte(broken), 0o600), os.WriteFile(overlay, list, 0o600))
}

// tooLong is when a mutant that makes a test hang counts as noticed.
const tooLong = 3 * time.Minute

func (m mutant) test(overlay string) (output string, failed bool) {
	packages := strings.Fields(m.packages)
	if len(packages) == 0 {
		packages = []string{"./" + filepath.ToSlash(filepath.Dir(m.file))}
	}
	args := []string{"test", "-overlay", overlay, "-failfast", "-timeout", tooLong.String()}
	if m.tests != "" {
		args = append(args, "-run", m.tests)
	}
	args = append(args, packages...)
	args = append(args, strings.Fields(m.flags)...)
	var b bytes.Buffer
	c := exec.Command("go", args...)
	c.Stdout, c.Stderr = &b, &b
	failed = c.Run() != nil
	return b.String(), failed
}

var (
	failedTest  = regexp.MustCompile(`(?m)^\s*--- FAIL: (\w+)`)
	hangingTest = regexp.MustCompile(`(?m)^\s+(Test\w+) \(`)
)

// firstFailure names the test that failed, or hung.
func firstFailure(output string) (string, error) {
	if tests := failedTest.FindAllStringSubmatch(output, -1); tests != nil {
		names := []string{}
		for _, t := range tests {
			if !slices.Contains(names, t[1]) {
				names = append(names, t[1])
			}
		}
		return strings.Join(names[:min(2, len(names))], ", "), nil
	}
	switch hanging := hangingTest.FindStringSubmatch(output); {
	case strings.Contains(output, "panic: test timed out") && hanging != nil:
		return hanging[1] + " (never ends)", nil
	case strings.Contains(output, "WARNING: DATA RACE"):
		return "the race detector", nil
	case strings.Contains(output, "panic: ") || strings.Contains(output, "fatal error: "):
		return "a panic", nil
	}
	return "", fmt.Errorf("the tests did not run:\n%s", output)
}

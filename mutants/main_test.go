package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"testing"
)

func TestEveryMutantStillApplies(t *testing.T) {
	names := map[string]bool{}
	for _, m := range all {
		text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(m.file)))
		if err != nil {
			t.Fatal(err)
		}
		broken, err := m.mutate(string(text))
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		if _, err := parser.ParseFile(token.NewFileSet(), m.file, broken, parser.SkipObjectResolution); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		if names[m.name] {
			t.Errorf("two mutants are called %q", m.name)
		}
		names[m.name] = true
	}
}

func TestAFailureIsToldFromABuildThatFails(t *testing.T) {
	for name, output := range map[string]string{
		"TestOne":              "=== x\n--- FAIL: TestOne (0.00s)\nFAIL\n",
		"TestTwo (never ends)": "panic: test timed out after 1s\n\trunning tests:\n\t\tTestTwo (1s)\n",
		"a panic":              "panic: index out of range\n",
		"the race detector":    "WARNING: DATA RACE\n",
	} {
		if got, err := firstFailure(output); got != name || err != nil {
			t.Errorf("%q: %q, %v", output, got, err)
		}
	}
	if got, err := firstFailure("./x.go:1:1: syntax error\nFAIL [build failed]\n"); err == nil {
		t.Errorf("a build that fails counts as %q", got)
	}
}

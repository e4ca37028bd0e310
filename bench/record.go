package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A record is one thing that was measured. The page is made of records alone.
type record struct {
	Section string             `json:"section"`
	Case    string             `json:"case,omitempty"` // the workload, or what was done
	Over    string             `json:"over,omitempty"` // unix, tcp or tls
	Peer    string             `json:"peer,omitempty"`
	Round   int                `json:"round,omitempty"`
	Values  map[string]float64 `json:"values,omitempty"` // names end in their units
	Series  []moment           `json:"series,omitempty"` // requests around a snapshot
	Text    map[string]string  `json:"text,omitempty"`
	Failed  string             `json:"failed,omitempty"`
}

// add keeps a record, and prints it.
func (b *bench) add(r record) error {
	b.records = append(b.records, r)
	if len(r.Values) > 0 {
		fmt.Fprintf(os.Stderr, "  %s\n", valuesText(r.Values))
	}
	if b.kept == nil {
		return nil
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("keep a result: %w", err)
	}
	_, err = b.kept.Write(append(line, '\n'))
	return err
}

func valuesText(values map[string]float64) string {
	var words []string
	for name, v := range values {
		words = append(words, fmt.Sprintf("%s %.4g", name, v))
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

func readRecords(file string) ([]record, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var records []record
	for line := range bytes.Lines(text) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", file, len(records)+1, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// describe tells what is measured, and where.
func (b *bench) describe(ctx context.Context) (map[string]string, error) {
	var u unix.Utsname
	var fs unix.Statfs_t
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	if err := unix.Statfs(b.dir, &fs); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", b.dir, err)
	}
	cpu, cores := processor()
	m := map[string]string{
		"CPU":          fmt.Sprintf("%s, %d cores", cpu, cores),
		"memory":       fieldOf("/proc/meminfo", "MemTotal"),
		"kernel":       unix.ByteSliceToString(u.Release[:]),
		"file system":  fileSystem(int64(fs.Type)),
		"date":         now(),
		"load":         loadAverage(),
		"rounds":       fmt.Sprintf("%d rounds of %v s, after %v s of ramp", b.rounds, b.runtime, b.ramp),
		"size":         b.size,
		"stall rounds": fmt.Sprintf("%d rounds with %d snapshots each", b.stallRounds, b.stallCount),
	}
	for name, command := range map[string][]string{
		"tidemark": {b.program, "version"}, "fio": {"fio", "--version"}, "nbdkit": {"nbdkit", "--version"}, "nbd-server": {"nbd-server", "-V"},
		"qemu-nbd": {"qemu-nbd", "--version"}, "qemu-storage-daemon": {"qemu-storage-daemon", "--version"}, "go": {"go", "version"},
	} {
		out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
		line, _, _ := strings.Cut(string(out), "\n")
		if line == "" && err != nil {
			line = "not there: " + err.Error()
		}
		m["version of "+name] = line
	}
	for _, w := range workloads {
		m["fio, "+w.name] = "fio " + strings.Join(w.fioArgs("URI", b.size, b.ramp, b.runtime), " ")
	}
	return m, nil
}

func processor() (model string, cores int) {
	text, _ := os.ReadFile("/proc/cpuinfo") // without it there is nothing to tell
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			cores++
		}
	}
	return model, cores
}

func fieldOf(file, field string) string {
	f, err := os.Open(file)
	if err != nil {
		return "unknown"
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func fileSystem(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs: nothing that is said about flushes holds for a disk"
	}
	return fmt.Sprintf("of magic %#x", magic)
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}

func now() string { return time.Now().UTC().Format("2006-01-02 15:04 UTC") }

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func measured(peer string, round int, iops, cpu float64) record {
	return record{Section: "throughput", Case: "random read, depth 32", Over: "unix", Peer: peer, Round: round,
		Values: map[string]float64{"iops": iops, "cpuMicros": cpu, "meanMicros": 1, "p50Micros": 1, "p99Micros": 1, "p999Micros": 1, "maxMicros": 1}}
}

func stall(command string, round int, p999, worst float64) record {
	return record{Section: "stalls", Case: "random write, depth 1, every 2 s", Peer: command, Round: round,
		Values: map[string]float64{"ratioP999": p999, "ratioMax": worst, "nearP999Millis": 3 * p999, "nearMaxMillis": worst, "apartP999Millis": 3, "iops": 100}}
}

var fixture = []record{
	{Section: "machine", Text: map[string]string{"CPU": "a CPU, 2 cores", "fio, random read, depth 32": "fio --rw=randread"}},
	measured("tidemark", 0, 150_000, 3), measured("nbdkit file", 0, 100_000, 6), measured("nbdkit memory", 0, 400_000, 1), measured("nbd-server", 0, 90_000, 4),
	measured("nbd-server", 1, 90_000, 4), measured("nbdkit file", 1, 100_000, 6), measured("tidemark", 1, 210_000, 2),
	stall("tidemark", 0, 1.2, 3), stall(control, 0, 1, 2),
	{Section: "after", Case: write32.name, Peer: "tidemark", Values: map[string]float64{"before": 100, "after": 95, "afterToBefore": 0.95},
		Series: []moment{{-20, 1, 2}, {0, 3, 4}}},
	{Section: "chain", Case: "1", Peer: "tidemark", Values: map[string]float64{"iops": 1000, "cpuMicros": 5}},
	{Section: "chain", Case: "1000", Peer: "tidemark", Values: map[string]float64{"iops": 900, "cpuMicros": 6}},
	{Section: "preserve", Case: "1 x 16 TiB", Peer: "tidemark", Values: map[string]float64{"p50Millis": 2, "p99Millis": 16}},
	{Section: "floor", Case: "system calls", Values: map[string]float64{"preadMicros": 1, "sendMicros": 0.5, "pwriteMicros": 1, "receiveMicros": 0.75}},
	{Section: "verify", Case: "after the workloads over unix", Peer: "tidemark"},
	{Section: "commands", Over: "unix", Peer: "tidemark", Text: map[string]string{"commands": "tidemark serve"}},
	{Section: "failed", Case: "start qemu-nbd qcow2 over unix", Failed: "qemu-nbd:\nnot there"},
	{Section: "end", Text: map[string]string{"date": "2026-01-01", "load": "1 1 1"}},
}

func TestPageSaysWhatWasMeasured(t *testing.T) {
	text := page(fixture, []string{"ratios.svg"})
	for _, want := range []string{
		"a CPU, 2 cores",
		"2026-01-01, load 1 1 1",
		"| random read, depth 32 | 180k | 100k, nbdkit file | 1.80 | 1.50 - 2.10 | 1.80 | met |", // not the memory plugin
		"| random read, depth 32 | 2.50 | 4.00, nbd-server | 0.62 | 0.60 | **not met** |",
		"CPU of the server a request, random read, depth 32 over unix, beside nbd-server: 0.625, where the goal is at most 0.6",
		"| nbdkit memory | 400k |",
		"![rates of Tidemark over those of the best peer](benchmarks/ratios.svg)",
		"| random write, depth 1, every 2 s | 1.20 | 1.50 | 1.20 | met | **not met** | 1.20 | 1.50 | 1.00 | 1.00 |",
		"| tidemark | 1000 | 900 | 6.00 | 0.90 | 0.97 | **not met** |",
		"| 1 x 16 TiB | - | 2.00 | 16.0 |",
		"| read | 1.00 | 0.50 | 1.50 | 2.50 |",
		"4 of 8 goals are met",
		"the best may be missing",
		"- start qemu-nbd qcow2 over unix: `qemu-nbd: not there`",
		"- after the workloads over unix: tidemark",
		"# random read, depth 32\nfio --rw=randread",
		"# tidemark\ntidemark serve",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	for _, never := range []string{"NaN", "Inf", "after-rate.svg"} {
		if strings.Contains(text, never) {
			t.Errorf("the page says %q", never)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// What a machine allows stands beside the figures that rest on it.
func TestPageShowsTheLimitsOfTheMachine(t *testing.T) {
	floor := func(round int, writeThere, writeNew, flushThere, flushNew float64) record {
		return record{Section: "floor", Case: "system calls", Round: round, Values: map[string]float64{
			"receiveMicros": 0.5, "pwriteNewMicros": 5,
			"writeThereMicros": writeThere, "writeNewMicros": writeNew, "flushThereMicros": flushThere, "flushNewMicros": flushNew,
		}}
	}
	after := func(name, peer string) record {
		return record{Section: "after", Case: name, Peer: peer, Values: map[string]float64{"before": 100, "after": 50, "afterToBefore": 0.5}}
	}
	text := page([]record{
		floor(0, 2, 8, 100, 250), floor(1, 2, 4, 100, 200),
		after(write32.name, "tidemark"), after(write32.name, storageDaemon.name), after(flush1.name, "tidemark"),
		{Section: "preserve", Case: "1 x 1 GiB", Values: map[string]float64{"fsyncP50Millis": 0.3, "fsyncP99Millis": 0.6}},
		{Section: "preserve", Case: "1 x 1 GiB" + underLoad, Values: map[string]float64{"loadedFsyncP50Millis": 4, "loadedFsyncP99Millis": 8}},
	}, nil)
	for _, want := range []string{
		"| write to a new place | 5.00 | 0.50 | 5.50 | - |",
		"| write | 2.00 | 6.00 | 0.38 | 0.25 - 0.50 |",
		"| write and fdatasync | 100 | 225 | 0.45 | 0.40 - 0.50 |",
		"| random write, depth 32 | qemu-storage-daemon | 100 | 50.0 | 0.50 | 0.50 - 0.50 | - | 0.90 |  |\n" +
			"| random write, depth 32 | the bare loop | 500k | 167k | 0.38 | 0.25 - 0.50 |  |  |  |\n",
		"| write and flush, depth 1 | the bare loop | 10.0k | 4444 | 0.45 | 0.40 - 0.50 |  |  |  |\n",
		"is what the machine allows a store that keeps old blocks\nwhere they lie",
		"| 1 x 1 GiB | - | - | - | - | 0.30 | 0.60 |",
		"| 1 x 1 GiB, random writes at depth 32 | - | - | - | - | 4.00 | 8.00 |",
		"with the load running where there is one",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

// Results that are older than what the page tells now say nothing of it.
func TestPageOfResultsWithoutTheLimits(t *testing.T) {
	text := page(append(slices.Clone(fixture),
		record{Section: "preserve", Case: "1 x 1 GiB" + underLoad, Values: map[string]float64{"fsyncP50Millis": 4, "fsyncP99Millis": 8}}), nil)
	if strings.Contains(text, "bare loop") || strings.Contains(text, "fdatasync") || strings.Contains(text, "new place") {
		t.Errorf("a loop that was not run: %s", text)
	}
	if want := "| 1 x 1 GiB, random writes at depth 32 | - | - | - | - | - | - |"; !strings.Contains(text, want) {
		t.Errorf("no %q in %s", want, text)
	}
}

// A server that was too slow for its CPU to be counted is nobody's measure of CPU.
func TestWhatIsNotKnownIsADash(t *testing.T) {
	records := []record{measured("tidemark", 0, 200, 5), measured("nbdkit file", 0, 100, 0), measured("nbd-server", 0, 50, 10)}
	delete(records[1].Values, "cpuMicros")
	text := page(records, nil)
	for _, want := range []string{"| random read, depth 32 | 5.00 | 10.0, nbd-server | 0.50 |", "| nbdkit file | 100 | 100 - 100 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | - |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
}

func TestPageOfNothing(t *testing.T) {
	if text := page(nil, nil); !strings.Contains(text, "0 of 0 goals") || strings.Contains(text, "| random") {
		t.Error(text)
	}
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	names, err := plotAll(dir, fixture)
	if err != nil || !slices.Equal(names, []string{"ratios.svg", "after-rate.svg", "after-latency.svg"}) {
		t.Fatalf("%v, %v", names, err)
	}
	for _, name := range names {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Contains(text, []byte("<svg")) {
			t.Errorf("%s: no SVG, %v", name, err)
		}
	}
	if names, err := plotAll(dir, nil); err != nil || len(names) > 0 {
		t.Errorf("of nothing: %v, %v", names, err)
	}
}

func TestRecordsAreReadAsTheyWereKept(t *testing.T) {
	var text []byte
	for _, r := range fixture {
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		text = append(append(text, line...), '\n')
	}
	file := filepath.Join(t.TempDir(), "results.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	records, err := readRecords(file)
	if err != nil || page(records, nil) != page(fixture, nil) {
		t.Errorf("the page is another one, %v", err)
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0.123: "0.12", 9.999: "10.00", 12.34: "12.3", 123.4: "123", 9999: "9999", 12345: "12.3k", 123456: "123k"} {
		if got := number(v); got != want {
			t.Errorf("%v is %s, want %s", v, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"64m": 64 << 20, "1g": 1 << 30, "1024k": 1 << 20, "x": 0, "": 0, "1": 0, "0g": 0, "-1g": 0, "g": 0} {
		got, err := parseSize(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestADefaultRunTakesAnHourAndAHalf(t *testing.T) {
	o, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(o, "")
	var whole time.Duration
	for _, s := range sections {
		steps := s.steps(b)
		if len(steps) == 0 {
			t.Errorf("section %s does nothing", s.name)
		}
		if !s.asked() {
			whole += duration(steps)
		}
		if slices.Contains(strings.Split(o.sections, ","), s.name) == s.asked() {
			t.Errorf("section %s is in a run that is told nothing, or is not, against what it says", s.name)
		}
	}
	if whole > 100*time.Minute {
		t.Errorf("it takes %v", whole)
	}
	quick, err := parse([]string{"-quick"})
	if err != nil || quick.out != "" || quick.keep != "" {
		t.Fatalf("a quick run writes %q, %q: %v", quick.out, quick.keep, err)
	}
	steps := newBench(quick, "").throughputSteps()
	if d := duration(steps); d > 3*time.Minute {
		t.Errorf("a quick one takes %v", d)
	}
	if want := 2 + 5*2*quick.rounds + 1; len(steps) != want { // 5 workloads on 2 servers that start, and are stopped
		t.Errorf("a quick one has %d steps, want %d", len(steps), want)
	}
}

func TestFlagsThatMakeNoSense(t *testing.T) {
	for _, args := range [][]string{{"-sections", "nothing"}, {"-only", "("}, {"-peers", "("}, {"-size", "1x"}, {"-rounds", "0"}, {"-runtime", "0"}, {"more"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestPatternTellsPieceAndGeneration(t *testing.T) {
	p := pattern(3, 1)
	if len(p) != verifyBytes || bytes.Equal(p, pattern(3, 2)) || bytes.Equal(p, pattern(4, 1)) {
		t.Error("patterns are alike")
	}
}

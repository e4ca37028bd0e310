package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/store"
)

func TestEveryHelpHasExampleAndExitCodes(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		t.Run(c.CommandPath(), func(t *testing.T) {
			var help bytes.Buffer
			c.SetOut(&help)
			if err := c.Help(); err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{"\nUsage:\n", "\nExamples:\n  ", "\nExit codes:\n  0  done\n"} {
				if !strings.Contains(help.String(), part) {
					t.Errorf("no %q in the help:\n%s", part, help.String())
				}
			}
			for _, line := range strings.Split(c.Long, "\n") {
				if len(line) > 80 && !strings.HasPrefix(c.CommandPath(), "tidemark completion") { // cobra's own text
					t.Errorf("a line of %d columns: %s", len(line), line)
				}
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(io.Discard, io.Discard))
}

func TestSizes(t *testing.T) {
	for _, test := range []struct {
		text string
		want int64
	}{
		{"4096", 4096},
		{"1K", 1 << 10},
		{"10GiB", 10 << 30},
		{"10G", 10 << 30},
		{"10 gib", 10 << 30},
		{"1.5m", 3 << 19},
		{"0.5KiB", 512},
		{"8191PiB", 8191 << 50},
		{"512B", 512},
	} {
		if got, err := parseSize(test.text); err != nil || got != test.want {
			t.Errorf("%q is %d (%v), want %d", test.text, got, err, test.want)
		}
	}
	for _, text := range []string{"", "-1", "+1", "0", "1e3", "G", ".5G", "10GB", "1.3", "0.1K", "8EiB", "1/2", "0x10", "1_000", "1..5G", "10Gi", "9223372036854775808"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is taken for %d bytes", text, got)
		}
	}
}

func FuzzSize(f *testing.F) {
	f.Add("10GiB")
	f.Add("1.5m")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseSize(text); err == nil && n <= 0 {
			t.Errorf("%q is %d bytes", text, n)
		}
	})
}

func TestSizesReadWellAndBack(t *testing.T) {
	for sizeBytes, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 100 << 20: "100 MiB", 5 << 38: "1.25 TiB",
	} {
		if got := formatSize(sizeBytes); got != want {
			t.Errorf("%d bytes are written %q, want %q", sizeBytes, got, want)
		}
		if back, err := parseSize(want); sizeBytes > 0 && (err != nil || back != sizeBytes) {
			t.Errorf("%q is read as %d (%v), want %d", want, back, err, sizeBytes)
		}
	}
}

func TestPreserveJSONHasItsFixedFields(t *testing.T) {
	text, err := json.Marshal(asReport(&tidemarkv1.PreserveReport{
		CutTime:            timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)),
		DrainDuration:      durationpb.New(1500 * time.Millisecond),
		LargestStall:       durationpb.New(2 * time.Millisecond),
		LargestStallBefore: durationpb.New(time.Millisecond),
		Took:               durationpb.New(1600 * time.Millisecond),
		ProcessesWaited:    3,
		Snapshots: []*tidemarkv1.Snapshot{{
			Volume: "db", Name: "a", State: tidemarkv1.State_STATE_SEALING,
			Consistency: tidemarkv1.Consistency_CONSISTENCY_PROCESS, Conflicts: 4,
		}},
	}))
	want := `{"cutTime":"2026-01-02T03:04:05.678Z","drainSeconds":1.5,"largestStallSeconds":0.002,"processesWaited":3,` +
		`"snapshots":[{"volume":"db","snapshot":"a","state":"sealing","consistency":"process","conflicts":4}],` +
		`"largestStallBeforeSeconds":0.001,"tookSeconds":1.6}`
	if err != nil || string(text) != want {
		t.Errorf("got  %s (%v)\nwant %s", text, err, want)
	}
}

func TestAgesAndSpansReadWell(t *testing.T) {
	now := time.Now()
	for age, want := range map[time.Duration]string{
		-time.Second: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 47 * time.Hour: "47h", 100 * time.Hour: "4d",
	} {
		if got := formatAge(timestamppb.New(now.Add(-age)), now); got != want {
			t.Errorf("an age of %v is written %q, want %q", age, got, want)
		}
	}
	for span, want := range map[time.Duration]string{
		0: "0 us", 41 * time.Microsecond: "41 us", 1234 * time.Microsecond: "1.23 ms", 2500 * time.Millisecond: "2.5 s", 90 * time.Second: "1m30s",
	} {
		if got := formatSpan(span); got != want {
			t.Errorf("%v is written %q, want %q", span, got, want)
		}
	}
}

func TestUnknownErrorsAreOneLineAndFail(t *testing.T) {
	line, code := explain(errors.Join(errors.New("one"), errors.New("two")))
	if line != "one two" || code != exitFailed {
		t.Errorf("%q, %d", line, code)
	}
}

func TestMarks(t *testing.T) {
	for _, test := range []struct {
		text, reads string
		want        store.Mark
	}{
		{"off", "off", store.Mark{}},
		{"1%", "1%", store.Mark{UsedPercent: 1}},
		{"95%", "95%", store.Mark{UsedPercent: 95}},
		{"100%", "100%", store.Mark{UsedPercent: 100}},
		{"10GiB", "10GiB", store.Mark{FreeBytes: 10 << 30}},
		{"4096", "4KiB", store.Mark{FreeBytes: 4096}},
	} {
		var m markFlag
		if err := m.Set(test.text); err != nil || store.Mark(m) != test.want || m.String() != test.reads {
			t.Errorf("%q is %+v, %v, and reads %s", test.text, m, err, m.String())
		}
	}
	for _, text := range []string{"", "%", "0%", "101%", "-1%", "1.5%", "0", "10GB", "on"} {
		if err := new(markFlag).Set(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

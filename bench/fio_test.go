package main

import (
	"strings"
	"testing"
)

const fioOutput = `fio: connected to NBD server
{
  "fio version" : "fio-3.33",
  "jobs" : [ { "jobname" : "w", "error" : 0,
    "read" : { "iops" : 700.5, "bw_bytes" : 2869248, "total_ios" : 700,
      "lat_ns" : { "min" : 1000, "max" : 9000000, "mean" : 20500.0,
        "percentile" : { "50.000000" : 18000, "99.000000" : 90000, "99.900000" : 400000 } } },
    "write" : { "iops" : 300.0, "bw_bytes" : 1228800, "total_ios" : 300,
      "lat_ns" : { "min" : 1000, "max" : 5000000, "mean" : 30000.0, "percentile" : { "50.000000" : 25000 } } },
    "sync" : { "total_ios" : 0, "lat_ns" : { "max" : 0, "mean" : 0 } } } ]
}
`

func TestFiguresOfFio(t *testing.T) {
	values, err := parseFio([]byte(fioOutput))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"iops": 1000.5, "bytesPerSecond": 4098048, "meanMicros": 20.5, "p50Micros": 18, "p99Micros": 90, "p999Micros": 400, "maxMicros": 9000,
	} {
		if values[name] != want {
			t.Errorf("%s is %v, want %v", name, values[name], want)
		}
	}
}

func TestLatencyIsThatOfTheFlushes(t *testing.T) {
	out := strings.Replace(fioOutput, `"sync" : { "total_ios" : 0, "lat_ns" : { "max" : 0, "mean" : 0 }`, `"sync" : { "total_ios" : 300, "lat_ns" : { "max" : 7000, "mean" : 2000 }`, 1)
	values, err := parseFio([]byte(out))
	if err != nil || values["meanMicros"] != 2 || values["maxMicros"] != 7 {
		t.Errorf("%v, %v", values, err)
	}
}

func TestWhatFioDidNotDoIsAnError(t *testing.T) {
	for name, out := range map[string]string{
		"no JSON":  "fio: connect failed\n",
		"cut off":  fioOutput[:200],
		"an error": strings.Replace(fioOutput, `"error" : 0`, `"error" : 5`, 1),
		"no job":   `{"jobs" : []}`,
		"nothing":  `{"jobs" : [{"error" : 0}]}`,
	} {
		if values, err := parseFio([]byte(out)); err == nil {
			t.Errorf("%s: %v", name, values)
		}
	}
}

func TestArgumentsOfFio(t *testing.T) {
	for name, want := range map[string]string{
		"70/30 read/write, depth 32":          "--rw=randrw --bs=4096 --iodepth=32 --numjobs=1 --rwmixread=70",
		"random read, 4 connections x 16":     "--rw=randread --bs=4096 --iodepth=16 --numjobs=4",
		"sequential read of 128 KiB, depth 8": "--rw=read --bs=131072 --iodepth=8",
		"sequential write of 1 MiB, depth 8":  "--rw=write --bs=1048576",
		"write and flush, 8 connections":      "--rw=randwrite --iodepth=1 --numjobs=8 --fsync=1",
	} {
		args := workloadNamed(name).fioArgs("nbd://h/v", "64m", 1, 0.5)
		for _, arg := range append(strings.Fields(want), "--uri=nbd://h/v", "--size=64m", "--runtime=500ms", "--ramp_time=1000ms") {
			if !strings.Contains(" "+strings.Join(args, " ")+" ", " "+arg+" ") {
				t.Errorf("%s: no %s in %q", name, arg, args)
			}
		}
	}
}

func TestTicksOfAProcess(t *testing.T) {
	// The name may hold what separates the fields.
	stat := "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1 0 5 6 7"
	if got := statTicks(stat); got != 110 {
		t.Errorf("%d ticks, want 110", got)
	}
	if got := statTicks(""); got != 0 {
		t.Errorf("%d ticks of a process that has ended", got)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// fioArgs are fio's for a workload on an export.
func (w workload) fioArgs(uri, size string, ramp, runtime float64) []string {
	kind := "randrw"
	switch {
	case w.bytes && w.readPercent == 100:
		kind = "read"
	case w.bytes:
		kind = "write"
	case w.readPercent == 100:
		kind = "randread"
	case w.readPercent == 0:
		kind = "randwrite"
	}
	args := []string{
		"--name=w", "--ioengine=nbd", "--uri=" + uri, "--rw=" + kind, "--bs=" + strconv.Itoa(w.blockBytes),
		"--iodepth=" + strconv.Itoa(w.depth), "--numjobs=" + strconv.Itoa(w.jobs), "--size=" + size,
		"--time_based", "--runtime=" + millis(runtime), "--ramp_time=" + millis(ramp), "--norandommap", "--randrepeat=0",
	}
	if kind == "randrw" {
		args = append(args, "--rwmixread="+strconv.Itoa(w.readPercent))
	}
	if w.flushes {
		args = append(args, "--fsync=1") // an NBD_CMD_FLUSH after every write
	}
	return append(args, "--group_reporting", "--lat_percentiles=1", "--clat_percentiles=0", "--slat_percentiles=0",
		"--percentile_list=50:99:99.9", "--output-format=json")
}

func millis(s float64) string { return strconv.Itoa(int(s*1000)) + "ms" }

// runFio runs a workload on a server, and returns what parseFio does, and the
// server's CPU a request.
func (b *bench) runFio(ctx context.Context, s *server, w workload) (map[string]float64, error) {
	// fio needs a moment before its ramp begins, hence not from the very begin.
	used := coresUsed(ctx, s.process, seconds(b.ramp+b.runtime*0.15), seconds(b.ramp+b.runtime*0.9))
	out, err := output(ctx, "fio", w.fioArgs(s.uri, b.size, b.ramp, b.runtime)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	values, err := parseFio(out)
	if err != nil {
		return nil, err
	}
	addCPU(values, <-used)
	return values, nil
}

// addCPU adds the server's CPU a request. A server that took none was looked at while
// it had nothing to do, or for less than the kernel counts in: nothing is known then.
func addCPU(values map[string]float64, cores float64) {
	if cores > 0 {
		values["cpuMicros"] = cores / values["iops"] * 1e6
	}
}

// Volumes are filled in requests of so much, on every server the same way: how large
// the pages are that the file lies in decides how fast it is overwritten.
const (
	fillBytes  = 64 << 10
	largeBytes = 1 << 20 // in the section large
)

// fill writes the whole volume.
func (b *bench) fill(ctx context.Context, s *server, requestBytes int) error {
	out, err := output(ctx, "fio", "--name=fill", "--ioengine=nbd", "--uri="+s.uri, "--rw=write", "--bs="+strconv.Itoa(requestBytes), "--iodepth=8", "--size="+b.size)
	if err != nil {
		return fmt.Errorf("fill: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// fillTakes is about how long that takes, with the start of a server.
func (b *bench) fillTakes() time.Duration { return seconds(1 + 2*float64(b.sizeBytes)/(1<<30)) }

// fioSide is what fio tells of its reads, writes or flushes.
type fioSide struct {
	IOPS      float64 `json:"iops"`
	Bandwidth float64 `json:"bw_bytes"`
	TotalIOs  float64 `json:"total_ios"`
	// lat, not clat: the engine sends already when fio submits.
	Latency struct {
		Mean       float64            `json:"mean"`
		Max        float64            `json:"max"`
		Percentile map[string]float64 `json:"percentile"`
	} `json:"lat_ns"`
}

// parseFio takes the figures out of fio's JSON. The latency is that of the flushes,
// where there are any, else of the reads, else of the writes.
func parseFio(out []byte) (map[string]float64, error) {
	begin := bytes.Index(out, []byte("\n{")) // it prints lines before its JSON
	if bytes.HasPrefix(out, []byte("{")) {
		begin = 0
	}
	if begin < 0 {
		return nil, fmt.Errorf("fio printed no JSON: %.200q", out)
	}
	var report struct {
		Jobs []struct {
			Error             int
			Read, Write, Sync fioSide
		}
	}
	if err := json.Unmarshal(out[begin:], &report); err != nil {
		return nil, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return nil, errors.New("fio reports an error, or not one group of jobs")
	}
	job := report.Jobs[0]
	timed := job.Write
	if job.Read.IOPS > 0 {
		timed = job.Read
	}
	if job.Sync.TotalIOs > 0 {
		timed = job.Sync
	}
	values := map[string]float64{
		"iops":           job.Read.IOPS + job.Write.IOPS,
		"bytesPerSecond": job.Read.Bandwidth + job.Write.Bandwidth,
		"meanMicros":     timed.Latency.Mean / 1e3,
		"p50Micros":      timed.Latency.Percentile["50.000000"] / 1e3,
		"p99Micros":      timed.Latency.Percentile["99.000000"] / 1e3,
		"p999Micros":     timed.Latency.Percentile["99.900000"] / 1e3,
		"maxMicros":      timed.Latency.Max / 1e3,
	}
	if values["iops"] == 0 {
		return nil, errors.New("fio did nothing in the time it had")
	}
	return values, nil
}

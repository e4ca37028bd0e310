package main

import "time"

// A workload is what one client does.
type workload struct {
	name        string
	jobs, depth int
	readPercent int
	blockBytes  int
	flushes     bool // after each write
	bytes       bool // its rate is told in bytes
	core        bool // one of those that run everywhere, and that show the state after a snapshot
	goal        float64
}

func (w workload) isCore() bool { return w.core }

const (
	goalCore = 1.3 // of the core workloads over TCP and TLS
	goalCPU  = 0.6 // of the server's CPU a request, against the peer that takes least
)

// workloads are what every server runs, with the ratio to the best peer that is
// the goal.
var workloads = []workload{
	{name: "random read, depth 1", jobs: 1, depth: 1, readPercent: 100, blockBytes: 4096, core: true, goal: 1.4},
	{name: "random write, depth 1", jobs: 1, depth: 1, blockBytes: 4096, core: true, goal: 1.8},
	{name: "random read, depth 32", jobs: 1, depth: 32, readPercent: 100, blockBytes: 4096, core: true, goal: 1.8},
	{name: "random write, depth 32", jobs: 1, depth: 32, blockBytes: 4096, core: true, goal: 2.2},
	{name: "70/30 read/write, depth 32", jobs: 1, depth: 32, readPercent: 70, blockBytes: 4096, goal: 2.0},
	{name: "random read, 4 connections x 16", jobs: 4, depth: 16, readPercent: 100, blockBytes: 4096, goal: 2.2},
	{name: "random write, 4 connections x 16", jobs: 4, depth: 16, blockBytes: 4096, goal: 2.2},
	{name: "sequential read of 128 KiB, depth 8", jobs: 1, depth: 8, readPercent: 100, blockBytes: 128 << 10, bytes: true, goal: 1.2},
	{name: "sequential write of 1 MiB, depth 8", jobs: 1, depth: 8, blockBytes: 1 << 20, bytes: true, goal: 1.2},
	{name: "write and flush, depth 1", jobs: 1, depth: 1, blockBytes: 4096, flushes: true, core: true, goal: 1.3},
	{name: "write and flush, 8 connections", jobs: 8, depth: 1, blockBytes: 4096, flushes: true, goal: 2.0},
}

const quickWorkloads = "^(random read, depth 32|random (read|write), depth 1|random write, depth 32|write and flush, depth 1)$"

func workloadNamed(name string) workload {
	for _, w := range workloads {
		if w.name == name {
			return w
		}
	}
	return workload{name: name}
}

// runTakes is about what a run takes with all around it: sync, pre-read, start.
func (b *bench) runTakes() time.Duration { return seconds(b.ramp + b.runtime + 1.5) }

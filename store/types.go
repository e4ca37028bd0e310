package store

import (
	"errors"
	"time"

	"github.com/tidemark/tidemark/volume"
)

// Conditions that a caller branches on. Each error that wraps one of them says
// in one line what was wrong and what is allowed or comes next.
var (
	// ErrInvalid: a name, size, export name or option is not of its form.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: no such volume, snapshot or process.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("exists")
	// ErrInUse: a client, a process or a snapshot still needs it; or the data
	// directory belongs to another server.
	ErrInUse = errors.New("in use")
	// ErrDraining: a preserve was kept, and processes begun before it still run.
	ErrDraining = errors.New("still draining")
	// ErrAborted: a preserve was given up, by its deadline or by a conflict.
	ErrAborted = errors.New("aborted")
	// ErrLimit: a limit set by a flag is reached.
	ErrLimit = errors.New("limit reached")
	// ErrClosed: the store is closed or closing.
	ErrClosed = errors.New("store is closed")
	// ErrFormat: the data directory was written by another format version, or
	// is not one.
	ErrFormat = errors.New("wrong format")
)

// VolumeInfo describes a volume.
type VolumeInfo struct {
	Name      string
	SizeBytes int64
	Scope     volume.Scope // of a plain connection: request or session
	Created   time.Time
	// Images is the length of the chain, with unnamed images.
	Images int
	// Snapshots is the number of named snapshots.
	Snapshots int
	// DataBytes is what the tables say is stored (4 KiB for each data entry).
	DataBytes int64
	// AllocatedBytes is what the images take up on the disk.
	AllocatedBytes int64
	// Connections counts open views, Processes those that named the volume.
	Connections, Processes int
	// Failed says why the volume takes no writes any more; empty if it does.
	Failed string
}

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	Volume, Name string
	SizeBytes    int64
	State        volume.State       // draining, sealing, sealed
	Consistency  volume.Consistency // process, request, mixed, interrupted
	CutTime      time.Time
	DrainTime    time.Duration // from cut to the end of the last older process; 0 while it drains
	Conflicts    uint64
	// Torn lists the processes that died without an end while this snapshot
	// waited for them.
	Torn []string
	// WaitsFor lists the processes and older snapshots that keep it draining.
	WaitsFor []string
	// DataBytes is what this snapshot's own image holds.
	DataBytes int64
	// Failed says why sealing failed; empty if it did not.
	Failed string
}

// ProcessInfo describes a session or explicit process.
type ProcessInfo struct {
	Token   string
	Scope   volume.Scope
	Volumes []string
	Begun   time.Time
	// Connections counts the open views under the token.
	Connections int
	// Bound says for each volume what the process writes to: "live", or the
	// snapshot that waits for it ("VOLUME@SNAP").
	Bound []string
	// WaitedFor lists the snapshots ("VOLUME@SNAP") that wait for this process,
	// and WaitedSince is the earliest of their cuts.
	WaitedFor   []string
	WaitedSince time.Time
}

// PreserveRequest asks for one cut of one or many volumes.
type PreserveRequest struct {
	Volumes []string
	// Name of the snapshots; empty: the cut's time as 20060102T150405.000Z.
	Name string
	// Wait is the deadline for older processes; the server keeps it.
	Wait       time.Duration
	OnTimeout  volume.OnTimeout
	OnConflict volume.OnConflict
	// UntilSealed makes the call wait for the seal too.
	UntilSealed bool
}

// PreserveReport is the answer to a preserve.
type PreserveReport struct {
	CutTime         time.Time
	Drain           time.Duration
	LargestStall    time.Duration // longest arrival-to-reply between command and answer
	LargestBefore   time.Duration // the same in as long a time before the command
	Took            time.Duration // from the command's arrival to the answer, as the server saw it
	ProcessesWaited int
	Snapshots       []SnapshotInfo
}

package store

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/tidemark/tidemark/image"
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
	// ErrHeld: somebody holds the snapshot, so it may not be deleted yet.
	ErrHeld = errors.New("held")
	// ErrClock: the clock was moved back, so nobody can tell what a hold still holds.
	ErrClock = errors.New("the clock was moved back")
	// ErrLimit: a limit set by a flag is reached.
	ErrLimit = errors.New("limit reached")
	// ErrClosed: the store is closed or closing.
	ErrClosed = errors.New("store is closed")
	// ErrNoSpace: the disk is too full for what would need more room later. It is
	// syscall.ENOSPC too.
	ErrNoSpace = fmt.Errorf("too little room: %w", syscall.ENOSPC)
	// ErrHighWater: the file system of the data directory is so full that no preserve
	// or clone is made (Options.RefusePreservesAt).
	ErrHighWater = errors.New("high-water mark reached")
	// ErrFormat: the data directory was written by another format version, or
	// is not one.
	ErrFormat = errors.New("wrong format")
	// ErrCorrupt: what a sealed snapshot has on the disk is not what was sealed; or
	// what came is not what was promised.
	ErrCorrupt = errors.New("corrupt")
	// ErrDiffers: a volume is not what the changes that are to come are the changes of.
	ErrDiffers = errors.New("another state")
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
	// Hash is the content hash of a sealed snapshot, in hex; empty before. Equal
	// hashes: the same bytes, as far as CRCs tell (package image/sealed).
	Hash string
	// Verify is what was last found when its bytes were held against its sums.
	Verify VerifyState
	// Schedule is the target of the schedule that made it; empty: a person did.
	Schedule string
	Labels   map[string]string
	// Held: it is not deleted until it is released. HeldUntil: nor before that, if not
	// zero; it may have passed.
	Held      bool
	HeldUntil time.Time
	// Drill is what came of the last restore drill; nil if there was none.
	Drill *Drill
}

// Drill is what came of a restore drill: somebody looked at a clone of the snapshot.
type Drill struct {
	Time time.Time // of its end
	Took time.Duration
	// Command that looked, in one line; RecordDrill keeps the first KiB.
	Command string
	// ExitCode of it; 0: the snapshot passed.
	ExitCode int
	// Output of it; RecordDrill keeps the last 4 KiB.
	Output string
}

// VerifyPhase says where the verification of a snapshot stands.
type VerifyPhase string

// Phases. The empty one: it was never verified.
const (
	VerifyRunning VerifyPhase = "running"
	VerifyOK      VerifyPhase = "ok"
	VerifyBad     VerifyPhase = "bad"
)

// VerifyState is what is known of a snapshot's bytes on the disk, from
// VerifySnapshot and from scrubbing.
type VerifyState struct {
	State VerifyPhase
	// DoneBytes of TotalBytes have been read; while it runs.
	DoneBytes, TotalBytes int64
	// BadBlocks counts the blocks of 4 KiB that the snapshot shows and that do
	// not hold what was sealed.
	BadBlocks int64
	// LastTime is when it was last verified to its end; zero if never.
	LastTime time.Time
}

// MostBadBlocks is how many bad blocks a VerifyReport lists; it counts all.
const MostBadBlocks = 100

// BadBlock is a block of a snapshot that does not hold what was sealed.
type BadBlock struct {
	// Image holds it; more than one snapshot may show it.
	Image image.ID
	// OffsetBytes in the volume.
	OffsetBytes int64
	// Why: the sum differs, or the disk's own error.
	Why string
}

// VerifyReport is the answer to VerifySnapshot.
type VerifyReport struct {
	Snapshot string // VOLUME@SNAPSHOT
	// Hash recomputed from the sums of what was read; the recorded one, if no
	// block is bad.
	Hash string
	// ReadBytes came from the disk, past the page cache; Direct is false if the
	// file system would not do that, and some of them may be from memory.
	ReadBytes int64
	Direct    bool
	// BadBlocks counts; Bad lists the first MostBadBlocks, ascending.
	BadBlocks int64
	Bad       []BadBlock
	Took      time.Duration
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
	// Groups whose volumes are cut too, those that each has when the command comes.
	Groups []string
	// Allow is asked for the volumes of each group.
	Allow Allow
	// Name of the snapshots; empty: the cut's time as 20060102T150405.000Z.
	Name string
	// Wait is the deadline for older processes; the server keeps it.
	Wait       time.Duration
	OnTimeout  volume.OnTimeout
	OnConflict volume.OnConflict
	// UntilSealed makes the call wait for the seal too.
	UntilSealed bool
	// Labels of the snapshots.
	Labels map[string]string
	// schedule is the target of the schedule that makes them.
	schedule string
	// passing: the snapshots go if the command that makes them is cut short.
	passing bool
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

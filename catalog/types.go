package catalog

import (
	"errors"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// Conditions that a caller branches on.
var (
	// ErrFormat: the catalog was written in another format version.
	ErrFormat = errors.New("catalog: unknown format version")
	// ErrCorrupt: what the file holds is not what was committed. The error
	// that wraps it names the page or record.
	ErrCorrupt = errors.New("catalog: corrupt")
	// ErrFailed: an earlier commit failed, and nobody knows whether the disk
	// holds it. The catalog serves no more until it is opened again.
	ErrFailed = errors.New("catalog: a commit failed")
	// ErrClosed: the catalog is closed.
	ErrClosed = errors.New("catalog: closed")
)

// VolumeID names a volume for ever: it is never used twice, and a volume that
// takes the name of a deleted one has another. 0 is none.
type VolumeID uint64

// Volume is what lasts of a volume beside its chain.
type Volume struct {
	ID   VolumeID `json:"-"` // in the key
	Name string   `json:"name"`
	// SizeBytes is the size of the live VLUN.
	SizeBytes int64 `json:"sizeBytes"`
	// Scope of a plain connection: "request" or "session".
	Scope   string    `json:"scope"`
	Created time.Time `json:"created"`
	// Past: another volume has the name now. Nothing is written to this one any
	// more; its snapshots are those that a rollback has left behind.
	Past bool `json:"past,omitempty"`
	// Held: it is the clone of a restore drill, or new and still being filled, and goes
	// with whoever holds it: the next open of the data directory deletes it.
	Held bool `json:"held,omitempty"`
	// Staged: it is still being received, and will have the name when it is whole.
	// One that a crash left has none, and is deleted when the directory is opened.
	Staged bool `json:"staged,omitempty"`
}

// named tells whether the name is the volume's own.
func (v Volume) named() bool { return !v.Past && !v.Staged }

// Link is one image of a volume's chain. The newest image is the tip; its size
// follows the volume's.
type Link struct {
	Volume VolumeID `json:"-"` // in the key
	Image  image.ID `json:"-"` // in the key
	// SizeBytes is the size of the image's VLUN, fixed at its cut.
	SizeBytes int64 `json:"sizeBytes"`
	// Sealed: nothing is written to the image's visible blocks again.
	Sealed bool `json:"sealed,omitempty"`
	// Hash of the view whose newest image it is (image/sealed), 64 hex digits: the
	// image's checksum file counts. Empty until it is sealed.
	Hash string `json:"hash,omitempty"`
	// Table is how often the table file of an image (image/sealed) was written, at
	// least; 0 before: the journal of the volume has the table. An image that has one
	// is written no more, and may stand in the chains of many volumes, always above the
	// same images. A sealed one has one.
	Table uint64 `json:"table,omitempty"`
	// Punched: blocks that no view shows may be gone from the image or an older one,
	// so its own view, which has no name, may have another hash than at its seal.
	Punched bool `json:"punched,omitempty"`
	// Due: blocks that no view shows are still to be punched.
	Due bool `json:"due,omitempty"`
	// Scrubbed is when all of the image was last read and held against its
	// checksums; zero if never.
	Scrubbed time.Time `json:"scrubbed,omitzero"`
	// Bad are the blocks that were found not to hold what was sealed, ascending,
	// at most MostBadRuns.
	Bad []Run `json:"bad,omitempty"`
	// Snapshot is nil for the tip, and for an image without a name.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
}

// Run is a run of blocks.
type Run struct {
	Block lookup.BlockNum `json:"block"`
	Count uint64          `json:"count"`
}

// MostBadRuns bounds Link.Bad.
const MostBadRuns = 128

// Snapshot is what a preserve leaves on the image that was live before it.
type Snapshot struct {
	Name string `json:"name"`
	// Cut is the id of the preserve, the same for all its volumes.
	Cut     uint64    `json:"cut"`
	CutTime time.Time `json:"cutTime"`
	// State is "draining", "sealing" or "sealed".
	State string `json:"state"`
	// Consistency is "process", "request", "mixed" or "interrupted".
	Consistency string        `json:"consistency"`
	Drain       time.Duration `json:"drainNanoseconds"`
	Conflicts   uint64        `json:"conflicts,omitempty"`
	// Torn lists the tokens of processes that died without an end.
	Torn []string `json:"torn,omitempty"`
	// Waiting lists the tokens of processes that it waited for when prepared.
	Waiting []string `json:"waiting,omitempty"`
	// Failed says why sealing failed; empty if it did not.
	Failed string `json:"failed,omitempty"`
	// Verified is when all that it shows was last read and held against its
	// checksums by itself; zero if never.
	Verified time.Time `json:"verified,omitzero"`
	// WrongHash: it was found sound then, block by block, with another hash than
	// that of its seal.
	WrongHash bool `json:"wrongHash,omitempty"`
	// Schedule is the target of the schedule that made it; empty: a person did.
	Schedule string            `json:"schedule,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	// Passing: it is of a command that has not ended. If that was cut short, the next
	// open deletes it.
	Passing bool `json:"passing,omitempty"`
	// Held: it is not deleted until somebody releases it.
	Held bool `json:"held,omitempty"`
	// HeldUntil: it is not deleted before. It is only ever put off.
	HeldUntil time.Time `json:"heldUntil,omitzero"`
	// Drill is what came of the last restore drill; nil if there was none.
	Drill *Drill `json:"drill,omitempty"`
}

// Drill is what came of a restore drill.
type Drill struct {
	Time time.Time     `json:"time"`
	Took time.Duration `json:"tookNanoseconds"`
	// Command that looked at the clone, at most MostDrillCommandBytes of it.
	Command string `json:"command"`
	// ExitCode of it; 0: the snapshot passed.
	ExitCode int `json:"exitCode"`
	// Output is the last that it printed, at most MostDrillOutputBytes.
	Output string `json:"output,omitempty"`
}

// Bounds of a Drill.
const (
	MostDrillCommandBytes = 1 << 10
	MostDrillOutputBytes  = 4 << 10
)

// Group is a named set of volumes. It has at least one: with its last it goes.
type Group struct {
	Name string `json:"-"` // in the key
	// Volumes are the names of its volumes, ascending: what takes the name of a
	// volume in a rollback takes its place in its groups.
	Volumes []string `json:"volumes"`
	// Default: a process that names one of its volumes names them all. A volume is in
	// one such group at most.
	Default bool      `json:"default,omitempty"`
	Created time.Time `json:"created"`
}

// State is everything that a catalog holds.
type State struct {
	FormatVersion int
	// DirID tells this data directory from every other: 32 random hex digits.
	DirID   string
	Volumes []VolumeState // by ID, ascending
	// Schedules by target, ascending.
	Schedules []Schedule
	// Seen is the latest time that Tx.Saw was told of; zero if none.
	Seen   time.Time
	Groups []Group // by name
}

// VolumeState is a volume and its chain.
type VolumeState struct {
	Volume
	Chain []Link // oldest first; the last is the tip
}

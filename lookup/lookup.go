// Package lookup says which image holds a block.
//
// A Table belongs to one image and tells for each block of the volume whether
// the image holds it: Absent, Data or Zero. The tables are the truth. An Index
// belongs to a volume and gives for each block the newest image that holds it;
// it is derived from the tables and can be rebuilt at any time.
//
// Neither has a lock that covers a block. The lock table (package blocklock)
// does: a caller of Set holds the exclusive lock of every block of the range,
// a caller of Get or Run at least the shared one. Under that rule all methods
// may run at the same time.
package lookup

// BlockSize is the unit of every table, in bytes.
const BlockSize = 4096

// MaxBlocks bounds a volume: 2^36 blocks, 256 TiB. Block numbers are below it.
const MaxBlocks = 1 << 36

// BlockNum counts blocks of a volume from 0.
type BlockNum uint64

// State is what a table says of one block.
type State uint8

// The states of a block in a table.
const (
	Absent State = iota // the image does not hold the block: ask an older one
	Data                // the image holds the block's bytes
	Zero                // the image holds the block, and it is zeros
)

// String names the state.
func (s State) String() string {
	switch s {
	case Absent:
		return "absent"
	case Data:
		return "data"
	case Zero:
		return "zero"
	}
	return "invalid"
}

// Extent is a run of blocks in one state.
type Extent struct {
	Block BlockNum
	Count uint64 // blocks, at least 1
	State State
}

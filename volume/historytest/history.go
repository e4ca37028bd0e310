// Package historytest records what concurrent clients of Tidemark did and saw,
// and decides whether the rules of ARCHITECTURE.md allow it.
//
// Run drives a Target; Check decides. What is promised, and so checked:
//
//  1. The live view: every sector is a linearizable register over all writes,
//     in whatever scope, and the reads of request scope (I3).
//  2. Every VLUN: each block of a volume is a row of registers, one for each
//     snapshot and one for the live view. A write that is bound to the k-th
//     changes the k-th and all later ones at one instant, whole or in part (R1,
//     R3); a read sees the one that it is bound to (R2). So a request is atomic
//     for each block; a request of several blocks is promised no more, though one
//     request is whole in a snapshot or not there (it is a process).
//     A whole-block read at request scope that overlaps with a cut, a write from
//     before it and one from after it may see the old write's sectors without
//     the new one's, though the old took effect last: in 1 a block is 8 registers.
//     The VLUN of a preserve that was given up, or that of the first cut of a
//     degraded one, has no name: it is a register of the row too, but who is bound
//     to it shows in reads through it only. Where that leaves too much to search,
//     they are held to 1 alone. Who may be bound to either side of a cut is so for
//     each block by itself.
//  3. Every snapshot is a cut: there is an instant between the command and the
//     cut time reported such that each process (request, session, token) begun
//     before it is in whole and none begun after it is, and all bytes of all
//     volumes of the preserve are explained so (I1, I2). In a degraded one
//     processes cross the cut between two of their requests.
//  4. From its answer on (or from when it has drained, if it was kept) a
//     snapshot does not change (I4).
//  5. Conflicts are counted when there surely was one, and not without cause.
//
// A request without an answer may take effect at any time or never, one that was
// refused has none.
package historytest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/tidemark/tidemark/lookup"
)

// SectorBytes is the unit of the history: writes cover whole sectors.
const SectorBytes = 512

const blockSectors = lookup.BlockSize / SectorBytes

// Time is nanoseconds since a history began, by the monotonic clock.
type Time int64

// never is the return of a request that got no answer.
const never Time = math.MaxInt64

// Span is from a call to its return.
type Span struct{ Call, Return Time }

// before tells whether a surely came before b.
func (a Span) before(b Span) bool { return a.Return < b.Call }

// Stamp says whose bytes a sector holds: the number of a write, 0 for zeros.
type Stamp uint16

// torn is the Stamp of a sector that holds no write's bytes as they were written.
const torn Stamp = math.MaxUint16

// Kind of an Op.
type Kind uint8

// The kinds of requests. Zero is a trim or write-zeroes.
const (
	Read Kind = iota
	Write
	Zero
)

// Op is one request.
type Op struct {
	Span
	Stamp        Stamp // its number, from 1
	Kind         Kind
	Client       string
	Volume       int
	First, Count int       // sectors
	Process      *Process  // nil: request scope
	View         *Preserve // of a read through a preserved view
	Early        bool      // that view was opened before the preserve was answered
	Got          []Stamp   // of a read
}

func (o *Op) covers(sector int) bool { return o.First <= sector && sector < o.First+o.Count }

func (o *Op) overlaps(first, count int) bool {
	return o.First < first+count && first < o.First+o.Count
}

// blocks returns the range of blocks that it touches.
func (o *Op) blocks() (first, end int) {
	return o.First / blockSectors, (o.First + o.Count + blockSectors - 1) / blockSectors
}

// coversBlock tells whether it covers a whole block.
func (o *Op) coversBlock(b int) bool {
	return o.First <= b*blockSectors && (b+1)*blockSectors <= o.First+o.Count
}

func (o *Op) String() string {
	what := [...]string{"reads", "writes", "zeroes"}[o.Kind]
	where := ""
	if o.Process != nil {
		where = fmt.Sprintf(" in process %s", o.Process.Token)
	}
	if o.View != nil {
		where = fmt.Sprintf(" of snapshot %s", o.View.Name)
	}
	end := fmt.Sprint(int64(o.Return))
	if o.Return == never {
		end = "no answer"
	}
	text := fmt.Sprintf("#%d [%d, %s] %s %s sectors %d+%d of volume %d%s", o.Stamp, o.Call, end, o.Client, what, o.First, o.Count, o.Volume, where)
	if o.Kind == Read {
		text += fmt.Sprintf(": %v", o.Got)
	}
	return text
}

// ofFirstCut tells whether a read of a snapshot may be of the cut that another
// one has replaced since.
func (o *Op) ofFirstCut() bool { return o.Early && o.View.Crossing != Stayed }

// Process is one of session or explicit scope. Its span is that of its begin.
type Process struct {
	Span
	Token string
}

// Outcome of a preserve.
type Outcome uint8

// The outcomes.
const (
	Nothing  Outcome = iota // refused or failed: no cut was made
	Aborted                 // a cut without a name
	Complete                // exact when answered
	Kept                    // answered while it drained
)

// Crossing says whether processes crossed the cut of a preserve.
type Crossing uint8

// The values of Crossing.
const (
	Stayed   Crossing = iota // every process is whole in it or not there
	MayCross                 // it was asked to degrade, and what came of it is not known
	DidCross                 // it was degraded
)

// Preserve is one command.
type Preserve struct {
	Span
	Name           string
	Volumes        []int
	Outcome        Outcome
	Crossing       Crossing
	ConflictsAbort bool            // it was to be given up at a conflict
	CutBy          Time            // the cut was made before: as reported, or as somebody saw it
	Exact          Time            // from then on it must not change
	Final          map[int][]Stamp // by volume, at the end of the history
	Conflicts      map[int]uint64  // by volume
}

func (p *Preserve) String() string {
	outcome := [...]string{"nothing", "aborted", "complete", "kept"}[p.Outcome]
	crossing := [...]string{"", ", maybe degraded", ", degraded"}[p.Crossing]
	return fmt.Sprintf("%s [%d, %d] of volumes %v: %s%s, cut by %d", p.Name, p.Call, p.Return, p.Volumes, outcome, crossing, p.CutBy)
}

func (p *Preserve) named() bool      { return p.Outcome == Complete || p.Outcome == Kept }
func (p *Preserve) has(vol int) bool { return slices.Contains(p.Volumes, vol) }

// History is what clients did and saw.
type History struct {
	Volumes int // all of one size
	Sectors int // of each
	Ops     []*Op
	// Preserves in the order of their calls.
	Preserves []*Preserve
}

// recorder makes a History.
type recorder struct {
	base time.Time

	mu      sync.Mutex
	history History
	wrong   []error // what is wrong whatever the rest says
}

func (r *recorder) now() Time { return r.at(time.Now()) }

func (r *recorder) at(t time.Time) Time { return Time(t.Sub(r.base)) }

func (r *recorder) fault(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrong = append(r.wrong, fmt.Errorf(format, args...))
}

// begin enters an op, so that it has its number, and starts its clock.
func (r *recorder) begin(o *Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history.Ops = append(r.history.Ops, o)
	if len(r.history.Ops) == int(torn) {
		r.wrong = append(r.wrong, fmt.Errorf("more than %d operations in one history: there are no more stamps", torn-1))
	}
	o.Stamp = Stamp(len(r.history.Ops))
	o.Return = never
	o.Call = r.now()
}

// end notes what became of it. A refused one is as if it never was.
func (r *recorder) end(o *Op, err error) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		o.Return = now
	case errors.Is(err, ErrRefused) || o.Kind == Read:
		o.Count = 0
	}
}

// bytes returns what a write puts into its sectors.
func (o *Op) bytes() []byte {
	p := make([]byte, o.Count*SectorBytes)
	for s := range o.Count {
		stamp(p[s*SectorBytes:][:SectorBytes], o.Stamp, o.Volume, o.First+s)
	}
	return p
}

const stampMagic = 0x71de

// stamp fills a sector: in each of its words the number of the write, the place
// that it was written to, and a checksum of both.
func stamp(sector []byte, n Stamp, vol, at int) {
	var word [8]byte
	binary.LittleEndian.PutUint16(word[:], uint16(n))
	word[2], word[3] = byte(vol), byte(at)
	sum := crc32.ChecksumIEEE(word[:4]) ^ stampMagic
	binary.LittleEndian.PutUint32(word[4:], sum)
	for i := 0; i < len(sector); i += len(word) {
		copy(sector[i:], word[:])
	}
}

// stamps reads the stamps of sectors: torn for one that nobody wrote there so.
func stamps(p []byte, vol, first int) []Stamp {
	got := make([]Stamp, len(p)/SectorBytes)
	want := make([]byte, SectorBytes)
	for i := range got {
		sector := p[i*SectorBytes:][:SectorBytes]
		n := Stamp(binary.LittleEndian.Uint16(sector))
		if clear(want); n != 0 {
			stamp(want, n, vol, first+i)
		}
		if got[i] = n; string(sector) != string(want) {
			got[i] = torn
		}
	}
	return got
}

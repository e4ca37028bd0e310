package volume

import "fmt"

// Scope says how long an I/O process is (design section 3).
type Scope uint8

// The scopes of an I/O process.
const (
	ScopeRequest  Scope = iota // one command
	ScopeSession               // one connection
	ScopeExplicit              // everything under one token
)

// State of a preserved VLUN.
type State uint8

// The states of a preserved VLUN, in the order it passes through them.
const (
	Draining State = iota // processes begun before its cut still run
	Sealing               // exact; being written back and synced
	Sealed                // an immutable, durable snapshot
)

// Consistency says what a snapshot holds whole.
type Consistency uint8

// The consistencies of a snapshot.
const (
	// ConsistencyProcess: every process begun before the cut is whole in it.
	ConsistencyProcess Consistency = iota
	// ConsistencyRequest: every request is whole; processes were asked to
	// cross the cut (degrade).
	ConsistencyRequest
	// ConsistencyMixed: some processes are whole, others died or crossed.
	ConsistencyMixed
	// ConsistencyInterrupted: the server or the machine stopped while it drained
	// or, for a power cut, before it was sealed; it holds all that was flushed.
	ConsistencyInterrupted
)

// OnTimeout says what a preserve does when its deadline comes first.
type OnTimeout uint8

// The policies of a preserve at its deadline (design section 3).
const (
	TimeoutAbort   OnTimeout = iota // give the preserve up; its processes go on in the next VLUN
	TimeoutDegrade                  // make a second cut that waits for requests only
	TimeoutKeep                     // leave it draining
)

// OnConflict says what a preserve does when one of its processes touches a
// block that a newer image holds.
type OnConflict uint8

// The policies of a preserve at a conflict.
const (
	ConflictCount OnConflict = iota // count and report it
	ConflictAbort                   // give the preserve up before the request is served
)

var (
	scopeNames       = []string{"request", "session", "explicit"}
	stateNames       = []string{"draining", "sealing", "sealed"}
	consistencyNames = []string{"process", "request", "mixed", "interrupted"}
	onTimeoutNames   = []string{"abort", "degrade", "keep"}
	onConflictNames  = []string{"count", "abort"}
)

// String returns the scope's name.
func (s Scope) String() string { return scopeNames[s] }

// String returns the state's name.
func (s State) String() string { return stateNames[s] }

// String returns the consistency's name.
func (c Consistency) String() string { return consistencyNames[c] }

// String returns the policy's name.
func (o OnTimeout) String() string { return onTimeoutNames[o] }

// String returns the policy's name.
func (o OnConflict) String() string { return onConflictNames[o] }

// ParseScope is the reverse of String.
func ParseScope(s string) (Scope, error) { return parse[Scope]("scope", scopeNames, s) }

// ParseState is the reverse of String.
func ParseState(s string) (State, error) { return parse[State]("state", stateNames, s) }

// ParseConsistency is the reverse of String.
func ParseConsistency(s string) (Consistency, error) {
	return parse[Consistency]("consistency", consistencyNames, s)
}

func parse[T ~uint8](what string, names []string, s string) (T, error) {
	for i, n := range names {
		if n == s {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("%s %q: allowed are %v", what, s, names)
}

// Package yield marks the places in concurrent code where what another
// goroutine does next matters: between a look and the act that rests on it.
//
// Built without the tag "yield", Here is empty and inlined: it costs nothing.
// With it, Here gives the processor away now and then, so that interleavings
// which the scheduler would bring once in a month come within a minute:
//
//	go test -race -tags yield -run 'Model|Concurrent|History' ./volume ./store
package yield

// Point names a place, for who reads a trace or counts visits.
type Point string

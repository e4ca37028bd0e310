package nbd

import (
	"math/bits"
	"sync"
)

// A buffer is memory for one large transfer, from a pool per size class, so
// that large requests cost no allocation and a connection that is done with
// them holds nothing.
type buffer struct {
	bytes []byte
	class int
}

const (
	smallestClass = 12 // 4 KiB
	largestClass  = 25 // 32 MiB, maxPayloadBytes
	// replyHeadroom lets the reply to a read of 2^n bytes fit class n.
	replyHeadroom = 64

	// smallBytes is the buffer that a connection waits with, and the one for
	// its replies when it has no desk: a request and 4 KiB fit.
	smallBytes = 1<<smallestClass + replyHeadroom
)

var pools [largestClass + 1]sync.Pool

// takeBuffer returns a buffer of sizeBytes, at most maxPayloadBytes+replyHeadroom.
func takeBuffer(sizeBytes int) *buffer {
	class := classOf(sizeBytes)
	b, _ := pools[class].Get().(*buffer)
	if b == nil {
		b = &buffer{bytes: make([]byte, 1<<class+replyHeadroom), class: class}
	}
	b.bytes = b.bytes[:sizeBytes]
	return b
}

// release gives b back; nobody may use its bytes any more. Nil is allowed.
func (b *buffer) release() {
	if b != nil {
		pools[b.class].Put(b)
	}
}

func classOf(sizeBytes int) int {
	return max(smallestClass, bits.Len(uint(max(sizeBytes-replyHeadroom, 1)-1)))
}

// costOf is the memory of a buffer of sizeBytes, its headroom not counted; 0 of none.
func costOf(sizeBytes int) int64 {
	if sizeBytes == 0 {
		return 0
	}
	return 1 << classOf(sizeBytes)
}

// A desk is what a session with much to do works at: it receives into the one
// half and collects replies in the other.
type desk struct {
	receive [receiveBytes]byte
	batch   [batchBytes + replyHeadroom]byte
}

const deskBytes = receiveBytes + batchBytes + replyHeadroom

var desks = sync.Pool{New: func() any { return new(desk) }}

// append is b with p after its bytes, in a larger buffer if need be; b may be nil.
func (b *buffer) append(p []byte) *buffer {
	if b == nil {
		b = takeBuffer(len(p))
		b.bytes = b.bytes[:0]
	}
	if len(b.bytes)+len(p) > cap(b.bytes) {
		larger := takeBuffer(len(b.bytes) + len(p))
		larger.bytes = append(larger.bytes[:0], b.bytes...)
		b.release()
		b = larger
	}
	b.bytes = append(b.bytes, p...)
	return b
}

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
)

var pools [largestClass + 1]sync.Pool

// takeBuffer returns a buffer of sizeBytes, at most maxPayloadBytes+replyHeadroom.
func takeBuffer(sizeBytes int) *buffer {
	class := max(smallestClass, bits.Len(uint(max(sizeBytes-replyHeadroom, 1)-1)))
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

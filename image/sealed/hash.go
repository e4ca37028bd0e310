package sealed

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/tidemark/tidemark/lookup"
)

// Sum is the CRC-32C of a block.
type Sum uint32

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// SumOf returns the sum of a block, whose length is lookup.BlockSize.
func SumOf(block []byte) Sum { return Sum(crc32.Checksum(block, castagnoli)) }

var zeroSum = SumOf(make([]byte, lookup.BlockSize))

// Hash stands for the content of a view, whatever images it lies in: the sum,
// modulo 2^256, of an element for each of its blocks, which is SHA-256 of the
// block's number and its Sum. A block whose Sum is that of zeros adds nothing,
// so that zeros written, trimmed or never written are the same. The hash of a
// view of nothing is zero.
//
// Since elements are added, the hash of the next view is this one, less the
// elements of the blocks that its image replaces, plus theirs; and it stays what
// it is when images are folded into one.
//
// It finds what accidents do: a block, a table or a page of sums that rotted,
// was lost, is of an older time or of another place. It is no signature: a CRC
// is easily met on purpose, so it proves nothing against somebody who can write
// to the disk.
type Hash [32]byte

const hashDomain = "tidemark block 1"

// Add takes a block into the hash.
func (h *Hash) Add(b lookup.BlockNum, s Sum) {
	if s != zeroSum {
		h.combine(element(b, s), bits.Add64)
	}
}

// Remove takes a block out that was added.
func (h *Hash) Remove(b lookup.BlockNum, s Sum) {
	if s != zeroSum {
		h.combine(element(b, s), bits.Sub64)
	}
}

func element(b lookup.BlockNum, s Sum) Hash {
	var in [len(hashDomain) + 8 + 4]byte
	copy(in[:], hashDomain)
	binary.LittleEndian.PutUint64(in[len(hashDomain):], uint64(b))
	binary.LittleEndian.PutUint32(in[len(hashDomain)+8:], uint32(s))
	return sha256.Sum256(in[:])
}

// combine adds or subtracts 256-bit numbers, the lowest byte first.
func (h *Hash) combine(e Hash, limb func(x, y, carry uint64) (out, carryOut uint64)) {
	var carry, word uint64
	for i := 0; i < len(h); i += 8 {
		word, carry = limb(binary.LittleEndian.Uint64(h[i:]), binary.LittleEndian.Uint64(e[i:]), carry)
		binary.LittleEndian.PutUint64(h[i:], word)
	}
}

// String returns 64 hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash is the reverse of String.
func ParseHash(s string) (h Hash, err error) {
	if n, err := hex.Decode(h[:], []byte(s[:min(len(s), 2*len(h))])); err != nil || n < len(h) || len(s) > 2*len(h) {
		return Hash{}, fmt.Errorf("hash %q: it is not %d hex digits", s, 2*len(h))
	}
	return h, nil
}

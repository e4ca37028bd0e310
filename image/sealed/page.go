package sealed

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// page is a page of a checksum file, as it lies there.
//
// A page is one block of the disk, so that it can be read past the page cache.
// Rejected: 1024 sums and the CRC in 4100 bytes, which lie across two.
type page [pageBytes]byte

const (
	pageBytes = 4096
	crcAt     = pageBytes - 4
)

// bind gives a page its CRC, which is of image ID, number of the page (u64 each)
// and bytes 0-4091. The zeros of a write that was lost are no valid page, nor is
// a page of another image or place.
func (p *page) bind(id image.ID, number int) {
	binary.LittleEndian.PutUint32(p[crcAt:], p.crc(id, number))
}

func (p *page) sound(id image.ID, number int) bool {
	return binary.LittleEndian.Uint32(p[crcAt:]) == p.crc(id, number)
}

func (p *page) crc(id image.ID, number int) uint32 {
	var seed [16]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(id))
	binary.LittleEndian.PutUint64(seed[8:], uint64(number))
	return crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, p[:crcAt])
}

// sumPage is a page of sums, of blocks that ascend, as r runs of consecutive
// ones:
//
//	    0  u64 first block
//	    8  u16 number of runs r, u16 number of sums n
//	   12  r times: u32 first block of the run, less that of the page;
//	       u16 how many sums are of the runs before
//	12+6r  n times u32: the Sums
//	       zeros
//	 4092  u32 CRC-32C (page.bind)
//
// So a page is of 1018 blocks if they lie together, and of 408 if none has a
// neighbour. It is kept in memory as it is: to find a sum takes a search among
// the runs, and none where there is one.
//
// Rejected: the sums of 1023 block numbers each, at a fixed place (an image with
// a block here and there took a page for each); a block number for each sum (8
// bytes for each, also where blocks lie together in fours); pages of either kind
// (what this does, and two of everything).
type sumPage page

const (
	runsAt   = 12
	runBytes = 4 + 2
	sumBytes = 4
)

func (p *sumPage) first() lookup.BlockNum {
	return lookup.BlockNum(binary.LittleEndian.Uint64(p[:]))
}

func (p *sumPage) counts() (runs, sums int) {
	return int(binary.LittleEndian.Uint16(p[8:])), int(binary.LittleEndian.Uint16(p[10:]))
}

// run returns how far behind the first block of the page run i begins.
func (p *sumPage) run(i int) uint64 {
	return uint64(binary.LittleEndian.Uint32(p[runsAt+runBytes*i:]))
}

// before returns how many of the sums are of runs before run i.
func (p *sumPage) before(i int) int {
	if runs, sums := p.counts(); i == runs {
		return sums
	}
	return int(binary.LittleEndian.Uint16(p[runsAt+runBytes*i+4:]))
}

// from returns the sums of block b and of those that follow it without a gap,
// as far as the page has them: none if it has none of b.
func (p *sumPage) from(b lookup.BlockNum) packed {
	behind := uint64(b - p.first())
	if behind > math.MaxUint32 { // also where b is before the first
		return nil
	}
	runs, sums := p.counts()
	at, to := behind, sums
	if runs > 1 {
		i, end := 0, runs // run i begins at or before b, run end behind it
		for end-i > 1 {
			if middle := (i + end) / 2; p.run(middle) <= behind {
				i = middle
			} else {
				end = middle
			}
		}
		at, to = uint64(p.before(i))+behind-p.run(i), p.before(i+1)
	}
	if at >= uint64(to) {
		return nil
	}
	return packed(p[runsAt+runBytes*runs:][sumBytes*at : sumBytes*to])
}

// check tells whether a page that was read is what was written, of the sums from
// block first on. Of one that is, from can be asked.
func (p *sumPage) check(id image.ID, number int, first lookup.BlockNum) error {
	if !(*page)(p).sound(id, number) || p.first() != first || !p.wellFormed() {
		return fmt.Errorf("%w: the sums of image %d from block %d on are damaged", image.ErrCorrupt, id, first)
	}
	return nil
}

func (p *sumPage) wellFormed() bool {
	runs, sums := p.counts()
	if runs == 0 || runsAt+runBytes*runs+sumBytes*sums > crcAt || p.run(0) != 0 || p.before(0) != 0 {
		return false
	}
	for i := range runs {
		count := p.before(i+1) - p.before(i)
		end := uint64(1 << 32) // behind the first block: no further can a run begin
		if i+1 < runs {
			end = p.run(i + 1)
		}
		if count < 1 || p.run(i)+uint64(count) > end {
			return false
		}
	}
	return true
}

// packed are sums as they lie in a page.
type packed []byte

func (s packed) count() int { return len(s) / sumBytes }

func (s packed) at(i int) Sum { return Sum(binary.LittleEndian.Uint32(s[sumBytes*i:])) }

// packing is a page of sums that is being filled.
type packing struct {
	first  lookup.BlockNum
	next   lookup.BlockNum // behind the last
	runs   []uint32
	before []uint16
	sums   []Sum
}

// add takes the sum of a block that is behind all others, and tells whether
// there was room for it.
func (p *packing) add(b lookup.BlockNum, s Sum) bool {
	if p.empty() {
		p.first = b
	}
	runs, begins := len(p.runs), p.empty() || b != p.next
	if begins {
		runs++
	}
	if b-p.first > math.MaxUint32 || runsAt+runBytes*runs+sumBytes*(len(p.sums)+1) > crcAt {
		return false
	}
	if begins {
		p.runs = append(p.runs, uint32(b-p.first))
		p.before = append(p.before, uint16(len(p.sums)))
	}
	p.sums, p.next = append(p.sums, s), b+1
	return true
}

func (p *packing) empty() bool { return len(p.sums) == 0 }

// encode writes the page, which is not empty, and empties it.
func (p *packing) encode(to *sumPage, id image.ID, number int) {
	clear(to[:])
	w := binary.LittleEndian.AppendUint64(to[:0], uint64(p.first))
	w = binary.LittleEndian.AppendUint16(w, uint16(len(p.runs)))
	w = binary.LittleEndian.AppendUint16(w, uint16(len(p.sums)))
	for i, run := range p.runs {
		w = binary.LittleEndian.AppendUint32(w, run)
		w = binary.LittleEndian.AppendUint16(w, p.before[i])
	}
	for _, s := range p.sums {
		w = binary.LittleEndian.AppendUint32(w, uint32(s))
	}
	(*page)(to).bind(id, number)
	p.runs, p.before, p.sums = p.runs[:0], p.before[:0], p.sums[:0]
}

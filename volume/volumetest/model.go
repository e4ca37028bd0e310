// Package volumetest holds an engine of volumes to a plain model of its rules.
//
// The model says in bytes what the rules say of images: a volume is a list of
// whole contents, one for each VLUN, oldest first. A write through VLUN k is
// copied into content k and into every newer one, and into no older one (R1 to
// R4); a cut appends a copy of the newest content (R6). There is no image in
// it, no lookup and no lock. Beside it stands a list of who holds which block,
// by the letter of R1 and R3, for what a client is told of it: extents and
// conflicts.
//
// Run drives an engine and the model with the same random requests, processes,
// preserves, restarts and power cuts, one at a time, in a bubble of
// testing/synctest: after each, everything in the background comes to rest, so
// that what must have happened by then has, and a run can be repeated. A
// preserve that waits does so beside the rest; its deadline is the bubble's.
package volumetest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

const (
	blockBytes  = lookup.BlockSize
	sectorBytes = 512 // what a disk never tears, and the unit of a size
	maxBlocks   = 12
	maxBytes    = maxBlocks * blockBytes
)

// Disk is the model of a volume.
type Disk struct {
	name   string
	engine *volume.Volume
	vluns  []*vlun // the last is live

	sureVLUNs int  // how many are there after a crash, whenever it came
	deleting  bool // by the present step
	step      int  // the number of the present step
}

// vlun is the model of a VLUN.
type vlun struct {
	sizeBytes int64
	bytes     []byte // what it reads, and zeros up to maxBytes
	shared    bool   // bytes is another's too: copy before a change
	// perhaps holds, by sector, what it may read instead after a power cut.
	perhaps map[int]perhaps

	table [maxBlocks]lookup.State // of its own image
	torn  []string                // processes that died while it drained

	conflicts       uint64
	conflictsBefore uint64 // of them, in earlier lives of the target

	// What a snapshot of it is called, and what the lists say of it.
	name        string
	consistency volume.Consistency
	atCut       volume.Consistency // what it was before the answer
	preserve    *preserve
	cut         int // number of the cut that made it old; 0 if it is live

	was struct { // before the present step; a power cut in it may leave either
		name        string
		consistency volume.Consistency
		sealed      bool
		sizeBytes   int64
	}
}

// perhaps is what a sector may read after a power cut: what was there when it was
// last flushed, with any of the writes since, in their order. So nothing is mixed
// within a sector but by a write that covers a part of it, and that is there
// whole; two sectors of one write are apart.
type perhaps struct {
	flushed []byte
	since   []part
}

// part is what a write put into a sector.
type part struct {
	from int
	data []byte
	step int
}

func newDisk(name string, sizeBytes int64) *Disk {
	return &Disk{name: name, vluns: []*vlun{newVLUN(sizeBytes)}}
}

func newVLUN(sizeBytes int64) *vlun {
	return &vlun{sizeBytes: sizeBytes, bytes: make([]byte, maxBytes), perhaps: map[int]perhaps{}}
}

func (d *Disk) tip() int { return len(d.vluns) - 1 }

// write is R1, R3 and R4 in bytes, of data that come to lie in state.
func (d *Disk) write(k int, off int64, data []byte, state lookup.State) {
	for _, v := range d.vluns[k:] {
		v.store(off, data, d.step)
	}
	d.enter(k, off, int64(len(data)), state)
}

func (v *vlun) store(off int64, data []byte, step int) {
	if v.shared {
		v.bytes, v.shared = bytes.Clone(v.bytes), false
	}
	end := off + int64(len(data))
	for s := off / sectorBytes; s*sectorBytes < end; s++ {
		from, to := max(off, s*sectorBytes), min(end, (s+1)*sectorBytes)
		p := v.perhaps[int(s)]
		if p.flushed == nil {
			p.flushed = bytes.Clone(v.sector(int(s)))
		}
		p.since = append(slices.Clip(p.since), part{int(from % sectorBytes), bytes.Clone(data[from-off : to-off]), step})
		v.perhaps[int(s)] = p
	}
	copy(v.bytes[off:], data)
}

// clone returns a VLUN that changes apart from this one.
func (v *vlun) clone() *vlun {
	v.shared = true
	w := *v
	w.perhaps = maps.Clone(v.perhaps)
	return &w
}

func (v *vlun) sector(s int) []byte { return v.bytes[s*sectorBytes:][:sectorBytes] }

// enter is R1, R3 and R4 for the tables.
func (d *Disk) enter(k int, off, lengthBytes int64, state lookup.State) {
	for b := off / blockBytes; b*blockBytes < off+lengthBytes; b++ {
		whole := off <= b*blockBytes && (b+1)*blockBytes <= off+lengthBytes
		newer := d.vluns[k+1:]
		switch {
		case whole:
			d.vluns[k].table[b] = state
			for _, v := range newer {
				v.table[b] = lookup.Absent
			}
		default:
			d.vluns[k].table[b] = lookup.Data
			for _, v := range newer {
				if v.table[b] == lookup.Zero {
					v.table[b] = lookup.Data
				}
			}
		}
	}
}

// holder is the newest VLUN up to k whose image has block b; -1 if none.
func (d *Disk) holder(k int, b int64) int {
	for ; k >= 0 && d.vluns[k].table[b] == lookup.Absent; k-- {
	}
	return k
}

// extents is what a client of VLUN k is told of a range.
func (d *Disk) extents(k int, off, lengthBytes int64) (list []volume.Extent) {
	for end := off + lengthBytes; off < end; {
		b := off / blockBytes
		n := min(end, (b+1)*blockBytes) - off
		x := volume.Extent{LengthBytes: n}
		if j := d.holder(k, b); j >= 0 {
			x.State, x.Depth = d.vluns[j].table[b], k-j+1
		}
		if l := len(list); l > 0 && list[l-1].State == x.State && list[l-1].Depth == x.Depth {
			list[l-1].LengthBytes += n
		} else {
			list = append(list, x)
		}
		off += n
	}
	return list
}

// cut appends a copy of the newest content.
func (d *Disk) cut() {
	old := d.vluns[d.tip()]
	old.shared = true
	live := &vlun{sizeBytes: old.sizeBytes, bytes: old.bytes, shared: true, perhaps: maps.Clone(old.perhaps)}
	live.was.sizeBytes = old.was.sizeBytes
	d.vluns = append(d.vluns, live)
}

// flushed says that a power cut changes nothing of what VLUN k reads.
func (v *vlun) flushed() { clear(v.perhaps) }

// outlived says that of the writes in a step those that are seen are in the page
// cache, and no others.
func (v *vlun) outlived(step int) {
	for s, p := range v.perhaps {
		p.since = append(slices.Clip(p.since), part{data: bytes.Clone(v.sector(s)), step: step})
		v.perhaps[s] = p
	}
}

// mayRead says whether a content is one that a crash may leave that loses nothing
// of the steps before a certain one.
func (v *vlun) mayRead(got []byte, step int) error {
	for s := 0; s*sectorBytes < len(got); s++ {
		is := got[s*sectorBytes : min(len(got), (s+1)*sectorBytes)]
		p, written := v.perhaps[s]
		if !written {
			p.flushed = v.sector(s)
		}
		if !p.allow(is, step) {
			return fmt.Errorf("sector %d reads %s, which is neither what was flushed (%s) nor any of the %d writes since over it (now %s)",
				s, brief(is), brief(p.flushed), len(p.since), brief(v.sector(s)))
		}
	}
	return nil
}

// allow looks at the writes from the last to the first: one that can be seen, as
// far as later ones leave room to see it, may be taken to be there.
func (p perhaps) allow(is []byte, step int) bool {
	explained := make([]bool, sectorBytes)
	covers := func(from int, data []byte) bool {
		for i, b := range data {
			if at := from + i; !explained[at] && is[at] != b {
				return false
			}
		}
		return true
	}
	for _, w := range slices.Backward(p.since) {
		if covers(w.from, w.data) {
			for i := range w.data {
				explained[w.from+i] = true
			}
		} else if w.step < step {
			return false
		}
	}
	return covers(0, p.flushed[:len(is)])
}

// differs says where a content is not as it should be; "" if nowhere.
func differs(got, want []byte) string {
	if bytes.Equal(got, want[:len(got)]) {
		return ""
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d of block %d is %d, want %d", i%blockBytes, i/blockBytes, got[i], want[i])
		}
	}
	return ""
}

func brief(p []byte) string { return fmt.Sprintf("%d...%d", p[0], p[len(p)-1]) }

package vfs

import (
	"maps"
	"math"
	"math/rand/v2"
)

const (
	sectorBytes = 512 // what a disk writes whole or not at all
	pageSectors = 8
	pageBytes   = pageSectors * sectorBytes
	endOfFiles  = math.MaxInt64 / sectorBytes // sector number beyond all others
)

// sector is never changed once it is in a page or in the log: a write makes a
// new one. So any number of disks share it.
type sector [sectorBytes]byte

// page is a run of sectors. A nil one reads zeros.
type page [pageSectors]*sector

// content is what a file holds: a sparse map of pages by number, none of them
// empty. Bytes of a sector beyond the size are zero.
type content struct {
	pages     map[int64]page
	sizeBytes int64
	shared    bool // another content has the same map: copy before a change
}

// change is one change of a content, in a form that can be repeated on another
// one in part.
type change struct {
	versions   []sectorVersion
	clearFrom  int64 // sectors clearFrom..clearTo-1 become holes
	clearTo    int64
	size       sizeChange
	sizeBytes  int64 // for grows, setsSize
	endOfWrite int64 // how far a write reaches, so that its sectors can grow the file
}

// sectorVersion is a sector as the page cache had it after a change.
type sectorVersion struct {
	number int64
	data   *sector
}

type sizeChange uint8

const (
	keepsSize sizeChange = iota
	grows                // to at least sizeBytes
	setsSize             // to sizeBytes
)

// clone returns a content that can change apart from this one.
func (c *content) clone() content {
	c.shared = true
	return *c
}

// readAt returns how many bytes there were before the end.
func (c *content) readAt(p []byte, off int64) (n int) {
	if off >= c.sizeBytes {
		return 0
	}
	p = p[:min(int64(len(p)), c.sizeBytes-off)]
	for n < len(p) {
		number, within := (off+int64(n))/sectorBytes, (off+int64(n))%sectorBytes
		part := p[n:min(len(p), n+int(sectorBytes-within))]
		if s := c.sector(number); s != nil {
			copy(part, s[within:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	return n
}

func (c *content) sector(number int64) *sector {
	return c.pages[number/pageSectors][number%pageSectors]
}

// data finds the first run of pages at or after off.
func (c *content) data(off int64) (start, end int64, ok bool) {
	first := int64(math.MaxInt64)
	for number := range c.pages {
		if number >= off/pageBytes {
			first = min(first, number)
		}
	}
	start = max(off, first*pageBytes)
	if first == math.MaxInt64 || start >= c.sizeBytes {
		return 0, 0, false
	}
	for end = first; c.pages[end] != (page{}); {
		end++
	}
	return start, min(end*pageBytes, c.sizeBytes), true
}

// written returns the change that a write makes.
func (c *content) written(p []byte, off int64) change {
	end := off + int64(len(p))
	first, last := off/sectorBytes, (end-1)/sectorBytes
	buf := make([]byte, (last-first+1)*sectorBytes)
	if s := c.sector(first); s != nil {
		copy(buf, s[:])
	}
	if s := c.sector(last); s != nil && last > first {
		copy(buf[len(buf)-sectorBytes:], s[:])
	}
	copy(buf[off-first*sectorBytes:], p)
	w := change{
		versions:  make([]sectorVersion, 0, last-first+1),
		size:      grows,
		sizeBytes: end, endOfWrite: end,
	}
	for number := first; number <= last; number++ {
		w.versions = append(w.versions, sectorVersion{number, (*sector)(buf[(number-first)*sectorBytes:])})
	}
	return w
}

// firstPages returns the part of a write that lies in its first n pages.
func (ch change) firstPages(n int) change {
	if n == 0 {
		return change{}
	}
	end := (ch.versions[0].number/pageSectors + int64(n)) * pageSectors
	part := change{size: grows, endOfWrite: min(ch.endOfWrite, end*sectorBytes)}
	part.sizeBytes = part.endOfWrite
	for _, v := range ch.versions {
		if v.number < end {
			part.versions = append(part.versions, v)
		}
	}
	return part
}

// punched returns the change that makes a range read zeros.
func (c *content) punched(off, lengthBytes int64) change {
	end := off + lengthBytes
	p := change{clearFrom: (off + sectorBytes - 1) / sectorBytes, clearTo: end / sectorBytes}
	first, last := off/sectorBytes, end/sectorBytes
	if first < p.clearFrom {
		p.versions = c.zeroed(p.versions, first, off-first*sectorBytes, min(end-first*sectorBytes, sectorBytes))
	}
	if last >= p.clearFrom {
		p.versions = c.zeroed(p.versions, last, 0, end-last*sectorBytes)
	}
	return p
}

// truncated returns the change that sets the size.
func (c *content) truncated(sizeBytes int64) change {
	t := change{size: setsSize, sizeBytes: sizeBytes}
	if sizeBytes <= c.sizeBytes {
		t.clearFrom, t.clearTo = (sizeBytes+sectorBytes-1)/sectorBytes, endOfFiles
		if within := sizeBytes % sectorBytes; within > 0 {
			t.versions = c.zeroed(nil, sizeBytes/sectorBytes, within, sectorBytes)
		}
	}
	return t
}

// zeroed appends a sector with bytes from..to-1 zeroed, if it is no hole.
func (c *content) zeroed(versions []sectorVersion, number, from, to int64) []sectorVersion {
	old := c.sector(number)
	if old == nil || from >= to {
		return versions
	}
	s := *old
	clear(s[from:to])
	return append(versions, sectorVersion{number, &s})
}

func (c *content) apply(ch change) {
	c.clear(ch.clearFrom, ch.clearTo)
	for _, v := range ch.versions {
		c.set(v)
	}
	switch ch.size {
	case grows:
		c.sizeBytes = max(c.sizeBytes, ch.sizeBytes)
	case setsSize:
		c.sizeBytes = ch.sizeBytes
	}
}

func (c *content) set(v sectorVersion) {
	c.own()
	pg := c.pages[v.number/pageSectors]
	pg[v.number%pageSectors] = v.data
	c.pages[v.number/pageSectors] = pg
}

// clear makes holes of sectors from..to-1.
func (c *content) clear(from, to int64) {
	if from >= to || len(c.pages) == 0 {
		return
	}
	c.own()
	firstPage, lastPage := from/pageSectors, (to-1)/pageSectors
	if lastPage-firstPage >= int64(len(c.pages)) {
		for number := range c.pages {
			if firstPage <= number && number <= lastPage {
				c.clearInPage(number, from, to)
			}
		}
		return
	}
	for number := firstPage; number <= lastPage; number++ {
		c.clearInPage(number, from, to)
	}
}

func (c *content) clearInPage(number, from, to int64) {
	pg, ok := c.pages[number]
	if !ok {
		return
	}
	for i := range pg {
		if n := number*pageSectors + int64(i); from <= n && n < to {
			pg[i] = nil
		}
	}
	if pg == (page{}) {
		delete(c.pages, number)
	} else {
		c.pages[number] = pg
	}
}

func (c *content) own() {
	switch {
	case c.pages == nil:
		c.pages = map[int64]page{}
	case c.shared:
		c.pages = maps.Clone(c.pages)
	}
	c.shared = false
}

// chance is how likely a change that no sync covers is on the disk. Each file
// has its own in each cut: a fixed one would never leave all but one of a
// hundred writes.
type chance float64

func newChance(rng *rand.Rand) chance {
	return []chance{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
}

func (c chance) hits(rng *rand.Rand) bool { return rng.Float64() < float64(c) }

// applyPart applies what of a change a power cut happens to leave.
func (c *content) applyPart(ch change, rng *rand.Rand, likely chance) {
	if ch.size == setsSize { // a truncate is whole or not at all
		if likely.hits(rng) {
			c.apply(ch)
		}
		return
	}
	ofEach := likely // chance of each sector of this change
	if torn := likely > 0 && likely < 1 && rng.IntN(4) == 0; torn {
		ofEach = 0.5
	} else if likely.hits(rng) {
		ofEach = 1
	} else {
		ofEach = 0
	}
	switch {
	case ch.clearFrom >= ch.clearTo:
	case ofEach == 0.5:
		c.clearSome(ch.clearFrom, ch.clearTo, rng.Uint64())
	case ofEach == 1:
		c.clear(ch.clearFrom, ch.clearTo)
	}
	for _, v := range ch.versions {
		if ofEach.hits(rng) {
			c.set(v)
			c.sizeBytes = max(c.sizeBytes, min(ch.endOfWrite, (v.number+1)*sectorBytes))
		}
	}
	if ch.size == grows && likely.hits(rng) {
		c.sizeBytes = max(c.sizeBytes, ch.sizeBytes)
	}
}

// clearSome makes holes of the parts of some pages that lie in sectors
// from..to-1; which ones, seed says, in whatever order the pages come.
func (c *content) clearSome(from, to int64, seed uint64) {
	for number := range c.pages {
		if rand.New(rand.NewPCG(seed, uint64(number))).IntN(2) == 0 {
			c.clear(max(from, number*pageSectors), min(to, (number+1)*pageSectors))
		}
	}
}

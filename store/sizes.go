package store

import (
	"slices"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// Sizes says what a view (a snapshot, or a live volume) takes, or several views
// together. They are exact, from the lookup tables: whole blocks of 4 KiB that an
// image holds as data. What was never written or was trimmed takes nothing. While
// clients write, a block that is written meanwhile counts as before or as after.
//
//   - Logical: the size of the disk.
//   - Stored: the blocks of data that the view shows. Of several views, those that
//     at least one of them shows, each once.
//   - Unique: those of them that no other view shows, of whatever volume: a delete
//     gives just them back. Not counted is what is rubbish already (Unseen).
//   - Shared: the others.
//
// So they add up:
//
//  1. stored = unique + shared, of one view and of several.
//  2. Of several views together stored is at most the sum of theirs, and unique at
//     least: what only two snapshots show is unique to neither, and to both.
//  3. Of each volume with its snapshots: stored, unseen and what only clones of it
//     show is what its images hold (VolumeInfo.DataBytes).
//  4. Of a data directory: what some view shows, each block once, and what none
//     does is what the tables of all images hold, and the file system counts that for
//     the image files, block for block (ext4 and xfs add their own lists of extents
//     to files in many pieces). What no view shows is given back in the background.
//
// A view without a name counts as long as it drains or is open. What a conflict or
// a crash has left in a file without an entry in its table is in no size.
type Sizes struct {
	LogicalBytes, StoredBytes, UniqueBytes int64
}

// SharedBytes is what other views show too.
func (z Sizes) SharedBytes() int64 { return z.StoredBytes - z.UniqueBytes }

// VolumeSizes are the sizes of a volume and all its snapshots.
type VolumeSizes struct {
	// Live is the volume as it is now; All is that and its snapshots together, with
	// those that a rollback has left behind: what All has unique goes with the volume,
	// what it shares is in clones, or it is one.
	Live, All Sizes
	// Snapshots, by name.
	Snapshots map[string]Sizes
	// UnseenBytes is data in its images that no view shows any more: it is given back
	// in the background.
	UnseenBytes int64
}

// Sizes measures a volume and its snapshots in one pass over their tables,
// however many there are. Errors: ErrNotFound.
func (s *Store) Sizes(volumeName string) (sizes VolumeSizes, err error) {
	var live *disk
	var views map[*volume.VLUN]string
	t, err := s.measure(func() (t *tree, err error) {
		if live, err = s.diskLocked(volumeName); err != nil {
			return nil, err
		}
		branches := s.branchesLocked(volumeName)
		views = namedViewsLocked(branches)
		return s.treeLocked(branches, func(k *volume.VLUN) bool { _, in := views[k]; return in }), nil
	})
	if err != nil {
		return sizes, err
	}
	sizes.All, sizes.UnseenBytes = t.together, t.unseenBytes
	sizes.All.LogicalBytes = live.volume.SizeBytes()
	sizes.Live = t.sizes(tip(live.volume))
	sizes.Snapshots = map[string]Sizes{}
	for k, name := range views {
		if name != "" {
			sizes.Snapshots[name] = t.sizes(k)
		}
	}
	return sizes, nil
}

// namedViewsLocked lists the views of some volumes with their names; live ones, and
// those that just drain or are open, have none. Store.mu is held.
func namedViewsLocked(disks []*disk) map[*volume.VLUN]string {
	views := map[*volume.VLUN]string{}
	for _, d := range disks {
		for _, k := range d.volume.VLUNs() {
			if !d.countsLocked(k) {
				continue
			}
			views[k] = ""
			if snap := d.snapshots[k]; snap != nil {
				views[k] = snap.name
			}
		}
	}
	return views
}

// SizesTogether measures snapshots, each VOLUME@SNAPSHOT, as one: what is unique to
// them is what is given back if all of them are deleted. Errors: ErrInvalid,
// ErrNotFound.
func (s *Store) SizesTogether(fulls ...string) (sizes Sizes, err error) {
	var views map[*volume.VLUN]bool
	t, err := s.measure(func() (*tree, error) {
		var disks []*disk
		views = map[*volume.VLUN]bool{}
		for _, full := range fulls {
			d, k, _, err := s.snapshotLocked(full)
			if err != nil {
				return nil, err
			}
			if !slices.Contains(disks, d) {
				disks = append(disks, d)
			}
			views[k] = true
		}
		return s.treeLocked(disks, func(k *volume.VLUN) bool { return views[k] }), nil
	})
	if err != nil {
		return sizes, err
	}
	sizes = t.together
	for k := range views {
		sizes.LogicalBytes += k.SizeBytes()
	}
	return sizes, nil
}

// measure grows a tree under Store.mu and measures it. If a fold moves blocks from
// an image to another meanwhile, they may have been seen in neither: then it does so
// again, and holds folds up.
func (s *Store) measure(growLocked func() (*tree, error)) (*tree, error) {
	measure := func() (*tree, error) {
		s.mu.Lock()
		t, err := growLocked()
		s.mu.Unlock()
		if err == nil {
			t.measure()
		}
		return t, err
	}
	t, err := measure()
	if err != nil || s.unchanged(t) {
		return t, err
	}
	s.chains.RLock()
	defer s.chains.RUnlock()
	return measure()
}

// tree is the chains of some volumes, put together where they share images, and
// of the chains of others what grows out of them up to the first view: what that
// does not show of an image below, nor does any above it.
type tree struct {
	root    *node // holds nothing
	byImage map[image.ID]*node
	nodes   []*node // each before those above it

	// Set by measure: of the views that are measured, and what is in images of their
	// volumes and no view sees.
	together    Sizes
	unseenBytes int64
}

// node is an image in a tree.
type node struct {
	cursor
	image image.ID
	disk  *disk // one of those that have it, and its VLUN there
	vlun  *volume.VLUN
	mark  uint64 // how often its table file was written

	above   []*node
	own     bool // of the volumes that are measured
	view    bool // somebody sees the chain up to here
	counted bool // and is one of those that are measured

	// Set by number: positions in tree.nodes, and what is in the part of the tree that
	// this is the root of.
	at, below, end         int
	views, measured, sumAt int // sumAt adds up the positions of the views

	// Set by measure.
	grows, unique int64 // blocks: what it stores more than the node below, ...
	stored        int64
}

// treeLocked makes the tree of the chains of disks, of which some views are
// measured; Store.mu is held.
func (s *Store) treeLocked(disks []*disk, measured func(*volume.VLUN) bool) *tree {
	t := &tree{root: &node{}, byImage: map[image.ID]*node{}}
	for _, d := range disks {
		below := t.root
		for _, k := range d.volume.VLUNs() {
			n := t.add(below, d, k)
			n.own, n.view, n.counted = true, n.view || d.countsLocked(k), n.counted || measured(k)
			below = n
		}
	}
	for _, d := range s.byVolume {
		if !slices.Contains(disks, d) && slices.ContainsFunc(t.root.above, func(n *node) bool { return d.images[n.image] != nil }) {
			t.addOther(d)
		}
	}
	t.number(t.root, 0)
	return t
}

// addOther adds what grows out of the tree of the chain of another volume, up to
// its first view there. Store.mu is held.
func (t *tree) addOther(d *disk) {
	below := t.root
	for _, k := range d.volume.VLUNs() {
		if t.byImage[k.ImageID()] == nil && below == t.root {
			return
		}
		below = t.add(below, d, k)
		below.view = below.view || d.countsLocked(k)
		if below.view && !below.own {
			return
		}
	}
}

// add returns the node of an image of a volume, and makes it if it is missing.
func (t *tree) add(below *node, d *disk, k *volume.VLUN) *node {
	n := t.byImage[k.ImageID()]
	if n == nil {
		n = &node{cursor: cursorOf(k.Table()), image: k.ImageID(), disk: d, vlun: k, mark: d.tableMarkLocked(k)}
		t.byImage[k.ImageID()] = n
		below.above = append(below.above, n)
	}
	return n
}

// tableMarkLocked is how often the table file of a VLUN's image was written;
// Store.mu is held.
func (d *disk) tableMarkLocked(k *volume.VLUN) uint64 {
	if rec := d.sealed[k]; rec != nil {
		return rec.table
	}
	return 0
}

// unchanged tells whether no table of a sealed image was replaced since the tree
// was made.
func (s *Store) unchanged(t *tree) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(t.nodes[1:], func(n *node) bool { return n.disk.tableMarkLocked(n.vlun) != n.mark })
}

// number puts the nodes in order, and adds up what is above each.
func (t *tree) number(n *node, below int) {
	n.at, n.below = len(t.nodes), below
	t.nodes = append(t.nodes, n)
	if n.view {
		n.views, n.sumAt = 1, n.at
		if n.counted {
			n.measured = 1
		}
	}
	for _, a := range n.above {
		t.number(a, n.at)
		n.views, n.sumAt, n.measured = n.views+a.views, n.sumAt+a.sumAt, n.measured+a.measured
	}
	n.end = len(t.nodes)
}

// measure counts the blocks of every node, and of all views that are measured.
func (t *tree) measure() {
	w := sweep{tree: t}
	w.within(0, lookup.MaxBlocks, t.nodes[1:])
	for _, n := range t.nodes[1:] {
		n.stored = t.nodes[n.below].stored + n.grows
	}
	t.together = Sizes{StoredBytes: w.stored * lookup.BlockSize, UniqueBytes: w.unique * lookup.BlockSize}
	t.unseenBytes = w.unseen * lookup.BlockSize
}

// sizes are those of one view, after measure.
func (t *tree) sizes(k *volume.VLUN) Sizes {
	n := t.byImage[k.ImageID()]
	if n == nil { // made after the tree
		return Sizes{LogicalBytes: k.SizeBytes()}
	}
	return Sizes{LogicalBytes: k.SizeBytes(), StoredBytes: n.stored * lookup.BlockSize, UniqueBytes: n.unique * lookup.BlockSize}
}

// sweep goes over all tables of a tree at once, block by block in ascending order.
//
// Block b of an image is shown by the views from the image on up to, not with, the
// next images above that have b too. So their number is that of the views above
// the image less those above each of these next images, and the same holds for the
// sum of their positions: if there is one, the sum says which. Each entry of a
// table is looked at once, whatever the number of views.
//
// Where all tables have the same state for long, that is one step: it begins with
// all blocks that a volume may have, and cuts them into parts, of which only those
// with entries are looked at.
type sweep struct {
	*tree
	stored, unique, unseen int64 // blocks of the measured views together

	stack   []*node
	last    [chunkBlocks]int32 // for each block: 1 + its newest entry
	entries []entry
}

// entry is a block of an image, or several that are alike.
type entry struct {
	node                   int32
	below                  int32 // 1 + entry of the image that it covers
	data                   bool
	views, measured, sumAt int // that show it
}

const (
	chunkBlocks = 256
	sweepParts  = 16
)

// within counts n blocks, n a power of two, of the nodes that have some there.
func (w *sweep) within(from lookup.BlockNum, n uint64, nodes []*node) {
	to, base, alike := from+lookup.BlockNum(n), len(w.stack), true
	for _, x := range nodes {
		if x.seek(from, lookup.MaxBlocks); x.first < to {
			w.stack = append(w.stack, x)
			alike = alike && x.first <= from && to <= x.last
		}
	}
	nodes = w.stack[base:]
	switch {
	case len(nodes) == 0:
	case alike:
		for _, x := range nodes {
			w.put(x, 0, int64(n))
		}
		w.settle(int64(n))
	case n <= chunkBlocks:
		for _, x := range nodes {
			for x.seek(from, lookup.MaxBlocks); x.first < to; x.seek(x.last, lookup.MaxBlocks) {
				for b := max(from, x.first); b < min(to, x.last); b++ {
					w.put(x, b-from, 1)
				}
				if x.last >= to {
					break
				}
			}
		}
		w.settle(1)
	default:
		for ; from < to; from += lookup.BlockNum(n / sweepParts) {
			w.within(from, n/sweepParts, nodes)
		}
	}
	w.stack = w.stack[:base]
}

// put adds a block of an image, or several that count as one; those of older images
// were added before.
func (w *sweep) put(x *node, at lookup.BlockNum, blocks int64) {
	below := w.last[at]
	for below > 0 && w.nodes[w.entries[below-1].node].end <= x.at {
		below = w.entries[below-1].below // it is in another branch
	}
	e := entry{node: int32(x.at), below: below, data: x.state == lookup.Data, views: x.views, measured: x.measured, sumAt: x.sumAt}
	if e.data {
		x.grows += blocks
	}
	if below > 0 {
		covered := &w.entries[below-1]
		covered.views, covered.measured, covered.sumAt = covered.views-x.views, covered.measured-x.measured, covered.sumAt-x.sumAt
		if covered.data {
			x.grows -= blocks
		}
	}
	w.entries = append(w.entries, e)
	w.last[at] = int32(len(w.entries))
}

// settle counts what was put, so many blocks for each.
func (w *sweep) settle(blocks int64) {
	for _, e := range w.entries {
		if !e.data {
			continue
		}
		if e.views == 1 {
			w.nodes[e.sumAt].unique += blocks
		}
		switch own := w.nodes[e.node].own; {
		case e.views == 0 && own:
			w.unseen += blocks
		case e.measured > 0:
			w.stored += blocks
			if e.measured == e.views {
				w.unique += blocks
			}
		}
	}
	w.entries = w.entries[:0]
	clear(w.last[:])
}

// cursor is a place in a table: an extent that is not absent, from first up to,
// not with, last.
type cursor struct {
	table       lookup.Runs
	first, last lookup.BlockNum
	state       lookup.State
}

func cursorOf(t lookup.Runs) cursor { return cursor{table: lookup.Ascending(t)} }

// seek goes on to the first extent that ends after block from, and looks no further
// than up to end: then first is that.
func (c *cursor) seek(from, end lookup.BlockNum) {
	for ; c.last <= from && from < end; from = c.last {
		s, run := c.table.Run(from, uint64(end-from))
		c.first, c.last, c.state = from, from+lookup.BlockNum(run), s
		if s != lookup.Absent {
			return
		}
	}
	if c.last <= from || c.state == lookup.Absent { // no more
		c.first = end
	}
}

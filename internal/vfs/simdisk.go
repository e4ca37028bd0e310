package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// simDisk is a disk with the page cache before it: the tree as programs see it,
// the tree as the disk had it when the log began (the base of each node), and
// the log of all that happened since.
type simDisk struct {
	mu   sync.Mutex
	root *simNode
	log  []simOp
	// expected holds external files that were asked for and not yet made.
	expected []expectedExternal
}

type expectedExternal struct {
	dir  *simNode
	name string
	node *simNode
}

// simNode is a directory (entries), an external file, or a file (content).
type simNode struct {
	entries, baseEntries map[string]*simNode
	external             *simExternal
	content, baseContent content
	onDisk               *content // what the file is without the page cache, once a sync failed (simlost.go)
}

// simExternal is a file that lies in the real file system. Its osPath is empty
// until it is asked for in this life; it is then made to hold first.
type simExternal struct {
	osPath      string
	first, base version
}

// version is what an external file held; exists is false before it was made.
type version struct {
	data   []byte
	exists bool
}

type simOpKind uint8

const (
	simChange simOpKind = iota
	simEntry
	simVersion
	simSyncBegins
	simSyncReturns
	simLost
	simDropped
)

type simOp struct {
	kind    simOpKind
	node    *simNode // the file, or the directory of an entry
	change  change
	entry   entryChange
	version version
	began   int     // simSyncReturns: the operation number of its beginning
	lost    content // simLost: what the disk holds
	evict   bool    // simLost: the page cache shows it at once
}

// entryChange takes one name out of a directory, puts one in, or both (rename).
type entryChange struct {
	out, in string
	node    *simNode // what in names
}

func (e entryChange) apply(entries map[string]*simNode) {
	delete(entries, e.out)
	if e.in != "" {
		entries[e.in] = e.node
	}
}

func newSimDisk(root *simNode) *simDisk { return &simDisk{root: root} }

func newSimDir() *simNode {
	return &simNode{entries: map[string]*simNode{}, baseEntries: map[string]*simNode{}}
}

// record appends to the log and returns the operation's number.
func (d *simDisk) record(op simOp) int {
	d.log = append(d.log, op)
	return len(d.log) - 1
}

func (d *simDisk) change(file *simNode, c change) {
	op := simOp{kind: simChange, node: file, change: c}
	file.redo(op)
	d.record(op)
}

func (d *simDisk) changeEntry(dir *simNode, e entryChange) {
	e.apply(dir.entries)
	d.record(simOp{kind: simEntry, node: dir, entry: e})
}

func (d *simDisk) lookup(name string) (*simNode, error) {
	node := d.root
	for _, part := range splitPath(name) {
		if node.entries == nil {
			return nil, syscall.ENOTDIR
		}
		if node = node.entries[part]; node == nil {
			return nil, syscall.ENOENT
		}
	}
	return node, nil
}

func (d *simDisk) dir(name string) (*simNode, error) {
	node, err := d.lookup(name)
	if err == nil && node.entries == nil {
		err = syscall.ENOTDIR
	}
	return node, err
}

// parent returns the directory that name is in, its last part, and what it
// names there, nil if nothing.
func (d *simDisk) parent(name string) (dir *simNode, base string, node *simNode, err error) {
	parts := splitPath(name)
	if len(parts) == 0 {
		return nil, "", nil, syscall.EISDIR
	}
	base = parts[len(parts)-1]
	dir, err = d.dir(filepath.Join(parts[:len(parts)-1]...))
	if err != nil {
		return nil, "", nil, err
	}
	return dir, base, dir.entries[base], nil
}

func (d *simDisk) open(name string, flag int) (*simNode, error) {
	dir, base, node, err := d.parent(name)
	switch {
	case err != nil:
		return nil, err
	case flag&os.O_APPEND != 0:
		return nil, errors.ErrUnsupported
	case node == nil && flag&os.O_CREATE == 0:
		return nil, syscall.ENOENT
	case node == nil:
		node = &simNode{}
		d.changeEntry(dir, entryChange{in: base, node: node})
	case flag&os.O_EXCL != 0:
		return nil, syscall.EEXIST
	case node.entries != nil:
		return nil, syscall.EISDIR
	case node.external != nil:
		return nil, errors.ErrUnsupported
	}
	if flag&os.O_TRUNC != 0 && node.content.sizeBytes > 0 {
		d.change(node, node.content.truncated(0))
	}
	return node, nil
}

func (d *simDisk) remove(name string) error {
	dir, base, node, err := d.parent(name)
	switch {
	case err != nil:
		return err
	case node == nil:
		return syscall.ENOENT
	case len(node.entries) > 0:
		return syscall.ENOTEMPTY
	}
	if node.external != nil && node.external.osPath != "" {
		if err := os.Remove(node.external.osPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	d.changeEntry(dir, entryChange{out: base})
	return nil
}

func (d *simDisk) rename(oldName, newName string) error {
	dir, oldBase, node, err := d.parent(oldName)
	if err != nil {
		return err
	}
	newDir, newBase, target, err := d.parent(newName)
	switch {
	case err != nil:
		return err
	case node == nil:
		return syscall.ENOENT
	case newDir != dir:
		return syscall.EXDEV
	case node.entries != nil || target != nil && target.entries != nil:
		return syscall.EISDIR
	case node.external != nil || target != nil && target.external != nil:
		return errors.ErrUnsupported
	case node == target:
		return nil
	}
	d.changeEntry(dir, entryChange{out: oldBase, in: newBase, node: node})
	return nil
}

func (d *simDisk) mkdirAll(name string) error {
	node := d.root
	for _, part := range splitPath(name) {
		child := node.entries[part]
		if child == nil {
			child = newSimDir()
			d.changeEntry(node, entryChange{in: part, node: child})
		}
		if child.entries == nil {
			return syscall.ENOTDIR
		}
		node = child
	}
	return nil
}

// openExternal returns the node of an external file, which lies at its osPath
// from now on if it exists.
func (d *simDisk) openExternal(name, tempDir string) (*simNode, error) {
	dir, base, node, err := d.parent(name)
	if err != nil {
		return nil, err
	}
	for _, e := range d.expected {
		if e.dir == dir && e.name == base {
			node = e.node
		}
	}
	switch {
	case node == nil:
		node = &simNode{external: &simExternal{}}
		d.expected = append(d.expected, expectedExternal{dir: dir, name: base, node: node})
	case node.external == nil:
		return nil, syscall.EEXIST
	}
	return node, node.external.place(tempDir, base)
}

// place makes the real file, in a directory of its own.
func (e *simExternal) place(tempDir, base string) error {
	if e.osPath != "" {
		return nil
	}
	own, err := os.MkdirTemp(tempDir, "external-")
	if err != nil {
		return err
	}
	osPath := filepath.Join(own, base)
	if e.first.exists {
		if err := os.WriteFile(osPath, e.first.data, 0o600); err != nil {
			return err
		}
	}
	e.osPath = osPath
	return nil
}

// now returns what an external file holds at this moment.
func (e *simExternal) now() (version, error) {
	if e.osPath == "" {
		return e.first, nil
	}
	data, err := os.ReadFile(e.osPath)
	if errors.Is(err, fs.ErrNotExist) {
		return version{}, nil
	}
	return version{data: data, exists: err == nil}, err
}

// adoptExternals makes the entries of external files that have come to exist.
func (d *simDisk) adoptExternals() error {
	var still []expectedExternal
	for i, e := range d.expected {
		v, err := e.node.external.now()
		if err != nil {
			d.expected = append(still, d.expected[i:]...)
			return err
		}
		if !v.exists {
			still = append(still, e)
			continue
		}
		d.record(simOp{kind: simVersion, node: e.node, version: v})
		d.changeEntry(e.dir, entryChange{in: e.name, node: e.node})
	}
	d.expected = still
	return nil
}

func (d *simDisk) recordVersion(node *simNode) error {
	v, err := node.external.now()
	if err != nil {
		return err
	}
	for i := len(d.log) - 1; i >= 0; i-- { // most commits are told of twice
		if last := d.log[i]; last.kind == simVersion && last.node == node {
			if bytes.Equal(last.version.data, v.data) {
				v.data = last.version.data
			}
			break
		}
	}
	d.record(simOp{kind: simVersion, node: node, version: v})
	return nil
}

// detachExternals gives each external file a new place, with what it holds now.
func (d *simDisk) detachExternals() {
	_ = d.adoptExternals() // a file that can't be read is not there for the next life either
	d.expected = nil
	var walk func(node *simNode)
	walk = func(node *simNode) {
		for _, child := range node.entries {
			walk(child)
		}
		if e := node.external; e != nil {
			if v, err := e.now(); err == nil {
				e.first, e.osPath = v, ""
			}
		}
	}
	walk(d.root)
}

// cut returns the disk after a power cut before operation at; Sim says what it
// may hold. Each choice is made in the order of the log, so that the same rng
// makes the same ones.
func (d *simDisk) cut(at int, rng *rand.Rand) *simDisk {
	at = max(0, min(at, len(d.log)))
	synced := map[*simNode]int{} // operations below this number are covered
	for _, op := range d.log[:at] {
		if op.kind == simSyncReturns {
			synced[op.node] = max(synced[op.node], op.began)
		}
	}
	after := &aftermath{
		contents: map[*simNode]*content{},
		entries:  map[*simNode]map[string]*simNode{},
		versions: map[*simNode]version{},
		built:    map[*simNode]*simNode{},
	}
	after.settle(d.log[:at], synced, rng)
	for _, op := range d.log[:at] {
		if op.kind == simVersion {
			after.versions[op.node] = op.version
		}
	}
	for node, v := range d.interrupted(at, rng) {
		after.versions[node] = v
	}
	return newSimDisk(after.build(d.root))
}

// interrupted returns what external files hold of commits that a crash before
// operation at met: those of which it is anything.
func (d *simDisk) interrupted(at int, rng *rand.Rand) map[*simNode]version {
	if rng == nil {
		return nil
	}
	before, held := map[*simNode]version{}, map[*simNode]version{}
	for _, op := range d.log[:at] {
		if op.kind == simVersion {
			before[op.node] = op.version
		}
	}
	decided := map[*simNode]bool{}
	for _, op := range d.log[at:] {
		if op.kind != simVersion || decided[op.node] {
			continue
		}
		decided[op.node] = true
		old, ok := before[op.node]
		if !ok {
			old = op.node.external.base
		}
		switch rng.IntN(3) {
		case 0:
			held[op.node] = op.version
		case 1:
			if old.exists && op.version.exists {
				held[op.node] = version{data: torn(old.data, op.version.data, rng), exists: true}
			}
		}
	}
	return held
}

// torn mixes two versions of a bbolt file as a commit does that was cut short.
func torn(before, after []byte, rng *rand.Rand) []byte {
	const metaBytes = 2 * pageBytes
	mixed := bytes.Clone(before)
	if rng.IntN(2) == 0 && len(after) > len(before) { // it grows the file first
		mixed = append(mixed, make([]byte, len(after)-len(before))...)
	}
	likely := newChance(rng)
	for off := metaBytes; off < min(len(mixed), len(after)); off += sectorBytes {
		if likely.hits(rng) {
			copy(mixed[off:min(off+sectorBytes, len(mixed))], after[off:])
		}
	}
	return mixed
}

// killed returns the disk, and the page cache before it, that the death of the
// process before operation at leaves, with the log up to there.
func (d *simDisk) killed(at int, rng *rand.Rand) *simDisk {
	at = max(0, min(at, len(d.log)))
	r := replica{}
	then := newSimDisk(r.of(d.root))
	redo := func(op simOp) {
		op.node = r.of(op.node)
		if op.entry.node != nil {
			op.entry.node = r.of(op.entry.node)
		}
		switch op.kind {
		case simChange, simLost, simDropped:
			op.node.redo(op)
		case simEntry:
			op.entry.apply(op.node.entries)
		case simVersion:
			op.node.external.first = op.version
		}
		then.record(op)
	}
	for _, op := range d.log[:at] {
		redo(op)
	}
	if rng == nil || at == len(d.log) {
		return then
	}
	if op := d.log[at]; op.kind == simChange && op.change.endOfWrite > 0 {
		op.change = op.change.firstPages(rng.IntN(1 + len(op.change.versions)/pageSectors))
		redo(op)
	}
	for node, v := range d.interrupted(at, rng) {
		redo(simOp{kind: simVersion, node: node, version: v})
	}
	return then
}

// replica maps the nodes of a disk to new ones that hold what theirs did when
// the log began.
type replica map[*simNode]*simNode

func (r replica) of(old *simNode) *simNode {
	if node := r[old]; node != nil {
		return node
	}
	node := &simNode{}
	r[old] = node
	switch {
	case old.external != nil:
		node.external = &simExternal{first: old.external.base, base: old.external.base}
	case old.entries != nil:
		*node = *newSimDir()
		for name, child := range old.baseEntries {
			node.baseEntries[name] = r.of(child)
			node.entries[name] = node.baseEntries[name]
		}
	default:
		node.baseContent = old.baseContent.clone()
		node.content = node.baseContent.clone()
	}
	return node
}

// aftermath is what became of the nodes of a disk that the log mentions.
type aftermath struct {
	contents map[*simNode]*content
	entries  map[*simNode]map[string]*simNode
	versions map[*simNode]version
	built    map[*simNode]*simNode // old to new
}

// settle goes through the log and keeps what is covered, and part of the rest.
func (a *aftermath) settle(log []simOp, synced map[*simNode]int, rng *rand.Rand) {
	chances := map[*simNode]chance{}
	likely := func(node *simNode) chance {
		if _, ok := chances[node]; !ok {
			chances[node] = newChance(rng)
		}
		return chances[node]
	}
	for i, op := range log {
		covered := i < synced[op.node]
		switch {
		case op.kind == simLost:
			*a.content(op.node) = op.lost.clone()
		case op.kind == simChange && covered:
			a.content(op.node).apply(op.change)
		case op.kind == simChange && rng != nil:
			a.content(op.node).applyPart(op.change, rng, likely(op.node))
		case op.kind == simEntry && (covered || rng != nil && likely(op.node).hits(rng)):
			op.entry.apply(a.directory(op.node))
		}
	}
	for _, c := range a.contents {
		c.apply(c.truncated(c.sizeBytes)) // a sector may have come with bytes beyond the end
	}
}

func (a *aftermath) content(file *simNode) *content {
	c := a.contents[file]
	if c == nil {
		base := file.baseContent.clone()
		c = &base
		a.contents[file] = c
	}
	return c
}

func (a *aftermath) directory(dir *simNode) map[string]*simNode {
	entries := a.entries[dir]
	if entries == nil {
		entries = make(map[string]*simNode, len(dir.baseEntries))
		for name, node := range dir.baseEntries {
			entries[name] = node
		}
		a.entries[dir] = entries
	}
	return entries
}

// build returns the new node that stands for an old one, with all below it.
func (a *aftermath) build(old *simNode) *simNode {
	if node := a.built[old]; node != nil {
		return node
	}
	node := &simNode{}
	a.built[old] = node
	switch {
	case old.external != nil:
		v, ok := a.versions[old]
		if !ok {
			v = old.external.base
		}
		node.external = &simExternal{first: v, base: v}
	case old.entries != nil:
		*node = *newSimDir()
		for name, child := range a.directory(old) {
			node.baseEntries[name] = a.build(child)
			node.entries[name] = node.baseEntries[name]
		}
	default:
		node.baseContent = *a.content(old)
		node.content = node.baseContent.clone()
	}
	return node
}

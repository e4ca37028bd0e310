package vfs

import "math/rand/v2"

// A sync that fails leaves a file in two states: what the disk holds, and what
// the page cache shows, which counts as written though it is not. The node keeps
// the first in onDisk, with every later change made to it too, until the page
// cache is dropped or shows the same.

// lose ends a sync of a file by a failure behind which the kernel forgets.
func (f *simFile) lose(evict bool, rng *rand.Rand) {
	d := f.sim.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.sim.dead {
		return
	}
	op := simOp{kind: simLost, node: f.node, lost: d.onDisk(f.node, rng), evict: evict}
	f.node.redo(op)
	d.record(op)
}

// DropCache implements File.
func (f *simFile) DropCache() error {
	return f.do("dropcache", func(d *simDisk) error {
		op := simOp{kind: simDropped, node: f.node}
		f.node.redo(op)
		d.record(op)
		return nil
	})
}

// onDisk returns what the disk holds of a file at this moment.
func (d *simDisk) onDisk(file *simNode, rng *rand.Rand) content {
	synced := map[*simNode]int{}
	for _, op := range d.log {
		if op.kind == simSyncReturns && op.node == file {
			synced[file] = max(synced[file], op.began)
		}
	}
	after := &aftermath{contents: map[*simNode]*content{}, entries: map[*simNode]map[string]*simNode{}}
	after.settle(d.log, synced, rng)
	return after.content(file).clone()
}

// redo makes an operation on the contents of a file.
func (n *simNode) redo(op simOp) {
	switch op.kind {
	case simChange:
		n.content.apply(op.change)
		if n.onDisk != nil {
			n.onDisk.apply(op.change)
		}
	case simLost:
		if op.evict {
			n.content, n.onDisk = op.lost.clone(), nil
			return
		}
		lost := op.lost.clone()
		n.onDisk = &lost
	case simDropped:
		if n.onDisk != nil {
			n.content, n.onDisk = *n.onDisk, nil
		}
	}
}

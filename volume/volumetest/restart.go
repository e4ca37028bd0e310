package volumetest

import (
	"maps"
	"slices"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

func (m *Machine) restarts(r Restarter, actions map[string]func(*rapid.T)) {
	rarely := func(t *rapid.T) bool { return rapid.IntRange(0, 2).Draw(t, "rarely") == 0 }
	actions["reopen"] = func(t *rapid.T) {
		if rarely(t) {
			m.Reopen(r, rapid.Bool().Draw(t, "check"))
		}
	}
	actions["checkpoint"] = func(t *rapid.T) { m.Checkpoint(r, m.drawDisk(t)) }
	actions["kill"] = func(t *rapid.T) {
		if rarely(t) {
			m.Kill(r)
		}
	}
	drawCut := func(t *rapid.T) (at int, seed uint64) { // in the last step, or after it
		return rapid.IntRange(m.opsAt, r.Ops()).Draw(t, "at"), rapid.Uint64Range(0, 1<<20).Draw(t, "seed")
	}
	actions["powerCut"] = func(t *rapid.T) {
		if rarely(t) {
			at, seed := drawCut(t)
			m.PowerCut(r, at, seed)
		}
	}
	actions["cutAside"] = func(t *rapid.T) {
		at, seed := drawCut(t)
		m.CutAside(r, at, seed)
	}
}

// Checkpoint folds a journal. Nothing that a client sees changes by it.
func (m *Machine) Checkpoint(r Restarter, d *Disk) {
	m.t.Helper()
	m.begin("checkpoint %s", d.name)
	if err := r.Checkpoint(d.name); err != nil {
		m.t.Fatalf("checkpoint: %v", err)
	}
	m.settle()
}

// Reopen closes the target, which ends every process as torn, and opens it.
func (m *Machine) Reopen(r Restarter, check bool) {
	m.t.Helper()
	m.begin("close, and open again")
	for len(m.processes) > 0 {
		m.ended(m.processes[0], true)
	}
	if err := r.Close(); err != nil {
		m.t.Fatalf("close: %v", err)
	}
	m.settle()
	if check {
		findings, err := r.Check()
		if err != nil || len(findings) > 0 {
			m.t.Fatalf("check: %q, %v; want nothing found", findings, err)
		}
	}
	if err := r.Reopen(); err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.reopened()
}

// reopened looks for the volumes after a restart: nobody is connected any more,
// no process runs.
func (m *Machine) reopened() {
	m.t.Helper()
	m.handles, m.processes, m.preserves, m.sessions = nil, nil, nil, 0
	synctest.Wait()
	for _, d := range m.disks {
		m.find(d)
		for _, v := range d.vluns {
			v.preserve, v.conflictsBefore = nil, v.conflicts
		}
	}
}

// Kill ends the server and not the machine: everything that was acknowledged is
// there, flushed or not.
func (m *Machine) Kill(r Restarter) {
	m.t.Helper()
	m.begin("kill, and open again")
	if err := r.Kill(); err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.reopened()
	for _, d := range m.disks {
		if n := len(d.engine.VLUNs()); n != len(d.vluns) {
			m.t.Fatalf("%s has %d VLUNs after the kill, want %d", d.name, n, len(d.vluns))
		}
		m.adoptSnapshots(d, true)
	}
}

// PowerCut ends the machine: what was flushed is there, in every VLUN that
// should hold it (I6), what was sealed is as it was (I4), every snapshot that
// was acknowledged exists. What else there is, is what the model goes on with.
func (m *Machine) PowerCut(r Restarter, at int, seed uint64) {
	m.t.Helper()
	now := at >= r.Ops()
	if now { // what the last step did was acknowledged
		m.begin("power cut")
	}
	m.t.Logf("power cut at operation %d of %d, seed %d", at, r.Ops(), seed)
	if err := r.PowerCut(at, seed); err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.opsAt = 0 // the next cut may fall in the recovery from this one
	if recreated := m.survived(now); recreated {
		m.opsAt = r.Ops()
	}
	m.certain = nil
}

// CutAside looks at what a power cut would leave, and goes on without one.
func (m *Machine) CutAside(r Restarter, at int, seed uint64) {
	m.t.Helper()
	m.t.Logf("aside: power cut at operation %d of %d, seed %d", at, r.Ops(), seed)
	aside, err := r.Aside(at, seed)
	if err != nil {
		m.t.Fatalf("open aside: %v", err)
	}
	defer func() { _ = aside.Close() }()
	m.Moment(r).Survived(m.t, aside)
}

// survived compares what a power cut left with what it may, and takes it over. A
// volume that the cut met while it was made is made again.
func (m *Machine) survived(now bool) (recreated bool) {
	m.t.Helper()
	for i, d := range m.disks {
		if w, err := m.target.Open(d.name); err == nil {
			_ = w.Close()
		} else if d.sureVLUNs == 0 { // the cut came while it was made
			m.t.Logf("%s does not exist", d.name)
			recreated = true
			m.disks[i] = newDisk(d.name, d.vluns[0].sizeBytes)
			if err := m.target.Create(d.name, d.vluns[0].sizeBytes); err != nil {
				m.t.Fatalf("create: %v", err)
			}
		}
	}
	m.reopened()
	m.wholeCuts()
	for _, d := range m.disks {
		vluns := d.engine.VLUNs()
		if len(vluns) < d.sureVLUNs || len(vluns) > len(d.vluns) {
			m.t.Fatalf("%s has %d VLUNs after the power cut, want %d to %d", d.name, len(vluns), d.sureVLUNs, len(d.vluns))
		}
		d.vluns = d.vluns[:len(vluns)]
		for k, v := range d.vluns {
			got := m.content(d, vluns[k])
			if size := int64(len(got)); size != v.sizeBytes && size != v.was.sizeBytes {
				m.t.Fatalf("VLUN %d of %s has %d bytes, want %d or %d", k+1, d.name, size, v.was.sizeBytes, v.sizeBytes)
			}
			if err := v.mayRead(got); err != nil {
				m.t.Fatalf("VLUN %d of %s: %v", k+1, d.name, err)
			}
			v.bytes, v.sizeBytes = [maxBytes]byte{}, int64(len(got))
			copy(v.bytes[:], got)
			v.flushed()
			for b := range v.table {
				v.table[b] = vluns[k].Table().Get(lookup.BlockNum(b))
			}
		}
		*d.vluns[d.tip()] = vlun{sizeBytes: d.vluns[d.tip()].sizeBytes, bytes: d.vluns[d.tip()].bytes,
			table: d.vluns[d.tip()].table, perhaps: map[int]perhaps{}}
		m.adoptSnapshots(d, now)
		d.sureVLUNs = len(d.vluns)
		for k := range d.vluns {
			m.remember(d, k)
		}
	}
	return recreated
}

// wholeCuts checks that a cut is there in all of its volumes or in none.
func (m *Machine) wholeCuts() {
	m.t.Helper()
	there := map[int]map[bool]string{}
	for _, d := range m.disks {
		n := len(d.engine.VLUNs())
		for k, v := range d.vluns[:d.tip()] {
			if there[v.cut] == nil {
				there[v.cut] = map[bool]string{}
			}
			there[v.cut][k+1 < n] = d.name
		}
	}
	for cut, volumes := range there {
		if len(volumes) == 2 {
			m.t.Fatalf("after the power cut, cut %d was made in %s and not in %s", cut, volumes[true], volumes[false])
		}
	}
}

// adoptSnapshots compares the snapshots with those that must be there after a
// crash, and takes over what is said of them: one that had not been sealed is
// marked interrupted or, if the crash came within a step, was exact by then.
func (m *Machine) adoptSnapshots(d *Disk, now bool) {
	m.t.Helper()
	list, err := m.target.Snapshots(d.name)
	if err != nil {
		m.t.Fatalf("list: %v", err)
	}
	found := make([]*Snapshot, len(d.vluns))
	take := func(k int, name string) {
		if i := slices.IndexFunc(list, func(s Snapshot) bool { return s.Name == name }); i >= 0 && found[k] == nil {
			found[k] = &list[i]
			list = slices.Concat(list[:i], list[i+1:])
		}
	}
	for k, v := range d.vluns {
		take(k, v.name)
	}
	for k, v := range d.vluns { // the step that gives it another may not have got so far
		take(k, v.was.name)
	}
	if len(list) > 0 {
		m.t.Fatalf("%s has snapshots %+v after the crash that nobody asked for, or that were given up", d.name, list)
	}
	for k, v := range d.vluns {
		if found[k] == nil {
			if v.name != "" && v.name == v.was.name {
				m.t.Fatalf("%s has no snapshot %s after the crash", d.name, v.name)
			}
			v.name = ""
			continue
		}
		m.adopt(d, v, *found[k], now)
	}
}

func (m *Machine) adopt(d *Disk, v *vlun, got Snapshot, now bool) {
	m.t.Helper()
	slices.Sort(got.Torn)
	want := Snapshot{Name: got.Name, State: volume.Sealed, Consistency: v.exact(volume.Sealed), Conflicts: v.conflicts,
		Torn: slices.Sorted(slices.Values(v.torn)), SizeBytes: v.sizeBytes}
	if !now && (got.Consistency == v.was.consistency || got.Consistency == v.atCut && len(v.torn) == 0) {
		want.Consistency = got.Consistency
	}
	switch interrupted := got.Consistency == volume.ConsistencyInterrupted; {
	case got.State != volume.Sealed:
		m.t.Fatalf("snapshot %s@%s is %+v, and was not sealed by the open", d.name, got.Name, got)
	case v.was.sealed:
		m.compareSnapshot(d.name, got, want)
	case now && !interrupted:
		m.t.Fatalf("snapshot %s@%s drained when the crash came and is %+v, want interrupted", d.name, got.Name, got)
	case !interrupted && got.Consistency != want.Consistency:
		m.t.Fatalf("snapshot %s@%s is %v after the crash, want interrupted, or %v if it was exact", d.name, got.Name, got.Consistency, want.Consistency)
	}
	v.name, v.consistency, v.torn = got.Name, got.Consistency, got.Torn
	v.conflicts, v.conflictsBefore = got.Conflicts, got.Conflicts
}

// Moment is what the model allows after a power cut at any operation of one
// step.
type Moment struct {
	From, To int // the operations of the step; To is the next one's first
	disks    []*Disk
}

// Moment returns that of the last step.
func (m *Machine) Moment(r Restarter) *Moment {
	return &Moment{From: m.opsAt, To: r.Ops(), disks: cloneDisks(m.disks)}
}

// Survived compares a target that was opened after a cut in the moment.
func (o *Moment) Survived(t T, target Target) {
	t.Helper()
	m := New(t, target)
	m.disks = cloneDisks(o.disks)
	m.survived(false)
	m.Compare()
}

func cloneDisks(disks []*Disk) []*Disk {
	clones := make([]*Disk, len(disks))
	for i, d := range disks {
		c := *d
		c.vluns = make([]*vlun, len(d.vluns))
		for k, v := range d.vluns {
			w := *v
			w.perhaps = maps.Clone(v.perhaps)
			c.vluns[k] = &w
		}
		clones[i] = &c
	}
	return clones
}

package volumetest

import (
	"slices"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

func (m *Machine) restarts(r Restarter, actions map[string]func(chooser)) {
	rarely := func(c chooser) bool { return c.below("rarely", 3) == 0 }
	actions["reopen"] = func(c chooser) {
		if rarely(c) {
			m.Reopen(r, yes(c, "check"))
		}
	}
	actions["scrub"] = func(chooser) { m.Scrub(r) }
	actions["checkpoint"] = func(c chooser) { m.Checkpoint(r, m.drawDisk(c)) }
	actions["kill"] = func(c chooser) {
		if rarely(c) {
			m.Kill(r)
		}
	}
	drawCut := func(c chooser) (at int, seed uint64) { // in the last step, or after it
		return m.opsAt + c.below("at", r.Ops()-m.opsAt+1), uint64(c.below("seed", 1<<20))
	}
	actions["powerCut"] = func(c chooser) {
		if rarely(c) {
			at, seed := drawCut(c)
			m.PowerCut(r, at, seed)
		}
	}
	actions["cutAside"] = func(c chooser) {
		at, seed := drawCut(c)
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

// Scrub reads what is sealed and compares it with its checksums.
func (m *Machine) Scrub(r Restarter) {
	m.t.Helper()
	m.begin("scrub")
	if findings, err := r.Scrub(); err != nil || len(findings) > 0 {
		m.t.Fatalf("scrub: %q, %v; want nothing found", findings, err)
	}
	m.settle()
}

// Works closes the target, checks what is on the disk, opens it and makes a write,
// a flush and a preserve of all volumes, as after a crash every target must.
func (m *Machine) Works(r Restarter) {
	m.t.Helper()
	m.Reopen(r, true)
	if len(m.disks) == 0 {
		m.create(0)
	}
	for _, d := range m.disks {
		h := m.Open(d)
		m.Write(h, sectorBytes, 2*blockBytes, false)
		m.Flush(h)
		m.Write(h, 0, sectorBytes, true)
	}
	m.Preserve(slices.Clone(m.disks), Command{Wait: time.Hour})
	m.Compare()
	m.Reopen(r, true)
	m.Compare()
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
	if recreated := m.survived(powerCut, now); recreated {
		m.opsAt = r.Ops()
	}
}

// crash is a way to end a target.
type crash int

const (
	powerCut crash = iota
	kill
)

// CutAside looks at what a power cut would leave, and goes on without one.
func (m *Machine) CutAside(r Restarter, at int, seed uint64) {
	m.t.Helper()
	m.t.Logf("aside: power cut at operation %d of %d, seed %d", at, r.Ops(), seed)
	aside, err := r.Aside(at, seed)
	if err != nil {
		m.t.Fatalf("open aside: %v", err)
	}
	defer func() { _ = aside.Close() }()
	m.Moment(r).resume(m.t, aside, powerCut, 0)
}

// survived compares what a crash left with what it may, and takes it over. A
// volume that the crash met while it was made, or deleted, is made again. What a
// kill left is in the page cache still, as far as it was, and may be lost by the
// next crash.
func (m *Machine) survived(c crash, now bool) (recreated bool) {
	m.t.Helper()
	m.certain = nil
	for i, d := range m.disks {
		if w, err := m.target.Open(d.name); err == nil {
			_ = w.Close()
		} else if d.sureVLUNs == 0 || d.deleting {
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
		d.deleting = false
		if len(vluns) < d.sureVLUNs || len(vluns) > len(d.vluns) {
			m.t.Fatalf("%s has %d VLUNs after the crash, want %d to %d", d.name, len(vluns), d.sureVLUNs, len(d.vluns))
		}
		d.vluns = d.vluns[:len(vluns)]
		for k, v := range d.vluns {
			got := m.content(d, vluns[k])
			if size := int64(len(got)); size != v.sizeBytes && size != v.was.sizeBytes {
				m.t.Fatalf("VLUN %d of %s has %d bytes, want %d or %d", k+1, d.name, size, v.was.sizeBytes, v.sizeBytes)
			}
			since := 0
			if c == kill {
				since = m.step // nothing older is lost
			}
			if err := v.mayRead(got, since); err != nil {
				m.t.Fatalf("VLUN %d of %s: %v", k+1, d.name, err)
			}
			v.bytes, v.shared, v.sizeBytes = make([]byte, maxBytes), false, int64(len(got))
			copy(v.bytes, got)
			if c == powerCut {
				v.flushed()
			} else {
				v.outlived(m.step)
			}
			for b := range v.table {
				v.table[b] = vluns[k].Table().Get(lookup.BlockNum(b))
			}
		}
		live := d.vluns[d.tip()]
		d.vluns[d.tip()] = &vlun{sizeBytes: live.sizeBytes, bytes: live.bytes, perhaps: live.perhaps, table: live.table}
		m.adoptSnapshots(d, now)
		d.sureVLUNs = len(d.vluns)
		for k, v := range d.vluns {
			sealed := v.was.sealed
			m.remember(d, k)
			if c == kill { // it is exact, but a power cut before its seal would interrupt it
				v.was.sealed = sealed
			}
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
			m.t.Fatalf("after the crash, cut %d was made in %s and not in %s", cut, volumes[true], volumes[false])
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

// Moment is what the model allows after a crash at any operation of one step.
type Moment struct {
	From, To            int // the operations of the step; To is the next one's first
	disks               []*Disk
	started, cuts, step int
}

// Moment returns that of the last step.
func (m *Machine) Moment(r Restarter) *Moment {
	return &Moment{From: m.opsAt, To: r.Ops(), disks: cloneDisks(m.disks), started: m.started, cuts: m.cuts, step: m.step}
}

// Record makes the Machine keep the Moment of every step from the last one on.
func (m *Machine) Record() { m.recording = true }

// Moments returns those that were kept, up to that of the last step.
func (m *Machine) Moments() []*Moment {
	m.record()
	return m.moments
}

func (m *Machine) record() {
	r, ok := m.target.(Restarter)
	if !ok || !m.recording {
		return
	}
	if n := len(m.moments); n > 0 && m.moments[n-1].step == m.step {
		m.moments = m.moments[:n-1]
	}
	m.moments = append(m.moments, m.Moment(r))
}

// Survived compares a target that was opened after a power cut in the moment,
// and returns a Machine that goes on with it.
func (o *Moment) Survived(t T, target Restarter) *Machine {
	t.Helper()
	return o.resume(t, target, powerCut, 0)
}

// Outlived is Survived after a kill, before which the log of the disk had so
// many operations.
func (o *Moment) Outlived(t T, target Restarter, ops int) *Machine {
	t.Helper()
	return o.resume(t, target, kill, ops)
}

func (o *Moment) resume(t T, target Restarter, c crash, ops int) *Machine {
	t.Helper()
	m := New(t, target)
	m.disks = cloneDisks(o.disks)
	m.started, m.cuts, m.step, m.opsAt = o.started, o.cuts, o.step, ops
	if recreated := m.survived(c, false); recreated {
		m.opsAt = target.Ops()
	}
	m.step++ // the recovery is a step by itself
	m.Compare()
	return m
}

func cloneDisks(disks []*Disk) []*Disk {
	clones := make([]*Disk, len(disks))
	for i, d := range disks {
		c := *d
		c.vluns = make([]*vlun, len(d.vluns))
		for k, v := range d.vluns {
			c.vluns[k] = v.clone()
		}
		clones[i] = &c
	}
	return clones
}

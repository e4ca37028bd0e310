package volumetest

import (
	"errors"
	"io"
	"slices"
	"testing/synctest"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// begin begins a step: what the last one did is certain now.
func (m *Machine) begin(format string, args ...any) {
	m.t.Helper()
	m.record()
	m.t.Logf(format, args...)
	for _, do := range m.certain {
		do()
	}
	m.certain = nil
	m.step++
	for i, d := range m.disks {
		if d != nil && d.deleting {
			m.disks[i] = nil
		}
		if m.disks[i] == nil {
			continue
		}
		d.sureVLUNs, d.step = len(d.vluns), m.step
		for k, v := range d.vluns {
			m.remember(d, k)
			if v.was.sealed {
				v.flushed()
			}
		}
	}
	if r, ok := m.target.(Restarter); ok {
		m.opsAt = r.Ops()
	}
}

func (m *Machine) remember(d *Disk, k int) {
	v := d.vluns[k]
	was := m.snapshot(d, k)
	v.was.name, v.was.sizeBytes = was.Name, was.SizeBytes
	v.was.consistency, v.was.sealed = was.Consistency, was.State == volume.Sealed
}

// settle waits until everything in the background has come to rest, and checks
// that the preserves that must have answered have, and no others.
func (m *Machine) settle() {
	m.t.Helper()
	synctest.Wait()
	m.progress()
	for _, p := range m.preserves {
		select {
		case got := <-p.answers:
			if p.answer == nil {
				m.t.Fatalf("preserve %s answered %+v, want it to wait", p.Name, got)
			}
			m.compareAnswer(p, got)
		default:
			if p.answer != nil {
				m.t.Fatalf("preserve %s has not answered, want %+v", p.Name, *p.answer)
			}
		}
	}
	m.preserves = slices.DeleteFunc(m.preserves, func(p *preserve) bool { return p.answer != nil })
}

func (m *Machine) compareAnswer(p *preserve, got Answer) {
	m.t.Helper()
	want := *p.answer
	if !errors.Is(got.Err, want.Err) || got.Waited != want.Waited && want.Err != volume.ErrDrainingLimit ||
		len(got.Snapshots) != len(want.Snapshots) {
		m.t.Fatalf("preserve %s answered %+v, want %+v", p.Name, got, want)
	}
	for i := range got.Snapshots {
		m.compareSnapshot(p.Volumes[i], got.Snapshots[i], want.Snapshots[i])
	}
}

// compareSnapshot compares what is told of a snapshot. One that has drained may
// be on its way to be sealed; which processes died is final when it has drained.
func (m *Machine) compareSnapshot(volumeName string, got, want Snapshot) {
	m.t.Helper()
	same := got.Name == want.Name && got.SizeBytes == want.SizeBytes && got.Conflicts == want.Conflicts &&
		got.Consistency == want.Consistency && (got.State == volume.Draining) == (want.State == volume.Draining)
	if want.State != volume.Draining {
		slices.Sort(got.Torn)
		same = same && slices.Equal(got.Torn, want.Torn)
	}
	if !same {
		m.t.Fatalf("snapshot %s@%s is %+v, want %+v", volumeName, want.Name, got, want)
	}
}

// Compare compares everything that the target shows with the model: the lists,
// the content of every VLUN, its extents, and the index with the tables.
func (m *Machine) Compare() {
	m.t.Helper()
	for _, d := range m.disks {
		vluns := d.engine.VLUNs()
		if len(vluns) != len(d.vluns) {
			m.t.Fatalf("%s has %d VLUNs, want %d", d.name, len(vluns), len(d.vluns))
		}
		if err := d.engine.CheckIndex(); err != nil {
			m.t.Fatalf("%v", err)
		}
		for k := range vluns {
			m.compareVLUN(d, k, vluns[k])
		}
		m.compareList(d)
	}
}

func (m *Machine) compareVLUN(d *Disk, k int, vlun *volume.VLUN) {
	m.t.Helper()
	v := d.vluns[k]
	got := m.content(d, vlun)
	if int64(len(got)) != v.sizeBytes {
		m.t.Fatalf("VLUN %d of %s has %d bytes, want %d", k+1, d.name, len(got), v.sizeBytes)
	}
	if diff := differs(got, v.bytes); diff != "" {
		m.t.Fatalf("VLUN %d of %s: %s", k+1, d.name, diff)
	}
	for b, want := range v.table {
		if state := vlun.Table().Get(lookup.BlockNum(b)); state != want {
			m.t.Fatalf("the table of VLUN %d of %s has block %d as %v, want %v", k+1, d.name, b, state, want)
		}
	}
	var data, zero uint64
	for _, s := range v.table {
		switch s {
		case lookup.Data:
			data++
		case lookup.Zero:
			zero++
		}
	}
	if gotData, gotZero := vlun.Table().Counts(); gotData != data || gotZero != zero {
		m.t.Fatalf("the table of VLUN %d of %s counts %d data and %d zero, want %d and %d", k+1, d.name, gotData, gotZero, data, zero)
	}
	if k == d.tip() {
		return
	}
	if state := vlun.State(); (state == volume.Sealed) != m.drained(d, k) || state == volume.Sealing {
		m.t.Fatalf("VLUN %d of %s is %v; has it drained: %v", k+1, d.name, state, m.drained(d, k))
	}
	if vlun.Conflicts() != v.conflicts-v.conflictsBefore {
		m.t.Fatalf("VLUN %d of %s counts %d conflicts, want %d", k+1, d.name, vlun.Conflicts(), v.conflicts-v.conflictsBefore)
	}
}

// content reads a VLUN from end to end, whoever is bound to what.
func (m *Machine) content(d *Disk, vlun *volume.VLUN) []byte {
	m.t.Helper()
	w, err := vlun.Open()
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	defer func() { _ = w.Close() }()
	got := make([]byte, w.SizeBytes())
	if _, err := w.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
		m.t.Fatalf("read %s: %v", d.name, err)
	}
	return got
}

func (m *Machine) compareList(d *Disk) {
	m.t.Helper()
	list, err := m.target.Snapshots(d.name)
	if err != nil {
		m.t.Fatalf("list: %v", err)
	}
	for k, v := range d.vluns {
		if v.name == "" {
			continue
		}
		if len(list) == 0 || list[0].Name != v.name {
			m.t.Fatalf("%s has snapshots %+v, want %s", d.name, list, v.name)
		}
		want := m.snapshot(d, k)
		if _, bare := m.target.(*bare); bare {
			want.Consistency = 0
		}
		m.compareSnapshot(d.name, list[0], want)
		m.compareNamed(d, v)
		list = list[1:]
	}
	if len(list) > 0 {
		m.t.Fatalf("%s has snapshots %+v besides, want none", d.name, list)
	}
}

// compareNamed reads a snapshot by its name.
func (m *Machine) compareNamed(d *Disk, v *vlun) {
	m.t.Helper()
	w, err := m.target.Open(d.name + "@" + v.name)
	if err != nil {
		m.t.Fatalf("open %s@%s: %v", d.name, v.name, err)
	}
	defer func() { _ = w.Close() }()
	got := make([]byte, v.sizeBytes)
	if _, err := w.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
		m.t.Fatalf("read %s@%s: %v", d.name, v.name, err)
	}
	if diff := differs(got, v.bytes); diff != "" {
		m.t.Fatalf("%s@%s: %s", d.name, v.name, diff)
	}
}

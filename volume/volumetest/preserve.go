package volumetest

import (
	"slices"
	"time"

	"github.com/tidemark/tidemark/volume"
)

// Process is the model of a session or explicit process: what it is bound to,
// by volume.
type Process struct {
	token   string
	session bool
	bound   map[*Disk]int
	ended   bool
}

// preserve is the model of a preserve.
type preserve struct {
	Command
	disks    []*Disk
	own      []int // slot of its own VLUN, by volume
	deadline time.Time
	phase    phase
	second   *preserve // after a degrade
	waited   int
	answer   *Answer     // what it must have answered; nil while it waits
	answers  chan Answer // what it answered
}

type phase int

const (
	waiting phase = iota
	over
	givenUp
)

// drained says whether VLUN k of a volume waits for nobody: every process that
// is bound to it or to an older one has ended.
func (m *Machine) drained(d *Disk, k int) bool {
	return k < d.tip() && len(m.boundUpTo(d, k)) == 0
}

// boundUpTo lists the processes that a preserve of VLUN k waits for.
func (m *Machine) boundUpTo(d *Disk, k int) (list []*Process) {
	for _, p := range m.processes {
		if at, ok := p.bound[d]; ok && !p.ended && at <= k {
			list = append(list, p)
		}
	}
	return list
}

// drainingLimit says whether as many VLUNs of a volume drain as may.
func (m *Machine) drainingLimit(disks []*Disk) bool {
	return slices.ContainsFunc(disks, func(d *Disk) bool {
		n := 0
		for k := range d.tip() {
			if !m.drained(d, k) {
				n++
			}
		}
		return n >= maxDraining
	})
}

// cut is R6: the next VLUN of every volume, at one instant.
func (m *Machine) cut(p *preserve) {
	m.cuts++
	for _, d := range p.disks {
		k := d.tip()
		d.cut()
		d.vluns[k].preserve, d.vluns[k].name, d.vluns[k].cut = p, p.Name, m.cuts
		p.own = append(p.own, k)
	}
}

// waitsFor counts the processes that keep a preserve waiting.
func (m *Machine) waitsFor(p *preserve) int {
	all := map[*Process]bool{}
	for i, d := range p.disks {
		for _, q := range m.boundUpTo(d, p.own[i]) {
			all[q] = true
		}
	}
	return len(all)
}

// giveUp gives a preserve up: the processes of its own VLUNs go on in the next.
func (m *Machine) giveUp(p *preserve) {
	p.phase = givenUp
	for i, d := range p.disks {
		m.move(d, p.own[i], m.next(d, p.own[i]))
	}
}

// next is where the processes of a VLUN that is given up go: the next VLUN that
// somebody wants, for a preserve that keeps them whole or because it is live.
func (m *Machine) next(d *Disk, k int) int {
	for k++; k < d.tip() && d.vluns[k].preserve != nil && d.vluns[k].preserve.phase == givenUp; k++ {
	}
	return k
}

func (m *Machine) move(d *Disk, from, to int) {
	for _, p := range m.processes {
		if at, ok := p.bound[d]; ok && !p.ended && at == from {
			p.bound[d] = to
		}
	}
}

// expire is what a deadline does.
func (m *Machine) expire(p *preserve) {
	switch p.OnTimeout {
	case volume.TimeoutKeep:
		p.phase = over
		m.answer(p, p, ErrDraining, volume.ConsistencyProcess)
	case volume.TimeoutAbort:
		m.giveUp(p)
	case volume.TimeoutDegrade:
		m.degrade(p)
	}
}

// degrade is a second cut that takes the name of the first; the processes of
// both cross it, unless a younger preserve keeps them whole.
func (m *Machine) degrade(p *preserve) {
	p.phase = givenUp
	p.second = &preserve{Command: p.Command, disks: p.disks, phase: over}
	m.cut(p.second)
	var err error
	for i, d := range p.disks {
		d.vluns[p.second.own[i]].atCut = volume.ConsistencyRequest
		d.vluns[p.own[i]].name = ""
		to := m.next(d, p.own[i])
		if to == p.second.own[i] {
			to = d.tip()
		}
		m.move(d, p.own[i], to)
		m.move(d, p.second.own[i], d.tip())
		if !m.drained(d, p.second.own[i]) {
			err = ErrDraining
		}
	}
	p.second.waited = m.waitsFor(p.second)
	m.answer(p, p.second, err, volume.ConsistencyRequest)
}

// answer notes what a preserve must answer, of the snapshots of named.
func (m *Machine) answer(p, named *preserve, err error, c volume.Consistency) {
	for i, d := range named.disks {
		if v := d.vluns[named.own[i]]; len(v.torn) > 0 || c == volume.ConsistencyRequest && !m.drained(d, named.own[i]) {
			c = volume.ConsistencyMixed
		}
	}
	p.answer = &Answer{Err: err, Waited: p.waited}
	for i, d := range named.disks {
		d.vluns[named.own[i]].consistency = c
		s := m.snapshot(d, named.own[i])
		p.answer.Snapshots = append(p.answer.Snapshots, s)
	}
}

// snapshot is what the lists say of a named VLUN.
func (m *Machine) snapshot(d *Disk, k int) Snapshot {
	v := d.vluns[k]
	s := Snapshot{
		Name: v.name, Conflicts: v.conflicts, Torn: slices.Sorted(slices.Values(v.torn)),
		SizeBytes: v.sizeBytes,
	}
	if m.drained(d, k) {
		s.State = volume.Sealed
	}
	s.Consistency = v.exact(s.State)
	return s
}

// exact is the consistency of a VLUN when it has drained: processes that died
// make it mixed.
func (v *vlun) exact(s volume.State) volume.Consistency {
	if len(v.torn) > 0 && s != volume.Draining && v.consistency != volume.ConsistencyInterrupted {
		return volume.ConsistencyMixed
	}
	return v.consistency
}

// progress answers the preserves that have nobody left to wait for, or that
// were given up.
func (m *Machine) progress() {
	for _, p := range m.preserves {
		switch {
		case p.answer != nil:
		case p.phase == givenUp:
			for i, d := range p.disks {
				d.vluns[p.own[i]].name = ""
			}
			p.answer = &Answer{Err: ErrAborted, Waited: p.waited}
		case !slices.ContainsFunc(indexes(p.disks), func(i int) bool { return !m.drained(p.disks[i], p.own[i]) }):
			p.phase = over
			m.answer(p, p, nil, volume.ConsistencyProcess)
		}
	}
}

func indexes[T any](list []T) []int {
	all := make([]int, len(list))
	for i := range all {
		all[i] = i
	}
	return all
}

// tear notes a process that died on every preserved VLUN that waits for it.
func (m *Machine) tear(p *Process) {
	for d, at := range p.bound {
		for k := at; k < d.tip(); k++ {
			if !m.drained(d, k) {
				d.vluns[k].torn = append(d.vluns[k].torn, p.token)
			}
		}
	}
}

// meet is a request of a process on a range: it gives up the preserves that
// want it before such a request is served, and counts the others' conflicts.
func (m *Machine) meet(h *Handle, off, lengthBytes int64) {
	if h.fixed >= 0 {
		return
	}
	for again := h.process != nil; again; {
		again = false
		m.conflicts(h, off, lengthBytes, func(v *vlun) {
			if p := v.preserve; p != nil && p.phase == waiting && p.answer == nil && p.OnConflict == volume.ConflictAbort {
				m.giveUp(p)
				again = true
			}
		})
	}
	m.conflicts(h, off, lengthBytes, func(v *vlun) { v.conflicts++ })
}

// conflicts calls do for each block of a range that a newer image than that of
// h holds, and each VLUN that this is a conflict for.
func (m *Machine) conflicts(h *Handle, off, lengthBytes int64, do func(*vlun)) {
	d := h.disk
	k := h.slot()
	for b := off / blockBytes; b*blockBytes < off+lengthBytes; b++ {
		for j := k; j < d.holder(d.tip(), b); j++ {
			do(d.vluns[j])
		}
	}
}

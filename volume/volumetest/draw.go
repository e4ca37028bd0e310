package volumetest

import (
	"math/rand/v2"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark/tidemark/volume"
)

// chooser is where the choices of a random step come from.
type chooser interface {
	// below chooses a number from 0 to n-1; what says for what.
	below(what string, n int) int
}

// shrinking chooses as rapid does, which looks for the smallest run that fails.
type shrinking struct{ *rapid.T }

func (s shrinking) below(what string, n int) int { return rapid.IntRange(0, n-1).Draw(s.T, what) }

// seeded chooses by a random number generator alone, which costs next to nothing.
type seeded struct{ *rand.Rand }

func (s seeded) below(_ string, n int) int { return s.IntN(n) }

func yes(c chooser, what string) bool { return c.below(what, 2) == 1 }

func among[E any](c chooser, what string, list []E) E { return list[c.below(what, len(list))] }

// seldom and often are how often the steps of a seeded run come, beside those
// that come once in a round. Those that change nothing on the disk, or crash it,
// are left out: whoever runs it does that.
var (
	often = []string{
		"write", "write", "write", "write", "zero", "flush", "flush", "preserve", "preserve", "preserveAtOnce",
		"begin", "end", "checkpoint", "scrub",
	}
	seldom = []string{"open", "openSession", "openProcess", "closeView", "pass", "resize", "delete", "reopen", "kill"}
)

// Step makes a random step of those that matter to what a crash leaves.
func (m *Machine) Step(rng *rand.Rand) {
	m.t.Helper()
	c := seeded{rng}
	if m.steps == nil {
		m.steps = m.actions()
	}
	if len(m.disks) == 0 {
		m.create(0)
	}
	steps := often
	if c.below("", 3) == 0 {
		steps = seldom
	}
	if step, ok := m.steps[among(c, "", steps)]; ok { // not every target has each
		step(c)
	}
}

// actions are the steps with what they draw. A step that makes no sense now
// does nothing.
func (m *Machine) actions() map[string]func(chooser) {
	actions := map[string]func(chooser){
		"":          func(chooser) { m.Compare() },
		"write":     func(c chooser) { m.writes(c) },
		"writeMore": func(c chooser) { m.writes(c) }, // drawn as often again
		"zero": func(c chooser) {
			h := m.drawHandle(c)
			off, n := drawRange(c, h.sizeBytes)
			m.Zero(h, off, n, yes(c, "noHole"))
		},
		"read": func(c chooser) {
			h := m.drawHandle(c)
			off, n := drawRange(c, h.sizeBytes)
			m.Read(h, off, n, yes(c, "try"))
		},
		"extents": func(c chooser) {
			h := m.drawHandle(c)
			off, n := drawRange(c, h.sizeBytes)
			m.Extents(h, off, n)
		},
		"flush": func(c chooser) { m.Flush(m.drawHandle(c)) },
		"open": func(c chooser) {
			if len(m.handles) < 12 {
				m.Open(m.drawDisk(c))
			}
		},
		"openSession": func(c chooser) {
			if len(m.handles) < 12 {
				m.OpenSession(m.drawDisk(c))
			}
		},
		"openSnapshot": func(c chooser) {
			d := m.drawDisk(c)
			if k := c.below("vlun", d.tip()+1); len(m.handles) < 12 && d.vluns[k].name != "" {
				m.OpenSnapshot(d, k)
			}
		},
		"openProcess": func(c chooser) {
			if p := m.drawProcess(c); p != nil && len(m.handles) < 12 {
				m.OpenProcess(p, m.drawDisk(c))
			}
		},
		"closeView": func(c chooser) {
			m.CloseView(m.drawHandle(c), yes(c, "torn"))
		},
		"begin": func(c chooser) {
			if len(m.processes) < 6 {
				p := m.Begin(m.drawDisks(c))
				for d := range m.disks {
					if _, named := p.bound[m.disks[d]]; named && yes(c, "opens") {
						m.OpenProcess(p, m.disks[d])
					}
				}
			}
		},
		"end": func(c chooser) {
			if p := m.drawProcess(c); p != nil {
				m.End(p, yes(c, "torn"))
			}
		},
		"preserve": func(c chooser) {
			m.Preserve(m.drawDisks(c), Command{
				Wait:       among(c, "wait", []time.Duration{time.Minute, time.Hour}),
				OnTimeout:  volume.OnTimeout(c.below("onTimeout", 3)),
				OnConflict: volume.OnConflict(c.below("onConflict", 2)),
			})
		},
		"preserveAtOnce": func(c chooser) {
			m.Preserve(m.drawDisks(c), Command{OnTimeout: volume.OnTimeout(c.below("onTimeout", 3))})
		},
		"pass": func(c chooser) {
			m.Pass(among(c, "time", []time.Duration{2 * time.Minute, 2 * time.Hour}))
		},
		"resize": func(c chooser) {
			d := m.drawDisk(c)
			size := d.vluns[d.tip()].sizeBytes + sectorBytes*int64(1+c.below("sectors", 16))
			m.Resize(d, min(size, maxBytes))
		},
		"delete": func(c chooser) {
			i := c.below("volume", len(m.disks))
			if c.below("rarely", 4) == 0 && m.Delete(m.disks[i]) {
				m.create(i)
			}
		},
	}
	if r, ok := m.target.(Restarter); ok {
		m.restarts(r, actions)
	}
	return actions
}

func (m *Machine) writes(c chooser) {
	for range 1 + c.below("writes", 4) {
		h := m.drawHandle(c)
		off, n := drawRange(c, h.sizeBytes)
		m.Write(h, off, n, yes(c, "try"))
	}
}

// sizes of the volumes: whole blocks, and one that ends within a block.
var sizes = []int64{8 * blockBytes, 5*blockBytes + 3*sectorBytes, 6 * blockBytes}

func (m *Machine) create(i int) { m.Create(i, sizes[i%len(sizes)]) }

func (m *Machine) drawDisk(c chooser) *Disk { return among(c, "volume", m.disks) }

// drawDisks draws some volumes in some order.
func (m *Machine) drawDisks(c chooser) []*Disk {
	disks := slices.Clone(m.disks)
	for i := range disks {
		j := i + c.below("which", len(disks)-i)
		disks[i], disks[j] = disks[j], disks[i]
	}
	return disks[:1+c.below("volumes", len(disks))]
}

// drawHandle draws an open view, and opens one if there is none.
func (m *Machine) drawHandle(c chooser) *Handle {
	if len(m.handles) == 0 {
		return m.Open(m.drawDisk(c))
	}
	return among(c, "view", m.handles)
}

// drawProcess draws an explicit process; nil if there is none.
func (m *Machine) drawProcess(c chooser) *Process {
	var explicit []*Process
	for _, p := range m.processes {
		if !p.session {
			explicit = append(explicit, p)
		}
	}
	if len(explicit) == 0 {
		return nil
	}
	return among(c, "process", explicit)
}

// drawRange draws a range of whole blocks, of sectors or of bytes; now and then
// one that ends behind the volume.
func drawRange(c chooser, sizeBytes int64) (off, lengthBytes int64) {
	unit := among(c, "unit", []int64{blockBytes, blockBytes, sectorBytes, 1})
	off = int64(c.below("offset", int(sizeBytes/unit)+1)) * unit
	most := min(sizeBytes-off, 3*blockBytes)
	if most < unit {
		return off, unit // behind the end, wholly or in part
	}
	return off, unit * int64(1+c.below("length", int(most/unit)))
}

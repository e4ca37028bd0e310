package volumetest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// maxDraining is what a Target limits the draining VLUNs of a volume to.
const maxDraining = 3

// MaxDraining is the limit of draining VLUNs that a Target is made with.
const MaxDraining = maxDraining

// Run checks many random runs of a target against the model.
func Run(t *testing.T, open func(*rapid.T) Target) {
	rapid.Check(t, func(rt *rapid.T) {
		rapid.SyncTest(rt, func(rt *rapid.T) {
			m := New(rt, open(rt))
			rt.Cleanup(m.Close)
			for i := range 3 {
				m.create(i)
			}
			actions := map[string]func(*rapid.T){}
			for name, step := range m.actions() {
				actions[name] = func(t *rapid.T) { step(shrinking{t}) }
			}
			rt.Repeat(actions)
		})
	})
}

// Machine drives a Target and the model. Each exported method is a step: it
// does the same to both and compares what comes back.
type Machine struct {
	t         T
	target    Target
	disks     []*Disk // by number; nil: deleted
	handles   []*Handle
	processes []*Process
	preserves []*preserve // not yet answered
	started   int         // commands and writes so far: names, tokens, data
	cuts      int
	sessions  int // in this life of the target
	step      int // number of the present one
	steps     map[string]func(chooser)

	recording bool
	moments   []*Moment

	// certain runs at the next step: it takes out of the model what a power cut
	// in the present step may still leave.
	certain []func()
	opsAt   int // operations on the disk before the present step
}

// T is what a Machine needs of *testing.T or *rapid.T.
type T interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// Handle is an open view.
type Handle struct {
	*volume.View
	disk      *Disk
	process   *Process // nil: request scope, or fixed
	fixed     int      // slot of a preserved view; -1 otherwise
	sizeBytes int64
}

func (h *Handle) slot() int {
	switch {
	case h.fixed >= 0:
		return h.fixed
	case h.process != nil:
		return h.process.bound[h.disk]
	default:
		return h.disk.tip()
	}
}

func (h *Handle) ended() bool { return h.process != nil && h.process.ended }

// String implements fmt.Stringer, for the log of a run.
func (d *Disk) String() string { return d.name }

// String implements fmt.Stringer.
func (p *Process) String() string { return p.token }

// New returns a Machine over a target without volumes.
func New(t T, target Target) *Machine { return &Machine{t: t, target: target} }

// Close ends the target.
func (m *Machine) Close() { _ = m.target.Close() }

// Create makes volume number i.
func (m *Machine) Create(i int, sizeBytes int64) *Disk {
	m.t.Helper()
	m.begin("create volume %d", i)
	d := newDisk(fmt.Sprintf("v%d", i), sizeBytes)
	if err := m.target.Create(d.name, sizeBytes); err != nil {
		m.t.Fatalf("create: %v", err)
	}
	m.find(d)
	for len(m.disks) <= i {
		m.disks = append(m.disks, nil)
	}
	m.disks[i] = d
	m.settle()
	return d
}

// find gets hold of a volume by a view of it.
func (m *Machine) find(d *Disk) {
	m.t.Helper()
	w, err := m.target.Open(d.name)
	if err != nil {
		m.t.Fatalf("open %s: %v", d.name, err)
	}
	d.engine = w.Volume()
	_ = w.Close()
}

// Delete removes a volume, if nobody uses it.
func (m *Machine) Delete(d *Disk) bool {
	m.t.Helper()
	for _, p := range m.preserves {
		if slices.Contains(p.disks, d) {
			return false // what it then answers for the others is not modelled
		}
	}
	m.begin("delete %s", d.name)
	busy := slices.ContainsFunc(m.handles, func(h *Handle) bool { return h.disk == d }) ||
		len(m.boundUpTo(d, d.tip())) > 0
	d.deleting = !busy
	err := m.target.Delete(d.name)
	if busy {
		if !errors.Is(err, volume.ErrBusy) {
			m.t.Fatalf("delete of a volume in use: %v, want %v", err, volume.ErrBusy)
		}
		return false
	}
	if err != nil {
		m.t.Fatalf("delete: %v", err)
	}
	return true
}

// Resize makes a volume larger.
func (m *Machine) Resize(d *Disk, sizeBytes int64) {
	m.t.Helper()
	m.begin("resize %s to %d", d.name, sizeBytes)
	if err := m.target.Resize(d.name, sizeBytes); err != nil {
		m.t.Fatalf("resize: %v", err)
	}
	d.vluns[d.tip()].sizeBytes = sizeBytes
	m.settle()
}

// Open opens a volume at request scope.
func (m *Machine) Open(d *Disk) *Handle {
	m.t.Helper()
	return m.open(d.name, &Handle{disk: d, fixed: -1})
}

// OpenSession opens a volume, and begins a process that ends with the view.
func (m *Machine) OpenSession(d *Disk) *Handle {
	m.t.Helper()
	m.sessions++
	p := &Process{token: fmt.Sprintf("session/%d", m.sessions), session: true, bound: map[*Disk]int{d: d.tip()}}
	m.processes = append(m.processes, p)
	return m.open(d.name+":session", &Handle{disk: d, process: p, fixed: -1})
}

// OpenSnapshot opens a preserved VLUN by its name.
func (m *Machine) OpenSnapshot(d *Disk, k int) *Handle {
	m.t.Helper()
	return m.open(d.name+"@"+d.vluns[k].name, &Handle{disk: d, fixed: k})
}

// OpenProcess opens a volume under a process, if that named it.
func (m *Machine) OpenProcess(p *Process, d *Disk) *Handle {
	m.t.Helper()
	export := d.name + ":process:" + p.token
	if _, named := p.bound[d]; !named {
		m.begin("open %s, which the process did not name", export)
		if _, err := m.target.Open(export); err == nil {
			m.t.Fatalf("opened %s, which its process did not name", export)
		}
		return nil
	}
	return m.open(export, &Handle{disk: d, process: p, fixed: -1})
}

func (m *Machine) open(export string, h *Handle) *Handle {
	m.t.Helper()
	m.begin("open %s", export)
	w, err := m.target.Open(export)
	if err != nil {
		m.t.Fatalf("open %s: %v", export, err)
	}
	h.View, h.sizeBytes = w, h.disk.vluns[h.slot()].sizeBytes
	if w.SizeBytes() != h.sizeBytes {
		m.t.Fatalf("the view has %d bytes, want %d", w.SizeBytes(), h.sizeBytes)
	}
	m.handles = append(m.handles, h)
	return h
}

// CloseView closes a view; a session ends with it.
func (m *Machine) CloseView(h *Handle, torn bool) {
	m.t.Helper()
	m.begin("close view of %s, torn %v", h, torn)
	closing := h.View.Close
	if torn {
		closing = h.CloseTorn
	}
	if err := closing(); err != nil {
		m.t.Fatalf("close: %v", err)
	}
	m.handles = slices.DeleteFunc(m.handles, func(o *Handle) bool { return o == h })
	if h.process != nil && h.process.session {
		m.ended(h.process, torn)
	}
	m.settle()
}

// Begin begins an explicit process.
func (m *Machine) Begin(disks []*Disk) *Process {
	m.t.Helper()
	m.started++
	p := &Process{token: fmt.Sprintf("P%d", m.started), bound: map[*Disk]int{}}
	var names []string
	for _, d := range disks {
		p.bound[d] = d.tip()
		names = append(names, d.name)
	}
	m.begin("begin %s over %v", p.token, names)
	if err := m.target.Begin(p.token, names); err != nil {
		m.t.Fatalf("begin: %v", err)
	}
	m.processes = append(m.processes, p)
	return p
}

// End ends one.
func (m *Machine) End(p *Process, torn bool) {
	m.t.Helper()
	m.begin("end %s, torn %v", p.token, torn)
	if err := m.target.End(p.token, torn); err != nil {
		m.t.Fatalf("end: %v", err)
	}
	m.ended(p, torn)
	m.settle()
}

func (m *Machine) ended(p *Process, torn bool) {
	if torn {
		m.tear(p)
	}
	p.ended = true
	m.processes = slices.DeleteFunc(m.processes, func(o *Process) bool { return o == p })
}

// Preserve starts a preserve, and lets it wait beside the steps that follow.
func (m *Machine) Preserve(disks []*Disk, c Command) {
	m.t.Helper()
	m.started++
	c.Name = fmt.Sprintf("s%d", m.started)
	c.Wait += time.Duration(m.started) * time.Millisecond // no two deadlines are the same
	for _, d := range disks {
		c.Volumes = append(c.Volumes, d.name)
	}
	m.begin("preserve %+v", c)
	p := &preserve{Command: c, disks: disks, deadline: time.Now().Add(c.Wait), answers: make(chan Answer, 1)}
	m.preserves = append(m.preserves, p)
	go func() { p.answers <- m.target.Preserve(c) }()
	if m.drainingLimit(disks) {
		p.phase, p.answer = over, &Answer{Err: volume.ErrDrainingLimit}
	} else {
		m.cut(p)
		p.waited = m.waitsFor(p)
	}
	m.settle()
	if c.Wait < time.Second {
		m.Pass(time.Second) // its deadline comes at once
	}
}

// Pass lets time pass, and with it the deadlines of preserves, earliest first.
func (m *Machine) Pass(d time.Duration) {
	m.t.Helper()
	m.begin("%v pass", d)
	for to := time.Now().Add(d); ; {
		m.progress()
		var next *preserve
		for _, p := range m.preserves {
			if p.answer == nil && !p.deadline.After(to) && (next == nil || p.deadline.Before(next.deadline)) {
				next = p
			}
		}
		if next == nil {
			break
		}
		m.expire(next)
	}
	time.Sleep(d) // the bubble's time
	m.settle()
}

// Write writes a range, of which every byte is new.
func (m *Machine) Write(h *Handle, off, lengthBytes int64, try bool) {
	m.t.Helper()
	m.begin("write %d at %d of %s", lengthBytes, off, h)
	m.started++
	data := make([]byte, lengthBytes)
	for i := range data {
		data[i] = byte(1 + (m.started*37+i)%251)
	}
	n, err := 0, volume.ErrWouldBlock
	if try {
		if n, err = h.TryWriteAt(data, off); err == nil {
			err = h.Publish()
		}
	}
	if errors.Is(err, volume.ErrWouldBlock) {
		n, err = h.WriteAt(data, off)
	}
	if m.served(h, off, lengthBytes, err) {
		if n != len(data) {
			m.t.Fatalf("wrote %d of %d bytes", n, len(data))
		}
		m.meet(h, off, lengthBytes)
		h.disk.write(h.slot(), off, data, lookup.Data)
	}
	m.settle()
}

// Zero trims a range, or writes zeros that keep their storage.
func (m *Machine) Zero(h *Handle, off, lengthBytes int64, noHole bool) {
	m.t.Helper()
	m.begin("zero %d at %d of %v, no hole %v", lengthBytes, off, h, noHole)
	state := lookup.Zero
	if noHole {
		state = lookup.Data
	}
	if m.served(h, off, lengthBytes, h.WriteZeroes(off, lengthBytes, noHole)) {
		m.meet(h, off, lengthBytes)
		h.disk.write(h.slot(), off, make([]byte, lengthBytes), state)
	}
	m.settle()
}

// served says whether a change must have been made, and checks its error.
func (m *Machine) served(h *Handle, off, lengthBytes int64, err error) bool {
	m.t.Helper()
	var want error
	switch {
	case h.fixed >= 0:
		want = volume.ErrReadOnly
	case off+lengthBytes > h.sizeBytes:
		want = volume.ErrRange
	case h.ended():
		want = volume.ErrEnded
	}
	if !errors.Is(err, want) {
		m.t.Fatalf("the change of %s ended with %v, want %v", h, err, want)
	}
	return want == nil
}

// Read reads a range.
func (m *Machine) Read(h *Handle, off, lengthBytes int64, try bool) {
	m.t.Helper()
	m.begin("read %d at %d of %s", lengthBytes, off, h)
	got := make([]byte, lengthBytes)
	n, err := 0, volume.ErrWouldBlock
	if try {
		n, err = h.TryReadAt(got, off)
	}
	if errors.Is(err, volume.ErrWouldBlock) {
		n, err = h.ReadAt(got, off)
	}
	visible := max(0, min(lengthBytes, h.sizeBytes-off))
	var want error
	switch {
	case visible > 0 && h.ended():
		want = volume.ErrEnded
	case visible < lengthBytes:
		want = io.EOF
	}
	if !errors.Is(err, want) {
		m.t.Fatalf("the read of %s ended with %v, want %v", h, err, want)
	}
	if visible > 0 && !h.ended() {
		m.meet(h, off, visible)
		if int64(n) != visible {
			m.t.Fatalf("read %d bytes, want %d", n, visible)
		}
		if d := differs(got[:visible], h.disk.vluns[h.slot()].bytes[off:]); d != "" {
			m.t.Fatalf("%s: from %d on: %s", h, off, d)
		}
	}
	m.settle()
}

// Extents asks for the extents of a range.
func (m *Machine) Extents(h *Handle, off, lengthBytes int64) {
	m.t.Helper()
	m.begin("extents of %d at %d of %s", lengthBytes, off, h)
	var got []volume.Extent
	err := h.Extents(off, lengthBytes, func(x volume.Extent) bool { got = append(got, x); return true })
	switch {
	case off+lengthBytes > h.sizeBytes:
		if !errors.Is(err, volume.ErrRange) {
			m.t.Fatalf("extents behind the end: %v, want %v", err, volume.ErrRange)
		}
	case h.ended():
		if !errors.Is(err, volume.ErrEnded) {
			m.t.Fatalf("extents of a process that ended: %v, want %v", err, volume.ErrEnded)
		}
	case err != nil:
		m.t.Fatalf("extents: %v", err)
	default:
		if want := h.disk.extents(h.slot(), off, lengthBytes); !slices.Equal(got, want) {
			m.t.Fatalf("%s: the extents of %d at %d are %v, want %v", h, lengthBytes, off, got, want)
		}
	}
}

// Flush flushes a volume, through any view.
func (m *Machine) Flush(h *Handle) {
	m.t.Helper()
	m.begin("flush through %s", h)
	err := h.Flush()
	if h.ended() {
		if !errors.Is(err, volume.ErrEnded) {
			m.t.Fatalf("flush by a process that ended: %v, want %v", err, volume.ErrEnded)
		}
		return
	}
	if err != nil {
		m.t.Fatalf("flush: %v", err)
	}
	m.settle()
	m.certain = append(m.certain, func() {
		for _, v := range h.disk.vluns {
			v.flushed()
		}
	})
}

// String says what a view is of.
func (h *Handle) String() string {
	switch {
	case h.fixed >= 0:
		return fmt.Sprintf("%s, VLUN %d", h.disk.name, h.fixed+1)
	case h.process != nil:
		return fmt.Sprintf("%s through VLUN %d by %s", h.disk.name, h.slot()+1, h.process.token)
	default:
		return fmt.Sprintf("%s, live", h.disk.name)
	}
}

package historytest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// A checker that refuses what the rules allow proves nothing either. Here the rules
// make histories, step by step in one goroutine: their spans are as tight as can be.

func TestHistoriesThatTheRulesMakeAreAllowed(t *testing.T) {
	nameless := 0
	for seed := range uint64(500) {
		m := makeHistory(seed)
		nameless += m.nameless
		if err := m.checkWithoutConflicts(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	if nameless < 100 {
		t.Errorf("%d reads through VLUNs without a name: too few to prove anything", nameless)
	}
}

// checkWithoutConflicts is Check for a history that counts none.
func (h *History) checkWithoutConflicts() error {
	wrong := []error{h.checkBytes(), h.checkConstancy(), h.checkLive()}
	var cuts []*cut
	for _, p := range h.Preserves {
		if p.named() {
			c, err := h.decide(p)
			cuts, wrong = append(cuts, c), append(wrong, err)
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return err
	}
	return h.checkViews(cuts)
}

// maker makes a history of one volume of one block.
type maker struct {
	*rand.Rand
	History
	now       Time
	vluns     []*vlun // oldest first
	requests  []*request
	processes []*process
	commands  []*command
	nameless  int // reads through VLUNs without a name
}

type vlun struct {
	holds [blockSectors]Stamp
	moved bool // its processes have moved on: its preserve was given up or degraded
}

// request is an Op, after so many steps of it: it is called, is bound, takes effect,
// and returns.
type request struct {
	*Op
	process *process
	to      int
	steps   int
}

// process is begun once it is bound to a VLUN.
type process struct {
	Process
	to           int
	begun, ended bool
	running      *request
}

// command is a preserve, and what becomes of it if not all drains.
type command struct {
	Preserve
	otherwise     Outcome // Nothing: it waits for ever
	degrades      bool
	first, second int // the VLUNs, -1 before their cuts
	givenUp       bool
}

func makeHistory(seed uint64) *maker {
	m := &maker{Rand: rand.New(rand.NewPCG(seed, 7)), History: History{Volumes: 1, Sectors: blockSectors}, vluns: []*vlun{{}}}
	for range 80 + m.IntN(160) {
		m.step()
	}
	for !m.finished() {
	}
	m.read(&Op{}, len(m.vluns)-1)
	for _, c := range m.commands {
		if c.Exact = min(c.Exact, m.now); c.named() {
			c.Final = map[int][]Stamp{0: m.read(&Op{View: &c.Preserve}, c.vlun()).Got}
		}
	}
	return m
}

func (m *maker) tick() Time { m.now++; return m.now }

func (m *maker) step() {
	switch m.IntN(18) {
	case 0:
		if slices.IndexFunc(m.processes, func(p *process) bool { return !p.ended }) < 0 || m.IntN(4) == 0 {
			token := fmt.Sprintf("P%d", len(m.processes))
			m.processes = append(m.processes, &process{Process: Process{Token: token, Span: Span{m.tick(), never}}})
		}
	case 1, 2:
		if n := len(m.processes); n > 0 {
			m.work(m.processes[n-1-m.IntN(min(n, 3))])
		}
	case 3:
		if n := len(m.requests); n < 3 || m.requests[n-3].Return != never {
			m.call(m.anyOp(), nil)
		}
	case 4:
		if n := len(m.commands); n < 6 && (n < 2 || m.commands[n-2].Return != never) {
			c := &command{otherwise: []Outcome{Nothing, Aborted, Kept}[m.IntN(3)], degrades: m.IntN(2) == 0, first: -1, second: -1}
			c.Preserve = Preserve{Name: fmt.Sprintf("s%d", n), Volumes: []int{0}, Span: Span{m.tick(), never}, CutBy: never, Exact: never}
			m.commands, m.Preserves = append(m.commands, c), append(m.Preserves, &c.Preserve)
		}
	case 5, 6:
		if n := len(m.commands); n > 0 {
			m.preserve(m.commands[m.IntN(n)])
		}
	case 7:
		if n := len(m.commands); n > 0 {
			m.look(m.commands[m.IntN(n)])
		}
	default:
		if n := len(m.requests); n > 0 {
			m.goOn(m.requests[n-1-m.IntN(min(n, 8))])
		}
	}
}

// finished takes a step of everything, and tells whether none was left.
func (m *maker) finished() bool {
	done := true
	for _, r := range m.requests {
		done = done && r.Return != never
		m.goOn(r)
	}
	for _, p := range m.processes {
		done = done && p.ended
		p.ended = p.Return != never && p.running == nil
		if p.Return == never {
			m.work(p)
		}
	}
	for _, c := range m.commands {
		done = done && c.Return != never
		m.preserve(c)
	}
	return done
}

// work goes on with a process: its begin, a request, or its end.
func (m *maker) work(p *process) {
	switch {
	case !p.begun:
		p.to, p.begun = len(m.vluns)-1, true
	case p.Return == never:
		p.Return = m.tick()
	case p.ended || p.running != nil:
	case m.IntN(4) == 0:
		p.ended = true
	default:
		p.running = m.call(m.anyOp(), p)
	}
}

func (m *maker) anyOp() *Op {
	o := &Op{Kind: []Kind{Read, Read, Write, Write, Write, Zero}[m.IntN(6)], First: m.IntN(blockSectors)}
	if o.Count = 1 + m.IntN(blockSectors-o.First); m.IntN(2) == 0 {
		o.First, o.Count = 0, blockSectors
	}
	return o
}

func (m *maker) call(o *Op, p *process) *request {
	if o.Span, o.Stamp = (Span{m.tick(), never}), Stamp(len(m.Ops)+1); p != nil {
		o.Process = &p.Process
	}
	m.Ops = append(m.Ops, o)
	m.requests = append(m.requests, &request{Op: o, process: p})
	return m.requests[len(m.requests)-1]
}

func (m *maker) goOn(r *request) {
	if r.Return != never {
		return
	}
	switch r.steps++; r.steps {
	case 1:
		if r.to = len(m.vluns) - 1; r.process != nil {
			r.to = r.process.to
		}
	case 2:
		m.takeEffect(r)
	default:
		if r.Return = m.tick(); r.process != nil {
			r.process.running = nil
		}
	}
}

// takeEffect is R1 to R4.
func (m *maker) takeEffect(r *request) {
	if r.Kind == Read {
		if r.Got = slices.Clone(m.vluns[r.to].holds[r.First:][:r.Count]); m.vluns[r.to].moved {
			m.nameless++
		}
		return
	}
	stamp := r.Stamp
	if r.Kind == Zero {
		stamp = 0
	}
	for _, k := range m.vluns[r.to:] {
		for s := range r.Count {
			k.holds[r.First+s] = stamp
		}
	}
}

// read is a read of the whole block.
func (m *maker) read(o *Op, from int) *Op {
	o.Count = blockSectors
	r := m.call(o, nil)
	r.to, r.steps = from, 1
	m.goOn(r)
	m.goOn(r)
	return o
}

// look begins to read a snapshot.
func (m *maker) look(c *command) {
	if c.first < 0 || c.givenUp {
		return
	}
	early := c.Return == never
	if early && c.second < 0 {
		c.CutBy = min(c.CutBy, m.tick())
	}
	r := m.call(&Op{View: &c.Preserve, Early: early, Count: blockSectors}, nil)
	r.to, r.steps = c.vlun(), 1
}

// vlun is the one that the name stands for.
func (c *command) vlun() int { return max(c.first, c.second) }

// preserve goes on with a command: R6.
func (m *maker) preserve(c *command) {
	switch {
	case c.Return != never:
	case c.first < 0:
		c.first = m.cut()
	case c.CutBy == never:
		c.CutBy = m.tick()
	case c.givenUp:
		if m.quiet(c.first) {
			m.answer(c, Aborted)
		}
	case c.second >= 0:
		switch {
		case !m.quiet(c.first) || !m.quiet(c.second):
		case m.drained(c.second):
			c.Crossing = DidCross
			m.answer(c, Complete)
		default: // an older preserve keeps a process
			c.Crossing = MayCross
			m.answer(c, Kept)
		}
	case m.drained(c.first):
		m.answer(c, Complete)
	case c.degrades:
		c.second, c.CutBy = m.cut(), never
		m.moveOn(c.first)
		m.move(c.second, c.second+1)
	case c.otherwise == Kept:
		m.answer(c, Kept)
	case c.otherwise == Aborted:
		c.givenUp = true
		m.moveOn(c.first)
	}
}

func (m *maker) answer(c *command, as Outcome) {
	if c.Outcome, c.Return = as, m.tick(); as == Complete {
		c.Exact = c.Return
	}
}

// cut returns which VLUN is live no more. The time of a cut is noted before the next.
func (m *maker) cut() int {
	for _, c := range m.commands {
		if c.first >= 0 && c.CutBy == never {
			c.CutBy = m.tick()
		}
	}
	old := len(m.vluns) - 1
	m.vluns = append(m.vluns, &vlun{holds: m.vluns[old].holds})
	return old
}

// moveOn moves the processes of a VLUN to the next that is live or still wanted whole.
func (m *maker) moveOn(from int) {
	m.vluns[from].moved = true
	to := from + 1
	for m.vluns[to].moved {
		to++
	}
	m.move(from, to)
}

func (m *maker) move(from, to int) {
	for _, p := range m.processes {
		if p.begun && !p.ended && p.to == from {
			p.to = to
		}
	}
}

// quiet tells whether no request is in flight through a VLUN.
func (m *maker) quiet(k int) bool {
	return !slices.ContainsFunc(m.requests, func(r *request) bool {
		return r.View == nil && r.to == k && r.steps > 0 && r.Return == never
	})
}

func (m *maker) drained(k int) bool {
	for j := range k + 1 {
		if !m.quiet(j) {
			return false
		}
	}
	return !slices.ContainsFunc(m.processes, func(p *process) bool { return p.begun && !p.ended && p.to <= k })
}

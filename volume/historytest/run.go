package historytest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/volume"
	"github.com/tidemark/tidemark/volume/volumetest"
)

// Load says what the clients of a history do. Volumes are few and small, so that
// they meet.
type Load struct {
	Volumes, Blocks                       int // of each volume
	Writers, Processes, Sessions, Viewers int // clients of each kind
	Preservers                            int
	Preserves                             int // of all preservers, at most maxViews-2
	Ops                                   int // requests of all clients, about
}

// RandomLoad returns the load of a seed. Every third has clients of request scope
// only: its preserves wait for nothing else.
func RandomLoad(seed uint64) Load {
	r := rand.New(rand.NewPCG(seed, 0))
	l := Load{
		Volumes: 1 + r.IntN(3), Blocks: 2 + r.IntN(3),
		Writers: 1 + r.IntN(4), Processes: r.IntN(4), Sessions: r.IntN(3), Viewers: r.IntN(2),
		Preservers: 1 + r.IntN(3), Preserves: 3 + r.IntN(maxViews-4),
		Ops: 200 + r.IntN(600),
	}
	if seed%3 == 0 {
		l.Writers, l.Processes, l.Sessions = 2+r.IntN(4), 0, 0
	}
	return l
}

// VolumeNames returns the names that a Target of the load must have.
func (l Load) VolumeNames() []string {
	names := make([]string, l.Volumes)
	for i := range names {
		names[i] = fmt.Sprintf("v%d", i)
	}
	return names
}

// SizeBytes is the size of each volume.
func (l Load) SizeBytes() int64 { return int64(l.Blocks) * blockSectors * SectorBytes }

// Run lets the clients of a load loose on a target, all at once, and returns what
// they did and saw. The error is what was wrong on the way.
func Run(target Target, l Load, seed uint64) (*History, error) {
	yield.Seed(seed)
	r := &run{
		recorder: recorder{base: time.Now(), history: History{Volumes: l.Volumes, Sectors: l.Blocks * blockSectors}},
		Load:     l, target: target, names: l.VolumeNames(), seed: seed,
		turns: make(chan struct{}, l.Preserves), looks: make(chan struct{}, 1),
	}
	var clients, others sync.WaitGroup
	start := func(group *sync.WaitGroup, n int, kind string, f func(*client)) {
		for i := range n {
			c := r.client(fmt.Sprintf("%s%d", kind, i))
			group.Go(func() { f(c) })
		}
	}
	start(&others, l.Preservers, "preserver", (*client).preserve)
	start(&others, l.Viewers, "viewer", (*client).view)
	start(&clients, l.Writers, "writer", (*client).write)
	start(&clients, l.Processes, "process", (*client).process)
	start(&clients, l.Sessions, "session", (*client).session)
	clients.Wait()
	close(r.turns)
	close(r.looks)
	others.Wait()
	r.client("end").finish()
	return &r.history, errors.Join(r.wrong...)
}

// run is a history on its way.
type run struct {
	recorder
	Load
	target Target
	names  []string
	seed   uint64
	born   uint64

	ops   atomic.Int64
	turns chan struct{} // a preserve may come: they are spread over the requests
	looks chan struct{} // a viewer may look
}

// client is one goroutine's part in it.
type client struct {
	*run
	*rand.Rand
	name  string
	dying bool // its process may end before its requests do
}

func (r *run) client(name string) *client {
	r.born++
	return &client{run: r, Rand: rand.New(rand.NewPCG(r.seed, r.born)), name: name}
}

// line returns another goroutine of the client.
func (c *client) line() *client {
	return &client{run: c.run, Rand: rand.New(rand.NewPCG(c.Uint64(), c.seed)), name: c.name}
}

// over tells whether the clients have done all they should, and counts one more
// request.
func (r *run) over() bool {
	n := r.ops.Add(1)
	if stride := int64(r.Ops / (r.Preserves + 1)); n%stride == 0 && n <= int64(r.Preserves)*stride {
		r.turns <- struct{}{}
	}
	if n%8 == 0 {
		select {
		case r.looks <- struct{}{}:
		default:
		}
	}
	return n > int64(r.Ops)
}

// write is a client of request scope, with a connection to every volume.
func (c *client) write() {
	disks := c.openAll("")
	for !c.over() {
		vol := c.IntN(c.Volumes)
		c.request(disks[vol], vol, nil)
	}
	c.closeAll(disks)
}

// process runs explicit processes one after the other: each over some volumes,
// now and then with two goroutines or two connections to each.
func (c *client) process() {
	for n := 0; !c.over(); n++ {
		p := &Process{Token: fmt.Sprintf("%s.%d", c.name, n)}
		vols := c.someVolumes()
		p.Call = c.now()
		if err := c.target.Begin(p.Token, c.namesOf(vols)); err != nil {
			c.fault("begin %s: %v", p.Token, err)
			return
		}
		p.Return = c.now()
		var lines sync.WaitGroup
		for range 1 + c.IntN(2) {
			line := c.line()
			lines.Go(func() { line.work(p, vols, 1+line.IntN(6)) })
		}
		lines.Wait()
		late, err := c.target.Open(c.names[vols[0]] + ":process:" + p.Token)
		if err != nil {
			c.fault("open late under %s: %v", p.Token, err)
			return
		}
		var last sync.WaitGroup
		if c.IntN(2) == 0 { // the end comes in the middle of a request
			line := c.line()
			line.dying = true
			last.Go(func() { line.request(late, vols[0], p) })
		}
		if err := c.target.End(p.Token, c.IntN(8) == 0); err != nil {
			c.fault("end %s: %v", p.Token, err)
		}
		last.Wait()
		if err := late.Trim(0, SectorBytes); !errors.Is(err, ErrRefused) {
			c.fault("a request of process %s after its end: %v, want that it is refused", p.Token, err)
		}
		_ = late.Close()
	}
}

// work is some requests of a process, over connections opened when they are first
// needed.
func (c *client) work(p *Process, vols []int, requests int) {
	disks := make([]Disk, c.Volumes)
	for range requests {
		vol := vols[c.IntN(len(vols))]
		if disks[vol] == nil {
			disks[vol] = c.open(c.names[vol] + ":process:" + p.Token)
		}
		if disks[vol] == nil {
			return
		}
		c.over()
		c.request(disks[vol], vol, p)
	}
	c.closeAll(disks)
}

// session opens and closes sessions, or dies in the middle of them.
func (c *client) session() {
	for n := 0; !c.over(); n++ {
		vol := c.IntN(c.Volumes)
		p := &Process{Token: fmt.Sprintf("%s.%d", c.name, n)}
		p.Call = c.now()
		disk := c.open(c.names[vol] + ":session")
		if disk == nil {
			return
		}
		p.Return = c.now()
		for range 1 + c.IntN(6) {
			c.over()
			c.request(disk, vol, p)
		}
		if c.IntN(3) > 0 {
			c.closed(disk.Close())
			continue
		}
		var dying sync.WaitGroup
		if disk.MayDie() {
			line := c.line()
			dying.Go(func() { line.request(disk, vol, p) })
		}
		c.closed(disk.CloseTorn())
		dying.Wait()
	}
}

// request is one request, of whatever kind, that the history gets.
func (c *client) request(disk Disk, vol int, p *Process) {
	o := &Op{Client: c.name, Volume: vol, Process: p}
	o.First, o.Count = c.extent()
	off, lengthBytes := int64(o.First)*SectorBytes, int64(o.Count)*SectorBytes
	var err error
	switch n := c.IntN(100); {
	case n < 40:
		err = c.read(disk, o)
	case n < 82:
		o.Kind = Write
		c.begin(o)
		_, err = disk.WriteAt(o.bytes(), off)
		c.end(o, err)
	case n < 98:
		o.Kind = Zero
		c.begin(o)
		if n%3 == 0 {
			err = disk.Trim(off, lengthBytes)
		} else {
			err = disk.WriteZeroes(off, lengthBytes, n%3 == 1)
		}
		c.end(o, err)
	default:
		err = disk.Flush()
	}
	if err != nil && !errors.Is(err, ErrUnanswered) && !(c.dying && errors.Is(err, ErrRefused)) {
		c.fault("%v: %v", o, err)
	}
}

func (c *client) read(disk Disk, o *Op) error {
	p := make([]byte, o.Count*SectorBytes)
	c.begin(o)
	_, err := disk.ReadAt(p, int64(o.First)*SectorBytes)
	o.Got = stamps(p, o.Volume, o.First)
	c.end(o, err)
	return err
}

// extent is a whole block, some sectors of one, or a range of several blocks that
// begins and ends anywhere.
func (c *client) extent() (first, count int) {
	sectors := c.Blocks * blockSectors
	switch b := c.IntN(c.Blocks) * blockSectors; c.IntN(3) {
	case 0:
		return b, blockSectors
	case 1:
		first = b + c.IntN(blockSectors)
		return first, 1 + c.IntN(b+blockSectors-first)
	default:
		first = c.IntN(sectors)
		return first, 1 + c.IntN(sectors-first)
	}
}

// preserve gives preserve commands, and looks at each snapshot at once.
func (c *client) preserve() {
	for range c.turns {
		command := volumetest.Command{
			Wait:       []time.Duration{0, 50 * time.Microsecond, time.Millisecond, time.Hour}[c.IntN(4)],
			OnTimeout:  []volume.OnTimeout{volume.TimeoutAbort, volume.TimeoutDegrade, volume.TimeoutKeep}[c.IntN(3)],
			OnConflict: []volume.OnConflict{volume.ConflictCount, volume.ConflictAbort}[c.IntN(2)],
		}
		c.command(command, c.someVolumes())
	}
}

// command gives one and notes it.
func (c *client) command(command volumetest.Command, vols []int) {
	p := &Preserve{Volumes: vols, ConflictsAbort: command.OnConflict == volume.ConflictAbort, CutBy: never, Span: Span{Return: never}}
	c.mu.Lock()
	p.Name = fmt.Sprintf("s%d", len(c.history.Preserves))
	c.history.Preserves = append(c.history.Preserves, p)
	p.Call = c.now()
	c.mu.Unlock()
	command.Name, command.Volumes = p.Name, c.namesOf(vols)
	answer := c.target.Preserve(command)
	now := c.now()

	c.mu.Lock()
	p.Return, p.Exact = now, never
	if command.OnTimeout == volume.TimeoutKeep && now-p.Call >= Time(command.Wait) {
		p.ConflictsAbort = false // the deadline may have come before: from then on conflicts are counted, and it may drain before it is answered
	}
	switch {
	case answer.Err == nil:
		p.Outcome, p.Exact = Complete, now
	case errors.Is(answer.Err, volumetest.ErrDraining):
		p.Outcome = Kept
	case errors.Is(answer.Err, volumetest.ErrAborted):
		p.Outcome = Aborted
	}
	if p.Outcome != Nothing {
		p.CutBy = min(p.CutBy, c.at(answer.CutTime))
	}
	if command.OnTimeout == volume.TimeoutDegrade && p.named() {
		switch answer.Snapshots[0].Consistency {
		case volume.ConsistencyRequest:
			p.Crossing = DidCross
		case volume.ConsistencyMixed:
			p.Crossing = MayCross
		}
		if p.Crossing != Stayed { // whoever opened the name before the answer may have the first cut
			p.CutBy = c.at(answer.CutTime)
		}
	}
	c.mu.Unlock()
	if p.Outcome == Nothing {
		c.fault("preserve %s: %v", p.Name, answer.Err)
	}
	if answer.CutTime.IsZero() || c.at(answer.CutTime) > p.Return || c.at(answer.CutTime) < p.Call {
		c.fault("preserve %s from %d to %d reports a cut at %v", p.Name, p.Call, p.Return, answer.CutTime)
	}
	if p.named() {
		for _, vol := range vols {
			c.look(p, vol)
		}
	}
}

// look reads a whole snapshot, if it is there.
func (c *client) look(p *Preserve, vol int) {
	c.mu.Lock()
	answered, named := p.Return != never, p.named()
	c.mu.Unlock()
	disk, err := c.target.Open(c.names[vol] + "@" + p.Name)
	if err != nil {
		if answered && named {
			c.fault("open %s of volume %d: %v", p.Name, vol, err)
		}
		return
	}
	if !answered {
		c.mu.Lock()
		if p.Crossing == Stayed { // what was opened is of its only cut, as far as is known
			p.CutBy = min(p.CutBy, c.now())
		}
		c.mu.Unlock()
	}
	o := &Op{Client: c.name, Volume: vol, View: p, Early: !answered, Count: c.Blocks * blockSectors}
	if err := c.read(disk, o); err != nil {
		c.fault("%v: %v", o, err)
	}
	c.closed(disk.Close())
}

// view looks at snapshots while they drain.
func (c *client) view() {
	for range c.looks {
		c.mu.Lock()
		var p *Preserve
		if n := len(c.history.Preserves); n > 0 {
			p = c.history.Preserves[max(0, n-1-c.IntN(4))]
		}
		c.mu.Unlock()
		if p != nil {
			c.look(p, p.Volumes[c.IntN(len(p.Volumes))])
		}
	}
}

// finish reads everything when nobody writes, writes over all of it, and reads
// the snapshots again (I4).
func (c *client) finish() {
	live := c.openAll("")
	readAll := func() {
		for vol, disk := range live {
			o := &Op{Client: c.name, Volume: vol, Count: c.Blocks * blockSectors}
			if err := c.read(disk, o); err != nil {
				c.fault("%v: %v", o, err)
			}
		}
		for _, p := range c.history.Preserves {
			for _, vol := range p.Volumes {
				if p.named() {
					c.look(p, vol)
				}
			}
		}
	}
	if err := c.target.Settle(c.names); err != nil {
		c.fault("settle: %v", err)
	}
	for _, p := range c.history.Preserves {
		p.Exact = min(p.Exact, c.now())
	}
	readAll()
	for _, p := range c.history.Preserves {
		p.Final, p.Conflicts = map[int][]Stamp{}, map[int]uint64{}
	}
	for _, o := range c.history.Ops {
		if o.View != nil && o.Client == c.name {
			o.View.Final[o.Volume] = o.Got
		}
	}
	c.tally()
	c.command(volumetest.Command{Wait: time.Hour}, c.allVolumes())
	for vol, disk := range live {
		for b := range c.Blocks {
			o := &Op{Client: c.name, Kind: Write, Volume: vol, First: b * blockSectors, Count: blockSectors}
			c.begin(o)
			_, err := disk.WriteAt(o.bytes(), int64(o.First)*SectorBytes)
			if c.end(o, err); err != nil {
				c.fault("%v: %v", o, err)
			}
		}
	}
	last := c.history.Preserves[len(c.history.Preserves)-1]
	last.Final, last.Conflicts = map[int][]Stamp{}, map[int]uint64{}
	readAll()
	for _, o := range c.history.Ops {
		if o.View == last {
			last.Final[o.Volume] = o.Got
		}
	}
	c.closeAll(live)
	c.history.Ops = slices.DeleteFunc(c.history.Ops, func(o *Op) bool { return o.Count == 0 })
	slices.SortFunc(c.history.Preserves, func(a, b *Preserve) int { return int(a.Call - b.Call) })
}

// tally notes the conflicts that the snapshots report.
func (c *client) tally() {
	for vol, name := range c.names {
		snapshots, err := c.target.Snapshots(name)
		if err != nil {
			c.fault("list %s: %v", name, err)
		}
		for _, p := range c.history.Preserves {
			i := slices.IndexFunc(snapshots, func(s volumetest.Snapshot) bool { return s.Name == p.Name })
			switch {
			case p.has(vol) && p.named() && i < 0:
				c.fault("snapshot %s of volume %d is not listed", p.Name, vol)
			case (!p.has(vol) || !p.named()) && i >= 0:
				c.fault("volume %d lists %s, which was given up", vol, p.Name)
			case i >= 0:
				p.Conflicts[vol] = snapshots[i].Conflicts
			}
		}
	}
}

func (c *client) open(export string) Disk {
	disk, err := c.target.Open(export)
	if err != nil {
		c.fault("open %s: %v", export, err)
		return nil
	}
	return disk
}

func (c *client) openAll(suffix string) []Disk {
	disks := make([]Disk, c.Volumes)
	for vol, name := range c.names {
		disks[vol] = c.open(name + suffix)
	}
	return disks
}

func (c *client) closeAll(disks []Disk) {
	for _, disk := range disks {
		if disk != nil {
			c.closed(disk.Close())
		}
	}
}

func (c *client) closed(err error) {
	if err != nil {
		c.fault("%s closes: %v", c.name, err)
	}
}

func (c *client) allVolumes() []int {
	all := make([]int, c.Volumes)
	for i := range all {
		all[i] = i
	}
	return all
}

// someVolumes returns at least one, in any order.
func (c *client) someVolumes() []int {
	return c.Perm(c.Volumes)[:1+c.IntN(c.Volumes)]
}

func (c *client) namesOf(vols []int) []string {
	names := make([]string, len(vols))
	for i, vol := range vols {
		names[i] = c.names[vol]
	}
	return names
}

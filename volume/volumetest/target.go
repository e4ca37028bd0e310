package volumetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tidemark/tidemark/volume"
)

// Target is an engine with names, as a server has it. Its methods block until
// the command is answered, and are called one at a time, but for Preserve.
type Target interface {
	// Create makes a volume of zeros.
	Create(name string, sizeBytes int64) error
	// Delete removes it with its snapshots; volume.ErrBusy if it is in use.
	Delete(name string) error
	Resize(name string, sizeBytes int64) error
	// Open opens VOLUME, VOLUME:session, VOLUME:process:TOKEN or VOLUME@SNAPSHOT.
	Open(export string) (*volume.View, error)
	Begin(token string, volumes []string) error
	End(token string, torn bool) error
	Preserve(Command) Answer
	// Snapshots lists the named snapshots of a volume, oldest first.
	Snapshots(name string) ([]Snapshot, error)
	// Close ends every process as torn and everything that runs.
	Close() error
}

// Restarter is a Target that keeps volumes when it ends.
type Restarter interface {
	Target
	// Open again after Close.
	Reopen() error
	// Kill ends it as kill -9 does, and opens it again.
	Kill() error
	// PowerCut cuts the power at an operation on its disk, of those numbered
	// since it was made, and opens it again. What the disk keeps of all that
	// was not synced, the seed says; 0 keeps nothing.
	PowerCut(at int, seed uint64) error
	// Aside returns what PowerCut would leave, opened beside the target, which
	// goes on.
	Aside(at int, seed uint64) (Restarter, error)
	// Ops is the number of operations so far.
	Ops() int
	// Checkpoint folds the journal of a volume.
	Checkpoint(name string) error
	// Scrub compares what is sealed with its checksums and says what differs.
	Scrub() ([]string, error)
	// Check closes it and says what is wrong with what is on the disk, and opens
	// it again.
	Check() ([]string, error)
}

// Command is a preserve.
type Command struct {
	Name       string
	Volumes    []string
	Wait       time.Duration
	OnTimeout  volume.OnTimeout
	OnConflict volume.OnConflict
}

// Answer is what became of one.
type Answer struct {
	// Err is volume.ErrDrainingLimit, ErrAborted, ErrDraining, ErrExists or
	// nil, as it is, or what else went wrong.
	Err       error
	Waited    int        // processes that it waited for
	CutTime   time.Time  // of the cut that the name stands for; zero if there was none
	Snapshots []Snapshot // in the order of the volumes; none if aborted
}

// Snapshot is a snapshot as the lists have it.
type Snapshot struct {
	Name        string
	State       volume.State
	Consistency volume.Consistency
	Conflicts   uint64
	Torn        []string
	SizeBytes   int64
}

// What an Answer says beside volume.ErrDrainingLimit.
var (
	ErrAborted  = errors.New("aborted")
	ErrDraining = errors.New("draining")
	ErrExists   = errors.New("exists")
)

// bare is volume.Engine over volume.Memory, with names.
type bare struct {
	engine *volume.Engine
	keeper *namingKeeper
	disks  map[string]*volume.Volume
}

// NewEngine returns a Target that is a bare volume.Engine in memory.
func NewEngine(maxDraining int) Target {
	b := &bare{keeper: &namingKeeper{names: map[*volume.VLUN]string{}}, disks: map[string]*volume.Volume{}}
	b.engine = volume.New(b.keeper, maxDraining)
	return b
}

// namingKeeper is volume.Memory that remembers names.
type namingKeeper struct {
	volume.Memory
	mu    sync.Mutex
	names map[*volume.VLUN]string
}

// Prepare implements volume.Keeper.
func (n *namingKeeper) Prepare(p volume.Plan) ([]volume.Next, error) {
	n.mu.Lock()
	for i, v := range p.Volumes {
		if p.Replaces != nil {
			delete(n.names, p.Replaces.VLUNs()[i])
		}
		vluns := v.VLUNs()
		n.names[vluns[len(vluns)-1]] = p.Name
	}
	n.mu.Unlock()
	return n.Memory.Prepare(p)
}

// Discard implements volume.Keeper.
func (n *namingKeeper) Discard(p *volume.Preserve) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range p.VLUNs() {
		delete(n.names, k)
	}
	return nil
}

func (b *bare) Create(name string, sizeBytes int64) (err error) {
	b.disks[name], err = b.engine.AddVolume(b.keeper.Config(name, sizeBytes, volume.ScopeRequest))
	return err
}

func (b *bare) Delete(name string) error {
	if err := b.engine.RemoveVolume(b.disks[name], func() error { return nil }); err != nil {
		return err
	}
	delete(b.disks, name)
	return nil
}

func (b *bare) Resize(name string, sizeBytes int64) error {
	return b.engine.Resize(b.disks[name], sizeBytes, func() error { return nil })
}

func (b *bare) Open(export string) (*volume.View, error) {
	if name, snapshot, ok := strings.Cut(export, "@"); ok {
		for _, k := range b.disks[name].VLUNs() {
			if k.Cut() && b.keeper.name(k) == snapshot { // named before its cut, and a snapshot from it on
				return k.Open()
			}
		}
		return nil, fmt.Errorf("no snapshot %s", export)
	}
	name, suffix, _ := strings.Cut(export, ":")
	v := b.disks[name]
	switch token, explicit := strings.CutPrefix(suffix, "process:"); {
	case explicit:
		p, err := b.engine.Process(volume.Token(token))
		if err != nil {
			return nil, err
		}
		return p.Open(v)
	case suffix == "session":
		return v.OpenSession()
	default:
		return v.Open()
	}
}

func (n *namingKeeper) name(k *volume.VLUN) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names[k]
}

func (b *bare) Begin(token string, volumes []string) error {
	var list []*volume.Volume
	for _, name := range volumes {
		list = append(list, b.disks[name])
	}
	_, err := b.engine.Begin(volume.Token(token), list)
	return err
}

func (b *bare) End(token string, torn bool) error {
	p, err := b.engine.Process(volume.Token(token))
	if err == nil {
		p.End(torn)
	}
	return err
}

func (b *bare) Preserve(c Command) Answer {
	var list []*volume.Volume
	for _, name := range c.Volumes {
		list = append(list, b.disks[name])
	}
	r, err := b.engine.Preserve(list, volume.PreserveOptions{
		Name: c.Name, Wait: c.Wait, OnTimeout: c.OnTimeout, OnConflict: c.OnConflict,
	})
	if errors.Is(err, volume.ErrDrainingLimit) {
		err = volume.ErrDrainingLimit
	}
	if err != nil {
		return Answer{Err: err}
	}
	a := Answer{Waited: r.Waited, CutTime: r.CutTime}
	if r.Aborted {
		a.Err = ErrAborted
	}
	for _, k := range r.VLUNs {
		s := b.snapshot(k)
		s.Consistency = r.Consistency
		if a.Snapshots = append(a.Snapshots, s); s.State == volume.Draining {
			a.Err = ErrDraining
		}
	}
	return a
}

func (b *bare) snapshot(k *volume.VLUN) Snapshot {
	s := Snapshot{Name: b.keeper.name(k), State: k.State(), Conflicts: k.Conflicts(), SizeBytes: k.SizeBytes()}
	for _, t := range k.Torn() {
		s.Torn = append(s.Torn, string(t))
	}
	slices.Sort(s.Torn)
	return s
}

// Snapshots leaves the consistency out: a bare engine tells it once, in the
// answer.
func (b *bare) Snapshots(name string) (list []Snapshot, err error) {
	for _, k := range b.disks[name].VLUNs() {
		if k.Cut() && b.keeper.name(k) != "" {
			list = append(list, b.snapshot(k))
		}
	}
	return list, nil
}

func (b *bare) Close() error { return b.engine.Close() }

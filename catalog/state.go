package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/internal/lazy"
	"github.com/tidemark/tidemark/lookup"
)

// decodeState makes a State of all records, in key order, as the bbolt
// transaction left them. Its error joins all that is wrong, each ErrCorrupt or
// ErrFormat.
func decodeState(records []record, transaction uint64) (meta, State, error) {
	var (
		m     meta
		state = State{FormatVersion: formatVersion}
		sum   uint64
		wrong []error
		links []Link
		metas int
	)
	for _, r := range records {
		var crc uint32
		var err error
		switch {
		case len(r.key) == 1 && r.key[0] == metaKey[0]:
			metas++
			_, err = decode(r.key, r.value, &m)
		case len(r.key) == 9 && r.key[0] == volumePrefix:
			v := VolumeState{Volume: Volume{ID: VolumeID(binary.BigEndian.Uint64(r.key[1:]))}}
			crc, err = decode(r.key, r.value, &v.Volume)
			state.Volumes = append(state.Volumes, v)
		case len(r.key) == 17 && r.key[0] == linkPrefix:
			l := linkOf(r.key)
			crc, err = decode(r.key, r.value, &l)
			links = append(links, l)
		case len(r.key) > 1 && r.key[0] == schedulePrefix:
			x := Schedule{Target: string(r.key[1:])}
			crc, err = decode(r.key, r.value, &x)
			state.Schedules = append(state.Schedules, x)
		case len(r.key) > 1 && r.key[0] == groupPrefix:
			g := Group{Name: string(r.key[1:])}
			crc, err = decode(r.key, r.value, &g)
			state.Groups = append(state.Groups, g)
		default:
			err = fmt.Errorf("%w: record %x: no such kind", ErrCorrupt, r.key)
		}
		if err != nil {
			wrong = append(wrong, err)
		}
		sum += uint64(crc)
	}
	if metas == 0 {
		wrong = append(wrong, fmt.Errorf("%w: the meta record is missing", ErrCorrupt))
	}
	if len(wrong) > 0 { // what follows would only repeat it
		return meta{}, State{}, errors.Join(wrong...)
	}
	if n := uint64(len(records) - 1); n != m.Records || sum != m.Sum {
		return meta{}, State{}, fmt.Errorf("%w: %d records of sum %x are there, %d of sum %x were committed", ErrCorrupt, n, sum, m.Records, m.Sum)
	}
	if m.Transaction != transaction {
		return meta{}, State{}, fmt.Errorf("%w: the records are of transaction %d, the last is %d", ErrCorrupt, m.Transaction, transaction)
	}
	state.DirID, state.Seen = m.DirID, m.Seen
	if err := errors.Join(joinChains(&state, links, m.counters), checkGroups(state)); err != nil {
		return meta{}, State{}, err
	}
	return m, state, nil
}

// joinChains gives each volume its links, both in the order of their keys, and
// holds them to the rules of a chain.
func joinChains(state *State, links []Link, next counters) error {
	var wrong []error
	note := func(err error) {
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%w: %v", ErrCorrupt, err))
		}
	}
	names := make(map[string]VolumeID)
	for i := range state.Volumes {
		v := &state.Volumes[i]
		for len(links) > 0 && links[0].Volume < v.ID {
			note(fmt.Errorf("link of image %d: no volume %d", links[0].Image, links[0].Volume))
			links = links[1:]
		}
		n := 0
		for n < len(links) && links[n].Volume == v.ID {
			n++
		}
		v.Chain, links = links[:n:n], links[n:]

		note(v.check(next))
		if other, taken := names[v.Name]; taken && v.named() {
			note(fmt.Errorf("volumes %d and %d: both have the name %q", other, v.ID, v.Name))
		}
		if v.named() {
			names[v.Name] = v.ID
		}
		for _, err := range checkChain(v.Chain, v.ID, next) {
			note(err)
		}
		if n > 0 {
			v.Chain[n-1].SizeBytes = v.SizeBytes
		}
	}
	for _, l := range links {
		note(fmt.Errorf("link of image %d: no volume %d", l.Image, l.Volume))
	}
	checkSchedules(state, note)
	return errors.Join(wrong...)
}

// checkChain holds a chain to its rules: it has a tip, which is not sealed and
// bears no name; sealed images come first; snapshot names differ.
func checkChain(chain []Link, v VolumeID, next counters) (wrong []error) {
	if len(chain) == 0 {
		return []error{fmt.Errorf("volume %d: it has no image", v)}
	}
	names := make(map[string]image.ID)
	for i, l := range chain {
		if err := l.check(next); err != nil {
			wrong = append(wrong, err)
		}
		if i > 0 && l.Sealed && !chain[i-1].Sealed {
			wrong = append(wrong, fmt.Errorf("volume %d: image %d is sealed, the older %d is not", v, l.Image, chain[i-1].Image))
		}
		if l.Snapshot == nil {
			continue
		}
		if other, taken := names[l.Snapshot.Name]; taken {
			wrong = append(wrong, fmt.Errorf("volume %d: images %d and %d both have the name %q", v, other, l.Image, l.Snapshot.Name))
		}
		names[l.Snapshot.Name] = l.Image
	}
	if tip := chain[len(chain)-1]; tip.Sealed || tip.Snapshot != nil {
		wrong = append(wrong, fmt.Errorf("volume %d: it has no tip: its last image, %d, is sealed or a snapshot", v, tip.Image))
	}
	return wrong
}

// checkGroups holds the groups to what they name: volumes that there are, each in
// one group at most that is the default of its processes.
func checkGroups(state State) error {
	var wrong []error
	note := func(err error) {
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%w: %v", ErrCorrupt, err))
		}
	}
	defaults := make(map[string]string) // by volume; empty: it has none
	for _, v := range state.Volumes {
		if !v.Past && !v.Staged {
			defaults[v.Name] = ""
		}
	}
	for _, g := range state.Groups {
		note(g.check())
		for _, name := range g.Volumes {
			other, there := defaults[name]
			switch {
			case !there:
				note(fmt.Errorf("group %q: no volume has the name %q", g.Name, name))
			case g.Default && other != "":
				note(fmt.Errorf("groups %q and %q: both are the default of volume %q", other, g.Name, name))
			case g.Default:
				defaults[name] = g.Name
			}
		}
	}
	return errors.Join(wrong...)
}

// check looks at what a group says by itself.
func (g Group) check() error {
	if len(g.Volumes) == 0 {
		return fmt.Errorf("group %q: it has no volume", g.Name)
	}
	last := ""
	for _, name := range g.Volumes {
		if name <= last {
			return fmt.Errorf("group %q: its volumes do not ascend: %q follows %q", g.Name, name, last)
		}
		last = name
	}
	return nil
}

// check looks at what a volume says by itself.
func (v Volume) check(next counters) error {
	switch {
	case v.ID == 0 || v.ID >= next.NextVolume:
		return fmt.Errorf("volume %d: the id was never drawn", v.ID)
	case v.Name == "":
		return fmt.Errorf("volume %d: it has no name", v.ID)
	case v.SizeBytes <= 0:
		return fmt.Errorf("volume %d: its size is %d bytes", v.ID, v.SizeBytes)
	case v.Scope != "request" && v.Scope != "session":
		return fmt.Errorf("volume %d: its scope is %q, not request or session", v.ID, v.Scope)
	case v.Past && v.Staged:
		return fmt.Errorf("volume %d: it is past, and still being received", v.ID)
	}
	return nil
}

// check looks at what a link says by itself.
func (l Link) check(next counters) error {
	switch s := l.Snapshot; {
	case l.Image == 0 || l.Image >= next.NextImage:
		return fmt.Errorf("link of image %d: the id was never drawn", l.Image)
	case l.SizeBytes <= 0:
		return fmt.Errorf("link of image %d: its size is %d bytes", l.Image, l.SizeBytes)
	case l.Sealed != hashForm().MatchString(l.Hash) || !l.Sealed && l.Hash != "":
		return fmt.Errorf("link of image %d: sealed=%v, and its hash is %q", l.Image, l.Sealed, l.Hash)
	case l.Sealed && l.Table == 0:
		return fmt.Errorf("link of image %d: sealed=%v, and its table was written %d times", l.Image, l.Sealed, l.Table)
	case !l.Sealed && (l.Punched || l.Due):
		return fmt.Errorf("link of image %d: punched=%v, due=%v, and it is not sealed", l.Image, l.Punched, l.Due)
	case l.Punched && s != nil:
		return fmt.Errorf("link of image %d: it is punched and has the snapshot %q", l.Image, s.Name)
	case len(l.Bad) > MostBadRuns || !runsAscend(l.Bad):
		return fmt.Errorf("link of image %d: its %d runs of bad blocks do not ascend, or are more than %d", l.Image, len(l.Bad), MostBadRuns)
	case s == nil:
		return nil
	case s.Name == "":
		return fmt.Errorf("link of image %d: its snapshot has no name", l.Image)
	case s.Cut == 0 || s.Cut >= next.NextCut:
		return fmt.Errorf("link of image %d: the cut id %d was never drawn", l.Image, s.Cut)
	case s.Drill != nil && (len(s.Drill.Command) > MostDrillCommandBytes || len(s.Drill.Output) > MostDrillOutputBytes):
		return fmt.Errorf("link of image %d: the drill of its snapshot has a command of %d bytes and %d of output, more than allowed", l.Image, len(s.Drill.Command), len(s.Drill.Output))
	case s.State != "draining" && s.State != "sealing" && s.State != "sealed":
		return fmt.Errorf("link of image %d: the state of its snapshot is %q, not draining, sealing or sealed", l.Image, s.State)
	case hasKey(s.Labels, ""):
		return fmt.Errorf("link of image %d: a label of its snapshot has no key", l.Image)
	}
	return nil
}

func hasKey(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}

var hashForm = lazy.Regexp(`^[0-9a-f]{64}$`)

func runsAscend(runs []Run) bool {
	end := lookup.BlockNum(0)
	for _, r := range runs {
		if r.Block < end || r.Count == 0 || r.Count > lookup.MaxBlocks || r.Block > lookup.MaxBlocks-lookup.BlockNum(r.Count) {
			return false
		}
		end = r.Block + lookup.BlockNum(r.Count)
	}
	return true
}

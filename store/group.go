package store

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/catalog"
)

// GroupInfo describes a group: volumes under one name, that are preserved, cloned
// and rolled back together. A volume may be in many.
type GroupInfo struct {
	Name    string
	Volumes []string // by name; at least one
	// Default: a process that names one of its volumes names them all. A volume is in
	// one such group at most.
	Default bool
	Created time.Time
}

// Allow is asked, in the midst of a command, whether its caller may do it to the
// volumes that a group stands for just then; group is empty for volumes that the
// command is about to make. Its error is the command's, which then changes nothing.
// It holds locks of the Store meanwhile, so an Allow may not call that. Nil allows
// all.
type Allow func(group string, volumes ...string) error

func (a Allow) ask(group string, volumes ...string) error {
	if a == nil {
		return nil
	}
	return a(group, volumes...)
}

// CreateGroup makes a group of volumes. A group follows the names of its volumes: a
// rollback changes nothing in it, a volume that is deleted leaves it, and with its
// last volume it goes. Errors: ErrInvalid, ErrNotFound, ErrExists (also if isDefault
// and a volume has a default group).
func (s *Store) CreateGroup(name string, volumes []string, isDefault bool) (GroupInfo, error) {
	if err := checkName("group", name); err != nil {
		return GroupInfo{}, err
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if err := s.groupFree(name); err != nil {
		return GroupInfo{}, err
	}
	g := catalog.Group{Name: name, Default: isDefault, Created: time.Now().UTC()}
	return s.recordGroup(g, volumes)
}

func (s *Store) groupFree(name string) error {
	switch _, err := s.Group(name); {
	case err == nil:
		return fmt.Errorf("group %s %w: choose another name", name, ErrExists)
	case errors.Is(err, ErrNotFound):
		return nil
	default:
		return err
	}
}

// ChangeGroup takes volumes out of a group and puts others into it, in one step. It
// asks allow for all that are in it before or after. Errors: ErrInvalid (also if
// none would be left), ErrNotFound, ErrExists (it is in it, or has another default
// group).
func (s *Store) ChangeGroup(name string, add, remove []string, allow Allow) (GroupInfo, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	g, err := s.groupFor(name, allow, add...)
	if err != nil {
		return GroupInfo{}, err
	}
	left := slices.Clone(g.Volumes)
	for _, v := range remove {
		i := slices.Index(left, v)
		if i < 0 {
			return GroupInfo{}, fmt.Errorf("volume %s %w in group %s", v, ErrNotFound, name)
		}
		left = slices.Delete(left, i, i+1)
	}
	for _, v := range add {
		if slices.Contains(left, v) {
			return GroupInfo{}, fmt.Errorf("volume %s %w in group %s", v, ErrExists, name)
		}
	}
	if left = append(left, add...); len(left) == 0 {
		return GroupInfo{}, fmt.Errorf("%w: group %s would have no volume left: delete it instead", ErrInvalid, name)
	}
	return s.recordGroup(g, left)
}

// DeleteGroup deletes a group, and none of its volumes. Errors: ErrNotFound.
func (s *Store) DeleteGroup(name string, allow Allow) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if _, err := s.groupFor(name, allow); err != nil {
		return err
	}
	if err := s.catalog.Update(func(tx *catalog.Tx) error { return dropGroup(tx, name) }); err != nil {
		return fmt.Errorf("delete group %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetGroupLocked(name)
	return nil
}

// dropGroup records that a group is no more, nor its schedule.
func dropGroup(tx *catalog.Tx, name string) error {
	return errors.Join(tx.DeleteGroup(name), tx.DeleteSchedule(GroupTarget+name))
}

// forgetGroupLocked is dropGroup in memory.
func (s *Store) forgetGroupLocked(name string) {
	delete(s.groups, name)
	s.schedules.forgetLocked(GroupTarget + name)
}

// groupFor returns a group that the caller may change, with those volumes more.
func (s *Store) groupFor(name string, allow Allow, more ...string) (catalog.Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.groupLocked(name)
	if err == nil {
		err = allow.ask(name, slices.Concat(g.Volumes, more)...)
	}
	return g, err
}

// recordGroup makes a group of volumes, or replaces one. Store.admin is held, so no
// volume comes or goes.
func (s *Store) recordGroup(g catalog.Group, volumes []string) (GroupInfo, error) {
	if len(volumes) == 0 {
		return GroupInfo{}, fmt.Errorf("%w: group %s has no volume: name at least one", ErrInvalid, g.Name)
	}
	g.Volumes = slices.Sorted(slices.Values(volumes))
	for i, v := range g.Volumes {
		if i > 0 && v == g.Volumes[i-1] {
			return GroupInfo{}, fmt.Errorf("%w: volume %s is named twice", ErrInvalid, v)
		}
		if err := s.joins(v, g); err != nil {
			return GroupInfo{}, err
		}
	}
	if err := s.catalog.Update(func(tx *catalog.Tx) error { return tx.PutGroup(g) }); err != nil {
		return GroupInfo{}, fmt.Errorf("group %s: %w", g.Name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[g.Name] = g
	return groupInfo(g), nil
}

// joins tells why a volume can't be in a group.
func (s *Store) joins(name string, g catalog.Group) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.diskLocked(name); err != nil {
		return err
	}
	if other := s.defaultLocked(name); g.Default && other != "" && other != g.Name {
		return fmt.Errorf("the default group of volume %s %w: it is %s", name, ErrExists, other)
	}
	return nil
}

// defaultLocked is the group whose volumes a process of this one names, empty if
// there is none; Store.mu is held.
func (s *Store) defaultLocked(name string) string {
	for _, g := range s.groupsOfLocked(name) {
		if g.Default {
			return g.Name
		}
	}
	return ""
}

// groupsOfLocked lists the groups that a volume is in, by name; Store.mu is held.
func (s *Store) groupsOfLocked(volumeName string) (list []catalog.Group) {
	for _, g := range s.groups {
		if slices.Contains(g.Volumes, volumeName) {
			list = append(list, g)
		}
	}
	slices.SortFunc(list, func(a, b catalog.Group) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Group describes a group, or ErrNotFound.
func (s *Store) Group(name string) (GroupInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.groupLocked(name)
	return groupInfo(g), err
}

func (s *Store) groupLocked(name string) (catalog.Group, error) {
	if s.closed {
		return catalog.Group{}, ErrClosed
	}
	if g, ok := s.groups[name]; ok {
		return g, nil
	}
	return catalog.Group{}, fmt.Errorf("group %s %w", name, ErrNotFound)
}

// Groups lists the groups by name.
func (s *Store) Groups() []GroupInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]GroupInfo, 0, len(s.groups))
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		list = append(list, groupInfo(s.groups[name]))
	}
	return list
}

func groupInfo(g catalog.Group) GroupInfo {
	return GroupInfo{Name: g.Name, Volumes: slices.Clone(g.Volumes), Default: g.Default, Created: g.Created}
}

// withGroupsLocked adds the volumes of groups to volumes, each once; Store.mu is held.
func (s *Store) withGroupsLocked(volumes, groups []string, allow Allow) ([]string, error) {
	all := slices.Clone(volumes)
	for _, name := range groups {
		g, err := s.groupLocked(name)
		if err == nil {
			err = allow.ask(name, g.Volumes...)
		}
		if err != nil {
			return nil, err
		}
		for _, v := range g.Volumes {
			if !slices.Contains(all, v) {
				all = append(all, v)
			}
		}
	}
	return all, nil
}

// leftBy are the groups of a volume as they are without it; Store.mu is held.
func (s *Store) leftBy(volumeName string) []catalog.Group {
	list := s.groupsOfLocked(volumeName)
	for i, g := range list {
		list[i].Volumes = slices.DeleteFunc(slices.Clone(g.Volumes), func(v string) bool { return v == volumeName })
	}
	return list
}

// leaveGroups records that a volume is in no group any more; Store.mu is held.
func (s *Store) leaveGroups(tx *catalog.Tx, volumeName string) error {
	for _, g := range s.leftBy(volumeName) {
		record := func() error { return tx.PutGroup(g) }
		if len(g.Volumes) == 0 {
			record = func() error { return dropGroup(tx, g.Name) }
		}
		if err := record(); err != nil {
			return err
		}
	}
	return nil
}

// leftGroupsLocked is leaveGroups in memory.
func (s *Store) leftGroupsLocked(volumeName string) {
	for _, g := range s.leftBy(volumeName) {
		s.groups[g.Name] = g
		if len(g.Volumes) == 0 {
			s.forgetGroupLocked(g.Name)
		}
	}
}

// selection lists snapshots, as VOLUME@SNAPSHOT; Store.mu is held.
type selection func() (fulls []string, err error)

// only selects one snapshot.
func only(full string) selection { return func() ([]string, error) { return []string{full}, nil } }

// snapshotsOf selects the snapshots of a group, given as GROUP@SNAPSHOT: one of each
// of its volumes, all of one cut.
func (s *Store) snapshotsOf(full string, allow Allow) selection {
	return func() (fulls []string, err error) {
		group, name, ok := strings.Cut(full, "@")
		if !ok || group == "" || name == "" {
			return nil, fmt.Errorf("%w: snapshot %q of a group: give it as GROUP@SNAPSHOT", ErrInvalid, full)
		}
		g, err := s.groupLocked(group)
		if err == nil {
			err = allow.ask(group, g.Volumes...)
		}
		if err != nil {
			return nil, err
		}
		var first *snapshot
		for _, v := range g.Volumes {
			_, _, snap, err := s.snapshotLocked(v + "@" + name)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%w, and group %s can't do without: preserve with --group %s", err, group, group)
			case first == nil:
				first = snap
			case snap.cut != first.cut:
				return nil, fmt.Errorf("%w: %s and %s@%s are of two preserves: only snapshots of one cut stand for group %s", ErrInvalid, fulls[0], v, name, group)
			}
			fulls = append(fulls, v+"@"+name)
		}
		return fulls, nil
	}
}

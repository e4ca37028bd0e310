package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// grouped is a store with volumes a, b and c, and a group g of a and b.
func grouped(t *testing.T, dir string, o store.Options) *store.Store {
	t.Helper()
	s := openWith(t, dir, o)
	for _, name := range []string{"a", "b", "c"} {
		if _, err := s.CreateVolume(name, 1<<20, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CreateGroup("g", []string{"b", "a"}, false); err != nil {
		t.Fatal(err)
	}
	return s
}

// put writes a letter to the first block of volumes, and flushes.
func put(t *testing.T, s *store.Store, letter byte, volumes ...string) {
	t.Helper()
	for _, name := range volumes {
		w, err := s.OpenView(name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, w, 0, letter)
		if err := errors.Join(w.Flush(), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// letters reads the first byte of each.
func letters(t *testing.T, s *store.Store, names ...string) string {
	t.Helper()
	var all bytes.Buffer
	for _, name := range names {
		w, err := s.OpenView(name)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1)
		if _, err := w.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		all.Write(got)
		_ = w.Close()
	}
	return all.String()
}

func preserveGroup(t *testing.T, s *store.Store, name string) {
	t.Helper()
	r := store.PreserveRequest{Groups: []string{"g"}, Name: name, Wait: time.Minute, UntilSealed: true}
	if _, err := s.Preserve(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func wantGroups(t *testing.T, s *store.Store, want ...string) {
	t.Helper()
	var got []string
	for _, g := range s.Groups() {
		got = append(got, fmt.Sprintf("%s%v", g.Name, g.Volumes))
	}
	if !slices.Equal(got, want) {
		t.Errorf("groups %v, want %v", got, want)
	}
}

func TestAGroupFollowsTheNamesOfItsVolumes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := grouped(t, dir, store.Options{})
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.CreateGroup("h", []string{"c"}, true))
	must(s.ChangeGroup("g", []string{"c"}, []string{"b"}, nil))
	wantGroups(t, s, "g[a c]", "h[c]")
	mustSeal(t, s, "s", "c")
	must(s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "c@s", Keep: "k"}))
	wantGroups(t, s, "g[a c]", "h[c]")
	preserveGroup(t, s, "after")
	if _, err := s.Snapshot("c@after"); err != nil {
		t.Error(err)
	}
	reopen := func() {
		t.Helper()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r, err := store.Check(dir, nil, store.CheckOptions{}); err != nil || len(r.Findings) > 0 {
			t.Fatalf("check: %q, %v", r.Findings, err)
		}
		s = openWith(t, dir, store.Options{})
	}
	reopen()
	wantGroups(t, s, "g[a c]", "h[c]")
	must(nil, s.DeleteVolume("c", true)) // and it leaves its groups, of which one has no other
	wantGroups(t, s, "g[a]")
	must(s.CreateVolume("c", 1<<20, volume.ScopeRequest))
	wantGroups(t, s, "g[a]")
	reopen()
	wantGroups(t, s, "g[a]")
	must(nil, s.DeleteGroup("g", nil))
	reopen()
	wantGroups(t, s)
	if len(s.Volumes()) != 3 {
		t.Errorf("%d volumes, want all 3", len(s.Volumes()))
	}
}

func TestAGroupThatCannotBeIsRefusedAndChangesNothing(t *testing.T) {
	s := grouped(t, filepath.Join(t.TempDir(), "data"), store.Options{})
	if _, err := s.CreateGroup("d", []string{"c"}, true); err != nil {
		t.Fatal(err)
	}
	denied := errors.New("denied")
	asked := func(_ string, volumes ...string) error {
		if slices.Contains(volumes, "b") {
			return denied
		}
		return nil
	}
	before := s.Groups()
	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"a bad name":                  {second(s.CreateGroup("a/b", []string{"a"}, false)), store.ErrInvalid},
		"no volume":                   {second(s.CreateGroup("n", nil, false)), store.ErrInvalid},
		"a volume twice":              {second(s.CreateGroup("n", []string{"a", "a"}, false)), store.ErrInvalid},
		"an unknown volume":           {second(s.CreateGroup("n", []string{"a", "x"}, false)), store.ErrNotFound},
		"a name that is taken":        {second(s.CreateGroup("g", []string{"c"}, false)), store.ErrExists},
		"a second default group":      {second(s.CreateGroup("n", []string{"a", "c"}, true)), store.ErrExists},
		"an unknown group":            {second(s.ChangeGroup("n", []string{"a"}, nil, nil)), store.ErrNotFound},
		"to add what is in it":        {second(s.ChangeGroup("g", []string{"a"}, nil, nil)), store.ErrExists},
		"to add what there is not":    {second(s.ChangeGroup("g", []string{"x"}, nil, nil)), store.ErrNotFound},
		"to remove what is not in it": {second(s.ChangeGroup("g", nil, []string{"c"}, nil)), store.ErrNotFound},
		"to remove all":               {second(s.ChangeGroup("g", nil, []string{"a", "b"}, nil)), store.ErrInvalid},
		"to delete what there is not": {s.DeleteGroup("n", nil), store.ErrNotFound},
		"a change without the right":  {second(s.ChangeGroup("g", []string{"c"}, nil, asked)), denied},
		"a delete without the right":  {s.DeleteGroup("g", asked), denied},
		"a preserve without it":       {second(s.Preserve(t.Context(), store.PreserveRequest{Groups: []string{"g"}, Allow: asked})), denied},
		"a preserve of no group":      {second(s.Preserve(t.Context(), store.PreserveRequest{Groups: []string{"n"}})), store.ErrNotFound},
		"a process without it":        {second(s.Begin(store.ProcessRequest{Groups: []string{"g"}, Allow: asked})), denied},
		"a process of no group":       {second(s.Begin(store.ProcessRequest{Groups: []string{"n"}})), store.ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	if after := s.Groups(); !reflect.DeepEqual(after, before) {
		t.Errorf("%+v, want %+v", after, before)
	}
	if list, _ := s.Snapshots(""); len(list)+len(s.Processes()) > 0 {
		t.Errorf("snapshots %+v, processes %+v", list, s.Processes())
	}
}

func TestAGroupIsClonedAndRolledBackAsOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := grouped(t, dir, store.Options{})
	put(t, s, 'x', "a", "b", "c")
	preserveGroup(t, s, "s")
	put(t, s, 'y', "a", "b", "c")
	clones, err := s.CloneGroup(t.Context(), "g@s", "try", nil)
	if err != nil || len(clones) != 2 || clones[0].Name != "try-a" || clones[1].Name != "try-b" {
		t.Fatalf("%+v, %v", clones, err)
	}
	r, err := s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@s", Keep: "k"}, nil)
	if err != nil || len(r.Volumes) != 2 || !slices.Equal(r.Kept, []string{"a@k", "b@k"}) {
		t.Fatalf("%+v, %v", r, err)
	}
	put(t, s, 'z', "try-a")
	check := func() {
		t.Helper()
		names := []string{"a", "b", "c", "a@k", "b@k", "a@s", "b@s", "try-a", "try-b"}
		if got := letters(t, s, names...); got != "xxyyyxxzx" {
			t.Errorf("%v hold %q", names, got)
		}
		wantGroups(t, s, "g[a b]", "try[try-a try-b]")
	}
	check()
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = openWith(t, dir, store.Options{})
	check()
	r, err = s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@k", Discard: true}, nil)
	if err != nil || len(r.Kept) > 0 || letters(t, s, "a", "b") != "yy" {
		t.Errorf("%+v, %v, and then a and b hold %q", r, err, letters(t, s, "a", "b"))
	}
}

func TestOnlyOneCutStandsForAGroup(t *testing.T) {
	s := grouped(t, filepath.Join(t.TempDir(), "data"), store.Options{})
	mustSeal(t, s, "two", "a")
	mustSeal(t, s, "two", "b")
	mustSeal(t, s, "half", "a")
	preserveGroup(t, s, "one")
	if _, err := s.CreateVolume("taken-b", 1<<20, volume.ScopeRequest); err != nil {
		t.Fatal(err)
	}
	before := s.Exports()
	w := openView(t, s, "b")
	clone := func(full, group string) error { return second(s.CloneGroup(t.Context(), full, group, nil)) }
	rollback := func(full, keep string) error {
		return second(s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: full, Keep: keep}, nil))
	}
	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"a clone of two cuts":                {clone("g@two", "n"), store.ErrInvalid},
		"a clone of half a cut":              {clone("g@half", "n"), store.ErrNotFound},
		"a clone of a volume":                {clone("g", "n"), store.ErrInvalid},
		"a clone of no group":                {clone("n@one", "m"), store.ErrNotFound},
		"a clone as a group that there is":   {clone("g@one", "g"), store.ErrExists},
		"a clone as a volume that there is":  {clone("g@one", "taken"), store.ErrExists},
		"a clone with a name too long":       {clone("g@one", string(bytes.Repeat([]byte{'n'}, 62))), store.ErrInvalid},
		"a rollback to two cuts":             {rollback("g@two", ""), store.ErrInvalid},
		"a rollback to half a cut":           {rollback("g@half", ""), store.ErrNotFound},
		"a rollback of a volume in use":      {rollback("g@one", ""), store.ErrInUse},
		"a rollback that keeps under a name": {rollback("g@one", "half"), store.ErrExists},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	if after := s.Exports(); !slices.Equal(after, before) {
		t.Errorf("%v, want %v", after, before)
	}
	put(t, s, 'x', "a", "b") // nothing stays frozen
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := rollback("g@one", "half"); !errors.Is(err, store.ErrExists) {
		t.Errorf("a rollback that keeps under a name that is taken: %v", err)
	}
	put(t, s, 'y', "a", "b")
}

func TestAProcessOfAVolumeNamesAllOfItsDefaultGroup(t *testing.T) {
	s := grouped(t, filepath.Join(t.TempDir(), "data"), store.Options{})
	begin := func(r store.ProcessRequest) []string {
		t.Helper()
		p, err := s.Begin(r)
		if err != nil {
			t.Fatal(err)
		}
		return p.Volumes
	}
	if got := begin(store.ProcessRequest{Groups: []string{"g"}, Volumes: []string{"b"}}); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("a process of the group and b names %v", got)
	}
	if got := begin(store.ProcessRequest{Volumes: []string{"b"}}); !slices.Equal(got, []string{"b"}) {
		t.Errorf("a process of b names %v", got)
	}
	if _, err := s.CreateGroup("d", []string{"b", "c"}, true); err != nil {
		t.Fatal(err)
	}
	if got := begin(store.ProcessRequest{Volumes: []string{"b"}}); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("a process of b, whose default group is d, names %v", got)
	}
	if got := begin(store.ProcessRequest{Groups: []string{"g"}}); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("a process of g, of which b has the default group d, names %v", got)
	}
	_, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"c"}, Name: "s", OnTimeout: volume.TimeoutKeep})
	if !errors.Is(err, store.ErrDraining) {
		t.Errorf("a preserve of c waits for nobody: %v", err)
	}
}

// What one volume has of a preserve is whole and sealed while it waits for another
// volume's processes, but may be given up yet.
func TestASnapshotWhosePreserveStillWaitsForAnotherVolumeIsNeitherDeletedClonedNorCompared(t *testing.T) {
	for _, ends := range []string{"the process ends", "the preserve is given up"} {
		t.Run(ends, func(t *testing.T) {
			dir := t.TempDir()
			s := grouped(t, dir, store.Options{})
			put(t, s, 'x', "a", "b")
			mustSeal(t, s, "before", "a")
			if _, err := s.BeginProcess([]string{"b"}, "p"); err != nil {
				t.Fatal(err)
			}
			preserved := make(chan error, 1)
			go func() {
				_, err := s.Preserve(context.Background(), store.PreserveRequest{Groups: []string{"g"}, Name: "s", Wait: time.Hour, OnConflict: volume.ConflictAbort})
				preserved <- err
			}()
			for s.WaitSealed(t.Context(), "a@s") != nil { // there is none yet
				runtime.Gosched()
			}
			if err := s.DeleteSnapshots("a@s"); !errors.Is(err, store.ErrDraining) {
				t.Errorf("delete: %v", err)
			}
			if _, err := s.Clone(t.Context(), "a@s", "d"); !errors.Is(err, store.ErrDraining) {
				t.Errorf("clone: %v", err)
			}
			if err := s.Diff("a@before", "a@s", func(store.DiffExtent) error { return nil }); !errors.Is(err, store.ErrDraining) {
				t.Errorf("diff: %v", err)
			}
			if drilled, _, err := s.BeginDrill(t.Context(), "a"); err != nil || drilled != "a@before" {
				t.Errorf("a drill of %s, %v", drilled, err)
			}
			put(t, s, 'y', "a", "b")
			if ends == "the process ends" {
				if _, err := s.EndProcess("p", false); err != nil {
					t.Fatal(err)
				}
				if err := <-preserved; err != nil {
					t.Fatal(err)
				}
				if got := letters(t, s, "a@s", "b@s"); got != "xx" {
					t.Errorf("the snapshots hold %q", got)
				}
				if err := s.DeleteSnapshots("a@s"); err != nil {
					t.Error(err)
				}
			} else {
				letters(t, s, "b:process:p") // which 'y' is newer than
				if err := <-preserved; !errors.Is(err, store.ErrAborted) {
					t.Fatal(err)
				}
				if err := s.DeleteSnapshots("a@s"); !errors.Is(err, store.ErrNotFound) {
					t.Error(err)
				}
			}
			s.AwaitPunches()
			if err := s.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir)
			if got := letters(t, s, "a", "b", "a@before"); got != "yyx" {
				t.Errorf("opened again it holds %q", got)
			}
		})
	}
}

// A preserve of the group finds all its volumes before a rollback, or all after it.
func TestAPreserveOfAGroupBesideItsRollbackIsOfOneState(t *testing.T) {
	s := grouped(t, filepath.Join(t.TempDir(), "data"), store.Options{})
	put(t, s, 'x', "a", "b")
	preserveGroup(t, s, "x")
	put(t, s, 'y', "a", "b")
	preserveGroup(t, s, "y")
	var both sync.WaitGroup
	ended := make(chan struct{})
	both.Go(func() {
		defer close(ended)
		for i := range 20 {
			to := []string{"g@x", "g@y"}[i%2]
			if _, err := s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: to, Keep: fmt.Sprint("k", i)}, nil); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var names []string
	for i := 0; ; i++ {
		name := fmt.Sprint("p", i)
		r := store.PreserveRequest{Groups: []string{"g"}, Name: name, Wait: time.Minute}
		if _, err := s.Preserve(t.Context(), r); err != nil {
			t.Error(err)
			break
		}
		names = append(names, name)
		select {
		case <-ended:
		default:
			continue
		}
		break
	}
	both.Wait()
	for _, name := range names {
		if got := letters(t, s, "a@"+name, "b@"+name); got != "xx" && got != "yy" {
			t.Fatalf("%s holds %q", name, got)
		}
	}
}

// A group is changed, cloned and rolled back, and a volume of it deleted: the crash
// at any operation of it finds each done or not, for all volumes alike.
func TestACrashFindsAGroupChangedClonedOrRolledBackWholeOrNotAtAll(t *testing.T) {
	sim := vfs.NewSim(memoryDir(t))
	s := grouped(t, "data", store.Options{FS: sim})
	put(t, s, 'x', "a", "b")
	preserveGroup(t, s, "s")
	put(t, s, 'y', "a", "b")
	from := sim.Ops()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.CreateGroup("h", []string{"a", "c"}, true))
	created := sim.Ops()
	must(s.CloneGroup(t.Context(), "g@s", "try", nil))
	cloned := sim.Ops()
	must(s.RollbackGroup(t.Context(), store.RollbackRequest{Snapshot: "g@s", Keep: "k"}, nil))
	rolled := sim.Ops()
	must(nil, s.DeleteVolume("c", true))
	deleted := sim.Ops()
	stride := 3
	if testing.Short() {
		stride = 10
	}
	for at := from; at <= deleted; at += stride {
		rng := rand.New(rand.NewPCG(uint64(at), 1))
		disk := sim.PowerCut(at, rng)
		if at%2 == 0 {
			disk = sim.KillAt(at, rng)
		}
		s, err := store.Open("data", store.Options{FS: disk})
		if err != nil {
			t.Fatalf("crash at %d: %v", at, err)
		}
		there := s.Exports()
		has := func(name string) bool { return slices.Contains(there, name) }
		var groups []string
		for _, g := range s.Groups() {
			groups = append(groups, fmt.Sprintf("%s%v", g.Name, g.Volumes))
		}
		want := []string{"g[a b]"}
		if at >= created || slices.Contains(groups, "h[a c]") || slices.Contains(groups, "h[a]") {
			want = append(want, map[bool]string{true: "h[a c]", false: "h[a]"}[has("c")])
		}
		if at >= cloned || has("try-a") || has("try-b") {
			want = append(want, "try[try-a try-b]")
		}
		if !slices.Equal(groups, want) {
			t.Errorf("crash at %d: groups %v, want %v", at, groups, want)
		}
		if has("try-a") && letters(t, s, "try-a", "try-b") != "xx" {
			t.Errorf("crash at %d: the clones hold %q", at, letters(t, s, "try-a", "try-b"))
		}
		live := letters(t, s, "a", "b")
		if live != "xx" && (live != "yy" || at >= rolled) {
			t.Errorf("crash at %d of %d, %d, %d, %d: a and b hold %q", at, created, cloned, rolled, deleted, live)
		}
		if live == "xx" && letters(t, s, "a@k", "b@k") != "yy" {
			t.Errorf("crash at %d: a@k and b@k hold %q", at, letters(t, s, "a@k", "b@k"))
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

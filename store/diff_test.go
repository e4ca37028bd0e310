package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// The bytes of from, with what the diff lists taken from to, are those of to: for
// any two states of a volume, also on both sides of a rollback.
func TestADiffListsAllThatDiffers(t *testing.T) {
	for seed := range uint64(8) {
		l := newLife(t, seed)
		var states []string
		for i := range 12 {
			l.write("v")
			states = append(states, l.preserve("v"))
			if i == 5 {
				back := states[2]
				r, err := l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: back})
				l.must(err)
				l.holds[r.Kept] = l.holds["v"]
				l.holds["v"] = append([]byte(nil), l.holds[back]...)
				states = append(states, r.Kept)
			}
		}
		l.write("v")
		for _, from := range states {
			for _, to := range append(states, "v") {
				got, end := append([]byte(nil), l.holds[from]...), int64(0)
				l.must(l.store.Diff(from, to, func(x store.DiffExtent) error {
					if x.OffsetBytes < end || x.LengthBytes <= 0 {
						t.Fatalf("%s to %s: %+v after %d", from, to, x, end)
					}
					end = x.OffsetBytes + x.LengthBytes
					part := got[x.OffsetBytes:end]
					if clear(part); x.Data {
						copy(part, l.holds[to][x.OffsetBytes:end])
					}
					return nil
				}))
				if string(got) != string(l.holds[to]) {
					t.Fatalf("seed %d: what differs between %s and %s is not all listed", seed, from, to)
				}
				if seed%4 == 0 {
					l.checkChanges(from, to)
				}
			}
		}
		if err := l.store.Diff(states[0], states[0], func(x store.DiffExtent) error { return errors.New("a difference") }); err != nil {
			t.Errorf("a snapshot and itself: %v", err)
		}
		l.must(l.store.Close(t.Context()))
	}
}

func TestADiffOfWhatCannotBeComparedIsRefused(t *testing.T) {
	l := newLife(t, 1)
	l.create("w")
	v, w := l.preserve("v"), l.preserve("w")
	for _, c := range []struct {
		name, from, to string
		want           error
	}{
		{"of two volumes", v, w, store.ErrInvalid},
		{"from a live volume", "v", v, store.ErrInvalid},
		{"to a snapshot that is unknown", v, "v@none", store.ErrNotFound},
		{"from a snapshot that is unknown", "v@none", "v", store.ErrNotFound},
	} {
		if err := l.store.Diff(c.from, c.to, func(store.DiffExtent) error { return nil }); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// blocksThatDiffer lists what a diff tells, block by block.
func blocksThatDiffer(t *testing.T, s *store.Store, from, to string) (blocks []int64) {
	t.Helper()
	noError(t, s.Diff(from, to, func(x store.DiffExtent) error {
		for b := x.OffsetBytes / 4096; b*4096 < x.OffsetBytes+x.LengthBytes; b++ {
			blocks = append(blocks, b)
		}
		return nil
	}))
	return blocks
}

func TestWhatStillDrainsIsNotCompared(t *testing.T) {
	s := openWith(t, t.TempDir(), store.Options{})
	createVolume(t, s, "v")
	mustSeal(t, s, "a", "v")
	_, err := s.BeginProcess([]string{"v"}, "p")
	noError(t, err)
	_, err = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "b", OnTimeout: volume.TimeoutKeep})
	if !errors.Is(err, store.ErrDraining) {
		t.Fatal(err)
	}
	write(t, openView(t, s, "v:process:p"), 4096, 'p')
	for _, pair := range [][2]string{{"v@a", "v@b"}, {"v@b", "v@a"}, {"v@b", "v"}, {"v@b", "v@b"}} {
		err := s.Diff(pair[0], pair[1], func(x store.DiffExtent) error { return fmt.Errorf("it tells %+v", x) })
		if !errors.Is(err, store.ErrDraining) || !strings.Contains(err.Error(), "v@b") || strings.Contains(err.Error(), "\n") {
			t.Errorf("the diff of %v: %v", pair, err)
		}
		if _, err := s.Changes(pair[0], pair[1]); !errors.Is(err, store.ErrDraining) && pair[1] != "v" {
			t.Errorf("the changes of %v: %v", pair, err)
		}
	}
	if got := blocksThatDiffer(t, s, "v@a", "v"); !slices.Equal(got, []int64{1}) {
		t.Errorf("the live volume differs in %v", got)
	}
	if older, err := s.Older("v@b"); len(older) > 0 || err != nil {
		t.Errorf("what drains has changes since %v, %v", older, err)
	}
	_, err = s.EndProcess("p", false)
	noError(t, err)
	noError(t, s.WaitSealed(t.Context(), "v@b"))
	if got := blocksThatDiffer(t, s, "v@a", "v@b"); !slices.Equal(got, []int64{1}) {
		t.Errorf("when it has drained it differs in %v", got)
	}
}

func TestWhatIsComparedIsNotDeletedMeanwhile(t *testing.T) {
	s := openWith(t, t.TempDir(), store.Options{})
	createVolume(t, s, "v")
	w := openView(t, s, "v")
	for i, name := range []string{"a", "b"} {
		write(t, w, int64(i)*4096, 'a')
		write(t, w, int64(2+i)*8192, 'a')
		mustSeal(t, s, name, "v")
	}
	noError(t, w.Close())
	for _, pair := range [][2]string{{"v@a", "v@b"}, {"v@b", "v@a"}, {"v@a", "v@a"}, {"v@a", "v"}} {
		noError(t, s.Diff(pair[0], pair[1], func(store.DiffExtent) error {
			for _, full := range pair {
				if err := s.DeleteSnapshots(full); strings.Contains(full, "@") && !errors.Is(err, store.ErrInUse) {
					t.Errorf("delete of %s during the diff of %v: %v", full, pair, err)
				}
			}
			if err := s.DeleteVolume("v", true); !errors.Is(err, store.ErrInUse) {
				t.Errorf("delete of the volume during the diff of %v: %v", pair, err)
			}
			return nil
		}))
	}
	bad := errors.New("enough")
	if err := s.Diff("v@a", "v@b", func(store.DiffExtent) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("a diff that is cut short: %v", err)
	}
	noError(t, s.DeleteSnapshots("v@a"))
	noError(t, s.DeleteVolume("v", true))
}

// foldable is a volume v with sealed snapshots a, s1, s2 and s3. When s1 and s2 are
// deleted, the image of s2 is folded into that of s3.
func foldable(t *testing.T) (s *store.Store, fold func()) {
	s = openWith(t, t.TempDir(), store.Options{FoldAbove: 1, ReclaimBytesPerSecond: 1 << 40})
	_, err := s.CreateVolume("v", 64*4096, volume.ScopeRequest)
	noError(t, err)
	mustSeal(t, s, "a", "v")
	w := openView(t, s, "v")
	for i, blocks := range [][]int64{{10, 12, 14}, {20, 40}, {60}} {
		for _, b := range blocks {
			write(t, w, b*4096, 'a')
		}
		mustSeal(t, s, fmt.Sprint("s", i+1), "v")
	}
	noError(t, w.Close())
	return s, func() {
		for _, full := range []string{"v@s1", "v@s2"} {
			noError(t, s.DeleteSnapshots(full))
		}
		s.AwaitPunches()
		if info, err := s.Volume("v"); err != nil || info.Images != 4 {
			t.Fatalf("%d images, %v: nothing was folded", info.Images, err)
		}
	}
}

func TestABlockThatIsFoldedWhileTablesAreReadIsNotMissed(t *testing.T) {
	for _, to := range []string{"v@s3", "v"} {
		for at, reads := 1, 1; reads >= at; at++ {
			s, fold := foldable(t)
			reads = 0
			restore := store.OnTableRead(func() {
				if reads++; reads == at {
					fold()
				}
			})
			got := blocksThatDiffer(t, s, "v@a", to)
			if restore(); !slices.Equal(got, []int64{10, 12, 14, 20, 40, 60}) {
				t.Errorf("folded after %d tables: %s differs in %v", at, to, got)
			}
		}
	}
}

func TestABlockThatIsFoldedWhileChangesAreToldIsNotMissed(t *testing.T) {
	for at := range 4 { // stretches that are told before
		s, fold := foldable(t)
		c, err := s.Changes("v@a", "v@s3")
		noError(t, err)
		if at == 0 {
			fold()
		}
		var changed []int64
		off, told := int64(0), 0
		c.Extents(0, 64*4096, func(n int64, is bool) bool {
			if is {
				changed = append(changed, off/4096)
			}
			off += n
			if told++; told == at {
				fold()
			}
			return true
		})
		if !slices.Equal(changed, []int64{10, 12, 14, 20, 40, 60}) {
			t.Errorf("folded after %d stretches: changed are those at %v", at, changed)
		}
		noError(t, c.Close())
	}
}

// A process that began before a cut takes blocks out of the live image.
func TestABlockThatAnOlderProcessWritesWhileTablesAreReadIsNotMissed(t *testing.T) {
	s := openWith(t, t.TempDir(), store.Options{})
	_, err := s.CreateVolume("v", 64*4096, volume.ScopeRequest)
	noError(t, err)
	mustSeal(t, s, "a", "v")
	_, err = s.BeginProcess([]string{"v"}, "p")
	noError(t, err)
	_, err = s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "b", OnTimeout: volume.TimeoutKeep})
	if !errors.Is(err, store.ErrDraining) {
		t.Fatal(err)
	}
	live, old := openView(t, s, "v"), openView(t, s, "v:process:p")
	var want []int64
	for at := range int64(3) {
		write(t, live, at*4096, 'n')
		reads := int64(0)
		restore := store.OnTableRead(func() {
			if reads++; reads == at+1 {
				write(t, old, at*4096, 'o')
			}
		})
		got := blocksThatDiffer(t, s, "v@a", "v")
		if restore(); reads != 3 {
			t.Fatalf("%d tables are read", reads)
		}
		if want = append(want, at); !slices.Equal(got, want) {
			t.Errorf("written after %d tables: the volume differs in %v, want %v", at+1, got, want)
		}
	}
}

func TestALiveVolumeThatIsSealedOrLosesItsNameWhileTablesAreReadIsReadAgain(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(s *store.Store)
		want   []int64
	}{
		{"sealed, deleted and covered", func(s *store.Store) {
			mustSeal(t, s, "b", "v")
			write(t, openView(t, s, "v"), 4096, 'l')
			noError(t, s.DeleteSnapshots("v@b"))
			s.AwaitPunches()
		}, []int64{1}},
		{"rolled back", func(s *store.Store) {
			noError(t, second(s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@a"})))
		}, nil},
	} {
		s := openWith(t, t.TempDir(), store.Options{})
		createVolume(t, s, "v")
		mustSeal(t, s, "a", "v")
		w := openView(t, s, "v")
		write(t, w, 4096, 'n')
		noError(t, w.Close())
		reads := 0
		restore := store.OnTableRead(func() {
			if reads++; reads == 1 {
				c.change(s)
			}
		})
		got := blocksThatDiffer(t, s, "v@a", "v")
		if restore(); !slices.Equal(got, c.want) {
			t.Errorf("%s: it differs in %v, want %v", c.name, got, c.want)
		}
	}
}

// asked is a table that counts how often it is asked.
type asked struct {
	lookup.Runs
	times *int
}

func (a asked) Run(b lookup.BlockNum, limit uint64) (lookup.State, uint64) {
	*a.times++
	return a.Runs.Run(b, limit)
}

// tablesOf makes tables that count, each with so many runs of a block, at random.
func tablesOf(rng *rand.Rand, tables, runs int, times *int) (list []lookup.Runs) {
	for range tables {
		table := lookup.NewTable()
		for range runs {
			table.Set(lookup.BlockNum(rng.IntN(1<<20)), 1, lookup.Data)
		}
		table.Pack()
		list = append(list, asked{table.Frozen(), times})
	}
	return list
}

func TestEachEntryOfATableIsLookedAtOnceHoweverManyImagesThereAre(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	const images, runs = 200, 100
	times := 0
	for name, c := range map[string]struct {
		tell func(tables []lookup.Runs)
		most int
	}{
		"changes": {func(tables []lookup.Runs) {
			store.ChangesIn(tables...).Extents(0, 4096<<20, func(int64, bool) bool { return true })
		}, 2 * images * (runs + 1)},
		"changes that one table covers": {func(tables []lookup.Runs) {
			all := lookup.NewTable()
			all.Set(0, 1<<20, lookup.Data)
			store.ChangesIn(append(tables, all)...).Extents(0, 4096<<20, func(int64, bool) bool { return true })
		}, 3 * images},
		"what the newer side has": {func(tables []lookup.Runs) { store.DifferencesIn(nil, nil, tables) }, 2 * images * (runs + 1)},
		"what the older side has": {func(tables []lookup.Runs) { store.DifferencesIn(nil, tables, nil) }, 2 * images * (runs + 1)},
		"what little the older side has, in the shared": {func(tables []lookup.Runs) {
			store.DifferencesIn(tables, tablesOf(rng, 1, 5, new(int)), nil)
		}, 20 * images},
		"what much the older side has, in the shared": {func(tables []lookup.Runs) {
			store.DifferencesIn(tables, tablesOf(rng, 10, 10_000, new(int)), nil)
		}, 4 * images * (runs + 1)},
	} {
		times = 0
		if c.tell(tablesOf(rng, images, runs, &times)); times > c.most || times == 0 {
			t.Errorf("%s: %d tables of %d entries are asked %d times, want at most %d", name, images, runs, times, c.most)
		}
	}
}

// checkChanges holds the changes of a snapshot since an older one against the diff,
// in ranges that begin and end anywhere.
func (l *lives) checkChanges(from, to string) {
	l.t.Helper()
	c, err := l.store.Changes(from, to)
	if older, e := l.store.Older(to); e == nil && slices.Contains(older, from) != (err == nil) {
		l.t.Fatalf("the changes from %s to %s: %v, and older are %q", from, to, err, older)
	}
	if err != nil {
		if !errors.Is(err, store.ErrInvalid) && !errors.Is(err, store.ErrDraining) {
			l.t.Fatal(err)
		}
		return
	}
	want := make([]bool, lifeBlocks)
	l.must(l.store.Diff(from, to, func(x store.DiffExtent) error {
		for b := x.OffsetBytes / 4096; b < (x.OffsetBytes+x.LengthBytes)/4096; b++ {
			want[b] = true
		}
		return nil
	}))
	for range 4 {
		off := l.rng.Int64N(lifeBlocks * 4096)
		length := 1 + l.rng.Int64N(lifeBlocks*4096-off)
		end := off + length
		c.Extents(off, length, func(n int64, changed bool) bool {
			if n <= 0 || n > end-off {
				l.t.Fatalf("%s to %s: %d bytes at %d of %d", from, to, n, off, end)
			}
			for n > 0 {
				if want[off/4096] != changed {
					l.t.Fatalf("%s to %s: byte %d changed: %v", from, to, off, changed)
				}
				part := min(n, 4096-off%4096)
				off, n = off+part, n-part
			}
			return true
		})
		if off != end {
			l.t.Fatalf("%s to %s: told up to %d of %d", from, to, off, end)
		}
	}
	l.must(c.Close())
}

func TestWhatIsComparedWithStays(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	a := l.preserve("v")
	_, err := l.store.ResizeVolume("v", lifeBlocks*4096+3*512)
	l.must(err)
	b := l.preserve("v")
	_, err = l.store.ResizeVolume("v", 2*lifeBlocks*4096)
	l.must(err)
	d := l.preserve("v")
	c, err := l.store.Changes(b, d)
	l.must(err)
	var told []string
	c.Extents(512, 2*lifeBlocks*4096-1024, func(n int64, changed bool) bool {
		told = append(told, fmt.Sprint(n, changed))
		return true
	})
	if want := fmt.Sprint([]string{fmt.Sprint(lifeBlocks*4096-512, false), fmt.Sprint(lifeBlocks*4096-512, true)}); fmt.Sprint(told) != want {
		t.Errorf("of a volume that grew it tells %v, want %v", told, want)
	}
	if err := l.store.DeleteSnapshots(b); !errors.Is(err, store.ErrInUse) {
		t.Errorf("delete: %v, want ErrInUse", err)
	}
	l.must(c.Close())
	l.must(l.store.DeleteSnapshots(b))
	for _, pair := range [][2]string{{d, a}, {a, a}, {a, "v"}, {"v", a}} {
		if _, err := l.store.Changes(pair[0], pair[1]); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("changes from %s to %s: %v, want ErrInvalid", pair[0], pair[1], err)
		}
	}
}

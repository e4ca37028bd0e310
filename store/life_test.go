package store_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

const lifeBlocks = 64

var lifeSeeds = flag.Int("life.seeds", 12, "how many random lives of snapshots are lived")

// lives is a store, and what each of its volumes and snapshots must hold.
type lives struct {
	t     *testing.T
	dir   string
	store *store.Store
	holds map[string][]byte // by VOLUME or VOLUME@SNAPSHOT
	rng   *rand.Rand
	made  int
	log   []string
}

func newLife(t *testing.T, seed uint64) *lives {
	l := &lives{t: t, dir: filepath.Join(t.TempDir(), "data"), holds: map[string][]byte{}, rng: rand.New(rand.NewPCG(seed, 1))}
	l.store = openWith(t, l.dir, store.Options{})
	l.create("v")
	return l
}

func (l *lives) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lives) create(name string) {
	l.t.Helper()
	_, err := l.store.CreateVolume(name, lifeBlocks*4096, volume.ScopeRequest)
	l.must(err)
	l.holds[name] = make([]byte, lifeBlocks*4096)
}

// write writes blocks at random, and trims some.
func (l *lives) write(name string) {
	l.t.Helper()
	w, err := l.store.OpenView(name)
	l.must(err)
	defer func() { l.must(w.Close()) }()
	for range 1 + l.rng.IntN(6) {
		off := int64(l.rng.IntN(lifeBlocks)) * 4096
		n := min(int64(1+l.rng.IntN(8))*4096, lifeBlocks*4096-off)
		if l.rng.IntN(4) == 0 {
			l.must(w.Trim(off, n))
			clear(l.holds[name][off:][:n])
			continue
		}
		data := bytes.Repeat([]byte{byte(1 + l.rng.IntN(255))}, int(n))
		_, err := w.WriteAt(data, off)
		l.must(err)
		copy(l.holds[name][off:], data)
	}
}

func (l *lives) preserve(name string) string {
	l.t.Helper()
	l.made++
	snap := fmt.Sprintf("s%d", l.made)
	_, err := l.store.Preserve(l.t.Context(), store.PreserveRequest{Volumes: []string{name}, Name: snap, Wait: 1e9, UntilSealed: l.rng.IntN(2) == 0})
	l.must(err)
	full := name + "@" + snap
	l.log = append(l.log, "preserve "+full)
	l.holds[full] = bytes.Clone(l.holds[name])
	return full
}

// names lists the volumes, or the snapshots.
func (l *lives) names(snapshots bool) (list []string) {
	for name := range l.holds {
		if strings.Contains(name, "@") == snapshots {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

func (l *lives) any(snapshots bool) string {
	list := l.names(snapshots)
	if len(list) == 0 {
		return ""
	}
	return list[l.rng.IntN(len(list))]
}

// check reads all, and verifies every snapshot.
func (l *lives) check() {
	l.t.Helper()
	for name, want := range l.holds {
		w, err := l.store.OpenView(name)
		l.must(err)
		got := make([]byte, len(want))
		_, err = w.ReadAt(got, 0)
		l.must(err)
		l.must(w.Close())
		for b := range lifeBlocks {
			if !bytes.Equal(got[b*4096:][:4096], want[b*4096:][:4096]) {
				l.t.Fatalf("%s: block %d begins with %x, want %x", name, b, got[b*4096], want[b*4096])
			}
		}
		if strings.Contains(name, "@") {
			l.must(l.store.WaitSealed(l.t.Context(), name))
			_, err := l.store.VerifySnapshot(l.t.Context(), name, nil)
			l.must(err)
		}
	}
}

// reopen closes the store, lets check look at it, and opens it again.
func (l *lives) reopen() {
	l.t.Helper()
	l.must(l.store.Close(l.t.Context()))
	r, err := store.Check(l.dir, nil, store.CheckOptions{})
	l.must(err)
	if len(r.Findings) > 0 {
		l.t.Fatalf("check finds %q\n%s", r.Findings, strings.Join(l.log, "\n"))
	}
	l.store = openWith(l.t, l.dir, store.Options{})
}

// files is how many blocks the images take on the disk.
func (l *lives) blocks() (n int64) {
	l.t.Helper()
	for _, v := range l.store.Volumes() {
		n += v.DataBytes / 4096
	}
	return n
}

func TestSnapshotsClonesAndRollbacksAtRandomHoldWhatTheyMust(t *testing.T) {
	for seed := range uint64(*lifeSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := newLife(t, seed)
			for range 120 {
				switch live, snap := l.any(false), l.any(true); l.rng.IntN(10) {
				case 0, 1, 2:
					l.write(live)
				case 3, 4:
					l.preserve(live)
				case 5, 6:
					if snap != "" {
						l.log = append(l.log, "delete "+snap)
						l.must(l.store.DeleteSnapshot(snap))
						delete(l.holds, snap)
					}
				case 7:
					if snap != "" && len(l.names(false)) < 5 {
						l.made++
						name := fmt.Sprintf("c%d", l.made)
						_, err := l.store.Clone(t.Context(), snap, name)
						l.must(err)
						l.holds[name] = bytes.Clone(l.holds[snap])
						l.log = append(l.log, "clone "+snap+" "+name)
					}
				case 8:
					if snap != "" {
						name, _, _ := strings.Cut(snap, "@")
						discard := l.rng.IntN(3) == 0
						r, err := l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: snap, Discard: discard, Keep: fmt.Sprintf("k%d", l.made)})
						l.made++
						l.must(err)
						l.log = append(l.log, fmt.Sprint("rollback ", snap, discard, r.Kept))
						if discard != (r.Kept == "") {
							t.Fatalf("discard=%v, kept %q", discard, r.Kept)
						}
						if !discard {
							l.holds[r.Kept] = l.holds[name]
						}
						l.holds[name] = bytes.Clone(l.holds[snap])
					}
				case 9:
					switch l.rng.IntN(3) {
					case 0:
						l.store.Reclaim()
						l.check()
					case 1:
						l.log = append(l.log, "reopen")
						l.reopen()
					case 2:
						if len(l.names(false)) > 1 {
							l.log = append(l.log, "delete "+live)
							l.must(l.store.DeleteVolume(live, true))
							for _, name := range append(l.names(true), live) {
								if name == live || strings.HasPrefix(name, live+"@") {
									delete(l.holds, name)
								}
							}
						}
					}
				}
			}
			l.check()
			l.reopen()
			l.check()
		})
	}
}

func TestADeletedSnapshotGivesBackWhatNobodySees(t *testing.T) {
	l := newLife(t, 1)
	fill := func(from, n int64, with byte) {
		w, err := l.store.OpenView("v")
		l.must(err)
		_, err = w.WriteAt(bytes.Repeat([]byte{with}, int(n*4096)), from*4096)
		l.must(err)
		l.must(w.Close())
		copy(l.holds["v"][from*4096:], bytes.Repeat([]byte{with}, int(n*4096)))
	}
	fill(0, 40, 'a')
	one := l.preserve("v")
	fill(0, 30, 'b')
	l.must(l.store.WaitSealed(t.Context(), one))
	if l.blocks() != 70 {
		t.Fatalf("%d blocks, want 70", l.blocks())
	}
	l.must(l.store.DeleteSnapshot(one))
	delete(l.holds, one)
	l.store.AwaitPunches()
	if l.blocks() != 40 {
		t.Errorf("%d blocks after the delete, want 40", l.blocks())
	}
	l.check()
	fill(30, 10, 'c') // and of what was left nobody sees anything now
	two := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), two))
	l.store.Reclaim()
	l.store.AwaitPunches()
	if info, err := l.store.Volume("v"); err != nil || info.Images != 2 {
		t.Errorf("%+v, %v; want 2 images", info, err)
	}
	l.check()
	l.reopen()
	l.check()
}

func TestWhatIsInUseOrUnknownIsNotDeletedClonedOrRolledBack(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	snap := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), snap))
	w, err := l.store.OpenView(snap)
	l.must(err)
	if err := l.store.DeleteSnapshot(snap); !errors.Is(err, store.ErrInUse) {
		t.Errorf("delete of an open snapshot: %v", err)
	}
	l.must(w.Close())
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"delete of an unknown snapshot", l.store.DeleteSnapshot("v@none"), store.ErrNotFound},
		{"delete of a volume as a snapshot", l.store.DeleteSnapshot("v"), store.ErrInvalid},
		{"clone of an unknown snapshot", second(l.store.Clone(t.Context(), "v@none", "c")), store.ErrNotFound},
		{"clone with a name that is taken", second(l.store.Clone(t.Context(), snap, "v")), store.ErrExists},
		{"clone with a bad name", second(l.store.Clone(t.Context(), snap, "a/b")), store.ErrInvalid},
		{"rollback to an unknown snapshot", second(l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: "v@none"})), store.ErrNotFound},
		{"rollback that keeps under a name that is taken", second(l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: snap, Keep: "s1"})), store.ErrExists},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	live, err := l.store.OpenView("v")
	l.must(err)
	if _, err := l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: snap}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("rollback under a client: %v", err)
	}
	l.must(live.Close())
	l.check()
}

func second[T any](_ T, err error) error { return err }

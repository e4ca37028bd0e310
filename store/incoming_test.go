package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/tidemark/tidemark/image/sealed"
	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// hashOf is the content hash of what a volume holds.
func hashOf(content []byte) string {
	var h sealed.Hash
	for b := range len(content) / 4096 {
		h.Add(lookup.BlockNum(b), sealed.SumOf(content[b*4096:][:4096]))
	}
	return h.String()
}

// changesOf is the request for changes of a volume, from a snapshot of it to a
// content.
func (l *lives) changesOf(base, snap string, content []byte) store.ReceiveRequest {
	l.t.Helper()
	name, _, _ := strings.Cut(base, "@")
	return store.ReceiveRequest{
		Volume: name, Snapshot: snap, SizeBytes: int64(len(content)), Hash: hashOf(content),
		BaseHash: hashOf(l.holds[base]), BaseSizeBytes: int64(len(l.holds[base])),
	}
}

// begin begins to receive what a request promises, and writes what differs.
func (l *lives) begin(r store.ReceiveRequest, was, content []byte) *store.Incoming {
	l.t.Helper()
	in, err := l.store.Receive(r)
	l.must(err)
	for off := int64(0); off < int64(len(content)); off += 4096 {
		switch block := content[off:][:4096]; {
		case off < int64(len(was)) && bytes.Equal(block, was[off:][:4096]):
		case bytes.Equal(block, make([]byte, 4096)):
			l.must(in.Trim(off, 4096))
		default:
			_, err := in.WriteAt(block, off)
			l.must(err)
		}
	}
	return in
}

// receive lets changes come to a volume: all of them, or not to the end.
func (l *lives) receive(name string) {
	l.t.Helper()
	base := l.preserve(name)
	l.must(l.store.WaitSealed(l.t.Context(), base))
	l.made++
	full := fmt.Sprintf("%s@r%d", name, l.made)
	content := bytes.Clone(l.holds[name])
	for range l.writes { // one, in a crash
		block := content[l.rng.IntN(lifeBlocks)*4096:][:4096]
		copy(block, bytes.Repeat([]byte{byte(l.rng.IntN(3))}, 4096))
	}
	in := l.begin(l.changesOf(base, strings.TrimPrefix(full, name+"@"), content), l.holds[name], content)
	if l.rng.IntN(4) > 0 {
		l.log("receive %s", full)
		_, err := in.Commit(l.t.Context())
		l.must(err)
		l.holds[name], l.holds[full] = content, bytes.Clone(content)
	}
	l.must(in.Close())
}

// volumes is how many the directory has, with those that a rollback has left.
func (l *lives) volumes() int {
	l.t.Helper()
	l.must(l.store.Close(l.t.Context()))
	r, err := store.Check(l.dir, l.fs, store.CheckOptions{})
	l.must(err)
	l.store = openWith(l.t, l.dir, store.Options{FS: l.fs})
	return r.Volumes
}

func TestWhatIsReceivedIsASnapshotAndTheVolumeIsJustThat(t *testing.T) {
	l := newLife(t, 1)
	l.writes = 6
	for range 5 {
		l.write("v")
		l.preserve("v")
		l.receive("v")
		l.check()
	}
	if n := l.volumes(); n != 1 {
		t.Errorf("there are %d volumes, want 1: with each time the chains would become more", n)
	}
	l.check()
}

func TestAllOfASnapshotMakesANewVolumeThatMayHaveGrown(t *testing.T) {
	l := newLife(t, 1)
	content := bytes.Repeat([]byte{7}, 5*4096)
	in := l.begin(store.ReceiveRequest{Volume: "w", Snapshot: "s", SizeBytes: int64(len(content)), Hash: hashOf(content)}, nil, content)
	if names := l.store.Exports(); len(names) != 1 {
		t.Errorf("before its end it is seen: %q", names)
	}
	info, err := in.Commit(t.Context())
	l.must(err)
	l.must(in.Close())
	if info.Volume != "w" || info.Name != "s" || info.State != volume.Sealed || info.Hash != hashOf(content) {
		t.Errorf("%+v", info)
	}
	grown := append(bytes.Clone(content), bytes.Repeat([]byte{8}, 3*4096)...)
	r := store.ReceiveRequest{
		Volume: "w", Snapshot: "t", SizeBytes: int64(len(grown)), Hash: hashOf(grown), BaseHash: hashOf(content), BaseSizeBytes: int64(len(content)),
	}
	in = l.begin(r, content, grown)
	_, err = in.Commit(t.Context())
	l.must(err)
	l.must(in.Close())
	for _, reopened := range []bool{false, true} {
		if reopened {
			l.reopen()
		}
		if v, err := l.store.Volume("w"); err != nil || v.SizeBytes != int64(len(grown)) || v.Snapshots != 2 {
			t.Errorf("%+v, %v", v, err)
		}
		for name, want := range map[string][]byte{"w": grown, "w@t": grown, "w@s": content} {
			w, err := l.store.OpenView(name)
			l.must(err)
			got := make([]byte, w.SizeBytes())
			_, err = w.ReadAt(got, 0)
			l.must(err)
			l.must(w.Close())
			if !bytes.Equal(got, want) {
				t.Errorf("%s holds something else", name)
			}
		}
	}
}

func TestWhatDoesNotFitOrIsNotWholeChangesNothing(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	base := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), base))
	content := bytes.Clone(l.holds["v"])
	copy(content, bytes.Repeat([]byte{9}, 4096))
	good := l.changesOf(base, "new", content)
	whole := store.ReceiveRequest{Volume: "w", Snapshot: "s", SizeBytes: 4096, Hash: hashOf(content)}

	with := func(r store.ReceiveRequest, change func(*store.ReceiveRequest)) store.ReceiveRequest {
		change(&r)
		return r
	}
	for _, c := range []struct {
		name string
		r    store.ReceiveRequest
		want error
	}{
		{"a snapshot name that is taken", with(good, func(r *store.ReceiveRequest) { r.Snapshot = "s1" }), store.ErrExists},
		{"a bad snapshot name", with(good, func(r *store.ReceiveRequest) { r.Snapshot = "a b" }), store.ErrInvalid},
		{"a bad volume name", with(good, func(r *store.ReceiveRequest) { r.Volume = "a/b" }), store.ErrInvalid},
		{"an unknown volume", with(good, func(r *store.ReceiveRequest) { r.Volume = "none" }), store.ErrNotFound},
		{"a base that the volume has not", with(good, func(r *store.ReceiveRequest) { r.BaseHash = hashOf(content) }), store.ErrDiffers},
		{"a base of another size", with(good, func(r *store.ReceiveRequest) { r.BaseSizeBytes -= 4096 }), store.ErrDiffers},
		{"a base that is larger", with(good, func(r *store.ReceiveRequest) { r.SizeBytes -= 4096 }), store.ErrInvalid},
		{"a hash that is none", with(good, func(r *store.ReceiveRequest) { r.Hash = "hash" }), store.ErrInvalid},
		{"a base hash that is none", with(good, func(r *store.ReceiveRequest) { r.BaseHash = "hash" }), store.ErrInvalid},
		{"a size that no volume has", with(whole, func(r *store.ReceiveRequest) { r.SizeBytes = 100 }), store.ErrInvalid},
		{"all of a snapshot, for a volume that exists", with(whole, func(r *store.ReceiveRequest) { r.Volume = "v" }), store.ErrExists},
	} {
		if _, err := l.store.Receive(c.r); !errors.Is(err, c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}

	in := l.begin(good, l.holds["v"], content)
	w, err := l.store.OpenView("v")
	l.must(err)
	if _, err := in.Commit(t.Context()); !errors.Is(err, store.ErrInUse) {
		t.Errorf("at its end a client has the volume open: %v", err)
	}
	l.must(in.Close())
	if _, err := l.store.Receive(good); !errors.Is(err, store.ErrInUse) {
		t.Errorf("begun while a client has the volume open: %v", err)
	}
	l.must(w.Close())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	in = l.begin(good, l.holds["v"], content)
	if _, err := in.Commit(gone); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("its caller is gone: %v", err)
	} else if err == nil { // it was sealed before anybody looked
		l.holds["v"], l.holds["v@new"] = content, content
	}
	l.must(in.Close())
	if names := l.store.Exports(); len(names) != len(l.holds) {
		t.Errorf("something else is seen: %q", names)
	}
	l.check()
}

func TestChangesThatMeetAnotherStateOrMakeAnotherContentAreRefused(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	base := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), base))
	content := bytes.Clone(l.holds["v"])
	copy(content, bytes.Repeat([]byte{9}, 4096))
	good := l.changesOf(base, "new", content)

	lie := good
	lie.Hash = hashOf(l.holds["v"])
	in := l.begin(lie, l.holds["v"], content)
	if _, err := in.Commit(t.Context()); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("another content than was promised: %v", err)
	}
	l.must(in.Close())

	in = l.begin(good, l.holds["v"], content)
	if _, err := l.store.Receive(good); !errors.Is(err, store.ErrExists) {
		t.Errorf("a second one of the same name: %v", err)
	}
	if _, err := l.store.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"v"}, Name: "new"}); !errors.Is(err, store.ErrExists) {
		t.Errorf("a preserve of the same name: %v", err)
	}
	l.write("v")
	if _, err := in.Commit(t.Context()); !errors.Is(err, store.ErrDiffers) {
		t.Errorf("the volume was changed meanwhile: %v", err)
	}
	l.must(in.Close())
	if _, err := l.store.Receive(good); !errors.Is(err, store.ErrDiffers) || !strings.Contains(err.Error(), base) {
		t.Errorf("the volume was changed before: %v", err)
	}

	_, err := l.store.Rollback(t.Context(), store.RollbackRequest{Snapshot: base, Discard: true})
	l.must(err)
	l.holds["v"] = bytes.Clone(l.holds[base])
	in = l.begin(good, l.holds["v"], content)
	l.must(l.store.DeleteVolume("v", true))
	if _, err := in.Commit(t.Context()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the volume was deleted meanwhile: %v", err)
	}
	l.must(in.Close())
	clear(l.holds)
	if n := l.volumes(); n != 0 {
		t.Errorf("%d volumes are left", n)
	}
}

// Somebody reads a snapshot of the volume: what comes need not wait, and the reader
// reads on.
func TestAReaderOfAnOlderSnapshotHoldsUpNothing(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	base := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), base))
	reader, err := l.store.OpenView(base)
	l.must(err)
	content := bytes.Clone(l.holds["v"])
	copy(content, bytes.Repeat([]byte{9}, 4096))
	in := l.begin(l.changesOf(base, "new", content), l.holds["v"], content)
	_, err = in.Commit(t.Context())
	l.must(err)
	l.must(in.Close())
	l.holds["v"], l.holds["v@new"] = content, bytes.Clone(content)
	l.check()
	got := make([]byte, 4096)
	_, err = reader.ReadAt(got, 0)
	l.must(err)
	if !bytes.Equal(got, l.holds[base][:4096]) {
		t.Error("the reader reads something else")
	}
	l.must(reader.Close())
	l.reopen()
	l.check()
}

// A preserve beside it finds the volume as it was, and what it has kept is not lost.
func TestASnapshotThatIsMadeMeanwhileStays(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	base := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), base))
	content := bytes.Clone(l.holds["v"])
	copy(content, bytes.Repeat([]byte{9}, 4096))
	in := l.begin(l.changesOf(base, "new", content), l.holds["v"], content)
	l.preserve("v")
	_, err := in.Commit(t.Context())
	l.must(err)
	l.must(in.Close())
	l.holds["v"], l.holds["v@new"] = content, bytes.Clone(content)
	l.check()
	if n := l.volumes(); n != 2 {
		t.Errorf("%d volumes, want 2: one is for the snapshot that was made meanwhile", n)
	}
	l.check()
	l.receive("v")
	l.check()
}

// What takes the place of a volume holds its images too. One whose blocks are to be
// given back just then is not the business of that volume any more.
func TestAnImageGivesItsRoomBackAlsoWhileItsVolumeIsReplaced(t *testing.T) {
	var commit *stop
	var ends <-chan struct{} // closed when the work on v ends: the next commit is that of its delete
	commit = newStop(func(op vfs.Op) bool {
		if op.Kind != vfs.OpCommitted || !commit.armed.Load() {
			return false
		}
		select {
		case <-ends:
			return true
		default:
			return false
		}
	})
	l := newLifeOn(t, 2, vfs.Fault{FS: vfs.NewSim(t.TempDir()), Hook: commit.hook}, dataDir) // which folds nothing
	fill := func(n int, with byte) string {
		data := bytes.Repeat([]byte{with}, n*4096)
		w, err := l.store.OpenView("v")
		l.must(err)
		_, err = w.WriteAt(data, 0)
		l.must(err)
		l.must(w.Close())
		copy(l.holds["v"], data)
		full := l.preserve("v")
		l.must(l.store.WaitSealed(t.Context(), full))
		return full
	}
	one, two := fill(40, 'a'), fill(30, 'b')
	content := bytes.Clone(l.holds["v"])
	copy(content[50*4096:], bytes.Repeat([]byte{'c'}, 4096))
	in := l.begin(l.changesOf(two, "came", content), l.holds["v"], content)
	release := l.store.HoldPunches()
	l.must(l.store.DeleteSnapshots(one)) // of its image nobody sees 30 blocks any more
	delete(l.holds, one)

	found := make(chan struct{})
	t.Cleanup(store.OnHoldersFound(sync.OnceFunc(func() { close(found) })))
	ends = l.store.WorkEnds("v")
	commit.armed.Store(true)
	committed := make(chan error, 1)
	go func() {
		_, err := in.Commit(t.Context())
		committed <- err
	}()
	<-commit.reached // the files of v are held
	release()
	<-found // v is one of those who hold the image
	close(commit.open)
	l.must(<-committed)
	l.must(in.Close())
	l.store.AwaitPunches()
	if l.holds["v"], l.holds["v@came"] = content, content; l.blocks() != 41 {
		t.Errorf("%d blocks, want 41", l.blocks())
	}
	l.check()
	l.reopen()
	l.check()
}

func TestWhatACrashMeetsOnItsWayInIsGoneAndTheVolumeAsItWas(t *testing.T) {
	l := newLife(t, 1)
	l.write("v")
	base := l.preserve("v")
	l.must(l.store.WaitSealed(t.Context(), base))
	content := bytes.Clone(l.holds["v"])
	copy(content, bytes.Repeat([]byte{9}, 4096))
	in := l.begin(l.changesOf(base, "new", content), l.holds["v"], content)
	_ = l.begin(store.ReceiveRequest{Volume: "w", Snapshot: "s", SizeBytes: int64(len(content)), Hash: hashOf(content)}, nil, content)
	l.must(l.store.Close(t.Context())) // it goes while they come
	if _, err := in.Commit(t.Context()); err == nil {
		t.Error("a commit in a store that is closed succeeds")
	}
	l.must(in.Close())
	l.store = openWith(t, l.dir, store.Options{FS: l.fs})
	if notes := strings.Join(l.store.Recovery(), "\n"); strings.Count(notes, "it was not whole") != 2 {
		t.Errorf("recovery says %q", notes)
	}
	l.check()
	if n := l.volumes(); n != 1 {
		t.Errorf("%d volumes, want 1", n)
	}
	l.check()
}

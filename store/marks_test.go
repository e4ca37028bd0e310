package store_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

const diskBytes = 10 << 20

// markedDisk is a store with marks, and a volume v with a sealed snapshot s, on a
// disk of which used() says how much of it is used.
type markedDisk struct {
	*fullDisk
	log bytes.Buffer
}

func onMarkedDisk(t *testing.T, o store.Options, test func(d *markedDisk)) {
	synctest.Test(t, func(t *testing.T) {
		sim := vfs.NewSim(t.TempDir())
		d := &markedDisk{fullDisk: &fullDisk{t: t, sim: sim, quota: vfs.NewQuota(sim, diskBytes)}}
		o.FS = d.quota
		o.Logger = slog.New(slog.NewTextHandler(&d.log, nil))
		d.Store = openWith(t, dataDir, o)
		_, err := d.CreateVolume("v", 1<<30, volume.ScopeRequest)
		noError(t, err)
		d.view = openView(t, d.Store, "v")
		noError(t, d.write(0))
		noError(t, d.preserve("s"))
		noError(t, d.WaitSealed(t.Context(), "v@s"))
		test(d)
	})
}

// use writes to the volume until so many percent of the disk are used.
func (d *markedDisk) use(percent int64) {
	d.t.Helper()
	for block := int64(1); ; block++ {
		space, err := d.Space()
		noError(d.t, err)
		if space.UsedBytes() >= diskBytes/100*percent {
			return
		}
		noError(d.t, d.write(block))
	}
}

// makeRoom gives so many percent of the disk back.
func (d *markedDisk) makeRoom(percent int64) {
	noError(d.t, d.view.Trim(1<<12, diskBytes/100*percent&^4095))
}

// said lists what the log has said since the last time.
func (d *markedDisk) said() []string {
	time.Sleep(time.Minute)
	synctest.Wait()
	lines := strings.FieldsFunc(d.log.String(), func(r rune) bool { return r == '\n' })
	d.log.Reset()
	return lines
}

func TestAboveTheHighWaterMarkNothingIsPreservedAndAllIsWritten(t *testing.T) {
	for name, mark := range map[string]store.Mark{"percent": {UsedPercent: 90}, "free": {FreeBytes: diskBytes / 10}} {
		t.Run(name, func(t *testing.T) {
			onMarkedDisk(t, store.Options{RefusePreservesAt: mark}, func(d *markedDisk) {
				d.use(80)
				d.want("a preserve below the mark", d.preserve("below"), nil)
				d.use(91)
				err := d.preserve("above")
				d.want("a preserve above the mark", err, store.ErrHighWater)
				if text := err.Error(); !strings.Contains(text, "% full") || !strings.Contains(text, mark.String()) || strings.Contains(text, "\n") {
					t.Errorf("it says %q", text)
				}
				d.want("a clone", second(d.Clone(d.t.Context(), "v@s", "c")), store.ErrHighWater)
				list, err := d.Snapshots("v")
				if len(list) != 2 || err != nil || len(d.Volumes()) != 1 {
					t.Errorf("there are snapshots %+v, %v, and volumes %+v", list, err, d.Volumes())
				}
				d.want("a write to a new block", d.write(250_000), nil)
				d.want("an overwrite", d.write(0), nil)
				d.want("a flush", d.view.Flush(), nil)
				d.want("a new volume", second(d.CreateVolume("new", 1<<30, volume.ScopeRequest)), nil)
				d.want("a delete", d.DeleteSnapshots("v@s"), nil)
				d.makeRoom(10)
				d.want("a preserve when there is room again", d.preserve("again"), nil)
				d.want("close", d.Close(context.Background()), nil)
			})
		})
	}
}

func TestARollbackAboveTheHighWaterMarkChangesNothing(t *testing.T) {
	onMarkedDisk(t, store.Options{RefusePreservesAt: store.Mark{UsedPercent: 50}}, func(d *markedDisk) {
		d.use(51)
		noError(t, d.view.Close())
		d.want("a rollback", second(d.Rollback(d.t.Context(), store.RollbackRequest{Snapshot: "v@s"})), store.ErrHighWater)
		d.view = openView(t, d.Store, "v")
		d.want("one that disconnects", second(d.Rollback(d.t.Context(), store.RollbackRequest{Snapshot: "v@s", Disconnect: true})), store.ErrHighWater)
		d.want("a write after it, by a client that was there", d.write(0), nil)
	})
}

// Its end is a preserve, which would be refused when all has come.
func TestNothingIsReceivedAboveTheHighWaterMark(t *testing.T) {
	onMarkedDisk(t, store.Options{RefusePreservesAt: store.Mark{UsedPercent: 50}}, func(d *markedDisk) {
		noError(d.t, d.view.Close())
		noError(d.t, second(d.CreateVolume("other", 1<<30, volume.ScopeRequest)))
		d.view = openView(d.t, d.Store, "other")
		base, err := d.Snapshot("v@s")
		noError(d.t, err)
		content := make([]byte, 1<<20)
		for name, r := range map[string]store.ReceiveRequest{
			"all of a snapshot": {Volume: "new", Snapshot: "r", SizeBytes: int64(len(content)), Hash: hashOf(content)},
			"changes":           {Volume: "v", Snapshot: "r", SizeBytes: base.SizeBytes, Hash: base.Hash, BaseSizeBytes: base.SizeBytes, BaseHash: base.Hash},
		} {
			d.use(51)
			_, err := d.Receive(r)
			d.want(name, err, store.ErrHighWater)
			d.makeRoom(10)
			in, err := d.Receive(r)
			d.want(name+" when there is room again", err, nil)
			_, err = in.Commit(d.t.Context())
			d.want(name+", all of it", errors.Join(err, in.Close()), nil)
		}
	})
}

func TestAMarkIsLoggedOnceEachTimeThatItIsCrossed(t *testing.T) {
	marks := store.Options{WarnAt: store.Mark{UsedPercent: 50}, RefusePreservesAt: store.Mark{FreeBytes: diskBytes / 100 * 30}}
	onMarkedDisk(t, marks, func(d *markedDisk) {
		logged := func(what string, words ...string) {
			t.Helper()
			lines := d.said()
			if len(lines) != len(words) {
				t.Fatalf("%s: %q; want %d lines", what, lines, len(words))
			}
			for i, line := range lines {
				if !strings.Contains(line, words[i]) {
					t.Errorf("%s: %q; want %q", what, line, words[i])
				}
			}
		}
		logged("below both")
		d.use(55)
		logged("above one", "level=WARN")
		d.use(60)
		logged("above it still")
		d.use(75)
		logged("above the other", "no preserve or clone is made until there is room")
		logged("later")
		d.makeRoom(15)
		logged("below the other", "below its mark again")
		d.makeRoom(40)
		logged("below both again", "below its mark again")
		d.use(80)
		logged("above both", "make room", "no preserve or clone")
	})
}

func TestMarksThatMakeNoSenseAreRefused(t *testing.T) {
	for _, m := range []store.Mark{{UsedPercent: -1}, {UsedPercent: 101}, {FreeBytes: -1}, {UsedPercent: 1, FreeBytes: 1}} {
		for _, o := range []store.Options{{WarnAt: m}, {RefusePreservesAt: m}} {
			if _, err := store.Open(t.TempDir(), o); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%+v: %v", m, err)
			}
		}
	}
}

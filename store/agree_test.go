package store

import (
	"testing"

	"github.com/tidemark/tidemark/catalog"
	"github.com/tidemark/tidemark/image/mem"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// A power cut may keep one record of a seal and lose the others.
func TestOneLinkThatIsSealedMakesAllOfItsImageSealed(t *testing.T) {
	snap := func() *catalog.Snapshot { return &catalog.Snapshot{Name: "one", State: volume.Sealing.String()} }
	hash := "00"
	volumes := []catalog.VolumeState{
		{Chain: []catalog.Link{{Volume: 1, Image: 7, Table: 1, Snapshot: snap()}, {Volume: 1, Image: 8, Snapshot: snap()}}},
		{Chain: []catalog.Link{{Volume: 2, Image: 7, Table: 1, Sealed: true, Hash: hash, Due: true}, {Volume: 2, Image: 9}}},
	}
	agree(volumes)
	l := volumes[0].Chain[0]
	if !l.Sealed || l.Hash != hash || !l.Due || l.Volume != 1 {
		t.Errorf("the link that was not sealed becomes %+v", l)
	}
	if l.Snapshot == nil || l.Snapshot.Name != "one" || l.Snapshot.State != volume.Sealed.String() {
		t.Errorf("its snapshot becomes %+v", l.Snapshot)
	}
	for _, l := range []catalog.Link{volumes[0].Chain[1], volumes[1].Chain[1]} {
		if l.Sealed || l.Snapshot != nil && l.Snapshot.State != volume.Sealing.String() {
			t.Errorf("the link of image %d, which nobody says is sealed, becomes %+v", l.Image, l)
		}
	}
	if volumes[1].Chain[0].Snapshot != nil {
		t.Error("a link that has no snapshot gets one")
	}
}

// A preserve that waits for another volume records again what has drained here.
func TestAFoundedImageIsNeverRecordedAsDraining(t *testing.T) {
	memory := &volume.Memory{}
	c := memory.Config("v", 1<<20, volume.ScopeRequest)
	first := volume.Link{ID: c.Chain[0].ID, Image: c.Chain[0].Image, Table: c.Chain[0].Table, SizeBytes: 1 << 20, State: volume.Sealing}
	c.Chain = []volume.Link{first, {ID: first.ID + 1, Image: mem.New(), Table: lookup.NewTable(), SizeBytes: 1 << 20}}
	v, err := volume.New(memory, 0).AddVolume(c)
	if err != nil {
		t.Fatal(err)
	}
	k := v.VLUNs()[0]
	d := &disk{snapshots: map[*volume.VLUN]*snapshot{k: {name: "one"}}, founded: map[*volume.VLUN]bool{k: true}}
	if l := d.link(k, volume.Draining); l.Table != 1 || l.Sealed || l.Snapshot.State != volume.Sealing.String() {
		t.Errorf("it is recorded as %+v, %s", l, l.Snapshot.State)
	}
}

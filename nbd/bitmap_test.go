package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// dated is an export that can be compared with older states, and counts what of it is
// open.
type dated struct {
	null
	bases []string
	gone  *atomic.Bool // nothing can be compared any more
	open  *atomic.Int64
	ended chan struct{} // gets one when a device is closed
}

func newDated(bases ...string) dated {
	return dated{null{1 << 40}, bases, new(atomic.Bool), new(atomic.Int64), make(chan struct{}, 100)}
}

func (d dated) Open(name string, _ Client) (Device, Info, error) {
	if name == "plain" {
		return d.null, Info{}, nil
	}
	return d, Info{ReadOnly: true}, nil
}

func (d dated) Close(bool) { d.ended <- struct{}{} }

func (d dated) Bases() []string { return d.bases }

func (d dated) Since(name string) (Bitmap, error) {
	if !slices.Contains(d.bases, name) || d.gone.Load() {
		return nil, errors.New("nothing to compare with")
	}
	d.open.Add(1)
	return since{d, name}, nil
}

type since struct {
	dated
	name string
}

func (s since) Close() { s.open.Add(-1) }

// Extents tells of changes in the second and third block and, since "many", in every
// other one.
func (s since) Extents(off, n int64, yield func(int64, bool) bool) {
	for end := off + n; off < end; {
		b := off / 4096
		next := min((b+1)*4096, end)
		dirty := b == 1 || b == 2
		if s.name == "many" {
			dirty = b%2 == 1
		} else if b > 2 {
			next = end
		}
		if !yield(next-off, dirty) {
			return
		}
		off = next
	}
}

func TestDirtyBitmapsAreNegotiated(t *testing.T) {
	bitmap := func(names ...string) (queries []string) {
		for _, n := range names {
			queries = append(queries, wire.ContextBitmap+n)
		}
		return queries
	}
	d := newDated("a", "b", "many")
	all := []string{"CONTEXT 0 qemu:dirty-bitmap:a", "CONTEXT 0 qemu:dirty-bitmap:b", "CONTEXT 0 qemu:dirty-bitmap:many", "ACK"}
	for _, c := range []struct {
		name    string
		option  uint32
		export  string
		queries []string
		want    []string
	}{
		{"all are listed", wire.OptListMeta, "disk", nil, append([]string{"CONTEXT 0 base:allocation", "CONTEXT 0 qemu:allocation-depth"}, all...)},
		{"all are listed by their namespace", wire.OptListMeta, "disk", []string{"qemu:"}, append([]string{"CONTEXT 0 qemu:allocation-depth"}, all...)},
		{"all are listed by their prefix", wire.OptListMeta, "disk", bitmap(""), all},
		{"those named are listed", wire.OptListMeta, "disk", bitmap("b", "none", "b"), []string{"CONTEXT 0 qemu:dirty-bitmap:b", "ACK"}},
		{"none are listed of another namespace", wire.OptListMeta, "disk", []string{"base:", "x-dirty:"}, []string{"CONTEXT 0 base:allocation", "ACK"}},
		{"an export without them lists none", wire.OptListMeta, "plain", bitmap("", "a"), []string{"ACK"}},
		{"those named are selected, once", wire.OptSetMeta, "disk", bitmap("b", "a", "none", "b"), []string{"CONTEXT 4 qemu:dirty-bitmap:b", "CONTEXT 8 qemu:dirty-bitmap:a", "ACK"}},
		{"they are selected beside others", wire.OptSetMeta, "disk", append(bitmap("a"), "base:allocation"), []string{"CONTEXT 1 base:allocation", "CONTEXT 4 qemu:dirty-bitmap:a", "ACK"}},
		{"none are selected by a prefix", wire.OptSetMeta, "disk", append(bitmap(""), "qemu:", ""), []string{"ACK"}},
		{"an export without them selects none", wire.OptSetMeta, "plain", bitmap("a"), []string{"ACK"}},
	} {
		k := dial(t, d)
		k.option(wire.OptStructuredReply, nil)
		if got := k.option(c.option, metaData(c.export, c.queries...)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if n := d.open.Load(); n != 0 {
			t.Errorf("%s: %d are open", c.name, n)
		}
	}

	many := newDated("a", "b", "c", "d", "e")
	k := dial(t, many)
	k.option(wire.OptStructuredReply, nil)
	k.expect(k.option(wire.OptSetMeta, metaData("disk", bitmap("a", "b", "c", "d", "e")...)), "TOO_BIG 5 dirty bitmaps are more than the 4 that one connection may use")
	k.expect(k.option(wire.OptGo, goData("disk"))[1:], "ACK")
	k.expect(k.command(wire.Request{Command: wire.CmdBlockStatus, Length: 4096}, ""), "error 22 invalid argument")
}

func TestAListOfManyBitmapsIsWhole(t *testing.T) {
	var bases []string
	for i := range 2000 {
		bases = append(bases, fmt.Sprintf("snapshot-of-a-long-name-%d", i))
	}
	k := dial(t, newDated(bases...))
	k.option(wire.OptStructuredReply, nil)
	if got := k.option(wire.OptListMeta, metaData("disk", wire.ContextBitmap)); len(got) != 2001 || got[1999] != "CONTEXT 0 qemu:dirty-bitmap:"+bases[1999] {
		t.Errorf("%d replies", len(got))
	}
}

func TestABlockStatusTellsWhatIsDirty(t *testing.T) {
	for _, form := range []wire.Form{wire.Structured, wire.Extended} {
		d := newDated("a", "many")
		k := dial(t, d)
		k.enterForm(form, wire.ContextBitmap+"many", wire.ContextBitmap+"a")
		status := func(flags uint16, off, n uint64) []string {
			return k.command(wire.Request{Command: wire.CmdBlockStatus, Flags: flags, Offset: off, Length: n}, "")
		}
		k.expect(status(0, 512, 16<<10), "status of 4: 3584x0 4096x1 4096x0 4096x1 512x0", "status of 8: 3584x0 8192x1 4608x0")
		k.expect(status(wire.FlagReqOne, 4096, 16<<10), "status of 4: 4096x1", "status of 8: 8192x1")
		k.expect(status(0, 1<<30, 2<<30)[1:], "status of 8: 2147483648x0")
		if got := strings.Count(status(0, 0, 1<<30)[0], " "); got != 2+maxDescriptors {
			t.Errorf("form %d: a status of very many has %d descriptors", form, got-2)
		}
		if form == wire.Extended {
			k.expect(status(0, 0, 1<<40)[1:], "status of 8: 4096x0 8192x1 1099511615488x0")
			payload := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, 8192), 8)
			k.expect(k.command(wire.Request{Command: wire.CmdBlockStatus, Flags: wire.FlagPayloadLen, Length: 12}, string(payload)), "status of 8: 4096x0 4096x1")
		}
		if n := d.open.Load(); n != 2 {
			t.Errorf("form %d: %d bitmaps are open, want 2", form, n)
		}
		<-d.ended // of the probe
		k.send(k.message(wire.Request{Command: wire.CmdDisc}, ""))
		<-d.ended
		if n := d.open.Load(); n != 0 {
			t.Errorf("form %d: %d bitmaps are open at the end", form, n)
		}
	}
}

// What was selected has gone when the export is chosen: the client is told, and not
// served something else.
func TestABitmapThatHasGoneIsNotServed(t *testing.T) {
	d := newDated("a", "b")
	k := dial(t, d)
	k.option(wire.OptStructuredReply, nil)
	k.expect(k.option(wire.OptSetMeta, metaData("disk", wire.ContextBitmap+"a", wire.ContextBitmap+"b")), "CONTEXT 4 qemu:dirty-bitmap:a", "CONTEXT 8 qemu:dirty-bitmap:b", "ACK")
	d.gone.Store(true)
	k.expect(k.option(wire.OptGo, goData("disk")), "POLICY nothing to compare with")
	d.gone.Store(false)
	if n := d.open.Load(); n != 0 {
		t.Errorf("%d bitmaps are open", n)
	}
	k.expect(k.option(wire.OptInfo, goData("disk"))[1:], "ACK")
	k.expect(k.option(wire.OptGo, goData("disk"))[1:], "ACK")
	k.expect(k.command(wire.Request{Command: wire.CmdBlockStatus, Length: 4096}, ""), "status of 4: 4096x0", "status of 8: 4096x0")
}

// Whatever a client says of bitmaps, at its end none is open.
func FuzzDirtyBitmaps(f *testing.F) {
	hello := binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle|wire.ClientNoZeroes)
	for form, option := range map[wire.Form]uint32{wire.Structured: wire.OptStructuredReply, wire.Extended: wire.OptExtendedHeaders} {
		say := wire.AppendOption(bytes.Clone(hello), option, nil)
		say = wire.AppendOption(say, wire.OptListMeta, metaData("disk", "qemu:", wire.ContextBitmap))
		say = wire.AppendOption(say, wire.OptSetMeta, metaData("disk", wire.ContextBitmap+"a", wire.ContextBitmap+"many", wire.ContextBitmap+"none"))
		f.Add(wire.AppendOption(bytes.Clone(say), wire.OptGo, goData("plain")))
		f.Add(wire.AppendOption(bytes.Clone(say), wire.OptExportName, []byte("disk")))
		say = wire.AppendOption(say, wire.OptGo, goData("disk"))
		k := talk{t: f, form: form}
		say = append(say, k.message(wire.Request{Command: wire.CmdBlockStatus, Offset: 512, Length: 1 << 20}, "")...)
		say = append(say, k.message(wire.Request{Command: wire.CmdBlockStatus, Flags: wire.FlagReqOne, Length: 1 << 30}, "")...)
		f.Add(append(say, k.message(wire.Request{Command: wire.CmdDisc}, "")...))
	}
	f.Fuzz(func(t *testing.T, say []byte) {
		d := newDated("a", "b", "many")
		d.ended = make(chan struct{}, len(say)/wire.OptionSize+1)
		NewServer(d, Options{}).ServeConn(&script{say: say, piece: 1 << 20})
		if n := d.open.Load(); n != 0 {
			t.Fatalf("%d bitmaps are open", n)
		}
	})
}

package nbd

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// vast is an export of a size that no request of 32 bits spans, which notes what
// it was told.
type vast struct {
	null
	calls chan string
}

const vastSize = 1 << 50

func newVast() vast { return vast{null{vastSize}, make(chan string, 10)} }

func (v vast) Open(string, Client) (Device, Info, error) { return v, Info{}, nil }

func (v vast) note(format string, args ...any) error {
	v.calls <- fmt.Sprintf(format, args...)
	return nil
}

func (v vast) Trim(off, n int64) error  { return v.note("trim %d at %d", n, off) }
func (v vast) Cache(off, n int64) error { return v.note("cache %d at %d", n, off) }
func (v vast) WriteZeroes(off, n int64, noHole bool) error {
	return v.note("zero %d at %d, no hole %t", n, off, noHole)
}

// Extents tells of data in every other 64 GiB.
func (v vast) Extents(off, n int64, yield func(Extent) bool) error {
	const stretch = 64 << 30
	for end := off + n; off < end; {
		next := off/stretch*stretch + stretch
		if odd := off/stretch%2 == 1; !yield(Extent{Length: next - off, Hole: odd, Zero: odd, Depth: 1}) {
			break
		}
		off = next
	}
	return nil
}

func enterExtended(t testing.TB, b Backend, contexts ...string) *talk {
	t.Helper()
	k := dial(t, b)
	k.enterForm(wire.Extended, contexts...)
	return k
}

func TestExtendedHeadersAreLaidOutAsTheProtocolSays(t *testing.T) {
	m := newMemory(testSize)
	_, _ = m.write([]byte("hi"), 4096, nil)
	k := enterExtended(t, m, wire.ContextDepth)
	const offset = "\x00\x00\x00\x00\x00\x00\x10\x00"
	// request is magic, flags, command, cookie, offset, length.
	request := func(flags, command, length string) string {
		return "\x21\xe4\x1c\x71" + flags + command + "COOKIE.." + offset + "\x00\x00\x00\x00\x00\x00" + length
	}
	// chunk is magic, flags (of the last chunk), type, cookie, offset, length.
	chunk := func(kind, length string) string {
		return "\x6e\x8a\x27\x8c" + "\x00\x01" + kind + "COOKIE.." + offset + "\x00\x00\x00\x00\x00\x00" + length
	}
	for _, c := range []struct{ name, say, hear string }{
		{"a read", request("\x00\x00", "\x00\x00", "\x00\x03"), chunk("\x00\x01", "\x00\x0b") + offset + "hi\x00"},
		{"a write", request("\x00\x20", "\x00\x01", "\x00\x02") + "ho", chunk("\x00\x00", "\x00\x00")},
		{"a cache", request("\x00\x00", "\x00\x05", "\x00\x02"), chunk("\x00\x00", "\x00\x00")},
		{"a block status", request("\x00\x00", "\x00\x07", "\x20\x00"), chunk("\x00\x06", "\x00\x28") +
			"\x00\x00\x00\x02" + "\x00\x00\x00\x02" + // the context, the descriptors' count
			"\x00\x00\x00\x00\x00\x00\x10\x00" + "\x00\x00\x00\x00\x00\x00\x00\x01" +
			"\x00\x00\x00\x00\x00\x00\x10\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00"},
		{"an error", request("\x80\x00", "\x00\x03", "\x00\x00"), chunk("\x80\x01", "\x00\x16") + "\x00\x00\x00\x16" + "\x00\x10" + "invalid argument"},
	} {
		k.send([]byte(c.say))
		if got := string(k.receive(len(c.hear))); got != c.hear {
			t.Errorf("%s is answered by\n%q, not\n%q", c.name, got, c.hear)
		}
	}
}

func TestExtendedRequestsReachBeyond4GiB(t *testing.T) {
	const length = 1 << 40
	both := []string{wire.ContextAllocation, wire.ContextDepth}
	v := newVast()
	k := enterExtended(t, v, both...)
	request := func(command, flags uint16, offset, length uint64) []string {
		t.Helper()
		return k.command(wire.Request{Command: command, Flags: flags, Cookie: 7, Offset: offset, Length: length}, "")
	}
	for _, c := range []struct {
		command, flags uint16
		want           string
	}{
		{wire.CmdTrim, 0, "trim 1099511627776 at 512"},
		{wire.CmdTrim, wire.FlagFUA, "trim 1099511627776 at 512"},
		{wire.CmdZeroes, 0, "zero 1099511627776 at 512, no hole false"},
		{wire.CmdZeroes, wire.FlagNoHole, "zero 1099511627776 at 512, no hole true"},
		{wire.CmdCache, 0, "cache 1099511627776 at 512"},
	} {
		k.expect(request(c.command, c.flags, 512, length), `none""`)
		if got := <-v.calls; got != c.want {
			t.Errorf("the device was told %q, not %q", got, c.want)
		}
	}
	k.expect(request(wire.CmdBlockStatus, 0, 32<<30, 96<<30), "status of 1: 34359738368x0 68719476736x3", "status of 2: 103079215104x1")
	k.expect(request(wire.CmdBlockStatus, wire.FlagReqOne, 0, vastSize), "status of 1: 68719476736x0", "status of 2: 1125899906842624x1")
	for _, r := range []wire.Request{
		{Command: wire.CmdTrim, Offset: 1, Length: vastSize},
		{Command: wire.CmdCache, Offset: vastSize, Length: 1},
		{Command: wire.CmdBlockStatus, Length: vastSize + 1},
		{Command: wire.CmdTrim, Offset: 5, Length: 1<<64 - 1},
		{Command: wire.CmdTrim, Offset: 1<<64 - 1, Length: 1<<64 - 1},
		{Command: wire.CmdRead, Length: 1 << 32},
		{Command: wire.CmdRead, Length: 1<<32 + 512},
	} {
		k.expect(k.command(r, ""), "error 22 invalid argument")
	}
	k.expect(request(wire.CmdZeroes, 0, 1<<49, 1<<50), "error 28 no space left")
	if len(v.calls) != 0 {
		t.Errorf("the device was told %q", <-v.calls)
	}
}

func TestBlockStatusIsOfTheContextsThatItsPayloadNames(t *testing.T) {
	payload := func(length uint64, ids ...uint32) string {
		b := binary.BigEndian.AppendUint64(nil, length)
		for _, id := range ids {
			b = binary.BigEndian.AppendUint32(b, id)
		}
		return string(b)
	}
	const invalid = "error 22 invalid argument"
	m := newMemory(testSize)
	_, _ = m.write([]byte("hi"), 4096, nil)
	both := enterExtended(t, m, wire.ContextAllocation, wire.ContextDepth)
	one := enterExtended(t, m, wire.ContextDepth)
	none := enterExtended(t, m)
	for _, c := range []struct {
		name    string
		talk    *talk
		offset  uint64
		payload string
		want    string
	}{
		{"the first", both, 0, payload(8192, 1), "status of 1: 4096x3 4096x0"},
		{"the second", both, 4096, payload(8192, 2), "status of 2: 4096x1 4096x0"},
		{"both, in any order", both, 0, payload(4096, 2, 1), "status of 1: 4096x3|status of 2: 4096x0"},
		{"the only one", one, 0, payload(4096, 2), "status of 2: 4096x0"},
		{"one that was not selected", one, 0, payload(4096, 1), invalid},
		{"one that there is not", both, 0, payload(4096, 4), invalid},
		{"both in one number", both, 0, payload(4096, 3), invalid},
		{"zero", both, 0, payload(4096, 0), invalid},
		{"one twice", both, 0, payload(4096, 1, 1), invalid},
		{"more than there are", both, 0, payload(4096, 1, 2, 1), invalid},
		{"many", both, 0, payload(4096, make([]uint32, 1<<20)...), invalid},
		{"none", both, 0, payload(4096), invalid},
		{"half of one", both, 0, payload(4096, 1)[:10], invalid},
		{"no length", both, 0, payload(4096)[:4], invalid},
		{"one, of nothing", both, 0, payload(0, 1), invalid},
		{"one, beyond the end", both, 1, payload(testSize, 1), invalid},
		{"one, of a length that overflows", both, 1, payload(1<<64-1, 1), invalid},
		{"one, where none was selected", none, 0, payload(4096, 1), invalid},
	} {
		r := wire.Request{Command: wire.CmdBlockStatus, Cookie: 5, Offset: c.offset, Length: uint64(len(c.payload))}
		if got := strings.Join(c.talk.command(r, c.payload), "|"); got != c.want {
			t.Errorf("%s: %q, not %q", c.name, got, c.want)
		}
		// Whatever it was, the session lives on.
		c.talk.expect(c.talk.command(wire.Request{Command: wire.CmdFlush, Cookie: 6}, ""), `none""`)
	}
	empty := wire.Request{Command: wire.CmdBlockStatus, Flags: wire.FlagPayloadLen}
	both.expect(both.command(empty, ""), invalid)
}

func TestPayloadsFollowWritesAndWhatSaysSo(t *testing.T) {
	m := newMemory(testSize)
	k := enterExtended(t, m)
	for _, command := range []uint16{wire.CmdRead, wire.CmdFlush, wire.CmdTrim, wire.CmdCache, wire.CmdZeroes, 77} {
		k.expect(k.command(wire.Request{Command: command, Length: 5}, "bytes"), "error 22 invalid argument")
	}
	write := wire.Request{Command: wire.CmdWrite, Length: 4}
	// As qemu does, and libnbd that is not strict. If that data were taken for
	// requests, it would let whoever wrote it give orders.
	k.send(append(wire.Extended.AppendRequest(nil, &write), "DATA"...))
	k.expect(k.reply(write), `none""`)
	k.expect(k.command(wire.Request{Command: wire.CmdRead, Length: 4}, ""), `data 0 "DATA"`)
	k.expect(k.command(write, "data"), `none""`)
	k.expect(k.command(wire.Request{Command: wire.CmdRead, Length: 4}, ""), `data 0 "data"`)
	t.Run("and end the session if they are longer than was announced", func(t *testing.T) {
		for _, length := range []uint64{maxPayloadBytes + 1, 1 << 40, 1<<64 - 1} {
			k := enterExtended(t, m)
			k.send(wire.Extended.AppendRequest(nil, &wire.Request{Command: wire.CmdWrite, Flags: wire.FlagPayloadLen, Length: length}))
			k.expectClosed()
		}
	})
	t.Run("and end the session with a header of the other form", func(t *testing.T) {
		k := enterExtended(t, m)
		k.send(append(write.Append(nil), "data"...))
		k.expectClosed()
		k = enter(t, m, true)
		k.send(wire.Extended.AppendRequest(nil, &write))
		k.expectClosed()
	})
}

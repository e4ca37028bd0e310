package nbd

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

func TestOptionIsAnswered(t *testing.T) {
	const (
		writable = "EXPORT 1048576 0xc6d" // FLUSH FUA TRIM ZEROES CACHE FAST_ZERO
		list     = "ACK"
		reason   = `nbd: no such export: "nope"`
	)
	long := strings.Repeat("x", wire.MaxStringBytes+1)
	type option struct {
		number uint32
		data   []byte
	}
	structured, extended := option{wire.OptStructuredReply, nil}, option{wire.OptExtendedHeaders, nil}
	for _, c := range []struct {
		name    string
		info    Info
		options []option
		want    []string // of the last option
	}{
		{"an unknown option is unsupported", Info{}, []option{{77, []byte("abc")}}, []string{"UNSUP unknown option"}},
		{"extended headers take no data", Info{}, []option{{wire.OptExtendedHeaders, []byte("x")}}, []string{"INVALID this option takes no data"}},
		{"extended headers are agreed on", Info{}, []option{extended}, []string{"ACK"}},
		{"extended headers after structured replies are agreed on", Info{}, []option{structured, extended}, []string{"ACK"}},
		{"extended headers are not taken back", Info{}, []option{extended, structured},
			[]string{"EXT_HEADER_REQD extended headers are agreed on, and include structured replies"}},
		{"INFO tells DF and what status may have after extended headers", Info{}, []option{extended, {wire.OptInfo, goData("disk")}}, []string{"EXPORT 1048576 0x1ced", "ACK"}},
		{"contexts are selected with extended headers", Info{}, []option{extended, {wire.OptSetMeta, metaData("disk", "base:allocation")}}, []string{"CONTEXT 1 base:allocation", "ACK"}},
		{"TLS is refused", Info{}, []option{{wire.OptStartTLS, nil}}, []string{"POLICY this server does not use TLS"}},
		{"LIST shows the exports", Info{}, []option{{wire.OptList, nil}}, []string{"SERVER disk", "SERVER other", list}},
		{"LIST takes no data", Info{}, []option{{wire.OptList, []byte("x")}}, []string{"INVALID NBD_OPT_LIST takes no data"}},
		{"structured replies take no data", Info{}, []option{{wire.OptStructuredReply, []byte("x")}}, []string{"INVALID this option takes no data"}},
		{"INFO tells size and flags", Info{}, []option{{wire.OptInfo, goData("disk")}}, []string{writable, "ACK"}},
		{"INFO tells DF after structured replies", Info{}, []option{structured, {wire.OptInfo, goData("disk")}}, []string{"EXPORT 1048576 0xced", "ACK"}},
		{"a read-only export announces no writes", Info{ReadOnly: true}, []option{{wire.OptInfo, goData("disk")}}, []string{"EXPORT 1048576 0x40f", "ACK"}},
		{"multi-conn is announced", Info{MultiConn: true}, []option{{wire.OptInfo, goData("disk")}}, []string{"EXPORT 1048576 0xd6d", "ACK"}},
		{"INFO tells what is asked, once", Info{Description: "all of it"},
			[]option{{wire.OptInfo, goData("disk", wire.InfoBlockSize, wire.InfoName, wire.InfoName, wire.InfoDescription, 99)}},
			[]string{writable, "BLOCK_SIZE 1 4096 33554432", "NAME disk", "DESCRIPTION all of it", "ACK"}},
		{"an unknown export is unknown", Info{}, []option{{wire.OptGo, goData("nope")}}, []string{"UNKNOWN " + reason}},
		{"INFO too refuses an unknown export", Info{}, []option{{wire.OptInfo, goData("nope")}}, []string{"UNKNOWN " + reason}},
		{"an export in use is refused", Info{}, []option{{wire.OptGo, goData("busy")}}, []string{"POLICY nbd: export refused: busy is in use"}},
		{"the empty name reaches the backend", Info{}, []option{{wire.OptGo, goData("")}},
			[]string{"INVALID nbd: bad export name: the name is empty; there are: disk"}},
		{"a name that is too long is too big", Info{}, []option{{wire.OptGo, goData(long)}}, []string{"TOO_BIG a name of 4097 bytes is longer than 4096"}},
		{"data that is too long is dropped", Info{}, []option{{wire.OptGo, make([]byte, 1<<20)}}, []string{"TOO_BIG 1048576 bytes of data are more than 16384"}},
		{"GO without data is invalid", Info{}, []option{{wire.OptGo, nil}}, []string{"INVALID malformed data"}},
		{"GO with too few information types is invalid", Info{}, []option{{wire.OptGo, goData("disk", 1, 2)[:12]}}, []string{"INVALID malformed data"}},
		{"GO with a name that overruns is invalid", Info{}, []option{{wire.OptGo, []byte("\xff\xff\xff\xffdisk\x00\x00")}}, []string{"INVALID malformed data"}},
		{"contexts need structured replies", Info{}, []option{{wire.OptSetMeta, metaData("disk")}}, []string{"INVALID metadata contexts need structured replies or extended headers first"}},
		{"contexts are listed", Info{}, []option{structured, {wire.OptListMeta, metaData("disk")}},
			[]string{"CONTEXT 0 base:allocation", "CONTEXT 0 qemu:allocation-depth", "ACK"}},
		{"contexts are listed by an empty query", Info{}, []option{structured, {wire.OptListMeta, metaData("disk", "")}},
			[]string{"CONTEXT 0 base:allocation", "CONTEXT 0 qemu:allocation-depth", "ACK"}},
		{"contexts are listed by namespace", Info{}, []option{structured, {wire.OptListMeta, metaData("disk", "qemu:", "x-y:")}},
			[]string{"CONTEXT 0 qemu:allocation-depth", "ACK"}},
		{"contexts are selected by name", Info{}, []option{structured, {wire.OptSetMeta, metaData("disk", "qemu:allocation-depth", "base:allocation", "base:other")}},
			[]string{"CONTEXT 1 base:allocation", "CONTEXT 2 qemu:allocation-depth", "ACK"}},
		{"contexts are not selected by namespace", Info{}, []option{structured, {wire.OptSetMeta, metaData("disk", "base:", "")}}, []string{"ACK"}},
		{"contexts of an unknown export are refused", Info{}, []option{structured, {wire.OptSetMeta, metaData("nope", "base:allocation")}}, []string{"UNKNOWN " + reason}},
		{"a query that overruns is invalid", Info{}, []option{structured, {wire.OptSetMeta, metaData("disk", "base:allocation")[:20]}}, []string{"INVALID malformed query"}},
		{"a count of queries that overruns is invalid", Info{}, []option{structured, {wire.OptListMeta, binary.BigEndian.AppendUint32(wire.AppendString(nil, "disk"), math.MaxUint32)}},
			[]string{"INVALID malformed query"}},
		{"data after the last query is invalid", Info{}, []option{structured, {wire.OptListMeta, append(metaData("disk"), 0)}}, []string{"INVALID data after the last query"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(1 << 20)
			m.info = c.info
			k := dial(t, m)
			var got []string
			for _, o := range c.options {
				if got = k.option(o.number, o.data); o.number == wire.OptExtendedHeaders && got[0] == "ACK" {
					k.form = wire.Extended
				}
			}
			k.expect(got, c.want...)
			// Whatever it was, the session lives on, and an export can be had.
			replies := k.option(wire.OptGo, goData("disk"))
			k.expect(replies[1:], "ACK")
			k.send(k.message(wire.Request{Command: wire.CmdDisc}, ""))
			k.expectClosed()
			if opened, closed := m.opened.Load(), int64(len(m.closed)); closed > opened {
				t.Errorf("opened %d times, closed %d times", opened, closed)
			}
		})
	}
}

func TestExportNameEntersTransmission(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags uint32
		want  int
	}{
		{"with 124 zeros for an old client", wire.ClientFixedNewstyle, 8 + 2 + 124},
		{"without them for one that can do without", wire.ClientFixedNewstyle | wire.ClientNoZeroes, 8 + 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(1 << 20)
			client, server := socketPair(t)
			go NewServer(m, Options{}).ServeConn(server)
			k := &talk{t: t, nc: client}
			k.hello(c.flags)
			k.send(wire.AppendOption(nil, wire.OptExportName, []byte("disk")))
			b := k.receive(c.want)
			if size, flags := binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:]); size != 1<<20 || flags != 0xc6d {
				t.Errorf("size %d, flags %#x", size, flags)
			}
			if !bytes.Equal(b[10:], make([]byte, len(b)-10)) {
				t.Errorf("padding is not zeros")
			}
			k.expect(k.command(wire.Request{Command: wire.CmdRead, Cookie: 5, Length: 3}, ""), `simple 0 "\x00\x00\x00"`)
		})
	}
}

func TestHandshakeEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		send []byte
		want []string // of option 2
	}{
		{"after ABORT, with an answer", wire.AppendOption(nil, wire.OptAbort, nil), []string{"ACK"}},
		{"at a bad magic", bytes.Repeat([]byte("?"), wire.OptionSize), nil},
		{"at EXPORT_NAME of no export", wire.AppendOption(nil, wire.OptExportName, []byte("nope")), nil},
		{"at EXPORT_NAME that is too long", binary.BigEndian.AppendUint32(wire.AppendOption(nil, wire.OptExportName, nil)[:12], 1<<30), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := dial(t, newMemory(1<<20))
			k.send(c.send)
			if c.want != nil {
				k.expect(k.optionReplies(wire.OptAbort), c.want...)
			}
			k.expectClosed()
		})
	}
	t.Run("at EXPORT_NAME after extended headers", func(t *testing.T) {
		k := dial(t, newMemory(1<<20))
		k.expect(k.option(wire.OptExtendedHeaders, nil), "ACK")
		k.send(wire.AppendOption(nil, wire.OptExportName, []byte("disk")))
		k.expectClosed()
	})
	t.Run("at unknown client flags", func(t *testing.T) {
		client, server := socketPair(t)
		go NewServer(newMemory(1<<20), Options{}).ServeConn(server)
		k := &talk{t: t, nc: client}
		k.hello(1 << 5)
		k.expectClosed()
	})
}

package nbd

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"math"
	"net"
	"testing"
	"time"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// A script is a connection whose client says what it says, in pieces, and
// hangs up; the replies are counted.
type script struct {
	net.Conn // for the methods that nobody calls
	say      []byte
	piece    int
	heard    int64
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.say) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.say[:min(len(s.say), s.piece)])
	s.say = s.say[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	s.heard += int64(len(p))
	return len(p), nil
}

func (*script) Close() error                     { return nil }
func (*script) SetDeadline(time.Time) error      { return nil }
func (*script) SetReadDeadline(time.Time) error  { return nil }
func (*script) SetWriteDeadline(time.Time) error { return nil }
func (*script) RemoteAddr() net.Addr             { return &net.UnixAddr{} }

// serveScript serves it to its end, and checks that nothing is left of it: each
// open was met by a close, and all that was drawn on the budget is given back.
func serveScript(t *testing.T, say []byte, piece uint16, cold bool) (m *memory, heard int64) {
	return serveScriptWith(t, Options{}, say, piece, cold)
}

func serveScriptWith(t *testing.T, o Options, say []byte, piece uint16, cold bool) (m *memory, heard int64) {
	m = newMemory(64 << 10)
	m.closed = make(chan bool, len(say)/wire.OptionSize+1)
	m.cold.Store(cold)
	s := &script{say: say, piece: int(piece) + 1}
	p := newPool(t, m, o)
	p.server.ServeConn(s)
	p.expectNothing()
	if opened, closed := m.opened.Load(), int64(len(m.closed)); opened != closed {
		t.Fatalf("%d opened, %d closed", opened, closed)
	}
	if m.running.Load() != 0 {
		t.Fatalf("calls of the device are running")
	}
	return m, s.heard
}

func FuzzHandshake(f *testing.F) {
	hello := binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle|wire.ClientNoZeroes)
	for _, option := range []struct {
		number uint32
		data   []byte
	}{
		{wire.OptExportName, []byte("disk")}, {wire.OptAbort, nil}, {wire.OptList, nil}, {wire.OptStartTLS, nil},
		{wire.OptInfo, goData("disk", 0, 1, 2, 3)}, {wire.OptGo, goData("disk")}, {wire.OptGo, goData("nope")},
		{wire.OptSetMeta, metaData("disk", wire.ContextAllocation)}, {wire.OptListMeta, metaData("disk", "", "base:")},
	} {
		say := wire.AppendOption(bytes.Clone(hello), wire.OptStructuredReply, nil)
		f.Add(wire.AppendOption(wire.AppendOption(bytes.Clone(hello), wire.OptExtendedHeaders, nil), option.number, option.data), uint16(40))
		f.Add(wire.AppendOption(say, option.number, option.data), uint16(math.MaxUint16))
	}
	f.Fuzz(func(t *testing.T, say []byte, piece uint16) {
		_, heard := serveScript(t, say, piece, false)
		// The dearest answer is the list, to an option of no data; then a
		// read's, whose data is at most the device.
		if most := int64(wire.HelloSize) + int64(len(say)/wire.OptionSize+1)*(64<<10+200); heard > most {
			t.Errorf("%d bytes of replies to %d", heard, len(say))
		}
	})
}

func FuzzTransmission(f *testing.F) {
	intro := binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle|wire.ClientNoZeroes)
	plain := wire.AppendOption(bytes.Clone(intro), wire.OptGo, goData("disk"))
	intro = wire.AppendOption(intro, wire.OptStructuredReply, nil)
	intro = wire.AppendOption(intro, wire.OptSetMeta, metaData("disk", wire.ContextAllocation, wire.ContextDepth))
	intro = wire.AppendOption(intro, wire.OptGo, goData("disk"))
	var all []byte
	for _, r := range []wire.Request{
		{Command: wire.CmdRead, Length: 4096},
		{Command: wire.CmdWrite, Length: 3},
		{Command: wire.CmdWrite, Flags: wire.FlagFUA, Offset: 4095, Length: 3},
		{Command: wire.CmdFlush},
		{Command: wire.CmdTrim, Length: 64 << 10},
		{Command: wire.CmdZeroes, Flags: wire.FlagNoHole, Offset: 1, Length: 9999},
		{Command: wire.CmdBlockStatus, Length: 64 << 10},
		{Command: wire.CmdBlockStatus, Flags: wire.FlagReqOne, Offset: 4000, Length: 8000},
		{Command: wire.CmdCache, Length: 1},
		{Command: wire.CmdWrite, Offset: math.MaxUint64, Length: 3},
		{Command: wire.CmdDisc},
	} {
		message := r.Append(nil)
		if r.Command == wire.CmdWrite {
			message = append(message, "abc"...)
		}
		f.Add(message, uint16(math.MaxUint16), true, false)
		all = append(all, message...)
	}
	f.Add(all, uint16(0), true, true)
	f.Add(all, uint16(40), false, false)
	f.Add(wire.Request{Command: wire.CmdWrite, Length: math.MaxUint32}.Append(nil), uint16(9), true, false)
	f.Fuzz(func(t *testing.T, requests []byte, piece uint16, structured, cold bool) {
		say := plain
		if structured {
			say = intro
		}
		serveScript(t, append(bytes.Clone(say), requests...), piece, cold)
	})
}

func FuzzExtendedTransmission(f *testing.F) {
	intro := binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle|wire.ClientNoZeroes)
	intro = wire.AppendOption(intro, wire.OptExtendedHeaders, nil)
	intro = wire.AppendOption(intro, wire.OptSetMeta, metaData("disk", wire.ContextAllocation, wire.ContextDepth))
	intro = wire.AppendOption(intro, wire.OptGo, goData("disk"))
	const withPayload = wire.FlagPayloadLen
	var all []byte
	for _, r := range []struct {
		wire.Request
		payload string
	}{
		{wire.Request{Command: wire.CmdRead, Length: 4096}, ""},
		{wire.Request{Command: wire.CmdWrite, Flags: withPayload, Length: 3}, "abc"},
		{wire.Request{Command: wire.CmdWrite, Length: 3}, ""},
		{wire.Request{Command: wire.CmdTrim, Length: 1 << 40}, ""},
		{wire.Request{Command: wire.CmdZeroes, Flags: wire.FlagNoHole, Offset: 1, Length: 9999}, ""},
		{wire.Request{Command: wire.CmdCache, Flags: wire.FlagFUA, Length: 64 << 10}, ""},
		{wire.Request{Command: wire.CmdBlockStatus, Length: 64 << 10}, ""},
		{wire.Request{Command: wire.CmdBlockStatus, Flags: withPayload, Offset: 4096, Length: 12}, "\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x00\x02"},
		{wire.Request{Command: wire.CmdBlockStatus, Flags: withPayload, Length: 3}, "abc"},
		{wire.Request{Command: wire.CmdFlush, Flags: withPayload, Length: 3}, "abc"},
		{wire.Request{Command: wire.CmdWrite, Flags: withPayload, Length: math.MaxUint64}, "abc"},
		{wire.Request{Command: wire.CmdDisc}, ""},
	} {
		message := append(wire.Extended.AppendRequest(nil, &r.Request), r.payload...)
		f.Add(message, uint16(math.MaxUint16), false)
		all = append(all, message...)
	}
	f.Add(all, uint16(0), true)
	f.Add(all, uint16(40), false)
	f.Fuzz(func(t *testing.T, requests []byte, piece uint16, cold bool) {
		serveScript(t, append(bytes.Clone(intro), requests...), piece, cold)
	})
}

// FuzzStartTLS is the plain side of a server that offers TLS, and what comes
// instead of a client's part of it.
func FuzzStartTLS(f *testing.F) {
	a := certtest.New(f)
	config := a.Server()
	hello := binary.BigEndian.AppendUint32(nil, wire.ClientFixedNewstyle|wire.ClientNoZeroes)
	startTLS := wire.AppendOption(bytes.Clone(hello), wire.OptStartTLS, nil)
	f.Add(startTLS, uint16(math.MaxUint16), true)
	f.Add(append(bytes.Clone(startTLS), clientHello(f, a.Client(""))...), uint16(0), true)
	f.Add(append(bytes.Clone(startTLS), wire.AppendOption(nil, wire.OptGo, goData("disk"))...), uint16(math.MaxUint16), false)
	f.Add(wire.AppendOption(bytes.Clone(hello), wire.OptGo, goData("disk")), uint16(0), true)
	f.Fuzz(func(t *testing.T, say []byte, piece uint16, require bool) {
		mode := TLSAllow
		if require {
			mode = TLSRequire
		}
		if m, _ := serveScriptWith(t, Options{TLS: config, TLSMode: mode}, say, piece, false); require && m.opened.Load() != 0 {
			t.Errorf("an export was opened without TLS")
		}
	})
}

// clientHello is the first thing that a client of TLS says.
func clientHello(t testing.TB, config *tls.Config) []byte {
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	go func() { _ = tls.Client(far, config).Handshake() }()
	b := make([]byte, 16<<10)
	n, err := near.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

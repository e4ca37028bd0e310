package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// A talk is a client that says what a test tells it to, right or wrong, and
// renders each reply as a line of text.
type talk struct {
	t    testing.TB
	nc   net.Conn
	form wire.Form
}

// dial starts a connection to a server of b and finishes its greeting.
func dial(t testing.TB, b Backend) *talk {
	t.Helper()
	return dialWith(t, b, Options{})
}

func dialWith(t testing.TB, b Backend, o Options) *talk {
	t.Helper()
	client, server := socketPair(t)
	s := NewServer(b, o)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.ServeConn(server)
	}()
	t.Cleanup(func() {
		_ = client.Close()
		<-ended
	})
	k := &talk{t: t, nc: client}
	k.hello(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	return k
}

// enter takes a talk to the transmission phase.
func enter(t testing.TB, b Backend, structured bool, contexts ...string) *talk {
	t.Helper()
	k := dial(t, b)
	k.enter(structured, contexts...)
	return k
}

func (k *talk) enter(structured bool, contexts ...string) {
	k.t.Helper()
	if structured {
		k.enterForm(wire.Structured, contexts...)
	} else {
		k.enterForm(wire.Simple, contexts...)
	}
}

func (k *talk) enterForm(form wire.Form, contexts ...string) {
	k.t.Helper()
	switch k.form = form; form {
	case wire.Structured:
		k.expect(k.option(wire.OptStructuredReply, nil), "ACK")
	case wire.Extended:
		k.expect(k.option(wire.OptExtendedHeaders, nil), "ACK")
	}
	if len(contexts) > 0 {
		replies := k.option(wire.OptSetMeta, metaData("disk", contexts...))
		if len(replies) != len(contexts)+1 {
			k.t.Fatalf("selecting %q: %q", contexts, replies)
		}
	}
	replies := k.option(wire.OptGo, goData("disk"))
	k.expect(replies[len(replies)-1:], "ACK")
}

func (k *talk) expect(got []string, want ...string) {
	k.t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		k.t.Fatalf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func (k *talk) hello(flags uint32) {
	k.t.Helper()
	b := k.receive(wire.HelloSize)
	if got := fmt.Sprintf("%s %s %d", b[:8], b[8:16], b[17]); got != "NBDMAGIC IHAVEOPT 3" {
		k.t.Fatalf("greeting: %q", got)
	}
	k.send(binary.BigEndian.AppendUint32(nil, flags))
}

func (k *talk) send(b []byte) {
	k.t.Helper()
	if _, err := k.nc.Write(b); err != nil {
		k.t.Fatalf("send: %v", err)
	}
}

func (k *talk) receive(n int) []byte {
	k.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(k.nc, b); err != nil {
		k.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return b
}

// expectClosed waits for the server to hang up, without another byte.
func (k *talk) expectClosed() {
	k.t.Helper()
	if n, err := k.nc.Read(make([]byte, 1)); n != 0 || err == nil {
		k.t.Fatalf("the connection lives on (read %d, %v)", n, err)
	}
}

// option sends an option and returns the replies up to the last.
func (k *talk) option(option uint32, data []byte) []string {
	k.t.Helper()
	k.send(wire.AppendOption(nil, option, data))
	return k.optionReplies(option)
}

func (k *talk) optionReplies(option uint32) (replies []string) {
	k.t.Helper()
	for {
		b := k.receive(wire.OptReplySize)
		if magic, to := binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]); magic != wire.MagicOptReply || to != option {
			k.t.Fatalf("reply to option %d: magic %#x, option %d", option, magic, to)
		}
		kind := binary.BigEndian.Uint32(b[12:])
		data := k.receive(int(binary.BigEndian.Uint32(b[16:])))
		replies = append(replies, renderOptReply(kind, data))
		if kind == wire.RepAck || kind&wire.RepErr != 0 {
			return replies
		}
	}
}

func renderOptReply(kind uint32, data []byte) string {
	errorNames := map[uint32]string{
		wire.RepErrUnsup: "UNSUP", wire.RepErrPolicy: "POLICY", wire.RepErrInvalid: "INVALID",
		wire.RepErrTLSRequired: "TLS_REQD", wire.RepErrExtended: "EXT_HEADER_REQD",
		wire.RepErrUnknown: "UNKNOWN", wire.RepErrShutdown: "SHUTDOWN", wire.RepErrTooBig: "TOO_BIG",
	}
	switch {
	case kind == wire.RepAck:
		return strings.TrimSpace("ACK " + string(data))
	case kind == wire.RepServer:
		return "SERVER " + string(data[4:])
	case kind == wire.RepMetaContext:
		return fmt.Sprintf("CONTEXT %d %s", binary.BigEndian.Uint32(data), data[4:])
	case kind == wire.RepInfo:
		switch info, data := binary.BigEndian.Uint16(data), data[2:]; info {
		case wire.InfoExport:
			return fmt.Sprintf("EXPORT %d %#x", binary.BigEndian.Uint64(data), binary.BigEndian.Uint16(data[8:]))
		case wire.InfoName:
			return "NAME " + string(data)
		case wire.InfoDescription:
			return "DESCRIPTION " + string(data)
		case wire.InfoBlockSize:
			return fmt.Sprintf("BLOCK_SIZE %d %d %d", binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:]))
		}
	case errorNames[kind] != "":
		return errorNames[kind] + " " + string(data)
	}
	return fmt.Sprintf("? %#x %q", kind, data)
}

// command sends a command and returns its reply.
func (k *talk) command(r wire.Request, payload string) []string {
	k.t.Helper()
	k.send(k.message(r, payload))
	return k.reply(r)
}

// message is a request in the talk's form, with PAYLOAD_LEN if that needs it.
func (k *talk) message(r wire.Request, payload string) []byte {
	if k.form == wire.Extended && (r.Command == wire.CmdWrite || payload != "") {
		r.Flags |= wire.FlagPayloadLen
	}
	return append(k.form.AppendRequest(nil, &r), payload...)
}

// reply receives one reply, which is to answer r.
func (k *talk) reply(r wire.Request) (chunks []string) {
	k.t.Helper()
	for {
		switch magic := binary.BigEndian.Uint32(k.receive(4)); magic {
		case wire.MagicSimple:
			b := k.receive(wire.SimpleSize - 4)
			k.expectCookie(r, b[4:])
			e := binary.BigEndian.Uint32(b)
			if r.Command != wire.CmdRead || e != 0 {
				return append(chunks, fmt.Sprintf("simple %d", e))
			}
			return append(chunks, fmt.Sprintf("simple 0 %q", k.receive(int(r.Length))))
		case wire.MagicStructured:
			b := k.receive(wire.ChunkSize - 4)
			k.expectCookie(r, b[4:])
			chunks = append(chunks, renderChunk(binary.BigEndian.Uint16(b[2:]), k.receive(int(binary.BigEndian.Uint32(b[12:])))))
			if binary.BigEndian.Uint16(b) == wire.ChunkDone {
				return chunks
			}
		case wire.MagicExtendedChunk:
			b := k.receive(wire.ExtendedSize - 4)
			k.expectCookie(r, b[4:])
			if offset := binary.BigEndian.Uint64(b[12:]); k.form != wire.Extended || offset != r.Offset {
				k.t.Fatalf("reply to offset %d, not %d, in form %d", offset, r.Offset, k.form)
			}
			chunks = append(chunks, renderChunk(binary.BigEndian.Uint16(b[2:]), k.receive(int(binary.BigEndian.Uint64(b[20:])))))
			if binary.BigEndian.Uint16(b) == wire.ChunkDone {
				return chunks
			}
		default:
			k.t.Fatalf("reply with magic %#x", magic)
		}
	}
}

func (k *talk) expectCookie(r wire.Request, b []byte) {
	k.t.Helper()
	if cookie := binary.BigEndian.Uint64(b); cookie != r.Cookie {
		k.t.Fatalf("reply to cookie %d, not %d", cookie, r.Cookie)
	}
}

func renderChunk(kind uint16, b []byte) string {
	switch kind {
	case wire.ChunkNone:
		return fmt.Sprintf("none%q", b)
	case wire.ChunkData:
		return fmt.Sprintf("data %d %q", binary.BigEndian.Uint64(b), b[8:])
	case wire.ChunkError:
		return fmt.Sprintf("error %d %s", binary.BigEndian.Uint32(b), b[6:6+binary.BigEndian.Uint16(b[4:])])
	case wire.ChunkBlockStatus:
		text := fmt.Sprintf("status of %d:", binary.BigEndian.Uint32(b))
		for b = b[4:]; len(b) > 0; b = b[8:] {
			text += fmt.Sprintf(" %dx%d", binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]))
		}
		return text
	case wire.ChunkBlockStatusExt:
		text := fmt.Sprintf("status of %d:", binary.BigEndian.Uint32(b))
		if count := int(binary.BigEndian.Uint32(b[4:])); count != len(b[8:])/16 {
			return fmt.Sprintf("status of %d descriptors in %d bytes", count, len(b))
		}
		for b = b[8:]; len(b) > 0; b = b[16:] {
			text += fmt.Sprintf(" %dx%d", binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]))
		}
		return text
	}
	return fmt.Sprintf("? %#x %q", kind, b)
}

// goData is the data of OptInfo and OptGo.
func goData(name string, infos ...uint16) []byte {
	b := wire.AppendString(nil, name)
	b = binary.BigEndian.AppendUint16(b, uint16(len(infos)))
	for _, info := range infos {
		b = binary.BigEndian.AppendUint16(b, info)
	}
	return b
}

// metaData is the data of the metadata context options.
func metaData(name string, queries ...string) []byte {
	b := wire.AppendString(nil, name)
	b = binary.BigEndian.AppendUint32(b, uint32(len(queries)))
	for _, query := range queries {
		b = wire.AppendString(b, query)
	}
	return b
}

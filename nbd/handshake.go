package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// maxOptionBytes is the longest data of an option that is looked at. The
// longest useful one has an export's name, at most 4096 bytes, and some queries.
const maxOptionBytes = 16 << 10

// Block sizes of NBD_INFO_BLOCK_SIZE.
const (
	minBlockBytes       = 1
	preferredBlockBytes = 4096
	// maxPayloadBytes is the most that one read or write may carry. Trims and
	// the like, which carry nothing, are not bound by it.
	maxPayloadBytes = 32 << 20
)

var (
	errAborted  = errors.New("nbd: client aborted the handshake")
	errBadMagic = errors.New("nbd: bad magic from the client")
)

// A contextSet is the metadata contexts that a client selected; the values
// are the context ids on the wire.
type contextSet uint32

const (
	allocationID contextSet = 1 << 0
	depthID      contextSet = 1 << 1
)

// contexts lists what there is, in the order of replies.
var contexts = [...]struct {
	id   contextSet
	name string
}{{allocationID, wire.ContextAllocation}, {depthID, wire.ContextDepth}}

// A handshake is a connection in option haggling ("Fixed newstyle negotiation").
type handshake struct {
	server   *Server
	nc       net.Conn
	in       intake
	out      []byte // replies to the option at hand
	noZeroes bool

	structured bool
	selected   contextSet
	contextsOf string // the export for which contexts were selected
}

// A decision ends the handshake: the export to serve.
type decision struct {
	name   string
	device Device
	info   Info
}

// handshake haggles until the client chooses an export, and returns the session over it.
func (s *Server) handshake(nc net.Conn) (*session, error) {
	memory := takeBuffer(wire.OptionSize + maxOptionBytes)
	defer memory.release()
	h := &handshake{server: s, nc: nc, in: intake{nc: nc, shutdown: &s.closing}}
	h.in.use(memory.bytes)
	if err := h.hello(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	for {
		option, data, err := h.next()
		if err != nil {
			return nil, fmt.Errorf("handshake: %w", err)
		}
		d, end := h.answer(option, data)
		if _, err := nc.Write(h.out); err != nil && end == nil {
			end = fmt.Errorf("reply: %w", err)
		}
		if end != nil {
			if d != nil {
				d.device.Close(true)
			}
			return nil, fmt.Errorf("handshake: option %d: %w", option, end)
		}
		if d != nil {
			return h.session(d), nil
		}
	}
}

// hello exchanges magic numbers and flags.
func (h *handshake) hello() error {
	b := binary.BigEndian.AppendUint64(nil, wire.MagicHello)
	b = binary.BigEndian.AppendUint64(b, wire.MagicOption)
	b = binary.BigEndian.AppendUint16(b, wire.FlagFixedNewstyle|wire.FlagNoZeroes)
	if _, err := h.nc.Write(b); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	b, err := h.in.need(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b)
	h.in.consume(4)
	// A client without the fixed newstyle flag may use OptExportName only;
	// that it gets replies to other options hurts nobody.
	if unknown := flags &^ (wire.ClientFixedNewstyle | wire.ClientNoZeroes); unknown != 0 {
		return fmt.Errorf("unknown client flags %#x", unknown)
	}
	h.noZeroes = flags&wire.ClientNoZeroes != 0
	return nil
}

// next receives an option; data longer than maxOptionBytes is dropped, answered,
// and not returned. data is valid until the next call.
func (h *handshake) next() (option uint32, data []byte, err error) {
	for {
		h.out = h.out[:0]
		b, err := h.in.need(wire.OptionSize)
		if err != nil {
			return 0, nil, err
		}
		if binary.BigEndian.Uint64(b) != wire.MagicOption {
			return 0, nil, errBadMagic
		}
		option = binary.BigEndian.Uint32(b[8:])
		length := binary.BigEndian.Uint32(b[12:])
		h.in.consume(wire.OptionSize)
		if length <= maxOptionBytes {
			data, err = h.in.need(int(length))
			h.in.consume(len(data))
			return option, data, err
		}
		if option == wire.OptExportName {
			return 0, nil, fmt.Errorf("export name of %d bytes", length)
		}
		if err := h.in.discard(int64(length)); err != nil {
			return 0, nil, err
		}
		h.fail(option, wire.RepErrTooBig, fmt.Sprintf("%d bytes of data are more than %d", length, maxOptionBytes))
		if _, err := h.nc.Write(h.out); err != nil {
			return 0, nil, fmt.Errorf("reply: %w", err)
		}
	}
}

// answer puts the replies to an option into h.out. It returns the decision if
// the option made one, and an error if the connection is to end after the replies.
func (h *handshake) answer(option uint32, data []byte) (*decision, error) {
	if h.in.closing && option != wire.OptAbort {
		if option == wire.OptExportName {
			return nil, ErrServerClosed
		}
		h.fail(option, wire.RepErrShutdown, ErrShutdown.Error())
		return nil, nil
	}
	switch option {
	case wire.OptExportName:
		return h.exportName(string(data))
	case wire.OptAbort:
		h.ack(option)
		return nil, errAborted
	case wire.OptList:
		h.list(data)
	case wire.OptInfo, wire.OptGo:
		return h.infoOrGo(option, data), nil
	case wire.OptStructuredReply:
		if len(data) != 0 {
			h.fail(option, wire.RepErrInvalid, "NBD_OPT_STRUCTURED_REPLY takes no data")
			break
		}
		h.structured = true
		h.ack(option)
	case wire.OptListMeta, wire.OptSetMeta:
		h.metaContext(option, data)
	case wire.OptStartTLS:
		h.fail(option, wire.RepErrPolicy, "this server does not use TLS")
	default:
		h.fail(option, wire.RepErrUnsup, "unknown option")
	}
	return nil, nil
}

// exportName is the old way to choose an export: the only refusal is to hang up.
func (h *handshake) exportName(name string) (*decision, error) {
	device, info, err := h.server.backend.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open export %q: %w", name, err)
	}
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(device.SizeBytes()))
	h.out = binary.BigEndian.AppendUint16(h.out, h.transmissionFlags(info))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	return &decision{name, device, info}, nil
}

func (h *handshake) list(data []byte) {
	if len(data) != 0 {
		h.fail(wire.OptList, wire.RepErrInvalid, "NBD_OPT_LIST takes no data")
		return
	}
	for _, name := range h.server.backend.List() {
		h.reply(wire.OptList, wire.RepServer, 4+len(name))
		h.out = wire.AppendString(h.out, name)
	}
	h.ack(wire.OptList)
}

// infoOrGo tells of an export, and with OptGo chooses it. Data: the name, led
// by its length in 32 bits; a count in 16 bits; so many information types of
// 16 bits.
func (h *handshake) infoOrGo(option uint32, data []byte) *decision {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 || len(rest)-2 != 2*int(binary.BigEndian.Uint16(rest)) {
		h.fail(option, wire.RepErrInvalid, "malformed data")
		return nil
	}
	device, info, ok := h.open(option, name)
	if !ok {
		return nil
	}
	h.reply(option, wire.RepInfo, 2+8+2)
	h.out = binary.BigEndian.AppendUint16(h.out, wire.InfoExport)
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(device.SizeBytes()))
	h.out = binary.BigEndian.AppendUint16(h.out, h.transmissionFlags(info))
	var told [wire.InfoBlockSize + 1]bool // each is told once, however often it is asked
	for asked := rest[2:]; len(asked) > 0; asked = asked[2:] {
		kind := binary.BigEndian.Uint16(asked)
		if kind > wire.InfoBlockSize || told[kind] {
			continue
		}
		told[kind] = true
		switch kind {
		case wire.InfoName:
			h.infoText(option, kind, name)
		case wire.InfoDescription:
			if info.Description != "" {
				h.infoText(option, kind, clip(info.Description))
			}
		case wire.InfoBlockSize:
			h.reply(option, wire.RepInfo, 2+4+4+4)
			h.out = binary.BigEndian.AppendUint16(h.out, kind)
			h.out = binary.BigEndian.AppendUint32(h.out, minBlockBytes)
			h.out = binary.BigEndian.AppendUint32(h.out, preferredBlockBytes)
			h.out = binary.BigEndian.AppendUint32(h.out, maxPayloadBytes)
		}
	}
	h.ack(option)
	if option == wire.OptInfo {
		device.Close(false)
		return nil
	}
	return &decision{name, device, info}
}

func (h *handshake) infoText(option uint32, kind uint16, text string) {
	h.reply(option, wire.RepInfo, 2+len(text))
	h.out = binary.BigEndian.AppendUint16(h.out, kind)
	h.out = append(h.out, text...)
}

// metaContext lists or selects metadata contexts. Data: the export's name, led
// by its length in 32 bits; a count in 32 bits; so many queries, each led by
// its length in 32 bits.
func (h *handshake) metaContext(option uint32, data []byte) {
	if !h.structured {
		h.fail(option, wire.RepErrInvalid, "metadata contexts need structured replies first")
		return
	}
	if option == wire.OptSetMeta {
		h.selected = 0 // a failed selection too replaces the one before
	}
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		h.fail(option, wire.RepErrInvalid, "malformed data")
		return
	}
	queries := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	var found contextSet
	if queries == 0 && option == wire.OptListMeta {
		found = allocationID | depthID
	}
	for range queries {
		var query string
		if query, rest, ok = cutString(rest); !ok {
			h.fail(option, wire.RepErrInvalid, "malformed query")
			return
		}
		found |= match(option, query)
	}
	if len(rest) != 0 {
		h.fail(option, wire.RepErrInvalid, "data after the last query")
		return
	}
	device, _, ok := h.open(option, name)
	if !ok {
		return
	}
	device.Close(false)
	for _, c := range contexts {
		if found&c.id == 0 {
			continue
		}
		id := c.id
		if option == wire.OptListMeta {
			id = 0 // reserved there
		}
		h.reply(option, wire.RepMetaContext, 4+len(c.name))
		h.out = binary.BigEndian.AppendUint32(h.out, uint32(id))
		h.out = append(h.out, c.name...)
	}
	if option == wire.OptSetMeta {
		h.selected, h.contextsOf = found, name
	}
	h.ack(option)
}

// match finds the contexts that a query means: the one of that name and, to
// list them, those of a namespace ("base:") or all ("").
func match(option uint32, query string) (found contextSet) {
	wild := option == wire.OptListMeta && (query == "" || strings.HasSuffix(query, ":"))
	for _, c := range contexts {
		if c.name == query || wild && strings.HasPrefix(c.name, query) {
			found |= c.id
		}
	}
	return found
}

// open opens an export, or replies why not.
func (h *handshake) open(option uint32, name string) (Device, Info, bool) {
	if len(name) > wire.MaxStringBytes {
		h.fail(option, wire.RepErrTooBig, fmt.Sprintf("a name of %d bytes is longer than %d", len(name), wire.MaxStringBytes))
		return nil, Info{}, false
	}
	device, info, err := h.server.backend.Open(name)
	switch {
	case err == nil:
		return device, info, true
	case errors.Is(err, ErrUnknownExport):
		h.fail(option, wire.RepErrUnknown, err.Error())
	case errors.Is(err, ErrBadExportName):
		h.fail(option, wire.RepErrInvalid, err.Error())
	case errors.Is(err, ErrShutdown):
		h.fail(option, wire.RepErrShutdown, err.Error())
	default:
		h.fail(option, wire.RepErrPolicy, err.Error())
	}
	return nil, Info{}, false
}

// transmissionFlags says what the export can.
func (h *handshake) transmissionFlags(info Info) uint16 {
	flags := wire.HasFlags | wire.SendFlush | wire.SendFUA
	if info.ReadOnly {
		flags |= wire.ReadOnly
	} else {
		flags |= wire.SendTrim | wire.SendZeroes | wire.SendFastZeroes
	}
	if info.MultiConn {
		flags |= wire.CanMultiConn
	}
	if h.structured {
		flags |= wire.SendDF
	}
	return flags
}

func (h *handshake) reply(option, kind uint32, dataBytes int) {
	h.out = wire.AppendOptReply(h.out, option, kind, dataBytes)
}

func (h *handshake) ack(option uint32) { h.reply(option, wire.RepAck, 0) }

func (h *handshake) fail(option, kind uint32, message string) {
	message = clip(message)
	h.reply(option, kind, len(message))
	h.out = append(h.out, message...)
}

// session is the transmission phase over the decision's export.
func (h *handshake) session(d *decision) *session {
	if h.contextsOf != d.name {
		h.selected = 0
	}
	_ = h.nc.SetDeadline(time.Time{})
	if h.server.closing.Load() {
		_ = h.nc.SetReadDeadline(longAgo) // the line before may have undone Shutdown's
	}
	return newSession(d, &h.in, h.structured, h.selected)
}

// cutString cuts a string, led by its length in 32 bits, off data.
func cutString(data []byte) (s string, rest []byte, ok bool) {
	if len(data) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-4) {
		return "", nil, false
	}
	return string(data[4 : 4+n]), data[4+n:], true
}

// maxMessageBytes is the longest text that goes into a message.
const maxMessageBytes = 1024

// clip makes a text fit into a message.
func clip(text string) string {
	return strings.ToValidUTF8(text[:min(len(text), maxMessageBytes)], "")
}

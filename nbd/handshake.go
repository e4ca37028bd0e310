package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// maxOptionBytes is the longest data of an option that is looked at. The
// longest useful one has an export's name, at most 4096 bytes, and some queries.
const maxOptionBytes = 16 << 10

// What a client may ask in one handshake. There are those that ask two options
// about each export that they were told of.
const (
	maxOptions   = 64 << 10
	listPatience = maxOptions / 16 // a list counts as so many options
)

// Block sizes of NBD_INFO_BLOCK_SIZE.
const (
	minBlockBytes       = 1
	preferredBlockBytes = 4096
	// maxPayloadBytes is the most that one read or write may carry. Trims and
	// the like, which carry nothing, are not bound by it.
	maxPayloadBytes = 32 << 20
)

var (
	errAborted        = errors.New("nbd: client aborted the handshake")
	errTooManyOptions = errors.New("nbd: too many options in one handshake")
	errBadMagic       = errors.New("nbd: bad magic from the client")
)

// A contextSet is the metadata contexts that a client selected; the values
// are the context ids on the wire.
type contextSet uint32

const (
	allocationID contextSet = 1 << 0
	depthID      contextSet = 1 << 1
)

// contexts lists what every export has, in the order of replies. What follows in a
// contextSet are dirty bitmaps.
var contexts = [...]struct {
	id   contextSet
	name string
}{{allocationID, wire.ContextAllocation}, {depthID, wire.ContextDepth}}

// maxBitmaps is how many dirty bitmaps a connection may select, and maxContexts how
// many contexts that makes.
const (
	maxBitmaps  = 4
	maxContexts = len(contexts) + maxBitmaps
)

// bitmapID is the context of the bitmap that was selected i-th.
func bitmapID(i int) contextSet { return 1 << (len(contexts) + i) }

// A handshake is a connection in option haggling ("Fixed newstyle negotiation").
type handshake struct {
	server   *Server
	nc       net.Conn
	conn     *connection
	patience int // options that the client may still send
	client   Client
	in       *intake
	out      []byte // replies to the option at hand
	noZeroes bool
	upgrades bool // the option at hand was NBD_OPT_STARTTLS, and is granted

	agreed
}

// agreed is what the options agreed on; it does not outlive NBD_OPT_STARTTLS.
type agreed struct {
	form       wire.Form
	selected   contextSet
	bases      []string // names of the bitmaps that were selected
	contextsOf string   // the export for which contexts were selected
}

// A decision ends the handshake: the export to serve.
type decision struct {
	name    string
	device  Device
	info    Info
	bitmaps []Bitmap
}

// close is for a decision that comes to nothing.
func (d *decision) close(torn bool) {
	for _, b := range d.bitmaps {
		b.Close()
	}
	d.device.Close(torn)
}

// handshake haggles until the client chooses an export, and returns the session over it.
func (s *Server) handshake(c *connection) (_ *session, err error) {
	h := &handshake{server: s, nc: c.nc, conn: c, patience: maxOptions, client: Client{Remote: c.nc.RemoteAddr()}, in: newIntake(c.nc, &s.closing, &c.account.moved)}
	defer func() {
		if err != nil {
			h.in.release()
			_ = h.nc.Close() // over TLS it says so first
		}
	}()
	if err := h.hello(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	for {
		option, data, err := h.next()
		if err != nil {
			return nil, fmt.Errorf("handshake: %w", err)
		}
		d, end := h.answer(option, data)
		if d != nil {
			if end = s.settle(c, d.name); end != nil {
				h.out = h.out[:0]
				if option != wire.OptExportName {
					h.fail(option, wire.RepErrPolicy, end.Error())
				}
			}
		}
		if _, err := h.nc.Write(h.out); err != nil && end == nil {
			end = fmt.Errorf("reply: %w", err)
		}
		if h.upgrades && end == nil {
			end = h.upgrade()
		}
		if end != nil {
			if d != nil {
				d.close(true)
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
	if h.server.options.TLSMode == TLSRequire && flags&wire.ClientFixedNewstyle == 0 {
		return errors.New("a client without fixed newstyle, and so without TLS")
	}
	h.noZeroes = flags&wire.ClientNoZeroes != 0
	return nil
}

// next receives an option; data longer than maxOptionBytes is dropped, answered,
// and not returned. data is valid until the next call.
func (h *handshake) next() (option uint32, data []byte, err error) {
	for {
		if h.patience--; h.patience < 0 {
			return 0, nil, errTooManyOptions
		}
		h.out, h.upgrades = h.out[:0], false
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
		if h.needsTLS() {
			h.failTLSRequired(option)
		} else {
			h.fail(option, wire.RepErrTooBig, fmt.Sprintf("%d bytes of data are more than %d", length, maxOptionBytes))
		}
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
	if h.needsTLS() && option != wire.OptStartTLS && option != wire.OptAbort {
		if option == wire.OptExportName {
			return nil, errors.New("NBD_OPT_EXPORT_NAME without TLS")
		}
		h.failTLSRequired(option)
		return nil, nil
	}
	switch option {
	case wire.OptExportName:
		return h.exportName(string(data))
	case wire.OptAbort:
		h.ack(option)
		return nil, errAborted
	case wire.OptList:
		return nil, h.list(data)
	case wire.OptInfo, wire.OptGo:
		return h.infoOrGo(option, data), nil
	case wire.OptStructuredReply, wire.OptExtendedHeaders:
		h.setForm(option, data)
	case wire.OptListMeta, wire.OptSetMeta:
		return nil, h.metaContext(option, data)
	case wire.OptStartTLS:
		return nil, h.startTLS(data)
	default:
		h.fail(option, wire.RepErrUnsup, "unknown option")
	}
	return nil, nil
}

// needsTLS tells whether the client may do nothing but begin TLS, or go.
func (h *handshake) needsTLS() bool {
	return h.server.options.TLSMode == TLSRequire && !h.client.TLS
}

func (h *handshake) failTLSRequired(option uint32) {
	h.fail(option, wire.RepErrTLSRequired, "this server wants TLS first")
}

// startTLS grants NBD_OPT_STARTTLS or refuses it.
func (h *handshake) startTLS(data []byte) error {
	switch {
	case h.server.options.TLSMode == TLSOff:
		h.fail(wire.OptStartTLS, wire.RepErrPolicy, "this server does not use TLS")
	case h.client.TLS:
		h.fail(wire.OptStartTLS, wire.RepErrInvalid, "TLS is in use already")
	case len(data) != 0:
		h.fail(wire.OptStartTLS, wire.RepErrInvalid, "NBD_OPT_STARTTLS takes no data")
	case h.in.buffered() != 0:
		// A client waits for the reply, so a middleman may have put them there,
		// to have them taken for the client's once TLS is up.
		return errors.New("plain bytes after NBD_OPT_STARTTLS")
	default:
		h.upgrades = true
		h.ack(wire.OptStartTLS)
	}
	return nil
}

// upgrade goes on over TLS. What was agreed on without it is forgotten, for it
// may have been a middleman's.
func (h *handshake) upgrade() error {
	secure, err := newSecureConn(h.conn.account, h.server.options.TLS)
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.nc = secure
	h.in.release()
	h.in = newIntake(secure, &h.server.closing, &h.conn.account.moved)
	h.agreed = agreed{}
	h.client.TLS, h.client.Names = true, namesOf(secure.ConnectionState())
	return nil
}

// setForm answers the options that choose how messages look.
func (h *handshake) setForm(option uint32, data []byte) {
	switch {
	case len(data) != 0:
		h.fail(option, wire.RepErrInvalid, "this option takes no data")
	case option == wire.OptExtendedHeaders:
		h.form = wire.Extended
		h.ack(option)
	case h.form == wire.Extended:
		h.fail(option, wire.RepErrExtended, "extended headers are agreed on, and include structured replies")
	default:
		h.form = wire.Structured
		h.ack(option)
	}
}

// exportName is the old way to choose an export: the only refusal is to hang up.
func (h *handshake) exportName(name string) (*decision, error) {
	if h.form == wire.Extended {
		return nil, errors.New("NBD_OPT_EXPORT_NAME after extended headers")
	}
	device, info, err := h.server.backend.Open(name, h.client)
	if err != nil {
		return nil, fmt.Errorf("open export %q: %w", name, err)
	}
	d := &decision{name: name, device: device, info: info}
	if err := h.openBitmaps(d); err != nil {
		d.close(false)
		return nil, err
	}
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(device.SizeBytes()))
	h.out = binary.BigEndian.AppendUint16(h.out, h.transmissionFlags(wire.OptExportName, name, info))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	return d, nil
}

// list tells the names as it goes: however many they are, a client that does
// not read them holds few.
func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		h.fail(wire.OptList, wire.RepErrInvalid, "NBD_OPT_LIST takes no data")
		return nil
	}
	h.patience -= listPatience
	for _, name := range h.server.backend.List(h.client) {
		h.reply(wire.OptList, wire.RepServer, 4+len(name))
		h.out = wire.AppendString(h.out, name)
		if len(h.out) >= smallBytes {
			if _, err := h.nc.Write(h.out); err != nil {
				return fmt.Errorf("reply: %w", err)
			}
			h.out = h.out[:0]
		}
	}
	h.ack(wire.OptList)
	return nil
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
	d := &decision{name: name, device: device, info: info}
	if option == wire.OptGo {
		if err := h.openBitmaps(d); err != nil {
			d.close(false)
			h.fail(option, wire.RepErrPolicy, err.Error())
			return nil
		}
	}
	h.reply(option, wire.RepInfo, 2+8+2)
	h.out = binary.BigEndian.AppendUint16(h.out, wire.InfoExport)
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(device.SizeBytes()))
	h.out = binary.BigEndian.AppendUint16(h.out, h.transmissionFlags(option, name, info))
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
	return d
}

func (h *handshake) infoText(option uint32, kind uint16, text string) {
	h.reply(option, wire.RepInfo, 2+len(text))
	h.out = binary.BigEndian.AppendUint16(h.out, kind)
	h.out = append(h.out, text...)
}

// metaContext lists or selects metadata contexts. Data: the export's name, led
// by its length in 32 bits; a count in 32 bits; so many queries, each led by
// its length in 32 bits.
func (h *handshake) metaContext(option uint32, data []byte) error {
	if h.form == wire.Simple {
		h.fail(option, wire.RepErrInvalid, "metadata contexts need structured replies or extended headers first")
		return nil
	}
	if option == wire.OptSetMeta {
		h.selected, h.bases = 0, nil // a failed selection too replaces the one before
	}
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		h.fail(option, wire.RepErrInvalid, "malformed data")
		return nil
	}
	queries := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	var asked queried
	if queries == 0 && option == wire.OptListMeta {
		asked.add(option, "")
	}
	for range queries {
		var query string
		if query, rest, ok = cutString(rest); !ok {
			h.fail(option, wire.RepErrInvalid, "malformed query")
			return nil
		}
		asked.add(option, query)
	}
	if len(rest) != 0 {
		h.fail(option, wire.RepErrInvalid, "data after the last query")
		return nil
	}
	device, _, ok := h.open(option, name)
	if !ok {
		return nil
	}
	defer device.Close(false)
	if option == wire.OptListMeta {
		return h.listContexts(&asked, device)
	}
	h.selectContexts(&asked, device, name)
	return nil
}

// selectContexts answers NBD_OPT_SET_META_CONTEXT.
func (h *handshake) selectContexts(asked *queried, device Device, name string) {
	bases := asked.basesOf(device)
	if len(bases) > maxBitmaps {
		h.fail(wire.OptSetMeta, wire.RepErrTooBig, fmt.Sprintf("%d dirty bitmaps are more than the %d that one connection may use", len(bases), maxBitmaps))
		return
	}
	for _, c := range contexts {
		if asked.found&c.id != 0 {
			h.context(wire.OptSetMeta, c.id, c.name)
		}
	}
	for i, base := range bases {
		asked.found |= bitmapID(i)
		h.context(wire.OptSetMeta, bitmapID(i), wire.ContextBitmap+base)
	}
	h.selected, h.bases, h.contextsOf = asked.found, bases, name
	h.ack(wire.OptSetMeta)
}

// listContexts answers NBD_OPT_LIST_META_CONTEXT. It tells them as it goes, as list
// does. An id is reserved there.
func (h *handshake) listContexts(asked *queried, device Device) error {
	for _, c := range contexts {
		if asked.found&c.id != 0 {
			h.context(wire.OptListMeta, 0, c.name)
		}
	}
	bases := asked.basesOf(device)
	if asked.all {
		h.patience -= listPatience
		if c, ok := device.(Compared); ok {
			bases = c.Bases()
		}
	}
	for _, base := range bases {
		h.context(wire.OptListMeta, 0, wire.ContextBitmap+base)
		if len(h.out) >= smallBytes {
			if _, err := h.nc.Write(h.out); err != nil {
				return fmt.Errorf("reply: %w", err)
			}
			h.out = h.out[:0]
		}
	}
	h.ack(wire.OptListMeta)
	return nil
}

func (h *handshake) context(option uint32, id contextSet, name string) {
	h.reply(option, wire.RepMetaContext, 4+len(name))
	h.out = binary.BigEndian.AppendUint32(h.out, uint32(id))
	h.out = append(h.out, name...)
}

// queried is what the queries of one option mean.
type queried struct {
	found contextSet // of those that every export has
	bases []string   // of dirty bitmaps, each once
	all   bool       // all dirty bitmaps
}

// add takes a query in: the context of that name and, to list them, those of a
// namespace ("base:", "qemu:dirty-bitmap:") or all ("").
func (q *queried) add(option uint32, query string) {
	wild := option == wire.OptListMeta && (query == "" || strings.HasSuffix(query, ":"))
	for _, c := range contexts {
		if c.name == query || wild && strings.HasPrefix(c.name, query) {
			q.found |= c.id
		}
	}
	if base, ok := strings.CutPrefix(query, wire.ContextBitmap); ok && base != "" && !slices.Contains(q.bases, base) {
		q.bases = append(q.bases, base)
	}
	q.all = q.all || wild && strings.HasPrefix(wire.ContextBitmap, query)
}

// basesOf are those of the names that a device can be compared with.
func (q *queried) basesOf(device Device) (bases []string) {
	c, ok := device.(Compared)
	if !ok {
		return nil
	}
	for _, base := range q.bases {
		if b, err := c.Since(base); err == nil {
			b.Close()
			bases = append(bases, base)
		}
	}
	return bases
}

// openBitmaps opens what was selected, on the device that is served.
func (h *handshake) openBitmaps(d *decision) error {
	if h.contextsOf != d.name {
		return nil
	}
	for _, base := range h.bases {
		c, ok := d.device.(Compared)
		if !ok {
			return errors.New("the export that contexts were selected for is another one now")
		}
		b, err := c.Since(base)
		if err != nil {
			return err
		}
		d.bitmaps = append(d.bitmaps, b)
	}
	return nil
}

// open opens an export, or replies why not.
func (h *handshake) open(option uint32, name string) (Device, Info, bool) {
	if len(name) > wire.MaxStringBytes {
		h.fail(option, wire.RepErrTooBig, fmt.Sprintf("a name of %d bytes is longer than %d", len(name), wire.MaxStringBytes))
		return nil, Info{}, false
	}
	device, info, err := h.server.backend.Open(name, h.client)
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
func (h *handshake) transmissionFlags(option uint32, name string, info Info) uint16 {
	flags := wire.HasFlags | wire.SendFlush | wire.SendFUA | wire.SendCache
	if info.ReadOnly {
		flags |= wire.ReadOnly
	} else {
		flags |= wire.SendTrim | wire.SendZeroes | wire.SendFastZeroes
	}
	if info.MultiConn {
		flags |= wire.CanMultiConn
	}
	if h.form != wire.Simple {
		flags |= wire.SendDF
	}
	// Of an export that is not yet chosen, it tells what may be had.
	if h.form == wire.Extended && (option == wire.OptInfo || h.selectedOf(name) != 0) {
		flags |= wire.StatusPayload
	}
	return flags
}

// selectedOf is the contexts that were selected for an export.
func (h *handshake) selectedOf(name string) contextSet {
	if h.contextsOf != name {
		return 0
	}
	return h.selected
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
	_ = h.nc.SetDeadline(time.Time{})
	if h.server.closing.Load() {
		_ = h.nc.SetReadDeadline(longAgo) // the line before may have undone Shutdown's
	}
	if e, ok := d.device.(Evictable); ok {
		e.OnEvict(h.conn.leave)
	}
	return newSession(d, h.in, h.conn.account, h.form, h.selectedOf(d.name))
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

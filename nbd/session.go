package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/nbd/internal/wire"
)

var errDisconnected = errors.New("nbd: client disconnected")

// Limits of one connection; budget has those of its memory.
const (
	receiveBytes = 256 << 10
	batchBytes   = 512 << 10
	handedCount  = 256 // commands with workers, or answered by them and not yet sent
	workerCount  = 64
)

// A client that waits for each reply before it sends the next request is known
// by aloneAfter requests in a row that came one at a time. If one comes while
// another is served in place, that was wrong: the count starts at notAlone.
const (
	aloneAfter = 16
	notAlone   = -4096
)

// A session is the transmission phase of one connection.
//
// Goal: what memory can give costs one read of the socket and one write a
// batch of requests, no goroutine switch and no allocation; what waits for a
// disk holds up nobody else.
//
//  1. One goroutine, run, receives. It serves in place each request that need
//     not wait, and puts the reply into the batch, read data straight from the
//     Device. What would wait it hands to workers.
//  2. Replies are never held back: the batch is written before run waits, for
//     the socket or for room among the handed commands.
//  3. No call of a Device runs while its caller writes to or reads from the
//     socket: a reply is queued after the last call for its request returned.
//     (A client that stops reading holds no lock and no process of a volume.)
//  4. A request is served only when it has been received whole.
//  5. Memory is bounded (budget): what a command needs is drawn before, and
//     given back when its reply is in the socket. A session that waits and has
//     nothing in work holds 2 x smallBytes, and no goroutine but run.
//  6. A client that waits for each reply before it sends the next request has
//     nobody to be held up: for it run serves in place what else workers do
//     (measured: a write and a flush take a seventh less CPU).
//  7. The Device is closed once, after the last call of it returned.
//
// Rejected: a goroutine a request (a switch and a write of the socket each); a
// goroutine that writes (a switch a batch); workers that wait for more, which
// cost every idle session their stacks.
type session struct {
	device    Device
	info      Info
	sizeBytes uint64
	form      wire.Form
	contexts  contextSet
	bitmaps   []Bitmap // of the contexts behind those that every export has

	in      *intake
	replies replies
	account *account

	desk  *desk // nil: the session works in small pieces
	busy  bool  // it wants a desk as soon as bytes arrive
	moved int64 // bytes that had gone through the socket when it last rested

	crew    crew
	work    func() // worker, bound once
	workers sync.WaitGroup

	socket    watch
	sinceWait int // requests since run last waited for the socket
	streak    int // waits in a row that brought one request, answered before the next
}

// newSession takes over in, with what it has buffered.
func newSession(d *decision, in *intake, a *account, form wire.Form, selected contextSet) *session {
	s := &session{
		device:    d.device,
		info:      d.info,
		sizeBytes: uint64(d.device.SizeBytes()),
		form:      form,
		contexts:  selected,
		bitmaps:   d.bitmaps,
		in:        in,
		account:   a,
	}
	in.owner = s
	s.work = s.worker
	s.socket.init(in.nc)
	var out io.Writer = a
	if secure, ok := in.nc.(*secureConn); ok {
		out = secure
	}
	s.replies.init(out, d.device, a, form, s.sit)
	return s
}

// lastWords bounds how long the last replies may wait for a client that has
// gone or does not read.
const lastWords = 5 * time.Second

// serve runs the session to its end, which its error tells: errDisconnected
// after NBD_CMD_DISC, errIdle at shutdown, or what went wrong.
func (s *session) serve() error {
	err := s.run()
	s.account.setWriteBy(time.Now().Add(lastWords))
	s.replies.flush()
	s.workers.Wait()
	s.in.empty()
	s.leave()
	s.replies.release()
	s.in.release()
	switch {
	case s.account.stalled.Load():
		err = errStalled
	case s.replies.unpublished != nil:
		err = fmt.Errorf("replies not sent: %w", s.replies.unpublished)
	}
	(&decision{device: s.device, bitmaps: s.bitmaps}).close(!errors.Is(err, errDisconnected) && !s.in.closing)
	_ = s.in.nc.Close() // over TLS it says so first
	return err
}

// run receives requests and serves or hands over each.
func (s *session) run() error {
	for {
		r, err := s.next()
		if err != nil {
			return err
		}
		payloadBytes := s.form.PayloadBytes(&r.Request)
		if s.form == wire.Extended && payloadBytes > maxPayloadBytes {
			return fmt.Errorf("payload of %d bytes", payloadBytes) // a compact one is dropped
		}
		e := s.check(&r)
		switch {
		case r.Command == wire.CmdDisc:
			return errDisconnected
		case payloadBytes > 0 && r.Command == wire.CmdBlockStatus && e == wire.OK:
			err = s.blockStatus(&r)
		case payloadBytes > 0 && e != wire.OK:
			err = s.refuseWithPayload(&r, e)
		case r.Command == wire.CmdWrite && e == wire.OK:
			err = s.write(&r)
		case e != wire.OK:
			s.replies.fail(&r, e, e.Error())
		case r.Command == wire.CmdRead:
			s.read(&r)
		default:
			s.hand(newTask(&r), s.replyBytes(&r))
		}
		if err != nil {
			return err
		}
	}
}

// ready implements owner: a session that had much to do gets its desk before it reads.
func (s *session) ready() {
	if s.busy {
		s.sit()
	}
}

// full implements owner: there is much to do.
func (s *session) full() { s.sit() }

// sit takes a desk, and returns its half for the batch; nil when there is none.
func (s *session) sit() []byte {
	s.busy = true
	if s.desk == nil {
		if !s.account.takeDesk() {
			return nil
		}
		s.desk = desks.Get().(*desk)
		s.in.use(s.desk.receive[:])
		s.replies.use(s.desk.batch[:])
	}
	return s.desk.batch[:]
}

// rest implements owner: a session that waits holds no desk. What
// it did since it last waited tells whether it will want a desk.
func (s *session) rest() {
	moved := s.account.moved.Load()
	s.busy = s.busy && moved-s.moved > smallBytes
	s.moved = moved
	s.leave()
}

// leave gives the desk back, unless a payload is half in it.
func (s *session) leave() {
	if s.desk != nil && s.in.shrink() {
		s.replies.shrink()
		desks.Put(s.desk)
		s.desk = nil
		s.account.leaveDesk()
	}
}

// A request is a command's header and when it was received.
type request struct {
	wire.Request
	arrived  time.Time
	contexts contextSet // that a block status tells of
}

// next receives the header of the next request; the replies go out before it waits.
func (s *session) next() (request, error) {
	headerBytes := s.form.RequestBytes()
	waits := s.in.buffered() < headerBytes
	if waits {
		s.replies.flush()
	}
	b, err := s.in.need(headerBytes)
	for errors.Is(err, errIdle) && !s.account.idle() {
		s.in.allowGrace() // the client waits for us
		b, err = s.in.need(headerBytes)
	}
	if err != nil {
		return request{}, err
	}
	if waits {
		if s.sinceWait == 1 && s.account.idle() {
			s.streak++
		} else {
			s.streak = min(s.streak, 0)
		}
		s.sinceWait = 0
	}
	header, ok := s.form.DecodeRequest(b)
	if !ok {
		return request{}, errBadMagic
	}
	s.in.consume(headerBytes)
	s.sinceWait++
	return request{header, s.in.arrived, s.contexts}, nil
}

// flagsOf says which flags a command may carry. FUA is valid with each, and
// means nothing where nothing is written ("Command flags"). PAYLOAD_LEN is an
// extended request's only, and check's.
var flagsOf = [...]uint16{
	wire.CmdRead:        wire.FlagFUA | wire.FlagDF,
	wire.CmdWrite:       wire.FlagFUA,
	wire.CmdFlush:       wire.FlagFUA,
	wire.CmdTrim:        wire.FlagFUA,
	wire.CmdCache:       wire.FlagFUA,
	wire.CmdZeroes:      wire.FlagFUA | wire.FlagNoHole | wire.FlagFastZero,
	wire.CmdBlockStatus: wire.FlagFUA | wire.FlagReqOne,
}

// check refuses what the Device need not see.
func (s *session) check(r *request) wire.Errno {
	if int(r.Command) >= len(flagsOf) || flagsOf[r.Command] == 0 {
		return wire.EINVAL
	}
	flags, beyond := r.Flags, s.beyond(r)
	if s.form == wire.Extended {
		switch {
		case r.Command == wire.CmdBlockStatus && flags&wire.FlagPayloadLen != 0:
			beyond = false // the length is not yet the range's
		case r.Command != wire.CmdWrite && flags&wire.FlagPayloadLen != 0:
			return wire.EINVAL
		}
		flags &^= wire.FlagPayloadLen
	}
	writes := r.Command == wire.CmdWrite || r.Command == wire.CmdTrim || r.Command == wire.CmdZeroes
	switch {
	case s.in.closing:
		return wire.ESHUTDOWN
	case flags&^flagsOf[r.Command] != 0, flags&wire.FlagDF != 0 && s.form == wire.Simple:
		return wire.EINVAL
	case r.Command == wire.CmdFlush && (r.Offset != 0 || r.Length != 0):
		return wire.EINVAL
	case writes && s.info.ReadOnly:
		return wire.EPERM
	case (r.Command == wire.CmdRead || r.Command == wire.CmdWrite) && r.Length > maxPayloadBytes:
		return wire.EINVAL
	case beyond && (r.Command == wire.CmdWrite || r.Command == wire.CmdZeroes):
		return wire.ENOSPC
	case beyond:
		return wire.EINVAL
	case r.Command == wire.CmdBlockStatus && (s.contexts == 0 || r.Length == 0):
		return wire.EINVAL // the reply to a length of 0 has no valid form
	case r.Flags&wire.FlagFastZero != 0 && r.Flags&wire.FlagNoHole != 0:
		return wire.ENOTSUP // storage can't be reserved faster than by writing zeros
	}
	return wire.OK
}

func (s *session) beyond(r *request) bool {
	return r.Offset > s.sizeBytes || r.Length > s.sizeBytes-r.Offset
}

// read serves a read in place, into the batch or, if it is larger, a buffer
// of its own; if it would wait, it hands it over.
func (s *session) read(r *request) {
	if place := s.replies.place(r); place != nil {
		_, err := s.device.TryReadAt(place, int64(r.Offset))
		if err == nil {
			s.replies.commit(r)
			return
		}
		if !wouldBlock(err) {
			s.replies.fail(r, errnoOf(err), err.Error())
			return
		}
		s.hand(newTask(r), s.replyBytes(r))
		return
	}
	t := newTask(r)
	s.draw(t, s.replyBytes(r))
	place := t.placeForRead(s.form)
	if _, err := s.device.TryReadAt(place, int64(r.Offset)); wouldBlock(err) {
		s.give(t)
	} else {
		t.finish(s, err)
		s.replies.send(t)
	}
}

// write receives a write's payload and serves it in place, from where it was
// received; if it would wait, it hands it over.
func (s *session) write(r *request) error {
	payload, t, err := s.payload(r)
	if err != nil {
		return payloadError(r, err)
	}
	_, err = s.device.TryWriteAt(payload, int64(r.Offset))
	if wouldBlock(err) {
		if t == nil {
			t = newTask(r)
			s.draw(t, len(payload))
			t.buf = takeBuffer(len(payload))
			copy(t.buf.bytes, payload)
		}
		s.give(t)
		return nil
	}
	if t != nil {
		s.dismiss(t) // before the flush draws: who waits to draw holds nothing
	}
	switch {
	case err != nil:
		s.replies.fail(r, errnoOf(err), err.Error())
	case r.Flags&wire.FlagFUA != 0:
		s.hand(newTask(r), 0) // without a payload: the flush is left to do
	default:
		s.replies.succeed(r)
	}
	return nil
}

// refuseWithPayload drops the payload of a request that is refused.
func (s *session) refuseWithPayload(r *request, e wire.Errno) error {
	if uint64(s.in.buffered()) < r.Length {
		s.replies.flush()
	}
	if err := s.in.discard(int64(r.Length)); err != nil {
		return payloadError(r, err)
	}
	s.replies.fail(r, e, e.Error())
	return nil
}

// blockStatus receives the payload of a block status, which says for what
// length and which of the selected contexts, and serves it. Payload: length 64
// bits; context ids of 32 bits.
func (s *session) blockStatus(r *request) error {
	const most = 8 + 4*maxContexts
	if r.Length > uint64(most) || r.Length%4 != 0 {
		return s.refuseWithPayload(r, wire.EINVAL)
	}
	if uint64(s.in.buffered()) < r.Length {
		s.replies.flush()
	}
	payload, err := s.in.need(int(r.Length))
	if err != nil {
		return payloadError(r, err)
	}
	s.in.consume(len(payload))
	r.arrived = s.in.arrived
	r.Length, r.contexts = 0, 0
	if len(payload) >= 8 {
		r.Length, payload = binary.BigEndian.Uint64(payload), payload[8:]
	}
	for ; len(payload) > 0; payload = payload[4:] {
		id := contextSet(binary.BigEndian.Uint32(payload))
		if bits.OnesCount32(uint32(id)) != 1 || id&s.contexts&^r.contexts == 0 {
			r.contexts = 0 // not selected, or named twice
			break
		}
		r.contexts |= id
	}
	if r.contexts == 0 || r.Length == 0 || s.beyond(r) {
		s.replies.fail(r, wire.EINVAL, wire.EINVAL.Error())
		return nil
	}
	s.hand(newTask(r), s.replyBytes(r))
	return nil
}

func payloadError(r *request, err error) error {
	return fmt.Errorf("payload of %d bytes: %w", r.Length, err)
}

const (
	// inPlaceBytes is from where on a payload gets a buffer of its own: so
	// long a one is seldom whole in the receive buffer, and would be moved there.
	inPlaceBytes = receiveBytes / 2
	// headerAsk is how much is asked of the socket after such a payload: most
	// likely a header and the next one follow, and what of it comes in with
	// the header is copied.
	headerAsk = 4 << 10
)

// payload receives the payload of r, in place or, with a task that has been
// drawn for, in a buffer of its own.
func (s *session) payload(r *request) (payload []byte, t *task, err error) {
	n := int(r.Length)
	if s.in.buffered() < n {
		s.replies.flush()
	}
	inPlace := n < inPlaceBytes && n <= len(s.in.buf)
	if inPlace {
		s.in.askBytes = len(s.in.buf)
	} else {
		s.in.askBytes = headerAsk
		t = newTask(r)
		s.draw(t, n)
		t.buf = takeBuffer(n)
		payload = t.buf.bytes
	}
	s.account.awaiting.Add(1)
	if inPlace {
		payload, err = s.in.need(n)
		s.in.consume(len(payload))
	} else if err = s.in.readFull(payload); err != nil {
		s.dismiss(t)
	}
	s.account.awaiting.Add(-1)
	r.arrived = s.in.arrived
	if t != nil {
		t.arrived = r.arrived
	}
	return payload, t, err
}

// replyBytes is the memory that the reply to r takes if it is not put into the batch.
func (s *session) replyBytes(r *request) int {
	switch r.Command {
	case wire.CmdRead:
		return s.form.DataHeaderBytes(&r.Request) + int(r.Length)
	case wire.CmdBlockStatus:
		return statusBytes(r)
	}
	return 0
}

// hand draws sizeBytes for a command and gives it to a worker.
func (s *session) hand(t *task, sizeBytes int) {
	s.draw(t, sizeBytes)
	s.give(t)
}

// draw draws sizeBytes for a command; the replies go out before it waits.
func (s *session) draw(t *task, sizeBytes int) {
	t.costBytes = costOf(sizeBytes)
	if !s.account.tryEnter(t.costBytes) {
		s.replies.flush()
		s.account.enter(t.costBytes)
	}
}

// dismiss releases a task that is not needed, and what was drawn for it.
func (s *session) dismiss(t *task) {
	s.account.leave(1, t.costBytes)
	t.release()
}

// give gives a command to a worker; for a client that waits for each reply it
// is served here (6).
func (s *session) give(t *task) {
	if s.alone() {
		t.perform(s)
		if s.socket.bytesWait() {
			s.streak = notAlone
		}
		s.replies.send(t)
		return
	}
	if s.crew.push(t) {
		s.workers.Add(1)
		go s.work()
	}
}

// alone is asked about a command that has been drawn for.
func (s *session) alone() bool {
	return s.streak >= aloneAfter && s.socket.can() && s.in.buffered() == 0 && s.replies.batchEmpty() && s.account.inWork() == 1
}

// worker serves commands until there are no more.
func (s *session) worker() {
	defer s.workers.Done()
	for t := s.crew.pop(); t != nil; t = s.crew.pop() {
		t.perform(s)
		s.replies.post(t)
	}
}

// A crew is the commands that wait for a worker, and how many workers there are.
type crew struct {
	mu      sync.Mutex
	waiting line
	workers int
}

// push adds a command; true if one more worker is to come for it.
func (c *crew) push(t *task) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting.push(t)
	if c.workers == workerCount {
		return false
	}
	c.workers++
	return true
}

// pop takes a command; nil when there is none, and then the worker ends.
func (c *crew) pop() *task {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.waiting.pop()
	if t == nil {
		c.workers--
	}
	return t
}

// wouldBlock is errors.Is, without its cost for what a Device most often returns.
func wouldBlock(err error) bool {
	return err == image.ErrWouldBlock || err != nil && errors.Is(err, image.ErrWouldBlock)
}

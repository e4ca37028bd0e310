package nbd

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/nbd/internal/wire"
)

var errDisconnected = errors.New("nbd: client disconnected")

// Limits of one connection. Its memory is receiveBytes + batchBytes + one
// payload + handedBytes.
const (
	receiveBytes = 256 << 10
	batchBytes   = 512 << 10
	handedBytes  = 64 << 20 // payload and read data with workers and in their replies
	handedCount  = 256      // commands with workers, or answered by them and not yet sent
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
//  5. Memory is bounded (above): a command counts as handed until its reply
//     is in the socket.
//  6. A client that waits for each reply before it sends the next request has
//     nobody to be held up: for it run serves in place what else workers do
//     (measured: a write and a flush take a seventh less CPU).
//  7. The Device is closed once, after the last call of it returned.
//
// Rejected: a goroutine a request (a switch and a write of the socket each); a
// goroutine that writes (a switch a batch).
type session struct {
	device     Device
	info       Info
	sizeBytes  uint64
	structured bool
	contexts   contextSet

	in      intake
	memory  *buffer // of in
	replies replies

	handed  gate
	tasks   chan *task
	workers sync.WaitGroup
	started int // workers

	socket    watch
	sinceWait int // requests since run last waited for the socket
	streak    int // waits in a row that brought one request, answered before the next
}

// newSession takes over in, with what it has buffered.
func newSession(d *decision, in *intake, structured bool, selected contextSet) *session {
	s := &session{
		device:     d.device,
		info:       d.info,
		sizeBytes:  uint64(d.device.SizeBytes()),
		structured: structured,
		contexts:   selected,
		in:         *in,
		memory:     takeBuffer(receiveBytes),
		tasks:      make(chan *task, handedCount),
	}
	s.in.use(s.memory.bytes)
	s.socket.init(in.nc)
	s.handed.init()
	s.replies.init(in.nc, d.device, &s.handed, structured)
	return s
}

// lastWords bounds how long the last replies may wait for a client that has
// gone or does not read.
const lastWords = 5 * time.Second

// serve runs the session to its end, which its error tells: errDisconnected
// after NBD_CMD_DISC, errIdle at shutdown, or what went wrong.
func (s *session) serve() error {
	err := s.run()
	_ = s.in.nc.SetWriteDeadline(time.Now().Add(lastWords))
	s.replies.flush()
	close(s.tasks)
	s.workers.Wait()
	s.replies.release()
	s.memory.release()
	s.device.Close(!errors.Is(err, errDisconnected) && !s.in.closing)
	return err
}

// run receives requests and serves or hands over each.
func (s *session) run() error {
	for {
		r, err := s.next()
		if err != nil {
			return err
		}
		e := s.check(&r)
		switch {
		case r.Command == wire.CmdDisc:
			return errDisconnected
		case r.Command == wire.CmdWrite:
			err = s.write(&r, e)
		case e != wire.OK:
			s.replies.fail(&r, e, e.Error())
		case r.Command == wire.CmdRead:
			s.read(&r)
		default:
			s.hand(newTask(&r))
		}
		if err != nil {
			return err
		}
	}
}

// A request is a command's header and when it was received.
type request struct {
	wire.Request
	arrived time.Time
}

// next receives the header of the next request; the replies go out before it waits.
func (s *session) next() (request, error) {
	waits := s.in.buffered() < wire.RequestSize
	if waits {
		s.replies.flush()
	}
	b, err := s.in.need(wire.RequestSize)
	for errors.Is(err, errIdle) && !s.handed.empty() {
		s.in.allowGrace() // the client waits for us
		b, err = s.in.need(wire.RequestSize)
	}
	if err != nil {
		return request{}, err
	}
	if waits {
		if s.sinceWait == 1 && s.handed.empty() {
			s.streak++
		} else {
			s.streak = min(s.streak, 0)
		}
		s.sinceWait = 0
	}
	header, ok := wire.DecodeRequest(b)
	if !ok {
		return request{}, errBadMagic
	}
	s.in.consume(wire.RequestSize)
	s.sinceWait++
	return request{header, s.in.arrived}, nil
}

// flagsOf says which flags a command may carry. FUA is valid with each, and
// means nothing where nothing is written ("Command flags").
var flagsOf = [...]uint16{
	wire.CmdRead:        wire.FlagFUA | wire.FlagDF,
	wire.CmdWrite:       wire.FlagFUA,
	wire.CmdFlush:       wire.FlagFUA,
	wire.CmdTrim:        wire.FlagFUA,
	wire.CmdZeroes:      wire.FlagFUA | wire.FlagNoHole | wire.FlagFastZero,
	wire.CmdBlockStatus: wire.FlagFUA | wire.FlagReqOne,
}

// check refuses what the Device need not see.
func (s *session) check(r *request) wire.Errno {
	if int(r.Command) >= len(flagsOf) || flagsOf[r.Command] == 0 {
		return wire.EINVAL // NBD_CMD_CACHE is not announced either
	}
	writes := r.Command == wire.CmdWrite || r.Command == wire.CmdTrim || r.Command == wire.CmdZeroes
	beyond := r.Offset > s.sizeBytes || uint64(r.Length) > s.sizeBytes-r.Offset
	switch {
	case s.in.closing:
		return wire.ESHUTDOWN
	case r.Flags&^flagsOf[r.Command] != 0, r.Flags&wire.FlagDF != 0 && !s.structured:
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
		s.hand(newTask(r))
		return
	}
	t := newTask(r)
	place := t.placeForRead(s.structured)
	if _, err := s.device.TryReadAt(place, int64(r.Offset)); wouldBlock(err) {
		s.hand(t)
	} else {
		t.finish(s, err)
		s.replies.send(t)
	}
}

// write receives a write's payload and serves it in place, from where it was
// received; if it would wait, it hands it over. With e the write is refused.
func (s *session) write(r *request, e wire.Errno) error {
	if e != wire.OK {
		if int64(s.in.buffered()) < int64(r.Length) {
			s.replies.flush()
		}
		if err := s.in.discard(int64(r.Length)); err != nil {
			return payloadError(r, err)
		}
		s.replies.fail(r, e, e.Error())
		return nil
	}
	payload, own, err := s.payload(r)
	if err != nil {
		return payloadError(r, err)
	}
	_, err = s.device.TryWriteAt(payload, int64(r.Offset))
	switch {
	case wouldBlock(err):
		t := newTask(r)
		if t.buf = own; own == nil {
			t.buf = takeBuffer(len(payload))
			copy(t.buf.bytes, payload)
		}
		s.hand(t)
		return nil
	case err != nil:
		s.replies.fail(r, errnoOf(err), err.Error())
	case r.Flags&wire.FlagFUA != 0:
		s.hand(newTask(r)) // without a payload: the flush is left to do
	default:
		s.replies.succeed(r)
	}
	own.release()
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

// payload receives the payload of r, in place or in a buffer of its own.
func (s *session) payload(r *request) (payload []byte, own *buffer, err error) {
	n := int(r.Length)
	if s.in.buffered() < n {
		s.replies.flush()
	}
	if n < inPlaceBytes {
		s.in.askBytes = len(s.in.buf)
		payload, err = s.in.need(n)
		s.in.consume(len(payload))
	} else {
		s.in.askBytes = headerAsk
		own = takeBuffer(n)
		payload = own.bytes
		if err = s.in.readFull(payload); err != nil {
			own.release()
		}
	}
	r.arrived = s.in.arrived
	return payload, own, err
}

// hand gives a command to a worker; for a client that waits for each reply it
// is served here (6).
func (s *session) hand(t *task) {
	if s.alone() {
		t.perform(s)
		if s.socket.bytesWait() {
			s.streak = notAlone
		}
		s.replies.send(t)
		return
	}
	cost := t.costBytes()
	if !s.handed.tryEnter(cost) {
		s.replies.flush()
		s.handed.enter(cost)
	}
	if count := s.handed.count(); count > s.started && s.started < workerCount {
		s.started++
		s.workers.Go(s.work)
	}
	s.tasks <- t
}

func (s *session) alone() bool {
	return s.streak >= aloneAfter && s.socket.can() && s.in.buffered() == 0 && s.replies.batchEmpty() && s.handed.empty()
}

// work serves handed commands until there will be no more.
func (s *session) work() {
	for t := range s.tasks {
		t.perform(s)
		s.replies.post(t)
	}
}

// wouldBlock is errors.Is, without its cost for what a Device most often returns.
func wouldBlock(err error) bool {
	return err == image.ErrWouldBlock || err != nil && errors.Is(err, image.ErrWouldBlock)
}

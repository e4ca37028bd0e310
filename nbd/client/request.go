package client

import (
	"fmt"
	"sync"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// Op is what a Request does.
type Op uint8

// The operations.
const (
	Read  Op = iota // into Data
	Write           // of Data
	Flush           // of all writes completed before; Off and Data say nothing
	Zero            // Length bytes read zeros; Data says nothing
)

var commands = [...]uint16{Read: wire.CmdRead, Write: wire.CmdWrite}

// A Request is one request that Start sends without waiting for its reply: many
// of them are in flight on one connection without a goroutine for each, and one
// that goes again and again allocates nothing. It is the client's from Start
// until Done is called, and may be used again then.
type Request struct {
	Op     Op
	FUA    bool  // of a Write: the reply comes when it is durable
	Off    int64 // in the export
	Data   []byte
	Length int64 // of a Zero
	Err    error // what came of it, set before Done

	// Done is called once, when the request has ended. It runs on the goroutine
	// that takes all replies of the connection off the wire, so it must not wait
	// for anything; neither may it call a method of the Client. If it returns
	// true, the request goes again as its fields say by then: that is the cheap
	// way to keep a connection busy, for what the replies of one read of the
	// socket set off goes out in one write. After an error of the connection the
	// answer is not heeded.
	Done func(*Request) (again bool)

	call call
}

// Start sends requests, in as few writes as their size allows. Either all are
// on their way, and Done will be called for each, or there is an error, and
// none is.
func (c *Client) Start(requests ...*Request) error {
	for _, r := range requests {
		n, most := r.lengthBytes(c)
		if n < 0 {
			return errNegative
		}
		if n > most {
			return fmt.Errorf("nbd client: request of %d bytes; %d are the most", n, most)
		}
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	for _, r := range requests {
		c.enqueue(c.prepare(r))
	}
	c.mu.Unlock()
	c.send()
	return nil
}

// lengthBytes is how long a request is, and how long it may be.
func (r *Request) lengthBytes(c *Client) (n, most int64) {
	if r.Op == Zero {
		return r.Length, c.maxRange()
	}
	return int64(len(r.Data)), c.maxBytes
}

// prepare makes a request's call.
func (c *Client) prepare(r *Request) *call {
	var flags uint16
	if r.FUA && r.Op == Write {
		flags = wire.FlagFUA
	}
	r.call = call{owner: r}
	switch r.Op {
	case Flush:
		r.call.request = c.request(wire.CmdFlush, 0, 0, 0)
	case Zero:
		r.call.request = c.request(wire.CmdZeroes, 0, r.Off, r.Length)
	default:
		r.call.request = c.request(commands[r.Op], flags, r.Off, int64(len(r.Data)))
		r.call.data = r.Data
	}
	return &r.call
}

// A call is a request in flight.
type call struct {
	request wire.Request
	data    []byte                  // to send, or where to receive
	got     int                     // bytes of data received
	status  map[string][]descriptor // by context
	err     error

	owner *Request      // what has ended with it, or
	woken chan struct{} // who waits for its end

	queued bool // not yet being sent: there can be no reply
	lent   bool // data is being read by who sends it
}

// calls are those that nobody waits for now, for transfer.
var calls = sync.Pool{New: func() any { return &call{woken: make(chan struct{}, 1)} }}

// transfer sends a request and waits for its reply.
func (c *Client) transfer(command, flags uint16, off int64, data []byte) error {
	k := calls.Get().(*call)
	*k = call{request: c.request(command, flags, off, int64(len(data))), data: data, woken: k.woken}
	err := c.do(k)
	*k = call{woken: k.woken}
	calls.Put(k)
	return err
}

// do sends a request and waits for its reply.
func (c *Client) do(k *call) error {
	if k.woken == nil {
		k.woken = make(chan struct{}, 1)
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.enqueue(k)
	c.mu.Unlock()
	c.send()
	<-k.woken
	return k.err
}

// enqueue gives a call its cookie, and has the next send send it. The caller
// holds mu.
func (c *Client) enqueue(k *call) {
	k.queued = true
	c.flight.add(k)
	c.queue = append(c.queue, k)
}

// call finds the call in flight of a cookie; nil if there is none. It stays in
// flight until end: if the connection breaks in the middle of its reply, endAll
// ends it.
func (c *Client) call(cookie uint64) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.flight.find(cookie)
	if k == nil || k.queued {
		return nil
	}
	for k.lent { // the reply is here before send knows that it was done, or it is no honest one
		c.wrote.Wait()
	}
	return k
}

// end ends a call whose reply is there, and has it go again if its owner says so.
func (c *Client) end(k *call) {
	c.mu.Lock()
	c.flight.remove(k)
	c.mu.Unlock()
	if !k.end() {
		return
	}
	bytes := len(k.data)
	c.mu.Lock()
	c.enqueue(c.prepare(k.owner))
	c.mu.Unlock()
	c.owed.add(bytes)
}

// endAll ends every call, because there will be no more replies.
func (c *Client) endAll(err error) {
	c.owed.stop()
	c.mu.Lock()
	c.err = err
	ended := c.flight.all()
	c.queue = nil
	c.mu.Unlock()
	c.sending.Lock() // whoever is in send, with somebody's data, comes out now
	c.out = outbox{}
	c.sending.Unlock()
	for _, k := range ended {
		k.err = err
		k.end()
	}
}

// end tells who made the call.
func (k *call) end() (again bool) {
	if k.owner == nil {
		k.woken <- struct{}{}
		return false
	}
	k.owner.Err = k.err
	return k.owner.Done(k.owner)
}

// A flight is the calls in flight. A cookie is the place of its call here, and
// in its upper half how often the place was used before, so that a reply that
// comes twice is not taken for another's.
type flight struct {
	places []place
	free   []uint32

	requestBytes, replyBytes int // what all of them take in sockets' buffers, at most
}

type place struct {
	call *call
	uses uint32
}

func (f *flight) add(k *call) {
	var at uint32
	if n := len(f.free); n > 0 {
		at, f.free = f.free[n-1], f.free[:n-1]
	} else {
		at = uint32(len(f.places))
		f.places = append(f.places, place{})
	}
	f.places[at].call = k
	k.request.Cookie = uint64(f.places[at].uses)<<32 | uint64(at+1)
	f.weigh(k, 1)
}

func (f *flight) find(cookie uint64) *call {
	at := uint64(uint32(cookie)) - 1
	if at >= uint64(len(f.places)) || f.places[at].uses != uint32(cookie>>32) {
		return nil
	}
	return f.places[at].call
}

func (f *flight) remove(k *call) {
	at := uint32(k.request.Cookie) - 1
	f.places[at] = place{uses: f.places[at].uses + 1}
	f.free = append(f.free, at)
	f.weigh(k, -1)
}

// all removes all calls and returns them.
func (f *flight) all() (calls []*call) {
	for _, p := range f.places {
		if p.call != nil {
			calls = append(calls, p.call)
		}
	}
	*f = flight{}
	return calls
}

// messageBytes is what a short message takes in a socket's buffer, rather more.
const messageBytes = 512

func (f *flight) weigh(k *call, sign int) {
	request, reply := messageBytes, messageBytes
	switch k.request.Command {
	case wire.CmdWrite:
		request += len(k.data)
	case wire.CmdRead:
		reply += len(k.data)
	case wire.CmdBlockStatus:
		reply += maxChunkBytes
	}
	f.requestBytes += sign * request
	f.replyBytes += sign * reply
}

package client

import (
	"net"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// An outbox is what send works with.
type outbox struct {
	batch  []*call
	buffer []byte      // headers, and payloads that are shorter than a write costs
	pair   [2][]byte   // what pieces is made of
	pieces net.Buffers // buffer, and a payload that stays where it is
}

const (
	outboxBytes = 64 << 10
	copiedBytes = 16 << 10 // the longest payload that is copied
)

// send sends all calls that are queued, whoever queued them. When it returns,
// what its caller has queued was sent, by itself or by another.
func (c *Client) send() {
	c.sending.Lock()
	defer c.sending.Unlock()
	c.mu.Lock()
	c.takeQueue()
	c.mu.Unlock()
	c.sendBatch()
}

// takeQueue makes the queue the batch. The caller holds sending and mu.
func (c *Client) takeQueue() {
	c.out.batch, c.queue = c.queue, c.out.batch[:0]
}

// sendBatch sends the batch. The caller holds sending.
func (c *Client) sendBatch() {
	o := &c.out
	if o.buffer == nil && len(o.batch) > 0 {
		o.buffer = make([]byte, 0, outboxBytes)
	}
	begun := 0
	for i, k := range o.batch {
		o.buffer = c.form.AppendRequest(o.buffer, &k.request)
		var payload []byte
		if k.request.Command == wire.CmdWrite {
			if len(k.data) > copiedBytes {
				payload = k.data
			} else {
				o.buffer = append(o.buffer, k.data...)
			}
		}
		if payload == nil && i < len(o.batch)-1 && len(o.buffer) <= outboxBytes-copiedBytes-wire.ExtendedSize {
			continue
		}
		if err := c.writeOut(o.batch[begun:i+1], payload); err != nil {
			// Half a request may be out: no other may follow it. receive ends
			// every call.
			_ = c.nc.Close()
			break
		}
		begun = i + 1
	}
	o.buffer = o.buffer[:0]
	clear(o.batch)
}

// writeOut writes the buffer, which has calls in it, and the payload of the last
// of them if that is apart. As soon as its last byte is out a call may have ended,
// and be on its way again: only one with a payload apart is kept until then.
func (c *Client) writeOut(batch []*call, payload []byte) (err error) {
	last := batch[len(batch)-1]
	c.mu.Lock()
	for _, k := range batch {
		k.queued = false
	}
	last.lent = payload != nil
	c.mu.Unlock()
	if payload == nil {
		_, err = c.nc.Write(c.out.buffer)
	} else {
		c.out.pair = [2][]byte{c.out.buffer, payload}
		c.out.pieces = c.out.pair[:]
		_, err = c.out.pieces.WriteTo(c.nc)
		c.mu.Lock()
		last.lent = false
		c.wrote.Broadcast()
		c.mu.Unlock()
	}
	c.out.buffer = c.out.buffer[:0]
	return err
}

// owed is what the requests that go again, as their Done said, still have to be
// sent. It is of the goroutine that receives.
type owed struct {
	count         int
	receivedBytes int           // since they were last sent
	wake          chan struct{} // of sender
}

func (o *owed) add(receivedBytes int) {
	o.count++
	o.receivedBytes += receivedBytes
}

// stop ends sender.
func (o *owed) stop() {
	if o.wake != nil {
		close(o.wake)
	}
}

// sendOwed sends the requests that go again, before receive waits for the server,
// or has kept it waiting for more than a buffer's worth.
//
// It must not wait for a server that in turn waits until its replies are
// received. What the kernel's buffers hold for certain goes out at once: then
// nobody waits in this direction or nobody in the other. The rest is another
// goroutine's.
func (c *Client) sendOwed(bufferedBytes int) {
	if c.owed.count == 0 || bufferedBytes >= wire.SimpleSize && c.owed.receivedBytes < receiveBytes {
		return
	}
	c.owed.count, c.owed.receivedBytes = 0, 0
	if c.sendAtOnce() {
		return
	}
	if c.owed.wake == nil {
		c.owed.wake = make(chan struct{}, 1)
		go c.sender(c.owed.wake)
	}
	select {
	case c.owed.wake <- struct{}{}:
	default: // it will come
	}
}

// roomBytes is what a socket's buffers hold at least, in each direction.
const roomBytes = 32 << 10

// sendAtOnce sends what is queued if that can't wait for the receiver of replies.
func (c *Client) sendAtOnce() bool {
	if !c.sending.TryLock() {
		return false // somebody else's request may fill the buffers
	}
	defer c.sending.Unlock()
	c.mu.Lock()
	fits := hasBuffers(c.socket) && (c.flight.requestBytes <= roomBytes || c.flight.replyBytes <= roomBytes)
	if fits {
		c.takeQueue()
	}
	c.mu.Unlock()
	if fits {
		c.sendBatch()
	}
	return fits
}

// hasBuffers tells whether a connection is one of the kernel's.
func hasBuffers(nc net.Conn) bool {
	switch nc.(type) {
	case *net.UnixConn, *net.TCPConn:
		return true
	}
	return false
}

func (c *Client) sender(wake <-chan struct{}) {
	for range wake {
		c.send()
	}
}

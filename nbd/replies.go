package nbd

import (
	"net"
	"sync"
	"time"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// replies is the sending side of a connection. The batch belongs to the
// goroutine that receives; workers post. Either writes to the socket under
// sending, and a worker that finds another one posting leaves its reply to it.
//
// A write that fails breaks the connection: later replies are dropped, and the
// receiving side goes on until it finds NBD_CMD_DISC or the end, for only that
// tells whether the client meant to go.
type replies struct {
	nc         net.Conn
	device     Device
	handed     *gate
	structured bool

	memory *buffer
	batch  []byte    // replies not yet written
	oldest time.Time // arrival of the first request answered in batch

	sending sync.Mutex // held while the socket is written
	broken  bool       // guarded by sending

	mu      sync.Mutex
	queue   queue // guarded by mu
	posting bool  // guarded by mu: a worker holds or waits for sending, and will look at queue again
	spare   queue // guarded by sending
}

func (o *replies) init(nc net.Conn, device Device, handed *gate, structured bool) {
	o.nc, o.device, o.handed, o.structured = nc, device, handed, structured
	o.memory = takeBuffer(batchBytes + replyHeadroom)
	o.batch = o.memory.bytes[:0]
}

// release gives the memory back, after the last use.
func (o *replies) release() {
	o.memory.release()
	o.memory, o.batch = nil, nil
}

func (o *replies) batchEmpty() bool { return len(o.batch) == 0 }

// place makes room in the batch for the reply to a read and returns where its
// data goes, for commit to follow; nil when it is too large for a batch.
func (o *replies) place(r *request) []byte {
	header := readHeaderBytes(o.structured, r.Length)
	if header+int(r.Length) > cap(o.batch) {
		return nil
	}
	o.makeRoom(header + int(r.Length))
	start := len(o.batch) + header
	return o.batch[start : start+int(r.Length)]
}

// commit puts the reply into the batch whose data is where place said.
func (o *replies) commit(r *request) {
	o.note(r)
	o.batch = appendReadHeader(o.batch, r, o.structured)
	o.batch = o.batch[:len(o.batch)+int(r.Length)]
}

// succeed puts a reply without data into the batch.
func (o *replies) succeed(r *request) {
	o.makeRoom(wire.SimpleSize)
	o.note(r)
	o.batch = wire.AppendSimple(o.batch, r.Cookie, wire.OK)
}

// fail puts an error into the batch.
func (o *replies) fail(r *request, e wire.Errno, message string) {
	o.makeRoom(maxFailureBytes)
	o.note(r)
	o.batch = appendFailure(o.batch, r, o.structured, e, message)
}

func (o *replies) makeRoom(sizeBytes int) {
	if len(o.batch)+sizeBytes > cap(o.batch) {
		o.flush()
	}
}

func (o *replies) note(r *request) {
	if len(o.batch) == 0 {
		o.oldest = r.arrived
	}
}

// flush writes the batch.
func (o *replies) flush() {
	if len(o.batch) == 0 {
		return
	}
	o.sending.Lock()
	o.write(o.batch)
	o.sending.Unlock()
	o.device.Served(o.oldest)
	o.batch = o.batch[:0]
}

// send writes, after the batch, the reply to a task that was not handed to a
// worker, and releases it.
func (o *replies) send(t *task) {
	o.flush()
	o.sending.Lock()
	o.write(t.reply)
	o.sending.Unlock()
	o.device.Served(t.arrived)
	t.release()
}

// post writes the reply to a handed task, or leaves it to a worker that is
// posting, and releases it.
func (o *replies) post(t *task) {
	o.mu.Lock()
	o.queue.add(t)
	if o.posting {
		o.mu.Unlock()
		return
	}
	o.posting = true
	o.mu.Unlock()

	o.sending.Lock()
	defer o.sending.Unlock()
	for o.takeQueue() {
		q := &o.spare
		if len(q.small) > 0 {
			o.write(q.small)
		}
		for _, t := range q.large {
			o.write(t.reply)
			t.release()
		}
		o.device.Served(q.oldest)
		o.handed.leave(q.count, q.costBytes)
	}
}

// takeQueue moves what is queued to spare; if that is nothing, the caller has
// stopped posting.
func (o *replies) takeQueue() bool {
	o.spare.clear()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue, o.spare = o.spare, o.queue
	o.posting = o.spare.count > 0
	return o.posting
}

// write writes b to the socket, unless that is broken; o.sending is held.
func (o *replies) write(b []byte) {
	if o.broken {
		return
	}
	if _, err := o.nc.Write(b); err != nil {
		o.broken = true
	}
}

// A queue is replies of workers that wait to be written, in any order.
type queue struct {
	small     []byte  // replies, one after the other
	large     []*task // their replies are not worth a copy
	count     int     // of all
	costBytes int64
	oldest    time.Time
}

// smallBytes is the longest reply that is copied.
const smallBytes = 16 << 10

func (q *queue) add(t *task) {
	if q.count == 0 || t.arrived.Before(q.oldest) {
		q.oldest = t.arrived
	}
	q.count++
	q.costBytes += t.costBytes()
	if len(t.reply) > smallBytes {
		q.large = append(q.large, t)
		return
	}
	q.small = append(q.small, t.reply...)
	t.release()
}

func (q *queue) clear() {
	clear(q.large)
	*q = queue{small: q.small[:0], large: q.large[:0]}
}

// A gate limits the commands that are handed to workers. One goroutine enters.
type gate struct {
	mu    sync.Mutex
	left  sync.Cond
	n     int
	bytes int64
}

func (g *gate) init() { g.left.L = &g.mu }

// enter waits for room; a command always finds room when no other is there.
func (g *gate) enter(costBytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.room(costBytes) {
		g.left.Wait()
	}
	g.n++
	g.bytes += costBytes
}

// tryEnter is enter that does not wait; false when there is no room.
func (g *gate) tryEnter(costBytes int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.room(costBytes) {
		return false
	}
	g.n++
	g.bytes += costBytes
	return true
}

func (g *gate) room(costBytes int64) bool {
	return g.n == 0 || g.n < handedCount && g.bytes+costBytes <= handedBytes
}

func (g *gate) leave(n int, costBytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n -= n
	g.bytes -= costBytes
	g.left.Signal()
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

func (g *gate) empty() bool { return g.count() == 0 }

package nbd

import (
	"io"
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
	out     io.Writer // the account, or TLS over it
	device  Device
	account *account
	form    wire.Form

	sit    func() []byte // a larger batch's memory, nil if there is none
	own    *buffer       // memory of a small batch, from the first reply on
	batch  []byte        // replies not yet written
	oldest time.Time     // arrival of the first request answered in batch

	sending     sync.Mutex // held while the socket is written
	broken      bool       // guarded by sending
	unpublished error      // guarded by sending: why replies were not sent

	mu      sync.Mutex
	queue   queue // guarded by mu
	posting bool  // guarded by mu: a worker holds or waits for sending, and will look at queue again
}

func (o *replies) init(out io.Writer, device Device, a *account, form wire.Form, sit func() []byte) {
	o.out, o.device, o.account, o.form, o.sit = out, device, a, form, sit
}

// use makes memory the batch's and moves the batch there.
func (o *replies) use(memory []byte) {
	o.batch = append(memory[:0], o.batch...)
}

// shrink goes back to the small batch; what there was is written.
func (o *replies) shrink() {
	if o.own == nil {
		o.own = takeBuffer(smallBytes)
	}
	o.batch = o.own.bytes[:0]
}

// release gives the memory back, after the last use.
func (o *replies) release() {
	o.own.release()
	o.own, o.batch = nil, nil
}

func (o *replies) batchEmpty() bool { return len(o.batch) == 0 }

// place makes room in the batch for the reply to a read and returns where its
// data goes, for commit to follow; nil when it is too large for a batch.
func (o *replies) place(r *request) []byte {
	header := o.form.DataHeaderBytes(&r.Request)
	if !o.makeRoom(header + int(r.Length)) {
		return nil
	}
	start := len(o.batch) + header
	return o.batch[start : start+int(r.Length)]
}

// commit puts the reply into the batch whose data is where place said.
func (o *replies) commit(r *request) {
	o.note(r)
	o.batch = o.form.AppendDataHeader(o.batch, &r.Request)
	o.batch = o.batch[:len(o.batch)+int(r.Length)]
}

// succeed puts a reply without data into the batch.
func (o *replies) succeed(r *request) {
	o.makeRoom(wire.ExtendedSize)
	o.note(r)
	o.batch = o.form.AppendDone(o.batch, &r.Request)
}

// fail puts an error into the batch.
func (o *replies) fail(r *request, e wire.Errno, message string) {
	o.makeRoom(maxFailureBytes)
	o.note(r)
	o.batch = o.form.AppendFailure(o.batch, &r.Request, e, clip(message))
}

// makeRoom has the batch hold sizeBytes more, if need be by writing it; false
// when it never can. It always can hold smallBytes.
func (o *replies) makeRoom(sizeBytes int) bool {
	if len(o.batch)+sizeBytes <= cap(o.batch) {
		return true
	}
	if sizeBytes > batchBytes+replyHeadroom {
		return false
	}
	if cap(o.batch) == 0 && sizeBytes <= smallBytes {
		o.shrink()
		return true
	}
	if cap(o.batch) <= smallBytes {
		if memory := o.sit(); memory != nil {
			o.use(memory)
		}
	}
	if len(o.batch)+sizeBytes > cap(o.batch) {
		o.flush()
	}
	return sizeBytes <= cap(o.batch)
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
	o.account.leave(1, t.costBytes)
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
	for {
		q, some := o.takeQueue()
		if !some {
			return
		}
		if q.small != nil {
			o.write(q.small.bytes)
			q.small.release()
		}
		for t := q.large.pop(); t != nil; t = q.large.pop() {
			o.write(t.reply)
			t.release()
		}
		o.device.Served(q.oldest)
		o.account.leave(q.count, q.costBytes)
	}
}

// takeQueue takes what is queued; if that is nothing, the caller has stopped
// posting.
func (o *replies) takeQueue() (q queue, some bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q, o.queue = o.queue, queue{}
	o.posting = q.count > 0
	return q, o.posting
}

// write publishes what the replies in b tell, and writes b to the socket, unless that is
// broken; o.sending is held. Without a reply a client takes none of it for done, and
// others may see it later.
func (o *replies) write(b []byte) {
	if err := o.device.Publish(); err != nil && !o.broken {
		o.broken, o.unpublished = true, err
		_ = o.account.nc.Close()
	}
	if o.broken {
		return
	}
	o.account.awaiting.Add(1)
	_, err := o.out.Write(b)
	o.account.awaiting.Add(-1)
	o.broken = err != nil
}

// A queue is replies of workers that wait to be written, in any order.
type queue struct {
	small     *buffer // replies, one after the other
	large     line    // their replies are not worth a copy
	count     int     // of all
	costBytes int64
	oldest    time.Time
}

// copiedBytes is the longest reply that is copied: what was drawn for the
// command covers the copy.
const copiedBytes = commandBytes

func (q *queue) add(t *task) {
	if q.count == 0 || t.arrived.Before(q.oldest) {
		q.oldest = t.arrived
	}
	q.count++
	q.costBytes += t.costBytes
	if len(t.reply) > copiedBytes {
		q.large.push(t)
		return
	}
	q.small = q.small.append(t.reply)
	t.release()
}

package nbd

import (
	"encoding/binary"
	"errors"
	"math"
	"math/bits"
	"sync"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// A task is a command that is served apart from the batch, with what it needs
// and, in the end, its reply.
type task struct {
	request
	// buf holds a write's payload (nil: it is stored already, and only the
	// flush of FUA is left), or a read's data behind its reply's header.
	buf       *buffer
	costBytes int64 // drawn for it from the connection's account
	next      *task // in a line

	reply  []byte // whole, in scratch or in buf
	failed bool   // the reply is an error

	scratch []byte
	status  [maxContexts]statusList
	note    func(Extent) bool // noteExtent, bound once
	left    int64             // bytes of the range that noteExtent has not seen
	limit   int               // descriptors a context
}

var taskPool = sync.Pool{New: func() any {
	t := &task{}
	t.note = t.noteExtent
	return t
}}

func newTask(r *request) *task {
	t := taskPool.Get().(*task)
	t.request = *r
	return t
}

// release gives t and its buffer back; nobody may use them any more.
func (t *task) release() {
	t.buf.release()
	t.buf, t.reply, t.failed, t.costBytes = nil, nil, false, 0
	taskPool.Put(t)
}

// perform serves the command and makes the reply.
func (t *task) perform(s *session) {
	off, length := int64(t.Offset), int64(t.Length)
	var err error
	switch t.Command {
	case wire.CmdRead:
		_, err = s.device.ReadAt(t.placeForRead(s.form), off)
	case wire.CmdWrite:
		if t.buf != nil {
			_, err = s.device.WriteAt(t.buf.bytes, off)
		}
	case wire.CmdFlush:
		err = s.device.Flush()
	case wire.CmdTrim:
		if length > 0 {
			err = s.device.Trim(off, length)
		}
	case wire.CmdZeroes:
		if length > 0 {
			err = s.device.WriteZeroes(off, length, t.Flags&wire.FlagNoHole != 0)
		}
	case wire.CmdCache:
		if length > 0 {
			err = s.device.Cache(off, length)
		}
	case wire.CmdBlockStatus:
		err = t.blockStatus(s)
	}
	if err == nil && t.Flags&wire.FlagFUA != 0 {
		switch t.Command {
		case wire.CmdWrite, wire.CmdTrim, wire.CmdZeroes:
			err = s.device.Flush()
		}
	}
	t.finish(s, err)
}

// finish makes the reply of a command that is done.
func (t *task) finish(s *session, err error) {
	switch {
	case err != nil:
		t.reply = s.form.AppendFailure(t.scratch[:0], &t.Request, errnoOf(err), clip(err.Error()))
		t.scratch = t.reply
	case t.Command == wire.CmdRead:
		t.reply = t.buf.bytes
		s.form.AppendDataHeader(t.reply[:0], &t.Request)
	case t.Command == wire.CmdBlockStatus:
		t.reply = t.appendStatus(t.scratch[:0], s.form)
		t.scratch = t.reply
	default:
		t.reply = s.form.AppendDone(t.scratch[:0], &t.Request)
		t.scratch = t.reply
	}
	if t.Command == wire.CmdWrite {
		t.buf.release()
		t.buf = nil
	}
}

// placeForRead is where a read's data goes: behind the reply's header.
func (t *task) placeForRead(form wire.Form) []byte {
	header := form.DataHeaderBytes(&t.Request)
	if t.buf == nil {
		t.buf = takeBuffer(header + int(t.Length))
	}
	return t.buf.bytes[header:]
}

// maxFailureBytes is the longest reply to a request that failed.
const maxFailureBytes = wire.ExtendedSize + 4 + 2 + maxMessageBytes

// maxDescriptors bounds a status reply; the client asks again for the rest.
const maxDescriptors = 4096

// statusBytes is the memory that a status reply takes: the descriptors of each
// context, which are of blocks or longer, in their list and in the reply.
func statusBytes(r *request) int {
	return 2 * 16 * bits.OnesCount32(uint32(r.contexts)) * int(min(maxDescriptors, r.Length/preferredBlockBytes+2))
}

// A statusList is the descriptors of one context: equal neighbours are one.
type statusList struct {
	descriptors []byte // as in a chunk of the kind that is sent
	wide        bool   // they have 64 bits of length and flags, else 32
	length      int64  // of the last descriptor, which is not yet in descriptors
	flags       uint32
	count       int
	full        bool
}

var errNoExtents = errors.New("nbd: the device told no extents")

// blockStatus collects the extents of the range, for each context that was selected.
func (t *task) blockStatus(s *session) error {
	for i := range t.status {
		t.status[i] = statusList{
			descriptors: t.status[i].descriptors[:0],
			wide:        s.form == wire.Extended,
			full:        t.contexts&(1<<i) == 0,
		}
	}
	t.limit = maxDescriptors
	if t.Flags&wire.FlagReqOne != 0 {
		t.limit = 1
	}
	for i, b := range s.bitmaps {
		t.compare(b, &t.status[len(contexts)+i])
	}
	if t.contexts&(allocationID|depthID) == 0 {
		return nil
	}
	t.left = int64(t.Length)
	if err := s.device.Extents(int64(t.Offset), int64(t.Length), t.note); err != nil {
		return err
	}
	if t.left == int64(t.Length) {
		return errNoExtents
	}
	return nil
}

// compare collects where the range differs, if that was asked for.
func (t *task) compare(b Bitmap, list *statusList) {
	if list.full {
		return
	}
	left := int64(t.Length)
	b.Extents(int64(t.Offset), left, func(length int64, dirty bool) bool {
		length = min(length, left)
		left -= length
		state := uint32(0)
		if dirty {
			state = wire.StateDirty
		}
		list.add(length, state, t.limit)
		return left > 0 && !list.full
	})
}

// noteExtent adds an extent, cut at the end of the range; false when no more
// are wanted.
func (t *task) noteExtent(e Extent) bool {
	length := min(e.Length, t.left)
	if length <= 0 {
		return t.left > 0
	}
	t.left -= length
	var state uint32
	if e.Hole {
		state |= wire.StateHole
	}
	if e.Zero {
		state |= wire.StateZero
	}
	t.status[0].add(length, state, t.limit)
	t.status[1].add(length, e.Depth, t.limit)
	return t.left > 0 && !(t.status[0].full && t.status[1].full)
}

func (l *statusList) add(length int64, flags uint32, limit int) {
	switch {
	case l.full:
	case l.count > 0 && l.flags == flags && (l.wide || l.length+length <= math.MaxUint32):
		l.length += length
	case l.count == limit:
		l.full = true
	default:
		l.close()
		l.length, l.flags = length, flags
		l.count++
	}
}

// close moves the last descriptor to the others.
func (l *statusList) close() {
	switch {
	case l.length == 0:
		return
	case l.wide:
		l.descriptors = binary.BigEndian.AppendUint64(l.descriptors, uint64(l.length))
		l.descriptors = binary.BigEndian.AppendUint64(l.descriptors, uint64(l.flags))
	default:
		l.descriptors = binary.BigEndian.AppendUint32(l.descriptors, uint32(l.length))
		l.descriptors = binary.BigEndian.AppendUint32(l.descriptors, l.flags)
	}
	l.length = 0
}

// appendStatus appends one chunk for each context, the last one with ChunkDone.
func (t *task) appendStatus(b []byte, form wire.Form) []byte {
	selected := t.contexts
	for i := range t.status {
		id := contextSet(1) << i
		if selected&id == 0 {
			continue
		}
		l := &t.status[i]
		l.close()
		var flags uint16
		if selected &^= id; selected == 0 {
			flags = wire.ChunkDone
		}
		if l.wide {
			b = form.AppendChunk(b, flags, wire.ChunkBlockStatusExt, &t.Request, 4+4+len(l.descriptors))
			b = binary.BigEndian.AppendUint32(b, uint32(id))
			b = binary.BigEndian.AppendUint32(b, uint32(l.count))
		} else {
			b = form.AppendChunk(b, flags, wire.ChunkBlockStatus, &t.Request, 4+len(l.descriptors))
			b = binary.BigEndian.AppendUint32(b, uint32(id))
		}
		b = append(b, l.descriptors...)
	}
	return b
}

// A line is tasks, first come first served. The zero value is empty.
type line struct{ first, last *task }

func (l *line) push(t *task) {
	if l.first == nil {
		l.first = t
	} else {
		l.last.next = t
	}
	l.last = t
}

// pop takes the first task; nil when there is none.
func (l *line) pop() *task {
	t := l.first
	if t != nil {
		l.first, t.next = t.next, nil
	}
	return t
}

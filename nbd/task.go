package nbd

import (
	"encoding/binary"
	"errors"
	"math"
	"sync"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// A task is a command that is served apart from the batch, with what it needs
// and, in the end, its reply.
type task struct {
	request
	// buf holds a write's payload (nil: it is stored already, and only the
	// flush of FUA is left), or a read's data behind its reply's header.
	buf *buffer

	reply  []byte // whole, in scratch or in buf
	failed bool   // the reply is an error

	scratch []byte
	status  [len(contexts)]statusList
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
	t.buf, t.reply, t.failed = nil, nil, false
	taskPool.Put(t)
}

// costBytes is the memory that t holds until its reply is in the socket.
func (t *task) costBytes() int64 {
	if t.Command == wire.CmdRead || t.Command == wire.CmdWrite {
		return int64(t.Length)
	}
	return 0
}

// perform serves the command and makes the reply.
func (t *task) perform(s *session) {
	off, length := int64(t.Offset), int64(t.Length)
	var err error
	switch t.Command {
	case wire.CmdRead:
		_, err = s.device.ReadAt(t.placeForRead(s.structured), off)
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
		t.reply = appendFailure(t.scratch[:0], &t.request, s.structured, errnoOf(err), err.Error())
		t.scratch = t.reply
	case t.Command == wire.CmdRead:
		t.reply = t.buf.bytes
		appendReadHeader(t.reply[:0], &t.request, s.structured)
	case t.Command == wire.CmdBlockStatus:
		t.reply = t.appendStatus(t.scratch[:0], s.contexts)
		t.scratch = t.reply
	default:
		t.reply = wire.AppendSimple(t.scratch[:0], t.Cookie, wire.OK)
		t.scratch = t.reply
	}
	if t.Command == wire.CmdWrite {
		t.buf.release()
		t.buf = nil
	}
}

// placeForRead is where a read's data goes: behind the reply's header.
func (t *task) placeForRead(structured bool) []byte {
	header := readHeaderBytes(structured, t.Length)
	if t.buf == nil {
		t.buf = takeBuffer(header + int(t.Length))
	}
	return t.buf.bytes[header:]
}

// readHeaderBytes is the length of the header of a read's successful reply.
func readHeaderBytes(structured bool, lengthBytes uint32) int {
	switch {
	case !structured:
		return wire.SimpleSize
	case lengthBytes == 0:
		return wire.ChunkSize // a ChunkData must hold at least one byte
	}
	return wire.DataChunkSize
}

func appendReadHeader(b []byte, r *request, structured bool) []byte {
	switch {
	case !structured:
		return wire.AppendSimple(b, r.Cookie, wire.OK)
	case r.Length == 0:
		return wire.AppendChunk(b, wire.ChunkDone, wire.ChunkNone, r.Cookie, 0)
	}
	return wire.AppendDataChunk(b, r.Cookie, r.Offset, r.Length)
}

// maxFailureBytes is the longest reply of appendFailure.
const maxFailureBytes = wire.ChunkSize + 4 + 2 + maxMessageBytes

func appendFailure(b []byte, r *request, structured bool, e wire.Errno, message string) []byte {
	if structured {
		return wire.AppendErrorChunk(b, r.Cookie, e, clip(message))
	}
	return wire.AppendSimple(b, r.Cookie, e)
}

// maxDescriptors bounds a status reply; the client asks again for the rest.
const maxDescriptors = 4096

// A statusList is the descriptors of one context: equal neighbours are one.
type statusList struct {
	descriptors []byte // 32 bits length, 32 bits flags, each
	length      int64  // of the last descriptor, which is not yet in descriptors
	flags       uint32
	count       int
	full        bool
}

var errNoExtents = errors.New("nbd: the device told no extents")

// blockStatus collects the extents of the range, for each context that was selected.
func (t *task) blockStatus(s *session) error {
	for i := range t.status {
		t.status[i] = statusList{descriptors: t.status[i].descriptors[:0], full: s.contexts&contexts[i].id == 0}
	}
	t.left, t.limit = int64(t.Length), maxDescriptors
	if t.Flags&wire.FlagReqOne != 0 {
		t.limit = 1
	}
	if err := s.device.Extents(int64(t.Offset), int64(t.Length), t.note); err != nil {
		return err
	}
	if t.left == int64(t.Length) {
		return errNoExtents
	}
	return nil
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
	case l.count > 0 && l.flags == flags && l.length+length <= math.MaxUint32:
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
	if l.length > 0 {
		l.descriptors = binary.BigEndian.AppendUint32(l.descriptors, uint32(l.length))
		l.descriptors = binary.BigEndian.AppendUint32(l.descriptors, l.flags)
		l.length = 0
	}
}

// appendStatus appends one chunk for each context, the last one with ChunkDone.
func (t *task) appendStatus(b []byte, selected contextSet) []byte {
	for i, c := range contexts {
		if selected&c.id == 0 {
			continue
		}
		l := &t.status[i]
		l.close()
		var flags uint16
		if selected &^= c.id; selected == 0 {
			flags = wire.ChunkDone
		}
		b = wire.AppendChunk(b, flags, wire.ChunkBlockStatus, t.Cookie, uint32(4+len(l.descriptors)))
		b = binary.BigEndian.AppendUint32(b, uint32(c.id))
		b = append(b, l.descriptors...)
	}
	return b
}

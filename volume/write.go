package volume

import (
	"github.com/tidemark/tidemark/blocklock"
	"github.com/tidemark/tidemark/internal/yield"
	"github.com/tidemark/tidemark/journal"
	"github.com/tidemark/tidemark/lookup"
)

// WriteAt writes as io.WriterAt does. Beyond the end: ErrRange, and nothing is
// written. After any other error the range is undefined, and nothing else is.
func (w *View) WriteAt(p []byte, off int64) (int, error) {
	return w.written(len(p), w.write(&change{data: p, off: off, lengthBytes: int64(len(p)), state: lookup.Data}, true))
}

// TryWriteAt is WriteAt that waits for no lock, no read and no log that is not
// ready: ErrWouldBlock, and nothing was done, when it would have to. What it has done
// survives the death of the server only from Publish on.
func (w *View) TryWriteAt(p []byte, off int64) (int, error) {
	return w.written(len(p), w.write(&change{data: p, off: off, lengthBytes: int64(len(p)), state: lookup.Data}, false))
}

// Trim makes a range read zeros, and gives storage back where it can (R4).
// Blocks that the range covers in part are zeroed in that part.
func (w *View) Trim(off, lengthBytes int64) error { return w.WriteZeroes(off, lengthBytes, false) }

// WriteZeroes makes a range read zeros (R4). With noHole its storage is kept,
// or reserved, so that a later write there finds room.
func (w *View) WriteZeroes(off, lengthBytes int64, noHole bool) error {
	state := lookup.Zero
	if noHole {
		state = lookup.Data
	}
	return w.write(&change{off: off, lengthBytes: lengthBytes, state: state}, true)
}

// Publish is Volume.Publish, for a frontend, which calls it before it hands out replies,
// of TryReadAt too, that may have seen such a write: so each batch of requests costs one
// write of the log, and a kill takes nothing that a client knows of.
func (w *View) Publish() error { return w.volume.Publish() }

// Publish lets what was written by TryWriteAt, through any view of the volume, survive the
// death of the server. Errors: those of the log; nobody may be told of such a write then.
func (v *Volume) Publish() error { return v.log.Publish() }

func (w *View) written(n int, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	return n, nil
}

// change is what a request does to a range of bytes.
type change struct {
	data        []byte // nil: zeros
	off         int64
	lengthBytes int64
	state       lookup.State // of the whole blocks afterwards: Data or Zero
}

func (w *View) write(ch *change, wait bool) (err error) {
	if w.fixed != nil {
		return ErrReadOnly
	}
	if err := w.inRange(ch.off, ch.lengthBytes); err != nil || ch.lengthBytes == 0 {
		return err
	}
	rq := requests.Get().(*request)
	defer rq.release()
	for again := true; again; {
		if again, err = w.writeOnce(rq, ch, wait); err != nil {
			return err
		}
	}
	return nil
}

func (w *View) writeOnce(rq *request, ch *change, wait bool) (again bool, err error) {
	v := w.volume
	k, err := w.enter()
	if err != nil {
		return false, err
	}
	defer w.leave(k)
	if beforeLock != nil {
		beforeLock(k)
	}
	first, count := blocks(ch.off, ch.lengthBytes)
	if !v.lock(rq, first, count, blocklock.Exclusive, wait) {
		return false, ErrWouldBlock
	}
	defer v.locks.Unlock(&rq.held)
	if err := v.Failed(); err != nil {
		return false, err
	}
	if !wait && !v.log.Ready() && !k.all(span{first, count}, ch.state) { // a table may change
		return false, ErrWouldBlock
	}
	if w.givesUp(k, first, count) {
		return true, nil
	}
	yield.Here("write: locked")
	return false, v.writeLocked(rq, k, ch, wait)
}

// writeLocked is R1, R3 and R4: a write through VLUN k. The caller holds the
// locks of its blocks. Its order is the promise: what fills parts of blocks is
// read first, then all data is stored, then the log has the entries, then the
// tables; if a step fails, no table has changed.
func (v *Volume) writeLocked(rq *request, k *VLUN, ch *change, wait bool) error {
	newer := (*v.chain.Load()).newer(k) // read after the lock is held, not at begin (R1)
	body, parts := split(rq, ch)

	for i := range parts {
		if err := parts[i].fill(v, k, wait); err != nil {
			return err
		}
	}
	first, count := blocks(ch.off, ch.lengthBytes)
	yield.Here("write: chain read")
	v.countConflicts(k, first, count)
	if err := k.store(ch, body); err != nil {
		return err
	}
	for i := range parts {
		if err := parts[i].store(k, newer); err != nil {
			return err
		}
	}

	yield.Here("write: stored")
	rq.enter(body, k, newer, ch.state)
	for i := range parts {
		rq.enterPart(&parts[i], k, newer)
	}
	punch := ch.state == lookup.Zero && body.count > 0 && !k.all(body, lookup.Zero)
	if len(rq.entries) > 0 {
		if err := v.logChanges(rq.changes, wait); err != nil {
			return err
		}
		for _, e := range rq.entries {
			yield.Here("write: before an entry")
			e.vlun.table.Set(e.first, e.count, e.state)
		}
		yield.Here("write: tables set")
		v.reindex(body, parts, k, newer, ch.state)
	}
	if punch {
		// What lay here reads zeros from now on, before and after a crash. That
		// the room could not be given back changes nothing that was promised.
		_ = k.Image().Punch(body.off(), body.lengthBytes())
	}
	return nil
}

// logChanges has the log take the changes of a request, who does not wait, without a
// write of its own.
func (v *Volume) logChanges(changes []journal.Change, wait bool) (err error) {
	if wait {
		_, err = v.log.Append(changes)
	} else {
		_, err = v.log.Stage(changes)
	}
	return err
}

// span is a range of whole blocks.
type span struct {
	first lookup.BlockNum
	count uint64
}

func (s span) off() int64         { return int64(s.first) * lookup.BlockSize }
func (s span) lengthBytes() int64 { return int64(s.count) * lookup.BlockSize }

// part is a block that a request covers in part.
type part struct {
	block lookup.BlockNum
	from  int    // first byte of the block that is covered
	data  []byte // the bytes that cover it
	held  bool   // image k has the block as Data: its other bytes are in place
	whole [lookup.BlockSize]byte
}

var zeros [lookup.BlockSize]byte

// split cuts a change into the blocks that it covers whole, and at most two
// that it covers in part.
func split(rq *request, ch *change) (body span, parts []part) {
	parts = rq.parts[:0]
	cut := func(off, n int64) {
		parts = parts[:len(parts)+1]
		p := &parts[len(parts)-1]
		p.block, p.from = lookup.BlockNum(off/lookup.BlockSize), int(off%lookup.BlockSize)
		if p.data = zeros[:n]; ch.data != nil {
			p.data = ch.data[off-ch.off:][:n]
		}
	}
	off, end := ch.off, ch.off+ch.lengthBytes
	if head := off % lookup.BlockSize; head != 0 || end-off < lookup.BlockSize {
		n := min(end-off, lookup.BlockSize-head)
		cut(off, n)
		off += n
	}
	body = span{lookup.BlockNum(off / lookup.BlockSize), uint64((end - off) / lookup.BlockSize)}
	off += body.lengthBytes()
	if off < end {
		cut(off, end-off)
	}
	return body, parts
}

// store stores the whole blocks of a change in image k (R1).
func (k *VLUN) store(ch *change, body span) (err error) {
	switch {
	case body.count == 0:
		return nil
	case ch.data != nil:
		err = k.storeData(ch.data[body.off()-ch.off:][:body.lengthBytes()], body)
	case ch.state == lookup.Data:
		err = k.Image().Zero(body.off(), body.lengthBytes())
	default:
		return nil // a zero entry needs no data
	}
	k.touch(body)
	return err
}

// storeData writes whole blocks, if the image has not all of them in small pieces, each
// of which becomes a page of its own in memory (file.PieceBytes says why).
func (k *VLUN) storeData(data []byte, body span) error {
	if len(data) <= newPieceBytes || k.all(body, lookup.Data) {
		_, err := k.Image().WriteAt(data, body.off())
		return err
	}
	for off := body.off(); len(data) > 0; {
		n := min(len(data), newPieceBytes-int(off%newPieceBytes))
		if _, err := k.Image().WriteAt(data[:n], off); err != nil {
			return err
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// newPieceBytes is a compromise: with pieces of a block a sequential write takes twice
// as long; with 64 KiB a random write over it a fifth longer.
const newPieceBytes = 16 << 10

// touch marks blocks of the image as written. It comes after the write and
// before its log entry: a commit looks at the log first and at the marks second
// (flush.go).
func (k *VLUN) touch(s span) {
	k.unsynced.mark(s)
	k.fresh.add(s)
}

// fill makes the part whole (R3): from image k where it is, through k else.
func (p *part) fill(v *Volume, k *VLUN, wait bool) error {
	if p.held = k.table.Get(p.block) == lookup.Data; p.held {
		return nil
	}
	if err := v.readLocked(k, p.whole[:], int64(p.block)*lookup.BlockSize, wait); err != nil {
		return err
	}
	copy(p.whole[p.from:], p.data)
	return nil
}

// store stores the part in image k, and applies the same bytes to each newer
// image that has the block (R3): to delete its entry would lose newer data.
func (p *part) store(k *VLUN, newer chain) error {
	off := int64(p.block) * lookup.BlockSize
	bytes, at := p.data, off+int64(p.from)
	if !p.held {
		bytes, at = p.whole[:], off
	}
	_, err := k.Image().WriteAt(bytes, at)
	k.touch(span{p.block, 1})
	if err != nil {
		return err
	}
	for _, j := range newer {
		bytes, at := p.data, off+int64(p.from)
		yield.Here("write: before a part in a newer image")
		switch j.table.Get(p.block) {
		case lookup.Absent:
			continue
		case lookup.Zero: // becomes data: zeros around the bytes
			whole := make([]byte, lookup.BlockSize)
			copy(whole[p.from:], p.data)
			bytes, at = whole, off
		}
		k.reach()
		_, err := j.Image().WriteAt(bytes, at)
		j.touch(span{p.block, 1})
		if err != nil {
			return err
		}
	}
	return nil
}

// entry is a change of one table.
type entry struct {
	vlun  *VLUN
	first lookup.BlockNum
	count uint64
	state lookup.State
}

func (rq *request) add(k *VLUN, first lookup.BlockNum, count uint64, s lookup.State) {
	rq.entries = append(rq.entries, entry{k, first, count, s})
	rq.changes = append(rq.changes, journal.Change{Image: k.id, Block: first, Count: count, State: s})
}

// enter notes the entries that the whole blocks of a write need: one in table k
// where it is missing, or where the log has older data, and none in any newer table (R1).
func (rq *request) enter(body span, k *VLUN, newer chain, s lookup.State) {
	if body.count == 0 {
		return
	}
	if !k.all(body, s) || k.stored.any(body) {
		rq.add(k, body.first, body.count, s)
	}
	for _, j := range newer {
		if !j.all(body, lookup.Absent) {
			k.reach()
			rq.add(j, body.first, body.count, lookup.Absent)
		}
	}
}

// enterPart notes the entries that a part needs (R3); its store has noted that it
// reaches into newer images.
func (rq *request) enterPart(p *part, k *VLUN, newer chain) {
	if !p.held || k.stored.any(span{p.block, 1}) {
		rq.add(k, p.block, 1, lookup.Data)
	}
	for _, j := range newer {
		state := j.table.Get(p.block)
		if state == lookup.Zero || state == lookup.Data && j.stored.any(span{p.block, 1}) {
			rq.add(j, p.block, 1, lookup.Data)
		}
	}
}

// reach remembers that a write through k changes a newer table or image, before it
// does, and under the block's lock: a request that is not over has not left k. It
// looks first, as requests share it.
func (k *VLUN) reach() {
	if !k.reached.Load() {
		k.reached.Store(true)
	}
}

// all tells whether a table has every block of a span in one state.
func (k *VLUN) all(body span, s lookup.State) bool {
	for body.count > 0 {
		state, n := k.table.Run(body.first, body.count)
		if state != s {
			return false
		}
		body.first, body.count = body.first+lookup.BlockNum(n), body.count-n
	}
	return true
}

// reindex brings the index after the tables: the newest image that has a block.
func (v *Volume) reindex(body span, parts []part, k *VLUN, newer chain, s lookup.State) {
	if body.count > 0 {
		v.index.Set(body.first, body.count, lookup.MakeEntry(k.slot, s))
	}
	for i := range parts {
		newest := k
		for _, j := range newer {
			if j.table.Get(parts[i].block) != lookup.Absent {
				newest = j
			}
		}
		v.index.Set(parts[i].block, 1, lookup.MakeEntry(newest.slot, lookup.Data))
	}
	v.wantsTidying(k)
}

package client

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// receive takes replies off the connection until it ends, and then ends every
// call in flight.
func (c *Client) receive() {
	defer close(c.received)
	r := bufio.NewReaderSize(c.nc, receiveBytes)
	var err error
	for err == nil {
		c.sendOwed(r.Buffered())
		err = c.receiveReply(r)
	}
	_ = c.nc.Close()
	c.endAll(fmt.Errorf("%w: %w", ErrClosed, err))
}

// receiveBytes is the size of the buffer that replies are taken from.
const receiveBytes = 64 << 10

var (
	errBadReply    = errors.New("malformed reply")
	errStrayCookie = errors.New("reply to no request")
)

// receiveReply takes one simple reply, or one chunk of another one. Layouts:
// wire.Form.
func (c *Client) receiveReply(r *bufio.Reader) error {
	magic, err := r.Peek(4)
	if err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(magic); {
	case magic == wire.MagicSimple && c.form != wire.Extended:
		return c.receiveSimple(r)
	case magic == wire.MagicStructured && c.form == wire.Structured,
		magic == wire.MagicExtendedChunk && c.form == wire.Extended:
		return c.receiveChunk(r)
	}
	return errBadReply
}

func (c *Client) receiveSimple(r *bufio.Reader) error {
	b, err := r.Peek(wire.SimpleSize)
	if err != nil {
		return err
	}
	k := c.call(binary.BigEndian.Uint64(b[8:]))
	if k == nil {
		return errStrayCookie
	}
	failure := binary.BigEndian.Uint32(b[4:])
	discard(r, len(b))
	if failure != 0 {
		k.err = &CommandError{Errno: failure}
	} else if k.request.Command == wire.CmdRead {
		if c.form != wire.Simple {
			return errBadReply
		}
		if _, err := io.ReadFull(r, k.data); err != nil {
			return err
		}
		k.got = len(k.data)
	}
	return c.finish(k)
}

func (c *Client) receiveChunk(r *bufio.Reader) error {
	b, err := r.Peek(c.form.ChunkBytes())
	if err != nil {
		return err
	}
	k := c.call(binary.BigEndian.Uint64(b[8:]))
	if k == nil {
		return errStrayCookie
	}
	lengthBytes := uint64(binary.BigEndian.Uint32(b[16:]))
	if c.form == wire.Extended {
		lengthBytes = binary.BigEndian.Uint64(b[24:])
		if binary.BigEndian.Uint64(b[16:]) != k.request.Offset {
			return errBadReply
		}
	}
	flags, kind := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	discard(r, len(b))
	if err := c.receivePayload(r, k, kind, lengthBytes); err != nil {
		return err
	}
	if flags&wire.ChunkDone != 0 {
		return c.finish(k)
	}
	return nil
}

// discard drops what Peek has shown, which can't fail. A header that is peeked
// at, not read into a variable, costs no allocation.
func discard(r *bufio.Reader, n int) { _, _ = r.Discard(n) }

// maxChunkBytes is the longest chunk without read data that is believed.
const maxChunkBytes = 1 << 20

// receivePayload takes a chunk's payload.
func (c *Client) receivePayload(r *bufio.Reader, k *call, kind uint16, lengthBytes uint64) error {
	if kind == wire.ChunkData && k.request.Command == wire.CmdRead && lengthBytes > 8 {
		b, err := r.Peek(8)
		if err != nil {
			return err
		}
		place, err := k.place(binary.BigEndian.Uint64(b), lengthBytes-8)
		if err != nil {
			return err
		}
		discard(r, len(b))
		_, err = io.ReadFull(r, place)
		return err
	}
	if lengthBytes > maxChunkBytes {
		return errBadReply
	}
	b := make([]byte, lengthBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	switch {
	case kind == wire.ChunkNone && lengthBytes == 0:
		return nil
	case kind == wire.ChunkHole && k.request.Command == wire.CmdRead && lengthBytes == 12:
		place, err := k.place(binary.BigEndian.Uint64(b), uint64(binary.BigEndian.Uint32(b[8:])))
		clear(place)
		return err
	case kind == wire.ChunkBlockStatus && k.status != nil && lengthBytes >= 12 && lengthBytes%8 == 4:
		name := c.contexts[binary.BigEndian.Uint32(b)]
		for b = b[4:]; len(b) > 0; b = b[8:] {
			k.status[name] = append(k.status[name], descriptor{uint64(binary.BigEndian.Uint32(b)), uint64(binary.BigEndian.Uint32(b[4:]))})
		}
		return k.checkStatus(name)
	case kind == wire.ChunkBlockStatusExt && k.status != nil && c.form == wire.Extended && lengthBytes >= 24 && lengthBytes%16 == 8:
		name := c.contexts[binary.BigEndian.Uint32(b)]
		if count := uint64(binary.BigEndian.Uint32(b[4:])); count != 0 && count != lengthBytes/16 {
			return errBadReply
		}
		for b = b[8:]; len(b) > 0; b = b[16:] {
			k.status[name] = append(k.status[name], descriptor{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])})
		}
		return k.checkStatus(name)
	case kind&wire.ChunkErr != 0 && lengthBytes >= 6:
		n := binary.BigEndian.Uint16(b[4:])
		if int(n) > len(b)-6 {
			return errBadReply
		}
		k.err = &CommandError{Errno: binary.BigEndian.Uint32(b), Message: string(b[6 : 6+n])}
		return nil
	}
	return errBadReply
}

// checkStatus refuses descriptors that would not let the caller get ahead.
func (k *call) checkStatus(context string) error {
	for _, d := range k.status[context] {
		if d.length == 0 {
			return errBadReply
		}
	}
	return nil
}

// place is where data at an offset of the export goes.
func (k *call) place(offset, lengthBytes uint64) ([]byte, error) {
	start := offset - k.request.Offset
	if offset < k.request.Offset || start > uint64(len(k.data)) || lengthBytes > uint64(len(k.data))-start {
		return nil, errBadReply
	}
	k.got += int(lengthBytes)
	return k.data[start : start+lengthBytes], nil
}

func (c *Client) finish(k *call) error {
	if k.request.Command == wire.CmdRead && k.err == nil && k.got != len(k.data) {
		return errBadReply
	}
	c.end(k)
	return nil
}

package wire

import "encoding/binary"

// A Form is how the messages of a session look, as its handshake agreed
// ("Transmission"). The zero value is what a client gets that asks for nothing.
//
//	           request   success without data   data, holes, states and errors
//	Simple     compact   simple reply           simple reply: an error value, or a read's data
//	Structured compact   simple reply           chunks with a compact header
//	Extended   extended  a chunk without data   chunks with an extended header
//
// A compact request:     magic 32, flags 16, command 16, cookie 64, offset 64, length 32
// An extended request:   magic 32, flags 16, command 16, cookie 64, offset 64, length 64
// A simple reply:        magic 32, error 32, cookie 64
// A compact chunk:       magic 32, flags 16, type 16, cookie 64, payload length 32
// An extended chunk:     magic 32, flags 16, type 16, cookie 64, the request's offset 64, payload length 64
//
// (all in bits). Which payload follows a request, Request.PayloadBytes says.
type Form uint8

// The forms, each with what the one before has.
const (
	Simple Form = iota
	Structured
	Extended
)

// RequestBytes is the size of a request's header.
func (f Form) RequestBytes() int {
	if f == Extended {
		return ExtendedSize
	}
	return RequestSize
}

// ChunkBytes is the size of a chunk's header; of a simple reply for Simple.
func (f Form) ChunkBytes() int {
	switch f {
	case Extended:
		return ExtendedSize
	case Structured:
		return ChunkSize
	}
	return SimpleSize
}

// DecodeRequest reads a request's header from b[:f.RequestBytes()]; ok is false
// when its magic is wrong.
func (f Form) DecodeRequest(b []byte) (r Request, ok bool) {
	_ = b[RequestSize-1]
	r = Request{
		Flags:   binary.BigEndian.Uint16(b[4:]),
		Command: binary.BigEndian.Uint16(b[6:]),
		Cookie:  binary.BigEndian.Uint64(b[8:]),
		Offset:  binary.BigEndian.Uint64(b[16:]),
	}
	magic := binary.BigEndian.Uint32(b)
	if f == Extended {
		r.Length = binary.BigEndian.Uint64(b[24:])
		return r, magic == MagicExtendedRequest
	}
	r.Length = uint64(binary.BigEndian.Uint32(b[24:]))
	return r, magic == MagicRequest
}

// AppendRequest appends the header of r. A compact one has room for the low 32
// bits of its length.
func (f Form) AppendRequest(b []byte, r *Request) []byte {
	magic := MagicRequest
	if f == Extended {
		magic = MagicExtendedRequest
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, r.Command)
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	if f == Extended {
		return binary.BigEndian.AppendUint64(b, r.Length)
	}
	return binary.BigEndian.AppendUint32(b, uint32(r.Length))
}

// PayloadBytes is the length of the payload that follows the header of r: that
// of a write has one, and so has what an extended request says has one. The
// protocol wants an extended write to say so too, but qemu (to 10.0 at least)
// does not, and its own server and this one know what it means.
func (f Form) PayloadBytes(r *Request) uint64 {
	if r.Command == CmdWrite || f == Extended && r.Flags&FlagPayloadLen != 0 {
		return r.Length
	}
	return 0
}

// AppendChunk appends the header of a chunk of the reply to r. Not for Simple.
func (f Form) AppendChunk(b []byte, flags, kind uint16, r *Request, payloadBytes int) []byte {
	magic := MagicStructured
	if f == Extended {
		magic = MagicExtendedChunk
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	if f == Extended {
		b = binary.BigEndian.AppendUint64(b, r.Offset)
		return binary.BigEndian.AppendUint64(b, uint64(payloadBytes))
	}
	return binary.BigEndian.AppendUint32(b, uint32(payloadBytes))
}

// DataHeaderBytes is the size of what AppendDataHeader appends.
func (f Form) DataHeaderBytes(r *Request) int {
	if f == Simple || r.Length == 0 {
		return f.ChunkBytes()
	}
	return f.ChunkBytes() + 8
}

// AppendDataHeader appends what leads the data of a read's successful reply:
// for Simple a simple reply, else the header of its only chunk, with the offset
// that opens a ChunkData. A read of nothing has a chunk without data, for a
// ChunkData must hold at least one byte.
func (f Form) AppendDataHeader(b []byte, r *Request) []byte {
	if f == Simple || r.Length == 0 {
		return f.appendEmpty(b, r)
	}
	b = f.AppendChunk(b, ChunkDone, ChunkData, r, 8+int(r.Length))
	return binary.BigEndian.AppendUint64(b, r.Offset)
}

func (f Form) appendEmpty(b []byte, r *Request) []byte {
	if f == Simple {
		return AppendSimple(b, r.Cookie, OK)
	}
	return f.AppendChunk(b, ChunkDone, ChunkNone, r, 0)
}

// AppendDone appends the reply to a request, not a read, that was successful
// and has no more to say, in the fewest bytes.
func (f Form) AppendDone(b []byte, r *Request) []byte {
	if f == Extended {
		return f.appendEmpty(b, r)
	}
	return AppendSimple(b, r.Cookie, OK)
}

// AppendFailure appends the reply to a request that failed. A simple reply has
// no room for the message, which is at most MaxStringBytes long.
func (f Form) AppendFailure(b []byte, r *Request, e Errno, message string) []byte {
	if f == Simple {
		return AppendSimple(b, r.Cookie, e)
	}
	b = f.AppendChunk(b, ChunkDone, ChunkError, r, 4+2+len(message))
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}

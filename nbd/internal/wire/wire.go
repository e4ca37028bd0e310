// Package wire holds the numbers and message layouts of the NBD protocol that
// server and client share. All integers are big endian; names follow
// doc/proto.md of the NBD project, to whose sections the comments point.
package wire

import "encoding/binary"

// Magic numbers.
const (
	MagicHello      uint64 = 0x4e42444d41474943 // "NBDMAGIC", opens the handshake
	MagicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT", opens each option
	MagicOptReply   uint64 = 0x0003e889045565a9
	MagicRequest    uint32 = 0x25609513
	MagicSimple     uint32 = 0x67446698
	MagicStructured uint32 = 0x668e33ef

	MagicExtendedRequest uint32 = 0x21e41c71
	MagicExtendedChunk   uint32 = 0x6e8a278c
)

// Handshake and client flags ("Flag fields").
const (
	FlagFixedNewstyle uint16 = 1 << 0
	FlagNoZeroes      uint16 = 1 << 1

	ClientFixedNewstyle uint32 = 1 << 0
	ClientNoZeroes      uint32 = 1 << 1
)

// Transmission flags.
const (
	HasFlags       uint16 = 1 << 0
	ReadOnly       uint16 = 1 << 1
	SendFlush      uint16 = 1 << 2
	SendFUA        uint16 = 1 << 3
	SendTrim       uint16 = 1 << 5
	SendZeroes     uint16 = 1 << 6
	SendDF         uint16 = 1 << 7
	CanMultiConn   uint16 = 1 << 8
	SendCache      uint16 = 1 << 10
	SendFastZeroes uint16 = 1 << 11
	StatusPayload  uint16 = 1 << 12
)

// Options ("Option types").
const (
	OptExportName      uint32 = 1
	OptAbort           uint32 = 2
	OptList            uint32 = 3
	OptStartTLS        uint32 = 5
	OptInfo            uint32 = 6
	OptGo              uint32 = 7
	OptStructuredReply uint32 = 8
	OptListMeta        uint32 = 9
	OptSetMeta         uint32 = 10
	OptExtendedHeaders uint32 = 11
)

// Option replies ("Option reply types").
const (
	RepAck         uint32 = 1
	RepServer      uint32 = 2
	RepInfo        uint32 = 3
	RepMetaContext uint32 = 4

	RepErr            uint32 = 1 << 31 // set in each of the errors
	RepErrUnsup              = RepErr + 1
	RepErrPolicy             = RepErr + 2
	RepErrInvalid            = RepErr + 3
	RepErrTLSRequired        = RepErr + 5
	RepErrUnknown            = RepErr + 6
	RepErrShutdown           = RepErr + 7
	RepErrTooBig             = RepErr + 9
	RepErrExtended           = RepErr + 10 // NBD_REP_ERR_EXT_HEADER_REQD
)

// Information types of OptInfo and OptGo.
const (
	InfoExport      uint16 = 0
	InfoName        uint16 = 1
	InfoDescription uint16 = 2
	InfoBlockSize   uint16 = 3
)

// Commands ("Request types").
const (
	CmdRead        uint16 = 0
	CmdWrite       uint16 = 1
	CmdDisc        uint16 = 2
	CmdFlush       uint16 = 3
	CmdTrim        uint16 = 4
	CmdCache       uint16 = 5
	CmdZeroes      uint16 = 6
	CmdBlockStatus uint16 = 7
)

// Command flags.
const (
	FlagFUA        uint16 = 1 << 0
	FlagNoHole     uint16 = 1 << 1
	FlagDF         uint16 = 1 << 2
	FlagReqOne     uint16 = 1 << 3
	FlagFastZero   uint16 = 1 << 4
	FlagPayloadLen uint16 = 1 << 5
)

// Structured reply chunks.
const (
	ChunkDone uint16 = 1 << 0 // flag of a reply's last chunk

	ChunkNone           uint16 = 0
	ChunkData           uint16 = 1       // offset 64, then the data
	ChunkHole           uint16 = 2       // offset 64, length 32
	ChunkBlockStatus    uint16 = 5       // context 32, then descriptors: length 32, flags 32
	ChunkBlockStatusExt uint16 = 6       // context 32, count 32, then descriptors: length 64, flags 64
	ChunkErr            uint16 = 1 << 15 // set in each of the errors
	ChunkError                 = ChunkErr + 1
	ChunkErrorOffset           = ChunkErr + 2
)

// Metadata contexts and their flags.
const (
	ContextAllocation = "base:allocation"
	ContextDepth      = "qemu:allocation-depth"
	ContextBitmap     = "qemu:dirty-bitmap:" // and a name

	StateHole uint32 = 1 << 0 // of base:allocation
	StateZero uint32 = 1 << 1

	StateDirty uint32 = 1 << 0 // of ContextBitmap
)

// Errno is an error value of the protocol ("Error values"); they are fixed, and
// on Linux equal to the system's.
type Errno uint32

// The error values that a server may send.
const (
	OK        Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoText = map[Errno]string{
	OK: "success", EPERM: "operation not permitted", EIO: "input/output error", ENOMEM: "out of memory",
	EINVAL: "invalid argument", ENOSPC: "no space left", EOVERFLOW: "value too large",
	ENOTSUP: "operation not supported", ESHUTDOWN: "server is shutting down",
}

// Known tells whether e is a value of the protocol.
func (e Errno) Known() bool { _, ok := errnoText[e]; return ok }

// Error implements error.
func (e Errno) Error() string {
	if text, ok := errnoText[e]; ok {
		return text
	}
	return "unknown NBD error"
}

// Sizes of the fixed parts.
const (
	HelloSize     = 8 + 8 + 2             // magic, IHAVEOPT, handshake flags
	OptionSize    = 8 + 4 + 4             // IHAVEOPT, option, length of the data that follows
	OptReplySize  = 8 + 4 + 4 + 4         // magic, option, reply type, length of the data that follows
	RequestSize   = 4 + 2 + 2 + 8 + 8 + 4 // magic, flags, command, cookie, offset, length
	SimpleSize    = 4 + 4 + 8             // magic, error, cookie
	ChunkSize     = 4 + 2 + 2 + 8 + 4     // magic, flags, type, cookie, length of the payload that follows
	DataChunkSize = ChunkSize + 8         // with the offset that opens a ChunkData
	ExtendedSize  = 4 + 2 + 2 + 8 + 8 + 8 // magic, flags, command or type, cookie, offset, length: of a request or a chunk
)

// MaxStringBytes is the protocol's limit for names and messages.
const MaxStringBytes = 4096

// Request is the header of a command, of whatever form.
type Request struct {
	Flags   uint16
	Command uint16
	Cookie  uint64
	Offset  uint64
	Length  uint64 // bytes, of the range or of the payload: Form.PayloadBytes
}

// Append appends the compact header of r.
func (r Request) Append(b []byte) []byte { return Simple.AppendRequest(b, &r) }

// AppendSimple appends a simple reply without data.
func AppendSimple(b []byte, cookie uint64, e Errno) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// AppendOption appends an option's header and data.
func AppendOption(b []byte, option uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// AppendOptReply appends the header of a reply to an option.
func AppendOptReply(b []byte, option, kind uint32, dataBytes int) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOptReply)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	return binary.BigEndian.AppendUint32(b, uint32(dataBytes))
}

// AppendString appends a string led by its length, 32 bits.
func AppendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

package cli

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tidemark/tidemark/stream"
)

const (
	formatAuto = "auto"
	formatRaw  = "raw"
)

// formatStream is of export alone; import has --apply for it.
const formatStream = "stream"

// imageFormats are those of --format, by the names that qemu-img has for them.
var imageFormats = []string{formatAuto, formatRaw, "qcow2", "vmdk", "vhdx", "vdi", "vpc"}

func newFormat() choice { return choice{formatAuto, imageFormats} }

// magics are what an image has at an offset. The formats that --format lacks
// stand here too: such an image must not be taken for raw.
var magics = []struct {
	format string
	at     int
	text   string
}{
	{formatStream, 0, stream.Magic},
	{"qcow", 0, "QFI\xfb\x00\x00\x00\x01"},
	{"qcow2", 0, "QFI\xfb"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vhdx", 0, "vhdxfile"},
	{"vdi", 0x40, "\x7f\x10\xda\xbe"},
	{"vpc", 0, vpcMagic},
	{"qed", 0, "QED\x00"},
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
}

const (
	vpcMagic       = "conectix"
	vpcFooterBytes = 512
	headBytes      = 512 + 20*512 // up to the end of what qemu reads as a vmdk's descriptor
)

// detectFormat tells an image's format. It does so itself: without qemu-img
// installed too, an image of another format must not be imported as raw.
func detectFormat(f io.ReaderAt, sizeBytes int64) (string, error) {
	head, err := readHead(f)
	if err != nil {
		return "", err
	}
	for _, m := range magics {
		if strings.HasPrefix(string(head[m.at:]), m.text) {
			return m.format, nil
		}
	}
	// A vpc image of fixed size is raw, but for a footer.
	if sizeBytes > vpcFooterBytes {
		footer := make([]byte, vpcFooterBytes)
		if _, err := f.ReadAt(footer, sizeBytes-vpcFooterBytes); err != nil && err != io.EOF {
			return "", err
		}
		if isVPCFooter(footer) {
			return "vpc", nil
		}
	}
	return formatRaw, nil
}

// isVPCFooter looks at the checksum too: a disk may end in anything.
func isVPCFooter(footer []byte) bool {
	if !bytes.HasPrefix(footer, []byte(vpcMagic)) {
		return false
	}
	var sum uint32
	for i, b := range footer {
		if i < 64 || i >= 68 { // where the sum itself is
			sum += uint32(b)
		}
	}
	return binary.BigEndian.Uint32(footer[64:]) == ^sum
}

// readHead returns the head of an image, zeros for what a shorter one lacks.
func readHead(f io.ReaderAt) ([]byte, error) {
	head := make([]byte, headBytes)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return head, nil
}

// otherFile says by what an image's header names another file; empty if by
// nothing. Such a name may be that of any file of the user who imports. It is
// looked for before qemu-img sees the image, which opens some even to describe it.
func otherFile(f io.ReaderAt, format string) (string, error) {
	head, err := readHead(f)
	if err != nil {
		return "", err
	}
	switch {
	case format == "qcow2" && binary.BigEndian.Uint64(head[8:]) != 0: // backing_file_offset
		return "a backing file", nil
	case format == "qcow2" && binary.BigEndian.Uint32(head[4:]) > 2 && binary.BigEndian.Uint64(head[72:])&4 != 0: // incompatible_features
		return "an external data file", nil
	case format != "vmdk":
		return "", nil // qemu-img follows no names in the others
	case bytes.Contains(head, []byte("parentFileNameHint")):
		return "a parent", nil
	case bytes.HasPrefix(head, []byte("COWD")):
		return "", nil
	case bytes.HasPrefix(head, []byte("KDMV")) && binary.LittleEndian.Uint64(head[12:]) != 0: // a capacity: it is the only extent
		return "", nil
	}
	return "extents in other files", nil // it is a descriptor, or what qemu takes for one
}

// cutOff tells whether an image has lost its end, for the one format in which
// qemu-img reads zeros there and its check finds nothing.
func cutOff(f io.ReaderAt, format string, sizeBytes int64) (bool, error) {
	head, err := readHead(f)
	if err != nil || format != "vdi" {
		return false, err
	}
	dataAt, blockBytes, blocks := binary.LittleEndian.Uint32(head[0x158:]), binary.LittleEndian.Uint32(head[0x178:]), binary.LittleEndian.Uint32(head[0x184:])
	needs := uint64(blockBytes) * uint64(blocks)
	return uint64(sizeBytes) < uint64(dataAt) || uint64(sizeBytes)-uint64(dataAt) < needs, nil
}

// formatBySuffix is the format of a new image, by its name.
func formatBySuffix(file string) string {
	suffix := strings.ToLower(strings.TrimPrefix(filepath.Ext(file), "."))
	switch {
	case suffix == "vhd":
		return "vpc"
	case suffix != formatAuto && slices.Contains(imageFormats, suffix):
		return suffix
	}
	return formatRaw
}

package cli

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// headOf is the head of an image, with some bytes at some offsets.
func headOf(sizeBytes int, at map[int]string) []byte {
	head := make([]byte, sizeBytes)
	for off, text := range at {
		copy(head[off:], text)
	}
	return head
}

// footerOf is a vpc footer whose checksum is right.
func footerOf() []byte {
	footer := headOf(vpcFooterBytes, map[int]string{0: vpcMagic, 100: "anything"})
	var sum uint32
	for _, b := range footer {
		sum += uint32(b)
	}
	binary.BigEndian.PutUint32(footer[64:], ^sum)
	return footer
}

func TestFormatsAreKnownByWhatTheyBeginWith(t *testing.T) {
	wrong := footerOf()
	wrong[100]++
	for name, test := range map[string]struct {
		image []byte
		want  string
	}{
		"nothing":                           {nil, "raw"},
		"a byte":                            {[]byte("Q"), "raw"},
		"zeros":                             {make([]byte, 1<<20), "raw"},
		"a magic, not at its place":         {headOf(8192, map[int]string{512: "QFI\xfb\x00\x00\x00\x03"}), "raw"},
		"qcow2 of version 2":                {[]byte("QFI\xfb\x00\x00\x00\x02"), "qcow2"},
		"qcow2 of version 3":                {[]byte("QFI\xfb\x00\x00\x00\x03"), "qcow2"},
		"qcow2 of a version to come":        {[]byte("QFI\xfb\x00\x00\x00\x04"), "qcow2"},
		"qcow":                              {[]byte("QFI\xfb\x00\x00\x00\x01"), "qcow"},
		"vmdk":                              {[]byte("KDMV\x01\x00\x00\x00"), "vmdk"},
		"vmdk of ESX":                       {[]byte("COWD\x01\x00\x00\x00"), "vmdk"},
		"vmdk, a descriptor":                {[]byte("# Disk DescriptorFile\nversion=1\n"), "vmdk"},
		"vhdx":                              {[]byte("vhdxfileQ\x00"), "vhdx"},
		"vdi":                               {headOf(512, map[int]string{0: "<<< any text >>>", 0x40: "\x7f\x10\xda\xbe"}), "vdi"},
		"vpc that grows":                    {footerOf(), "vpc"},
		"vpc of fixed size":                 {append(make([]byte, 4096), footerOf()...), "vpc"},
		"raw that ends like vpc, or nearly": {append(make([]byte, 4096), wrong...), "raw"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := detectFormat(bytes.NewReader(test.image), int64(len(test.image))); err != nil || got != test.want {
				t.Errorf("taken for %s (%v), want %s", got, err, test.want)
			}
		})
	}
}

func TestImagesThatNameOtherFilesAreKnownByTheirHeader(t *testing.T) {
	for name, test := range map[string]struct {
		format string
		at     map[int]string
		want   string
	}{
		"qcow2 by itself":                      {"qcow2", map[int]string{0: "QFI\xfb\x00\x00\x00\x03"}, ""},
		"qcow2 with a backing file":            {"qcow2", map[int]string{0: "QFI\xfb\x00\x00\x00\x03", 14: "\x01"}, "a backing file"},
		"qcow2 of version 2 with one":          {"qcow2", map[int]string{0: "QFI\xfb\x00\x00\x00\x02", 8: "\x80"}, "a backing file"},
		"qcow2 with a data file":               {"qcow2", map[int]string{0: "QFI\xfb\x00\x00\x00\x03", 79: "\x04"}, "an external data file"},
		"qcow2 with other features":            {"qcow2", map[int]string{0: "QFI\xfb\x00\x00\x00\x03", 79: "\x1b"}, ""},
		"qcow2 of version 2 has no features":   {"qcow2", map[int]string{0: "QFI\xfb\x00\x00\x00\x02", 79: "\x04"}, ""},
		"vmdk by itself":                       {"vmdk", map[int]string{0: "KDMV", 12: "\x08"}, ""},
		"vmdk of ESX":                          {"vmdk", map[int]string{0: "COWD"}, ""},
		"vmdk with a parent":                   {"vmdk", map[int]string{0: "KDMV", 12: "\x08", 600: `parentFileNameHint="/etc/shadow"`}, "a parent"},
		"vmdk of ESX with a parent":            {"vmdk", map[int]string{0: "COWD", 600: `parentFileNameHint="/etc/shadow"`}, "a parent"},
		"vmdk that is a descriptor":            {"vmdk", map[int]string{0: "# Disk DescriptorFile"}, "extents in other files"},
		"vmdk that hides a descriptor":         {"vmdk", map[int]string{0: "KDMV", 28: "\x01"}, "extents in other files"},
		"vmdk that begins as nothing known":    {"vmdk", map[int]string{0: "version=1"}, "extents in other files"},
		"vhdx, in which qemu follows no names": {"vhdx", map[int]string{0: "vhdxfile", 600: "parentFileNameHint"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := otherFile(bytes.NewReader(headOf(8192, test.at)), test.format); err != nil || got != test.want {
				t.Errorf("names %q (%v), want %q", got, err, test.want)
			}
		})
	}
}

func FuzzHeadersOfImages(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	f.Add(footerOf())
	f.Fuzz(func(t *testing.T, image []byte) {
		format, err := detectFormat(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		for _, format := range append(slices.Clone(imageFormats), format) {
			if _, err := otherFile(bytes.NewReader(image), format); err != nil {
				t.Fatal(err)
			}
			if _, err := cutOff(bytes.NewReader(image), format, int64(len(image))); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestSuffixesSayTheFormatOfAnExport(t *testing.T) {
	for file, want := range map[string]string{
		"db.qcow2": "qcow2", "a/b.VMDK": "vmdk", "db.vhdx": "vhdx", "db.vdi": "vdi", "db.vpc": "vpc", "db.vhd": "vpc", "db.raw": "raw",
		"db.img": "raw", "db": "raw", "qcow2": "raw", "db.auto": "raw", "-": "raw", "db.qcow2/img": "raw",
	} {
		if got := formatBySuffix(file); got != want {
			t.Errorf("%s becomes %s, want %s", file, got, want)
		}
	}
}

func TestPercentsAreHeardHoweverTheyArrive(t *testing.T) {
	const said = "    (0.00/100%)\r    (12.34/100%)\rnoise\r    (100.00/100%)\r    (101/100%)\r\n"
	for _, step := range []int{1, 7, len(said)} {
		var got []float64
		p := percents{tell: func(percent float64) { got = append(got, percent) }}
		for rest := said; rest != ""; rest = rest[min(step, len(rest)):] {
			if n, err := p.Write([]byte(rest[:min(step, len(rest))])); err != nil || n != min(step, len(rest)) {
				t.Fatal(n, err)
			}
		}
		if want := []float64{0, 12.34, 100, 100}; !slices.Equal(got, want) {
			t.Errorf("%d bytes at a time: %v, want %v", step, got, want)
		}
	}
}

func TestWhatQemuImgSaysIsOneShortLineThatMovesNoCursor(t *testing.T) {
	for said, want := range map[string]string{
		"":                                     "",
		"qemu-img: Could not open 'x'\nmore\n": "Could not open 'x'",
		"\nqemu-img: warning: this\nWARNING: that\nqemu-img: bad\n": "bad",
		"qemu-img: warning: only this\n":                            "",
		"qemu-img: open '\x1b[2Jx'\n":                               "open '?[2Jx'",
	} {
		var b limitedBuffer
		if _, err := b.Write([]byte(said)); err != nil || b.firstLine() != want {
			t.Errorf("of %q stays %q (%v), want %q", said, b.firstLine(), err, want)
		}
	}
	var b limitedBuffer
	for range 3 {
		if n, err := b.Write([]byte(strings.Repeat("x", 3000))); n != 3000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := len(b.firstLine()); got != maxSaidBytes {
		t.Errorf("%d bytes are kept, want %d", got, maxSaidBytes)
	}
}

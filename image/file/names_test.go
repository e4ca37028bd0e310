package file

import (
	"testing"

	"github.com/tidemark/tidemark/image"
)

// A name in the directory is a segment's exactly if it is the one that this
// segment would be given: else two files could claim the same blocks.
func FuzzParseName(f *testing.F) {
	for _, name := range []string{
		"0123456789abcdef.img", "0123456789abcdef.img.1", "0123456789ABCDEF.img", "0123456789abcdef.img.0",
		"0123456789abcdef.img.01", "0123456789abcdef.img.-1", "0123456789abcdef.img1", "+123456789abcdef.img",
		".img", "0123456789abcdef.img.9223372036854775808", "123456789abcdef.img.", "",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		id, number, ok := parseName(name)
		if ok && (number < 0 || segmentName(id, number) != name) {
			t.Errorf("%q parsed as segment %d of %x", name, number, id)
		}
	})
}

func TestParseNameKnowsEveryNameThatIsMade(t *testing.T) {
	for _, id := range []image.ID{1, 0xabc, 1<<64 - 1} {
		for _, number := range []int64{0, 1, 15, 1<<63 - 1} {
			gotID, gotNumber, ok := parseName(segmentName(id, number))
			if gotID != id || gotNumber != number || !ok {
				t.Errorf("segment %d of %x parsed as %d of %x, %v", number, id, gotNumber, gotID, ok)
			}
		}
	}
}

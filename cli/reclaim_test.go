package cli

import (
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func TestHowFarItIsToGiveRoomBackFitsALine(t *testing.T) {
	for _, c := range []struct {
		name       string
		r          *tidemarkv1.Reclaim
		text, json string
	}{
		{"a server that does not say", nil, "", `null`},
		{"nothing left", &tidemarkv1.Reclaim{GivenBackBytes: 1 << 30}, "", `null`},
		{
			"not measured", &tidemarkv1.Reclaim{ImagesLeft: 2, LeftBytes: -1},
			"giving back the room of deleted snapshots: 2 images left",
			`{"imagesLeft":2,"folding":false,"doneBytes":0,"totalBytes":0,"leftBytes":-1,"bytesPerSecond":0,"leftSeconds":0}`,
		},
		{
			"measured", &tidemarkv1.Reclaim{ImagesLeft: 1, TotalBytes: 1 << 20, LeftBytes: 1 << 20},
			"giving back the room of deleted snapshots: 1 image left, 1 MiB",
			`{"imagesLeft":1,"folding":false,"doneBytes":0,"totalBytes":1048576,"leftBytes":1048576,"bytesPerSecond":0,"leftSeconds":0}`,
		},
		{
			"with a rate", &tidemarkv1.Reclaim{
				ImagesLeft: 3, DoneBytes: 1 << 20, TotalBytes: 2 << 20, LeftBytes: 3 << 20, BytesPerSecond: 2 << 20, Left: durationpb.New(1500 * time.Millisecond),
			},
			"giving back the room of deleted snapshots: 3 images left, 3 MiB at 2 MiB/s: 1.5 s",
			`{"imagesLeft":3,"folding":false,"doneBytes":1048576,"totalBytes":2097152,"leftBytes":3145728,"bytesPerSecond":2097152,"leftSeconds":1.5}`,
		},
		{
			"a fold", &tidemarkv1.Reclaim{ImagesLeft: 1, Folding: true, TotalBytes: 1 << 30, LeftBytes: 1 << 30, BytesPerSecond: 1 << 20, Left: durationpb.New(1024 * time.Second)},
			"folding what deleted snapshots have left: 1 image left, 1 GiB at 1 MiB/s: 17m4s",
			`{"imagesLeft":1,"folding":true,"doneBytes":0,"totalBytes":1073741824,"leftBytes":1073741824,"bytesPerSecond":1048576,"leftSeconds":1024}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if text := reclaimText(c.r); text != c.text {
				t.Errorf("the line is %q, want %q", text, c.text)
			}
			if got, err := json.Marshal(asReclaim(c.r)); err != nil || string(got) != c.json {
				t.Errorf("in JSON it is %s, %v, want %s", got, err, c.json)
			}
		})
	}
}

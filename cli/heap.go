package cli

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The garbage that a server lets come together before it collects: an eighth of what
// lives, and leastRoomBytes at least, but no more than twice what lives. Most of what
// lives in a large server is the indexes and tables of volumes, which hold no pointers
// and cost a collection nothing, and no request makes garbage: so a small part of it is
// enough. A small server would collect for every few commands.
const (
	roomPart       = 8
	leastRoomBytes = 32 << 20
	mostPercent    = 200
	firstPercent   = 25 // while a large directory is opened
)

// gcPercent is GOGC for a heap of which so much lives; 0: nobody knows yet.
func gcPercent(liveBytes uint64) int {
	if liveBytes == 0 {
		return firstPercent
	}
	room := max(leastRoomBytes, liveBytes/roomPart)
	return int(min(mostPercent, room*100/liveBytes))
}

// tendHeap keeps GOGC at gcPercent until ctx ends. To set it stops the world for a
// moment: it is done when it has changed by a tenth.
func tendHeap(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return // somebody knows better
	}
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for is := 0; ; {
		metrics.Read(sample)
		if percent := gcPercent(sample[0].Value.Uint64()); 10*max(percent-is, is-percent) > is {
			is = percent
			debug.SetGCPercent(percent)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(tendHeapEvery):
		}
	}
}

const tendHeapEvery = time.Second

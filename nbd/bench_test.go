package nbd

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// null is a Device that costs nothing: what is measured is the server.
type null struct{ sizeBytes int64 }

func (null) List() []string                                    { return nil }
func (n null) Open(string) (Device, Info, error)               { return n, Info{}, nil }
func (n null) SizeBytes() int64                                { return n.sizeBytes }
func (null) TryReadAt(p []byte, _ int64) (int, error)          { return len(p), nil }
func (null) ReadAt(p []byte, _ int64) (int, error)             { return len(p), nil }
func (null) TryWriteAt(p []byte, _ int64) (int, error)         { return len(p), nil }
func (null) WriteAt(p []byte, _ int64) (int, error)            { return len(p), nil }
func (null) Trim(int64, int64) error                           { return nil }
func (null) WriteZeroes(int64, int64, bool) error              { return nil }
func (null) Flush() error                                      { return nil }
func (null) Extents(_, n int64, yield func(Extent) bool) error { yield(Extent{Length: n}); return nil }
func (null) Served(time.Time)                                  {}
func (null) Close(bool)                                        {}

func BenchmarkRequests(b *testing.B) {
	for _, c := range []struct {
		name    string
		request wire.Request
	}{
		{"read=4k", wire.Request{Command: wire.CmdRead, Length: 4096}},
		{"write=4k", wire.Request{Command: wire.CmdWrite, Length: 4096}},
		{"read=128k", wire.Request{Command: wire.CmdRead, Length: 128 << 10}},
		{"write=1m", wire.Request{Command: wire.CmdWrite, Length: 1 << 20}},
		{"flush", wire.Request{Command: wire.CmdFlush}},
	} {
		for _, depth := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("%s/depth=%d", c.name, depth), func(b *testing.B) {
				client, server := socketPair(b)
				go NewServer(null{1 << 30}, Options{}).ServeConn(server)
				k := &talk{t: b, nc: client}
				k.hello(wire.ClientFixedNewstyle)
				k.enter(true)
				message, replyBytes := c.request.Append(nil), wire.SimpleSize
				switch c.request.Command {
				case wire.CmdWrite:
					message = append(message, make([]byte, c.request.Length)...)
				case wire.CmdRead:
					replyBytes = wire.DataChunkSize + int(c.request.Length)
				}
				batch, replies := bytes.Repeat(message, depth), make([]byte, depth*replyBytes)
				written := make(chan error)
				b.ReportAllocs()
				b.SetBytes(int64(len(message) + replyBytes))
				for n := 0; n < b.N; n += depth {
					// A message that the socket can't hold needs its replies read meanwhile.
					if len(batch) <= 64<<10 {
						if _, err := client.Write(batch); err != nil {
							b.Fatal(err)
						}
					} else {
						go func() {
							_, err := client.Write(batch)
							written <- err
						}()
					}
					if _, err := io.ReadFull(client, replies); err != nil {
						b.Fatal(err)
					}
					if len(batch) > 64<<10 {
						if err := <-written; err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

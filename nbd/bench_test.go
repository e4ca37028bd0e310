package nbd

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// null is a Device that costs nothing: what is measured is the server.
type null struct{ sizeBytes int64 }

func (null) List(Client) []string                              { return nil }
func (n null) Open(string, Client) (Device, Info, error)       { return n, Info{}, nil }
func (n null) SizeBytes() int64                                { return n.sizeBytes }
func (null) TryReadAt(p []byte, _ int64) (int, error)          { return len(p), nil }
func (null) ReadAt(p []byte, _ int64) (int, error)             { return len(p), nil }
func (null) TryWriteAt(p []byte, _ int64) (int, error)         { return len(p), nil }
func (null) WriteAt(p []byte, _ int64) (int, error)            { return len(p), nil }
func (null) Trim(int64, int64) error                           { return nil }
func (null) WriteZeroes(int64, int64, bool) error              { return nil }
func (null) Cache(int64, int64) error                          { return nil }
func (null) Flush() error                                      { return nil }
func (null) Extents(_, n int64, yield func(Extent) bool) error { yield(Extent{Length: n}); return nil }
func (null) Publish() error                                    { return nil }
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
				k := dialWith(b, null{1 << 30}, Options{})
				k.enter(true)
				benchmark(b, k, c.request, depth)
			})
		}
	}
}

// BenchmarkForms has the same requests in each form, and over TLS.
func BenchmarkForms(b *testing.B) {
	const depth = 32
	for _, r := range []wire.Request{
		{Command: wire.CmdRead, Length: 4096}, {Command: wire.CmdWrite, Length: 4096}, {Command: wire.CmdRead, Length: 1 << 20}, {Command: wire.CmdWrite, Length: 1 << 20},
	} {
		for form, name := range []string{"simple", "structured", "extended"} {
			b.Run(fmt.Sprintf("command=%d/bytes=%d/%s", r.Command, r.Length, name), func(b *testing.B) {
				k := dialWith(b, null{1 << 30}, Options{})
				k.enterForm(wire.Form(form))
				benchmark(b, k, r, depth)
			})
		}
		b.Run(fmt.Sprintf("command=%d/bytes=%d/tls", r.Command, r.Length), func(b *testing.B) {
			benchmark(b, enterTLS(b, null{1 << 30}, wire.Extended), r, depth)
		})
	}
}

// benchmark sends a request and waits for the reply, depth of them at once.
func benchmark(b *testing.B, k *talk, r wire.Request, depth int) {
	message, replyBytes := k.message(r, payload(r)), answerBytes(k.form, r)
	batch, replies := bytes.Repeat(message, depth), make([]byte, depth*replyBytes)
	written := make(chan error)
	b.ReportAllocs()
	b.SetBytes(int64(len(message) + replyBytes))
	b.ResetTimer()
	for n := 0; n < b.N; n += depth {
		// A message that the socket can't hold needs its replies read meanwhile.
		if len(batch) <= 64<<10 {
			k.send(batch)
		} else {
			go func() {
				_, err := k.nc.Write(batch)
				written <- err
			}()
		}
		if _, err := io.ReadFull(k.nc, replies); err != nil {
			b.Fatal(err)
		}
		if len(batch) > 64<<10 {
			if err := <-written; err != nil {
				b.Fatal(err)
			}
		}
	}
}

// payload is what goes with r.
func payload(r wire.Request) string {
	if r.Command == wire.CmdWrite {
		return strings.Repeat("w", int(r.Length))
	}
	return ""
}

// answerBytes is the length of the reply to r; to a block status, of one extent.
func answerBytes(form wire.Form, r wire.Request) int {
	switch {
	case r.Command == wire.CmdRead:
		return form.DataHeaderBytes(&r) + int(r.Length)
	case r.Command == wire.CmdBlockStatus && form == wire.Extended:
		return form.ChunkBytes() + 4 + 4 + 16
	case r.Command == wire.CmdBlockStatus:
		return form.ChunkBytes() + 4 + 8
	case form == wire.Extended:
		return form.ChunkBytes()
	}
	return wire.SimpleSize
}

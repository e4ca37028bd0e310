package main

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"time"
)

// attack is a client that behaves badly, now and then: it connects and says
// nothing, half of something, or nonsense, and goes without a word.
func attack(ctx context.Context, s *server, done *counts) error {
	for ctx.Err() == nil {
		pause(ctx, rand.N(500*time.Millisecond))
		n := 1 + rand.IntN(20)
		open := make([]net.Conn, 0, n)
		for range n {
			c, err := net.Dial("unix", s.path("nbd.sock"))
			if err != nil {
				break // no server at the moment
			}
			open = append(open, c)
			hello := binary.BigEndian.AppendUint32(nil, 3) // the client's flags
			hello = append(hello, "IHAVEOPT"...)
			hello = binary.BigEndian.AppendUint32(hello, rand.Uint32N(12))
			hello = binary.BigEndian.AppendUint32(hello, rand.Uint32N(64))
			for range rand.IntN(64) {
				hello = append(hello, byte(rand.Uint32()))
			}
			_, _ = c.Write(hello[:rand.IntN(len(hello)+1)])
		}
		pause(ctx, rand.N(200*time.Millisecond))
		for _, c := range open {
			_ = c.Close()
		}
		done.attacks.Add(int64(len(open)))
	}
	return nil
}

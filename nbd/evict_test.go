package nbd

import (
	"net"
	"testing"
	"testing/synctest"

	"github.com/tidemark/tidemark/internal/certtest"
	"github.com/tidemark/tidemark/nbd/internal/wire"
)

// evictable is a memory whose clients can be told to go.
type evictable struct {
	*memory
	leave chan func(now bool)
}

func (e evictable) Open(name string, c Client) (Device, Info, error) {
	_, info, err := e.memory.Open(name, c)
	return e, info, err
}

func (e evictable) OnEvict(leave func(now bool)) { e.leave <- leave }

// A client that is told to go gets the replies to what it has sent, also to what still
// runs then, and no other; one that is told to go at once gets none.
func TestAClientIsToldToGo(t *testing.T) {
	for name, secure := range map[string]bool{"plain": false, "over TLS": true} {
		for how, now := range map[string]bool{"at the end of its requests": false, "at once": true} {
			t.Run(name+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					e := evictable{newMemory(testSize), make(chan func(bool), 1)}
					var o Options
					a := certtest.New(t)
					if secure {
						o = Options{TLS: a.Server(), TLSMode: TLSRequire}
					}
					client, server := net.Pipe()
					defer func() { _ = client.Close() }()
					go NewServer(e, o).ServeConn(server)
					k := &talk{t: t, nc: client}
					k.hello(wire.ClientFixedNewstyle)
					if secure {
						k.startTLS(a.Client(""))
					}
					k.enter(true)
					leave := <-e.leave
					release := e.setHold()
					flush := wire.Request{Command: wire.CmdFlush, Cookie: 1}
					k.send(flush.Append(nil))
					synctest.Wait() // it runs
					leave(now)
					synctest.Wait()
					release()
					if !now {
						k.expect(k.reply(flush), "simple 0")
					}
					k.expectClosed()
					if torn := <-e.closed; !torn || e.flushes.Load() != 1 {
						t.Errorf("torn: %t, flushed %d times", torn, e.flushes.Load())
					}
					leave(true) // once more, when all is over
				})
			})
		}
	}
}

func TestAProbeIsNotTold(t *testing.T) {
	e := evictable{newMemory(testSize), make(chan func(bool), 1)}
	k := dial(t, e)
	k.option(wire.OptInfo, goData("disk"))
	if len(e.leave) > 0 {
		t.Error("one that has not chosen the export can be told to leave it")
	}
}

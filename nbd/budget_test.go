package nbd

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// enters is enter in the background.
func enters(a *account, costBytes int64) (entered <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.enter(costBytes)
	}()
	return done
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestBudgetLetsInFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, time.Minute)
		all := b.commandLimit
		holder, first, second, small := b.open(nil), b.open(nil), b.open(nil), b.open(nil)
		holder.enter(all)
		large := enters(first, 1<<20)
		synctest.Wait()
		next := enters(second, 64<<10)
		synctest.Wait()
		if isDone(large) || isDone(next) {
			t.Fatalf("let in beyond the limit")
		}
		small.enter(4096) // its share: it waits for nobody
		holder.leave(1, all)
		<-large
		<-next
		first.leave(1, 1<<20)
		second.leave(1, 64<<10)
		small.leave(1, 4096)
		if b.used != 0 || len(b.waiting) != 0 {
			t.Errorf("%d bytes used, %d waiting", b.used, len(b.waiting))
		}
		time.Sleep(2 * time.Minute) // the watch ends
	})
}

func TestWhoWaitsGetsItsShareWhenItsOwnLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, time.Minute)
		holder, a := b.open(nil), b.open(nil)
		a.enter(64 << 10)
		holder.enter(b.commandLimit - b.used - commandBytes + shareBytes)
		more := enters(a, 4096)
		synctest.Wait()
		if isDone(more) {
			t.Fatalf("let in beyond the share and the limit")
		}
		large := enters(b.open(nil), 32<<20)
		synctest.Wait()
		a.leave(1, 64<<10) // not enough for the large one, which came later anyway
		<-more
		if isDone(large) {
			t.Fatalf("let in beyond the limit")
		}
		holder.leave(1, holder.bytes)
		<-large
		time.Sleep(2 * time.Minute)
	})
}

func TestBudgetHoldsItsLimit(t *testing.T) {
	// Any number of connections enter and leave as they like: no more is ever
	// used than the limit, and everybody gets its turn.
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(MinTotalBufferBytes, 48<<20, time.Hour)
		done := make(chan struct{})
		for n := range 20 {
			a := b.open(nil)
			go func() {
				random := rand.New(rand.NewPCG(1, uint64(n)))
				for range 200 {
					cost := int64(1) << (12 + random.IntN(14))
					a.enter(cost)
					b.mu.Lock()
					if b.used > b.commandLimit || a.bytes > b.clientLimit {
						t.Errorf("%d bytes used, %d by one", b.used, a.bytes)
					}
					b.mu.Unlock()
					inWork := time.Duration(random.IntN(1000)) * time.Microsecond
					go func() {
						time.Sleep(inWork)
						a.leave(1, cost)
					}()
				}
				for !a.idle() {
					time.Sleep(time.Millisecond)
				}
				a.close()
				done <- struct{}{}
			}()
		}
		for range 20 {
			<-done
		}
		if b.used != 0 || len(b.waiting) != 0 || len(b.accounts) != 0 {
			t.Errorf("left: %d bytes, %d waiting, %d accounts", b.used, len(b.waiting), len(b.accounts))
		}
		time.Sleep(2 * time.Hour)
	})
}

func TestWhoStallsIsCutOffWhileOthersWait(t *testing.T) {
	for _, c := range []struct {
		name    string
		waits   bool  // somebody waits
		blames  bool  // the holder waits for its client
		moves   int64 // bytes in each second
		cut     bool
		atADesk bool
	}{
		{name: "a client that moves nothing", waits: true, blames: true, cut: true},
		{name: "one that moves too little", waits: true, blames: true, moves: 100, cut: true},
		{name: "one that moves enough", waits: true, blames: true, moves: 4 << 20},
		{name: "one whose device is slow", waits: true},
		{name: "one for whom nobody waits", blames: true},
		{name: "one with half a payload at a desk", waits: true, blames: true, atADesk: true, cut: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, 30*time.Second)
				b.deskLimit = 1
				client, server := net.Pipe()
				holder, other := b.open(server), b.open(nil)
				var all int64
				if c.atADesk {
					holder.takeDesk()
				} else {
					all = b.commandLimit
					holder.enter(all)
				}
				if c.blames {
					holder.awaiting.Add(1)
				}
				var waits <-chan struct{}
				if c.waits && !c.atADesk {
					waits = enters(other, 1<<20)
				}
				for range 100 {
					time.Sleep(time.Second)
					holder.moved.Add(c.moves)
					if c.atADesk {
						other.takeDesk()
					}
				}
				if cut := holder.stalled.Load(); cut != c.cut {
					t.Errorf("cut off: %t", cut)
				}
				_ = client.SetReadDeadline(longAgo)
				if _, err := client.Read(make([]byte, 1)); errors.Is(err, io.EOF) != c.cut {
					t.Errorf("its connection: %v", err)
				}
				_ = client.Close()
				if c.atADesk {
					holder.leaveDesk()
				} else {
					holder.leave(1, all)
				}
				if waits != nil {
					<-waits
				}
				time.Sleep(2 * time.Minute)
			})
		})
	}
}

func TestTheShortestStallTimeoutIsLongEnoughToWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, 1)
		b.deskLimit = 0
		if b.open(nil).takeDesk() {
			t.Errorf("there was a desk")
		}
		time.Sleep(time.Second) // the watch ends
	})
}

func TestAWriteThatIsNudgedGoesOnAndKeepsItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer func() { _ = client.Close() }()
		b := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, time.Minute)
		a := b.open(server)
		nudge := func() {
			b.mu.Lock()
			a.nudge()
			b.mu.Unlock()
			synctest.Wait()
		}
		nudge() // before it begins
		ended := make(chan error)
		go func() {
			_, err := a.Write(make([]byte, 1000))
			ended <- err
		}()
		for n := range 10 {
			if _, err := client.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			nudge()
			if moved := a.moved.Load(); moved != int64(10*n+10) {
				t.Errorf("%d bytes have moved, not %d", moved, 10*n+10)
			}
		}
		begin := time.Now()
		a.setWriteBy(begin.Add(time.Second))
		nudge()
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

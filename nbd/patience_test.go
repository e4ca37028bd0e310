package nbd

import (
	"net"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestAClientIsLookedForTheLessTheMoreLooksAreInVain(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var w patience
	for _, rests := range []int{1, 3, 7, 15, 31, 63, 63} {
		if !w.begin() {
			t.Fatalf("there is no look before the one after which %d waits have none", rests)
		}
		w.end(false)
		for i := range rests {
			if w.begin() {
				t.Fatalf("%d waits after a look in vain there is one, want %d", i, rests)
			}
		}
	}
	for range 3 {
		if !w.begin() {
			t.Fatal("a client who was there is not looked for")
		}
		w.end(true)
	}
	if w.begin(); w.vain != 0 {
		t.Error("what was in vain before counts after a look that found something")
	}
	w.end(true)
}

func TestNobodyLooksWhereOthersKeepTheProcessorsBusy(t *testing.T) {
	for _, processors := range []int{1, 2, 4} {
		before := runtime.GOMAXPROCS(processors)
		var all []*patience
		for n := range processors + 2 {
			w := new(patience)
			w.wake()
			all = append(all, w)
			if looks := w.begin(); looks != (n+1 < processors) {
				t.Errorf("with %d processors and %d who are awake, one looks: %v", processors, n+1, looks)
			}
		}
		for _, w := range all {
			w.sleep()
			w.sleep() // counts once
		}
		if n := awake.Load(); n != 0 {
			t.Errorf("%d are awake when all sleep", n)
		}
		runtime.GOMAXPROCS(before)
	}
}

func TestALookEnds(t *testing.T) {
	w := new(patience)
	if w.again(time.Now().Add(-briefWait)) {
		t.Error("it goes on after briefWait")
	}
	since := time.Now()
	for w.again(since) {
	}
	if time.Since(since) < briefWait {
		t.Error("it ended before")
	}
}

func TestWhoHasGoneIsNotAwake(t *testing.T) {
	for _, first := range []string{"no hello of TLS", ""} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
		if err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte(first)); err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
		before := awake.Load()
		a := newBudget(MinTotalBufferBytes, MinTotalBufferBytes, time.Minute).open(server)
		if _, err := newSecureConn(a, secured(nil)); err == nil {
			t.Error("there is TLS without a hello")
		}
		in := newIntake(server, new(atomic.Bool), new(atomic.Int64))
		if _, err := in.need(1); err == nil {
			t.Error("something comes from nobody")
		}
		in.release()
		if n := awake.Load(); n != before {
			t.Errorf("%q: %d are awake, want %d", first, n, before)
		}
		_, _ = server.Close(), l.Close()
	}
}

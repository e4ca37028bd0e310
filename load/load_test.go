package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/nbd/client"
)

// disk is an export in memory, and its own backend. Everything but the open
// takes a time that the test's clock knows.
type disk struct {
	mu       sync.Mutex
	data     []byte
	readOnly bool
	takes    func(op client.Op, count int) time.Duration // the count-th request of all
	fails    func(op client.Op, off int64) error
	spoil    func(p []byte, off int64) []byte // what is written instead
	count    [3]int
	busy     map[int64]bool // blocks that are being written
	clash    bool           // two writes of one block at the same time
}

func newDisk(sizeBytes int) *disk {
	return &disk{
		data:  make([]byte, sizeBytes),
		takes: func(client.Op, int) time.Duration { return 10 * time.Millisecond },
		fails: func(client.Op, int64) error { return nil },
		busy:  map[int64]bool{},
	}
}

func (d *disk) List(nbd.Client) []string { return nil }
func (d *disk) Open(name string, _ nbd.Client) (nbd.Device, nbd.Info, error) {
	return d, nbd.Info{ReadOnly: d.readOnly}, nil
}
func (d *disk) SizeBytes() int64                        { return int64(len(d.data)) }
func (d *disk) TryReadAt([]byte, int64) (int, error)    { return 0, image.ErrWouldBlock }
func (d *disk) TryWriteAt([]byte, int64) (int, error)   { return 0, image.ErrWouldBlock }
func (d *disk) Trim(int64, int64) error                 { return nil }
func (d *disk) WriteZeroes(int64, int64, bool) error    { return nil }
func (d *disk) Cache(int64, int64) error                { return nil }
func (d *disk) Publish() error                          { return nil }
func (d *disk) Served(time.Time)                        {}
func (d *disk) Close(bool)                              {}
func (d *disk) Flush() error                            { return d.serve(client.Flush, 0) }
func (d *disk) ReadAt(p []byte, off int64) (int, error) { return d.transfer(client.Read, p, off) }
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	d.clash = d.clash || d.busy[off]
	d.busy[off] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.busy, off)
	}()
	return d.transfer(client.Write, p, off)
}

func (d *disk) Extents(_, n int64, yield func(nbd.Extent) bool) error {
	yield(nbd.Extent{Length: n})
	return nil
}

func (d *disk) transfer(op client.Op, p []byte, off int64) (int, error) {
	if err := d.serve(op, off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if op == client.Read {
		return copy(p, d.data[off:]), nil
	}
	if d.spoil != nil {
		p = d.spoil(p, off)
	}
	return copy(d.data[off:], p), nil
}

func (d *disk) serve(op client.Op, off int64) error {
	d.mu.Lock()
	d.count[op]++
	all := d.count[0] + d.count[1] + d.count[2]
	d.mu.Unlock()
	time.Sleep(d.takes(op, all))
	return d.fails(op, off)
}

// run runs o against d, in the bubble of a test.
func run(t *testing.T, d *disk, o Options) (Result, error) {
	t.Helper()
	return runWith(t.Context(), t, d, o)
}

func runWith(ctx context.Context, t *testing.T, d *disk, o Options) (Result, error) {
	t.Helper()
	s := nbd.NewServer(d, nbd.Options{})
	o.sleep = time.Sleep
	r, err := Run(ctx, func(ctx context.Context) (*client.Client, error) {
		near, far := net.Pipe()
		go s.ServeConn(far)
		return client.NewClient(ctx, near, "x")
	}, o)
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	return r, err
}

func inBubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// near compares times that a histogram of three digits has rounded.
func near(got, want time.Duration) bool { return got >= want-want/500 && got <= want+want/500 }

func TestRequestsOfTheDurationCount(t *testing.T) {
	const second = 100 // requests of 10 ms
	for _, c := range []struct {
		name           string
		o              Options
		reads, writes  int64
		flushes        int64
		block, inBytes int64
	}{
		{"reads", Options{ReadPercent: 100}, second, 0, 0, 4096, 0},
		{"reads in order", Options{ReadPercent: 100, Pattern: Sequential, BlockBytes: 512}, second, 0, 0, 512, 0},
		{"deep reads", Options{ReadPercent: 100, Depth: 8, Connections: 3}, 24 * second, 0, 0, 4096, 0},
		{"writes", Options{Depth: 2}, 0, 2 * second, 0, 4096, 0},
		{"writes with flushes", Options{FlushEvery: 4}, 0, second * 4 / 5, second / 5, 4096, 0},
	} {
		inBubble(t, c.name, func(t *testing.T) {
			c.o.Duration, c.o.Warmup = time.Second, time.Second
			d := newDisk(4 << 20)
			r, err := run(t, d, c.o)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []struct {
				name  string
				stats Stats
				want  int64
				bytes int64
			}{{"reads", r.Reads, c.reads, c.block}, {"writes", r.Writes, c.writes, c.block}, {"flushes", r.Flushes, c.flushes, 0}} {
				s := part.stats
				if s.Requests != part.want || s.Bytes != part.want*part.bytes || s.Latency.TotalCount() != part.want || s.Errors > 0 {
					t.Errorf("%s: %d requests of %d bytes, %d latencies, %d errors; want %d", part.name, s.Requests, s.Bytes, s.Latency.TotalCount(), s.Errors, part.want)
				}
				if part.want > 0 && (!near(s.Mean(), 10*time.Millisecond) || !near(s.Max(), 10*time.Millisecond) || !near(s.Percentile(50), 10*time.Millisecond)) {
					t.Errorf("%s: mean %v, p50 %v, max %v", part.name, s.Mean(), s.Percentile(50), s.Max())
				}
			}
			total := r.Total()
			if r.Took != time.Second || r.Late != 0 || total.Requests != c.reads+c.writes || r.PerSecond(total.Requests) != float64(c.reads+c.writes) {
				t.Errorf("took %v, late %d, total %d", r.Took, r.Late, total.Requests)
			}
		})
	}
}

func TestAMixHasItsShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, err := run(t, newDisk(4<<20), Options{ReadPercent: 70, Depth: 10, Duration: time.Second})
		if all := r.Reads.Requests + r.Writes.Requests; err != nil || all != 1000 || r.Reads.Requests < 640 || r.Reads.Requests > 760 {
			t.Errorf("%d reads, %d writes (%v)", r.Reads.Requests, r.Writes.Requests, err)
		}
	})
}

// A stall of 100 ms, in a second in which 1000 requests are due.
func stall(op client.Op, count int) time.Duration {
	if count == 500 {
		return 100 * time.Millisecond
	}
	return 500 * time.Microsecond
}

func TestLatencyIsFromWhenARequestWasDue(t *testing.T) {
	inBubble(t, "with a rate, all those that wait are slow", func(t *testing.T) {
		d := newDisk(4 << 20)
		d.takes = stall
		r, err := run(t, d, Options{ReadPercent: 100, Rate: 1000, Duration: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if r.Reads.Requests != 1000 || r.Late != 0 {
			t.Errorf("%d requests, %d late", r.Reads.Requests, r.Late)
		}
		// It catches up by half a millisecond with each, so 200 wait.
		if slow := slowerThan(&r.Reads, time.Millisecond); slow < 190 || slow > 205 {
			t.Errorf("%d requests are slower than a millisecond", slow)
		}
		if !near(r.Reads.Max(), 100*time.Millisecond) || !near(r.Reads.Percentile(50), 500*time.Microsecond) {
			t.Errorf("p50 %v, max %v", r.Reads.Percentile(50), r.Reads.Max())
		}
	})
	inBubble(t, "without, one is", func(t *testing.T) {
		d := newDisk(4 << 20)
		d.takes = stall
		r, err := run(t, d, Options{ReadPercent: 100, Duration: time.Second})
		if slow := slowerThan(&r.Reads, time.Millisecond); err != nil || slow != 1 {
			t.Errorf("%d requests are slower than a millisecond (%v)", slow, err)
		}
	})
	inBubble(t, "and what never begins is counted", func(t *testing.T) {
		r, err := run(t, newDisk(4<<20), Options{ReadPercent: 100, Rate: 300, Depth: 2, Duration: time.Second})
		if all := r.Reads.Requests + r.Late; err != nil || all != 300 || r.Late < 98 || r.Late > 102 {
			t.Errorf("%d requests, %d late (%v)", r.Reads.Requests, r.Late, err)
		}
	})
	inBubble(t, "of all connections together", func(t *testing.T) {
		r, err := run(t, newDisk(4<<20), Options{ReadPercent: 100, Rate: 500, Connections: 3, Depth: 4, Duration: 2 * time.Second, Warmup: time.Second})
		if err != nil || r.Reads.Requests != 1000 || r.Late != 0 || !near(r.Reads.Max(), 10*time.Millisecond) {
			t.Errorf("%d requests, %d late, max %v (%v)", r.Reads.Requests, r.Late, r.Reads.Max(), err)
		}
	})
	inBubble(t, "seldom", func(t *testing.T) {
		r, err := run(t, newDisk(4<<20), Options{ReadPercent: 100, Rate: 0.1, Duration: 25 * time.Second})
		if err != nil || r.Reads.Requests != 3 {
			t.Errorf("%d requests (%v)", r.Reads.Requests, err)
		}
	})
}

func slowerThan(s *Stats, d time.Duration) (count int64) {
	for _, b := range s.Latency.Distribution() {
		if b.From > int64(d) {
			count += b.Count
		}
	}
	return count
}

func TestTheLastRequestsAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk(4 << 20)
		d.takes = func(_ client.Op, count int) time.Duration {
			if count == 100 {
				return time.Minute
			}
			return 10 * time.Millisecond
		}
		r, err := run(t, d, Options{ReadPercent: 100, Duration: time.Second})
		if err != nil || !near(r.Reads.Max(), time.Minute) || r.Took != time.Second {
			t.Errorf("max %v, took %v (%v)", r.Reads.Max(), r.Took, err)
		}
	})
}

func TestTheFirstErrorEndsTheRun(t *testing.T) {
	for op, want := range map[client.Op]string{
		client.Read:  "load: read of 4096 bytes at ",
		client.Write: "load: write of 4096 bytes at ",
		client.Flush: "load: flush: ",
	} {
		inBubble(t, want, func(t *testing.T) {
			d := newDisk(4 << 20)
			began := time.Now()
			d.fails = func(o client.Op, _ int64) error {
				if o == op && time.Since(began) > time.Second {
					return errors.New("broken")
				}
				return nil
			}
			r, err := run(t, d, Options{ReadPercent: 50, FlushEvery: 10, Depth: 4, Connections: 2, Duration: time.Hour, Verify: true})
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%v", err)
			}
			total := r.Total()
			if r.Took < time.Second || r.Took > 2*time.Second || total.Requests == 0 || total.Errors+r.Flushes.Errors == 0 || r.Verified > 0 {
				t.Errorf("took %v, %d requests, %d errors", r.Took, total.Requests, total.Errors+r.Flushes.Errors)
			}
		})
	}
}

func TestTheEndOfItsContextEndsTheRun(t *testing.T) {
	inBubble(t, "after what is in flight", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second+5*time.Millisecond)
		defer cancel()
		r, err := runWith(ctx, t, newDisk(4<<20), Options{ReadPercent: 100, Depth: 4, Warmup: 500 * time.Millisecond, Duration: time.Hour})
		if !errors.Is(err, context.DeadlineExceeded) || r.Reads.Requests != 4*51 || r.Reads.Errors > 0 || r.Took != 505*time.Millisecond {
			t.Errorf("%d requests, %d errors, took %v (%v)", r.Reads.Requests, r.Reads.Errors, r.Took, err)
		}
	})
	inBubble(t, "with a rate", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := runWith(ctx, t, newDisk(4<<20), Options{ReadPercent: 100, Rate: 10, Depth: 4, Duration: time.Hour})
		if !errors.Is(err, context.DeadlineExceeded) || r.Reads.Requests < 10 || r.Reads.Requests > 11 {
			t.Errorf("%d requests (%v)", r.Reads.Requests, err)
		}
	})
	inBubble(t, "though the server hangs", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		d := newDisk(4 << 20)
		d.takes = func(client.Op, int) time.Duration { return time.Hour }
		o := Options{ReadPercent: 100, Depth: 4, Connections: 2, Duration: time.Minute}
		r, err := runWith(ctx, t, d, o)
		if !errors.Is(err, context.DeadlineExceeded) || r.Reads.Requests > 0 || r.Reads.Errors > 0 {
			t.Errorf("%d requests, %d errors (%v)", r.Reads.Requests, r.Reads.Errors, err)
		}
	})
}

func TestVerifyFindsWhatIsNotThere(t *testing.T) {
	o := Options{Depth: 8, Connections: 2, Duration: time.Second, Verify: true}
	for _, pattern := range []Pattern{Random, Sequential} {
		inBubble(t, "nothing", func(t *testing.T) {
			d := newDisk(256 << 10) // 64 blocks, so each is written often
			d.takes = func(_ client.Op, count int) time.Duration { return time.Duration(count%7) * time.Millisecond }
			o := o
			o.Pattern = pattern
			var last Progress
			o.Progress = func(p Progress) { last = p }
			r, err := run(t, d, o)
			if err != nil || r.Verified != 64 || d.clash || last.Requests == 0 {
				t.Errorf("%d blocks verified, two writes of a block at once: %v, progress %+v (%v)", r.Verified, d.clash, last, err)
			}
		})
	}
	inBubble(t, "in as few blocks as there are requests", func(t *testing.T) {
		d := newDisk(16 * 4096)
		o := o
		o.ReadPercent = 20
		if r, err := run(t, d, o); err != nil || r.Verified != 16 || d.clash {
			t.Errorf("%d blocks verified, two writes of a block at once: %v (%v)", r.Verified, d.clash, err)
		}
	})
	var old []byte
	for want, spoil := range map[string]func(p []byte, off int64) []byte{
		"is zeros": func(p []byte, off int64) []byte {
			if off == 40960 {
				return make([]byte, len(p))
			}
			return p
		},
		"the sector at 45056 is damaged": func(p []byte, off int64) []byte {
			if off == 45056 {
				p = append([]byte(nil), p...)
				p[300] ^= 1
			}
			return p
		},
		"the sector at 41472 is of write ": func(p []byte, off int64) []byte { // it loses a part of every write but the first
			if off == 40960 {
				if old == nil {
					old = append([]byte(nil), p...)
				}
				return append(p[:512:512], old[512:]...)
			}
			return p
		},
		"was written to": func(p []byte, off int64) []byte {
			if off == 40960 {
				p = append([]byte(nil), p...)
				binary.LittleEndian.PutUint64(p, 4096)
			}
			return p
		},
		"was not written by this run": func(p []byte, off int64) []byte {
			if off == 40960 {
				return []byte(strings.Repeat("x", len(p)))
			}
			return p
		},
	} {
		inBubble(t, want, func(t *testing.T) {
			d := newDisk(256 << 10)
			d.spoil = spoil
			r, err := run(t, d, o)
			if !errors.Is(err, ErrWrongData) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ": 1 of 64 blocks") || r.Verified != 63 {
				t.Errorf("%d blocks verified: %v", r.Verified, err)
			}
		})
	}
	inBubble(t, "a failing read", func(t *testing.T) {
		d := newDisk(1 << 20)
		d.fails = func(op client.Op, _ int64) error {
			if op == client.Read {
				return errors.New("broken")
			}
			return nil
		}
		if _, err := run(t, d, o); err == nil || !strings.HasPrefix(err.Error(), "load: verify: read of 4096 bytes at ") {
			t.Error(err)
		}
	})
	inBubble(t, "its context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		d := newDisk(1 << 20)
		d.takes = func(op client.Op, _ int) time.Duration {
			if op == client.Read {
				return time.Minute
			}
			return 10 * time.Millisecond
		}
		r, err := runWith(ctx, t, d, o)
		if !errors.Is(err, context.DeadlineExceeded) || r.Verified > 0 || r.Writes.Requests == 0 {
			t.Errorf("%d blocks verified (%v)", r.Verified, err)
		}
	})
}

func TestOptionsThatDoNotFit(t *testing.T) {
	for want, o := range map[string]Options{
		"a share of 101 % reads":                           {ReadPercent: 101},
		"a block size of 1000 bytes":                       {BlockBytes: 1000},
		"a region of -1 bytes":                             {RegionBytes: -1},
		"a depth of 5000":                                  {Depth: 5000},
		"1000 connections":                                 {Connections: 1000},
		"take more than 1024 MiB":                          {Depth: 1000, BlockBytes: 2 << 20},
		"a flush every -1 writes":                          {FlushEvery: -1},
		"a rate of -1 requests":                            {Rate: -1},
		"a duration of -1s":                                {Duration: -time.Second},
		"leave nothing to verify":                          {ReadPercent: 100, Verify: true},
		"the region has 2097152 bytes, the export 1048576": {RegionBytes: 2 << 20},
		"1048576 bytes have fewer than 300 blocks":         {Depth: 300},
		"server takes requests of up to 33554432":          {BlockBytes: 64 << 20},
	} {
		inBubble(t, want, func(t *testing.T) {
			if o.Duration == 0 {
				o.Duration = time.Second
			}
			var unfit *OptionError
			if _, err := run(t, newDisk(1<<20), o); !errors.As(err, &unfit) || !strings.Contains(err.Error(), want) {
				t.Error(err)
			}
		})
	}
	inBubble(t, "a read-only export", func(t *testing.T) {
		d := newDisk(1 << 20)
		d.readOnly = true
		var unfit *OptionError
		if _, err := run(t, d, Options{Duration: time.Second}); !errors.As(err, &unfit) {
			t.Error(err)
		}
		if _, err := run(t, d, Options{ReadPercent: 100, Duration: time.Second}); err != nil {
			t.Error(err)
		}
	})
}

func TestOneConnectionThatFailsFailsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := fmt.Errorf("refused")
		if _, err := Run(t.Context(), func(context.Context) (*client.Client, error) { return nil, refused }, Options{ReadPercent: 100, Connections: 3, Duration: time.Second}); !errors.Is(err, refused) {
			t.Error(err)
		}
	})
}

func TestRequestsDueBeforeAnEnd(t *testing.T) {
	s := newSchedule(&Options{Rate: 1000, Connections: 2}, 1) // due at 1, 3, 5 ms ...
	for end, want := range map[time.Duration]int64{0: 0, time.Millisecond: 0, 1001 * time.Microsecond: 1, 3 * time.Millisecond: 1, time.Second: 500} {
		if got := s.dueBefore(end); got != want {
			t.Errorf("%d requests are due before %v, want %d", got, end, want)
		}
	}
}

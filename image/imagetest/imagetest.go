// Package imagetest holds every implementation of image.Image to one contract.
package imagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/tidemark/tidemark/image"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	tib = int64(1) << 40
)

// Run tests the images that newImage makes; each must be empty. For an image
// in segments it finds more if a segment is small (64 KiB): ranges then cross
// from one to the next.
func Run(t *testing.T, newImage func(t *testing.T) image.Image) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(t *testing.T, im image.Image)
	}{
		{"what was never written reads zeros at any offset", neverWritten},
		{"what was written is read, before and after a sync", written},
		{"a hole between writes reads zeros", hole},
		{"a transfer of any length and alignment is whole", crossing},
		{"offsets of 15 TiB work", bigOffsets},
		{"punch and zero read zeros, and only in their range", punchAndZero},
		{"a punch of almost everything is quick", hugePunch},
		{"a range that no offset can name is refused", outOfRange},
		{"writers of neighbouring ranges don't disturb each other", neighbours},
		{"it reads as a plain array of bytes does", model},
		{"after close every call says so", closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(t)
			t.Cleanup(func() {
				if err := im.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
					t.Errorf("close: %v", err)
				}
			})
			c.test(t, im)
		})
	}
}

func neverWritten(t *testing.T, im image.Image) {
	for _, off := range []int64{0, 1, 64*kib - 1, tib - 3, 15 * tib} {
		wantBytes(t, im, off, make([]byte, 9000))
	}
}

func written(t *testing.T, im image.Image) {
	data := pattern(1, 8192)
	write(t, im, 4096, data)
	wantBytes(t, im, 4096, data)
	mustSync(t, im)
	wantBytes(t, im, 4096, data)
	write(t, im, 8192, pattern(2, 4096))
	wantBytes(t, im, 4096, append(data[:4096:4096], pattern(2, 4096)...))
	mustSync(t, im)
	mustSync(t, im)
	if err := im.WriteBack(0, mib); err != nil {
		t.Errorf("write back: %v", err)
	}
	if err := im.Prefetch(1, mib); err != nil { // much of it was never written
		t.Errorf("prefetch: %v", err)
	}
	wantBytes(t, im, 0, make([]byte, 4096))
}

func hole(t *testing.T, im image.Image) {
	write(t, im, 0, pattern(1, 4096))
	write(t, im, 3*mib, pattern(2, 4096))
	wantBytes(t, im, 4096, make([]byte, 3*mib-4096))
	wantBytes(t, im, 3*mib-100, append(make([]byte, 100), pattern(2, 4096)...))
	wantBytes(t, im, 3*mib+4096, make([]byte, 4096))
}

func crossing(t *testing.T, im image.Image) {
	for i, c := range []struct{ off, length int64 }{
		{64*kib - 4096, 8192}, {64*kib - 1, 2}, {128*kib - 512, mib}, {5, 1}, {0, 300 * kib},
		{777, 100001}, {64 * kib, 64 * kib}, {192*kib - 1, 64*kib + 2},
	} {
		data := pattern(byte(i), c.length)
		write(t, im, c.off, data)
		wantBytes(t, im, c.off, data)
	}
}

func bigOffsets(t *testing.T, im image.Image) {
	offsets := []int64{tib - 4096, 7*tib + 4096, 15 * tib, 15*tib + 64*kib - 4096, 16*tib - 8192}
	for i, off := range offsets {
		write(t, im, off, pattern(byte(i), 8192))
	}
	mustSync(t, im)
	for i, off := range offsets {
		wantBytes(t, im, off, pattern(byte(i), 8192))
	}
	wantBytes(t, im, 15*tib+mib, make([]byte, 4096))
	n, err := im.Allocated()
	if err != nil || n < 5*8192 || n > 64*mib {
		t.Errorf("allocated %d, %v; want the five writes and not much more", n, err)
	}
}

func punchAndZero(t *testing.T, im image.Image) {
	for name, zero := range map[string]func(off, lengthBytes int64) error{"punch": im.Punch, "zero": im.Zero} {
		for _, c := range []struct{ off, length int64 }{
			{4096, 4096}, {0, 64 * kib}, {64*kib - 4096, 8192}, {100, 50}, {4000, 200}, {1, 300 * kib},
			{64 * kib, 0}, {400 * kib, 300 * kib}, {513, 511}, {64*kib + 1, 128*kib - 2},
		} {
			want := pattern(3, 512*kib)
			write(t, im, 0, want)
			if err := zero(c.off, c.length); err != nil {
				t.Fatalf("%s of %d bytes at %d: %v", name, c.length, c.off, err)
			}
			clear(want[min(c.off, 512*kib):min(c.off+c.length, 512*kib)])
			wantBytes(t, im, 0, append(want, make([]byte, 512*kib)...))
			mustSync(t, im)
			wantBytes(t, im, 0, want)
		}
	}
	if err := im.Zero(2*mib, 4096); err != nil {
		t.Fatalf("zero beyond all writes: %v", err)
	}
	wantBytes(t, im, 2*mib-4096, make([]byte, 3*4096))
	write(t, im, 2*mib+512, pattern(4, 512))
	wantBytes(t, im, 2*mib, append(make([]byte, 512), pattern(4, 512)...))
}

func hugePunch(t *testing.T, im image.Image) {
	write(t, im, 0, pattern(1, mib))
	write(t, im, 20*mib, pattern(2, 4096))
	mustSync(t, im)
	before, err := im.Allocated()
	if err != nil {
		t.Fatal(err)
	}
	// Implementations with small segments go through them one by one.
	if err := im.Punch(4096, 2*tib/1024); err != nil {
		t.Fatal(err)
	}
	mustSync(t, im)
	wantBytes(t, im, 0, append(pattern(1, 4096), make([]byte, mib)...))
	wantBytes(t, im, 20*mib, make([]byte, 4096))
	if after, err := im.Allocated(); err != nil || after > before-mib/2 {
		t.Errorf("allocated %d before and %d after the punch, %v; want its storage back", before, after, err)
	}
}

func outOfRange(t *testing.T, im image.Image) {
	const end = 1<<63 - 1
	p := make([]byte, 512)
	for _, off := range []int64{-1, -4096, end, end - 100} {
		_, readErr := im.ReadAt(p, off)
		_, tryErr := im.TryReadAt(p, off)
		_, writeErr := im.WriteAt(p, off)
		for name, err := range map[string]error{
			"read": readErr, "try": tryErr, "write": writeErr,
			"punch": im.Punch(off, 512), "zero": im.Zero(off, 512), "write back": im.WriteBack(off, 512), "prefetch": im.Prefetch(off, 512),
		} {
			if !errors.Is(err, image.ErrRange) {
				t.Errorf("%s at %d: %v, want ErrRange", name, off, err)
			}
		}
	}
	if err := im.Punch(4096, -1); !errors.Is(err, image.ErrRange) {
		t.Errorf("punch of a negative length: %v, want ErrRange", err)
	}
}

func neighbours(t *testing.T, im image.Image) {
	const writers, rounds, share = 8, 30, 4096
	var all sync.WaitGroup
	for w := range int64(writers) {
		all.Go(func() {
			got := make([]byte, share)
			for round := range int64(rounds) {
				off := (round*writers + w) * share
				data := pattern(byte(w*31+round), share)
				if _, err := im.WriteAt(data, off); err != nil {
					t.Errorf("write at %d: %v", off, err)
				}
				switch {
				case round%5 == 1:
					if err := im.Punch(off, share); err != nil {
						t.Errorf("punch: %v", err)
					}
					clear(data)
				case round%5 == 2:
					if err := im.Zero(off, share/2); err != nil {
						t.Errorf("zero: %v", err)
					}
					clear(data[:share/2])
				case round%5 == 3:
					if err := im.Sync(); err != nil {
						t.Errorf("sync: %v", err)
					}
				}
				if _, err := im.ReadAt(got, off); err != nil || !bytes.Equal(got, data) {
					t.Errorf("writer %d does not read at %d what it wrote (%v)", w, off, err)
				}
			}
		})
	}
	all.Wait()
}

func model(t *testing.T, im image.Image) {
	const size = 600 * kib
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, size)
	for step := range 1500 {
		off := rng.Int64N(size)
		length := min(size-off, 1+rng.Int64N(1+[]int64{10, 600, 4096, 20000, 200000}[rng.IntN(5)]))
		if rng.IntN(2) == 0 { // as a volume does it
			off, length = off&^4095, min((length+4095)&^4095, size-off&^4095)
		}
		var err error
		switch rng.IntN(8) {
		case 0:
			err = im.Punch(off, length)
			clear(want[off : off+length])
		case 1:
			err = im.Zero(off, length)
			clear(want[off : off+length])
		case 2:
			err = im.WriteBack(off, length)
		case 3:
			err = im.Sync()
		case 4:
			wantBytes(t, im, off, want[off:off+length])
		default:
			data := pattern(byte(step), length)
			_, err = im.WriteAt(data, off)
			copy(want[off:], data)
		}
		if err != nil {
			t.Fatalf("step %d, %d bytes at %d: %v", step, length, off, err)
		}
	}
	wantBytes(t, im, 0, want)
}

func closed(t *testing.T, im image.Image) {
	write(t, im, 0, pattern(1, 4096))
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	for _, off := range []int64{0, 5 * tib} {
		_, readErr := im.ReadAt(p, off)
		_, tryErr := im.TryReadAt(p, off)
		_, writeErr := im.WriteAt(p, off)
		_, allocErr := im.Allocated()
		for name, err := range map[string]error{
			"read": readErr, "try": tryErr, "write": writeErr, "allocated": allocErr,
			"punch": im.Punch(off, 512), "zero": im.Zero(off, 512), "write back": im.WriteBack(off, 512), "prefetch": im.Prefetch(off, 512),
			"sync": im.Sync(), "close": im.Close(),
		} {
			if !errors.Is(err, fs.ErrClosed) {
				t.Errorf("%s at %d: %v, want fs.ErrClosed", name, off, err)
			}
		}
	}
}

// pattern returns bytes that tell their position and their seed, none zero.
func pattern(seed byte, length int64) []byte {
	p := make([]byte, length)
	for i := range p {
		p[i] = byte((i/512*7+i+int(seed)*13)%255) + 1
	}
	return p
}

func write(t *testing.T, im image.Image, off int64, p []byte) {
	t.Helper()
	if n, err := im.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

func mustSync(t *testing.T, im image.Image) {
	t.Helper()
	if err := im.Sync(); err != nil {
		t.Fatalf("sync: %v", err)
	}
}

// wantBytes reads through ReadAt, and through TryReadAt if that has it at hand.
func wantBytes(t *testing.T, im image.Image, off int64, want []byte) {
	t.Helper()
	for name, read := range map[string]func([]byte, int64) (int, error){"read": im.ReadAt, "try": im.TryReadAt} {
		got := bytes.Repeat([]byte{0xEE}, len(want)) // what no image may leave
		n, err := read(got, off)
		if name == "try" && errors.Is(err, image.ErrWouldBlock) {
			continue
		}
		if n != len(want) || err != nil {
			t.Fatalf("%s of %d bytes at %d: %d, %v", name, len(want), off, n, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s of %d bytes at %d: %s", name, len(want), off, firstDifference(got, want))
		}
	}
}

func firstDifference(got, want []byte) string {
	for i := range want {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
	return "equal"
}

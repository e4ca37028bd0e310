package volume

import (
	"bytes"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/mem"
	"github.com/tidemark/tidemark/lookup"
)

// rig is an engine in memory whose images a test can stop and see into.
type rig struct {
	t      *testing.T
	engine *Engine
	memory *Memory

	mu     sync.Mutex
	images map[image.ID]*gated
}

// gated is an image whose transfers a test can hold up.
type gated struct {
	image.Image
	slow bool // a TryReadAt would have to wait
	mu   sync.Mutex
	gate *gate // nil: open
}

// gate stops the transfers of an image.
type gate struct {
	reached chan string   // gets "read" or "write" when one has come to it
	open    chan struct{} // closed: they go on
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, images: map[image.ID]*gated{}}
	r.memory = &Memory{NewImage: func(id image.ID) image.Image {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.images[id] = &gated{Image: mem.New()}
		return r.images[id]
	}}
	r.engine = New(r.memory, 0)
	return r
}

func (r *rig) volume(name string) *Volume {
	r.t.Helper()
	v, err := r.engine.AddVolume(r.memory.Config(name, 64*lookup.BlockSize, ScopeRequest))
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// hold makes the next transfers of an image wait at a gate.
func (r *rig) hold(k *VLUN) *gate {
	r.mu.Lock()
	g := r.images[k.ImageID()]
	r.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gate = &gate{reached: make(chan string, 16), open: make(chan struct{})}
	return g.gate
}

func (g *gated) pass(what string) {
	g.mu.Lock()
	gate := g.gate
	g.mu.Unlock()
	if gate != nil {
		gate.reached <- what
		<-gate.open
	}
}

func (g *gated) ReadAt(p []byte, off int64) (int, error) {
	g.pass("read")
	return g.Image.ReadAt(p, off)
}

func (g *gated) TryReadAt(p []byte, off int64) (int, error) {
	if g.slow {
		return 0, image.ErrWouldBlock
	}
	return g.Image.TryReadAt(p, off)
}

func (g *gated) WriteAt(p []byte, off int64) (int, error) {
	g.pass("write")
	return g.Image.WriteAt(p, off)
}

// open opens a view, or ends the test.
func open(t *testing.T) func(*View, error) *View {
	return func(w *View, err error) *View {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = w.Close() })
		return w
	}
}

func (r *rig) begin(token Token, volumes ...*Volume) *Process {
	r.t.Helper()
	p, err := r.engine.Begin(token, volumes)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// outcome is a preserve on its way.
type outcome struct {
	result *Result
	err    error
	done   chan struct{}
}

// preserve starts a preserve and returns when its cut has been made.
func (r *rig) preserve(o PreserveOptions, volumes ...*Volume) *outcome {
	if o.Wait == 0 {
		o.Wait = time.Hour
	}
	out := &outcome{done: make(chan struct{})}
	before := r.engine.Epoch()
	go func() {
		defer close(out.done)
		out.result, out.err = r.engine.Preserve(volumes, o)
	}()
	await(r.t, "the cut", func() bool { return r.engine.Epoch() > before })
	return out
}

func (o *outcome) wait(t *testing.T) *Result {
	t.Helper()
	<-o.done
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o.result
}

func (o *outcome) answered() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

// await lets others run until something is so. Nothing is timed: it ends when
// it is so, or with the test.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for !is() {
		if t.Context().Err() != nil {
			t.Fatalf("waited for %s", what)
		}
		runtime.Gosched()
	}
}

// block returns a block filled with a letter.
func block(letter byte) []byte { return bytes.Repeat([]byte{letter}, lookup.BlockSize) }

func writeBlock(t *testing.T, w *View, b lookup.BlockNum, letter byte) {
	t.Helper()
	if _, err := w.WriteAt(block(letter), int64(b)*lookup.BlockSize); err != nil {
		t.Fatalf("write %c to block %d: %v", letter, b, err)
	}
}

// wantBlock checks that a view reads a block filled with a letter; 0 is zeros.
func wantBlock(t *testing.T, what string, w *View, b lookup.BlockNum, letter byte) {
	t.Helper()
	got := make([]byte, lookup.BlockSize)
	if _, err := w.ReadAt(got, int64(b)*lookup.BlockSize); err != nil {
		t.Fatalf("%s: read block %d: %v", what, b, err)
	}
	if !bytes.Equal(got, block(letter)) {
		t.Errorf("%s: block %d reads %q..., want %q", what, b, got[:4], letter)
	}
}

// wantStored checks what an image holds at a block, whatever its table says.
func (r *rig) wantStored(k *VLUN, b lookup.BlockNum, letter byte) {
	r.t.Helper()
	got := make([]byte, lookup.BlockSize)
	r.mu.Lock()
	img := r.images[k.ImageID()].Image
	r.mu.Unlock()
	if _, err := img.ReadAt(got, int64(b)*lookup.BlockSize); err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(got, block(letter)) {
		r.t.Errorf("image %d stores %q... at block %d, want %q", k.ImageID(), got[:4], b, letter)
	}
}

func wantEntry(t *testing.T, k *VLUN, b lookup.BlockNum, want lookup.State) {
	t.Helper()
	if got := k.Table().Get(b); got != want {
		t.Errorf("the table of image %d has block %d as %v, want %v", k.ImageID(), b, got, want)
	}
}

package cli

import (
	"io"
	"os"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progress shows how far a transfer is, on a terminal only.
type progress struct {
	all *mpb.Progress
	bar *mpb.Bar // nil: not shown
}

// newProgress returns a bar on w if that is a terminal.
func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &progress{}
	}
	return &progress{all: mpb.New(mpb.WithOutput(w), mpb.WithWidth(60), mpb.WithRefreshRate(200*time.Millisecond))}
}

// start shows the bar, or for a size of -1, which is not known, only how much
// was done.
func (p *progress) start(sizeBytes int64) {
	if p.all == nil {
		return
	}
	speed := decor.AverageSpeed(decor.SizeB1024(0), " % .1f")
	if sizeBytes < 0 {
		p.bar = p.all.New(0, mpb.NopStyle(), mpb.PrependDecorators(decor.CurrentKibiByte("% .1f"), speed))
		return
	}
	p.bar = p.all.New(sizeBytes, mpb.BarStyle(),
		mpb.PrependDecorators(decor.CountersKibiByte("% .1f / % .1f ")),
		mpb.AppendDecorators(decor.Percentage(), speed, decor.Name(" "), decor.AverageETA(decor.ET_STYLE_GO)))
}

// startSteps shows a bar of steps without a unit, and beside it what say says.
func (p *progress) startSteps(steps int64, say func() string) {
	if p.all != nil {
		p.bar = p.all.New(steps, mpb.BarStyle(), mpb.AppendDecorators(decor.Percentage(), decor.Any(func(decor.Statistics) string { return "  " + say() })))
	}
}

func (p *progress) add(bytes int64) {
	if p.bar != nil {
		p.bar.IncrInt64(bytes)
	}
}

// reach shows that so much of so much is done, for work that says both, and may find
// more to do.
func (p *progress) reach(doneBytes, totalBytes int64) {
	if p.bar == nil {
		p.start(0)
	}
	if p.bar != nil {
		p.bar.SetTotal(totalBytes, false)
		p.bar.SetCurrent(doneBytes)
	}
}

// stop leaves the bar as it is, and the cursor below it.
func (p *progress) stop() {
	if p.bar != nil {
		if !p.bar.Completed() {
			p.bar.Abort(false)
		}
		p.all.Wait()
	}
}

package cli

import (
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// exportStream writes a snapshot, or what it has that an older one has not.
func (a *app) exportStream(c *cobra.Command, name, since, file, format string, force bool) error {
	volume, snapshot, _ := strings.Cut(name, "@")
	switch {
	case snapshot == "":
		return usage("a stream is of a snapshot: give it as VOLUME@SNAPSHOT; 'tidemark preserve %s' makes one at once", volume)
	case strings.Contains(since, "@"):
		return usage("--since %s: give the name of a snapshot of %s, without the volume", since, volume)
	case format != formatAuto && format != formatStream:
		return usage("--since writes a stream, and not --format %s", format)
	case file == "-" && term.IsTerminal(int(os.Stdout.Fd())):
		return usage("a stream is not for a terminal: give a FILE, or a pipe")
	}
	if since != "" {
		since = volume + "@" + since
	}
	server, err := a.server()
	if err != nil {
		return err
	}
	dst, err := openTarget(file, force)
	if err != nil {
		return err
	}
	bar := newProgress(a.stderr)
	h, totals, err := api.ExportStream(c.Context(), server, name, since, dst.file, bar.start, bar.add)
	bar.stop()
	if err = dst.finish(err); err != nil || file == "-" {
		return seeExports(err, name)
	}
	if a.json {
		return a.printJSON(map[string]any{
			"name": name, "since": since, "file": file, "format": formatStream, "hash": h.Hash.String(),
			"dataBytes": totals.DataBytes, "holeBytes": totals.HoleBytes,
		})
	}
	what := name
	if since != "" {
		what = "what " + name + " has that " + since + " has not"
	}
	return a.printf("exported %s to %s: %s\n", what, file, amounts{totals.DataBytes, totals.HoleBytes})
}

// applyStream makes a snapshot of a stream.
func (a *app) applyStream(c *cobra.Command, file, volume string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	f, sizeBytes, _, err := openFile(file)
	if err != nil {
		return failed("%v", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	if sizeBytes >= 0 {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return failed("%v", err)
		}
	}
	bar := newProgress(a.stderr)
	bar.start(sizeBytes)
	done, err := api.Apply(c.Context(), server, volume, counted{f, bar})
	bar.stop()
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "the stream is of changes; make the volume first, of a stream of all of their base: tidemark export --format stream")
	}
	moved, snapshot := amounts{done.GetDataBytes(), done.GetHoleBytes()}, done.GetSnapshot()
	if a.json {
		return a.printJSON(map[string]any{
			"volume": volume, "snapshot": snapshot.GetName(), "hash": snapshot.GetHash(), "dataBytes": moved.dataBytes, "holeBytes": moved.holeBytes,
		})
	}
	return a.printf("made %s@%s: %s\n", volume, snapshot.GetName(), moved)
}

// counted shows how much of a file was read.
type counted struct {
	io.Reader
	bar *progress
}

func (r counted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.bar.add(int64(n))
	return n, err
}

package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/lookup"
)

func (a *app) snapshotVerifyCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:   "verify VOLUME@SNAPSHOT",
		Short: "Read a snapshot from the disk and compare it with its checksums",
		Long: `Read every block of a sealed snapshot from the disk, past the page cache, and
compare it with the checksum that was made when it was sealed. Clients go on
meanwhile. Each bad block is a line: the image that holds it, where it is in the
volume, and why. A server does the same by itself, in the background (serve
--scrub-every); 'tidemark snapshot show' has the last result.

--json prints {"snapshot","hash","readBytes","direct","badBlocks",
"bad":[{"image","offsetBytes","lengthBytes","why"}],"corrupt","tookSeconds"};
"bad" has the first bad blocks, "badBlocks" counts all.`,
		Example:           "  tidemark snapshot verify db@before-upgrade\n  tidemark snapshot verify db@before-upgrade --json | jq .hash",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSnapshots(),
		RunE:              func(c *cobra.Command, args []string) error { return a.verifySnapshot(c, args[0]) },
	}, exitNotFound, exitDraining, exitNoServer)
}

func (a *app) verifySnapshot(c *cobra.Command, name string) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	bar := newProgress(a.stderr)
	report, err := api.Verify(c.Context(), server, name, bar.reach)
	bar.stop()
	if err != nil {
		err = hint(err, tidemarkv1.Reason_REASON_DRAINING, "preserve with --until sealed, or try again later")
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "see tidemark snapshot list")
	}
	if a.json {
		err = a.printJSON(asVerifyReport(report))
	} else {
		err = a.printVerifyReport(report)
	}
	if err != nil || report.GetCorrupt() == "" {
		return err
	}
	return failed("%s; what is not bad can still be read: export what you need, and restore the rest from another copy. Look at the disk's health before you trust it with more", report.GetCorrupt())
}

func (a *app) printVerifyReport(r *tidemarkv1.VerifyReport) error {
	for _, b := range r.GetBad() {
		if err := a.printf("bad: image %016x, %d bytes at %d of the volume: %s\n", b.GetImage(), lookup.BlockSize, b.GetOffsetBytes(), b.GetWhy()); err != nil {
			return err
		}
	}
	if more := r.GetBadBlocks() - int64(len(r.GetBad())); more > 0 {
		if err := a.printf("and %s more\n", plural(int(more), "bad block")); err != nil {
			return err
		}
	}
	if r.GetCorrupt() != "" {
		return nil // said as the error
	}
	cached := ""
	if !r.GetDirect() {
		cached = " (perhaps from memory: the file system can't read past it)"
	}
	return a.printf("%s: ok, %s read in %s%s\nhash: %s\n", r.GetSnapshot(), formatSize(r.GetReadBytes()), formatSpan(r.GetTook().AsDuration()), cached, r.GetHash())
}

// verifyJSON is the result of a verification in --json.
type verifyJSON struct {
	Snapshot    string    `json:"snapshot"`
	Hash        string    `json:"hash"`
	ReadBytes   int64     `json:"readBytes"`
	Direct      bool      `json:"direct"`
	BadBlocks   int64     `json:"badBlocks"`
	Bad         []badJSON `json:"bad"`
	Corrupt     string    `json:"corrupt,omitempty"`
	TookSeconds float64   `json:"tookSeconds"`
}

type badJSON struct {
	Image       string `json:"image"`
	OffsetBytes int64  `json:"offsetBytes"`
	LengthBytes int64  `json:"lengthBytes"`
	Why         string `json:"why"`
}

func asVerifyReport(r *tidemarkv1.VerifyReport) verifyJSON {
	return verifyJSON{
		Snapshot: r.GetSnapshot(), Hash: r.GetHash(), ReadBytes: r.GetReadBytes(), Direct: r.GetDirect(), BadBlocks: r.GetBadBlocks(),
		Bad: each(r.GetBad(), func(b *tidemarkv1.BadBlock) badJSON {
			return badJSON{fmt.Sprintf("%016x", b.GetImage()), b.GetOffsetBytes(), lookup.BlockSize, b.GetWhy()}
		}),
		Corrupt: r.GetCorrupt(), TookSeconds: r.GetTook().AsDuration().Seconds(),
	}
}

// verificationText says in words what is known of a snapshot's blocks.
func verificationText(v *tidemarkv1.Verification) string {
	switch v.GetState() {
	case tidemarkv1.VerifyState_VERIFY_STATE_RUNNING:
		text := "running"
		if v.GetTotalBytes() > 0 {
			text += fmt.Sprintf(", %d %%", 100*v.GetDoneBytes()/v.GetTotalBytes())
		}
		return text
	case tidemarkv1.VerifyState_VERIFY_STATE_OK:
		return "ok, " + formatTime(v.GetLastTime())
	case tidemarkv1.VerifyState_VERIFY_STATE_BAD:
		return fmt.Sprintf("%s, %s; see tidemark snapshot verify", plural(int(v.GetBadBlocks()), "bad block"), formatTime(v.GetLastTime()))
	}
	return ""
}

// verificationWord is the same in a word, for lists.
func verificationWord(v *tidemarkv1.Verification) string {
	if v.GetState() == tidemarkv1.VerifyState_VERIFY_STATE_UNSPECIFIED {
		return "-"
	}
	return word(v.GetState())
}

// verificationJSON is the same in --json.
type verificationJSON struct {
	State      string     `json:"state"`
	DoneBytes  int64      `json:"doneBytes"`
	TotalBytes int64      `json:"totalBytes"`
	BadBlocks  int64      `json:"badBlocks"`
	LastTime   *time.Time `json:"lastTime"`
}

// asVerification is nil for a snapshot that was never verified.
func asVerification(v *tidemarkv1.Verification) *verificationJSON {
	if v.GetState() == tidemarkv1.VerifyState_VERIFY_STATE_UNSPECIFIED {
		return nil
	}
	return &verificationJSON{word(v.GetState()), v.GetDoneBytes(), v.GetTotalBytes(), v.GetBadBlocks(), jsonTime(v.GetLastTime())}
}

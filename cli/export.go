package cli

import (
	"errors"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
)

func (a *app) exportCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "export VOLUME[@SNAPSHOT] FILE|-",
		Short: "Write a snapshot or a volume to a raw image",
		Long: `Write a snapshot or a volume to a raw image. In FILE holes stay holes; - is the
standard output, where they are zeros. An existing file is overwritten only with
--force.

A live volume is read while its clients write: the image mixes instants. Export
a snapshot instead: 'tidemark preserve VOLUME --name NAME' makes one at once.`,
		Example:           "  tidemark export db@before-upgrade db.img\n  tidemark export db@before-upgrade - | zstd > db.img.zst",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeExport,
		RunE:              func(c *cobra.Command, args []string) error { return a.exportVolume(c, args[0], args[1], force) },
	}
	c.Flags().BoolVar(&force, "force", false, "overwrite FILE")
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) completeExport(c *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.complete(1, listSnapshotNames, listVolumeNames)(c, args, to)
}

func (a *app) exportVolume(c *cobra.Command, name, file string, force bool) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	dst, err := openTarget(file, force)
	if err != nil {
		return err
	}
	bar := newProgress(a.stderr)
	dataBytes, holeBytes, err := api.Export(c.Context(), server, name, dst, bar.start, bar.add)
	bar.stop()
	if err = dst.finish(err); err != nil {
		return seeVolumes(err)
	}
	if file == "-" {
		return nil // the image is the output
	}
	if a.json {
		return a.printJSON(map[string]any{"name": name, "file": file, "dataBytes": dataBytes, "holeBytes": holeBytes})
	}
	return a.printf("exported %s to %s: %s of data, %s of holes\n", name, file, formatSize(dataBytes), formatSize(holeBytes))
}

// target is where an export goes.
type target struct {
	file   *os.File
	sparse bool // a regular file, empty before: what is not written is a hole
	made   bool // by this command: it goes when the export fails
}

var _ api.Target = (*target)(nil)

func openTarget(file string, force bool) (*target, error) {
	if file == "-" {
		return &target{file: os.Stdout}, nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	made := err == nil
	if errors.Is(err, fs.ErrExist) {
		if !force {
			return nil, &exitError{exitTaken, file + " exists; overwrite it with --force, or choose another file"}
		}
		f, err = os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	}
	if err != nil {
		return nil, failed("%v", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, failed("%v", errors.Join(err, f.Close()))
	}
	return &target{file: f, sparse: info.Mode().IsRegular(), made: made}, nil
}

func (t *target) Resize(sizeBytes int64) error {
	if !t.sparse {
		return nil
	}
	return t.file.Truncate(sizeBytes)
}

func (t *target) WriteAt(p []byte, off int64) (int, error) {
	if t.sparse {
		return t.file.WriteAt(p, off)
	}
	return t.file.Write(p) // ranges come in order
}

func (t *target) Hole(_, lengthBytes int64) error {
	if t.sparse {
		return nil
	}
	for zeros := make([]byte, 1<<20); lengthBytes > 0; {
		n, err := t.file.Write(zeros[:min(lengthBytes, int64(len(zeros)))])
		if err != nil {
			return err
		}
		lengthBytes -= int64(n)
	}
	return nil
}

// finish makes the file durable and closes it. After an error, of the export or
// its own, it removes a file that it made: half an image looks like a whole.
func (t *target) finish(err error) error {
	if t.file == os.Stdout {
		return err
	}
	if err == nil {
		err = t.file.Sync()
	}
	if e := t.file.Close(); err == nil {
		err = e
	}
	if err != nil && t.made {
		_ = os.Remove(t.file.Name()) // the first error is what counts
	}
	return err
}

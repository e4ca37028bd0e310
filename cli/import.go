package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/lookup"
)

// dropWait is how long the server may take to delete a volume that did not get its
// image, and which the connection that was to write it may still use.
const dropWait = 10 * time.Second

func (a *app) importCommand() *cobra.Command {
	var create, apply bool
	flags := newImageFlags()
	c := &cobra.Command{
		Use:   "import FILE|- VOLUME",
		Short: "Write an image into a volume",
		Long: `Write an image into a volume, from its first byte on, and flush it. Holes of the
image and blocks of zeros become holes of the volume. FILE may be a block
device; - is the standard input. What lies beyond the end of the image stays.

The volume must exist and be large enough; --create makes it, as large as the
image (rounded up to 4 KiB). It goes again if the import fails or is killed, or
the server is. Each write is a request of its own: a preserve meanwhile has a
part of the image.

--apply reads FILE as a stream, as 'tidemark export --since' writes it, and
makes the snapshot that it was made of, under the same name. A stream of all of
a snapshot makes VOLUME. For one of changes, VOLUME must hold just what they are
changes of: it has a sealed snapshot of that content, under any name, was not
written to since, and nobody is connected to it. When the stream is damaged, cut
off or does not fit, nothing has changed.

` + formatHelp,
		Example: "  tidemark import disk.img db --create\n  tidemark import disk.qcow2 db --create\n  zstdcat disk.img.zst | tidemark import - db\n  tidemark import --apply monday-to-tuesday.stream db",
		Args:    cobra.ExactArgs(2),
		ValidArgsFunction: func(c *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.completeVolumes(2)(c, args, to)
		},
		RunE: func(c *cobra.Command, args []string) error {
			if apply {
				return a.applyStream(c, args[0], args[1])
			}
			return a.importVolume(c, args[0], args[1], create, flags)
		},
	}
	c.Flags().BoolVar(&create, "create", false, "create the volume, as large as the image")
	c.Flags().BoolVar(&apply, "apply", false, "FILE is a stream: make a snapshot of it")
	flags.add(c)
	for _, other := range []string{"create", "format", "allow-backing"} {
		c.MarkFlagsMutuallyExclusive("apply", other)
	}
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

// formatHelp is the part of the help that all commands with --format FILE have.
const formatHelp = `--format says what FILE is. By default a regular file is looked at; a pipe and a
block device are raw. Formats other than raw take qemu-img, and an NBD address
of the server that is reachable from here; where that wants TLS, --api-ca,
--api-cert and --api-key are for it too. The image must not change meanwhile.
One that names other files (a backing file, a data file, a
parent, extents) is refused: it could name any file of yours. --allow-backing
reads them.`

// imageFlags say how to read an image.
type imageFlags struct {
	format       *choice
	allowBacking bool
}

func newImageFlags() *imageFlags {
	format := newFormat()
	return &imageFlags{format: &format}
}

func (f *imageFlags) add(c *cobra.Command) {
	c.Flags().Var(f.format, "format", "format of FILE")
	c.Flags().BoolVar(&f.allowBacking, "allow-backing", false, "read the other files that the image names")
	completeWords(c, "format", imageFormats)
}

func (a *app) importVolume(c *cobra.Command, file, volume string, create bool, flags *imageFlags) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	src, err := openSource(c.Context(), file, flags)
	if err != nil {
		return err
	}
	defer src.close()
	var moved amounts
	if create {
		if src.sizeBytes < 0 {
			return usage("--create needs a FILE whose size is known; create the volume first with tidemark volume create")
		}
		moved, err = a.createFrom(c, server, src, &tidemarkv1.CreateVolumeRequest{Name: volume, SizeBytes: src.volumeBytes()},
			"import into it without --create, or choose another name")
	} else if err = fits(c, server, volume, src.sizeBytes); err == nil {
		moved, err = a.write(c.Context(), server, src, volume, false)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"volume": volume, "format": src.format, "dataBytes": moved.dataBytes, "holeBytes": moved.holeBytes})
	}
	return a.printf("imported %s into %s: %s\n", formatSize(moved.dataBytes+moved.holeBytes), volume, moved)
}

// amounts are what a transfer moved.
type amounts struct{ dataBytes, holeBytes int64 }

func (m amounts) String() string {
	return formatSize(m.dataBytes) + " of data, " + formatSize(m.holeBytes) + " of holes"
}

// source is an image to import.
type source struct {
	file      *os.File
	format    string
	sizeBytes int64 // of the disk in it; -1 where only the end will tell
}

func (s *source) close() { _ = s.file.Close() } // it was only read

// volumeBytes is the size of a volume for the image.
func (s *source) volumeBytes() int64 {
	blocks := (s.sizeBytes + lookup.BlockSize - 1) / lookup.BlockSize
	return blocks * lookup.BlockSize
}

// openSource opens a file, a block device or the standard input, finds out its
// format, and refuses an image that is not to be read.
func openSource(ctx context.Context, file string, flags *imageFlags) (_ *source, err error) {
	f, sizeBytes, regular, err := openFile(file)
	if err != nil {
		return nil, failed("%v", err)
	}
	src := &source{file: f, format: flags.format.value, sizeBytes: sizeBytes}
	defer func() {
		if err != nil {
			src.close()
		}
	}()
	next := ""
	if src.format == formatAuto {
		src.format, next = formatRaw, "; or import its bytes as they are with --format raw"
		if regular {
			if src.format, err = detectFormat(f, sizeBytes); err != nil {
				return nil, failed("%v", err)
			}
		}
	}
	switch {
	case src.format == formatRaw:
		return src, nil
	case src.format == formatStream:
		return nil, failed("%s is a stream: import it with --apply%s", file, next)
	case !slices.Contains(imageFormats, src.format):
		return nil, failed("%s is an image of format %s, which is not supported: convert it with qemu-img first; or import its bytes as they are with --format raw", file, src.format)
	case sizeBytes < 0:
		return nil, usage("--format %s needs a FILE that can be read in any order, not a pipe", src.format)
	}
	if err = needQemuImg(file, src.format, next); err != nil {
		return nil, err
	}
	src.sizeBytes, err = inspect(ctx, f, src.format, flags.allowBacking)
	return src, err
}

// openFile opens a file, a block device or the standard input; sizeBytes is
// -1 where only the end will tell.
func openFile(file string) (f *os.File, sizeBytes int64, regular bool, err error) {
	if f = os.Stdin; file != "-" {
		if f, err = os.Open(file); err != nil {
			return nil, 0, false, err
		}
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = failed("%s is a directory, not an image", file)
	case file == "-" || info.Mode()&(os.ModeNamedPipe|os.ModeSocket|os.ModeCharDevice) != 0:
		return f, -1, false, nil
	default: // a block device has its size at its end
		sizeBytes, err = f.Seek(0, io.SeekEnd)
		regular = info.Mode().IsRegular()
	}
	return f, sizeBytes, regular, err
}

// createFrom creates a volume and writes an image into it. A volume that did not
// get all of it goes again, also when this program is killed: half an image looks
// like a whole. So the server holds it for this call, until it is told to keep it.
func (a *app) createFrom(c *cobra.Command, server api.Client, src *source, volume *tidemarkv1.CreateVolumeRequest, ifExists string) (moved amounts, err error) {
	if src.sizeBytes == 0 {
		return moved, failed("the image is empty: there is no size to create %s at", volume.GetName())
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.Context())) // an interrupt ends the writing, and then this
	defer cancel()
	waits := context.AfterFunc(c.Context(), cancel)
	held, err := holdVolume(ctx, server, volume)
	if err != nil {
		return moved, hint(err, tidemarkv1.Reason_REASON_EXISTS, ifExists)
	}
	if !waits() {
		return moved, c.Context().Err()
	}
	moved, err = a.write(c.Context(), server, src, volume.GetName(), true)
	return moved, endVolume(ctx, server, held, err)
}

// holdVolume creates a volume that lasts as long as ctx, until endVolume.
func holdVolume(ctx context.Context, server api.Client, volume *tidemarkv1.CreateVolumeRequest) (*tidemarkv1.HoldVolumeResponse, error) {
	stream, err := server.HoldVolume(ctx, &tidemarkv1.HoldVolumeRequest{Volume: volume})
	if err != nil {
		return nil, err
	}
	if !stream.Receive() {
		return nil, errors.Join(stream.Err(), stream.Close())
	}
	return stream.Msg(), nil
}

// endVolume keeps a volume, or deletes it and returns the cause of that.
func endVolume(ctx context.Context, server api.Client, held *tidemarkv1.HoldVolumeResponse, cause error) error {
	end := &tidemarkv1.EndVolumeRequest{Name: held.GetVolume().GetName(), Token: held.GetToken(), Keep: cause == nil}
	if end.Keep {
		_, err := server.EndVolume(ctx, end)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dropWait)
	defer cancel()
	_, err := server.EndVolume(ctx, end)
	if api.Detail(err).GetReason() != tidemarkv1.Reason_REASON_IN_USE {
		return cause // it is gone, or goes when the server sees that this program has
	}
	line, code := explain(cause)
	why, _ := explain(err)
	return &exitError{code, line + "; volume " + end.Name + " stays until the next start of the server, with a part of the image at most: " + why}
}

// fits refuses an image that is too large before a byte of it is written.
func fits(c *cobra.Command, server api.Client, volume string, sizeBytes int64) error {
	r, err := server.GetVolume(c.Context(), &tidemarkv1.GetVolumeRequest{Name: volume})
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_NOT_FOUND, "create it with --create, or see tidemark volume list")
	}
	if has := r.GetVolume().GetSizeBytes(); sizeBytes > has {
		return failed("the image has %d bytes, volume %s has %d; grow it with tidemark volume resize %s --size %d", sizeBytes, volume, has, volume, sizeBytes)
	}
	return nil
}

// write writes an image into a volume and flushes it. Into a new one qemu-img has
// no zeros to write.
func (a *app) write(ctx context.Context, server api.Client, src *source, volume string, isNew bool) (moved amounts, err error) {
	if src.format != formatRaw {
		return a.writeConverted(ctx, server, src, volume, isNew)
	}
	bar := newProgress(a.stderr)
	bar.start(src.sizeBytes)
	moved.dataBytes, moved.holeBytes, err = api.Import(ctx, server, volume, src.file, src.sizeBytes, bar.add)
	bar.stop()
	return moved, hint(err, tidemarkv1.Reason_REASON_INVALID, "the image is larger than the volume: grow that with tidemark volume resize")
}

// writeConverted lets qemu-img write it, over NBD.
func (a *app) writeConverted(ctx context.Context, server api.Client, src *source, volume string, isNew bool) (moved amounts, err error) {
	dst, err := a.openNBD(ctx, server, volume)
	if err != nil {
		return moved, err
	}
	defer dst.close()
	path, err := imagePath(src.file.Name())
	if err != nil {
		return moved, err
	}
	args := []string{"-n", "-W", "-f", src.format, "-O", formatRaw}
	if isNew {
		args = append(args, "--target-is-zero") // at 60 TiB, zeros take long too
	}
	if err := convert(ctx, newProgress(a.stderr), src.sizeBytes, slices.Concat(args, dst.object, []string{path, dst.image})...); err != nil {
		return moved, err
	}
	// qemu-img hides an error of its own flush.
	if err := dst.Flush(); err != nil {
		return moved, failed("flush %s: %v", volume, err)
	}
	moved.dataBytes, moved.holeBytes, err = dst.count(src.sizeBytes)
	return moved, err
}

package cli

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/lookup"
)

func (a *app) importCommand() *cobra.Command {
	var create bool
	c := &cobra.Command{
		Use:   "import FILE|- VOLUME",
		Short: "Write a raw image into a volume",
		Long: `Write a raw image into a volume, from its first byte on, and flush it. Holes of
the file and blocks of zeros become holes of the volume. FILE may be a block
device; - is the standard input. What lies beyond the end of the image stays.

The volume must exist and be large enough; --create makes it, as large as FILE
(rounded up to 4 KiB). Each write is a request of its own: a preserve meanwhile
has a part of the image.`,
		Example: "  tidemark import disk.img db --create\n  zstdcat disk.img.zst | tidemark import - db",
		Args:    cobra.ExactArgs(2),
		ValidArgsFunction: func(c *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.completeVolumes(2)(c, args, to)
		},
		RunE: func(c *cobra.Command, args []string) error { return a.importVolume(c, args[0], args[1], create) },
	}
	c.Flags().BoolVar(&create, "create", false, "create the volume, as large as FILE")
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) importVolume(c *cobra.Command, file, volume string, create bool) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	src, sizeBytes, err := openSource(file)
	if err != nil {
		return failed("%v", err)
	}
	defer func() { _ = src.Close() }()
	if create {
		err = createFor(c, server, volume, sizeBytes)
	} else {
		err = fits(c, server, volume, sizeBytes)
	}
	if err != nil {
		return err
	}
	bar := newProgress(a.stderr)
	bar.start(sizeBytes)
	dataBytes, holeBytes, err := api.Import(c.Context(), server, volume, src, sizeBytes, bar.add)
	bar.stop()
	if err != nil {
		return hint(err, tidemarkv1.Reason_REASON_INVALID, "the image is larger than the volume: grow that with tidemark volume resize")
	}
	if a.json {
		return a.printJSON(map[string]any{"volume": volume, "dataBytes": dataBytes, "holeBytes": holeBytes})
	}
	return a.printf("imported %s into %s: %s of data, %s of holes\n", formatSize(dataBytes+holeBytes), volume, formatSize(dataBytes), formatSize(holeBytes))
}

// openSource opens a file, a block device or the standard input; sizeBytes is
// -1 where only the end will tell.
func openSource(file string) (f *os.File, sizeBytes int64, err error) {
	if f = os.Stdin; file != "-" {
		if f, err = os.Open(file); err != nil {
			return nil, 0, err
		}
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = failed("%s is a directory, not an image", file)
	case file == "-" || info.Mode()&(os.ModeNamedPipe|os.ModeSocket|os.ModeCharDevice) != 0:
		return f, -1, nil
	default: // a block device has its size at its end
		sizeBytes, err = f.Seek(0, io.SeekEnd)
	}
	return f, sizeBytes, err
}

func createFor(c *cobra.Command, server api.Client, volume string, sizeBytes int64) error {
	if sizeBytes < 0 {
		return usage("--create needs a FILE whose size is known; create the volume first with tidemark volume create")
	}
	if sizeBytes == 0 {
		return failed("the image is empty: there is no size to create %s at", volume)
	}
	blocks := (sizeBytes + lookup.BlockSize - 1) / lookup.BlockSize
	_, err := server.CreateVolume(c.Context(), &tidemarkv1.CreateVolumeRequest{Name: volume, SizeBytes: blocks * lookup.BlockSize})
	return hint(err, tidemarkv1.Reason_REASON_EXISTS, "import into it without --create, or choose another name")
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

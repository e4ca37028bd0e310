package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/internal/vfs"
)

func (a *app) exportCommand() *cobra.Command {
	var force bool
	var since string
	format := choice{formatAuto, append(slices.Clone(imageFormats), formatStream)}
	c := &cobra.Command{
		Use:   "export VOLUME[@SNAPSHOT] FILE|-",
		Short: "Write a snapshot or a volume to an image",
		Long: `Write a snapshot or a volume to an image. In FILE holes stay holes; - is the
standard output, where they are zeros. An existing file is overwritten only with
--force, and only once the export is whole: until then that is beside FILE, in a
directory FILE.*.tidemark-part. One that a killed export left may be removed.

--format says what FILE is to be. By default its suffix does (.qcow2, .vmdk,
.vhdx, .vdi, .vpc, .vhd), and any other means raw. Formats other than raw take
qemu-img, and an NBD address of the server that is reachable from here; where
that wants TLS, --api-ca, --api-cert and --api-key are for it too.

--since A writes a stream: what the snapshot has that A, another snapshot of the
volume, has not. --format stream writes all of the snapshot so. 'tidemark import
--apply' makes a snapshot of the same content of it, here or elsewhere, and
finds every stream that is damaged or cut off; docs/stream.md says what is in
it. A stream goes to the standard output too, but not to a terminal.

A live volume is read while its clients write: the image mixes instants. Export
a snapshot instead: 'tidemark preserve VOLUME --name NAME' makes one at once.`,
		Example:           "  tidemark export db@before-upgrade db.img\n  tidemark export db@before-upgrade db.qcow2\n  tidemark export db@before-upgrade - | zstd > db.img.zst\n  tidemark export db@tuesday - --since monday | ssh host tidemark import --apply - db",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeExport,
		RunE: func(c *cobra.Command, args []string) error {
			if force && isStandardOutput(args[1]) {
				args[1] = "-"
			}
			if since != "" || format.value == formatStream {
				return a.exportStream(c, args[0], since, args[1], format.value, force)
			}
			return a.exportVolume(c, args[0], args[1], format.value, force)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "overwrite FILE")
	c.Flags().Var(&format, "format", "format of FILE")
	c.Flags().StringVar(&since, "since", "", "write what has changed since this snapshot of the volume, as a stream")
	completeWords(c, "format", format.allowed)
	programmed(c.RegisterFlagCompletionFunc("since", a.completeSince))
	return exits(c, exitNotFound, exitTaken, exitNoServer)
}

func (a *app) completeExport(c *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.complete(1, listSnapshotNames, listVolumeNames)(c, args, to)
}

// completeSince completes with the snapshots of the volume that is exported.
func (a *app) completeSince(c *cobra.Command, args []string, to string) (names []string, _ cobra.ShellCompDirective) {
	all, directive := a.completeSnapshots()(c, nil, to)
	for _, full := range all {
		volume, snapshot, _ := strings.Cut(full, "@")
		if len(args) > 0 && strings.HasPrefix(args[0], volume+"@") && full != args[0] {
			names = append(names, snapshot)
		}
	}
	return names, directive
}

func (a *app) exportVolume(c *cobra.Command, name, file, format string, force bool) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	if format == formatAuto {
		format = formatBySuffix(file)
	}
	var moved amounts
	switch {
	case format == formatRaw:
		moved, err = a.exportRaw(c.Context(), server, name, file, force)
	case file == "-":
		return usage("--format %s needs a FILE: only raw goes to the standard output", format)
	default:
		moved, err = a.exportConverted(c.Context(), server, name, file, format, force)
	}
	if err != nil {
		return seeExports(err, name)
	}
	if file == "-" {
		return nil // the image is the output
	}
	if a.json {
		return a.printJSON(map[string]any{"name": name, "file": file, "format": format, "dataBytes": moved.dataBytes, "holeBytes": moved.holeBytes})
	}
	return a.printf("exported %s to %s: %s\n", name, file, moved)
}

func (a *app) exportRaw(ctx context.Context, server api.Client, name, file string, force bool) (moved amounts, err error) {
	dst, err := openTarget(file, force)
	if err != nil {
		return moved, err
	}
	bar := newProgress(a.stderr)
	moved.dataBytes, moved.holeBytes, err = api.Export(ctx, server, name, dst, bar.start, bar.add)
	bar.stop()
	return moved, dst.finish(err)
}

// exportConverted lets qemu-img write the image, over NBD. Whatever can be wrong
// before is found before FILE is touched.
func (a *app) exportConverted(ctx context.Context, server api.Client, name, file, format string, force bool) (moved amounts, err error) {
	if err := needQemuImg(file, format, "; or export it with --format raw"); err != nil {
		return moved, err
	}
	if err := exists(ctx, server, name); err != nil {
		return moved, err
	}
	src, err := a.openNBD(ctx, server, name)
	if err != nil {
		return moved, err
	}
	defer src.close()
	if moved.dataBytes, moved.holeBytes, err = src.count(src.SizeBytes()); err != nil {
		return moved, err
	}
	dst, err := openTarget(file, force)
	if err != nil {
		return moved, err
	}
	path, err := imagePath(dst.file.Name())
	if err != nil {
		return moved, dst.finish(err)
	}
	args := []string{"-f", formatRaw, "-O", format}
	if format == "vpc" {
		args = append(args, "-o", "force_size=on") // or it would be rounded up to whole cylinders
	}
	err = convert(ctx, newProgress(a.stderr), src.SizeBytes(), slices.Concat(args, src.object, []string{src.image, path})...)
	if err == nil {
		err = checkImage(ctx, file, path, format)
	}
	return moved, dst.finish(err)
}

// exists asks the API for a volume or a snapshot: its errors say more than NBD's.
func exists(ctx context.Context, server api.Client, name string) (err error) {
	if strings.Contains(name, "@") {
		_, err = server.GetSnapshot(ctx, &tidemarkv1.GetSnapshotRequest{Name: name})
	} else {
		_, err = server.GetVolume(ctx, &tidemarkv1.GetVolumeRequest{Name: name})
	}
	return err
}

// partSuffix ends the name of the directory in which an export writes a file.
const partSuffix = ".tidemark-part"

// target is where an export goes. A file is written beside its place, and put
// there when it is whole; a device or a pipe is written as it is.
type target struct {
	file *os.File
	// place is the name that the file is to get; empty: it is no regular file. What is
	// not written to a regular one is a hole.
	place string
	claim bool  // something that has the name by then is not to be replaced
	room  int64 // of a block device, in bytes; -1: no limit is known
}

var _ api.Target = (*target)(nil)

// openTarget refuses what can't be written, and changes nothing that is there.
func openTarget(file string, force bool) (*target, error) {
	if file == "-" {
		return &target{file: os.Stdout, room: -1}, nil
	}
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return beside(file, nil, !force)
	case err == nil && !force:
		return nil, taken(file)
	case err == nil:
		info, err = os.Stat(file)
	}
	if err == nil && info.Mode().IsRegular() {
		if file, err = filepath.EvalSymlinks(file); err == nil { // a link stays
			return beside(file, info, false)
		}
	}
	if err != nil {
		return nil, failed("%v", err)
	}
	t := &target{room: -1}
	if t.file, err = os.OpenFile(file, os.O_WRONLY, 0); err != nil {
		return nil, failed("%v", err)
	}
	if info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice {
		t.room, err = t.file.Seek(0, io.SeekEnd)
		if _, e := t.file.Seek(0, io.SeekStart); err == nil {
			err = e
		}
		if err != nil {
			return nil, failed("%v", errors.Join(err, t.file.Close()))
		}
	}
	return t, nil
}

func taken(file string) error {
	return &exitError{exitTaken, file + " exists; overwrite it with --force, or choose another file"}
}

// beside makes a file that is to get a name, with the mode and the owner of the old
// one that has it. It is in a directory of its own, so that it has its name from the
// beginning: qemu-img writes that into a vmdk.
func beside(place string, old fs.FileInfo, claim bool) (*target, error) {
	base := filepath.Base(place)
	dir, err := os.MkdirTemp(filepath.Dir(place), base[:min(len(base), 128)]+".*"+partSuffix)
	if err != nil {
		return nil, failed("%v (an export is written beside its place, and put there when it is whole)", err)
	}
	t := &target{place: place, claim: claim, room: -1}
	if t.file, err = os.OpenFile(filepath.Join(dir, base), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		_ = os.Remove(dir)
		return nil, failed("%v", err)
	}
	if old != nil {
		if err := become(t.file, old); err != nil {
			return nil, failed("%v", t.finish(err))
		}
	}
	return t, nil
}

// become gives a file another one's owner, as far as the user may, and its mode.
func become(f *os.File, old fs.FileInfo) error {
	mode := old.Mode().Perm()
	if was, ok := old.Sys().(*syscall.Stat_t); ok {
		if f.Chown(-1, int(was.Gid)) != nil {
			mode &^= 0o070 // another group is not to have that one's rights
		}
		_ = f.Chown(int(was.Uid), -1)
	}
	return f.Chmod(mode)
}

// isStandardOutput knows it by its names, as /dev/stdout.
func isStandardOutput(file string) bool {
	info, err := os.Stat(file)
	out, e := os.Stdout.Stat()
	return err == nil && e == nil && os.SameFile(info, out)
}

// Resize refuses a device that is too small, before a byte of it is written.
func (t *target) Resize(sizeBytes int64) error {
	switch {
	case t.place != "":
		return t.file.Truncate(sizeBytes)
	case t.room >= 0 && t.room < sizeBytes:
		return failed("%s has %d bytes, and the export %d: give a device that is as large", t.file.Name(), t.room, sizeBytes)
	}
	return nil
}

func (t *target) WriteAt(p []byte, off int64) (int, error) {
	if t.place != "" {
		return t.file.WriteAt(p, off)
	}
	return t.file.Write(p) // ranges come in order
}

func (t *target) Hole(_, lengthBytes int64) error {
	if t.place != "" {
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

// finish makes the file durable, closes it and puts it in its place. After an
// error, of the export or its own, the place is as it was: half an image looks like
// a whole.
func (t *target) finish(err error) error {
	if t.file == os.Stdout {
		return err
	}
	if err == nil {
		err = t.file.Sync()
		if t.place == "" && errors.Is(err, syscall.EINVAL) {
			err = nil // a pipe: nothing of it lasts
		}
	}
	if e := t.file.Close(); err == nil {
		err = e
	}
	if t.place == "" {
		return err
	}
	if err == nil {
		err = t.put()
	}
	_ = os.RemoveAll(filepath.Dir(t.file.Name())) // the first error is what counts
	return err
}

// put gives the file its name.
func (t *target) put() error {
	if t.claim {
		f, err := os.OpenFile(t.place, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return taken(t.place)
		}
		if err != nil {
			return err
		}
		_ = f.Close() // nothing was written to it
	}
	err := vfs.Place(vfs.OS{}, t.file.Name(), t.place)
	if err != nil && t.claim {
		_ = os.Remove(t.place)
	}
	return err
}

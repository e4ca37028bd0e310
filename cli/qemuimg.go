package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/internal/lazy"
	"github.com/tidemark/tidemark/nbd/client"
)

const (
	dialWait     = 5 * time.Second // for an address of the server that may not be reachable from here
	maxSaidBytes = 4 << 10         // of what qemu-img says to stderr
)

// needQemuImg says what to install for an image, if it is not there.
func needQemuImg(file, format, next string) error {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return failed("%s is an image of format %s, which takes qemu-img, and that is not installed: install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)%s", file, format, next)
	}
	return nil
}

// qemuImg runs qemu-img to its end. The error is that of running it; what it
// says of the image is the exit code and the first line of stderr. When ctx ends,
// the process is killed.
func qemuImg(ctx context.Context, stdout io.Writer, args ...string) (code int, said string, err error) {
	stderr := &limitedBuffer{}
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	err = cmd.Run()
	if ctx.Err() != nil {
		return 0, "", ctx.Err()
	}
	if errors.As(err, new(*exec.ExitError)) {
		code, err = cmd.ProcessState.ExitCode(), nil // -1: a signal ended it
	}
	return code, stderr.firstLine(), err
}

// limitedBuffer keeps the begin of what is written to it.
type limitedBuffer struct{ kept []byte }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), maxSaidBytes-len(b.kept))]...)
	return len(p), nil
}

// firstLine returns the first line that is no warning, without what could move
// the cursor: an image has names in it, which come from who knows where.
func (b *limitedBuffer) firstLine() string {
	for line := range strings.Lines(string(b.kept)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "qemu-img: ")
		if line != "" && !strings.HasPrefix(strings.ToLower(line), "warning: ") {
			return printable(line)
		}
	}
	return ""
}

func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// orExit is what qemu-img said, or else how it ended.
func orExit(said string, code int) string {
	if said == "" {
		return fmt.Sprintf("exit code %d", code)
	}
	return said
}

// imageInfo is what Tidemark wants of qemu-img info.
type imageInfo struct {
	SizeBytes int64  `json:"virtual-size"`
	Backing   string `json:"backing-filename"`
	Specific  struct {
		Data struct {
			DataFile string `json:"data-file"`
			Extents  []struct {
				Filename string `json:"filename"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

// otherFile returns a name of another file that the image has; it is a second
// look, after that into the header.
func (i imageInfo) otherFile(file string) string {
	if i.Backing != "" {
		return i.Backing
	}
	for _, e := range i.Specific.Data.Extents {
		if e.Filename != file {
			return e.Filename
		}
	}
	return i.Specific.Data.DataFile
}

// inspect returns the size of the disk in an image. It refuses an image that
// names other files, unless that is allowed, and one that is damaged: convert
// reads zeros where the end of a file is missing, and calls that success.
func inspect(ctx context.Context, file *os.File, format string, allowBacking bool) (sizeBytes int64, err error) {
	name := file.Name()
	what, err := otherFile(file, format)
	if err != nil {
		return 0, failed("%v", err)
	}
	if what != "" && !allowBacking {
		return 0, refuseOther(name, what)
	}
	fileBytes, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, failed("%v", err)
	}
	path, err := imagePath(name)
	if err != nil {
		return 0, err
	}
	var out bytes.Buffer
	code, said, err := qemuImg(ctx, &out, "info", "--output=json", "-f", format, path)
	switch {
	case err != nil:
		return 0, err
	case code != 0:
		return 0, failed("%s: qemu-img can't read it as %s: %s", name, format, orExit(said, code))
	}
	var info imageInfo
	if err := json.Unmarshal(out.Bytes(), &info); err != nil {
		return 0, failed("%s: qemu-img info gives no JSON: %v", name, err)
	}
	if other := info.otherFile(path); other != "" && !allowBacking {
		return 0, refuseOther(name, strconv.Quote(other))
	}
	cut, err := cutOff(file, format, fileBytes)
	switch {
	case err != nil:
		return 0, failed("%v", err)
	case cut:
		return 0, damaged(name, "its end is missing")
	}
	return info.SizeBytes, checkImage(ctx, name, path, format)
}

func refuseOther(file, what string) error {
	return failed("%s names %s, from which its content would be read, and that may be any file of yours; if you trust the image, give --allow-backing", file, what)
}

func damaged(file, why string) error {
	return failed("%s is damaged or cut off: %s", file, why)
}

// checkImage reads an image's tables; blocks that nothing uses are no damage.
func checkImage(ctx context.Context, name, path, format string) error {
	const leaks, unsupported = 3, 63
	code, said, err := qemuImg(ctx, io.Discard, "check", "-f", format, path)
	switch {
	case err != nil:
		return err
	case code == 0 || code == leaks || code == unsupported:
		return nil
	}
	return damaged(name, "qemu-img check: "+orExit(said, code))
}

// imagePath makes a name that qemu-img takes for a path, also one such as
// nbd:disk or json:disk.
func imagePath(file string) (string, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return "", failed("%v", err)
	}
	return path, nil
}

// convert runs qemu-img convert and shows on the bar how far it is.
func convert(ctx context.Context, bar *progress, sizeBytes int64, args ...string) error {
	bar.start(sizeBytes)
	defer bar.stop()
	percents := &percents{tell: func(percent float64) { bar.reach(int64(percent/100*float64(sizeBytes)), sizeBytes) }}
	code, said, err := qemuImg(ctx, percents, append([]string{"convert", "-p"}, args...)...)
	switch {
	case err != nil:
		return err
	case code != 0 || said != "": // it exits with 0 when the last tables of an image can't be written
		return failed("qemu-img convert: %s", orExit(said, code))
	}
	return nil
}

// percents hears what qemu-img -p says: "    (12.34/100%)" and a carriage return.
type percents struct {
	tell func(percent float64)
	rest []byte
}

var percentText = lazy.Regexp(`\((\d+(?:\.\d+)?)/100%\)`)

func (p *percents) Write(text []byte) (int, error) {
	p.rest = append(p.rest, text...)
	for {
		line, rest, whole := bytes.Cut(p.rest, []byte("\r"))
		if !whole {
			break
		}
		p.rest = rest
		if found := percentText().FindSubmatch(line); found != nil {
			if percent, err := strconv.ParseFloat(string(found[1]), 64); err == nil {
				p.tell(min(percent, 100))
			}
		}
	}
	return len(text), nil
}

// export is a volume or a snapshot on the NBD server, held open: while it is, no
// delete takes it from under qemu-img.
type export struct {
	*client.Client
	image  string   // what qemu-img calls it
	object []string // and what it needs besides
	links  string   // the directory of its credentials, empty if it has none
}

// openNBD opens an export at the first of the server's addresses that answers.
func (a *app) openNBD(ctx context.Context, server api.Client, name string) (*export, error) {
	at, err := a.serverAddr()
	if err != nil {
		return nil, err
	}
	info, err := server.GetServerInfo(ctx, &tidemarkv1.GetServerInfoRequest{})
	if err != nil {
		return nil, err
	}
	const instead = "; a raw image goes without NBD, and qemu-img convert makes one"
	var dialer client.Dialer
	files := a.credentials.files()
	if info.GetNbdTls() {
		if files.ca == "" { // qemu-img does not know the system's
			return nil, failed("qemu-img needs the server's NBD, and that takes clients with TLS only: say who signs its certificate with --api-ca, and show one with --api-cert and --api-key if it wants that%s", instead)
		}
		if dialer.TLS, err = files.load(); err != nil {
			return nil, err
		}
	}
	if !strings.Contains(name, "@") {
		name += ":request" // as the API does: a session would hold up preserves
	}
	why := "the server serves none; start it with --nbd ADDR"
	for _, text := range info.GetNbdAddresses() {
		addr, err := api.ParseAddr(text)
		if err != nil {
			return nil, err
		}
		// What is local to a server elsewhere would be another server here.
		if at.TCP() && !at.Loopback() && addr.Loopback() {
			why = text + " is reachable on the server's machine only"
			continue
		}
		uri := addr.NBDURI(name, dialer.TLS != nil)
		dialCtx, cancel := context.WithTimeout(ctx, dialWait)
		c, err := dialer.Dial(dialCtx, uri)
		cancel()
		switch {
		case err == nil && dialer.TLS != nil:
			return overTLS(c, uri, files)
		case err == nil:
			return &export{Client: c, image: uri}, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.As(err, new(*client.RefusedError)):
			return nil, benchFailure(err)
		case distrust(err) != "":
			why = text + ": " + oneLine(distrust(err))
			continue
		}
		why = fmt.Sprintf("%s does not answer: %v", text, lastCause(err))
	}
	return nil, failed("qemu-img needs the server's NBD: %s%s", why, instead)
}

// overTLS says to qemu-img what a URI can't: by which files it knows the server, and
// shows itself. c is closed after an error.
func overTLS(c *client.Client, uri string, files tlsFiles) (*export, error) {
	e := &export{Client: c}
	err := e.link(files)
	if err == nil {
		err = e.name(uri)
	}
	if err != nil {
		e.close()
		return nil, failed("%v", err)
	}
	return e, nil
}

// link makes the directory in which qemu-img looks for credentials, by fixed names.
// Links will do: no key is copied.
func (e *export) link(files tlsFiles) (err error) {
	if e.links, err = os.MkdirTemp("", "tidemark-tls-"); err != nil {
		return err
	}
	for name, file := range map[string]string{"ca-cert.pem": files.ca, "client-cert.pem": files.certificate, "client-key.pem": files.key} {
		if file == "" {
			continue
		}
		path, err := filepath.Abs(file)
		if err == nil {
			err = os.Symlink(path, filepath.Join(e.links, name))
		}
		if err != nil {
			return err
		}
	}
	// They were good enough for the handshake of e.Client.
	e.object = []string{"--object", "tls-creds-x509,id=tls,endpoint=client,sanity-check=off,dir=" + strings.ReplaceAll(e.links, ",", ",,")}
	return nil
}

// name makes the name of an export that uses the object.
func (e *export) name(uri string) error {
	at, err := client.ParseURI(uri)
	if err != nil {
		return err
	}
	nbd := map[string]any{"driver": "nbd", "export": at.Export, "tls-creds": "tls"}
	if at.Network == "unix" {
		nbd["server"], nbd["tls-hostname"] = map[string]string{"type": "unix", "path": at.Addr}, client.LocalName
	} else {
		host, port, err := net.SplitHostPort(at.Addr)
		if err != nil {
			return err
		}
		nbd["server"] = map[string]string{"type": "inet", "host": host, "port": port}
	}
	image, err := json.Marshal(map[string]any{"driver": formatRaw, "file": nbd})
	e.image = "json:" + string(image)
	return err
}

// count says how much of the first bytes is data, and how much reads as zeros.
func (e *export) count(sizeBytes int64) (dataBytes, holeBytes int64, err error) {
	extents, err := e.BlockStatus(0, sizeBytes)
	for _, x := range extents {
		if x.Hole || x.Zero {
			holeBytes += x.Length
		} else {
			dataBytes += x.Length
		}
	}
	return dataBytes, holeBytes, err
}

// close ends a connection that has nothing left to lose.
func (e *export) close() {
	_ = e.Close()
	if e.links != "" {
		_ = os.RemoveAll(e.links)
	}
}

package store

import (
	"fmt"
	"strings"
	"time"

	"github.com/tidemark/tidemark/internal/lazy"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/volume"
)

// Forms of names (design section 4).
var (
	nameForm  = lazy.Regexp(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	tokenForm = lazy.Regexp(`^[A-Za-z0-9._-]{1,64}$`)
)

// Sizes of a volume, in bytes. The largest is what ext4 keeps of a sparse file
// times 16: images are split into segment files.
const (
	SectorBytes   = 512
	MaxSizeBytes  = 1 << 48
	exportAllowed = "allowed are VOLUME, VOLUME:request, VOLUME:session, VOLUME:process:TOKEN and VOLUME@SNAPSHOT"
)

func checkName(what, name string) error {
	if !nameForm().MatchString(name) {
		return fmt.Errorf("%w: %s name %q: allowed are 1 to 63 of A-Z a-z 0-9 . _ -, beginning with a letter or digit", ErrInvalid, what, name)
	}
	return nil
}

func checkToken(token string) error {
	if !tokenForm().MatchString(token) {
		return fmt.Errorf("%w: process token %q: allowed are 1 to 64 of A-Z a-z 0-9 . _ -", ErrInvalid, token)
	}
	return nil
}

func checkSize(sizeBytes int64) error {
	if sizeBytes < lookup.BlockSize || sizeBytes > MaxSizeBytes || sizeBytes%SectorBytes != 0 {
		return fmt.Errorf("%w: size %d: allowed are multiples of %d from %d to %d bytes", ErrInvalid, sizeBytes, SectorBytes, lookup.BlockSize, int64(MaxSizeBytes))
	}
	return nil
}

// splitSnapshot takes VOLUME@SNAP apart.
func splitSnapshot(full string) (volumeName, snapshot string, err error) {
	volumeName, snapshot, ok := strings.Cut(full, "@")
	if !ok || volumeName == "" || snapshot == "" {
		return "", "", fmt.Errorf("%w: snapshot %q: give it as VOLUME@SNAPSHOT", ErrInvalid, full)
	}
	return volumeName, snapshot, nil
}

// export is an NBD export name, taken apart.
type export struct {
	volume, snapshot, token string
	scope                   volume.Scope
	plain                   bool // the volume's own scope
}

// parseExport takes an export name apart:
//
//	VOLUME[:request|:session|:process:TOKEN]  or  VOLUME@SNAPSHOT
func parseExport(name string) (x export, err error) {
	refuse := func(why string) (export, error) {
		return export{}, fmt.Errorf("%w: export name %q: %s; %s", ErrInvalid, name, why, exportAllowed)
	}
	if name == "" {
		return refuse("it is empty")
	}
	base, suffix, hasSuffix := strings.Cut(name, ":")
	x.volume, x.snapshot, _ = strings.Cut(base, "@")
	x.plain = !hasSuffix
	switch {
	case strings.Contains(base, "@") && x.snapshot == "":
		return refuse("the snapshot is empty")
	case x.volume == "":
		return refuse("the volume is empty")
	case hasSuffix && x.snapshot != "":
		return refuse("a snapshot takes no suffix")
	}
	if err := checkName("volume", x.volume); err != nil {
		return export{}, err
	}
	if x.snapshot != "" {
		if err := checkName("snapshot", x.snapshot); err != nil {
			return export{}, err
		}
	}
	token, isProcess := strings.CutPrefix(suffix, "process:")
	switch {
	case !hasSuffix || suffix == "request":
	case suffix == "session":
		x.scope = volume.ScopeSession
	case isProcess:
		x.scope, x.token = volume.ScopeExplicit, token
		if err := checkToken(token); err != nil {
			return export{}, err
		}
	default:
		return refuse(fmt.Sprintf("the suffix %q is unknown", suffix))
	}
	return x, nil
}

// snapshotName is the default name of snapshots cut now.
func snapshotName(t time.Time) string { return t.UTC().Format("20060102T150405.000Z") }

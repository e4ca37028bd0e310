package cli

import (
	"fmt"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// sizesHelp explains the words of sizes; it stands in the help of those who show them.
const sizesHelp = `STORED is the data that a volume as it is now, or a snapshot, shows: blocks of
4 KiB, zeros left out. UNIQUE is what of it nothing else shows, no snapshot and
no other volume: a delete gives that back. SHARED is the rest.`

// sizesJSON are sizes in --json; left out where they are not measured.
type sizesJSON struct {
	LogicalBytes int64 `json:"logicalBytes"`
	StoredBytes  int64 `json:"storedBytes"`
	UniqueBytes  int64 `json:"uniqueBytes"`
	SharedBytes  int64 `json:"sharedBytes"`
}

func asSizes(z *tidemarkv1.Sizes) *sizesJSON {
	if z == nil {
		return nil
	}
	return &sizesJSON{z.GetLogicalBytes(), z.GetStoredBytes(), z.GetUniqueBytes(), z.GetSharedBytes()}
}

// sizesText is what show says of sizes; nothing if they are not measured.
func sizesText(z *tidemarkv1.Sizes) string {
	if z == nil {
		return ""
	}
	return fmt.Sprintf("%s: %s unique, %s shared", formatSize(z.GetStoredBytes()), formatSize(z.GetUniqueBytes()), formatSize(z.GetSharedBytes()))
}

// sizeOrDash writes a size of sizes, if they are measured.
func sizeOrDash(z *tidemarkv1.Sizes, of func(*tidemarkv1.Sizes) int64) string {
	if z == nil {
		return "-"
	}
	return formatSize(of(z))
}

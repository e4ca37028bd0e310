package cli

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// units of sizes; each is 1024 of the one before.
const units = "KMGTPE"

// parseSize reads a size in bytes: digits, with a fraction or not, and K, M, G,
// T, P or E, each also as KiB, MiB...; they are powers of 1024. KB, MB... are
// refused: half the world means 1000.
func parseSize(text string) (sizeBytes int64, err error) {
	number, unit := text, ""
	if at := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' }); at >= 0 {
		number, unit = text[:at], strings.ToUpper(strings.TrimSpace(text[at:]))
	}
	factor := big.NewRat(1, 1)
	switch prefix := strings.TrimSuffix(unit, "IB"); {
	case unit == "" || unit == "B":
	case len(prefix) == 1 && strings.Contains(units, prefix):
		factor.SetInt(new(big.Int).Lsh(big.NewInt(1), uint(10*(1+strings.Index(units, prefix)))))
	case len(unit) == 2 && unit[1] == 'B' && strings.Contains(units, unit[:1]):
		return 0, fmt.Errorf("size %q: %s may mean two things; write %siB (powers of 1024)", text, unit, unit[:1])
	default:
		return 0, badSize(text)
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok || strings.HasPrefix(number, ".") {
		return 0, badSize(text)
	}
	value.Mul(value, factor)
	switch {
	case !value.IsInt():
		return 0, fmt.Errorf("size %q is not a whole number of bytes", text)
	case value.Sign() == 0:
		return 0, fmt.Errorf("size %q: it must be more than nothing", text)
	case !value.Num().IsInt64():
		return 0, fmt.Errorf("size %q is more than %s", text, formatSize(math.MaxInt64))
	}
	return value.Num().Int64(), nil
}

func badSize(text string) error {
	return fmt.Errorf("size %q: write it as 10GiB, 512MiB or a number of bytes", text)
}

// formatSize writes a size in the largest unit that leaves a number of 1 or
// more, with up to two digits after the point.
func formatSize(sizeBytes int64) string {
	if sizeBytes < 1024 {
		return fmt.Sprintf("%d B", sizeBytes)
	}
	value, unit := float64(sizeBytes), -1
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	text := strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", value), "0"), ".")
	return text + " " + units[unit:unit+1] + "iB"
}

// sizeFlag is a flag that holds a size.
type sizeFlag int64

func (s *sizeFlag) Set(text string) error {
	n, err := parseSize(text)
	*s = sizeFlag(n)
	return err
}

func (s *sizeFlag) Type() string { return "SIZE" }

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return formatSize(int64(*s))
}

// limitFlag is a flag that holds a size, or 0.
type limitFlag int64

func (l *limitFlag) Set(text string) error {
	if text == "0" {
		*l = 0
		return nil
	}
	return (*sizeFlag)(l).Set(text)
}

func (l *limitFlag) Type() string { return "SIZE" }

// String is what help shows as the default; it reads back.
func (l *limitFlag) String() string { return strings.ReplaceAll(formatSize(int64(*l)), " ", "") }

package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tidemark/tidemark/api/tidemarkv1"
	"github.com/tidemark/tidemark/store"
)

// markFlag is a flag that says how full a file system may be: so many percent, or
// until less than a size is free, or off.
type markFlag store.Mark

func (m *markFlag) Set(text string) error {
	*m = markFlag{}
	if text == "off" {
		return nil
	}
	if number, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseUint(number, 10, 7)
		if err != nil || percent < 1 || percent > 100 {
			return fmt.Errorf("allowed are 1%% to 100%%, a SIZE that is to stay free, or off")
		}
		m.UsedPercent = int(percent)
		return nil
	}
	sizeBytes, err := parseSize(text)
	if err != nil {
		return fmt.Errorf("allowed are 1%% to 100%%, a SIZE that is to stay free, or off: %w", err)
	}
	m.FreeBytes = sizeBytes
	return nil
}

func (m *markFlag) Type() string { return "MARK" }

// String is what help shows as the default; it reads back.
func (m *markFlag) String() string {
	switch {
	case m.UsedPercent > 0:
		return fmt.Sprintf("%d%%", m.UsedPercent)
	case m.FreeBytes > 0:
		return strings.ReplaceAll(formatSize(m.FreeBytes), " ", "")
	}
	return "off"
}

// markText says in words when a mark is reached.
func markText(m *tidemarkv1.Mark) string {
	switch {
	case m.GetUsedPercent() > 0:
		return fmt.Sprintf("when %d%% is used", m.GetUsedPercent())
	case m.GetFreeBytes() > 0:
		return fmt.Sprintf("when less than %s is free", formatSize(m.GetFreeBytes()))
	}
	return "off"
}

// markJSON is a mark in --json; one of the two.
type markJSON struct {
	UsedPercent int32 `json:"usedPercent,omitempty"`
	FreeBytes   int64 `json:"freeBytes,omitempty"`
}

func asMark(m *tidemarkv1.Mark) *markJSON {
	if m == nil {
		return nil
	}
	return &markJSON{m.GetUsedPercent(), m.GetFreeBytes()}
}

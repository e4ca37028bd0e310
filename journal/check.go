package journal

import (
	"fmt"
	"os"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/lookup"
)

// Check reads a journal that nobody has open and returns in words what is wrong
// with it: why Open would fail, or what it would do without. It never writes. What a
// crash leaves, such as a torn tail or the table of an image that was removed, is not
// wrong.
func Check(o Options) (findings []string) {
	o.setDefaults()
	found := func(err error) {
		if err != nil {
			findings = append(findings, fmt.Sprintf("journal %s: %v", o.Dir, err))
		}
	}
	h, err := readHistory(&o, os.O_RDONLY)
	if err != nil {
		found(err)
		for _, id := range o.Images {
			_, _, err := readAnyTable(&o, id)
			found(err)
		}
		return findings
	}
	defer h.close()
	found(h.noWitness)
	found(h.noMarks)
	for _, id := range o.Images {
		found(h.checkTable(&o, id))
	}
	_, err = fold(h.segments, h.limit(), func(image.ID) (*lookup.Table, error) { return nil, nil })
	found(err)
	return findings
}

// Read returns the tables that Open would recover, and never writes. Nothing else
// may use the directory's journal at the time. Errors: those of Open.
func Read(o Options) (map[image.ID]*lookup.Table, error) {
	o.setDefaults()
	h, err := readHistory(&o, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("read journal %s: %w", o.Dir, err)
	}
	defer h.close()
	r, _, err := h.replay(&o)
	if err != nil {
		return nil, fmt.Errorf("read journal %s: %w", o.Dir, err)
	}
	return r.Tables, nil
}

// checkTable reads a table file. One that is ahead of the journal shows that
// commits were lost.
func (h *history) checkTable(o *Options, id image.ID) error {
	_, lsn, err := readTable(o, id, h.base.tables[id])
	if err != nil {
		return err
	}
	return h.checkLSN(o, id, lsn)
}

func (h *history) checkLSN(o *Options, id image.ID, lsn LSN) error {
	if lsn <= h.committed {
		return nil
	}
	return fmt.Errorf("%w: %s has changes up to %d, but the last commit in %s is at %d",
		ErrCorrupt, tableName(o.Dir, id), lsn, h.last().name, h.committed)
}

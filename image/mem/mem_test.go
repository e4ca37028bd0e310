package mem_test

import (
	"testing"

	"github.com/tidemark/tidemark/image"
	"github.com/tidemark/tidemark/image/imagetest"
	"github.com/tidemark/tidemark/image/mem"
)

func TestImageKeepsTheContract(t *testing.T) {
	imagetest.Run(t, func(*testing.T) image.Image { return mem.New() })
}

func TestZeroKeepsStorageAndPunchGivesItBack(t *testing.T) {
	im := mem.New()
	if err := im.Zero(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := im.Allocated(); n != 1<<20 || err != nil {
		t.Errorf("allocated %d, %v after a zero of 1 MiB", n, err)
	}
	if err := im.Punch(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if n, err := im.Allocated(); n != 0 || err != nil {
		t.Errorf("allocated %d, %v after the punch", n, err)
	}
}

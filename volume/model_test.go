package volume_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/tidemark/tidemark/volume/volumetest"
)

func TestTheEngineDoesWhatTheModelDoes(t *testing.T) {
	volumetest.Run(t, func(*rapid.T) volumetest.Target { return volumetest.NewEngine(volumetest.MaxDraining) })
}

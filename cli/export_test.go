package cli

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAnExportIsRefusedByADeviceThatIsTooSmall(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	dst := &target{file: f, room: 8192}
	if err := dst.Resize(8192); err != nil {
		t.Error(err)
	}
	want := f.Name() + " has 8192 bytes, and the export 12288: give a device that is as large"
	if err := dst.finish(dst.Resize(12288)); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

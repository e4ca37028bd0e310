package store_test

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tidemark/tidemark/internal/vfs"
	"github.com/tidemark/tidemark/lookup"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

const reserveBytes = 256 << 10

// fullDisk is a store on a disk that a test fills.
type fullDisk struct {
	*store.Store
	t     *testing.T
	sim   *vfs.Sim
	quota *vfs.Quota
	view  *volume.View // of volume v, whose blocks 0 to 7 are written and flushed
}

// onDiskOf runs a test with a store on a disk of some size.
func onDiskOf(t *testing.T, budgetBytes int64, test func(d *fullDisk)) {
	synctest.Test(t, func(t *testing.T) {
		sim := vfs.NewSim(t.TempDir())
		d := &fullDisk{t: t, sim: sim, quota: vfs.NewQuota(sim, budgetBytes)}
		d.open()
		for _, name := range []string{"v", "other"} {
			if _, err := d.CreateVolume(name, 1<<20, volume.ScopeRequest); err != nil {
				t.Fatal(err)
			}
			d.view = openView(t, d.Store, name)
			for block := range int64(8) {
				write(t, d.view, block*lookup.BlockSize, 'a')
			}
			if err := d.view.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := d.view.Close(); err != nil {
				t.Fatal(err)
			}
		}
		d.view = openView(t, d.Store, "v")
		test(d)
	})
}

func (d *fullDisk) open() {
	d.t.Helper()
	var err error
	if d.Store, err = store.Open(dataDir, store.Options{FS: d.quota, ReserveBytes: reserveBytes}); err != nil {
		d.t.Fatal(err)
	}
	opened := d.Store
	d.t.Cleanup(func() { _ = opened.Close(context.Background()) })
	synctest.Wait()
}

// kill opens the directory again after the death of the server.
func (d *fullDisk) kill() {
	d.t.Helper()
	d.sim = d.sim.Kill()
	_ = d.Close(context.Background())
	d.quota = d.quota.Over(d.sim)
	d.open()
	d.view = openView(d.t, d.Store, "v")
}

func (d *fullDisk) write(block int64) error {
	_, err := d.view.WriteAt(make([]byte, lookup.BlockSize), block*lookup.BlockSize)
	return err
}

// changeTables makes table changes until one fails, and returns why.
func (d *fullDisk) changeTables() (err error) {
	for n := 0; err == nil && n < 100_000; n++ {
		if n%2 == 0 {
			err = d.view.Trim(0, lookup.BlockSize)
		} else {
			err = d.view.WriteZeroes(0, lookup.BlockSize, true)
		}
	}
	return err
}

func (d *fullDisk) preserve(name string) error {
	_, err := d.Preserve(context.Background(), store.PreserveRequest{Volumes: []string{"v"}, Name: name, Wait: time.Minute})
	return err
}

func (d *fullDisk) want(what string, got, want error) {
	d.t.Helper()
	if !errors.Is(got, want) {
		d.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestFaultOfAFullDiskRefusesWhatNeedsRoomAndNothingElse(t *testing.T) {
	onDiskOf(t, 4<<20, func(d *fullDisk) {
		d.quota.SetFree(0)
		d.want("a write to a new block", d.write(20), syscall.ENOSPC)
		d.want("an overwrite", d.write(3), nil)
		d.want("a flush of it", d.view.Flush(), nil)
		d.want("a trim, whose table change draws on the reserve", d.view.Trim(0, lookup.BlockSize), nil)
		d.want("a flush of that", d.view.Flush(), nil)
		_, err := d.view.ReadAt(make([]byte, 1<<20), 0)
		d.want("a read", err, nil)
		d.want("a preserve", d.preserve("s"), store.ErrNoSpace)
		d.want("a preserve, for those who look for the errno", d.preserve("s"), syscall.ENOSPC)
		if list, err := d.Snapshots("v"); err != nil || len(list) > 0 {
			t.Errorf("it left snapshots %v, %v", list, err)
		}
		_, err = d.CreateVolume("new", 1<<20, volume.ScopeRequest)
		d.want("a new volume", err, store.ErrNoSpace)
		_, err = d.BeginProcess([]string{"v"}, "P")
		d.want("a process", err, nil)
		_, err = d.EndProcess("P", false)
		d.want("its end", err, nil)
		d.want("the death of the server", nil, nil)
		d.kill()
		d.want("an overwrite after it", d.write(3), nil)
		d.want("a delete", d.DeleteVolume("other", false), nil)
		d.want("a write into the room of it", d.write(20), nil)
	})
}

func TestFaultOfAFullDiskEndsWhenThereIsRoomAgain(t *testing.T) {
	onDiskOf(t, 4<<20, func(d *fullDisk) {
		d.quota.SetFree(0)
		d.want("a trim", d.view.Trim(0, lookup.BlockSize), nil)
		d.want("a preserve", d.preserve("s"), store.ErrNoSpace)
		d.quota.SetFree(reserveBytes / 2)
		time.Sleep(2 * time.Second)
		d.want("a preserve with less than the reserve free", d.preserve("s"), store.ErrNoSpace)
		d.quota.SetFree(2 * reserveBytes)
		time.Sleep(2 * time.Second)
		d.want("a preserve with enough", d.preserve("s"), nil)
		d.want("its seal", d.WaitSealed(context.Background(), "v@s"), nil)
	})
}

func TestFaultOfADiskThatIsFullWithoutTheReserveTooLosesNothing(t *testing.T) {
	onDiskOf(t, 4<<20, func(d *fullDisk) {
		d.quota.SetFree(0)
		d.want("the table change for which there was no room", d.changeTables(), syscall.ENOSPC)
		d.want("an overwrite", d.write(3), nil)
		d.want("a flush with table changes before it", d.view.Flush(), syscall.ENOSPC)
		if info, err := d.Volume("v"); err != nil || info.Failed != "" {
			t.Errorf("the volume failed for good: %s, %v", info.Failed, err)
		}
		d.want("a delete, for which room was set aside", d.DeleteVolume("other", false), nil)
		d.want("the flush after it", d.view.Flush(), nil)
		d.want("a write to a new block", d.write(20), nil)
		d.kill()
		if findings, err := checkAfter(d); err != nil || len(findings) > 0 {
			t.Errorf("check: %q, %v", findings, err)
		}
	})
}

// checkAfter checks what a close leaves.
func checkAfter(d *fullDisk) ([]string, error) {
	if err := d.Close(context.Background()); err != nil {
		return nil, err
	}
	return (&simStore{sim: d.sim}).Check()
}

func TestTheReserveIsPartOfTheDirectoryAndGoesWhenItIsNotWanted(t *testing.T) {
	onDiskOf(t, 4<<20, func(d *fullDisk) {
		if findings, err := checkAfter(d); err != nil || len(findings) > 0 {
			t.Errorf("check: %q, %v", findings, err)
		}
		if n, err := d.sim.Size(dataDir + "/reserve"); n != reserveBytes {
			t.Errorf("the reserve has %d bytes, %v; want %d", n, err, reserveBytes)
		}
		s, err := store.Open(dataDir, store.Options{FS: d.quota})
		if err != nil {
			t.Fatal(err)
		}
		if names, err := d.sim.ReadDir(dataDir); err != nil || slices.Contains(names, "reserve") {
			t.Errorf("without a reserve there are %q, %v", names, err)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := store.Open(dataDir, store.Options{FS: d.quota, ReserveBytes: -1}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("a reserve of -1: %v, want %v", err, store.ErrInvalid)
		}
	})
}

func TestFaultOfAReserveThatFindsRoomForHalfAPieceLeavesItToOthers(t *testing.T) {
	onDiskOf(t, 4<<20, func(d *fullDisk) {
		const pieceBytes = reserveBytes / 16
		d.quota.SetFree(0)
		d.want("table changes until the reserve is empty", d.changeTables(), syscall.ENOSPC)
		d.quota.SetFree(2*pieceBytes + pieceBytes/2)
		time.Sleep(2 * time.Second) // it takes two pieces, and has half of the third when there is no more
		if free, err := d.quota.Free(dataDir); free != pieceBytes/2 || err != nil {
			t.Errorf("%d bytes are free, %v; want %d", free, err, pieceBytes/2)
		}
		d.want("a write to a new block", d.write(20), nil)
	})
}

package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidemark/tidemark/nbd"
	"github.com/tidemark/tidemark/nbd/client"
	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// Clients of NBD keep a volume busy while it is rolled back, again and again. Each is
// cut off, without an error of a request before, and what it finds when it connects
// again is what the volume was rolled back to, or what it wrote since. The client of
// another volume notices nothing.
func TestClientsThatAreDisconnectedByARollbackConnectAgain(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "d"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "other"} {
		if _, err := s.CreateVolume(name, 1<<20, volume.ScopeRequest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Preserve(t.Context(), store.PreserveRequest{Volumes: []string{"a"}, Name: "s", UntilSealed: true, Wait: time.Minute}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := nbd.NewServer(backend{s, nil}, nbd.Options{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()

	ended := make(chan struct{})
	var clients sync.WaitGroup
	uri := func(export string) string { return "nbd+unix:///" + export + "?socket=" + l.Addr().String() }
	cut := make([]int, 4)
	for i := range cut {
		export := []string{"a", "a", "a:session", "other"}[i]
		clients.Go(func() { cut[i] = keepBusy(t, uri(export), int64(i)*64<<10, ended) })
	}
	const rollbacks = 12
	for i := range rollbacks {
		if _, err := s.Rollback(t.Context(), store.RollbackRequest{Snapshot: "a@s", Disconnect: true, Discard: i%2 == 0}); err != nil {
			t.Error(err)
		}
	}
	close(ended)
	clients.Wait()
	if cut[3] > 0 || cut[0]+cut[1]+cut[2] == 0 {
		t.Errorf("the clients were cut off %v times, the last of them of another volume", cut)
	}
	if err := errors.Join(server.Shutdown(context.Background()), s.Close(context.Background())); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, nbd.ErrServerClosed) {
		t.Error(err)
	}
}

// keepBusy writes and reads back until ended, and connects again whenever it is cut
// off; it returns how often that was.
func keepBusy(t *testing.T, uri string, off int64, ended <-chan struct{}) (cut int) {
	for {
		select {
		case <-ended:
			return cut
		default:
		}
		c, err := client.Dial(t.Context(), uri)
		if err != nil {
			if !strings.Contains(err.Error(), "try again") {
				t.Errorf("connect: %v", err)
				return cut
			}
			continue // while the volume is rolled back
		}
		switch err := counting(c, off, ended); {
		case errors.Is(err, client.ErrClosed):
			cut++
			_ = c.Abort()
		case err != nil:
			t.Error(err)
			return cut
		default:
			_ = c.Close()
		}
	}
}

// counting writes 1, 2, 3 ... over a range that reads as zeros at first, if the volume
// was rolled back since.
func counting(c *client.Client, off int64, ended <-chan struct{}) error {
	got := make([]byte, 64<<10)
	for n := byte(0); n < 100; n++ {
		if _, err := c.ReadAt(got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, bytes.Repeat([]byte{n}, len(got))) {
			return errors.New("the range is not what was written last")
		}
		select {
		case <-ended:
			n = 99
		default:
		}
		if _, err := c.WriteAt(bytes.Repeat([]byte{(n + 1) % 100}, len(got)), off); err != nil {
			return err
		}
	}
	return nil
}

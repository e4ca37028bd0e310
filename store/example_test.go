package store_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/tidemark/tidemark/store"
	"github.com/tidemark/tidemark/volume"
)

// The engine in a Go program: a process writes before and after a preserve, and
// the snapshot holds it whole, while a later writer goes on beside it.
func Example() {
	dir, err := os.MkdirTemp("", "tidemark-")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()

	s, err := store.Open(filepath.Join(dir, "data"), store.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := s.CreateVolume("orders", 1<<30, volume.ScopeRequest); err != nil {
		log.Fatal(err)
	}

	// A process: these writes belong together.
	if _, err := s.BeginProcess([]string{"orders"}, "import"); err != nil {
		log.Fatal(err)
	}
	job, err := s.OpenView("orders:process:import") // io.ReaderAt, io.WriterAt
	if err != nil {
		log.Fatal(err)
	}
	must(job.WriteAt([]byte("first half, "), 0))

	// The preserve makes its cut at once, and answers when the process has ended.
	reports := make(chan store.PreserveReport)
	go func() {
		report, err := s.Preserve(context.Background(), store.PreserveRequest{
			Volumes: []string{"orders"}, Name: "monday", Wait: time.Minute,
		})
		if err != nil {
			log.Fatal(err)
		}
		reports <- report
	}()
	for { // until the cut is made
		if info, err := s.Volume("orders"); err != nil || info.Images == 2 {
			break
		}
	}

	must(job.WriteAt([]byte("second half"), 12)) // goes to the snapshot: begun before the cut
	live, err := s.OpenView("orders")            // goes to the live volume: begun after it
	if err != nil {
		log.Fatal(err)
	}
	must(live.WriteAt([]byte("tuesday"), 4096))
	if _, err := s.EndProcess("import", false); err != nil {
		log.Fatal(err)
	}
	fmt.Println("consistency:", (<-reports).Snapshots[0].Consistency)

	snapshot, err := s.OpenView("orders@monday")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("snapshot: %q, then %q\n", read(snapshot, 0, 23), read(snapshot, 4096, 7))
	fmt.Printf("live: %q, then %q\n", read(live, 0, 23), read(live, 4096, 7))

	for _, view := range []*volume.View{job, live, snapshot} {
		if err := view.Close(); err != nil {
			log.Fatal(err)
		}
	}
	if err := s.Close(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output:
	// consistency: process
	// snapshot: "first half, second half", then "\x00\x00\x00\x00\x00\x00\x00"
	// live: "first half, second half", then "tuesday"
}

func must(_ int, err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func read(view *volume.View, off int64, n int) string {
	p := make([]byte, n)
	must(view.ReadAt(p, off))
	return string(p)
}

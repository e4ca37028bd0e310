package api

import (
	"bufio"
	"fmt"
	"net/http"
	"testing"
)

func TestProfilesAreForWhoOwnsTheProcess(t *testing.T) {
	guard, token := tokenGuard(t)
	dial := piped(t, guard)
	for _, path := range []string{"", "heap", "goroutine", "cmdline", "symbol"} {
		for _, unix := range []bool{true, false} {
			client := dial(unix)
			if _, err := fmt.Fprintf(client, "GET /debug/pprof/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", path, token); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close()
			if want := map[bool]int{true: http.StatusOK, false: http.StatusNotFound}[unix]; answer.StatusCode != want {
				t.Errorf("/debug/pprof/%s, over the unix socket %v: %s, want %d", path, unix, answer.Status, want)
			}
		}
	}
}

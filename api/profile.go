package api

import (
	"net/http"
	"net/http/pprof" //nolint:gosec // nobody serves the mux that the import adds to
)

// addProfiles serves what net/http/pprof tells of the process under /debug/pprof/, as
//
//	curl --unix-socket DIR/api.sock -o heap http://tidemark/debug/pprof/heap
//	go tool pprof -top heap
//
// to callers on the unix socket, who own the process. For others it is not there.
func addProfiles(mux *http.ServeMux) {
	add := func(path string, serve http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if !isLocal(r.Context()) {
				http.NotFound(w, r)
				return
			}
			serve(w, r)
		})
	}
	add("/debug/pprof/", pprof.Index)
	add("/debug/pprof/cmdline", pprof.Cmdline)
	add("/debug/pprof/profile", pprof.Profile)
	add("/debug/pprof/symbol", pprof.Symbol)
	add("/debug/pprof/trace", pprof.Trace)
}

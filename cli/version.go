package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker: -X github.com/tidemark/tidemark/cli.version=v1.2.3.
var version string

func (a *app) versionCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  tidemark version\n  tidemark version --json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return a.printVersion() },
	})
}

func (a *app) printVersion() error {
	number, commit := build()
	if a.json {
		return a.printJSON(map[string]string{"version": number, "commit": commit, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
	}
	return a.printf("tidemark %s (%s, %s, %s/%s)\n", number, orDash(commit), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func versionText() string {
	number, _ := build()
	return number
}

// build tells the version and the commit of this binary, as far as the build
// recorded them.
func build() (number, commit string) {
	number = version
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return number, ""
	}
	if number == "" {
		number = info.Main.Version
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = fmt.Sprintf("%.12s", s.Value)
		case s.Key == "vcs.modified" && s.Value == "true":
			commit += "+changes"
		}
	}
	return number, commit
}

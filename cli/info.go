package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api/tidemarkv1"
)

func (a *app) infoCommand() *cobra.Command {
	return exits(&cobra.Command{
		Use:   "info",
		Short: "Show the server: its version, addresses and room",
		Long: `Show the server: its version, where it serves, and how full the file system of
its data directory is, for users without privileges, as df counts. The marks are
those of 'tidemark serve --warn-at' and '--refuse-preserves-at'.`,
		Example: "  tidemark info\n  tidemark info --json | jq '.fileSystem.freeBytes'",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return a.info(c) },
	}, exitNoServer)
}

// infoJSON is a server in --json.
type infoJSON struct {
	Version       string     `json:"version"`
	DataDirectory string     `json:"dataDirectory"`
	NBDAddresses  []string   `json:"nbdAddresses"`
	NBDTLS        bool       `json:"nbdTLS"`
	FileSystem    *spaceJSON `json:"fileSystem,omitempty"`
}

type spaceJSON struct {
	TotalBytes        int64     `json:"totalBytes"`
	UsedBytes         int64     `json:"usedBytes"`
	FreeBytes         int64     `json:"freeBytes"`
	WarnAt            *markJSON `json:"warnAt"`
	RefusePreservesAt *markJSON `json:"refusePreservesAt"`
}

func asSpace(s *tidemarkv1.Space) *spaceJSON {
	if s == nil {
		return nil
	}
	return &spaceJSON{s.GetTotalBytes(), s.GetUsedBytes(), s.GetFreeBytes(), asMark(s.GetWarnAt()), asMark(s.GetRefusePreservesAt())}
}

func (a *app) info(c *cobra.Command) error {
	server, err := a.server()
	if err != nil {
		return err
	}
	r, err := server.GetServerInfo(c.Context(), &tidemarkv1.GetServerInfoRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(infoJSON{r.GetVersion(), r.GetDataDirectory(), listed(r.GetNbdAddresses()), r.GetNbdTls(), asSpace(r.GetSpace())})
	}
	tls := ""
	if r.GetNbdTls() {
		tls = "required"
	}
	fields := [][2]string{
		{"version", r.GetVersion()},
		{"data", r.GetDataDirectory()},
		{"nbd", strings.Join(r.GetNbdAddresses(), ", ")},
		{"nbd tls", tls},
	}
	if s := r.GetSpace(); s != nil {
		fields = append(fields, [][2]string{
			{"file system", fmt.Sprintf("%s used of %s, %s free", formatSize(s.GetUsedBytes()), formatSize(s.GetTotalBytes()), formatSize(s.GetFreeBytes()))},
			{"warns", markText(s.GetWarnAt())},
			{"refuses preserves", markText(s.GetRefusePreservesAt())},
		}...)
	}
	return a.printFields(fields...)
}

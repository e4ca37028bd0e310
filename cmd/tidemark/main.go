// Command tidemark is the server and the command line of Tidemark.
package main

import (
	"os"

	"github.com/tidemark/tidemark/cli"
)

func main() { os.Exit(cli.Main()) }

package cli

import (
	"fmt"
	"net"
	"os"
)

// notifyVariable names the socket of the service manager (sd_notify(3)).
const notifyVariable = "NOTIFY_SOCKET"

// notify tells the service manager, if there is one, the server's state:
// READY=1 or STOPPING=1. A socket that begins with @ is an abstract one.
func notify(state string) error {
	socket := os.Getenv(notifyVariable)
	if socket == "" {
		return nil
	}
	c, err := net.Dial("unixgram", socket)
	if err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	if _, err := c.Write([]byte(state)); err != nil {
		_ = c.Close() // nothing was told, and that is what counts
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	return c.Close()
}

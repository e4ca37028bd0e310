// Package access says who may do what: it reads the server's certificate, the
// authority that signs its clients' certificates, the hashes of tokens and the
// access list, and answers for a client that has shown who it is.
//
// It knows no protocol. NBD and the API tell it what they have proved of a
// client, and ask before they serve.
package access

import (
	"errors"
	"fmt"
	"strings"
)

// ErrDenied says that the access list does not give a client the right that
// it needs.
var ErrDenied = errors.New("not allowed")

// Rights is a set of what a client may do with an export.
type Rights uint8

// The rights. Write includes Read: a disk that can't be read is of no use.
const (
	// Read: open the export read-only, see it in lists, export and verify it.
	Read Rights = 1 << iota
	// Write: open it for writing, with any scope; import; hold processes over it.
	Write
	// Preserve: make snapshots of it.
	Preserve
	// Admin: create, resize and delete it.
	Admin

	// All of them.
	All = Read | Write | Preserve | Admin
)

// words are the rights as the access list writes them, in order.
var words = []struct {
	right Rights
	word  string
}{{Read, "read"}, {Write, "write"}, {Preserve, "preserve"}, {Admin, "admin"}}

// Has tells whether all of need are in r.
func (r Rights) Has(need Rights) bool { return r&need == need }

// String lists the rights, as "read, write".
func (r Rights) String() string {
	var list []string
	for _, w := range words {
		if r.Has(w.right) {
			list = append(list, w.word)
		}
	}
	return strings.Join(list, ", ")
}

// Client is who asks, as far as it has been proved. The zero value has proved
// nothing.
type Client struct {
	// Certificate has the names of a verified certificate: its CN and DNS names.
	Certificate []string
	// Token is the name of the token that it showed.
	Token string
	// Local: it came over a unix socket, which the file's mode guards.
	Local bool
}

// Proved tells whether the client has shown a certificate or a token.
func (c Client) Proved() bool { return len(c.Certificate) > 0 || c.Token != "" }

// String names the client for an error message.
func (c Client) String() string {
	switch {
	case c.Token != "":
		return fmt.Sprintf("token %s", c.Token)
	case len(c.Certificate) > 0:
		return fmt.Sprintf("the client certificate of %q", c.Certificate[0])
	case c.Local:
		return "a client of the unix socket without a certificate"
	}
	return "a client without a certificate"
}

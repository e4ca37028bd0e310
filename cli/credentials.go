package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/api"
)

// credentialFlags are what a command shows to a server over TCP, and how it
// knows that server. Each has an environment variable.
type credentialFlags struct {
	ca, certificate, key, token string
}

const (
	caVariable          = "TIDEMARK_API_CA"
	certificateVariable = "TIDEMARK_API_CERT"
	keyVariable         = "TIDEMARK_API_KEY"
	tokenFileVariable   = "TIDEMARK_API_TOKEN_FILE" //nolint:gosec // the name of a variable
	tokenVariable       = "TIDEMARK_API_TOKEN"      //nolint:gosec // the name of a variable
)

func (f *credentialFlags) add(c *cobra.Command) {
	flags := c.PersistentFlags()
	flags.StringVar(&f.ca, "api-ca", "", "`FILE` of the authorities that the server's certificate is checked against; TLS then (default $"+caVariable+")")
	flags.StringVar(&f.certificate, "api-cert", "", "`FILE` of the client certificate to show; TLS then (default $"+certificateVariable+")")
	flags.StringVar(&f.key, "api-key", "", "`FILE` of its private key (default $"+keyVariable+")")
	flags.StringVar(&f.token, "api-token-file", "", "`FILE` of the token to show (default $"+tokenFileVariable+", or the token itself in $"+tokenVariable+")")
}

// load reads the files.
func (f *credentialFlags) load() (show api.Credentials, err error) {
	if show.TLS, err = f.files().load(); err != nil {
		return show, err
	}
	show.Token, err = f.loadToken()
	return show, err
}

// tlsFiles are the names of the files for TLS, empty where none is given.
type tlsFiles struct{ ca, certificate, key string }

func (f *credentialFlags) files() tlsFiles {
	return tlsFiles{given(f.ca, caVariable), given(f.certificate, certificateVariable), given(f.key, keyVariable)}
}

// load reads them. TLS is used when any of them is given; else there is none.
func (f tlsFiles) load() (*tls.Config, error) {
	switch {
	case (f.certificate == "") != (f.key == ""):
		return nil, usage("--api-cert and --api-key belong together: give both or none")
	case f == tlsFiles{}:
		return nil, nil
	}
	config, err := access.ClientTLS(f.ca, f.certificate, f.key, time.Now())
	if err != nil {
		return nil, failed("%v", err)
	}
	return config, nil
}

func (f *credentialFlags) loadToken() (string, error) {
	file := given(f.token, tokenFileVariable)
	if text := os.Getenv(tokenVariable); f.token == "" && text != "" {
		token, err := access.ParseToken([]byte(text))
		if err != nil {
			return "", failed("%s: %v", tokenVariable, err)
		}
		return token, nil
	}
	if file == "" {
		return "", nil
	}
	text, err := access.ReadSecret("token", file)
	if err != nil {
		return "", failed("%v", err)
	}
	token, err := access.ParseToken(text)
	if err != nil {
		return "", failed("token %s: %v", file, err)
	}
	return token, nil
}

func given(flag, variable string) string {
	if flag != "" {
		return flag
	}
	return os.Getenv(variable)
}

// distrust says why TLS did not come about and what to do; empty if it was
// something else that went wrong.
func distrust(err error) string {
	var (
		unverified *tls.CertificateVerificationError
		remote     *net.OpError
		plain      tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &unverified):
		return fmt.Sprintf("the server's certificate is not to be trusted: %v; say who signs it with --api-ca", unverified.Err)
	case errors.As(err, &remote) && remote.Op == "remote error": // of crypto/tls: the server's alert
		return fmt.Sprintf("the server refuses the connection: %v; show a certificate that its --tls-client-ca signed, with --api-cert and --api-key", remote.Err)
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS there; leave --api-ca and --api-cert out, or give it --tls-cert"
	}
	return ""
}

package cli

import (
	"github.com/tidemark/tidemark/access"
	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/nbd"
)

// protectOptions are the flags of serve that say who may come in.
type protectOptions struct {
	tls         choice
	certificate string
	key         string
	clientCA    string
	access      string
	tokens      string
	insecure    bool
}

func (o protectOptions) files() access.Files {
	return access.Files{Certificate: o.certificate, Key: o.key, ClientCA: o.clientCA, Tokens: o.tokens, List: o.access}
}

// empty tells that there is nothing to load, or to load again.
func (o protectOptions) empty() bool { return o.files() == access.Files{} }

// mode is what the NBD server does about TLS.
func (o protectOptions) mode() nbd.TLSMode {
	return map[string]nbd.TLSMode{"off": nbd.TLSOff, "allow": nbd.TLSAllow, "require": nbd.TLSRequire}[o.tls.value]
}

// check refuses flags that do not fit each other, and every way to serve that
// would let somebody in, or listen, who has shown nothing:
//
//   - NBD on TCP beyond loopback, but with TLS required and client certificates
//     verified, or with --insecure. (With "allow" a middleman takes TLS away.)
//   - The API on TCP, loopback too, but with verified client certificates or
//     tokens: any user of the machine, and any of its containers with the host's
//     network, reaches loopback.
//   - A token that would cross a network without TLS.
func (o protectOptions) check(nbdAddrs []api.Addr, apiAddr api.Addr) error {
	if err := o.complete(apiAddr); err != nil {
		return err
	}
	mutual := o.certificate != "" && o.clientCA != ""
	for _, addr := range nbdAddrs {
		if !addr.Loopback() && !o.insecure && (o.tls.value != "require" || !mutual) {
			return usage("--nbd %v: the network reaches it, and NBD knows no passwords: whoever connects could read and write every volume. "+
				"Give --tls require with --tls-cert, --tls-key and --tls-client-ca, or listen on 127.0.0.1 or unix:PATH; "+
				"--insecure serves it all the same", addr)
		}
	}
	switch {
	case apiAddr.TCP() && !mutual && o.tokens == "":
		return usage("--api %v: over TCP, callers must show who they are. "+
			"Give --tls-cert, --tls-key and --tls-client-ca (client certificates) or --api-token-file (tokens), or listen on unix:PATH", apiAddr)
	case !apiAddr.Loopback() && o.certificate == "":
		return usage("--api %v: tokens would cross the network for everybody to read. "+
			"Give --tls-cert and --tls-key, or listen on 127.0.0.1 or unix:PATH", apiAddr)
	}
	return nil
}

// complete refuses flags without those that they need, or that nothing uses.
func (o protectOptions) complete(apiAddr api.Addr) error {
	switch {
	case (o.certificate == "") != (o.key == ""):
		return usage("--tls-cert and --tls-key belong together: give both or none")
	case o.tls.value != "off" && o.certificate == "":
		return usage("--tls %s needs --tls-cert and --tls-key", o.tls.value)
	case o.clientCA != "" && o.certificate == "":
		return usage("--tls-client-ca needs --tls-cert and --tls-key")
	case o.certificate != "" && o.tls.value == "off" && !apiAddr.TCP():
		return usage("--tls-cert is of no use without --tls require (or allow), for NBD, or --api HOST:PORT")
	case o.tokens != "" && !apiAddr.TCP():
		return usage("--api-token-file is of no use without --api HOST:PORT: the unix socket is guarded by its mode")
	}
	return nil
}

// Package certtest makes the certificates that tests of TLS need.
package certtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// An Authority issues certificates that are good for a day.
type Authority struct {
	t      testing.TB
	serial int64
	own    *x509.Certificate
	key    *ecdsa.PrivateKey
}

// New makes an authority; each change may alter its own certificate before that is
// signed.
func New(t testing.TB, change ...func(*x509.Certificate)) *Authority {
	t.Helper()
	a := &Authority{t: t}
	a.own = a.template("authority")
	a.own.IsCA, a.own.BasicConstraintsValid = true, true
	a.own.KeyUsage = x509.KeyUsageCertSign
	for _, change := range change {
		change(a.own)
	}
	a.key = a.newKey()
	der := a.sign(a.own, a.own, a.key)
	var err error
	if a.own, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// Pool has the authority's own certificate.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.own)
	return p
}

// Issue makes a certificate, for servers at loopback and for clients, of a
// common name and DNS names. change, if not nil, may alter it before it is signed.
func (a *Authority) Issue(change func(*x509.Certificate), commonName string, dns ...string) tls.Certificate {
	a.t.Helper()
	c := a.template(commonName)
	c.DNSNames = dns
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if change != nil {
		change(c)
	}
	key := a.newKey()
	return tls.Certificate{Certificate: [][]byte{a.sign(c, a.own, key)}, PrivateKey: key}
}

// Server is the configuration of a server, known as localhost, that asks its
// clients for a certificate of the same authority, and does without.
func (a *Authority) Server() *tls.Config {
	a.t.Helper()
	return &tls.Config{
		Certificates: []tls.Certificate{a.Issue(nil, "server", "localhost")},
		ClientCAs:    a.Pool(),
		ClientAuth:   tls.VerifyClientCertIfGiven,
	}
}

// Client is the configuration of a client of that server, without a
// certificate if it has no name.
func (a *Authority) Client(commonName string, dns ...string) *tls.Config {
	a.t.Helper()
	c := &tls.Config{RootCAs: a.Pool(), ServerName: "localhost"}
	if commonName != "" {
		c.Certificates = []tls.Certificate{a.Issue(nil, commonName, dns...)}
	}
	return c
}

// WriteDir writes PEM files by the names that libnbd and qemu look for:
// ca-cert.pem, and of c SIDE-cert.pem and SIDE-key.pem. It returns the directory.
func (a *Authority) WriteDir(c tls.Certificate, side string) (dir string) {
	a.t.Helper()
	dir = a.t.TempDir()
	a.WriteOwn(filepath.Join(dir, "ca-cert.pem"))
	a.Write(c, filepath.Join(dir, side+"-cert.pem"), filepath.Join(dir, side+"-key.pem"))
	return dir
}

// WriteOwn writes the authority's own certificate as PEM.
func (a *Authority) WriteOwn(file string) {
	a.t.Helper()
	a.writePEM(file, "CERTIFICATE", a.own.Raw)
}

// Write writes c and its key as PEM.
func (a *Authority) Write(c tls.Certificate, certificateFile, keyFile string) {
	a.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	a.writePEM(certificateFile, "CERTIFICATE", c.Certificate[0])
	a.writePEM(keyFile, "PRIVATE KEY", key)
}

func (a *Authority) writePEM(file, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *Authority) template(commonName string) *x509.Certificate {
	a.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.serial),
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func (a *Authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *Authority) sign(c, parent *x509.Certificate, key *ecdsa.PrivateKey) (der []byte) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/tidemark/tidemark/nbd/client"
)

// tlsSteps run the core workloads over TLS, with this repository's client: fio
// knows no TLS.
func (b *bench) tlsSteps() []step {
	return b.lineUp(lineup{"tls", "tls", b.runLoad, fillBytes, workload.isCore})
}

// dial opens the volume of a server, over TLS if that is where it is.
func (s *server) dial(ctx context.Context, uri string) (*client.Client, error) {
	if s.place.tls == "" {
		return client.Dial(ctx, uri)
	}
	authority, err := os.ReadFile(filepath.Join(s.place.tls, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	return client.Dialer{TLS: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}.Dial(ctx, uri)
}

// makeCertificates makes an authority and the certificate of a server at
// 127.0.0.1, once, by the names that QEMU, nbdkit and libnbd look for.
func makeCertificates(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	authority := certificate(1, "authority")
	authority.IsCA, authority.BasicConstraintsValid, authority.KeyUsage = true, true, x509.KeyUsageCertSign
	key, err := issue(dir, "ca", authority, authority, nil)
	if err != nil {
		return fmt.Errorf("make an authority: %w", err)
	}
	server := certificate(2, "server")
	server.IPAddresses, server.KeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, x509.KeyUsageDigitalSignature
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if _, err := issue(dir, "server", server, authority, key); err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	return nil
}

func certificate(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

// issue writes a certificate and its key, signed by the key of its parent, or by
// its own if that is nil.
func issue(dir, name string, c, parent *x509.Certificate, by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	write := func(file, kind string, der []byte) error {
		return os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	return key, errors.Join(write(name+"-cert.pem", "CERTIFICATE", der), write(name+"-key.pem", "PRIVATE KEY", private))
}

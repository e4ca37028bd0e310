package access

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Names returns the names of a certificate that the access list knows it by: its
// common name and its DNS names.
func Names(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	if cn := c.Subject.CommonName; cn != "" && !slices.Contains(names, cn) {
		names = append([]string{cn}, names...)
	}
	return names
}

// ClientTLS returns the configuration of a client that trusts the authorities in
// caFile (empty: those of the system), and shows a certificate if certFile is
// not empty. Errors name the file and what is wrong with it.
func ClientTLS(caFile, certFile, keyFile string, now time.Time) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pool, err := loadAuthorities(caFile, now)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	if certFile != "" {
		pair, err := loadPair(certFile, keyFile, x509.ExtKeyUsageClientAuth, now)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// loadPair reads a certificate with its chain, and its key, and refuses what a
// peer would refuse: out of date, of another use, a key of another certificate.
func loadPair(certFile, keyFile string, use x509.ExtKeyUsage, now time.Time) (pair tls.Certificate, err error) {
	chain, err := readCertificates(certFile)
	if err != nil {
		return pair, err
	}
	leaf := chain[0]
	if err := current(leaf, now); err != nil {
		return pair, fmt.Errorf("certificate %s: %w", certFile, err)
	}
	if !allows(leaf, use) {
		return pair, fmt.Errorf("certificate %s: its extended key usage does not allow it for a %s", certFile, role(use))
	}
	key, err := readKey(keyFile)
	if err != nil {
		return pair, err
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		return pair, fmt.Errorf("key %s does not belong to certificate %s: is it another's, or did only one of the two change?", keyFile, certFile)
	}
	pair = tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}

// loadAuthorities reads certificates of authorities, of which one at least must
// be current.
func loadAuthorities(file string, now time.Time) (*x509.CertPool, error) {
	list, err := readCertificates(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	var outdated error
	for _, c := range list {
		// Without the extension (version 1, or a leaf that is trusted by itself)
		// nothing is said of it.
		if c.BasicConstraintsValid && !c.IsCA {
			return nil, fmt.Errorf("certificate %s: %q is no authority; give the certificate of the one that signs", file, c.Subject.CommonName)
		}
		if e := current(c, now); e != nil {
			outdated = e
			continue
		}
		pool.AddCert(c)
	}
	if pool.Equal(x509.NewCertPool()) {
		return nil, fmt.Errorf("certificate %s: %w", file, outdated)
	}
	return pool, nil
}

// readCertificates reads all certificates of a PEM file, one at least.
func readCertificates(file string) (list []*x509.Certificate, err error) {
	text, err := read("certificate", file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %s: %w", file, err)
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("certificate %s: there is no certificate in it; a PEM file with BEGIN CERTIFICATE is needed", file)
	}
	return list, nil
}

// readKey reads the first private key of a PEM file. Nothing of the file goes
// into an error.
func readKey(file string) (crypto.Signer, error) {
	if err := private("key", file); err != nil {
		return nil, err
	}
	text, err := read("key", file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var (
			key any
			err error
		)
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, fmt.Errorf("key %s is encrypted; the server asks for no password, give it a key without one", file)
		default:
			continue // as EC PARAMETERS
		}
		if signer, ok := key.(crypto.Signer); ok && err == nil {
			return signer, nil
		}
		return nil, fmt.Errorf("key %s can't be read as a private key: PKCS #8, SEC 1 or PKCS #1 in PEM is needed", file)
	}
	return nil, fmt.Errorf("key %s: there is no private key in it; a PEM file with BEGIN PRIVATE KEY is needed", file)
}

// current says why a certificate is not valid now, or nil.
func current(c *x509.Certificate, now time.Time) error {
	const day = "2006-01-02 15:04 MST"
	switch {
	case now.Before(c.NotBefore):
		return fmt.Errorf("it is not valid yet: it begins on %s", c.NotBefore.UTC().Format(day))
	case now.After(c.NotAfter):
		return fmt.Errorf("it has expired on %s", c.NotAfter.UTC().Format(day))
	}
	return nil
}

// allows tells whether the extended key usage, if there is one, has a use.
func allows(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	none := len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0
	return none || slices.Contains(c.ExtKeyUsage, use) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func role(use x509.ExtKeyUsage) string {
	if use == x509.ExtKeyUsageServerAuth {
		return "server"
	}
	return "client"
}

// ReadSecret reads a file that nobody but its owner and group may read. what
// names its contents in errors.
func ReadSecret(what, file string) ([]byte, error) {
	if err := private(what, file); err != nil {
		return nil, err
	}
	return read(what, file)
}

// private refuses a file that every user of the machine may read.
func private(what, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return unreadable(what, file, err)
	}
	if mode := info.Mode().Perm(); info.Mode().IsRegular() && mode&0o007 != 0 {
		return fmt.Errorf("%s %s is open to every user of this machine (mode %04o); chmod 600 it", what, file, mode)
	}
	return nil
}

// maxFileBytes is more than any of the files that this package reads can need.
const maxFileBytes = 16 << 20

func read(what, file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err == nil && info.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s %s has %d bytes: that is no such file", what, file, info.Size())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, unreadable(what, file, err)
	}
	return text, nil
}

// unreadable says once what the system's error says twice.
func unreadable(what, file string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return fmt.Errorf("%s %s: %w", what, file, err)
}

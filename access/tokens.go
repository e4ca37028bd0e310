package access

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/tidemark/tidemark/internal/lazy"
)

// tokenPrefix lets people and scanners of leaked secrets recognize a token.
const tokenPrefix = "tidemark_"

var (
	// tokenForm: 26 characters of base32 are 130 random bits.
	tokenForm     = lazy.Regexp(`^` + tokenPrefix + `[A-Z2-7]{26}$`)
	tokenNameForm = lazy.Regexp(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	hashForm      = lazy.Regexp(`^sha256:[0-9a-f]{64}$`)
)

// NewToken makes a token of 130 random bits, and the line that stands for it in
// a file of tokens. The line does not give the token away.
func NewToken(name string) (token, line string, err error) {
	if !tokenNameForm().MatchString(name) {
		return "", "", fmt.Errorf("token name %q: allowed are 1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit", name)
	}
	token = tokenPrefix + rand.Text()
	hash := sha256.Sum256([]byte(token))
	return token, name + " sha256:" + hex.EncodeToString(hash[:]), nil
}

// ParseToken takes a token out of the text of a file or a variable. Errors say
// nothing of the text: it may be a secret of another kind.
func ParseToken(text []byte) (string, error) {
	token := string(bytes.TrimSpace(text))
	switch {
	case tokenForm().MatchString(token):
		return token, nil
	case bytes.Contains(text, []byte(" sha256:")):
		return "", errors.New("it has the line for the server, not the token itself")
	}
	return "", errors.New("it is no token; tidemark token new NAME makes one")
}

// Tokens is what the server knows of the tokens that it accepts: names, and
// SHA-256 hashes. A plain hash is enough: there is nothing to guess about 130
// random bits, as there is about a password. It does not change.
//
// Written one a line, as NAME sha256:HEX; empty lines and those that begin with
// # count for nothing. Two lines of one name are two tokens: the old one and the
// new one, while both are in use.
type Tokens struct {
	all []knownToken
}

type knownToken struct {
	name string
	hash [sha256.Size]byte
}

// ParseTokens reads a file of tokens. Errors name the line, but never say what
// stands there: it may be a token by mistake.
func ParseTokens(text []byte) (*Tokens, error) {
	t := &Tokens{}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if len(words) == 1 && tokenForm().MatchString(words[0]) {
			return nil, fmt.Errorf("line %d: a token itself stands here; only its hash belongs on the server, as tidemark token new prints it", number)
		}
		if len(words) != 2 || !tokenNameForm().MatchString(words[0]) || !hashForm().MatchString(words[1]) {
			return nil, fmt.Errorf("line %d: write NAME sha256:HEX, as tidemark token new prints it", number)
		}
		k := knownToken{name: words[0]}
		if _, err := hex.Decode(k.hash[:], []byte(strings.TrimPrefix(words[1], "sha256:"))); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		t.all = append(t.all, k)
	}
	if len(t.all) == 0 {
		return nil, errors.New("it has no token; tidemark token new NAME prints a line for it")
	}
	return t, nil
}

// Name returns the name of a token that is known. It takes as long for any
// token of one length.
func (t *Tokens) Name(token string) (name string, known bool) {
	if t == nil {
		return "", false
	}
	hash := sha256.Sum256([]byte(token))
	for _, k := range t.all {
		if subtle.ConstantTimeCompare(hash[:], k.hash[:]) == 1 {
			name, known = k.name, true
		}
	}
	return name, known
}

package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// List is an access list: grants to names. Whoever it does not name may do
// nothing. A nil List gives everybody everything. It does not change.
//
// Written as YAML:
//
//	certificates:                 # by CN or DNS name of the client's certificate
//	  web1.example:
//	    - exports: [web, "web-*"]
//	      rights: [read, write]
//	tokens:                       # by name of the token, on the API
//	  nightly:
//	    - exports: ["*"]
//	      rights: [read, preserve]
//	local:                        # clients of an NBD unix socket without a certificate
//	  - exports: ["db@*"]
//	    rights: [read]
//
// A pattern is a glob (* ? [a-z], as in path.Match). Without an @ it stands for
// volumes, and its read right covers all their snapshots; with one, as "db@*",
// it stands for snapshots alone, which can only be read. All grants that fit add
// up, those to each name of one certificate too.
type List struct {
	certificates map[string][]grant
	tokens       map[string][]grant
	local        []grant
}

// grant gives rights on the exports that match one of the patterns.
type grant struct {
	exports []string
	rights  Rights
}

// Rights returns what the client may do with an export: "VOLUME" or
// "VOLUME@SNAPSHOT".
func (l *List) Rights(c Client, export string) Rights {
	if l == nil {
		return All
	}
	var sum Rights
	for _, g := range l.grants(c) {
		sum |= g.on(export)
	}
	return sum
}

// Names tells whether the list has any grant to the client.
func (l *List) Names(c Client) bool { return l == nil || len(l.grants(c)) > 0 }

func (l *List) grants(c Client) (all []grant) {
	if c.Token != "" {
		all = append(all, l.tokens[c.Token]...)
	}
	for _, name := range c.Certificate {
		all = append(all, l.certificates[name]...)
	}
	if c.Local && !c.Proved() {
		all = append(all, l.local...)
	}
	return all
}

// on returns what the grant gives on an export.
func (g grant) on(export string) Rights {
	volume, _, isSnapshot := strings.Cut(export, "@")
	for _, pattern := range g.exports {
		name := volume
		if strings.Contains(pattern, "@") {
			name = export
		}
		// Patterns were tried when the list was read.
		if fits, _ := path.Match(pattern, name); fits {
			if isSnapshot {
				return g.rights & Read
			}
			return g.rights
		}
	}
	return 0
}

// ParseList reads an access list. Errors are one line with the number of the
// line that is wrong and what is allowed there.
func ParseList(text []byte) (*List, error) {
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it is empty, so nobody could do anything; give it certificates, tokens or local")
	case err != nil:
		return nil, oneLine(err)
	case len(document.Content) == 0:
		return nil, errors.New("it is empty")
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document; write one")
	}
	l := &List{}
	err := fields(document.Content[0], map[string]func(*yaml.Node) error{
		"certificates": func(n *yaml.Node) (err error) { l.certificates, err = named(n); return err },
		"tokens":       func(n *yaml.Node) (err error) { l.tokens, err = named(n); return err },
		"local":        func(n *yaml.Node) (err error) { l.local, err = grants(n); return err },
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// oneLine makes the YAML library's error one of this package.
func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " "))
}

// fields hands each field of a mapping to the reader of its name.
func fields(n *yaml.Node, readers map[string]func(*yaml.Node) error) error {
	var allowed []string
	for name := range readers {
		allowed = append(allowed, name)
	}
	slices.Sort(allowed)
	return entries(n, "the fields "+strings.Join(allowed, ", "), func(name string, key, value *yaml.Node) error {
		read := readers[name]
		if read == nil {
			return at(key, "unknown field %q; allowed are %s", name, strings.Join(allowed, ", "))
		}
		return read(value)
	})
}

// named reads grants by name.
func named(n *yaml.Node) (map[string][]grant, error) {
	all := map[string][]grant{}
	err := entries(n, "names, each with its grants", func(name string, key, value *yaml.Node) (err error) {
		if name == "" {
			return at(key, "the name is empty")
		}
		all[name], err = grants(value)
		return err
	})
	return all, err
}

// entries yields what a mapping holds, each name once.
func entries(n *yaml.Node, wanted string, yield func(name string, key, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return at(n, "%s belong here", wanted)
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return at(key, "%s belong here", wanted)
		}
		if seen[key.Value] {
			return at(key, "%q stands there twice", key.Value)
		}
		seen[key.Value] = true
		if err := yield(key.Value, key, value); err != nil {
			return err
		}
	}
	return nil
}

func grants(n *yaml.Node) (all []grant, err error) {
	if n.Kind != yaml.SequenceNode {
		return nil, at(n, "a list of grants belongs here, each with exports and rights")
	}
	for _, item := range n.Content {
		var g grant
		err := fields(item, map[string]func(*yaml.Node) error{
			"exports": func(n *yaml.Node) error { return each(n, "patterns", g.addPattern) },
			"rights":  func(n *yaml.Node) error { return each(n, "rights", g.addRight) },
		})
		if err != nil {
			return nil, err
		}
		if len(g.exports) == 0 || g.rights == 0 {
			return nil, at(item, "a grant needs exports and rights, with one of each at least")
		}
		if err := g.check(item); err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

// each reads a list of words.
func each(n *yaml.Node, what string, read func(*yaml.Node) error) error {
	if n.Kind != yaml.SequenceNode {
		return at(n, "a list of %s belongs here, as [a, b]", what)
	}
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode {
			return at(item, "a list of %s belongs here, as [a, b]", what)
		}
		if err := read(item); err != nil {
			return err
		}
	}
	return nil
}

func (g *grant) addPattern(n *yaml.Node) error {
	pattern := n.Value
	if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
		return at(n, "%q is no pattern; write a name with * ? or [a-z] in it", pattern)
	}
	if strings.ContainsAny(pattern, ":/") || strings.Count(pattern, "@") > 1 {
		return at(n, "pattern %q fits nothing; allowed are patterns of VOLUME and VOLUME@SNAPSHOT", pattern)
	}
	g.exports = append(g.exports, pattern)
	return nil
}

func (g *grant) addRight(n *yaml.Node) error {
	var allowed []string
	for _, w := range words {
		if w.word == n.Value {
			g.rights |= w.right
			if w.right == Write {
				g.rights |= Read
			}
			return nil
		}
		allowed = append(allowed, w.word)
	}
	return at(n, "unknown right %q; allowed are %s", n.Value, strings.Join(allowed, ", "))
}

// check refuses what a snapshot can't give.
func (g *grant) check(n *yaml.Node) error {
	for _, pattern := range g.exports {
		if strings.Contains(pattern, "@") && g.rights != Read {
			return at(n, "pattern %q stands for snapshots, and these can only be read", pattern)
		}
	}
	return nil
}

func at(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %s", n.Line, fmt.Sprintf(format, args...))
}

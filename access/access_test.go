package access

import (
	"strings"
	"testing"
)

const example = `
# Who may do what.
certificates:
  web1.example:
    - exports: [web, "web-*"]
      rights: [read, write]
    - exports: ["db@nightly-*"]
      rights: [read]
  backup:
    - exports: ["*"]
      rights: [preserve]
tokens:
  nightly:
    - exports: ["*"]
      rights: [read, preserve]
local:
  - exports: ["scratch"]
    rights: [write, admin]
`

func parse(t *testing.T, text string) *List {
	t.Helper()
	l, err := ParseList([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAListGivesWhatItSaysAndNothingElse(t *testing.T) {
	l := parse(t, example)
	web := Client{Certificate: []string{"web1.example"}}
	both := Client{Certificate: []string{"backup", "web1.example"}}
	token := Client{Token: "nightly"}
	for _, test := range []struct {
		who    Client
		export string
		want   Rights
	}{
		{web, "web", Read | Write},
		{web, "web-2", Read | Write},
		{web, "web@a", Read}, // a pattern of volumes covers their snapshots
		{web, "webb", 0},
		{web, "db", 0},
		{web, "db@nightly-1", Read},
		{web, "db@weekly", 0},
		{both, "web", Read | Write | Preserve}, // grants add up
		{both, "db", Preserve},
		{token, "db", Read | Preserve},
		{token, "db@a", Read},
		{Client{Token: "backup"}, "db", 0}, // a token is no certificate of that name
		{Client{Certificate: []string{"nightly"}}, "db", 0},
		{Client{Certificate: []string{"Web1.example"}}, "web", 0},
		{Client{Local: true}, "scratch", Read | Write | Admin},
		{Client{Local: true}, "web", 0},
		{Client{Local: true, Certificate: []string{"other"}}, "scratch", 0}, // who shows a name is taken by it
		{Client{}, "scratch", 0},
	} {
		if got := l.Rights(test.who, test.export); got != test.want {
			t.Errorf("%s on %s: %q, want %q", test.who, test.export, got, test.want)
		}
	}
	if l.Names(Client{}) || l.Names(Client{Certificate: []string{"other"}}) || !l.Names(web) || !l.Names(token) {
		t.Error("the list names others than it does")
	}
	if (*List)(nil).Rights(Client{}, "db") != All || !(*List)(nil).Names(Client{}) {
		t.Error("no list does not give everything")
	}
}

func TestAListThatIsWrongSaysWhereAndWhatIsAllowed(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "it is empty, so nobody could do anything; give it certificates, tokens or local"},
		{"# nothing\n", "it is empty, so nobody could do anything; give it certificates, tokens or local"},
		{"- a\n", "line 1: the fields certificates, local, tokens belong here"},
		{"clients: {}\n", `line 1: unknown field "clients"; allowed are certificates, local, tokens`},
		{"tokens:\n  a:\n    - export: [b]\n", `line 3: unknown field "export"; allowed are exports, rights`},
		{"tokens:\n  a:\n    - exports: [b]\n      rights: [reed]\n", `line 4: unknown right "reed"; allowed are read, write, preserve, admin`},
		{"tokens:\n  a:\n    - exports: [b]\n", "line 3: a grant needs exports and rights, with one of each at least"},
		{"tokens:\n  a:\n    - exports: []\n      rights: [read]\n", "line 3: a grant needs exports and rights, with one of each at least"},
		{"tokens:\n  a:\n    - exports: b\n      rights: [read]\n", "line 3: a list of patterns belongs here, as [a, b]"},
		{"tokens:\n  a:\n    exports: [b]\n", "line 3: a list of grants belongs here, each with exports and rights"},
		{"tokens:\n  a: []\n  a: []\n", `line 3: "a" stands there twice`},
		{"local:\n  - exports: ['[']\n    rights: [read]\n", `line 2: "[" is no pattern; write a name with * ? or [a-z] in it`},
		{"local:\n  - exports: ['db:session']\n    rights: [read]\n", `line 2: pattern "db:session" fits nothing; allowed are patterns of VOLUME and VOLUME@SNAPSHOT`},
		{"local:\n  - exports: ['db@*']\n    rights: [write]\n", `line 2: pattern "db@*" stands for snapshots, and these can only be read`},
		{"local: &a []\ntokens: *a\n", "line 2: names, each with its grants belong here"},
		{"local: [\n", "line 1: did not find expected node content"},
		{"local: []\n---\nlocal: []\n", "it has more than one document; write one"},
	} {
		if _, err := ParseList([]byte(test.text)); err == nil || err.Error() != test.want {
			t.Errorf("%q:\ngot  %v\nwant %s", test.text, err, test.want)
		}
	}
}

func FuzzList(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("local: [\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := ParseList(text); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("an error of several lines: %q", err)
		}
	})
}

func TestATokenIsKnownByItsHashAlone(t *testing.T) {
	first, line, err := NewToken("nightly")
	if err != nil {
		t.Fatal(err)
	}
	second, other, err := NewToken("laptop")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(line, first) || strings.Contains(line, first[len(tokenPrefix):]) {
		t.Error("the line gives the token away")
	}
	tokens, err := ParseTokens([]byte("# tokens\n\n" + line + "\n  " + other + "  \n"))
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]string{first: "nightly", second: "laptop", "": "", first + "A": "", strings.ToLower(first): ""} {
		if name, known := tokens.Name(token); name != want || known != (want != "") {
			t.Errorf("%q is %q, want %q", token, name, want)
		}
	}
	if got, err := ParseToken([]byte(" " + first + "\r\n")); err != nil || got != first {
		t.Errorf("%q (%v)", got, err)
	}
	if _, _, err := NewToken("a b"); err == nil {
		t.Error("a name with a space")
	}
}

// A secret that stands in the wrong file or place must not get into a log.
func TestErrorsOfTokensSayNothingOfThem(t *testing.T) {
	token, line, err := NewToken("a")
	if err != nil {
		t.Fatal(err)
	}
	hash := line[len("a sha256:"):]
	for _, text := range []string{token, "a " + token, "a sha256:" + hash[1:], "a\tmd5:" + hash, line + " x"} {
		if _, err := ParseTokens([]byte(text)); err == nil || strings.Contains(err.Error(), hash[1:]) || strings.Contains(err.Error(), token) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"", "x" + token, token + token, line, "-----BEGIN PRIVATE KEY-----"} {
		if _, err := ParseToken([]byte(text)); err == nil || strings.Contains(err.Error(), token) || strings.Contains(err.Error(), hash) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzTokens(f *testing.F) {
	f.Add([]byte("a sha256:"+strings.Repeat("0", 64)), "x")
	f.Fuzz(func(t *testing.T, text []byte, token string) {
		tokens, err := ParseTokens(text)
		if err != nil {
			return
		}
		if name, known := tokens.Name(token); known {
			t.Errorf("%q is taken for the token %s", token, name)
		}
	})
}

package challenge_test

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/peer/challenge"
)

func TestChallengesAreParsed(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  challenge.Challenge
		ok    bool
	}{
		{lines: []string{`Bearer realm="https://auth.example.com/token",service="reg",scope="repository:a/b:pull,push"`}, ok: true,
			want: challenge.Challenge{Scheme: "bearer", Parameters: map[string]string{"realm": "https://auth.example.com/token", "service": "reg", "scope": "repository:a/b:pull,push"}}},
		{lines: []string{`BASIC realm=x`}, ok: true, want: challenge.Challenge{Scheme: "basic", Parameters: map[string]string{"realm": "x"}}},
		{lines: []string{`Negotiate`, `Basic Realm="a \"quoted\" one", charset=utf-8`}, ok: true,
			want: challenge.Challenge{Scheme: "basic", Parameters: map[string]string{"realm": `a "quoted" one`, "charset": "utf-8"}}},
		{lines: []string{`Bearer realm="never closed`}, ok: true, want: challenge.Challenge{Scheme: "bearer", Parameters: map[string]string{}}},
		{lines: []string{`Bearer`}, ok: true, want: challenge.Challenge{Scheme: "bearer", Parameters: map[string]string{}}},
		{lines: []string{"Digest x=y", ""}},
		{},
	} {
		resp := &http.Response{Header: http.Header{"Www-Authenticate": c.lines}, Request: &http.Request{URL: &url.URL{Scheme: "https"}}}
		got, ok := challenge.Parse(resp)
		if diff := cmp.Diff(c.want, got); ok != c.ok || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", c.lines, ok, diff)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="a",b=c`)
	f.Add(`Basic a="\`)
	f.Fuzz(func(_ *testing.T, line string) {
		resp := &http.Response{Header: http.Header{"Www-Authenticate": {line}}, Request: &http.Request{URL: &url.URL{Scheme: "https"}}}
		challenge.Parse(resp) // must end, and not panic
	})
}

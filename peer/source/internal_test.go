package source

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestChallengesAreParsed(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  challenge
		ok    bool
	}{
		{lines: []string{`Bearer realm="https://auth.example.com/token",service="reg",scope="repository:a/b:pull,push"`}, ok: true,
			want: challenge{scheme: "bearer", parameters: map[string]string{"realm": "https://auth.example.com/token", "service": "reg", "scope": "repository:a/b:pull,push"}}},
		{lines: []string{`BASIC realm=x`}, ok: true, want: challenge{scheme: "basic", parameters: map[string]string{"realm": "x"}}},
		{lines: []string{`Negotiate`, `Basic Realm="a \"quoted\" one", charset=utf-8`}, ok: true,
			want: challenge{scheme: "basic", parameters: map[string]string{"realm": `a "quoted" one`, "charset": "utf-8"}}},
		{lines: []string{`Bearer realm="never closed`}, ok: true, want: challenge{scheme: "bearer", parameters: map[string]string{}}},
		{lines: []string{`Bearer`}, ok: true, want: challenge{scheme: "bearer", parameters: map[string]string{}}},
		{lines: []string{"Digest x=y", ""}},
		{},
	} {
		resp := &http.Response{Header: http.Header{"Www-Authenticate": c.lines}, Request: &http.Request{URL: &url.URL{Scheme: "https"}}}
		got, ok := parseChallenge(resp)
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(challenge{})); ok != c.ok || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", c.lines, ok, diff)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="a",b=c`)
	f.Add(`Basic a="\`)
	f.Fuzz(func(t *testing.T, line string) {
		resp := &http.Response{Header: http.Header{"Www-Authenticate": {line}}, Request: &http.Request{URL: &url.URL{Scheme: "https"}}}
		parseChallenge(resp) // must end, and not panic
	})
}

func TestRetryAfterIsParsedAndBounded(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "99999999": maxRetryAfter, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got := parseRetryAfter(value, now); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

package upstream_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

// tokenRegistry wants a token of its own server for everything; everybody gets one that opens the repository public alone.
type tokenRegistry struct {
	url       string
	exchanges atomic.Int64
	refuses   atomic.Bool // the token server
	revoked   atomic.Int64
}

func newTokenRegistry(t *testing.T) *tokenRegistry {
	t.Helper()
	r := &tokenRegistry{}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

func (r *tokenRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.URL.Path == "/token" && r.refuses.Load():
		w.WriteHeader(http.StatusForbidden)
	case req.URL.Path == "/token":
		fmt.Fprintf(w, `{"token":"for %s %d","expires_in":300}`, req.URL.Query().Get("scope"), r.exchanges.Add(1))
	case req.Header.Get("Authorization") == fmt.Sprintf("Bearer for repository:public:pull %d", r.revoked.Load()+1):
		_, _ = w.Write(manifest)
	case req.Header.Get("Authorization") == "Basic owner":
		_, _ = w.Write(manifest)
	default:
		repository, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.url+`/token",service="s",scope="repository:`+repository+`:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// get asks for a manifest of a repository through the client.
func (r *tokenRegistry) get(t *testing.T, c *upstream.Client, repository, authorization string) *upstream.Response {
	t.Helper()
	header := http.Header{}
	if authorization != "" {
		header.Set("Authorization", authorization)
	}
	host := strings.TrimPrefix(r.url, "http://")
	got, err := c.Manifest(t.Context(), upstream.Ref{Registry: host, Repository: repository, Reference: digest.FromBytes(manifest).String()}, http.MethodGet, header)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (r *tokenRegistry) client(t *testing.T) *upstream.Client {
	t.Helper()
	base, err := url.Parse(r.url)
	if err != nil {
		t.Fatal(err)
	}
	c, err := upstream.New(upstream.Config{Resolve: func(string) (*url.URL, *http.Client) { return base, &http.Client{} }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWhatIsPublicNeedsNoTokenOfTheCallers(t *testing.T) {
	r := newTokenRegistry(t)
	c := r.client(t)
	for range 3 {
		if got := r.get(t, c, "public", ""); got.Status != http.StatusOK {
			t.Fatalf("status %d, want 200", got.Status)
		}
	}
	if n := r.exchanges.Load(); n != 1 {
		t.Errorf("%d tokens were fetched, want one", n)
	}
	r.revoked.Add(1)
	if got := r.get(t, c, "public", ""); got.Status != http.StatusOK || r.exchanges.Load() != 2 {
		t.Errorf("after the token was revoked: status %d, %d exchanges; want 200 with a new token", got.Status, r.exchanges.Load())
	}
}

func TestATokenForEverybodyOpensNothingPrivate(t *testing.T) {
	r := newTokenRegistry(t)
	c := r.client(t)
	for range 3 {
		got := r.get(t, c, "private", "")
		if got.Status != http.StatusUnauthorized || !strings.Contains(got.Header.Get("WWW-Authenticate"), "repository:private:pull") {
			t.Fatalf("status %d, header %v; want 401 with the registry's challenge", got.Status, got.Header)
		}
	}
	if n := r.exchanges.Load(); n != 1 {
		t.Errorf("%d tokens were fetched, want one: that it is private is known", n)
	}
	if got := r.get(t, c, "private", "Basic owner"); got.Status != http.StatusOK {
		t.Errorf("the owner: status %d, want 200", got.Status)
	}
	if got := r.get(t, c, "public", "Basic stranger"); got.Status != http.StatusUnauthorized {
		t.Errorf("wrong credentials: status %d, want 401 as the registry says", got.Status)
	}
}

func TestATokenServerThatRefusesLeavesTheChallenge(t *testing.T) {
	r := newTokenRegistry(t)
	r.refuses.Store(true)
	if got := r.get(t, r.client(t), "public", ""); got.Status != http.StatusUnauthorized || got.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("status %d, header %v; want 401 with the registry's challenge", got.Status, got.Header)
	}
}

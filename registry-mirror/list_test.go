package mirror

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

// listing returns how to ask a mirror of an origin.
func listing(t *testing.T, origin http.HandlerFunc) func(path string, header ...string) answer {
	t.Helper()
	web := httptest.NewServer(origin)
	t.Cleanup(web.Close)
	base, err := url.Parse(web.URL + "/prefix")
	if err != nil {
		t.Fatal(err)
	}
	up, err := upstream.New(upstream.Config{Resolve: func(string) (*url.URL, *http.Client) { return base, web.Client() }})
	if err != nil {
		t.Fatal(err)
	}
	mirror := httptest.NewServer(New(Config{}, openRecords(t), up, nil, nil))
	t.Cleanup(mirror.Close)
	return func(path string, header ...string) answer {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, mirror.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := mirror.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return answer{resp.StatusCode, resp.Header, body, err}
	}
}

func TestTagsAreThoseOfTheOrigin(t *testing.T) {
	get := listing(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/prefix/v2/a/b/tags/list" || r.URL.RawQuery != "last=v1&n=2&next_page=TOKEN" || r.Header.Get("Authorization") != "Basic x" {
			http.Error(w, r.URL.String(), http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Link", `</prefix/v2/a/b/tags/list?last=v3&n=2>; rel="next"`)
		_, _ = io.WriteString(w, `{"name":"a/b","tags":["v2","v3"]}`)
	})
	got := get("/v2/a/b/tags/list?ns=origin:5000&n=2&last=v1&next_page=TOKEN", "Authorization", "Basic x")
	if got.status != 200 || string(got.body) != `{"name":"a/b","tags":["v2","v3"]}` || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %v %s", got.status, got.header, got.body)
	}
	if got, want := got.header.Get("Link"), `</v2/a/b/tags/list?last=v3&n=2&ns=origin%3A5000>; rel="next"`; got != want {
		t.Errorf("link %s, want %s", got, want)
	}
}

func TestReferrersAreThoseOfTheOrigin(t *testing.T) {
	subject := digest.FromString("subject")
	get := listing(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/prefix/v2/a/b/referrers/"+subject.String() || r.URL.Query().Get("artifactType") != "sbom/x" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		_, _ = io.WriteString(w, `{}`)
	})
	got := get("/v2/a/b/referrers/" + subject.String() + "?ns=o&artifactType=sbom/x")
	if got.status != 200 || got.header.Get("OCI-Filters-Applied") != "artifactType" ||
		got.header.Get("Content-Type") != "application/vnd.oci.image.index.v1+json" {
		t.Errorf("%d %v", got.status, got.header)
	}
}

func TestListsThatCannotBeHadAreRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		status int
		code   string
	}{
		{"unknown", http.NotFound, 404, "NAME_UNKNOWN"},
		{"who are you", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="o"`)
			w.WriteHeader(401)
		}, 401, "UNAUTHORIZED"},
		{"busy", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, 503, "UNAVAILABLE"},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for range upstream.MaxManifest>>10 + 1 {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<10)); err != nil {
					return
				}
			}
		}, 503, "UNAVAILABLE"},
		{"a redirect to itself", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
		}, 503, "UNAVAILABLE"},
		{"a lie about the length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "{}")
		}, 503, "UNAVAILABLE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := listing(t, test.answer)("/v2/a/b/tags/list?ns=o")
			var body struct{ Errors []struct{ Code string } }
			if err := json.Unmarshal(got.body, &body); err != nil || len(body.Errors) != 1 {
				t.Fatalf("%d: no error of the specification: %v", got.status, err)
			}
			if got.status != test.status || body.Errors[0].Code != test.code {
				t.Errorf("%d %s, want %d %s", got.status, body.Errors[0].Code, test.status, test.code)
			}
			if test.status == 401 && got.header.Get("WWW-Authenticate") == "" {
				t.Error("the challenge is lost")
			}
		})
	}
}

func TestManifestThatTheCallerHasIsNotSentAgain(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	etag := f.get("/v2/a/b/manifests/v1").header.Get("ETag")
	for header, want := range map[string]int{etag: 304, `W/"x", ` + etag: 304, "*": 304, `"x"`: 200, "": 200} {
		if got := f.get("/v2/a/b/manifests/v1", "If-None-Match", header); got.status != want || (want == 304) != (len(got.body) == 0) {
			t.Errorf("If-None-Match %s: %d with %d bytes, want %d", header, got.status, len(got.body), want)
		}
	}
}

func TestRangesOfOnePartAreHonoured(t *testing.T) {
	for header, want := range map[string][3]int64{ // offset, length, partial
		"bytes=0-9": {0, 10, 1}, "bytes= 5-9 , ": {5, 5, 1}, "bytes=,,-3": {97, 3, 1}, "bytes=90-": {90, 10, 1}, "bytes=0-": {0, 100, 0},
		"bytes=0-1,5-6": {0, 100, 0}, "bytes=,": {0, 100, 0}, "bytes=": {0, 100, 0}, "lines=0-1": {0, 100, 0},
	} {
		off, length, partial, err := parseRange(header, 100)
		if err != nil || off != want[0] || length != want[1] || partial != (want[2] == 1) {
			t.Errorf("%s: %d+%d, partial %v, error %v; want %v", header, off, length, partial, err, want)
		}
	}
	for _, header := range []string{"bytes=9-1", "bytes=100-", "bytes=-0"} {
		if _, _, _, err := parseRange(header, 100); !errors.Is(err, errRange) {
			t.Errorf("%s: error %v", header, err)
		}
	}
}

// TestNameBeginsWithARegistryOnlyIfItIsKnown has a default registry, whose repositories may begin with what looks like a host.
func TestNameBeginsWithARegistryOnlyIfItIsKnown(t *testing.T) {
	for _, c := range []struct {
		cfg                   Config
		path, registry, image string
	}{
		{Config{}, "team.dev/app", "team.dev", "app"},
		{Config{}, "localhost/app", "localhost", "app"},
		{Config{DefaultRegistry: "hub.example"}, "team.dev/app", "hub.example", "team.dev/app"},
		{Config{DefaultRegistry: "hub.example"}, "hub.example/a/b", "hub.example", "a/b"},
		{Config{DefaultRegistry: "hub.example", Registries: []string{"team.dev"}}, "team.dev/app", "team.dev", "app"},
		{Config{DefaultRegistry: "hub.example"}, "library/app", "hub.example", "library/app"},
	} {
		h := &Handler{cfg: c.cfg}
		req, err := h.parse(&http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/v2/" + c.path + "/manifests/v1"}})
		if err != nil || req.Registry != c.registry || req.Repository != c.image {
			t.Errorf("%s with default %q: %s %s, %v", c.path, c.cfg.DefaultRegistry, req.Registry, req.Repository, err)
		}
	}
}

package mirror

import (
	"net/http"
	"strings"
	"testing"
)

func TestNamesThatNoRegistryCouldHaveAreNotAsked(t *testing.T) {
	f := newFixture(t, Config{}, nil)
	before := f.origin.asked.Load()
	for path, code := range map[string]string{
		"/v2/%2e%2e/%2e%2e/manifests/v1":                      "NAME_INVALID",
		"/v2/a%2f..%2fb/manifests/v1":                         "NAME_INVALID",
		"/v2/A/manifests/v1":                                  "NAME_INVALID",
		"/v2/a%00b/blobs/" + f.blob.String():                  "NAME_INVALID",
		"/v2/-a/tags/list":                                    "NAME_INVALID",
		"/v2/a//b/manifests/v1":                               "NAME_INVALID",
		"/v2/" + strings.Repeat("a/", 200) + "a/manifests/v1": "NAME_INVALID",
		"/v2/a/manifests/..":                                  "MANIFEST_UNKNOWN",
		"/v2/a/manifests/%00":                                 "MANIFEST_UNKNOWN",
		"/v2/a/manifests/" + strings.Repeat("v", 129):         "MANIFEST_UNKNOWN",
		"/v2/a/manifests/sha256:beef":                         "DIGEST_INVALID",
		"/v2/a/blobs/v1":                                      "DIGEST_INVALID",
		"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e":    "DIGEST_INVALID",
		"/v2/a/referrers/" + strings.ToUpper(f.blob.String()): "DIGEST_INVALID",
	} {
		got := f.get(path)
		if got.status != http.StatusNotFound || !strings.Contains(string(got.body), `"`+code+`"`) {
			t.Errorf("%s: %d %.200s, want 404 with %s", path, got.status, got.body, code)
		}
	}
	for _, registry := range []string{"a:1:2", "[::1", "%00", "a%0d%0ab", ":5000", "a%2fb", "u%40a"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.mirror.URL+"/v2/a/manifests/v1?ns="+registry, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := f.mirror.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("registry %s: %d", registry, resp.StatusCode)
		}
	}
	if asked := f.origin.asked.Load() - before; asked != 0 {
		t.Errorf("the origin was asked %d times", asked)
	}
	for _, path := range []string{"/v2/a.b_c--d/0/e__f/manifests/_V.1-x", "/v2/library/a/manifests/" + strings.Repeat("v", 128)} {
		if got := f.get(path); strings.Contains(string(got.body), "INVALID") {
			t.Errorf("%s: %.200s", path, got.body)
		}
	}
}

package mirror

import (
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestTagIsKeptForThoseWhoAcceptTheSame has the origin answer who accepts no index with the manifest of its choice, as docker-registry does.
func TestTagIsKeptForThoseWhoAcceptTheSame(t *testing.T) {
	f := newFixture(t, Config{TagTTL: time.Hour, VerdictTTL: time.Hour}, nil)
	const path = "/v2/a/b/manifests/many"
	f.origin.put("many", dockerManifest, []byte(`{"schemaVersion":2,"chosen":true}`))
	if got := f.get(path, "Accept", dockerManifest); got.header.Get("Content-Type") != dockerManifest {
		t.Fatalf("status %d, type %s", got.status, got.header.Get("Content-Type"))
	}
	list := f.origin.put("many", dockerList, []byte(`{"schemaVersion":2,"manifests":[]}`))
	got := f.get(path, "Accept", dockerManifest+", "+dockerList)
	if got.header.Get("Content-Type") != dockerList || got.header.Get("Docker-Content-Digest") != list.String() {
		t.Errorf("who accepts a list got %s %s", got.header.Get("Content-Type"), got.header.Get("Docker-Content-Digest"))
	}
	f.origin.set(func() { f.origin.down = true })
	for accept, want := range map[string]string{dockerManifest: dockerManifest, dockerList + "," + dockerManifest: dockerList} {
		if got := f.get(path, "Accept", accept); got.header.Get("Content-Type") != want {
			t.Errorf("the origin is down: who accepts %s got %s (%d)", accept, got.header.Get("Content-Type"), got.status)
		}
	}
	if got := f.get("/v2/a/b/manifests/"+list.String(), "Accept", dockerManifest); digest.Digest(got.header.Get("Docker-Content-Digest")) != list {
		t.Errorf("by digest: status %d", got.status)
	}
}

func TestCallersThatAcceptTheSameAreOne(t *testing.T) {
	const index, manifest = ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{nil, ""},
		{[]string{"text/html"}, ""},
		{[]string{"*/*"}, "any"},
		{[]string{manifest + ";q=0.9 , " + index}, "index manifest"},
		{[]string{index, manifest, dockerList, dockerManifest + ", */*"}, "all"},
		{[]string{dockerManifest + "," + dockerList + "," + index + "," + manifest + ",application/vnd.docker.distribution.manifest.v1+json"}, "all"},
	} {
		if got := acceptable(http.Header{"Accept": c.lines}); got != c.want {
			t.Errorf("%q: %q, want %q", c.lines, got, c.want)
		}
	}
}

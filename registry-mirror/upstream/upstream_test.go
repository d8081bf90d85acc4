package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/peer/piece"
	"github.com/shoal-project/shoal/registry-mirror/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const indexType = "application/vnd.oci.image.index.v1+json"

var manifest = []byte(`{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[]}`)

// client asks the handler whatever the registry is called.
func client(t *testing.T, h http.Handler, timeout time.Duration) *upstream.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := upstream.New(upstream.Config{Timeout: timeout, Resolve: func(name string) (*url.URL, *http.Client) {
		if name != "registry.example.com" {
			t.Errorf("asked for registry %q", name)
		}
		return base, srv.Client()
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ref(reference string) upstream.Ref {
	return upstream.Ref{Registry: "registry.example.com", Repository: "team/model", Reference: reference}
}

// reply answers every request alike.
func reply(status int, header map[string]string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})
}

func TestRegistryAnswersByTagAndDigest(t *testing.T) {
	origin := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	put := httptest.NewRequest(http.MethodPut, "/v2/team/model/manifests/v1", bytes.NewReader(manifest))
	put.Header.Set("Content-Type", indexType)
	rec := httptest.NewRecorder()
	if origin.ServeHTTP(rec, put); rec.Code != http.StatusCreated {
		t.Fatalf("put: %d %s", rec.Code, rec.Body)
	}
	c := client(t, origin, 0)
	d := digest.FromBytes(manifest)
	want := &upstream.Response{Status: 200, MediaType: indexType, Digest: d, Size: int64(len(manifest)), Body: manifest, Header: http.Header{}}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		for _, reference := range []string{"v1", d.String()} {
			got, err := c.Manifest(t.Context(), ref(reference), method, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", method, reference, diff)
			}
		}
		want.Body = nil
	}
	got, err := c.Manifest(t.Context(), ref("v2"), http.MethodGet, nil)
	if err != nil || got.Status != http.StatusNotFound || !strings.Contains(string(got.Body), "UNKNOWN") {
		t.Errorf("missing tag: %+v, %v", got, err)
	}
}

func TestCallersHeadersGoThroughAndChallengesComeBack(t *testing.T) {
	var seen http.Header
	c := client(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.example.com"`)
		w.Header().Set("Retry-After", "3")
		w.Header().Set("Set-Cookie", "no=1")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte("who are you"))
	}), 0)
	header := http.Header{
		"Accept": {"a/b", "c/d"}, "Authorization": {"Basic eA=="}, "User-Agent": {"containerd/9"},
		"Cookie": {"secret"}, "Range": {"bytes=0-1"}, "X-Forwarded-For": {"10.0.0.1"},
	}
	got, err := c.Manifest(t.Context(), ref("v1"), http.MethodGet, header)
	if err != nil {
		t.Fatal(err)
	}
	want := &upstream.Response{Status: 401, Size: -1, Body: []byte("who are you"),
		Header: http.Header{"Www-Authenticate": {`Bearer realm="https://auth.example.com"`}, "Retry-After": {"3"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(http.Header{
		"Accept": {"a/b", "c/d"}, "Authorization": {"Basic eA=="}, "User-Agent": {"containerd/9"}, "Accept-Encoding": {"identity"},
	}, seen); diff != "" {
		t.Errorf("the origin saw (-want +got):\n%s", diff)
	}
}

func TestLyingRegistryIsFound(t *testing.T) {
	other := digest.FromString("other").String()
	for _, c := range []struct {
		name, reference, method string
		header                  map[string]string
		body                    []byte
		want                    error
	}{
		{"wrong body for a digest", other, "GET", nil, manifest, piece.ErrMismatch},
		{"wrong body for what it announces", "v1", "GET", map[string]string{"Docker-Content-Digest": other}, manifest, piece.ErrMismatch},
		{"announces another digest", digest.FromBytes(manifest).String(), "HEAD", map[string]string{"Docker-Content-Digest": other}, nil, piece.ErrMismatch},
		{"announces nonsense", "v1", "GET", map[string]string{"Docker-Content-Digest": "sha256:zz"}, manifest, piece.ErrTransient},
		{"larger than allowed", "v1", "GET", nil, make([]byte, upstream.MaxManifest+1), upstream.ErrTooLarge},
		{"cut", "v1", "GET", map[string]string{"Content-Length": "1000"}, manifest, piece.ErrTransient},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := client(t, reply(200, c.header, c.body), 0).Manifest(t.Context(), ref(c.reference), c.method, nil)
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

func TestLargestManifestIsAccepted(t *testing.T) {
	body := make([]byte, upstream.MaxManifest)
	got, err := client(t, reply(200, map[string]string{"Content-Type": "a/b; charset=utf-8"}, body), 0).Manifest(t.Context(), ref("v1"), http.MethodGet, nil)
	if err != nil || got.Digest != digest.FromBytes(body) || got.MediaType != "a/b" {
		t.Errorf("%+v, %v", got.MediaType, err)
	}
}

func TestHeadWithoutADigestLeavesItOpen(t *testing.T) {
	got, err := client(t, reply(200, nil, manifest), 0).Manifest(t.Context(), ref("v1"), http.MethodHead, nil)
	if err != nil || got.Digest != "" || got.Status != 200 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestBlobTellsItsSize(t *testing.T) {
	d := digest.FromString("x")
	c := client(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.URL.Path != "/v2/team/model/blobs/"+d.String() {
			t.Errorf("asked %s %s", r.Method, r.URL.Path)
		}
		if r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Length", "123456789012")
	}), 0)
	got, err := c.Blob(t.Context(), ref(d.String()), http.Header{"Authorization": {"Bearer x"}})
	if err != nil || got.Status != 200 || got.Size != 123456789012 || got.Digest != d {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.Blob(t.Context(), ref(d.String()), nil); err != nil || got.Status != 403 {
		t.Errorf("without credentials: %+v, %v", got, err)
	}
	if _, err := c.Blob(t.Context(), ref("v1"), nil); err == nil {
		t.Error("a blob by tag: no error")
	}
}

func TestRegistryThatCannotBeReachedIsTransient(t *testing.T) {
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	_, err := client(t, hang, 50*time.Millisecond).Manifest(t.Context(), ref("v1"), http.MethodHead, nil)
	if !errors.Is(err, piece.ErrTransient) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("hung: %v", err)
	}
	gone := errors.New("caller left")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := client(t, hang, 0).Manifest(ctx, ref("v1"), http.MethodHead, nil); !errors.Is(err, gone) || errors.Is(err, piece.ErrTransient) {
		t.Errorf("ended caller: %v", err)
	}
	srv := httptest.NewServer(hang)
	base, _ := url.Parse(srv.URL)
	srv.Close()
	c, err := upstream.New(upstream.Config{Resolve: func(string) (*url.URL, *http.Client) { return base, srv.Client() }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Manifest(t.Context(), ref("v1"), http.MethodHead, nil); !errors.Is(err, piece.ErrTransient) {
		t.Errorf("refused: %v", err)
	}
}

func TestHostileNamesAreRefused(t *testing.T) {
	c := client(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the registry was asked") }), 0)
	for _, r := range []upstream.Ref{
		{Repository: "", Reference: "v1"}, {Repository: "a", Reference: ""}, {Repository: "../../x", Reference: "v1"},
		{Repository: "a", Reference: "../blobs/x"}, {Repository: "a", Reference: "x/y"}, {Repository: "a?b", Reference: "v1"},
		{Repository: "a", Reference: ".."}, {Repository: "a%2e", Reference: "v1"},
	} {
		r.Registry = "registry.example.com"
		if _, err := c.Manifest(t.Context(), r, http.MethodGet, nil); err == nil {
			t.Errorf("%+v: no error", r)
		}
	}
	if _, err := c.Manifest(t.Context(), ref("v1"), http.MethodDelete, nil); err == nil {
		t.Error("DELETE: no error")
	}
}

func TestConfigReportsAllFaults(t *testing.T) {
	_, err := upstream.New(upstream.Config{Timeout: -1})
	if err == nil || !strings.Contains(err.Error(), "resolver") || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("error %v", err)
	}
}

func TestSignedURLsAreNotInErrors(t *testing.T) {
	c := client(t, reply(http.StatusTemporaryRedirect, map[string]string{"Location": "http://127.0.0.1:1/blob?X-Amz-Signature=secret"}, nil), 0)
	_, err := c.Blob(t.Context(), ref(digest.FromString("x").String()), nil)
	if !errors.Is(err, piece.ErrTransient) || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
}

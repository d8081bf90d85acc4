package repository_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	fakeregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter/repository"
)

// registryOf opens a repository of a registry whose handler is given.
func registryOf(t *testing.T, h http.Handler) *repository.Registry {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	repo, err := name.NewRepository(strings.TrimPrefix(s.URL, "http://") + "/m")
	if err != nil {
		t.Fatal(err)
	}
	return repository.NewRegistry(repo, repository.Config{Retry: repository.Retry{Attempts: 2, Pause: time.Millisecond, MaxPause: time.Millisecond}})
}

// referenced is what registries and layouts have in common here.
type referenced interface {
	Stat(ctx context.Context, d digest.Digest) (int64, error)
	Push(ctx context.Context, b repository.Blob) (repository.Outcome, error)
	PutManifest(ctx context.Context, ref, mediaType string, raw []byte) error
	Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error)
	Refer(ctx context.Context, subject digest.Digest, desc ocispec.Descriptor, raw []byte) error
}

// kindsOfPlaces are a registry with the referrers API, one without, and a layout.
func kindsOfPlaces(t *testing.T) map[string]referenced {
	quiet := fakeregistry.Logger(log.New(io.Discard, "", 0))
	return map[string]referenced{
		"with the API":    registryOf(t, fakeregistry.New(quiet, fakeregistry.WithReferrersSupport(true))),
		"without the API": registryOf(t, fakeregistry.New(quiet)),
		"layout":          repository.NewLayout(t.TempDir() + "/l"),
	}
}

func manifestOf(t *testing.T, note string, subject *ocispec.Descriptor) (ocispec.Descriptor, []byte) {
	t.Helper()
	m := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.example", Subject: subject,
		Config: ocispec.DescriptorEmptyJSON, Annotations: map[string]string{"note": note},
	}
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: m.ArtifactType}, raw
}

func TestWhatRefersIsFoundAgain(t *testing.T) {
	for kind, at := range kindsOfPlaces(t) {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			subject, raw := manifestOf(t, "subject", nil)
			if err := at.PutManifest(ctx, "v1", subject.MediaType, raw); err != nil {
				t.Fatal(err)
			}
			want := map[digest.Digest]bool{}
			for _, note := range []string{"one", "two", "one"} { // the third is there already
				d, raw := manifestOf(t, note, &subject)
				want[d.Digest] = true
				if err := at.Refer(ctx, subject.Digest, d, raw); err != nil {
					t.Fatal(err)
				}
			}
			list, err := at.Referrers(ctx, subject.Digest)
			if err != nil || len(list) != 2 || !want[list[0].Digest] || !want[list[1].Digest] {
				t.Errorf("want two, got %+v, %v", list, err)
			}
			none, err := at.Referrers(ctx, digest.FromString("nobody"))
			if err != nil || len(none) != 0 {
				t.Errorf("of nothing: %+v, %v", none, err)
			}
		})
	}
}

func TestStatTellsTheSize(t *testing.T) {
	for kind, at := range kindsOfPlaces(t) {
		t.Run(kind, func(t *testing.T) {
			text := "seven b"
			d := ocispec.Descriptor{Digest: digest.FromString(text), Size: int64(len(text))}
			_, err := at.Push(t.Context(), repository.Blob{Descriptor: d, Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader(text[offset:])), nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			if n, err := at.Stat(t.Context(), d.Digest); n != 7 || err != nil {
				t.Errorf("want 7, got %d, %v", n, err)
			}
			if _, err := at.Stat(t.Context(), digest.FromString("nothing")); !errors.Is(err, repository.ErrNotFound) {
				t.Errorf("want ErrNotFound, got %v", err)
			}
		})
	}
}

// Pages of referrers are followed, on the same host only, and not for ever.
func TestReferrersInPages(t *testing.T) {
	for _, tc := range []struct {
		name string
		link func(r *http.Request, page int) string
		want int
		fail bool
	}{
		{"three pages", func(r *http.Request, page int) string {
			if page == 3 {
				return ""
			}
			return fmt.Sprintf(`<%s?page=%d>; rel="next"`, r.URL.Path, page+1)
		}, 3, false},
		{"another host", func(*http.Request, int) string { return `<http://elsewhere.example/x>; rel="next"` }, 1, false},
		{"another relation", func(r *http.Request, _ int) string { return fmt.Sprintf(`<%s>; rel="prev"`, r.URL.Path) }, 1, false},
		{"no link at all", func(*http.Request, int) string { return "nonsense" }, 1, false},
		{"without end", func(r *http.Request, _ int) string { return fmt.Sprintf(`<%s>; rel="next"`, r.URL.Path) }, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			page := 0
			at := registryOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.Path, "/referrers/") {
					return // the ping
				}
				page++
				w.Header().Set("Link", tc.link(r, page))
				_ = json.NewEncoder(w).Encode(ocispec.Index{Manifests: []ocispec.Descriptor{{Digest: digest.FromString(fmt.Sprint(page)), Size: 1}}})
			}))
			list, err := at.Referrers(t.Context(), digest.FromString("subject"))
			if (err != nil) != tc.fail || len(list) != tc.want {
				t.Errorf("want %d, got %d: %v", tc.want, len(list), err)
			}
		})
	}
}

func TestFallbackTagWithTooManyReferrersIsToldInWords(t *testing.T) {
	r := registryOf(t, fakeregistry.New(fakeregistry.Logger(log.New(io.Discard, "", 0))))
	d := digest.FromString("subject")
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: make([]ocispec.Descriptor, 5000)}
	index.SchemaVersion = 2
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PutManifest(t.Context(), repository.FallbackTag(d), ocispec.MediaTypeImageManifest, raw); err != nil {
		t.Fatal(err)
	}
	_, err = r.Referrers(t.Context(), d)
	if err == nil || !strings.Contains(err.Error(), "5000") || strings.Contains(err.Error(), "%!") {
		t.Errorf("got %v", err)
	}
}

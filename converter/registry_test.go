package converter_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/shoal-project/shoal/converter"
)

func TestBaseFromARegistryIsMountedNotUploaded(t *testing.T) {
	var uploads, mounts atomic.Int64
	img, err := smallBase(t).Manifest()
	check(t, err)
	layers := img.Layers
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch && strings.Contains(r.URL.Path, "/ml/") {
				uploads.Add(1)
			}
			if r.URL.Query().Get("from") == "base" && r.URL.Query().Get("mount") == layers[0].Digest.String() {
				mounts.Add(1)
				w.WriteHeader(http.StatusCreated)
				return
			}
			if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/ml/tiny/blobs/"+layers[0].Digest.String()) && mounts.Load() == 0 {
				w.WriteHeader(http.StatusNotFound) // the fake has one store for all repositories
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	base, err := name.NewTag(host + "/base:v1")
	check(t, err)
	check(t, remote.Write(base, smallBase(t)))
	cfg := config(t, host+"/ml/tiny:v1")
	cfg.Base = base.String()
	_, err = converter.Convert(t.Context(), cfg)
	check(t, err)
	// One framework blob, three model layers, the bootstrap, two configurations; the base's layer is mounted.
	if uploads.Load() != 7 || mounts.Load() != 1 {
		t.Errorf("%d uploads and %d mounts, want 7 and 1", uploads.Load(), mounts.Load())
	}
	cfg.Target = host + "/ml/tiny:v2"
	_, err = converter.Convert(t.Context(), cfg)
	check(t, err)
	if uploads.Load() != 7 {
		t.Errorf("%d blobs were uploaded again", uploads.Load()-7)
	}
}

func TestRegistryThatRefuses(t *testing.T) {
	for _, tc := range []struct {
		status int
		want   string
	}{
		{401, "log in"}, {403, "forbids"}, {404, "does not know the repository"}, {413, "refuses a blob of this size"},
		{429, "limits requests"}, {500, "is in trouble"}, {503, "is in trouble"}, {418, "418"},
	} {
		for _, when := range []struct {
			name  string
			match func(*http.Request) bool
		}{
			{"upload", func(r *http.Request) bool {
				return r.Method == http.MethodPatch || r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/")
			}},
			{"manifest", func(r *http.Request) bool {
				return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
			}},
		} {
			t.Run(fmt.Sprintf("%d at %s", tc.status, when.name), func(t *testing.T) {
				var tagged atomic.Bool
				host := registryWith(t, func(h http.Handler) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if strings.HasSuffix(r.URL.Path, "/manifests/v1") && r.Method == http.MethodPut {
							tagged.Store(true)
						}
						if when.match(r) {
							_, _ = io.Copy(io.Discard, r.Body)
							w.WriteHeader(tc.status)
							return
						}
						h.ServeHTTP(w, r)
					})
				})
				_, err := converter.Convert(t.Context(), config(t, host+"/ml/tiny:v1"))
				wantError(t, err, converter.ErrRegistry, tc.want)
				if err != nil && !strings.Contains(err.Error(), host) {
					t.Errorf("the registry is not named: %v", err)
				}
				if tagged.Load() {
					t.Error("the tag was pushed")
				}
			})
		}
	}
}

func TestRegistryThatIsCutOffLeavesNoTag(t *testing.T) {
	var cut atomic.Bool
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch && r.ContentLength > 1<<20 {
				cut.Store(true)
				_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
				panic(http.ErrAbortHandler)
			}
			h.ServeHTTP(w, r)
		})
	})
	_, err := converter.Convert(t.Context(), config(t, host+"/ml/tiny:v1"))
	wantError(t, err, converter.ErrRegistry, host)
	if !cut.Load() {
		t.Error("nothing was cut")
	}
	ref, perr := name.ParseReference(host + "/ml/tiny:v1")
	check(t, perr)
	if _, err := remote.Head(ref); err == nil {
		t.Error("the tag is there")
	}
}

func TestNobodyListens(t *testing.T) {
	_, err := converter.Convert(t.Context(), config(t, freeAddress(t)+"/ml/tiny:v1"))
	wantError(t, err, converter.ErrRegistry, "nobody listens")
}

func TestInterruptedConversionEndsAndLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch {
				cancel()
				_, _ = io.Copy(io.Discard, r.Body) // until the client is gone
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	cfg := config(t, host+"/ml/tiny:v1")
	cfg.TempDir = t.TempDir()
	if _, err := converter.Convert(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(cfg.TempDir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

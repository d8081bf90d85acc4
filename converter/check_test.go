package converter_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/shoal-project/shoal/converter"
)

func TestCheckFindsWhatDoesNotHold(t *testing.T) {
	var corrupt, missing atomic.Value // digest to tamper with
	corrupt.Store("none")
	missing.Store("none")
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, missing.Load().(string)):
				http.NotFound(w, r)
			case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, corrupt.Load().(string)):
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				body := rec.Body.Bytes()
				body[len(body)/2] ^= 1
				_, _ = w.Write(body)
			default:
				h.ServeHTTP(w, r)
			}
		})
	})
	cfg := config(t, host+"/ml/tiny:v1")
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	whole := converter.Config{Target: cfg.Target, Remote: once()}
	got, err := converter.Check(t.Context(), whole)
	check(t, err)
	if got.Digest != made.Digest || got.Blobs != 8 {
		t.Errorf("%+v", got)
	}
	for _, l := range made.Layers {
		corrupt.Store(l.Digest.String())
		_, err := converter.Check(t.Context(), whole)
		wantError(t, err, converter.ErrVerify, l.Digest.String())
		corrupt.Store("none")
		missing.Store(l.Digest.String())
		_, err = converter.Check(t.Context(), whole)
		wantError(t, err, converter.ErrRegistry, l.Digest.String())
		missing.Store("none")
	}
	base, err := name.NewTag(host + "/base:v1")
	check(t, err)
	check(t, remote.Write(base, smallBase(t)))
	_, err = converter.Check(t.Context(), converter.Config{Target: base.String()})
	wantError(t, err, converter.ErrSource, "has not made it")
}

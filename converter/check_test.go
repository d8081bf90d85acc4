package converter_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/peer/chunkmap"
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
	whole := converter.CheckConfig{Image: cfg.Target, Access: once()}
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
		wantError(t, err, converter.ErrVerify, l.Digest.String())
		missing.Store("none")
	}
	base, err := name.NewTag(host + "/base:v1")
	check(t, err)
	check(t, remote.Write(base, smallBase(t)))
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: base.String()})
	wantError(t, err, converter.ErrSource, "has not made it")
}

// A chunk map whose chunks are wrong serves nobody who looks for bytes by them.
func TestCheckFindsWrongChunks(t *testing.T) {
	host := registryWith(t, nil)
	cfg := config(t, host+"/ml/tiny:v1")
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	repo, err := name.NewRepository(host + "/ml/tiny")
	check(t, err)
	wrong := forge(t, repo, made, func(m *chunkmap.Map) { m.Chunks[0].Digest[0] ^= 1 })
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: wrong, Access: once()})
	wantError(t, err, converter.ErrVerify, "chunk map")
	right := forge(t, repo, made, func(*chunkmap.Map) {})
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: right, Access: once()})
	check(t, err)
}

// forge pushes the image again with other chunk maps and returns its reference.
func forge(t *testing.T, repo name.Repository, made *converter.Result, change func(*chunkmap.Map)) string {
	t.Helper()
	idx, err := remote.Index(repo.Digest(made.Digest.String()))
	check(t, err)
	hash, err := v1.NewHash(made.Variants[0].Nydus.String())
	check(t, err)
	img, err := idx.Image(hash)
	check(t, err)
	layers, err := img.Layers()
	check(t, err)
	boot := layers[len(layers)-1]
	r, err := boot.Compressed()
	check(t, err)
	defer r.Close()
	raw, err := io.ReadAll(r)
	check(t, err)
	files, err := image.FilesOfLayer(bytes.NewReader(raw), image.IsMetadata, 1<<30)
	check(t, err)
	maps, err := chunkmap.AllFromLayer(bytes.NewReader(raw))
	check(t, err)
	for blob, m := range maps {
		change(m)
		files[chunkmap.FileName(blob)] = m.Encode()
	}
	var out bytes.Buffer
	_, err = image.WriteBootstrapLayer(&out, files)
	check(t, err)
	blob := static.NewLayer(out.Bytes(), types.OCILayer)
	check(t, remote.WriteLayer(repo, blob))
	manifest, err := img.Manifest()
	check(t, err)
	last := &manifest.Layers[len(manifest.Layers)-1]
	last.Digest, err = blob.Digest()
	check(t, err)
	last.Size = int64(out.Len())
	put := func(ref string, mediaType types.MediaType, v any) v1.Descriptor {
		raw, err := json.Marshal(v)
		check(t, err)
		sum, size, err := v1.SHA256(bytes.NewReader(raw))
		check(t, err)
		if ref == "" {
			ref = repo.Digest(sum.String()).String()
		}
		parsed, err := name.ParseReference(ref)
		check(t, err)
		check(t, remote.Put(parsed, rawManifest{raw, mediaType}))
		return v1.Descriptor{MediaType: mediaType, Digest: sum, Size: size}
	}
	index, err := idx.IndexManifest()
	check(t, err)
	d := put("", types.OCIManifestSchema1, manifest)
	index.Manifests[1].Digest, index.Manifests[1].Size = d.Digest, d.Size
	put(repo.Tag("forged").String(), types.OCIImageIndex, index)
	return repo.Tag("forged").String()
}

type rawManifest struct {
	raw       []byte
	mediaType types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

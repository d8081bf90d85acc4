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
	"github.com/opencontainers/go-digest"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/bootstrap"
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
	whole := converter.CheckConfig{Image: cfg.Target, Deep: true, Access: once()}
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

// A fast check reads no layer, and yet finds what is missing or has another size.
func TestFastCheckAsksForEveryBlob(t *testing.T) {
	var tampered, mode atomic.Value
	tampered.Store("none")
	mode.Store("")
	var layersRead atomic.Int64
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				layersRead.Add(1)
			}
			if !strings.HasSuffix(r.URL.Path, tampered.Load().(string)) {
				h.ServeHTTP(w, r)
				return
			}
			switch mode.Load() {
			case "missing":
				http.NotFound(w, r)
			case "short":
				w.Header().Set("Content-Length", "7")
			}
		})
	})
	cfg := config(t, host+"/ml/tiny:v1")
	cfg.ModelPack = true
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	layersRead.Store(0)
	got, err := converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Access: once()})
	check(t, err)
	if got.Deep || got.Blobs != 9 || got.Manifests != 4 || got.Files == 0 || got.RAFSChunks != 0 {
		t.Errorf("%+v", got)
	}
	if n := layersRead.Load(); n != 4 { // bootstrap layer and three configurations
		t.Errorf("%d blobs were read", n)
	}
	for _, l := range made.Layers {
		for _, m := range []string{"missing", "short"} {
			if m == "short" && l.Kind == "bootstrap" {
				continue // it is read, and a read that ends early is an error of the registry
			}
			mode.Store(m)
			tampered.Store(l.Digest.String())
			_, err := converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Access: once()})
			wantError(t, err, converter.ErrVerify, l.Digest.String())
		}
	}
}

func TestDeepCheckHolds(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, cfg *converter.Config)
	}{
		{"whiteouts, links, devices, attributes", func(t *testing.T, cfg *converter.Config) { cfg.Base = writeLayout(t, runnableBase(t)) }},
		{"lz4 and ModelPack", func(t *testing.T, cfg *converter.Config) { cfg.Compressor, cfg.ModelPack = "lz4_block", true }},
		{"not compressed", func(t *testing.T, cfg *converter.Config) { cfg.Compressor = "none" }},
		{"several platforms", func(t *testing.T, cfg *converter.Config) {
			cfg.Base = writeLayout(t, smallBase(t), baseImage(t, v1.Platform{OS: "linux", Architecture: "arm64"}, tarOf(t, file("etc/arm", "arm"))))
		}},
		{"without a model", func(t *testing.T, cfg *converter.Config) {
			cfg.Image, cfg.Model, cfg.Base = writeLayout(t, runnableBase(t)), "", ""
		}},
		{"of a plain variant", func(t *testing.T, cfg *converter.Config) {
			first := *cfg
			first.Target = "oci:" + t.TempDir() + "/one:v1"
			_, err := converter.Convert(t.Context(), first)
			check(t, err)
			cfg.Image, cfg.Model, cfg.Base = first.Target, "", ""
		}},
		{"in a layout", func(t *testing.T, cfg *converter.Config) { cfg.Target = "oci:" + t.TempDir() + "/out:v1" }},
		{"with a previous image", func(t *testing.T, cfg *converter.Config) {
			cfg.Base = writeLayout(t, runnableBase(t))
			first := *cfg
			_, err := converter.Convert(t.Context(), first)
			check(t, err)
			cfg.Previous = first.Target
			cfg.Base = writeLayout(t, withLayers(t, runnableBase(t), tarOf(t, file("again", strings.Repeat("library ", 200_000)))))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t, registryWith(t, nil)+"/ml/tiny:v1")
			tc.change(t, &cfg)
			_, err := converter.Convert(t.Context(), cfg)
			check(t, err)
			rec := &recorder{}
			got, err := converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Deep: true, Access: once(), Progress: rec})
			check(t, err)
			if got.RAFSChunks == 0 || rec.plan != rec.done || rec.plan[converter.Read] == 0 {
				t.Errorf("%+v, planned %v, done %v", got, rec.plan, rec.done)
			}
		})
	}
}

func TestDeepCheckComparesTrees(t *testing.T) {
	host := registryWith(t, nil)
	cfg := config(t, host+"/ml/tiny:v1")
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	repo, err := name.NewRepository(host + "/ml/tiny")
	check(t, err)
	model := func(img *bootstrap.Image) map[string]*bootstrap.Inode {
		return img.Root.Children["models"].Children["tiny"].Children
	}
	for _, tc := range []struct {
		name   string
		change func(*bootstrap.Image)
		want   string
	}{
		{"nothing", func(*bootstrap.Image) {}, ""},
		{"mode", func(img *bootstrap.Image) { model(img)["run.sh"].Mode &^= 0o111 }, "/models/tiny/run.sh has mode 100755"},
		{"owner", func(img *bootstrap.Image) { img.Root.Children["etc"].UID = 7 }, "/etc has owner 0:0"},
		{"time", func(img *bootstrap.Image) { img.Root.Children["etc"].Children["hello"].Mtime++ }, "/etc/hello has time"},
		{"link", func(img *bootstrap.Image) { model(img)["model.bin"].Link = "config.json" }, "/models/tiny/model.bin has target"},
		{"attribute", func(img *bootstrap.Image) { model(img)["config.json"].Xattrs = map[string]string{"user.a": "b"} }, "/models/tiny/config.json has attributes"},
		{"gone", func(img *bootstrap.Image) { delete(model(img), "run.sh") }, "/models/tiny/run.sh is in the plain variant, not"},
		{"more", func(img *bootstrap.Image) {
			model(img)["more"] = &bootstrap.Inode{Mode: bootstrap.TypeSymlink | 0o777, Link: "x"}
		}, "/models/tiny/more is in the Nydus variant, not"},
		{"content of another file", func(img *bootstrap.Image) {
			w := model(img)["weights.bin"]
			w.Chunks[0], w.Chunks[1] = w.Chunks[1], w.Chunks[0]
		}, "/models/tiny/weights.bin has content"},
		{"wrong digest", func(img *bootstrap.Image) {
			img.Chunks[model(img)["weights.bin"].Chunks[0]].Digest[0] ^= 1
		}, "RAFS chunk"},
		{"one file under two names", func(img *bootstrap.Image) {
			model(img)["nothing"].Mode = model(img)["run.sh"].Mode
			model(img)["nothing"] = model(img)["run.sh"]
		}, "/models/tiny/nothing has"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ref := forgeTree(t, repo, made, tc.change)
			_, err := converter.Check(t.Context(), converter.CheckConfig{Image: ref, Deep: true, Access: once()})
			if tc.want == "" {
				check(t, err)
				return
			}
			wantError(t, err, converter.ErrVerify, tc.want)
		})
	}
	t.Run("chunk table", func(t *testing.T) {
		ref := forgeLayer(t, repo, made, func(files map[string][]byte, maps map[digest.Digest]*chunkmap.Map) {
			for blob, m := range maps {
				files[chunkmap.FileName(blob)] = m.Encode()
			}
			for name, raw := range files {
				if strings.HasSuffix(name, ".blob.meta") {
					raw[8] ^= 1
				}
			}
		})
		_, err := converter.Check(t.Context(), converter.CheckConfig{Image: ref, Access: once()})
		wantError(t, err, converter.ErrVerify, "chunk table")
	})
}

// A chunk map whose chunks are wrong serves nobody who looks for bytes by them.
func TestCheckFindsWrongChunks(t *testing.T) {
	host := registryWith(t, nil)
	cfg := config(t, host+"/ml/tiny:v1")
	made, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	repo, err := name.NewRepository(host + "/ml/tiny")
	check(t, err)
	wrong := forge(t, repo, made, func(m *chunkmap.Map) { m.Chunks[0].ID[0] ^= 1 })
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: wrong, Deep: true, Access: once()})
	wantError(t, err, converter.ErrVerify, "chunk map")
	right := forge(t, repo, made, func(*chunkmap.Map) {})
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: right, Deep: true, Access: once()})
	check(t, err)
}

// forge pushes the image again with other chunk maps and returns its reference.
func forge(t *testing.T, repo name.Repository, made *converter.Result, change func(*chunkmap.Map)) string {
	t.Helper()
	return forgeLayer(t, repo, made, func(files map[string][]byte, maps map[digest.Digest]*chunkmap.Map) {
		for blob, m := range maps {
			change(m)
			files[chunkmap.FileName(blob)] = m.Encode()
		}
	})
}

// forgeTree pushes the image again with another bootstrap.
func forgeTree(t *testing.T, repo name.Repository, made *converter.Result, change func(*bootstrap.Image)) string {
	t.Helper()
	return forgeLayer(t, repo, made, func(files map[string][]byte, maps map[digest.Digest]*chunkmap.Map) {
		boot := files[image.BootstrapName]
		img, err := bootstrap.Decode(bytes.NewReader(boot), int64(len(boot)))
		check(t, err)
		change(img)
		files[image.BootstrapName], err = bootstrap.Encode(img)
		check(t, err)
		for blob, m := range maps {
			files[chunkmap.FileName(blob)] = m.Encode()
		}
	})
}

// forgeLayer pushes the image again with other files in the bootstrap layer of its first platform.
func forgeLayer(t *testing.T, repo name.Repository, made *converter.Result, change func(map[string][]byte, map[digest.Digest]*chunkmap.Map)) string {
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
	change(files, maps)
	var out bytes.Buffer
	_, err = image.WriteBootstrapLayer(&out, image.Files(files))
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

// Indexes that name too much, what is not there, or sizes that are not so are named, and nothing is read without end.
func TestCheckOfHostileIndexes(t *testing.T) {
	host := registryWith(t, nil)
	cfg := config(t, host+"/ml/tiny:v1")
	_, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	repo, err := name.NewRepository(host + "/ml/tiny")
	check(t, err)
	idx, err := remote.Index(repo.Tag("v1"))
	check(t, err)
	for _, tc := range []struct {
		name   string
		change func(*v1.IndexManifest)
		class  error
		want   string
	}{
		{"10000 manifests", func(m *v1.IndexManifest) {
			for len(m.Manifests) < 10_000 {
				m.Manifests = append(m.Manifests, m.Manifests[0])
			}
		}, converter.ErrSource, "10000 manifests"},
		{"missing manifest", func(m *v1.IndexManifest) { m.Manifests[1].Digest.Hex = strings.Repeat("0", 64) }, converter.ErrVerify, strings.Repeat("0", 64)},
		{"size that lies", func(m *v1.IndexManifest) { m.Manifests[1].Size++ }, converter.ErrVerify, "bytes, it has"},
		{"another platform", func(m *v1.IndexManifest) {
			m.Manifests[0].Platform.Architecture, m.Manifests[1].Platform.Architecture = "arm64", "arm64"
		}, converter.ErrVerify, "is listed for linux/arm64"},
		{"no Nydus variant", func(m *v1.IndexManifest) { m.Manifests = m.Manifests[:1] }, converter.ErrSource, "has not both variants"},
		{"nothing", func(m *v1.IndexManifest) { m.Manifests = nil }, converter.ErrSource, "names no image"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := idx.IndexManifest()
			check(t, err)
			m = m.DeepCopy()
			tc.change(m)
			raw, err := json.Marshal(m)
			check(t, err)
			bad := registryWith(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/manifests/v1") {
						w.Header().Set("Content-Type", string(types.OCIImageIndex))
						_, _ = w.Write(raw)
						return
					}
					http.Redirect(w, r, "http://"+host+r.URL.Path, http.StatusTemporaryRedirect)
				})
			})
			_, err = converter.Check(t.Context(), converter.CheckConfig{Image: bad + "/ml/tiny:v1", Deep: true, Access: once()})
			wantError(t, err, tc.class, tc.want)
		})
	}
}

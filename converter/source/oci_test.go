package source

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ranged adds ranges to the blobs of a registry that has none.
func ranged(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
			h.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		whole := r.Clone(r.Context())
		whole.Header.Del("Range")
		if h.ServeHTTP(rec, whole); rec.Code != http.StatusOK {
			w.WriteHeader(rec.Code)
			return
		}
		w.Header().Set("ETag", `"`+r.URL.Path+`"`)
		http.ServeContent(w, r, "", testTime, bytes.NewReader(rec.Body.Bytes()))
	})
}

// reg is a registry and what the tests put there.
type reg struct {
	*faults
	host string
}

func newRegistry(t testing.TB) *reg {
	t.Helper()
	f := &faults{Handler: ranged(registry.New(registry.Logger(log.New(io.Discard, "", 0)))), of: map[string][]fault{}}
	return &reg{f, strings.TrimPrefix(serve(t, f), "http://")}
}

func (r *reg) blob(t testing.TB, mediaType, filepath string, data []byte) ocispec.Descriptor {
	t.Helper()
	repo, err := name.NewRepository(r.host + "/m")
	check(t, err)
	check(t, remote.WriteLayer(repo, static.NewLayer(data, types.MediaType(mediaType))))
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if filepath != "" {
		d.Annotations = map[string]string{"org.cncf.model.filepath": filepath}
	}
	return d
}

// raw is a manifest or index as it is.
type raw struct {
	mediaType types.MediaType
	data      []byte
}

func (r raw) RawManifest() ([]byte, error)        { return r.data, nil }
func (r raw) MediaType() (types.MediaType, error) { return r.mediaType, nil }

func (r *reg) put(t testing.TB, tag string, mediaType types.MediaType, value any) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(value)
	check(t, err)
	ref, err := name.NewTag(r.host + "/m:" + tag)
	check(t, err)
	check(t, remote.Put(ref, raw{mediaType, data}))
	return ocispec.Descriptor{MediaType: string(mediaType), Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func (r *reg) artifact(t testing.TB, tag, kind, config string, layers ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	return r.put(t, tag, types.OCIManifestSchema1, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: string(types.OCIManifestSchema1), ArtifactType: kind,
		Config: r.blob(t, config, "", []byte("{}")), Layers: layers,
	})
}

const modelPack = "application/vnd.cncf.model."

func TestModelPackOfRawLayersIsListed(t *testing.T) {
	r := newRegistry(t)
	weights := noise(5, 200_000)
	layers := []ocispec.Descriptor{
		r.blob(t, modelPack+"weight.v1.raw", "w/model.safetensors", weights),
		r.blob(t, modelPack+"weight.config.v1.raw", "config.json", []byte("{}")),
		r.blob(t, "application/vnd.cnai.model.code.v1.raw", "run.sh", []byte("#!")),
	}
	layers[2].Annotations["org.cncf.model.file.metadata+json"] = `{"mode":493}`
	top := r.artifact(t, "v1", modelPack+"manifest.v1+json", modelPack+"config.v1+json", layers...)
	r.of["/v2/m/blobs/"+layers[0].Digest.String()] = []fault{status(503), cut(100_000), cut(10)}
	r.of["/v2/m/manifests/v1"] = []fault{status(429, "Retry-After", "0")}
	m, err := Open(t.Context(), "oci://"+r.host+"/m:v1", quick(Config{Exclude: []string{"none"}}))
	check(t, err)
	if m.Revision != top.Digest.String() || m.Name != "m" || m.Local || !m.Files[1].Executable || m.Files[3].Digest != layers[0].Digest {
		t.Errorf("%+v", m)
	}
	if diff := cmp.Diff([]string{"config.json", "run.sh", "w/", "w/model.safetensors"}, paths(m.Files)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, offset := range []int64{0, 150_000} {
		if got, err := read(t.Context(), m, "w/model.safetensors", offset); err != nil || !bytes.Equal(got, weights[offset:]) {
			t.Errorf("from %d: %d bytes, %v", offset, len(got), err)
		}
	}
	r.of["/v2/m/blobs/"+layers[0].Digest.String()] = []fault{spoil(9)}
	if _, err := read(t.Context(), m, "w/model.safetensors", 0); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), "w/model.safetensors") {
		t.Errorf("spoiled: %v", err)
	}
}

func TestModelPackOfArchivesIsAStream(t *testing.T) {
	r := newRegistry(t)
	one, two := tarOf(t, regular("tok/a", "1")), tarOf(t, regular("tok/b", "2"), folder("none"))
	r.artifact(t, "v1", "application/vnd.cnai.model.manifest.v1+json", "application/vnd.cnai.model.config.v1+json",
		r.blob(t, modelPack+"weight.v1.raw", "w", []byte("weights")), r.blob(t, modelPack+"dataset.v1.tar", "tok", one),
		r.blob(t, modelPack+"doc.v1.tar+gzip", "tok", gzipped(t, two)), r.blob(t, modelPack+"doc.v1.tar+zstd", "z", zstded(t, tarOf(t, regular("z/c", "3")))))
	m, err := Open(t.Context(), "oci://"+r.host+"/m:v1", Config{Exclude: []string{"*.md"}})
	check(t, err)
	for range 2 {
		got, err := readAll(t, m)
		if diff := cmp.Diff([]string{"w=weights", "tok/a=1", "tok/b=2", "z/c=3", "none/"}, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	r.of["/v2/m/blobs/"+digest.FromBytes(one).String()] = []fault{spoil(512)}
	if _, err := readAll(t, m); !errors.Is(err, ErrDigest) {
		t.Errorf("spoiled: %v", err)
	}
}

func TestDockerModelsAreListed(t *testing.T) {
	r := newRegistry(t)
	r.artifact(t, "v1", "", "application/vnd.docker.ai.model.config.v0.1+json",
		r.blob(t, "application/vnd.docker.ai.safetensors", "", []byte("1")), r.blob(t, "application/vnd.docker.ai.safetensors", "", []byte("2")),
		r.blob(t, "application/vnd.docker.ai.gguf.v3", "", []byte("GGUF")), r.blob(t, "application/vnd.docker.ai.license", "", []byte("free")),
		r.blob(t, modelPack+"weight.v1.gguf", "named.gguf", []byte("3")))
	m, err := Open(t.Context(), "oci://"+r.host+"/m:v1", Config{})
	check(t, err)
	got, err := readAll(t, m)
	want := []string{"LICENSE=free", "model-00001-of-00002.safetensors=1", "model-00002-of-00002.safetensors=2", "model.gguf=GGUF", "named.gguf=3"}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// image pushes an image of layers, lowest first.
func (r *reg) image(t testing.TB, tag string, layers ...[]byte) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: string(types.OCIManifestSchema1),
		Config: r.blob(t, string(types.OCIConfigJSON), "", []byte("{}")),
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, r.blob(t, string(types.OCILayer), "", l))
	}
	return r.put(t, tag, types.OCIManifestSchema1, m)
}

func TestImageIsReadFromTheTopDown(t *testing.T) {
	gz := func(entries ...entry) []byte { return gzipped(t, tarOf(t, entries...)) }
	hard := entry{tar.Header{Name: "models/m/hard", Typeflag: tar.TypeLink, Linkname: "models/m/a"}, ""}
	base := gz(folder("etc"), regular("etc/passwd", "root"), symlink("bin", "usr/bin"))
	for _, tc := range []struct {
		name   string
		path   string
		layers [][]byte
		want   []string
		err    string
	}{
		{"one folder", "", [][]byte{base, gz(folder("models"), folder("models/m/"), regular("models/m/a", "1"), symlink("models/m/l", "a"), folder("models/m/none"))},
			[]string{"a=1", "l -> a", "none/"}, ""},
		{"files right there", "", [][]byte{base, gz(regular("models/a", "1"), regular("models/sub/b", "2"))}, []string{"a=1", "sub/b=2"}, ""},
		{"replaced and removed", "", [][]byte{
			gz(regular("models/m/a", "old"), regular("models/m/b", "gone"), regular("models/m/d/x", "gone"), regular("models/m/e/x", "gone"), regular("models/m/keep", "k"), regular("models/m/f", "file")),
			gz(regular("models/m/a", "1"), regular("models/m/.wh.b", ""), regular("models/m/.wh.d", ""), regular("models/m/e/.wh..wh..opq", ""), regular("models/m/e/y", "2"), regular("models/m/f/z", "3")),
		}, []string{"a=1", "e/y=2", "f/z=3", "keep=k"}, ""},
		{"folder replaced by a file", "", [][]byte{gz(regular("models/m/d/x", "old")), gz(regular("models/m/d", "1"))}, []string{"d=1"}, ""},
		{"all below replaced", "", [][]byte{gz(hard), gz(regular("models/.wh..wh..opq", ""), regular("models/m/a", "1"))}, []string{"a=1"}, ""},
		{"other names of the root", "", [][]byte{gz(regular("/models/m/a", "1"), regular("./models/m/b", "2"))}, []string{"a=1", "b=2"}, ""},
		{"path", "/opt/x/", [][]byte{base, gz(regular("opt/x/a", "1"), regular("opt/y", "2"), regular("models/m/a", "3"))}, []string{"a=1"}, ""},
		{"two folders", "", [][]byte{gz(regular("models/m/a", "1"), regular("models/n/a", "2"))}, nil, "?path=/models/m"},
		{"file beside the folder", "", [][]byte{gz(regular("models/m/a", "1"), regular("models/x", "2"))}, nil, "?path=/models"},
		{"two folders, one named", "/models/n", [][]byte{gz(regular("models/m/a", "1"), regular("models/n/a", "2"))}, []string{"a=2"}, ""},
		{"no models", "", [][]byte{base}, nil, "no files below /models"},
		{"link instead of the folder", "", [][]byte{gz(regular("x/m/a", "1"), symlink("models", "x"))}, nil, "/models is no folder"},
		{"nothing at the path", "/none", [][]byte{base}, nil, "no file"},
		{"hard link", "", [][]byte{gz(regular("models/m/a", "1"), hard)}, nil, "hard link"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRegistry(t)
			r.image(t, "v1", tc.layers...)
			ref := "oci://" + r.host + "/m:v1"
			if tc.path != "" {
				ref += "?path=" + tc.path
			}
			m, err := Open(t.Context(), ref, Config{})
			check(t, err)
			got, err := readAll(t, m)
			if tc.err != "" {
				if !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("want %q, got %v", tc.err, err)
				}
				return
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestIndexLeadsToTheModelOrThePlainImage(t *testing.T) {
	r := newRegistry(t)
	layer := func(content string) []byte { return gzipped(t, tarOf(t, regular("models/m/a", content))) }
	amd, arm, nydus := r.image(t, "amd", layer("amd")), r.image(t, "arm", layer("arm")), r.image(t, "nydus", layer("nydus"))
	amd.Platform, arm.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}, &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	nydus.Platform, nydus.ArtifactType = amd.Platform, "application/vnd.nydus.image.manifest.v1+json"
	model := r.artifact(t, "model", modelPack+"manifest.v1+json", modelPack+"config.v1+json", r.blob(t, modelPack+"weight.v1.raw", "a", []byte("model")))
	model.ArtifactType = modelPack + "manifest.v1+json"
	for tag, tc := range map[string]struct {
		manifests []ocispec.Descriptor
		want      string
	}{
		"converted": {[]ocispec.Descriptor{nydus, arm, amd}, "a=amd"}, "single": {[]ocispec.Descriptor{arm}, "a=arm"},
		"both": {[]ocispec.Descriptor{amd, model}, "a=model"}, "none": {[]ocispec.Descriptor{nydus}, "neither a model nor an image"},
	} {
		r.put(t, tag, types.OCIImageIndex, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: string(types.OCIImageIndex), Manifests: tc.manifests,
		})
		m, err := Open(t.Context(), "oci://"+r.host+"/m:"+tag, Config{})
		if err != nil {
			if !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s: %v", tag, err)
			}
			continue
		}
		if got, err := readAll(t, m); err != nil || len(got) != 1 || got[0] != tc.want {
			t.Errorf("%s: %q, %v", tag, got, err)
		}
	}
}

func TestOCIReferencesThatCannotBeReadAreExplained(t *testing.T) {
	r := newRegistry(t)
	r.artifact(t, "other", "application/vnd.example", "application/vnd.example.config")
	r.artifact(t, "unnamed", modelPack+"manifest.v1+json", modelPack+"config.v1+json", r.blob(t, modelPack+"weight.v1.raw", "", []byte("1")))
	r.artifact(t, "format", modelPack+"manifest.v1+json", modelPack+"config.v1+json", r.blob(t, modelPack+"weight.v1.raw+zstd", "a", []byte("1")))
	r.artifact(t, "hostile", modelPack+"manifest.v1+json", modelPack+"config.v1+json", r.blob(t, modelPack+"weight.v1.raw", "../a", []byte("1")))
	good := r.artifact(t, "good", modelPack+"manifest.v1+json", modelPack+"config.v1+json", r.blob(t, modelPack+"weight.v1.raw", "a", []byte("1")))
	r.of["/v2/m/manifests/denied"] = []fault{status(401)}
	r.of["/v2/m/manifests/"+good.Digest.String()] = []fault{spoil(3)}
	for ref, tc := range map[string]struct {
		class error
		want  string
	}{
		r.host + "/m:none": {ErrModel, "check repository and tag"}, r.host + "/m:denied": {ErrService, "docker login"},
		r.host + "/m:other": {ErrModel, "neither a model nor an image"}, r.host + "/m:unnamed": {ErrModel, "no name"},
		r.host + "/m:format": {ErrModel, "not read"}, r.host + "/m:hostile": {ErrModel, "leads out"},
		r.host + "/m:good?path=/x": {ErrModel, "for images"}, r.host + "/m:good?x=y": {ErrModel, "want path="}, r.host + "/M:v1": {ErrModel, "M"},
		"127.0.0.1:1/m:v1": {ErrService, "nobody listens"}, r.host + "/m@" + good.Digest.String(): {ErrDigest, "manifest"},
	} {
		_, err := Open(t.Context(), "oci://"+ref, quick(Config{}))
		if !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v", ref, err)
		}
	}
}

func TestRegistryCredentialsComeFromTheKeychain(t *testing.T) {
	r := newRegistry(t)
	r.artifact(t, "v1", modelPack+"manifest.v1+json", modelPack+"config.v1+json", r.blob(t, modelPack+"weight.v1.raw", "a", []byte("1")))
	guarded := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.ServeHTTP(w, req)
	}))
	ref := "oci://" + strings.TrimPrefix(guarded, "http://") + "/m:v1"
	if _, err := Open(t.Context(), ref, Config{}); !errors.Is(err, ErrService) || !strings.Contains(err.Error(), "docker login") {
		t.Errorf("without: %v", err)
	}
	m, err := Open(t.Context(), ref, Config{Keychain: keys{}})
	check(t, err)
	if got, err := readAll(t, m); err != nil || len(got) != 1 {
		t.Errorf("with: %q, %v", got, err)
	}
}

type keys struct{}

func (keys) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "me", Password: "secret"}, nil
}

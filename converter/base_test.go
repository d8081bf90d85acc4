package converter_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter"
)

func TestHostileBaseLayers(t *testing.T) {
	huge := tarOf(t, file("big", "x"))
	copy(huge[124:136], "77777777777\x00")
	fixChecksum(huge[:512])
	outside := filepath.Join(t.TempDir(), "outside")
	for _, tc := range []struct {
		name string
		tar  []byte
		want string
	}{
		{"up", tarOf(t, file("../../"+outside, "x")), "leads out"},
		{"hard link up", tarOf(t, file("a", ""), link(tar.TypeLink, "b", "../../etc/passwd")), "leads out"},
		{"hard link to nothing", tarOf(t, link(tar.TypeLink, "b", "a")), "no file"},
		{"link loop", tarOf(t, link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), file("a/x", "")), "symbolic links"},
		{"size that lies", huge, "big"},
		{"not a tar", bytes.Repeat([]byte("x"), 2048), "bad tar"},
		{"cut", tarOf(t, file("a", strings.Repeat("x", 9000)))[:4096], "bad tar"},
		{"whiteout of dots", tarOf(t, file("a/.wh...", "")), "hides nothing"},
		{"endless name", tarOf(t, file(strings.Repeat("n", 300), "")), "too long"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t, nowhere(t))
			cfg.DryRun = true
			cfg.Base = writeLayout(t, baseImage(t, linuxAMD64(), tc.tar))
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrSource, tc.want)
			if err != nil && !strings.Contains(err.Error(), "layer 1") {
				t.Errorf("the layer is not named: %v", err)
			}
		})
	}
	if _, err := os.Stat(outside); err == nil {
		t.Error("a file was written outside")
	}
}

func TestHostileLinkParentsStayInTheImage(t *testing.T) {
	outside := t.TempDir()
	cfg := config(t, nowhere(t))
	cfg.DryRun = true
	cfg.Base = writeLayout(t, baseImage(t, linuxAMD64(), tarOf(t, link(tar.TypeSymlink, "out", outside), file("out/x", "x"),
		file(outside+"/y", "y"))))
	_, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	if files, _ := os.ReadDir(outside); len(files) != 0 {
		t.Errorf("files were written outside: %v", files)
	}
}

func fixChecksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestCompressionsOfBaseLayers(t *testing.T) {
	plain := tarOf(t, file("a", "a"))
	zw, err := zstd.NewWriter(nil)
	check(t, err)
	packed := zw.EncodeAll(plain, nil)
	for _, tc := range []struct {
		name      string
		raw       []byte
		mediaType types.MediaType
		want      string
	}{
		{"none", plain, types.OCIUncompressedLayer, ocispec.MediaTypeImageLayer},
		{"zstd", packed, types.OCILayerZStd, ocispec.MediaTypeImageLayerZstd},
		{"docker's gzip", gzipped(t, plain), types.DockerLayer, ocispec.MediaTypeImageLayerGzip},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t, nowhere(t))
			cfg.DryRun = true
			cfg.Base = writeLayout(t, rawImage(t, tc.raw, tc.mediaType))
			_, err := converter.Convert(t.Context(), cfg)
			// The fixture's DiffID is that of the stored bytes, so only the uncompressed layer passes the last check.
			if tc.name == "none" {
				check(t, err)
			} else {
				wantError(t, err, converter.ErrVerify, "unpacks to")
			}
		})
	}
	cfg := config(t, nowhere(t))
	cfg.Base = writeLayout(t, rawImage(t, plain, "application/vnd.example"))
	_, err = converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "application/vnd.example")
}

func TestCorruptBaseLayerIsFound(t *testing.T) {
	manifest, err := smallBase(t).Manifest()
	check(t, err)
	flipped := func(raw []byte) []byte { raw[len(raw)/2] ^= 1; return raw }
	for name, tc := range map[string]struct {
		spoil func([]byte) []byte
		class error
		want  string
	}{
		"a byte more":    {func(raw []byte) []byte { return append(raw, 0) }, converter.ErrVerify, ""},
		"a byte flipped": {flipped, converter.ErrVerify, "digest"},
		"cut":            {func(raw []byte) []byte { return raw[:len(raw)/2] }, converter.ErrVerify, "digest"},
		"gone":           {func([]byte) []byte { return nil }, converter.ErrSource, "push it anew"},
	} {
		t.Run(name, func(t *testing.T) {
			base := writeLayout(t, smallBase(t))
			folder := strings.TrimSuffix(strings.TrimPrefix(base, "oci:"), ":latest")
			path := filepath.Join(folder, "blobs/sha256", manifest.Layers[0].Digest.Hex)
			raw, err := os.ReadFile(path)
			check(t, err)
			check(t, os.Remove(path))
			if raw = tc.spoil(raw); raw != nil {
				check(t, os.WriteFile(path, raw, 0o600))
			}
			cfg := config(t, nowhere(t))
			cfg.Base, cfg.DryRun = base, true
			_, err = converter.Convert(t.Context(), cfg)
			wantError(t, err, tc.class, tc.want)
		})
	}
}

func TestImageHasThePlatformsOfItsBase(t *testing.T) {
	arm := v1.Platform{OS: "linux", Architecture: "arm64"}
	windows := baseImage(t, v1.Platform{OS: "windows", Architecture: "amd64"})
	base := writeLayout(t, baseImage(t, arm, tarOf(t, dir("arm"))), smallBase(t), windows)
	for _, tc := range []struct{ platforms, want []string }{
		{nil, []string{"linux/arm64", "linux/amd64"}}, {[]string{"linux/amd64"}, []string{"linux/amd64"}},
	} {
		cfg := config(t, "oci:"+t.TempDir()+":v1")
		cfg.Base, cfg.Platforms = base, tc.platforms
		r, err := converter.Convert(t.Context(), cfg)
		check(t, err)
		var got []string
		model := 0
		for _, v := range r.Variants {
			got = append(got, v.Platform)
		}
		for _, l := range r.Layers {
			if l.Kind == "model" {
				model++
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" || model != 3 {
			t.Errorf("platforms %v (-want +got):\n%s%d model layers", tc.platforms, diff, model)
		}
		_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target})
		check(t, err)
	}
	cfg := config(t, nowhere(t))
	cfg.Base, cfg.Platforms, cfg.DryRun = base, []string{"linux/s390x"}, true
	_, err := converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "there are linux/arm64, linux/amd64")
}

// kinds returns the layers of some kinds, without what became of them.
func kinds(r *converter.Result, wanted ...string) []converter.Layer {
	var out []converter.Layer
	for _, l := range r.Layers {
		if slices.Contains(wanted, l.Kind) {
			l.Outcome = ""
			out = append(out, l)
		}
	}
	return out
}

// What docker, podman and skopeo save is a base like the image it was saved from: the Nydus variant has the same blobs.
func TestRootArchivesOfOtherToolsAreBases(t *testing.T) {
	needRoot(t)
	registry := dockerRegistry(t)
	ref := registry + "/base:v1"
	tag, err := name.NewTag(ref)
	check(t, err)
	check(t, remote.Write(tag, runnableBase(t)))
	cfg := converts(t, writeModel(t, time.Now(), 0o644))
	cfg.Base = ref
	want, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	dir := t.TempDir()
	docker, env := dockerDaemon(t)
	run(t, env, docker, "pull", "--quiet", ref)
	run(t, env, docker, "save", "--output", dir+"/docker.tar", ref)
	podman, global := podmanStore(t)
	run(t, nil, podman, append(global, "pull", "--quiet", "--tls-verify=false", ref)...)
	run(t, nil, podman, append(global, "save", "--quiet", "--output", dir+"/podman.tar", ref)...)
	run(t, nil, need(t, "skopeo"), "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref, "docker-archive:"+dir+"/skopeo.tar:"+ref)
	for _, base := range []string{"docker.tar", "podman.tar", "skopeo.tar", "skopeo.tar:" + ref} {
		t.Run(base, func(t *testing.T) {
			cfg.Base = "docker-archive:" + dir + "/" + base
			cfg.Target = "oci:" + t.TempDir() + "/out:v1"
			got, err := converter.Convert(t.Context(), cfg)
			check(t, err)
			_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target})
			check(t, err)
			if diff := cmp.Diff(kinds(want, "framework", "model"), kinds(got, "framework", "model")); diff != "" || len(kinds(got, "base")) != 3 {
				t.Errorf("(-registry +archive):\n%s%+v", diff, kinds(got, "base"))
			}
			raw := openLayout(t, cfg.Target).blob(t, openLayout(t, cfg.Target).variant(t, "").Config.Digest)
			if !strings.Contains(string(raw), `"Entrypoint":["/bin/sum"]`) {
				t.Errorf("configuration: %s", raw)
			}
		})
	}
}

func TestSettingsAreSeenByWhoPulls(t *testing.T) {
	arm := baseImage(t, v1.Platform{OS: "linux", Architecture: "arm64"}, tarOf(t, file("arm", "arm")))
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: smallBase(t), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}})
	host := registryWith(t, nil)
	tag, err := name.NewTag(host + "/base:v1")
	check(t, err)
	check(t, remote.WriteIndex(tag, index))
	folder := t.TempDir() + "/base"
	path, err := layout.Write(folder, empty.Index)
	check(t, err)
	check(t, path.AppendIndex(index, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: "v1"})))
	var digests []string
	for _, base := range []string{tag.String(), "oci:" + folder + ":v1"} {
		cfg := converts(t, writeModel(t, time.Now(), 0o644))
		cfg.Base, cfg.Target = base, host+"/ml/tiny:v1"
		cfg.Entrypoint, cfg.Cmd, cfg.Env, cfg.User = []string{"/serve"}, []string{"--port", "80"}, []string{"KEPT=no", "NEW=1"}, "65534:65534"
		cfg.Labels, cfg.Annotations = map[string]string{"added": "yes"}, map[string]string{"example.com/note": "text"}
		r, err := converter.Convert(t.Context(), cfg)
		check(t, err)
		_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target})
		check(t, err)
		digests = append(digests, fmt.Sprint(kinds(r, "framework", "model", "base")))
		for _, platform := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}} {
			ref, err := name.ParseReference(cfg.Target)
			check(t, err)
			img, err := remote.Image(ref, remote.WithPlatform(platform))
			check(t, err)
			got, err := img.ConfigFile()
			check(t, err)
			want := v1.Config{
				Entrypoint: []string{"/serve"}, Cmd: []string{"--port", "80"}, Env: []string{"PATH=/bin", "KEPT=no", "NEW=1"},
				User: "65534:65534", Labels: map[string]string{"test": "base", "added": "yes"},
			}
			if diff := cmp.Diff(want, got.Config); diff != "" || got.Architecture != platform.Architecture {
				t.Errorf("%s (-want +got):\n%s", got.Architecture, diff)
			}
			m, err := img.Manifest()
			check(t, err)
			if m.Annotations["example.com/note"] != "text" {
				t.Errorf("annotations: %v", m.Annotations)
			}
		}
		idx, err := remote.Index(tag.Context().Registry.Repo("ml/tiny").Tag("v1"))
		check(t, err)
		m, err := idx.IndexManifest()
		check(t, err)
		if m.Annotations["example.com/note"] != "text" || len(m.Manifests) != 4 || m.Manifests[1].Platform.Variant != "v8" {
			t.Errorf("index: %+v", m)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("base in a registry and in a layout:\n%s\n%s", digests[0], digests[1])
	}
}

func TestBaseLayersInZstdAreRead(t *testing.T) {
	zw, err := zstd.NewWriter(nil)
	check(t, err)
	plain := tarOf(t, file("a", "a"), file("b", strings.Repeat("b", 1<<20)))
	img, err := mutate.Append(baseImage(t, linuxAMD64()), mutate.Addendum{
		Layer: zstdLayer{static.NewLayer(zw.EncodeAll(plain, nil), types.OCILayerZStd), digest.FromBytes(plain)}, MediaType: types.OCILayerZStd})
	check(t, err)
	gz := baseImage(t, linuxAMD64(), plain)
	model := flatModel(t)
	var made []*converter.Result
	for _, base := range []v1.Image{img, gz} {
		cfg := converts(t, model)
		cfg.Base = writeLayout(t, base)
		r, err := converter.Convert(t.Context(), cfg)
		check(t, err)
		_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target})
		check(t, err)
		made = append(made, r)
	}
	if diff := cmp.Diff(kinds(made[1], "framework", "model"), kinds(made[0], "framework", "model")); diff != "" {
		t.Errorf("(-gzip +zstd):\n%s", diff)
	}
}

// zstdLayer knows what it unpacks to.
type zstdLayer struct {
	v1.Layer
	diffID digest.Digest
}

func (l zstdLayer) DiffID() (v1.Hash, error) { return v1.NewHash(l.diffID.String()) }

// A layer whose compressed bytes have the digest they should and are broken all the same is the image's fault, not the registry's.
func TestBrokenCompressionIsTheImagesFault(t *testing.T) {
	whole := gzipped(t, tarOf(t, file("a", string(noise(1, 1<<20)))))
	zw, err := zstd.NewWriter(nil)
	check(t, err)
	frame := zw.EncodeAll(tarOf(t, file("a", string(noise(1, 1<<20)))), nil)
	spoil := func(raw []byte, at int) []byte {
		out := slices.Clone(raw)
		for i := range 64 {
			out[at+i] ^= 0xff
		}
		return out
	}
	bomb := gzipped(t, append(tarOf(t, file("a", "a"))[:1024], make([]byte, 64<<20)...))
	for name, tc := range map[string]struct {
		raw       []byte
		mediaType types.MediaType
		class     error
	}{
		"gzip":            {spoil(whole, 40), types.OCILayer, converter.ErrSource},
		"gzip at its end": {spoil(whole, len(whole)-80), types.OCILayer, converter.ErrSource},
		"gzip cut":        {whole[:len(whole)/2], types.OCILayer, converter.ErrSource},
		"zstd":            {spoil(frame, 40), types.OCILayerZStd, converter.ErrSource},
		"zstd cut":        {frame[:len(frame)/2], types.OCILayerZStd, converter.ErrSource},
		"zeros behind":    {bomb, types.OCILayer, converter.ErrVerify}, // the fixture's DiffID is that of the stored bytes
	} {
		t.Run(name, func(t *testing.T) {
			cfg := converts(t, flatModel(t))
			cfg.Base = writeLayout(t, rawImage(t, tc.raw, tc.mediaType))
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, tc.class, "layer 1")
			wantNothingLeft(t, cfg)
		})
	}
}

func TestConnectionThatIsAlwaysCutIsNotTheBaseImagesFault(t *testing.T) {
	raw := gzipped(t, tarOf(t, file("a", string(noise(1, 1<<20)))))
	img := rawImage(t, raw, types.OCILayer)
	manifest, err := img.Manifest()
	check(t, err)
	layer := manifest.Layers[0].Digest.String()
	host := registryWith(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
				w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
				if _, err := w.Write(raw[:len(raw)/2]); err == nil {
					_ = http.NewResponseController(w).Flush()
				}
				panic(http.ErrAbortHandler)
			}
			h.ServeHTTP(w, r)
		})
	})
	base, err := name.NewTag(host + "/base:v1")
	check(t, err)
	check(t, remote.Write(base, img))
	cfg := converts(t, flatModel(t))
	cfg.Base, cfg.Access = base.String(), once()
	_, err = converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrRegistry, "layer 1")
	if errors.Is(err, converter.ErrSource) {
		t.Errorf("the image is blamed: %v", err)
	}
}

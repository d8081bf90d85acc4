package converter_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	fakeregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/layer"
	"github.com/shoal-project/shoal/converter/repository"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The registry client keeps idle connections to servers of finished tests.
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// registryWith starts a registry in this process; wrap may stand before it.
func registryWith(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := fakeregistry.New(fakeregistry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// once makes the registry client try each request twice, without patience.
func once() converter.Access {
	return converter.Access{Config: repository.Config{
		Keychain: authn.DefaultKeychain, Retry: repository.Retry{Attempts: 2, Pause: time.Millisecond, MaxPause: time.Millisecond, MaxRetryAfter: time.Millisecond},
	}}
}

func smallBase(t testing.TB) v1.Image {
	return baseImage(t, linuxAMD64(), tarOf(t, dir("etc"), file("etc/hello", "hello"), link(tar.TypeSymlink, "srv", "etc")))
}

func config(t testing.TB, target string) converter.Config {
	return converter.Config{
		Model: writeModel(t, time.Now(), 0o644), Base: writeLayout(t, smallBase(t)), Target: target, Access: once(),
	}
}

func TestEqualContentGivesEqualDigests(t *testing.T) {
	convert := func(model string) *converter.Result {
		r, err := converter.Convert(t.Context(), converter.Config{
			Model: model, Base: writeLayout(t, smallBase(t)), Target: "example.com/ml/tiny:v1", DryRun: true,
		})
		check(t, err)
		return r
	}
	one := convert(writeModel(t, time.Unix(1, 0), 0o600))
	two := convert(writeModel(t, time.Now(), 0o644))
	one.Source, two.Source = "", ""
	if diff := cmp.Diff(one, two); diff != "" {
		t.Errorf("two folders with equal content (-one +two):\n%s", diff)
	}
	changed := writeModel(t, time.Now(), 0o644)
	check(t, os.WriteFile(filepath.Join(changed, "config.json"), []byte("{}"), 0o644))
	if convert(changed).Digest == one.Digest {
		t.Error("other content has the same digest")
	}
	executable := writeModel(t, time.Now(), 0o644)
	check(t, os.Chmod(filepath.Join(executable, "config.json"), 0o755))
	if convert(executable).Digest == one.Digest {
		t.Error("an executable file has the digest of one that is not")
	}
}

func TestModelLayersDoNotDependOnTheBase(t *testing.T) {
	model := writeModel(t, time.Now(), 0o644)
	modelLayers := func(base v1.Image) []converter.Layer {
		r, err := converter.Convert(t.Context(), converter.Config{
			Model: model, Base: writeLayout(t, base), Target: "example.com/ml/tiny:v1", DryRun: true,
		})
		check(t, err)
		var out []converter.Layer
		for _, l := range r.Layers {
			if l.Kind == "model" {
				out = append(out, l)
			}
		}
		return out
	}
	want := modelLayers(smallBase(t))
	got := modelLayers(baseImage(t, v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, tarOf(t, dir("models"))))
	if diff := cmp.Diff(want, got); diff != "" || len(want) != 3 {
		t.Errorf("(-one base +another):\n%s%v", diff, want)
	}
}

func TestPushedImageIsWhole(t *testing.T) {
	host := registryWith(t, nil)
	cfg := config(t, host+"/ml/tiny:v1")
	cfg.Entrypoint, cfg.Cmd, cfg.Env = []string{"/serve"}, []string{"--port", "80"}, []string{"KEPT=no", "NEW=1"}
	result, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	ref, err := name.ParseReference(cfg.Target)
	check(t, err)
	idx, err := remote.Index(ref)
	check(t, err)
	manifest, err := idx.IndexManifest()
	check(t, err)
	if len(manifest.Manifests) != 2 || manifest.Manifests[0].ArtifactType != "" {
		t.Fatalf("want the plain manifest and the Nydus one, got %+v", manifest.Manifests)
	}
	for _, d := range manifest.Manifests {
		img, err := idx.Image(d.Digest)
		check(t, err)
		layers, err := img.Layers()
		check(t, err)
		for _, l := range layers {
			r, err := l.Compressed()
			check(t, err)
			_, err = io.Copy(io.Discard, r) // verifies
			check(t, err)
			check(t, r.Close())
		}
	}
	img, err := idx.Image(manifest.Manifests[0].Digest)
	check(t, err)
	got, err := img.ConfigFile()
	check(t, err)
	want := v1.Config{
		Entrypoint: []string{"/serve"}, Cmd: []string{"--port", "80"}, Env: []string{"PATH=/bin", "KEPT=no", "NEW=1"},
		Labels: map[string]string{"test": "base"},
	}
	if diff := cmp.Diff(want, got.Config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if len(got.History) != 4 || len(got.RootFS.DiffIDs) != 4 || !got.Created.Equal(time.Unix(0, 0)) || !result.Pushed {
		t.Errorf("history %v, %d layers, created %v", got.History, len(got.RootFS.DiffIDs), got.Created)
	}
}

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

// wantError checks class and text, and that the text is one line.
func wantError(t *testing.T, err, class error, text string) {
	t.Helper()
	if !errors.Is(err, class) || !strings.Contains(fmt.Sprint(err), text) || strings.Contains(fmt.Sprint(err), "\n") {
		t.Errorf("want one line of class %q with %q, got: %v", class, text, err)
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

// TestFileChangedBetweenThePasses changes the model's large file when its upload begins.
func TestFileChangedBetweenThePasses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(path string) error
		class  error
	}{
		{"other bytes", func(path string) error { return os.WriteFile(path, noise(9, 5<<20+123), 0o644) }, layer.ErrChanged},
		{"shorter", func(path string) error { return os.Truncate(path, 3<<20) }, layer.ErrChanged},
		{"longer", func(path string) error { return os.WriteFile(path, noise(1, 6<<20), 0o644) }, layer.ErrChanged},
		{"gone", os.Remove, os.ErrNotExist},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var cfg converter.Config
			var change sync.Once
			host := registryWith(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/blobs/") {
						change.Do(func() { // the uploads wait until the model was read
							eventually(t, "hashing", func() bool { return cfg.Progress.(*recorder).read(cfg.Model) })
							check(t, tc.change(filepath.Join(cfg.Model, "weights.bin")))
						})
					}
					h.ServeHTTP(w, r)
				})
			})
			cfg = config(t, host+"/ml/tiny:v1")
			cfg.Progress, cfg.Uploads = &recorder{}, 10
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, converter.ErrSource, "weights.bin")
			if !errors.Is(err, tc.class) {
				t.Errorf("want %v, got %v", tc.class, err)
			}
		})
	}
}

// recorder counts what was done.
type recorder struct {
	mu         sync.Mutex
	plan, done [2]int64
	last       string
}

func (r *recorder) Step(text string) { r.mu.Lock(); defer r.mu.Unlock(); r.last = text }
func (r *recorder) Plan(s converter.Stage, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plan[s] += n
}
func (r *recorder) Done(s converter.Stage, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[s] += n
}

// read reports whether all was hashed.
func (r *recorder) read(string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.plan[converter.Read] > 0 && r.done[converter.Read] >= r.plan[converter.Read]
}

func TestProgressReachesThePlan(t *testing.T) {
	cfg := config(t, registryWith(t, nil)+"/ml/tiny:v1")
	rec := &recorder{}
	cfg.Progress = rec
	_, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	if rec.plan != rec.done || rec.plan[0] == 0 || rec.plan[1] == 0 {
		t.Errorf("planned %v, done %v", rec.plan, rec.done)
	}
}

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
			cfg := config(t, "example.com/ml/tiny:v1")
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
	cfg := config(t, "example.com/ml/tiny:v1")
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
			cfg := config(t, "example.com/ml/tiny:v1")
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
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.Base = writeLayout(t, rawImage(t, plain, "application/vnd.example"))
	_, err = converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "application/vnd.example")
}

func TestCorruptBaseLayerIsFound(t *testing.T) {
	base := writeLayout(t, smallBase(t))
	img := smallBase(t)
	manifest, err := img.Manifest()
	check(t, err)
	folder := strings.TrimSuffix(strings.TrimPrefix(base, "oci:"), ":latest")
	path := filepath.Join(folder, "blobs/sha256", manifest.Layers[0].Digest.Hex)
	raw, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, append(raw, 0), 0o600))
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.Base, cfg.DryRun = base, true
	_, err = converter.Convert(t.Context(), cfg)
	wantAny := errors.Is(err, converter.ErrVerify) || errors.Is(err, converter.ErrSource)
	if err == nil || !wantAny {
		t.Errorf("a byte more: %v", err)
	}
}

func TestUnusableSources(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, cfg *converter.Config)
		class  error
		want   string
	}{
		{"no model", func(t *testing.T, c *converter.Config) { c.Model = "/does/not/exist" }, converter.ErrSource, "/does/not/exist"},
		{"empty model", func(t *testing.T, c *converter.Config) { c.Model = t.TempDir() }, converter.ErrSource, "no file"},
		{"broken link", func(t *testing.T, c *converter.Config) {
			check(t, os.Symlink("nowhere", filepath.Join(c.Model, "broken")))
		}, converter.ErrSource, "broken"},
		{"no base", func(t *testing.T, c *converter.Config) { c.Base = "oci:/does/not/exist" }, converter.ErrSource, "oci:/does/not/exist does not exist"},
		{"no such tag", func(t *testing.T, c *converter.Config) { c.Base = strings.TrimSuffix(c.Base, "latest") + "v9" }, converter.ErrSource, `tag "v9"`},
		{"other platform", func(t *testing.T, c *converter.Config) { c.Platforms = []string{"linux/arm64"} }, converter.ErrSource, "no image for linux/arm64; there are linux/amd64"},
		{"windows", func(t *testing.T, c *converter.Config) {
			c.Base = writeLayout(t, baseImage(t, v1.Platform{OS: "windows", Architecture: "amd64"}))
		}, converter.ErrSource, "only linux"},
		{"base unknown to its registry", func(t *testing.T, c *converter.Config) { c.Base = registryWith(t, nil) + "/no/such:v1" }, converter.ErrSource, "does not exist"},
		{"odd reference", func(t *testing.T, c *converter.Config) { c.Base = "UPPER CASE" }, converter.ErrConfig, "--base"},
		{"no tag", func(t *testing.T, c *converter.Config) { c.Target = "127.0.0.1:1/ml/tiny" }, converter.ErrConfig, "has no tag"},
		{"digest as target", func(t *testing.T, c *converter.Config) {
			c.Target = "r.example.com/a@sha256:" + strings.Repeat("0", 64)
		}, converter.ErrConfig, "digest"},
		{"relative model path", func(t *testing.T, c *converter.Config) { c.ModelPath = "models" }, converter.ErrConfig, "--model-path"},
		{"model path up", func(t *testing.T, c *converter.Config) { c.ModelPath = "/models/../etc" }, converter.ErrConfig, "--model-path"},
		{"odd variable", func(t *testing.T, c *converter.Config) { c.Env = []string{"X"} }, converter.ErrConfig, "NAME=VALUE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := config(t, "127.0.0.1:1/ml/tiny:v1")
			cfg.DryRun = true
			tc.change(t, &cfg)
			_, err := converter.Convert(t.Context(), cfg)
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
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.Base, cfg.Platforms, cfg.DryRun = base, []string{"linux/s390x"}, true
	_, err := converter.Convert(t.Context(), cfg)
	wantError(t, err, converter.ErrSource, "there are linux/arm64, linux/amd64")
}

func TestAllFaultsOfTheConfigurationAtOnce(t *testing.T) {
	_, err := converter.Convert(t.Context(), converter.Config{})
	for _, want := range []string{"--model", "--base", "--target"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s is not mentioned: %v", want, err)
		}
	}
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

func TestManyLargeFilesShareLayers(t *testing.T) {
	cfg := config(t, "example.com/ml/many:v1")
	cfg.DryRun = true
	for i := range 100 {
		check(t, os.WriteFile(filepath.Join(cfg.Model, fmt.Sprintf("shard-%03d", i)), make([]byte, 1<<20+i), 0o644))
	}
	r, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	layers := 0
	for _, l := range r.Layers {
		if l.Kind == "model" {
			layers++
		}
	}
	if layers > 64 || layers < 40 {
		t.Errorf("%d model layers for 102 large files", layers)
	}
}

func TestResultIsStableJSON(t *testing.T) {
	cfg := config(t, "example.com/ml/tiny:v1")
	cfg.DryRun = true
	r, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	raw, err := json.Marshal(r)
	check(t, err)
	for _, key := range []string{`"target":"example.com/ml/tiny:v1"`, `"digest":"sha256:`, `"plain":`, `"nydus":`, `"model_files":9`, `"pushed":false`, `"kind":"bootstrap"`} {
		if !strings.Contains(string(raw), key) {
			t.Errorf("%s is not in %s", key, raw)
		}
	}
}

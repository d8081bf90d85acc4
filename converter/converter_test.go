package converter_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	fakeregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/layer"
	"github.com/shoal-project/shoal/converter/repository"
	"github.com/shoal-project/shoal/converter/source"
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

// nowhere is a target for dry runs, which ask it whether it could be written.
func nowhere(t testing.TB) string { t.Helper(); return "oci:" + t.TempDir() + "/out:v1" }

func TestEqualContentGivesEqualDigests(t *testing.T) {
	target := nowhere(t)
	convert := func(model string) *converter.Result {
		r, err := converter.Convert(t.Context(), converter.Config{
			Model: model, Base: writeLayout(t, smallBase(t)), Target: target, DryRun: true,
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
			Model: model, Base: writeLayout(t, base), Target: nowhere(t), DryRun: true,
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

// wantError checks class and text, and that the text is one line.
func wantError(t *testing.T, err, class error, text string) {
	t.Helper()
	if !errors.Is(err, class) || !strings.Contains(fmt.Sprint(err), text) || strings.Contains(fmt.Sprint(err), "\n") {
		t.Errorf("want one line of class %q with %q, got: %v", class, text, err)
	}
	wantNamedOnce(t, err)
}

// wantNamedOnce refuses an error that names a file twice, be it by another way to it.
func wantNamedOnce(t *testing.T, err error) {
	t.Helper()
	seen := map[string]bool{}
	for part := range strings.SplitSeq(fmt.Sprint(err), ": ") {
		words := strings.Fields(part)
		if len(words) == 0 || !strings.Contains(words[len(words)-1], ".") || strings.Contains(words[len(words)-1], ":") {
			continue
		}
		name := path.Base(strings.Trim(words[len(words)-1], `"`))
		if seen[name] {
			t.Errorf("%s is named twice: %v", name, err)
		}
		seen[name] = true
	}
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
			// The last bytes may be read while the end of the file is still to be looked at: then it changed under the first reading.
			if !errors.Is(err, tc.class) && !errors.Is(err, source.ErrChanged) {
				t.Errorf("want %v, got %v", tc.class, err)
			}
		})
	}
}

// recorder counts what was done.
type recorder struct {
	mu         sync.Mutex
	plan, done [3]int64
	last       string
}

func (r *recorder) Ended(converter.Stage, string) {}

func (r *recorder) Step(_ converter.Stage, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = text
}

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
	if rec.plan != rec.done || slices.Contains(rec.plan[:], 0) {
		t.Errorf("planned %v, done %v", rec.plan, rec.done)
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
			cfg := config(t, nowhere(t))
			cfg.DryRun = true
			tc.change(t, &cfg)
			_, err := converter.Convert(t.Context(), cfg)
			wantError(t, err, tc.class, tc.want)
		})
	}
}

func TestAllFaultsOfTheConfigurationAtOnce(t *testing.T) {
	_, err := converter.Convert(t.Context(), converter.Config{})
	for _, want := range []string{"--model", "--base", "--target"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%s is not mentioned: %v", want, err)
		}
	}
}

func TestManyLargeFilesShareLayers(t *testing.T) {
	cfg := config(t, nowhere(t))
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
	cfg := config(t, nowhere(t))
	cfg.DryRun = true
	r, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	raw, err := json.Marshal(r)
	check(t, err)
	for _, key := range []string{`"target":"oci:`, `"digest":"sha256:`, `"plain":`, `"nydus":`, `"model_files":9`, `"pushed":false`, `"kind":"bootstrap"`} {
		if !strings.Contains(string(raw), key) {
			t.Errorf("%s is not in %s", key, raw)
		}
	}
}

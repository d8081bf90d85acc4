package converter_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/source"
	"github.com/shoal-project/shoal/converter/source/hubtest"
)

func flatModel(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tiny")
	for name, data := range map[string][]byte{
		"config.json": []byte(`{"layers": 2}`), "weights/b.bin": noise(1, 5<<20+123), "weights/a.bin": noise(2, 1<<20),
		"weights-2/c.bin": noise(3, 2<<20), "tokenizer/deep/vocab.txt": noise(4, 300_000), "nothing": nil, "naïve name.txt": []byte("x"),
	} {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
	return dir
}

// converts is a conversion into a layout.
func converts(t testing.TB, model string) converter.Config {
	t.Helper()
	return converter.Config{
		Model: model, Name: "tiny", Base: writeLayout(t, smallBase(t)), Target: "oci:" + filepath.Join(t.TempDir(), "out") + ":v1", TempDir: t.TempDir(),
		Source: source.Config{Retries: 2, RetryDelay: time.Millisecond},
	}
}

// modelLayers converts and returns what does not hang on where the model came from.
func modelLayers(t testing.TB, cfg converter.Config) []converter.Layer {
	t.Helper()
	r, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Access: once()})
	check(t, err)
	var out []converter.Layer
	for _, l := range r.Layers {
		if l.Kind == "model" {
			l.Outcome = ""
			out = append(out, l)
		}
	}
	return out
}

// wantNothingLeft checks that a conversion into a layout that failed left neither a tag nor files.
func wantNothingLeft(t testing.TB, cfg converter.Config) {
	t.Helper()
	if left, err := os.ReadDir(cfg.TempDir); err != nil || len(left) != 0 {
		t.Errorf("in the temporary folder: %v, %v", left, err)
	}
	folder := strings.TrimSuffix(strings.TrimPrefix(cfg.Target, "oci:"), ":v1")
	if _, err := os.Stat(filepath.Join(folder, "index.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a tag: %v", err)
	}
	if left, _ := filepath.Glob(folder + "/blobs/*/.partial*"); len(left) != 0 {
		t.Errorf("halves: %v", left)
	}
}

// tarFolder makes a tar of a folder by the system's tar.
func tarFolder(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need(t, "tar"), append([]string{"-C", dir, "-c"}, append(args, ".")...)...)
	raw, err := cmd.Output()
	check(t, err)
	return raw
}

// reversed is a tar of the folder's files in the reverse order, without folders.
func reversed(t testing.TB, dir string) []byte {
	t.Helper()
	var entries []entry
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		entries = append([]entry{file(rel, string(data))}, entries...)
		return err
	}))
	return tarOf(t, entries...)
}

func TestEverySourceGivesTheLayersOfTheFolder(t *testing.T) {
	dir := flatModel(t)
	want := modelLayers(t, converts(t, dir))
	if len(want) != 4 {
		t.Fatalf("%d layers", len(want))
	}
	raw := tarFolder(t, dir, "--sort=name")
	zw, err := zstd.NewWriter(nil)
	check(t, err)
	packed := zw.EncodeAll(raw, nil)
	served := t.TempDir()
	for name, data := range map[string][]byte{"tiny.tar": raw, "tiny.tar.zst": packed, "tiny.tgz": gzipped(t, raw), "tiny.zip": zipFolder(t, dir)} {
		check(t, os.WriteFile(filepath.Join(served, name), data, 0o644))
	}
	web := httptest.NewServer(http.FileServer(http.Dir(served)))
	t.Cleanup(web.Close)
	hub := httptest.NewServer(&hubtest.Hub{ID: "org/tiny", Dir: dir, Large: 1 << 20})
	t.Cleanup(hub.Close)
	for name, change := range map[string]func(c *converter.Config){
		"tar on standard input":      func(c *converter.Config) { c.Model, c.Source.Stdin = "-", bytes.NewReader(raw) },
		"gzip on standard input":     func(c *converter.Config) { c.Model, c.Source.Stdin = "-", bytes.NewReader(gzipped(t, raw)) },
		"unsorted on standard input": func(c *converter.Config) { c.Model, c.Source.Stdin = "-", bytes.NewReader(reversed(t, dir)) },
		"tar":                        func(c *converter.Config) { c.Model = served + "/tiny.tar" },
		"zip":                        func(c *converter.Config) { c.Model = served + "/tiny.zip" },
		"tar+zstd of a server":       func(c *converter.Config) { c.Model = web.URL + "/tiny.tar.zst" },
		"tar+gzip of a server":       func(c *converter.Config) { c.Model = web.URL + "/tiny.tgz" },
		"zip of a server":            func(c *converter.Config) { c.Model = web.URL + "/tiny.zip" },
		"hub":                        func(c *converter.Config) { c.Model, c.Source.Hub.Endpoint = "hf://org/tiny@main", hub.URL },
		"hub into a registry": func(c *converter.Config) {
			c.Model, c.Source.Hub.Endpoint, c.Target = "hf://org/tiny", hub.URL, registryWith(t, nil)+"/ml/tiny:v1"
		},
		"tar into a registry": func(c *converter.Config) {
			c.Model, c.Source.Stdin, c.Target = "-", bytes.NewReader(raw), registryWith(t, nil)+"/ml/tiny:v1"
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := converts(t, "")
			change(&cfg)
			rec := &recorder{}
			cfg.Progress = rec
			if diff := cmp.Diff(want, modelLayers(t, cfg)); diff != "" {
				t.Errorf("(-folder +other):\n%s", diff)
			}
			if rec.plan != rec.done {
				t.Errorf("planned %v, done %v", rec.plan, rec.done)
			}
		})
	}
	t.Run("bucket", func(t *testing.T) {
		cfg := converts(t, "s3://bkt/models/tiny")
		cfg.Source.S3 = bucketWith(t, dir, "models/tiny")
		if diff := cmp.Diff(want, modelLayers(t, cfg)); diff != "" {
			t.Errorf("(-folder +bucket):\n%s", diff)
		}
	})
}

func zipFolder(t testing.TB, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := zip.NewWriter(&out)
	check(t, zw.AddFS(os.DirFS(dir)))
	check(t, zw.Close())
	return out.Bytes()
}

// bucketWith starts an object store with the folder in it.
func bucketWith(t *testing.T, dir, prefix string) source.S3 {
	const user, secret = "shoaluser", "shoalsecret"
	address := freeAddress(t)
	daemon(t, need(t, "minio"), []string{
		"MINIO_ROOT_USER=" + user, "MINIO_ROOT_PASSWORD=" + secret, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off",
	}, "server", "--quiet", "--address", address, t.TempDir())
	eventually(t, "minio", func() bool {
		resp, err := http.Get("http://" + address + "/minio/health/cluster")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": user, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_REGION": "", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": t.TempDir() + "/none", "AWS_SHARED_CREDENTIALS_FILE": t.TempDir() + "/none", "AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": "",
	} {
		t.Setenv(name, value)
	}
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String("http://" + address), UsePathStyle: true, Region: "us-east-1",
		Credentials: credentials.NewStaticCredentialsProvider(user, secret, ""),
	})
	_, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("bkt")})
	check(t, err)
	for name := range sums(t, dir) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		check(t, err)
		_, err = client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("bkt"), Key: aws.String(prefix + "/" + name), Body: bytes.NewReader(data)})
		check(t, err)
	}
	return source.S3{Endpoint: "http://" + address}
}

// A folder with links, empty folders and programs loses nothing in a tar.
func TestTarOnStandardInputGivesTheImageOfTheFolder(t *testing.T) {
	dir := writeModel(t, time.Now(), 0o640)
	cfg := converts(t, dir)
	want, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	cfg.Model, cfg.Source.Stdin = "-", bytes.NewReader(tarFolder(t, dir, "--sort=name"))
	got, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	if want.Digest != got.Digest || got.ModelFiles != want.ModelFiles || got.ModelBytes != want.ModelBytes {
		t.Errorf("want %+v\ngot %+v", want, got)
	}
}

func TestLargeFilesOfAStreamShareLayersAboveForty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiny")
	check(t, os.Mkdir(dir, 0o755))
	for i := range 45 {
		check(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("shard-%02d", i)), noise(uint64(i), 1<<20+i), 0o644))
	}
	for i := range 40 { // more small ones than are held in memory
		check(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("small-%02d", i)), noise(uint64(100+i), 900<<10), 0o644))
	}
	want := modelLayers(t, converts(t, dir))
	cfg := converts(t, "-")
	cfg.Source.Stdin = bytes.NewReader(tarFolder(t, dir, "--sort=name"))
	got := modelLayers(t, cfg)
	if len(want) != 46 || len(got) != 42 || got[41].Of != "5 large files from shard-40" {
		t.Errorf("%d layers of the folder, %d of the stream, the last: %+v", len(want), len(got), got[len(got)-1])
	}
	if diff := cmp.Diff(want[:41], got[:41]); diff != "" {
		t.Errorf("(-folder +stream):\n%s", diff)
	}
	wantModel(t, cfg.Target, sums(t, dir))
}

func TestStreamsThatEndOrLieAreRefused(t *testing.T) {
	large := strings.Repeat("large ", 1<<19)
	whole := tarOf(t, file("a", "small"), file("b", large), file("c", "small"), file("d", large))
	many := []entry{}
	for i := range 42 {
		many = append(many, file(fmt.Sprintf("shard-%02d", i), large[:1<<20]))
	}
	shared := tarOf(t, many...)
	device := entry{tar.Header{Typeflag: tar.TypeChar, Name: "tty"}, ""}
	for _, tc := range []struct {
		name string
		raw  []byte
		want string
	}{
		{"cut in a header", whole[:512+512+100], "too early"},
		{"cut in a large file", whole[:1<<20], "too early"},
		{"cut in a small file", tarOf(t, file("a", large[:1000]))[:1000], "too early"},
		{"cut before its end", whole[:len(whole)-1024], "too early"},
		{"cut in a shared layer", shared[:len(shared)-1<<20], "too early"},
		{"gzip cut", gzipped(t, whole)[:3000], "too early"},
		{"nothing", nil, "empty"},
		{"no tar", bytes.Repeat([]byte("x"), 4096), "no tar"},
		{"name that leads out", tarOf(t, file("b", large), file("../../etc/passwd", "x")), "leads out"},
		{"absolute name", tarOf(t, file("b", large), file("/etc/passwd", "x")), "absolute"},
		{"whiteout", tarOf(t, file("b", large), file(".wh.b", "")), ".wh."},
		{"name twice", tarOf(t, file("b", large), file("b", large)), "twice"},
		{"file and folder", tarOf(t, file("b", large), file("b/c", "x")), "both a file and a folder"},
		{"below a link", tarOf(t, dir("d"), link(tar.TypeSymlink, "l", "d"), file("l/x", "x")), "below the symbolic link"},
		{"link that leads out", tarOf(t, file("b", large), link(tar.TypeSymlink, "l", "../../x")), "leads out"},
		{"links in a circle", tarOf(t, file("b", large), link(tar.TypeSymlink, "l", "m"), link(tar.TypeSymlink, "m", "l")), "too many links"},
		{"hard link", tarOf(t, file("b", large), link(tar.TypeLink, "l", "b")), "--hard-dereference"},
		{"device", tarOf(t, file("b", large), device), "neither file"},
		{"name that is too long", tarOf(t, file(strings.Repeat("n", 256), "x")), "longer than 255"},
		{"name that is no text", tarOf(t, file("caf\xe9", "x")), "UTF-8"},
	} {
		for _, target := range []string{"layout", "registry"} {
			t.Run(tc.name+" into a "+target, func(t *testing.T) {
				cfg := converts(t, "-")
				cfg.Source.Stdin, cfg.Access = bytes.NewReader(tc.raw), once()
				if target == "registry" {
					cfg.Target = registryWith(t, nil) + "/ml/tiny:v1"
				}
				_, err := converter.Convert(t.Context(), cfg)
				wantError(t, err, converter.ErrSource, tc.want)
				if target == "layout" {
					wantNothingLeft(t, cfg)
					return
				}
				_, err = converter.Check(t.Context(), converter.CheckConfig{Image: cfg.Target, Access: once()})
				wantError(t, err, converter.ErrSource, "does not exist")
			})
		}
	}
}

func TestFiltersHoldForFoldersAndStreams(t *testing.T) {
	dir := flatModel(t)
	want := map[string]string{}
	for name, sum := range sums(t, dir) {
		if strings.HasSuffix(name, ".bin") && name != "weights/a.bin" {
			want[name] = sum
		}
	}
	for _, model := range []string{dir, "-"} {
		cfg := converts(t, model)
		cfg.Source.Stdin = bytes.NewReader(tarFolder(t, dir))
		cfg.Source.Include, cfg.Source.Exclude = []string{"*.bin"}, []string{"weights/a.*"}
		r, err := converter.Convert(t.Context(), cfg)
		check(t, err)
		if r.ModelFiles != 2 {
			t.Errorf("%s: %d files", model, r.ModelFiles)
		}
		wantModel(t, cfg.Target, want)
		cfg = converts(t, model)
		cfg.Source.Stdin = bytes.NewReader(tarFolder(t, dir))
		cfg.Source.Include = []string{"*.none"}
		_, err = converter.Convert(t.Context(), cfg)
		wantError(t, err, converter.ErrSource, "--include")
		wantNothingLeft(t, cfg)
	}
}

func TestSingleFileIsAModel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "llama.bin")
	check(t, os.WriteFile(path, noise(1, 2<<20), 0o600))
	cfg := converts(t, path)
	cfg.Name = ""
	r, err := converter.Convert(t.Context(), cfg)
	check(t, err)
	if r.ModelPath != "/models/llama" || r.ModelFiles != 1 {
		t.Errorf("%+v", r)
	}
	wantModel(t, cfg.Target, sums(t, filepath.Dir(path)))
}

// A model that shoal made an image of is read back from it: from the plain image and from the model alone.
func TestImagesOfOursAreSources(t *testing.T) {
	for _, dir := range []string{flatModel(t), writeModel(t, time.Now(), 0o644)} {
		want := sums(t, dir)
		for _, path := range []string{"", "/opt/some/where"} {
			cfg := converts(t, dir)
			cfg.ModelPath, cfg.Target, cfg.ModelPack = path, registryWith(t, nil)+"/ml/tiny:v1", true
			layers := modelLayers(t, cfg)
			made, err := converter.Convert(t.Context(), cfg)
			check(t, err)
			repo := strings.TrimSuffix(cfg.Target, ":v1")
			plain := "oci://" + repo + "@" + made.Variants[0].Plain.String()
			if path != "" {
				plain += "?path=" + path
			}
			for _, ref := range []string{"oci://" + cfg.Target, plain, "oci://" + repo + "@" + made.ModelPack.String()} {
				again := converts(t, ref)
				again.ModelPath = path
				if diff := cmp.Diff(layers, modelLayers(t, again)); diff != "" {
					t.Errorf("%s (-made +read back):\n%s", ref, diff)
				}
				wantModel(t, again.Target, want)
			}
		}
	}
}

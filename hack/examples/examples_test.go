package examples

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/shoal-project/shoal/converter/source/hubtest"
	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/hack/loopback"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Hosts that the pages name. Each is a server of the test.
const (
	docRegistry = "registry.example.com"
	docWeb      = "https://host.example.com"
)

func TestExamplesOfTheDocsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers and builds programs")
	}
	cluster.NeedTools(t, "bash", "jq", "zstd")
	w := newWorld(t)
	w.login(t)
	w.page(t, "sources.md")
	for _, tag := range []string{"hub", "s3", "web", "again"} {
		if diff := cmp.Diff(w.layers(t, "ml/llama:tar"), w.layers(t, "ml/llama:"+tag)); diff != "" {
			t.Errorf("layers of one model (-tar +%s):\n%s", tag, diff)
		}
	}
}

func TestRootExamplesOfTheDocsForPipelinesRun(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers and builds programs")
	}
	cluster.NeedRoot(t)
	cluster.NeedTools(t, "bash", "jq", "zstd", "skopeo", "dockerd", "docker")
	w := newWorld(t)
	w.docker(t)
	w.login(t)
	w.publishShoal(t)
	w.page(t, "ci.md")
	w.runner.shell(t, `docker image inspect --format '{{index .RepoDigests 0}}' "$APP" >built`, []string{"APP=" + w.registry + "/ml/app:v2"})
	built, err := os.ReadFile(filepath.Join(w.runner.dir, "built"))
	check(t, err)
	_, was, _ := strings.Cut(strings.TrimSpace(string(built)), "@")
	w.wantPlain(t, "ml/app:v2", was)
	// What the deployments were told is what the registry has.
	deployed, err := os.ReadFile(filepath.Join(w.runner.dir, "kubectl.log"))
	check(t, err)
	if got := strings.Count(string(deployed), "set image deployment/llama llama="+w.registry+"/ml/llama@sha256:"); got != 3 {
		t.Errorf("want 3 deployments by digest, got:\n%s", deployed)
	}
	for _, tag := range []string{"v1", "candidate"} {
		if d := w.digest(t, "ml/llama:"+tag); !strings.Contains(string(deployed), d) {
			t.Errorf("%s is %s, which was never deployed:\n%s", tag, d, deployed)
		}
	}
}

// wantPlain compares the first manifest of an index with the image that was there before.
func (w *world) wantPlain(t *testing.T, rest, was string) {
	t.Helper()
	index, err := remote.Index(w.ref(t, rest), remote.WithContext(t.Context()), w.auth())
	check(t, err)
	manifest, err := index.IndexManifest()
	check(t, err)
	if got := manifest.Manifests[0].Digest.String(); got != was {
		t.Errorf("%s has the plain variant %s, built was %s", rest, got, was)
	}
}

// world is a machine with everything that the pages speak of.
type world struct {
	registry string
	web      string
	home     string
	runner   runner
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{registry: loopback.PrivateRegistry(t), home: filepath.Join(dir, "home")}
	w.runner.dir = filepath.Join(dir, "work")
	bin := filepath.Join(dir, "bin")
	for _, d := range []string{w.home, bin} {
		check(t, os.MkdirAll(d, 0o700))
	}
	for _, model := range []string{"model", "models/llama"} {
		writeModel(t, filepath.Join(w.runner.dir, model))
	}
	writeModel(t, filepath.Join(dir, "llama"))
	cluster.NeedTools(t, "go")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/shoal-project/shoal/cmd/shoal")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build shoal: %v\n%s", err, out)
	}
	// There is no cluster here: kubectl notes what it was told.
	script(t, bin, "kubectl", `echo "$@" >>`+w.runner.dir+"/kubectl.log")

	// docker and shoal know that registries on loopback speak plain HTTP; skopeo is told. Containers have no network but the machine's.
	if tool, err := exec.LookPath("skopeo"); err == nil {
		script(t, bin, "skopeo", fmt.Sprintf(`[ "$1" != copy ] || { shift; set -- copy --dest-tls-verify=false "$@"; }
exec %s "$@"`, tool))
	}
	if tool, err := exec.LookPath("docker"); err == nil {
		script(t, bin, "docker", fmt.Sprintf(`[ "$1" != run ] || { shift; set -- run --network=host "$@"; }
exec %s "$@"`, tool))
	}

	store := loopback.MinIO(t)
	for _, file := range []string{"config.json", "model.safetensors", "original/notes.txt"} {
		store.Put(t, "models", "llama/7/"+file, filepath.Join(dir, "llama", file))
	}
	hub := httptest.NewServer(&hubtest.Hub{ID: "org/llama", Dir: filepath.Join(dir, "llama"), Large: 1000})
	t.Cleanup(hub.Close)
	archive := filepath.Join(dir, "web", "llama.tar.zst")
	check(t, os.Mkdir(filepath.Dir(archive), 0o700))
	w.runner.env = []string{
		"HOME=" + w.home, "PATH=" + bin + ":" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=" + w.home, "HF_ENDPOINT=" + hub.URL,
		"AWS_ENDPOINT_URL=" + store.URL, "AWS_ACCESS_KEY_ID=" + store.AccessKey, "AWS_SECRET_ACCESS_KEY=" + store.SecretKey,
		"AWS_EC2_METADATA_DISABLED=true",
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH")) // which pipelines begin with
	w.runner.shell(t, "tar -C "+dir+"/llama -c . | zstd -q -o "+archive, nil)
	packed, err := os.ReadFile(archive)
	check(t, err)
	sum := sha256.Sum256(packed)
	w.runner.env = append(w.runner.env, "SHA256="+hex.EncodeToString(sum[:]))
	web := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(archive))))
	t.Cleanup(web.Close)
	w.web = web.URL
	w.runner.secrets = map[string]string{
		"REGISTRY_USER": loopback.User, "REGISTRY_PASSWORD": loopback.Password, "AWS_ACCESS_KEY_ID": store.AccessKey, "AWS_SECRET_ACCESS_KEY": store.SecretKey,
		"CI_REGISTRY": w.registry, "CI_REGISTRY_IMAGE": w.registry + "/ml", "CI_REGISTRY_USER": loopback.User, "CI_REGISTRY_PASSWORD": loopback.Password,
	}
	w.pushBase(t)
	return w
}

func script(t *testing.T, dir, name, text string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700))
}

// writeModel writes the same model wherever it is asked to.
func writeModel(t *testing.T, dir string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(dir, "original"), 0o755))
	header := `{"w":{"dtype":"U8","shape":[1048576],"data_offsets":[0,1048576]}}`
	weights := append([]byte{byte(len(header)), 0, 0, 0, 0, 0, 0, 0}, header...)
	weights = append(weights, bytes.Repeat([]byte("weights "), 1<<17)...)
	for name, data := range map[string][]byte{"config.json": []byte("{}\n"), "model.safetensors": weights, "original/notes.txt": []byte("notes\n")} {
		check(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
}

func (w *world) auth() remote.Option {
	return remote.WithAuth(&authn.Basic{Username: loopback.User, Password: loopback.Password})
}

func (w *world) ref(t *testing.T, rest string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(w.registry + "/" + rest)
	check(t, err)
	return ref
}

func (w *world) pushBase(t *testing.T) {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	check(t, err)
	img, err = mutate.AppendLayers(img, static.NewLayer(make([]byte, 1024), types.DockerUncompressedLayer)) // an empty tar
	check(t, err)
	check(t, remote.Write(w.ref(t, "ml/serving:3"), img, remote.WithContext(t.Context()), w.auth()))
}

func (w *world) digest(t *testing.T, rest string) string {
	t.Helper()
	desc, err := remote.Head(w.ref(t, rest), remote.WithContext(t.Context()), w.auth())
	check(t, err)
	return desc.Digest.String()
}

// layers returns the digests of the plain variant's layers.
func (w *world) layers(t *testing.T, rest string) []string {
	t.Helper()
	img, err := remote.Image(w.ref(t, rest), remote.WithContext(t.Context()), w.auth())
	check(t, err)
	manifest, err := img.Manifest()
	check(t, err)
	var out []string
	for _, l := range manifest.Layers {
		out = append(out, l.Digest.String())
	}
	return out
}

// login writes what docker login writes, for pages that begin after that.
func (w *world) login(t *testing.T) {
	t.Helper()
	w.runner.shell(t, `mkdir -p ~/.docker
auth=$(printf %s "$LOGIN" | base64 -w 0)
printf '{"auths":{"%s":{"auth":"%s"}}}' "$REGISTRY" "$auth" >~/.docker/config.json`,
		[]string{"REGISTRY=" + w.registry, "LOGIN=" + loopback.User + ":" + loopback.Password})
}

// docker starts a docker of the test's own.
func (w *world) docker(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "dockerd") //nolint:usetesting // the test's own folder has a name too long for a socket
	check(t, err)
	t.Cleanup(func() {
		// dockerd leaves its folder mounted on itself, and what gave containers the machine's network.
		for _, left := range []string{"/exec/netns/default", "/data"} {
			_ = syscall.Unmount(dir+left, syscall.MNT_DETACH)
		}
		check(t, os.RemoveAll(dir))
	})
	host := "unix://" + dir + "/s"
	cmd := exec.Command("dockerd", "--host", host, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"--iptables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none", "--storage-driver=overlay2")
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	ended := loopback.Daemon(t, cmd)
	w.runner.env = append(w.runner.env, "DOCKER_HOST="+host, "DOCKER_BUILDKIT=0")
	if !loopback.Eventually(t, "dockerd", ended, func(ctx context.Context) bool {
		return exec.CommandContext(ctx, "docker", "--host", host, "version").Run() == nil
	}) {
		t.Fatal("dockerd does not start")
	}
}

// publishShoal builds shoal's image and pushes it where the pages have it.
func (w *world) publishShoal(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "run", "github.com/shoal-project/shoal/hack/shoalimage", "--platform", "linux/amd64",
		"--push", w.registry+"/tools/shoal:v1")
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+w.home+"/.docker")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// page runs the blocks of a page of docs/ in their order.
func (w *world) page(t *testing.T, page string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + page)
	check(t, err)
	here := strings.NewReplacer(docRegistry, w.registry, docWeb, w.web).Replace(string(text))
	found := blocks(here)
	if len(found) == 0 {
		t.Fatalf("%s has no examples", page)
	}
	for _, b := range found {
		t.Run(fmt.Sprintf("%s line %d", page, b.line), func(t *testing.T) { w.runner.run(t, b) })
	}
}

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/hack/loopback"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run executes a program and returns its standard output.
func run(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// shared makes a folder that every user may enter; t.TempDir's is its owner's alone.
func shared(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shoalimage") //nolint:usetesting // see above
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	check(t, os.Chmod(dir, 0o755))
	return dir
}

// needTime skips what builds binaries when the tests are to be short.
func needTime(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds binaries")
	}
}

// buildImage runs the command and returns the digest it printed.
func buildImage(t testing.TB, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if err := newApp(&stdout, &stderr).RunContext(t.Context(), append([]string{"shoalimage", "--version", "v9.8.7"}, args...)); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

// certificates are any file's bytes: nobody verifies anything with them here.
func certificates(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.crt")
	check(t, os.WriteFile(path, []byte("certificates\n"), 0o600))
	return path
}

func TestTwoBuildsGiveOneDigestForAllPlatforms(t *testing.T) {
	needTime(t)
	folder, ca := filepath.Join(t.TempDir(), "dist", "image"), certificates(t)
	first := buildImage(t, "--ca-file", ca, "--output", folder)
	t.Setenv("GOAMD64", "v3")
	t.Setenv("GOFLAGS", "-buildvcs=true")
	if second := buildImage(t, "--ca-file", ca, "--output", folder); first != second {
		t.Errorf("the first build is %s, the second %s", first, second)
	}

	tops, err := layout.ImageIndexFromPath(folder)
	check(t, err)
	top, err := tops.IndexManifest()
	check(t, err)
	if len(top.Manifests) != 1 || top.Manifests[0].Digest.String() != first {
		t.Fatalf("the layout names %v, want %s alone", top.Manifests, first)
	}
	index, err := tops.ImageIndex(top.Manifests[0].Digest)
	check(t, err)
	manifest, err := index.IndexManifest()
	check(t, err)
	var got []string
	for _, d := range manifest.Manifests {
		img, err := index.Image(d.Digest)
		check(t, err)
		cfg, err := img.ConfigFile()
		check(t, err)
		got = append(got, fmt.Sprint(d.Platform, " ", cfg.OS, "/", cfg.Architecture, " ", cfg.Config.Entrypoint, " ", cfg.Config.User))
	}
	want := []string{"linux/amd64 linux/amd64 [/shoal] 65532:65532", "linux/arm64 linux/arm64 [/shoal] 65532:65532"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("platforms (-want +got):\n%s", diff)
	}
}

func TestFolderThatIsNoLayoutIsKept(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "thesis"), nil, 0o600))
	if err := writeLayout(dir, empty.Index); err == nil || !strings.Contains(err.Error(), "no OCI layout") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis")); err != nil {
		t.Error(err)
	}
}

func TestWrongFlagsAreNamed(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nothing to do":   {nil, "--output, --push or both"},
		"no certificates": {[]string{"--output", "x", "--ca-file", "none.crt"}, "install ca-certificates"},
		"odd platform":    {[]string{"--output", "x", "--ca-file", certificates(t), "--platform", "amd64"}, "want OS/ARCH"},
		"bad reference":   {[]string{"--push", "shoal"}, "REGISTRY/NAME:TAG"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := newApp(&out, &out).RunContext(t.Context(), append([]string{"shoalimage"}, test.args...))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// writeModel makes a model that any user may read.
func writeModel(t testing.TB, dir string) {
	t.Helper()
	check(t, os.Mkdir(dir, 0o755))
	for name, size := range map[string]int{"config.json": 100, "weights.bin": 5 << 20} {
		check(t, os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), size/len(name)), 0o644))
	}
}

// pushBase puts a base image without files in the registry.
func pushBase(t testing.TB, registry string) (ref string) {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	check(t, err)
	layer, err := newLayer([]entry{{Header: tar.Header{Name: "framework", Mode: 0o644}, data: bytes.Repeat([]byte("framework"), 100_000)}})
	check(t, err)
	img, err = mutate.AppendLayers(img, layer)
	check(t, err)
	r, err := name.ParseReference(registry + "/base:v1")
	check(t, err)
	check(t, remote.Write(r, img, remote.WithContext(t.Context())))
	return r.String()
}

// digestOf reads the summary of shoal convert.
func digestOf(t testing.TB, summary string) string {
	t.Helper()
	var result struct {
		Digest string `json:"digest"`
		Pushed bool   `json:"pushed"`
	}
	check(t, json.Unmarshal([]byte(summary), &result))
	if !result.Pushed || result.Digest == "" {
		t.Fatalf("nothing was pushed: %s", summary)
	}
	return result.Digest
}

func TestRootPodmanRunsTheImageAndItConvertsAsAnyUser(t *testing.T) {
	needTime(t)
	cluster.NeedRoot(t)
	cluster.NeedTools(t, "podman")
	registry := loopback.Registry(t)
	dir := shared(t) // whose name is short enough for podman
	folder := filepath.Join(dir, "image")
	digest := buildImage(t, "--platform", "linux/amd64", "--output", folder, "--push", registry+"/tools/shoal:v1")
	model := filepath.Join(shared(t), "tiny")
	writeModel(t, model)
	base := pushBase(t, registry)

	global := []string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--tmpdir", dir + "/tmp"}
	podman := func(args ...string) *exec.Cmd {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		t.Cleanup(cancel)
		return exec.CommandContext(ctx, "podman", append(global, args...)...)
	}
	t.Cleanup(func() { _ = exec.Command("podman", append(global, "system", "prune", "--all", "--force")...).Run() })

	id := strings.TrimSpace(run(t, podman("pull", "--quiet", "oci:"+folder)))
	limits := []string{"run", "--rm", "--read-only", "--cap-drop=all", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512"}
	if out := run(t, podman(append(limits, "--network=none", id, "version")...)); !strings.HasPrefix(out, "shoal v9.8.7 go") {
		t.Errorf("version says %q", out)
	}
	pushed := registry + "/tools/shoal@" + digest
	run(t, podman("pull", "--quiet", "--tls-verify=false", pushed))
	inside := digestOf(t, run(t, podman(append(limits, "--network=host", "--volume", model+":/model:ro", pushed,
		"convert", "--model", "/model", "--name", "tiny", "--base", base, "--target", registry+"/ml/tiny:v1", "--output", "json")...)))
	if outside := digestOf(t, run(t, asNobody(t, buildBinary(t), "convert", "--model", model, "--base", base,
		"--target", registry+"/ml/other:v1", "--output", "json"))); inside != outside {
		t.Errorf("the container's image is %s, that of the same binary outside %s", inside, outside)
	}
	run(t, podman(append(limits, "--network=host", pushed, "check", registry+"/ml/tiny:v1")...))
}

func TestRootConversionNeedsNoRoot(t *testing.T) {
	needTime(t)
	cluster.NeedRoot(t) // to become nobody
	registry := loopback.Registry(t)
	binary, dir := buildBinary(t), shared(t)
	model, out := filepath.Join(dir, "tiny"), filepath.Join(dir, "out")
	writeModel(t, model)
	check(t, os.Mkdir(out, 0o700))
	check(t, os.Chown(out, nobody, nobody))
	base := pushBase(t, registry)
	digests := map[string]string{}
	for _, target := range []string{"oci:" + out + "/layout:v1", registry + "/ml/tiny:v1"} {
		digests[digestOf(t, run(t, asNobody(t, binary, "convert", "--model", model, "--base", base, "--target", target, "--output", "json")))] = target
		run(t, asNobody(t, binary, "check", target))
	}
	if len(digests) != 1 {
		t.Errorf("layout and registry have different images: %v", digests)
	}
	check(t, filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Errorf("%s is not nobody's", path)
		}
		return err
	}))
}

const nobody = 65534

// buildBinary returns the binary of the image where every user may run it.
func buildBinary(t testing.TB) string {
	t.Helper()
	binary, err := compile(t.Context(), "v9.8.7", v1.Platform{OS: "linux", Architecture: "amd64"})
	check(t, err)
	path := filepath.Join(shared(t), "shoal")
	check(t, os.WriteFile(path, binary, 0o755))
	return path
}

// asNobody prepares a command without any right, home or writable folder but one for temporary files.
func asNobody(t testing.TB, path string, args ...string) *exec.Cmd {
	t.Helper()
	tmp := filepath.Join(shared(t), "tmp")
	check(t, os.Mkdir(tmp, 0o700))
	check(t, os.Chown(tmp, nobody, nobody))
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"TMPDIR=" + tmp}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	return cmd
}

package converter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/shoal-project/shoal/converter"
	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/peer/chunkmap"
	"github.com/shoal-project/shoal/snapshotter/erofs"
)

// The judges are the tools of the field: what they make of an image is what counts.

// daemon starts a process that ends with the test, by its pid. Its output is shown if the test failed.
func daemon(t *testing.T, path string, env []string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	check(t, err)
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // ends with the process
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = log.Close()
		if t.Failed() {
			out, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", filepath.Base(path), out[max(0, len(out)-4000):])
		}
	})
}

// eventually asks until it is true, at most half a minute.
func eventually(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

// dockerRegistry starts Debian's docker-registry with its storage in a temporary folder.
func dockerRegistry(t *testing.T) (address string) {
	t.Helper()
	path := need(t, "docker-registry")
	address = freeAddress(t)
	config := filepath.Join(t.TempDir(), "config.yml")
	check(t, os.WriteFile(config, fmt.Appendf(nil,
		"version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s, secret: test}\n",
		t.TempDir(), address), 0o600))
	daemon(t, path, nil, "serve", config)
	eventually(t, "docker-registry", func() bool {
		resp, err := http.Get("http://" + address + "/v2/")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	return address
}

// run executes a tool and returns its standard output.
func run(t *testing.T, env []string, path string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(path), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// judged is a converted image in a real registry.
type judged struct {
	registry, target string
	model            map[string]string // sha256 by path
	result           *converter.Result
}

// repo is the repository in the registry.
func (j *judged) repo() string {
	return strings.TrimPrefix(j.target[:strings.LastIndexByte(j.target, ':')], j.registry+"/")
}

// wantOutput compares what the base's program printed in a container with the model's digests.
func (j *judged) wantOutput(t *testing.T, out string) {
	t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(out) {
		if sum, path, ok := strings.Cut(strings.TrimSpace(line), "  /models/tiny/"); ok {
			got[path] = sum
		}
	}
	if diff := cmp.Diff(j.model, got); diff != "" {
		t.Errorf("files seen in the container (-want +got):\n%s", diff)
	}
}

func (j *judged) wantFiles(t *testing.T, root string) {
	t.Helper()
	if len(j.model) == 0 {
		return
	}
	if diff := cmp.Diff(j.model, sums(t, filepath.Join(root, "models/tiny"))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// nydusVariant is the Nydus variant as a client has it on disk.
type nydusVariant struct {
	bootstrap string             // file
	blobs     string             // folder with a file for each blob, named by its digest
	manifests []ocispec.Manifest // the plain one and this
	layer     []byte             // bootstrap layer
}

func (j *judged) get(t *testing.T, kind string, d digest.Digest, mediaType string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s/v2/%s/%s/%s", j.registry, j.repo(), kind, d), nil)
	check(t, err)
	req.Header.Set("Accept", mediaType)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.StatusCode != http.StatusOK || digest.FromBytes(data) != d {
		t.Fatalf("%s %s: %s", kind, d, resp.Status)
	}
	return data
}

func (j *judged) fetchNydus(t *testing.T) *nydusVariant {
	t.Helper()
	return j.fetchVariant(t, j.result.Variants[0])
}

func (j *judged) fetchVariant(t *testing.T, made converter.Variant) *nydusVariant {
	t.Helper()
	dir := t.TempDir()
	v := &nydusVariant{bootstrap: filepath.Join(dir, "image.boot"), blobs: filepath.Join(dir, "blobs")}
	check(t, os.Mkdir(v.blobs, 0o700))
	for _, d := range []digest.Digest{made.Plain, made.Nydus} {
		var m ocispec.Manifest
		check(t, json.Unmarshal(j.get(t, "manifests", d, ocispec.MediaTypeImageManifest), &m))
		v.manifests = append(v.manifests, m)
	}
	layers := v.manifests[1].Layers
	for _, l := range layers[:len(layers)-1] {
		check(t, os.WriteFile(filepath.Join(v.blobs, l.Digest.Encoded()), j.get(t, "blobs", l.Digest, ""), 0o600))
	}
	v.layer = j.get(t, "blobs", layers[len(layers)-1].Digest, "")
	files, err := image.FilesOfLayer(bytes.NewReader(v.layer), image.IsMetadata, 1<<30)
	check(t, err)
	check(t, os.WriteFile(v.bootstrap, files[image.BootstrapName], 0o600))
	return v
}

func (j *judged) chunkMaps(t *testing.T, v *nydusVariant) {
	maps, err := chunkmap.AllFromLayer(bytes.NewReader(v.layer))
	check(t, err)
	want := map[digest.Digest]bool{}
	for i, m := range v.manifests {
		layers := m.Layers
		if i == 1 {
			layers = layers[:len(layers)-1] // the bootstrap layer holds the maps
		}
		for _, l := range layers {
			want[l.Digest] = true
			got, err := chunkmap.FromLayer(bytes.NewReader(v.layer), l.Digest)
			if err != nil {
				t.Error(err)
				continue
			}
			if err := got.Verify(0, j.get(t, "blobs", l.Digest, "")); err != nil || got.Size != l.Size {
				t.Errorf("blob %s of %d bytes, map of %d: %v", l.Digest, l.Size, got.Size, err)
			}
		}
	}
	if len(maps) != len(want) {
		t.Errorf("want %d maps, got %d", len(want), len(maps))
	}
}

func (j *judged) umociAndKernel(t *testing.T, v *nydusVariant) {
	skopeo, umoci := need(t, "skopeo"), need(t, "umoci")
	dir := t.TempDir()
	run(t, nil, skopeo, "copy", "--quiet", "--src-tls-verify=false", "docker://"+j.target, "oci:"+dir+"/oci:v1")
	run(t, nil, umoci, "unpack", "--image", dir+"/oci:v1", dir+"/bundle")
	unpacked := dir + "/bundle/rootfs"
	j.wantFiles(t, unpacked)

	mnt := mountKernel(t, v)
	j.wantFiles(t, mnt)
	want, got := tree(t, unpacked), tree(t, mnt)
	for _, nodes := range []map[string]node{want, got} {
		for path, n := range nodes {
			if strings.HasPrefix(n.Mode, "4") && path != "tmp" { // umoci gives folders it changed the time of unpacking
				n.Mtime = 0
				nodes[path] = n
			}
		}
		root := nodes["."]
		delete(nodes, ".")
		_ = root // the root's attributes are the unpacker's
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("umoci's tree and the kernel's (-umoci +kernel):\n%s", diff)
	}
}

// isDevice reports whether a blob is an EROFS device as it is stored, as those of models are.
func isDevice(img *bootstrap.Image, blob int) bool {
	return !slices.ContainsFunc(img.Chunks, func(c bootstrap.Chunk) bool {
		return c.Blob == uint32(blob) && (c.Compressed() || c.Offset != c.DeviceOffset)
	})
}

// mountKernel mounts the Nydus variant by the kernel's EROFS: model blobs as they are, the others expanded.
func mountKernel(t *testing.T, v *nydusVariant) string {
	t.Helper()
	boot, err := os.Open(v.bootstrap)
	check(t, err)
	defer boot.Close()
	info, err := boot.Stat()
	check(t, err)
	img, err := bootstrap.Decode(boot, info.Size())
	check(t, err)
	var devices []string
	for i := range img.Blobs {
		b := &img.Blobs[i]
		stored := filepath.Join(v.blobs, b.Digest.Encoded())
		if isDevice(img, i) {
			devices = append(devices, stored)
			continue
		}
		device := filepath.Join(t.TempDir(), b.Digest.Encoded())
		out, err := os.Create(device)
		check(t, err)
		in, err := os.Open(stored)
		check(t, err)
		check(t, bootstrap.Expand(out, in, img, i))
		check(t, out.Truncate(b.DeviceSize))
		check(t, out.Close())
		check(t, in.Close())
		devices = append(devices, device)
	}
	mnt := t.TempDir()
	check(t, erofs.Mount(v.bootstrap, devices, mnt))
	t.Cleanup(func() {
		if err := erofs.Unmount(mnt); err != nil {
			t.Error(err)
		}
	})
	return mnt
}

// podmanStore returns podman and the options that give it a store of the test's own.
func podmanStore(t *testing.T) (podman string, global []string) {
	t.Helper()
	podman = need(t, "podman")
	dir, err := os.MkdirTemp("", "pod") //nolint:usetesting // podman takes no name of more than 50 bytes for its runroot
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	global = []string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--tmpdir", dir + "/tmp"}
	t.Cleanup(func() { _ = exec.Command(podman, append(global, "system", "prune", "--all", "--force")...).Run() })
	return podman, global
}

// dockerDaemon starts dockerd and returns docker and the environment in which it finds it.
func dockerDaemon(t *testing.T) (docker string, env []string) {
	t.Helper()
	dockerd, docker := need(t, "dockerd"), need(t, "docker")
	dir := t.TempDir()
	t.Cleanup(func() { unmountBelow(t, dir) }) // where mounts are private, dockerd leaves one on its own folder
	host := "unix://" + dir + "/s"
	env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DOCKER_HOST=" + host, "DOCKER_CONFIG=" + dir}
	daemon(t, dockerd, env, "--host", host, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid",
		"--iptables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none", "--storage-driver=overlay2")
	eventually(t, "dockerd", func() bool {
		cmd := exec.Command(docker, "version")
		cmd.Env = append(os.Environ(), env...)
		return cmd.Run() == nil
	})
	return docker, env
}

// unmountBelow takes away what is still mounted below dir, the innermost first.
func unmountBelow(t *testing.T, dir string) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	var below []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			below = append(below, fields[4])
		}
	}
	for _, target := range slices.Backward(below) {
		check(t, syscall.Unmount(target, syscall.MNT_DETACH))
	}
}

// registryBackend is nydusd's configuration to read blobs from a registry, or a mirror of one, at host.
func registryBackend(host, repo string) map[string]any {
	return map[string]any{"type": "registry", "config": map[string]any{"scheme": "http", "host": host, "repo": repo}}
}

// nydusd compares what nydusd shows with the model and with what the kernel shows.
func (j *judged) nydusd(t *testing.T, v *nydusVariant, backend map[string]any) {
	mnt := j.mountNydusd(t, v, backend)
	j.wantFiles(t, mnt)
	if diff := cmp.Diff(sums(t, mountKernel(t, v)), sums(t, mnt)); diff != "" {
		t.Errorf("files as the kernel and as nydusd shows them (-kernel +nydusd):\n%s", diff)
	}
}

// mountNydusd mounts the Nydus variant by FUSE, reading blobs from the backend.
func (j *judged) mountNydusd(t *testing.T, v *nydusVariant, backend map[string]any) string {
	path := need(t, "nydusd")
	dir := t.TempDir()
	mnt := filepath.Join(dir, "mnt")
	check(t, os.MkdirAll(filepath.Join(dir, "cache"), 0o700))
	check(t, os.MkdirAll(mnt, 0o700))
	config, err := json.Marshal(map[string]any{
		"device": map[string]any{
			"backend": backend,
			"cache":   map[string]any{"type": "blobcache", "config": map[string]any{"work_dir": filepath.Join(dir, "cache")}},
		},
		"mode": "direct", "digest_validate": false, "enable_xattr": true,
	})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
	daemon(t, path, nil, "fuse", "--config", filepath.Join(dir, "config.json"), "--bootstrap", v.bootstrap,
		"--mountpoint", mnt, "--log-level", "warn", "--rlimit-nofile", "0", "--apisock", filepath.Join(dir, "api"))
	t.Cleanup(func() { _ = syscall.Unmount(mnt, syscall.MNT_DETACH) })
	eventually(t, "nydusd", func() bool {
		names, err := os.ReadDir(mnt)
		return err == nil && len(names) > 0
	})
	return mnt
}

// detect builds a program of nydus-snapshotter's packages, which takes a minute the first time, and lets it look.
func (j *judged) detect(t *testing.T, v *nydusVariant) {
	bin, boot := filepath.Join(t.TempDir(), "nydusdetect"), filepath.Join(t.TempDir(), "boot")
	cmd := exec.Command(need(t, "go"), "build", "-o", bin, ".")
	cmd.Dir = "testdata/nydusdetect"
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false -mod=readonly")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var got ocispec.Descriptor
	check(t, json.Unmarshal([]byte(run(t, nil, bin, j.target, j.result.Variants[0].Plain.String(), boot)), &got))
	layers := v.manifests[1].Layers
	if diff := cmp.Diff(layers[len(layers)-1], got); diff != "" {
		t.Errorf("bootstrap layer (-want +got):\n%s", diff)
	}
	want, err := os.ReadFile(v.bootstrap)
	check(t, err)
	if unpacked, err := os.ReadFile(boot); err != nil || !bytes.Equal(want, unpacked) {
		t.Errorf("the bootstrap it unpacked differs: %v", err)
	}
}

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/shoal-project/shoal/converter/bootstrap"
	"github.com/shoal-project/shoal/converter/image"
	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// lazyModel is the size of the model of an image that is mounted.
const lazyModel = 24 << 20

// lazyLab is one node with a containerd that has the node's snapshotter.
type lazyLab struct {
	*swarm

	t          *testing.T
	shoal      string
	containerd *cluster.Containerd
	node       *cluster.Node
	base       v1.Image
	model      blob // the model's layer of the plain variant, by convention the last
	ref        string
}

func newLazyLab(t *testing.T, driver string, release cluster.ContainerdConfig) (context.Context, *lazyLab) {
	t.Helper()
	ctx, shoal := prepare(t, append(faultTools(), "runc")...)
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Link: faultLink, Log: t.Output()})
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	l := &lazyLab{t: t, shoal: shoal}
	l.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: 1, driver: driver})
	check(t, err)
	l.node = l.nodes[0]
	l.containerd, err = l.node.StartContainerd(ctx, l.registry, release)
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s\n%s\n%s", l.node.Log(), l.node.Tail(), l.containerd.Log(), l.containerd.Tail())
		}
	})
	l.base = l.image(empty.Image, map[string]string{"bin/sums": l.program(ctx), "etc/a": "a of the first layer", "etc/gone": "gone"},
		map[string]string{"etc/b": "b of the second", "etc/.wh.gone": ""})
	l.ref = l.registry.Addr() + "/" + repository + ":1"
	blobs, err := l.convert(ctx, shoal, l.ref, l.base, lazyModel)
	check(t, err)
	l.model = blobs[len(blobs)-1]
	return ctx, l
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program returns the bytes of the program that containers run.
func (l *lazyLab) program(ctx context.Context) string {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "sums")
	build := exec.CommandContext(ctx, "go", "build", "-o", file, "./testdata/sums")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(file)
	check(l.t, err)
	return string(data)
}

// image appends a compressed layer for each set of files.
func (l *lazyLab) image(onto v1.Image, layers ...map[string]string) v1.Image {
	l.t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(onto, types.OCIManifestSchema1), types.OCIConfigJSON)
	cfg, err := img.ConfigFile()
	check(l.t, err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	img, err = mutate.ConfigFile(img, cfg)
	check(l.t, err)
	for _, files := range layers {
		var raw bytes.Buffer
		tw := tar.NewWriter(&raw)
		for _, file := range slices.Sorted(maps.Keys(files)) {
			check(l.t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o755, Size: int64(len(files[file]))}))
			_, err := tw.Write([]byte(files[file]))
			check(l.t, err)
		}
		check(l.t, tw.Close())
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil },
			tarball.WithMediaType(types.OCILayer))
		check(l.t, err)
		img, err = mutate.AppendLayers(img, layer)
		check(l.t, err)
	}
	return img
}

// run runs sums in a container of an image and returns what it printed: the digests by file.
func (l *lazyLab) run(ctx context.Context, ref, id string, dirs ...string) map[string]string {
	l.t.Helper()
	out, err := l.containerd.RunContainer(ctx, cluster.Container{ID: id, Image: ref, Args: append([]string{"/bin/sums"}, dirs...)})
	check(l.t, err)
	return sums(out)
}

// sums reads what the program printed.
func sums(out string) map[string]string {
	byFile := map[string]string{}
	for line := range strings.Lines(out) {
		if sum, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			byFile[file] = sum
		}
	}
	return byFile
}

// wantFiles are those of the base image and of the model's folder.
func (l *lazyLab) wantFiles() map[string]string {
	l.t.Helper()
	want := map[string]string{"/etc/a": sum("a of the first layer"), "/etc/b": sum("b of the second")}
	models, err := filepath.Glob(filepath.Join(l.Dir(), "convert-*", "model"))
	check(l.t, err)
	if len(models) != 1 {
		l.t.Fatalf("models in %v, want one", models)
	}
	data, err := os.ReadFile(filepath.Join(models[0], "weights.bin"))
	check(l.t, err)
	want["/models/model/weights.bin"] = sum(string(data))
	return want
}

func sum(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// expect compares the files that are wanted with those that a container saw; others of its own, as /etc/resolv.conf, do not count.
func (l *lazyLab) expect(what string, want, got map[string]string) {
	l.t.Helper()
	for file, sum := range want {
		if got[file] != sum {
			l.t.Errorf("%s: %s has %q, want %q", what, file, got[file], sum)
		}
	}
	if _, there := got["/etc/gone"]; there {
		l.t.Errorf("%s: /etc/gone is there, which the second layer removes", what)
	}
}

// used returns how many bytes the folder's files have on disk, without what is mounted in it.
func (l *lazyLab) used(ctx context.Context, dir string) int64 {
	l.t.Helper()
	var out string
	eventually(l.t, "du finds all it has seen", func() bool { // containers that have ended are removed meanwhile
		var err error
		out, err = l.node.Host().Run(ctx, "du", "-xsB1", dir)
		return err == nil
	})
	var n int64
	_, err := fmt.Sscan(out, &n)
	check(l.t, err)
	return n
}

// mounts returns where images are mounted.
func (l *lazyLab) mounts() []string {
	l.t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	check(l.t, err)
	var out []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], l.node.DataDir()+"/") {
			out = append(out, fields[4])
		}
	}
	return out
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a minute later still not: %s", what)
		}
	}
}

// status asks the node for the state of its snapshotter.
func (l *lazyLab) status(ctx context.Context) snapshotterStatus {
	l.t.Helper()
	body, err := get(ctx, l.node.Host().Client(), l.node.AdminURL()+"/v1/status", "")
	check(l.t, err)
	defer body.Close()
	var s struct{ Snapshotter snapshotterStatus }
	check(l.t, json.NewDecoder(body).Decode(&s))
	return s.Snapshotter
}

type snapshotterStatus struct {
	Driver  string
	Mounted int
}

// metric reads one of the node's.
func (l *lazyLab) metric(ctx context.Context, name string, labels ...string) int {
	l.t.Helper()
	m, err := l.node.Metrics(ctx)
	check(l.t, err)
	return int(m.Sum("shoal_snapshotter_"+name, labels...))
}

func TestRootContainersRunFromImagesThatAreNotUnpacked(t *testing.T) {
	for _, driver := range []string{"erofs", "fuse"} {
		t.Run(driver, func(t *testing.T) { runUnpacked(t, driver) })
	}
}

func runUnpacked(t *testing.T, driver string) {
	ctx, l := newLazyLab(t, driver, cluster.ContainerdConfig{})
	want := l.wantFiles()
	check(t, l.containerd.Pull(ctx, l.ref))
	if got := l.status(ctx); got.Driver != driver || got.Mounted != 1 {
		t.Errorf("status %+v, want the driver %s with one image", got, driver)
	}
	if got := l.metric(ctx, "layers_total", `how="placed"`); got != 3 {
		t.Errorf("%d layers placed, want 3", got)
	}
	l.expect("the image", want, l.run(ctx, l.ref, "first", "/etc", "/models"))
	content, err := l.containerd.Ctr(ctx, "content", "list", "--quiet")
	check(t, err)
	if strings.Contains(content, l.model.digest.String()) {
		t.Errorf("containerd has fetched the model's layer too:\n%s", content)
	}
	root := filepath.Join(l.node.Host().Dir, "containerd", "root")
	if n := l.used(ctx, root); n > lazyModel/4 {
		t.Errorf("containerd keeps %d bytes for a model of %d", n, lazyModel)
	}
	if n := l.used(ctx, l.node.DataDir()); n > lazyModel*5/4+8<<20 { // and the framework, compressed and expanded
		t.Errorf("the node keeps %d bytes for a model of %d", n, lazyModel)
	}

	t.Log("the node's daemon is killed and comes back, then the host is as after a reboot")
	l.node.Kill()
	if _, err := l.containerd.RunContainer(ctx, cluster.Container{ID: "down", Image: l.ref, Args: []string{"/bin/sums"}}); err == nil ||
		!strings.Contains(err.Error(), "snapshotter.sock") {
		t.Errorf("while the daemon is down: %v, want an error that names its socket", err)
	}
	l.restart(ctx)
	l.expect("after a restart", want, l.run(ctx, l.ref, "again", "/etc", "/models"))
	l.node.Kill()
	for _, dir := range l.mounts() {
		_, err := l.node.Host().Run(ctx, "umount", dir)
		check(t, err)
	}
	l.restart(ctx)
	eventually(t, "the image is mounted", func() bool { return len(l.mounts()) == 1 })
	l.expect("after a reboot", want, l.run(ctx, l.ref, "booted", "/etc", "/models"))

	t.Log("the image is removed")
	check(t, l.containerd.Forget(ctx, l.ref))
	eventually(t, "nothing is mounted", func() bool { return len(l.mounts()) == 0 })
	eventually(t, "no snapshot is left", l.empty)
	pins, err := os.ReadDir(filepath.Join(l.node.DataDir(), "blobs", "pins"))
	if len(pins) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pins %v, %v; want none", pins, err)
	}
}

// An image may say that nothing is fetched before it is read. What its containers then read, in which order, can become what is fetched first.
func TestRootReadsOfAnImageAreRecorded(t *testing.T) {
	ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{})
	made, err := filepath.Glob(filepath.Join(l.Dir(), "convert-*"))
	check(t, err)
	ref := l.registry.Addr() + "/" + repository + ":sparing"
	_, err = l.registry.Host().Run(ctx, l.shoal, "convert", "--plain-http", "--quiet", "--annotation", "io.shoal.prefetch=none",
		"--model", filepath.Join(made[0], "model"), "--base", "oci:"+filepath.Join(made[0], "base"), "--target", ref)
	check(t, err)
	check(t, l.containerd.Pull(ctx, ref))
	l.run(ctx, ref, "sparing", "/etc")
	if n := l.used(ctx, l.node.DataDir()); n > lazyModel/4 {
		t.Errorf("the node keeps %d bytes although nobody read the model of %d", n, lazyModel)
	}
	fast := l.registry.Addr() + "/" + repository + ":fast"
	host := l.node.Host()
	optimize := func(args ...string) (string, error) {
		node := strings.TrimPrefix(l.node.AdminURL(), "http://")
		return host.Run(ctx, append([]string{l.shoal, "optimize", "--plain-http", "--recorded", "--node", node}, args...)...)
	}
	out, err := optimize("--tag", "fast", ref)
	check(t, err)
	if !strings.Contains(out, "first, 0 of the list left out\n  /bin/sums\n  /etc/") {
		t.Errorf("order: %s", out)
	}
	_, err = host.Run(ctx, l.shoal, "check", "--plain-http", "--deep", fast)
	check(t, err)
	if _, err := optimize(fast); err == nil || !strings.Contains(err.Error(), "is not mounted on this node") {
		t.Errorf("of an image that is not there: %v", err)
	}
	l.node.Kill()
	l.restart(ctx)
	l.run(ctx, ref, "late", "/etc")
	if _, err := optimize("--tag", "late", ref); err == nil || !strings.Contains(err.Error(), "does not know what was read before") {
		t.Errorf("after a restart of the node: %v", err)
	}

	t.Log("the node's configuration says otherwise")
	l.node.Kill()
	file := filepath.Join(host.Dir, "node.yaml")
	config, err := os.ReadFile(file)
	check(t, err)
	const section = "\nsnapshotter:\n"
	check(t, os.WriteFile(file, bytes.Replace(config, []byte(section), []byte(section+"    prefetch: whole\n"), 1), 0o600))
	l.restart(ctx)
	eventually(t, "all of the image is fetched", func() bool { return l.used(ctx, l.node.DataDir()) > lazyModel })
}

// restart starts the node again and waits for its snapshotter.
func (l *lazyLab) restart(ctx context.Context) {
	l.t.Helper()
	check(l.t, l.node.Start(ctx))
	l.awaitSnapshotter(ctx)
}

// awaitSnapshotter waits until containerd has found its snapshotter again, which it looks for every few seconds.
func (l *lazyLab) awaitSnapshotter(ctx context.Context) {
	l.t.Helper()
	eventually(l.t, "containerd finds the snapshotter", func() bool {
		_, err := l.containerd.Ctr(ctx, "snapshots", "--snapshotter", "shoal", "list")
		return err == nil
	})
}

// The daemon is killed again and again while the image is still on its way, and one reads it.
func TestRootReadersOfAMountedImageOutliveTheDaemon(t *testing.T) {
	ctx, l := newLazyLab(t, "erofs", cluster.ContainerdConfig{})
	check(t, l.node.Host().SetLink(ctx, faultLink/4))
	check(t, l.containerd.Pull(ctx, l.ref))
	const file = "/models/model/weights.bin"
	read := make(chan string, 1)
	go func() { // ends with ctx at the latest
		out, err := l.node.Host().Run(ctx, "sha256sum", l.mounts()[0]+file)
		if err != nil {
			out = err.Error()
		}
		read <- out
	}()
	for range 5 {
		check(t, sleep(ctx, rand.N(300*time.Millisecond))) // a moment, not a state
		l.node.Kill()
		check(t, l.node.Start(ctx))
	}
	l.awaitSnapshotter(ctx)
	want := l.wantFiles()
	if got, _, _ := strings.Cut(<-read, " "); got != want[file] {
		t.Errorf("read %s, want %s", got, want[file])
	}
	l.expect("a container after that", want, l.run(ctx, l.ref, "after", "/etc", "/models"))
	log, err := os.ReadFile(l.node.Log())
	check(t, err)
	if !bytes.Contains(log, []byte("lazy mount taken over")) {
		t.Error("the mount was made anew, not taken over")
	}
}

// debian is where the distribution's containerd 1.x is.
const debian = "/usr/bin"

// ctr of containerd 1.x says nothing of images to snapshotters, so that all is unpacked.
func TestRootOldContainerdsUnpackIntoTheSnapshotter(t *testing.T) {
	cluster.NeedTools(t, debian+"/containerd", debian+"/ctr")
	ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{Bin: debian})
	check(t, l.containerd.Pull(ctx, l.ref))
	l.expect("unpacked", l.wantFiles(), l.run(ctx, l.ref, "old", "/etc", "/models"))
	if n := len(l.mounts()); n != 0 {
		t.Errorf("%d images are mounted, want none", n)
	}
	check(t, l.containerd.Forget(ctx, l.ref))
	eventually(t, "no snapshot is left", l.empty)
}

// Kubernetes' pulls do, by all containerds. Of these make test builds the newest only.
func TestRootImagesThatKubernetesPullsAreMounted(t *testing.T) {
	built := filepath.Join(testCache(), "containerd-1.7", "bin")
	for version, bin := range map[string]string{"1.6": debian, "1.7": built, "2.3": filepath.Join(testCache(), "bin")} {
		t.Run(version, func(t *testing.T) {
			if _, err := os.Stat(built); bin == built && err != nil {
				t.Skip("SKIPPED: no containerd 1.7; make e2e-lazy builds it")
			}
			cluster.NeedTools(t, filepath.Join(bin, "containerd"), filepath.Join(bin, "ctr"))
			ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{Bin: bin, CRI: true})
			check(t, l.containerd.PullCRI(ctx, l.ref, cluster.Login{}))
			if n := len(l.mounts()); n != 1 {
				t.Errorf("%d images are mounted, want 1", n)
			}
			l.expect("the image", l.wantFiles(), l.run(ctx, l.ref, "pod", "/etc", "/models"))
			check(t, l.containerd.ForgetAll(ctx))
			eventually(t, "nothing is mounted", func() bool { return len(l.mounts()) == 0 })
			eventually(t, "no snapshot is left", l.empty)
		})
	}
}

// empty reports whether the snapshotter has no folder of any snapshot.
func (l *lazyLab) empty() bool {
	entries, err := os.ReadDir(filepath.Join(l.node.DataDir(), "snapshots", "snapshots"))
	return err == nil && len(entries) == 0
}

// What shares layers with a mounted image works as if these had been unpacked.
func TestRootImagesBelowAndAboveAMountedOne(t *testing.T) {
	ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{})
	want := l.wantFiles()
	check(t, l.containerd.Pull(ctx, l.ref))

	t.Log("an image that is built upon the mounted one")
	plain, err := remote.Image(l.name(l.ref), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}), remote.WithTransport(l.registry.Host().Client().Transport))
	check(t, err)
	check(t, l.registry.Push(ctx, "test/above", "1", l.image(plain, map[string]string{"etc/c": "c above", "etc/.wh.a": ""})))
	above := l.registry.Addr() + "/test/above:1"
	check(t, l.containerd.Pull(ctx, above))
	got := l.run(ctx, above, "above", "/etc", "/models")
	wantAbove := maps.Clone(want)
	delete(wantAbove, "/etc/a")
	wantAbove["/etc/c"] = sum("c above")
	l.expect("the image above", wantAbove, got)
	if _, there := got["/etc/a"]; there {
		t.Error("/etc/a is there, which the image above removes")
	}
	if n := l.metric(ctx, "layers_total", `how="late"`); n != 0 {
		t.Errorf("%d layers below a mounted image were unpacked", n)
	}

	t.Log("the base image, whose layers containerd takes for unpacked")
	check(t, l.registry.Push(ctx, "test/base", "1", l.base))
	base := l.registry.Addr() + "/test/base:1"
	check(t, l.containerd.Pull(ctx, base))
	delete(want, "/models/model/weights.bin")
	l.expect("the base", want, l.run(ctx, base, "base", "/etc"))
	if n := l.metric(ctx, "layers_total", `how="late"`); n != 2 {
		t.Errorf("%d layers were unpacked late, want the base's 2", n)
	}
	if n := len(l.mounts()); n != 1 {
		t.Errorf("%d images are mounted, want 1", n)
	}
}

// Images that nydus-snapshotter's converter has made with nydus-image are mounted too, whatever they are compressed with, beside one of shoal convert and one
// that is unpacked.
func TestRootImagesOfOtherConvertersAreMounted(t *testing.T) {
	cluster.NeedTools(t, "nydus-image")
	ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{})
	bin := filepath.Join(t.TempDir(), "nydusconvert")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, ".")
	build.Dir = "../../converter/testdata/nydusconvert"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ordinary := l.image(empty.Image, map[string]string{"bin/sums": l.program(ctx), "etc/o": "of an ordinary image"})
	check(t, l.registry.Push(ctx, "test/ordinary", "1", ordinary))
	base := l.wantFiles()
	delete(base, "/models/model/weights.bin")
	wants := map[string]map[string]string{l.ref: l.wantFiles(), l.registry.Addr() + "/test/ordinary:1": {"/etc/o": sum("of an ordinary image")}}
	for _, compressor := range []string{"none", "lz4_block", "zstd"} {
		check(t, l.registry.Push(ctx, "test/nydus", compressor, l.nydusImage(ctx, bin, compressor)))
		wants[l.registry.Addr()+"/test/nydus:"+compressor] = base
	}
	refs := slices.Sorted(maps.Keys(wants))
	for _, ref := range refs {
		check(t, l.containerd.Pull(ctx, ref))
	}
	if n := len(l.mounts()); n != 4 {
		t.Errorf("%d images are mounted, want the 4 that are not ordinary", n)
	}
	for i, ref := range refs {
		dirs := []string{"/etc"}
		if ref == l.ref {
			dirs = append(dirs, "/models")
		}
		l.expect(ref, wants[ref], l.run(ctx, ref, fmt.Sprint("container-", i), dirs...))
	}
	check(t, l.containerd.ForgetAll(ctx))
	eventually(t, "nothing is mounted", func() bool { return len(l.mounts()) == 0 })
	eventually(t, "no snapshot is left", l.empty)
}

// nydusImage has others convert the base image.
func (l *lazyLab) nydusImage(ctx context.Context, bin, compressor string) v1.Image {
	l.t.Helper()
	dir := l.t.TempDir()
	args := []string{compressor, dir}
	layers, err := l.base.Layers()
	check(l.t, err)
	for i, layer := range layers {
		from, err := layer.Uncompressed()
		check(l.t, err)
		file := filepath.Join(dir, fmt.Sprintf("layer-%d.tar", i))
		check(l.t, writeFile(file, from))
		check(l.t, from.Close())
		args = append(args, file)
	}
	if out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%v: %s", err, out)
	}
	img := l.image(empty.Image)
	boot, err := os.ReadFile(filepath.Join(dir, "image.boot"))
	check(l.t, err)
	known, err := bootstrap.Decode(bytes.NewReader(boot), int64(len(boot)))
	check(l.t, err)
	for _, b := range known.Blobs {
		data, err := os.ReadFile(filepath.Join(dir, b.Digest.Encoded()))
		check(l.t, err)
		img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(data, image.MediaTypeBlob), MediaType: image.MediaTypeBlob,
			Annotations: map[string]string{image.AnnotationBlob: "true"}})
		check(l.t, err)
	}
	last, err := l.image(empty.Image, map[string]string{image.BootstrapName: string(boot)}).Layers()
	check(l.t, err)
	img, err = mutate.Append(img, mutate.Addendum{Layer: last[0],
		Annotations: map[string]string{image.AnnotationBootstrap: "true", image.AnnotationFSVersion: "6"}})
	check(l.t, err)
	return img
}

func (l *lazyLab) name(ref string) name.Reference {
	l.t.Helper()
	n, err := name.ParseReference(ref, name.Insecure)
	check(l.t, err)
	return n
}

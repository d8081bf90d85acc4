package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// Somebody else fills the disk while an image is on its way. Its readers get errors, which the log explains, and bytes again as soon as there is room.
func TestRootAFullDiskFailsReadsUntilThereIsRoom(t *testing.T) {
	for _, driver := range []string{"erofs", "fuse"} {
		t.Run(driver, func(t *testing.T) { readOnAFullDisk(t, driver) })
	}
}

func readOnAFullDisk(t *testing.T, driver string) {
	cluster.NeedTools(t, "mkfs.ext4", "mount")
	ctx, l := newLazyLab(t, driver, cluster.ContainerdConfig{})
	check(t, l.node.Host().SetLink(ctx, faultLink/8))
	l.node.Kill()
	l.ownDisk(ctx, 128<<20)
	l.restart(ctx)
	check(t, l.containerd.Pull(ctx, l.ref))
	filler := fillDisk(t, l.node.DataDir())
	const file = "/models/model/weights.bin"
	if out, err := l.node.Host().Run(ctx, "sha256sum", l.mounts()[0]+file); err == nil {
		t.Errorf("on a full disk it is read: %s", out)
	}
	log, err := os.ReadFile(l.node.Log())
	check(t, err)
	if !strings.Contains(string(log), "lazy read fails") || !strings.Contains(string(log), "no space left on device") {
		t.Error("the log does not say why the read failed")
	}
	check(t, os.Remove(filler))
	check(t, l.node.Host().SetLink(ctx, faultLink))
	want := l.wantFiles()
	out, err := l.node.Host().Run(ctx, "sha256sum", l.mounts()[0]+file)
	check(t, err)
	if got, _, _ := strings.Cut(out, " "); got != want[file] {
		t.Errorf("read %s, want %s", got, want[file])
	}
	l.expect("a container after that", want, l.run(ctx, l.ref, "after", "/etc", "/models"))
}

// ownDisk gives the node, which does not run, a file system of its own for its data, of some bytes.
func (l *lazyLab) ownDisk(ctx context.Context, size int64) {
	l.t.Helper()
	disk := filepath.Join(l.t.TempDir(), "disk")
	check(l.t, os.WriteFile(disk, nil, 0o600))
	check(l.t, os.Truncate(disk, size))
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", disk}, {"mount", "-o", "loop", disk, l.node.DataDir()}} {
		_, err := l.node.Host().Run(ctx, args...)
		check(l.t, err)
	}
	l.t.Cleanup(func() { _ = unix.Unmount(l.node.DataDir(), unix.MNT_DETACH) })
}

// fillDisk writes a file that leaves no room below dir, and returns its name.
func fillDisk(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	check(t, err)
	defer f.Close()
	for size := 1 << 20; size >= 4096; {
		if _, err = f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return f.Name()
}

// A container that reads what is still on its way goes on while its image is removed and the node is restarted again and again.
func TestRootAContainerOutlivesItsImageAndRestarts(t *testing.T) {
	ctx, l := newLazyLab(t, "erofs", cluster.ContainerdConfig{})
	check(t, l.node.Host().SetLink(ctx, faultLink/8))
	check(t, l.containerd.Pull(ctx, l.ref))
	ended := make(chan error, 1)
	var out string
	go func() { // ends with ctx at the latest
		var err error
		out, err = l.containerd.RunContainer(ctx, cluster.Container{ID: "reads", Image: l.ref, Args: []string{"/bin/sums", "/models", "/etc"}})
		ended <- err
	}()
	eventually(t, "the container runs", func() bool {
		out, err := l.containerd.Ctr(ctx, "tasks", "list")
		return err == nil && strings.Contains(out, "RUNNING")
	})
	check(t, l.containerd.Forget(ctx, l.ref))
	if n := len(l.mounts()); n != 1 {
		t.Fatalf("%d images are mounted while a container runs, want 1", n)
	}
	for i := range 3 {
		if i == 1 {
			l.node.Kill()
		} else {
			l.node.Stop(10 * time.Second)
		}
		l.restart(ctx)
		if len(ended) > 0 {
			t.Error("the container ended before all restarts: it proves less than it should")
		}
	}
	check(t, l.node.Host().SetLink(ctx, faultLink))
	check(t, <-ended)
	l.expect("the container", l.wantFiles(), sums(out))
	_, err := l.containerd.Ctr(ctx, "content", "prune", "references") // has containerd collect garbage
	check(t, err)
	eventually(t, "nothing is mounted", func() bool { return len(l.mounts()) == 0 })
	eventually(t, "no snapshot is left", l.empty)
}

// Images of one model upon two bases have one copy of it, which stays until the last of them is removed.
func TestRootImagesShareTheirModelUntilTheLastIsRemoved(t *testing.T) {
	ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{})
	made, err := filepath.Glob(filepath.Join(l.Dir(), "convert-*"))
	check(t, err)
	base := filepath.Join(l.Dir(), "other-base")
	check(t, writeBase(base, l.image(empty.Image, map[string]string{"bin/sums": l.program(ctx), "etc/o": "of the other base"})))
	other := l.registry.Addr() + "/" + repository + ":other"
	_, err = l.registry.Host().Run(ctx, l.shoal, "convert", "--plain-http", "--quiet", "--model", filepath.Join(made[0], "model"), "--base", "oci:"+base, "--target", other)
	check(t, err)
	want := l.wantFiles()
	wantOther := map[string]string{"/etc/o": sum("of the other base"), "/models/model/weights.bin": want["/models/model/weights.bin"]}
	check(t, l.containerd.Pull(ctx, l.ref))
	check(t, l.containerd.Pull(ctx, other))
	l.expect("the one", want, l.run(ctx, l.ref, "one", "/etc", "/models"))
	l.expect("the other", wantOther, l.run(ctx, other, "other", "/etc", "/models"))
	if n := l.used(ctx, l.node.DataDir()); n > lazyModel*3/2+8<<20 {
		t.Errorf("the node keeps %d bytes for one model of %d", n, lazyModel)
	}
	check(t, l.containerd.Forget(ctx, l.ref))
	eventually(t, "one image is mounted", func() bool { return len(l.mounts()) == 1 })
	l.expect("the other alone", wantOther, l.run(ctx, other, "alone", "/etc", "/models"))
	l.node.Stop(10 * time.Second)
	l.restart(ctx)
	l.expect("the other after a restart", wantOther, l.run(ctx, other, "restarted", "/etc", "/models"))
	check(t, l.containerd.Forget(ctx, other))
	eventually(t, "nothing is mounted", func() bool { return len(l.mounts()) == 0 })
	eventually(t, "no snapshot is left", l.empty)
}

// A node that is restarted while registry, seed and scheduler are down has its images, and what was there of them. Reads of the rest fail, until it can be had.
func TestRootANodeComesBackWithoutARegistry(t *testing.T) {
	ctx, l := newLazyLab(t, "erofs", cluster.ContainerdConfig{})
	check(t, l.node.Host().SetLink(ctx, faultLink/16))
	check(t, l.containerd.Pull(ctx, l.ref))
	want := l.wantFiles()
	small := maps.Clone(want)
	delete(small, "/models/model/weights.bin")
	l.expect("before", small, l.run(ctx, l.ref, "before", "/etc"))
	l.registry.Kill()
	l.seeds[0].Kill()
	l.schedulers[0].Kill()
	l.node.Stop(10 * time.Second)
	l.restart(ctx)
	l.expect("without a registry", small, l.run(ctx, l.ref, "without", "/etc"))
	if out, err := l.node.Host().Run(ctx, "dd", "if="+l.mounts()[0]+"/models/model/weights.bin", "bs=4096", "skip=5000", "count=1", "status=none"); err == nil {
		t.Errorf("%d bytes of the model are read although nobody has them", len(out))
	}
	check(t, l.registry.Start(ctx))
	check(t, l.node.Host().SetLink(ctx, faultLink))
	l.expect("with a registry", want, l.run(ctx, l.ref, "with", "/etc", "/models"))
}

// The snapshots' metadata are lost. What the node then says to do has containerd's images back, though containerd knows of snapshots that are no more.
func TestRootDamagedMetadataAreLeftBehind(t *testing.T) {
	ctx, l := newLazyLab(t, "erofs", cluster.ContainerdConfig{})
	check(t, l.containerd.Pull(ctx, l.ref))
	want := l.wantFiles()
	l.expect("before", want, l.run(ctx, l.ref, "before", "/etc", "/models"))
	l.node.Stop(10 * time.Second)
	snapshots := filepath.Join(l.node.DataDir(), "snapshots")
	check(t, os.WriteFile(filepath.Join(snapshots, "metadata.db"), make([]byte, 1<<20), 0o600))
	if err := l.node.Start(ctx); err == nil {
		t.Fatal("the node starts over damaged metadata")
	}
	log, err := os.ReadFile(l.node.Log())
	check(t, err)
	if !strings.Contains(string(log)+l.node.Tail(), "move "+snapshots+" away") {
		t.Errorf("no way out is named:\n%s", l.node.Tail())
	}
	check(t, os.Rename(snapshots, snapshots+"-away"))
	l.restart(ctx)
	check(t, l.containerd.Forget(ctx, l.ref))
	check(t, l.containerd.Pull(ctx, l.ref))
	l.expect("after", want, l.run(ctx, l.ref, "after", "/etc", "/models"))
}

// A real registry takes a list that names another repository's blobs as layers. That opens none of them to who may read the list.
func TestRootAListOfManifestsOpensNoBlobOfOthers(t *testing.T) {
	ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{})
	check(t, l.containerd.Pull(ctx, l.ref))
	l.run(ctx, l.ref, "owner", "/models") // all of the model is on the node
	const list = string(types.DockerManifestList)
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		list, types.OCIUncompressedLayer, l.model.digest, l.model.size)
	ask := func(from *cluster.Host, method, url string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
		check(t, err)
		req.Header.Set("Content-Type", list)
		req.Header.Set("Accept", list)
		resp, err := from.Client().Do(req)
		check(t, err)
		check(t, resp.Body.Close())
		return resp.StatusCode
	}
	const repository = "/v2/test/stranger"
	if got := ask(l.registry.Host(), http.MethodPut, "http://"+l.registry.Addr()+repository+"/manifests/1"); got != http.StatusCreated {
		t.Fatalf("the registry does not take the list: status %d", got)
	}
	through := l.node.MirrorURL() + repository
	if got := ask(l.node.Host(), http.MethodGet, through+"/manifests/1?ns="+l.registry.Addr()); got != http.StatusOK {
		t.Fatalf("the list: status %d", got)
	}
	if got := ask(l.node.Host(), http.MethodGet, through+"/blobs/"+l.model.digest.String()+"?ns="+l.registry.Addr()); got != http.StatusNotFound {
		t.Errorf("another's blob: status %d, want 404", got)
	}
}

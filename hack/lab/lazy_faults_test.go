package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/snapshotter/keeper"
)

// A node that comes back and finds its keepers stopped, and its socket taken by another process, looks after what it had mounted, says what is wrong, and
// serves containerd when the socket is free.
func TestRootReadersOutliveHungKeepersAndATakenSocket(t *testing.T) {
	ctx, l := newLazyLab(t, "erofs", cluster.ContainerdConfig{})
	check(t, l.node.Host().SetLink(ctx, faultLink/4))
	check(t, l.containerd.Pull(ctx, l.ref))
	l.node.Kill()
	const file = "/models/model/weights.bin"
	read := make(chan string, 1)
	go func() { // ends with ctx at the latest
		out, err := l.node.Host().Run(ctx, "sha256sum", l.mounts()[0]+file)
		if err != nil {
			out = err.Error()
		}
		read <- out
	}()
	before := l.keepers(t)
	for _, pid := range before {
		check(t, syscall.Kill(pid, syscall.SIGSTOP))
	}
	check(t, os.Remove(l.socket())) // which the killed one has left
	other, err := net.Listen("unix", l.socket())
	check(t, err)
	defer other.Close()
	check(t, l.node.Start(ctx))
	want := l.wantFiles()
	if got, _, _ := strings.Cut(<-read, " "); got != want[file] {
		t.Errorf("read %s, want %s", got, want[file])
	}
	eventually(t, "others are the keepers", func() bool {
		now := l.keepers(t)
		return !slices.Contains(now, before[0]) && !slices.Contains(now, before[1])
	})
	body, err := get(ctx, l.node.Host().Client(), l.node.AdminURL()+"/v1/status", "")
	check(t, err)
	defer body.Close()
	var status struct {
		Snapshotter struct {
			Mounted int
			Off     string
		}
	}
	check(t, json.NewDecoder(body).Decode(&status))
	if s := status.Snapshotter; s.Mounted != 1 || !strings.Contains(s.Off, "another process serves there") {
		t.Errorf("status %+v, want one image and that the socket is taken", s)
	}
	check(t, other.Close())
	eventually(t, "containerd is served", func() bool {
		_, err := l.containerd.Ctr(ctx, "snapshots", "--snapshotter", "shoal", "list")
		return err == nil
	})
	l.expect("a container after that", want, l.run(ctx, l.ref, "after", "/etc", "/models"))
}

// A node that comes back and cannot start its snapshotter lets containers of before read no zeros: they get errors, until the next start can.
func TestRootReadersOfANodeWithoutSnapshotterGetNoZeros(t *testing.T) {
	ctx, l := newLazyLab(t, "", cluster.ContainerdConfig{})
	check(t, l.node.Host().SetLink(ctx, faultLink/4))
	check(t, l.containerd.Pull(ctx, l.ref))
	dir := t.TempDir()
	check(t, os.Mkdir(dir+"/upper", 0o755))
	check(t, os.Mkdir(dir+"/work", 0o755))
	check(t, os.Mkdir(dir+"/root", 0o755))
	root := dir + "/root" // of a container
	check(t, unix.Mount("overlay", root, "overlay", 0, "lowerdir="+l.mounts()[0]+",upperdir="+dir+"/upper,workdir="+dir+"/work"))
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	l.node.Kill()
	check(t, os.Remove(l.socket()))
	check(t, os.WriteFile(l.socket(), nil, 0o600))
	check(t, l.node.Start(ctx))
	const file = "/models/model/weights.bin"
	if out, err := l.node.Host().Run(ctx, "sha256sum", root+file); err == nil {
		t.Errorf("without a snapshotter it is read: %s", out)
	}
	out, err := l.node.Host().Run(ctx, l.shoal, "status")
	check(t, err)
	if !strings.Contains(out, "snapshots  none: ") || !strings.Contains(out, "it is no socket") {
		t.Errorf("status does not tell why there is no snapshotter:\n%s", out)
	}
	l.node.Kill()
	check(t, os.Remove(l.socket()))
	l.restart(ctx)
	want := l.wantFiles()
	eventually(t, "the image is mounted again", func() bool { return l.status(ctx).Mounted == 1 })
	out, err = l.node.Host().Run(ctx, "sha256sum", root+file)
	check(t, err)
	if got, _, _ := strings.Cut(out, " "); got != want[file] {
		t.Errorf("read %s, want %s", got, want[file])
	}
}

func (l *lazyLab) socket() string { return filepath.Join(l.node.DataDir(), "snapshotter.sock") }

// keepers waits until the node has two keepers, and returns their processes.
func (l *lazyLab) keepers(t *testing.T) []int {
	t.Helper()
	var out []int
	eventually(t, "there are two keepers", func() bool {
		c, err := keeper.Connect(t.Context(), keeper.Config{Socket: filepath.Join(l.node.DataDir(), "lazy", "keeper.sock")})
		if err != nil {
			return false
		}
		defer c.Close()
		leader, mate, err := c.Processes()
		out = []int{leader, mate}
		return err == nil && mate != 0
	})
	return out
}

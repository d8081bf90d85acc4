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

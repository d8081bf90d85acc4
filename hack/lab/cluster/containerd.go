package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Containerd is a containerd 2.x on a host, with its own root, state, socket and hosts folder.
type Containerd struct {
	*Process

	// Snapshotter unpacks what Pull pulls and RunContainer runs; empty is containerd's default.
	Snapshotter string

	host    *Host
	dir     string
	config  string
	release Release
}

// A Release says which containerd runs. The zero one is the 2.x in PATH.
type Release struct {
	Bin string // folder of containerd and ctr
	Old bool   // it is a 1.x
}

func (r Release) program(name string) string {
	if r.Bin == "" {
		return name
	}
	return filepath.Join(r.Bin, name)
}

// environment has containerd find its own shim.
func (r Release) environment() []string {
	if r.Bin == "" {
		return nil
	}
	return []string{"PATH=" + r.Bin + string(os.PathListSeparator) + os.Getenv("PATH")}
}

// oldContainerdConfig is containerdConfig for 1.x.
const oldContainerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.tracing.processor.v1.otlp"]
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "%[1]s/hosts"
[grpc]
address = "%[1]s/c.sock"
[ttrpc]
address = "%[1]s/t.sock"
`

// containerdConfig leaves out what a host without Kubernetes has no use for. The default snapshotter is overlayfs.
const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri",
  "io.containerd.tracing.processor.v1.otlp",
]
[plugins."io.containerd.cri.v1.images".registry]
config_path = "%[1]s/hosts"
[grpc]
address = "%[1]s/c.sock"
[ttrpc]
address = "%[1]s/t.sock"
`

// StartContainerd runs containerd on the host and waits until it answers.
func (h *Host) StartContainerd(ctx context.Context) (*Containerd, error) {
	c, err := h.newContainerd(Release{})
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// newContainerd writes the configuration.
func (h *Host) newContainerd(release Release) (*Containerd, error) {
	c := &Containerd{host: h, dir: filepath.Join(h.Dir, "containerd"), release: release}
	if err := os.MkdirAll(c.HostsDir(), 0o755); err != nil {
		return nil, err
	}
	c.config = filepath.Join(c.dir, "config.toml")
	text := containerdConfig
	if release.Old {
		text = oldContainerdConfig
	}
	return c, os.WriteFile(c.config, fmt.Appendf(nil, text, c.dir), 0o644)
}

// Start runs containerd again after its Kill.
func (c *Containerd) Start(ctx context.Context) (err error) {
	if c.Process, err = c.host.Start("containerd", []string{c.release.program("containerd"), "--config", c.config}, c.release.environment()); err != nil {
		return err
	}
	return c.waitFor(ctx, "its socket", func() bool {
		_, err := c.Ctr(ctx, "version")
		return err == nil
	})
}

// StartContainerd runs a containerd on the node's host that pulls through the node and has its snapshotter, as shoal mirror configure says.
func (n *Node) StartContainerd(ctx context.Context, r *Registry, release Release) (*Containerd, error) {
	c, err := n.host.newContainerd(release)
	if err != nil {
		return nil, err
	}
	c.Snapshotter = "shoal"
	args := append(n.mirrorArgs(c, r), "--snapshotter", filepath.Join(n.DataDir(), "snapshotter.sock"))
	more, err := n.host.Run(ctx, args...)
	if err != nil {
		return nil, err
	}
	config, err := os.OpenFile(c.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = config.WriteString(more)
	if err := errors.Join(err, config.Close()); err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// HostsDir is where containerd looks for hosts.toml, one folder for each registry.
func (c *Containerd) HostsDir() string { return filepath.Join(c.dir, "hosts") }

// Socket is where containerd listens, for ctr --address.
func (c *Containerd) Socket() string { return filepath.Join(c.dir, "c.sock") }

// Ctr runs ctr against this containerd and returns what it printed.
func (c *Containerd) Ctr(ctx context.Context, args ...string) (string, error) {
	return c.host.Run(ctx, append([]string{c.release.program("ctr"), "--address", c.Socket()}, args...)...)
}

// Pull pulls an image and unpacks it. Without a hosts.toml for its registry it asks the registry itself, by plain HTTP.
func (c *Containerd) Pull(ctx context.Context, ref string) error {
	args := append([]string{"images", "pull", "--plain-http", "--hosts-dir", c.HostsDir()}, c.snapshotter()...)
	_, err := c.Ctr(ctx, append(args, ref)...)
	return err
}

func (c *Containerd) snapshotter() []string {
	if c.Snapshotter == "" {
		return nil
	}
	return []string{"--snapshotter", c.Snapshotter}
}

// Forget removes an image and all that only it needs, so that the next pull starts from nothing.
func (c *Containerd) Forget(ctx context.Context, ref string) error {
	_, err := c.Ctr(ctx, "images", "remove", "--sync", ref)
	return err
}

// ContentDigest reads a blob from containerd's store and returns the digest that its bytes have.
func (c *Containerd) ContentDigest(ctx context.Context, blob digest.Digest) (digest.Digest, error) {
	out, err := c.host.Run(ctx, "sh", "-c", "ctr --address "+c.Socket()+" content get "+blob.String()+" | sha256sum")
	if err != nil {
		return "", err
	}
	return digest.Parse("sha256:" + strings.Fields(out)[0])
}

// A Container says what to run: an image, or the program Args in the folder Rootfs.
type Container struct {
	ID     string
	Image  string
	Rootfs string
	Mounts []string // as ctr run --mount takes them
	Args   []string // in place of the image's command
}

// RunContainer runs a container to its end on the host's network and returns what it printed.
func (c *Containerd) RunContainer(ctx context.Context, spec Container) (string, error) {
	// No cgroup: hosts without all controllers can run it too, and nothing of it stays behind. A state folder of our own:
	// runc's is shared by all containerds of the machine, and so would be the containers' names.
	args := []string{"run", "--rm", "--net-host", "--cgroup", "", "--runc-root", filepath.Join(c.dir, "runc")}
	args = append(args, c.snapshotter()...)
	for _, m := range spec.Mounts {
		args = append(args, "--mount", m)
	}
	root := spec.Image
	if spec.Rootfs != "" {
		args, root = append(args, "--rootfs"), spec.Rootfs
	}
	return c.Ctr(ctx, append(append(args, root, spec.ID), spec.Args...)...)
}

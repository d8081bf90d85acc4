package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Containerd is a containerd on a host, with its own root, state, socket and hosts folder.
type Containerd struct {
	*Process

	// Snapshotter unpacks what Pull pulls and RunContainer runs; empty is containerd's default.
	Snapshotter string

	host      *Host
	dir       string
	config    string
	bin       string // folder of its programs
	namespace string // of its images
}

// ContainerdConfig says which containerd is run, and how. The zero value is the pinned one without Kubernetes.
type ContainerdConfig struct {
	// Bin is the folder of its programs; empty takes those of PATH.
	Bin string
	// CRI adds what the kubelet speaks to. Images are then those of Kubernetes.
	CRI bool
	// ChunkBytes has layers fetched in parallel chunks of that size, which containerd can do from 2.1; zero takes one stream for each layer.
	ChunkBytes int
	// Sandbox is the image of a pod's first container, whose entrypoint sleeps; for pods only.
	Sandbox string
	// Snapshotter is the socket of the snapshotter that Node.StartContainerd configures; empty is the node's own.
	Snapshotter string
}

// The configurations of containerd 1.x and 2.x: the folder, and what is not to be loaded. The default snapshotter is overlayfs.
const (
	containerdHead = `version = %[3]d
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = [%[2]s]
[grpc]
address = "%[1]s/c.sock"
[ttrpc]
address = "%[1]s/t.sock"
`
	containerd1 = `[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "%[2]s"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "%[1]s/hosts"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "%[1]s/runc"
`
	containerd2 = `[plugins."io.containerd.cri.v1.images".registry]
config_path = "%[1]s/hosts"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "%[2]s"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
Root = "%[1]s/runc"
`
	containerdChunks = `[plugins."io.containerd.cri.v1.images"]
concurrent_layer_fetch_buffer = %[1]d
max_concurrent_downloads = 8
[plugins."io.containerd.transfer.v1.local"]
concurrent_layer_fetch_buffer = %[1]d
max_concurrent_downloads = 8
`
)

// text returns the configuration file for a containerd of the major version with its files in dir.
func (cfg ContainerdConfig) text(major, dir string) string {
	disabled := []string{"io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"}
	if !cfg.CRI {
		disabled = append(disabled, "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
			"io.containerd.podsandbox.controller.v1.podsandbox")
	}
	version, rest := 3, containerd2
	if major == "1" {
		version, rest = 2, containerd1
		disabled = slices.DeleteFunc(disabled, func(plugin string) bool { return strings.Contains(plugin, ".cri.v1.") })
	}
	text := fmt.Sprintf(containerdHead, dir, `"`+strings.Join(disabled, `", "`)+`"`, version)
	if cfg.CRI || major != "1" {
		text += fmt.Sprintf(rest, dir, cmp.Or(cfg.Sandbox, "localhost/pause:1"))
	}
	if cfg.ChunkBytes > 0 {
		text += fmt.Sprintf(containerdChunks, cfg.ChunkBytes)
	}
	return text
}

// StartContainerd runs the pinned containerd on the host and waits until it answers.
func (h *Host) StartContainerd(ctx context.Context) (*Containerd, error) {
	return h.StartContainerdAs(ctx, ContainerdConfig{})
}

// StartContainerdAs is StartContainerd of any version.
func (h *Host) StartContainerdAs(ctx context.Context, cfg ContainerdConfig) (*Containerd, error) {
	c, err := h.newContainerd(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// newContainerd writes the configuration.
func (h *Host) newContainerd(ctx context.Context, cfg ContainerdConfig) (*Containerd, error) {
	c := &Containerd{host: h, dir: filepath.Join(h.Dir, "containerd"), bin: cfg.Bin, namespace: "default"}
	if cfg.CRI {
		c.namespace = "k8s.io"
	}
	if err := os.MkdirAll(c.HostsDir(), 0o755); err != nil {
		return nil, err
	}
	major, err := h.containerdMajor(ctx, c.program("containerd"))
	if err != nil {
		return nil, err
	}
	c.config = filepath.Join(c.dir, "config.toml")
	return c, os.WriteFile(c.config, []byte(cfg.text(major, c.dir)), 0o644)
}

func (c *Containerd) program(name string) string { return filepath.Join(c.bin, name) }

// Start runs containerd again after its Kill.
func (c *Containerd) Start(ctx context.Context) (err error) {
	var env []string
	if c.bin != "" { // its shim stands beside it
		env = append(env, "PATH="+c.bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	}
	if c.Process, err = c.host.Start("containerd", []string{c.program("containerd"), "--config", c.config}, env); err != nil {
		return err
	}
	return c.waitFor(ctx, "its socket", func() bool {
		_, err := c.Ctr(ctx, "version")
		return err == nil
	})
}

// StartContainerd runs a containerd on the node's host that pulls through the node and has its snapshotter, as shoal mirror configure says.
func (n *Node) StartContainerd(ctx context.Context, r *Registry, cfg ContainerdConfig) (*Containerd, error) {
	c, err := n.NewContainerd(ctx, r, cfg)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// NewContainerd is StartContainerd without the start.
func (n *Node) NewContainerd(ctx context.Context, r *Registry, cfg ContainerdConfig) (*Containerd, error) {
	c, err := n.host.newContainerd(ctx, cfg)
	if err != nil {
		return nil, err
	}
	c.Snapshotter = "shoal"
	args := append(n.mirrorArgs(c, r), "--snapshotter", cmp.Or(cfg.Snapshotter, filepath.Join(n.DataDir(), "snapshotter.sock")))
	more, err := n.host.Run(ctx, args...)
	if err != nil {
		return nil, err
	}
	config, err := os.OpenFile(c.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = config.WriteString(more)
	return c, errors.Join(err, config.Close())
}

// containerdMajor asks a containerd for its major version.
func (h *Host) containerdMajor(ctx context.Context, program string) (string, error) {
	out, err := h.Run(ctx, program, "--version")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out) // containerd MODULE VERSION COMMIT
	if len(fields) < 3 {
		return "", fmt.Errorf("%s --version says %q", program, out)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(fields[2], "v"), ".")
	return major, nil
}

// HostsDir is where containerd looks for hosts.toml, one folder for each registry.
func (c *Containerd) HostsDir() string { return filepath.Join(c.dir, "hosts") }

// Socket is where containerd listens, for ctr --address.
func (c *Containerd) Socket() string { return filepath.Join(c.dir, "c.sock") }

// Ctr runs ctr against this containerd and returns what it printed.
func (c *Containerd) Ctr(ctx context.Context, args ...string) (string, error) {
	return c.host.Run(ctx, append([]string{c.program("ctr"), "--address", c.Socket(), "--namespace", c.namespace}, args...)...)
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

// ForgetAll removes all images with all they need. The kubelet's interface gives an image several names.
func (c *Containerd) ForgetAll(ctx context.Context) error {
	names, err := c.Ctr(ctx, "images", "list", "--quiet")
	if err != nil || strings.TrimSpace(names) == "" {
		return err
	}
	_, err = c.Ctr(ctx, append([]string{"images", "remove", "--sync"}, strings.Fields(names)...)...)
	return err
}

// ContentDigest reads a blob from containerd's store and returns the digest that its bytes have.
func (c *Containerd) ContentDigest(ctx context.Context, blob digest.Digest) (digest.Digest, error) {
	out, err := c.host.Run(ctx, "sh", "-c", c.program("ctr")+" --address "+c.Socket()+" --namespace "+c.namespace+" content get "+blob.String()+" | sha256sum")
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

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

const (
	kubeletPatience = 3 * time.Minute // for pods to run, on a busy machine
	kubeletModel    = 8 << 20
	podImage        = "lab/pod"
	modelFile       = "weights"
)

func kubeletCommand() *cli.Command {
	return &cli.Command{
		Name:  "kubelet",
		Usage: "run pods by two real kubelets whose images come through the mirror",
		Description: "A registry that wants a password, a scheduler, a seed and two nodes, each with a containerd and a kubelet that runs static pods. A pod has an image that is pulled\n" +
			"always, and another image as a volume, one of whose files it checks. Pods start with the nodes' daemons up, killed, and up again, and all\n" +
			"have to run to the end.\n" +
			"With --snapshotter the images are those of shoal convert, and containerd has the node's snapshotter mount them: containers and volumes. The daemons\n" +
			"are killed under running pods and come back; in the end pods and images are removed, and nothing of them may be left.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "snapshotter", Usage: "mount images by the node's snapshotter"}},
		Action: func(ctx *cli.Context) error {
			return withShoal(ctx, func(shoal string) error { return kubelets(ctx.Context, shoal, ctx.Bool("snapshotter"), ctx.App.Writer) })
		},
	}
}

// kubeletLogin is who may read the registry.
func kubeletLogin() cluster.Login { return cluster.Login{User: "kubelet", Password: "secret"} }

// kubeletRig is a swarm of two nodes with kubelets.
type kubeletRig struct {
	*swarm

	shoal    string
	mounted  bool // images are mounted by the nodes' snapshotters
	kubelets []*cluster.Kubelet
	program  []byte // that pods run
}

// kubelets makes the cluster, runs pods and removes it.
func kubelets(ctx context.Context, shoal string, mounted bool, log io.Writer) (err error) {
	if err := cluster.CheckTools("ip", "tc", "docker-registry", "containerd", "ctr", "runc", "kubelet"); err != nil {
		return fmt.Errorf("%w kubelet", err)
	}
	restore, err := kernelSettings()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	c, err := cluster.New(ctx, cluster.Config{Shoal: shoal, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	r := &kubeletRig{shoal: shoal, mounted: mounted}
	if r.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: 2, login: kubeletLogin()}); err != nil {
		return err
	}
	if r.program, err = buildPod(ctx, c.Dir()); err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if mounted {
		err = r.playMounted(ctx)
	} else {
		err = r.play(ctx)
	}
	for _, k := range r.kubelets { // they leave things outside of the cluster's folder, which go with the pods
		err = errors.Join(err, k.RemoveAll(ctx))
	}
	if err != nil {
		for _, k := range r.kubelets {
			err = fmt.Errorf("%w\n--- %s\n%s", err, k.Log(), k.Tail())
		}
		return err
	}
	return nil
}

// kernelSettings notes the settings of the kernel that a kubelet changes, and returns what sets them back.
func kernelSettings() (restore func() error, err error) {
	saved := map[string][]byte{}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		path := filepath.Join("/proc/sys", name)
		if saved[path], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return func() error {
		var err error
		for path, value := range saved {
			if now, readErr := os.ReadFile(path); readErr != nil || !bytes.Equal(now, value) {
				err = errors.Join(err, readErr, os.WriteFile(path, value, 0o644))
			}
		}
		return err
	}, nil
}

// start gives each node a containerd and a kubelet. The pods' first container is of the image that waits.
func (r *kubeletRig) start(ctx context.Context) error {
	if err := r.pushPod(ctx, "pause"); err != nil {
		return err
	}
	for _, n := range r.nodes {
		d, err := r.containerd(ctx, n)
		if err != nil {
			return err
		}
		// This one the kubelet has containerd fetch without credentials.
		if err := d.PullCRI(ctx, r.registry.Addr()+"/"+podImage+":pause", kubeletLogin()); err != nil {
			return err
		}
		k, err := n.Host().StartKubelet(ctx, d, r.registry, kubeletLogin())
		if err != nil {
			return err
		}
		r.containerds, r.kubelets = append(r.containerds, d), append(r.kubelets, k)
	}
	return nil
}

// containerd starts a containerd that pulls through the node, and has its snapshotter if that is wanted.
func (r *kubeletRig) containerd(ctx context.Context, n *cluster.Node) (*cluster.Containerd, error) {
	cfg := cluster.ContainerdConfig{CRI: true, Sandbox: r.registry.Addr() + "/" + podImage + ":pause"}
	if r.mounted {
		return n.StartContainerd(ctx, r.registry, cfg)
	}
	d, err := n.Host().StartContainerdAs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return d, n.ConfigureMirror(ctx, d, r.registry)
}

// play runs three pods on each node, one after the other.
func (r *kubeletRig) play(ctx context.Context) error {
	if err := r.run(ctx, "first"); err != nil {
		return fmt.Errorf("with the nodes up: %w", err)
	}
	for _, n := range r.nodes {
		m, err := n.Metrics(ctx)
		if err != nil {
			return err
		}
		if m.Sum("shoal_mirror_sent_bytes_total") < kubeletModel {
			return fmt.Errorf("%s sent %.0f bytes: the pulls went past it", n.Name(), m.Sum("shoal_mirror_sent_bytes_total"))
		}
		n.Kill()
	}
	if err := r.run(ctx, "first", "second"); err != nil {
		return fmt.Errorf("with the nodes killed: %w", err)
	}
	for _, n := range r.nodes {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	if err := r.run(ctx, "first", "second", "third"); err != nil {
		return fmt.Errorf("with the nodes up again: %w", err)
	}
	r.Logf("all pods ran")
	return nil
}

// run starts the last of the pods with images of its own and waits until all run on every node.
func (r *kubeletRig) run(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, kubeletPatience, fmt.Errorf("not within %v", kubeletPatience))
	defer cancel()
	name := names[len(names)-1]
	if err := r.pushPod(ctx, name); err != nil {
		return err
	}
	weights := make([]byte, kubeletModel)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(weights) // never fails
	model, err := fileImage(modelFile, weights, 0o644)
	if err != nil {
		return err
	}
	if err := r.push(ctx, "lab/model", name, model); err != nil {
		return err
	}
	began := time.Now()
	for _, k := range r.kubelets {
		err := k.Run(cluster.Pod{Name: name, Image: r.registry.Addr() + "/" + podImage + ":" + name, Volume: r.registry.Addr() + "/lab/model:" + name,
			File: modelFile, SHA256: digest.FromBytes(weights).Encoded()})
		if err != nil {
			return err
		}
	}
	for _, k := range r.kubelets {
		if err := k.WaitRunning(ctx, names...); err != nil {
			return err
		}
	}
	r.Logf("  pods %v run on both nodes, the last after %.1f s", names, time.Since(began).Seconds())
	return nil
}

// pushPod pushes the image that waits, with another digest for each tag.
func (r *kubeletRig) pushPod(ctx context.Context, tag string) error {
	img, err := fileImage("pod", append(bytes.Clone(r.program), tag...), 0o755)
	if err != nil {
		return err
	}
	if img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/pod"}}); err != nil {
		return err
	}
	return r.push(ctx, podImage, tag, img)
}

// push pushes an image, and adds its Nydus variant where images are mounted.
func (r *kubeletRig) push(ctx context.Context, repository, tag string, img v1.Image) error {
	if err := r.registry.Push(ctx, repository, tag, img); err != nil || !r.mounted {
		return err
	}
	login := filepath.Join(r.Dir(), "login")
	if err := errors.Join(os.MkdirAll(login, 0o700), kubeletLogin().WriteConfig(login, r.registry)); err != nil {
		return err
	}
	ref := r.registry.Addr() + "/" + repository + ":" + tag
	_, err := r.registry.Host().Run(ctx, "env", "DOCKER_CONFIG="+login, r.shoal, "convert", "--plain-http", "--quiet", "--image", ref, "--target", ref)
	return err
}

// buildPod builds the program that pods run.
func buildPod(ctx context.Context, dir string) ([]byte, error) {
	bin := filepath.Join(dir, "pod")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/shoal-project/shoal/hack/lab/testdata/pod")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the pods' program: %w\n%s", err, out)
	}
	return os.ReadFile(bin)
}

// fileImage returns an OCI image with one file at its root.
func fileImage(name string, data []byte, mode int64) (v1.Image, error) {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return nil, err
	}
	if _, err := tw.Write(data); err != nil {
		return nil, err
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}}); err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, l)
}

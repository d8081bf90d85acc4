package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/hack/shards"
)

type interopConfig struct {
	shoal, base string
	size        int64
	link        cluster.Rate
	log         io.Writer
}

// interopResult is what the command prints.
type interopResult struct {
	SizeBytes int64         `json:"size_bytes"`
	Readers   []interopNode `json:"readers"`
	Copies    float64       `json:"origin_copies"` // of the Nydus variant's data, bootstrap aside
}

// interopNode is one program that shows the image on a node of its own. Times are in seconds.
type interopNode struct {
	Reader  string  `json:"reader"`
	Started float64 `json:"started_seconds"` // until the image is there to be read
	Ready   float64 `json:"ready_seconds"`   // until a container has read all of the model, from the beginning
	Files   int     `json:"files"`           // that had the digests of their sources
	Mirror  int64   `json:"mirror_bytes"`    // that the node's mirror sent
}

// interopReaders are the programs that show the image: shoal's own snapshotter, nydus-snapshotter, and nydusd alone.
var interopReaders = []string{"shoal", "nydus-snapshotter", "nydusd"}

// interopProgram prints the digest of each file of the model, in Python.
const interopProgram = `
import glob, hashlib, json
out = {}
for name in glob.glob("/models/*/*"):
    with open(name, "rb") as f:
        out[name.split("/")[-1]] = "sha256:" + hashlib.file_digest(f, "sha256").hexdigest()
print(json.dumps(out))
`

func interopCommand() *cli.Command {
	return &cli.Command{
		Name:  "interop",
		Usage: "run one image by shoal's snapshotter, by nydus-snapshotter and by nydusd, each on a node, and see that they share",
		Description: "A model is converted and pushed. Three nodes run a container of it at once, which reads the whole model: from shoal's\n" +
			"snapshotter, from nydus-snapshotter, which finds the Nydus variant in the index and starts nydusd, and from a nydusd of its\n" +
			"own. The two others read through the mirror of their node. Every file has to have the bytes of its source, and the registry\n" +
			"may send each blob once. hack/setup nydus-snapshotter builds that one.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "size", Value: "64MiB", Usage: "`SIZE` of the model"},
			linkFlag("1gbit"),
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
		},
		Action: func(ctx *cli.Context) error {
			cfg := interopConfig{base: filepath.Join(ctx.Path("cache"), "base"), log: ctx.App.ErrWriter}
			var err error
			if cfg.size, cfg.link, err = sizeAndLink(ctx); err != nil {
				return err
			}
			if err := cluster.CheckTools("ip", "tc", "docker-registry", "containerd", "ctr", "runc", "nydusd", "nydus-image", "containerd-nydus-grpc"); err != nil {
				return err
			}
			return withShoal(ctx, func(shoal string) error {
				cfg.shoal = shoal
				result, err := interop(ctx.Context, cfg)
				if err != nil {
					return err
				}
				return errors.Join(tellResult(ctx, result), result.check())
			})
		},
	}
}

func (r interopResult) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d MiB shown by\tstarted\tready\tright files\tthrough the mirror\n", r.SizeBytes>>20)
	for _, n := range r.Readers {
		fmt.Fprintf(t, "%s\t%.2f s\t%.2f s\t%d\t%d MiB\n", n.Reader, n.Started, n.Ready, n.Files, n.Mirror>>20)
	}
	fmt.Fprintf(t, "copies from the registry\t%.2f\t\t\t\n", r.Copies)
	return t.Flush()
}

// check tells what is not as it has to be; wrong bytes are an error before that.
func (r interopResult) check() error {
	if r.Copies > 1 {
		return fmt.Errorf("%.2f copies of the data left the registry, want one for all nodes", r.Copies)
	}
	for _, n := range r.Readers {
		if n.Reader != "shoal" && n.Mirror < r.SizeBytes {
			return fmt.Errorf("%s read %d bytes through its node's mirror, the model has %d", n.Reader, n.Mirror, r.SizeBytes)
		}
	}
	return nil
}

// interopRig is a run of the command.
type interopRig struct {
	*swarm

	cfg    interopConfig
	ref    string
	source string // folder of the model
	image  pushedImage
	nydus  *cluster.Process // nydus-snapshotter
}

// interop makes a cluster, does it all, and removes the cluster.
func interop(ctx context.Context, cfg interopConfig) (result interopResult, err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Link: cfg.link, Log: cfg.log})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := newSwarm(ctx, c, swarmConfig{nodes: len(interopReaders)})
	if err != nil {
		return result, err
	}
	r := &interopRig{swarm: s, cfg: cfg, ref: s.registry.Addr() + "/" + repository + ":1", source: filepath.Join(c.Dir(), "model")}
	if err := r.prepare(ctx); err != nil {
		return result, err
	}
	result = interopResult{SizeBytes: cfg.size, Readers: make([]interopNode, len(interopReaders))}
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range interopReaders {
		group.Go(func() (err error) {
			if result.Readers[i], err = r.node(groupCtx, i); err != nil {
				return fmt.Errorf("%s: %w%s", interopReaders[i], err, r.logs(i))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return result, err
	}
	result.Copies, err = r.copies()
	return result, err
}

// logs are the ends of what the daemons of a node wrote.
func (r *interopRig) logs(i int) string {
	daemons := []*cluster.Process{r.nodes[i].Process, r.containerds[i].Process}
	if interopReaders[i] == "nydus-snapshotter" {
		daemons = append(daemons, r.nydus)
	}
	var b strings.Builder
	for _, p := range daemons {
		fmt.Fprintf(&b, "\n--- %s\n%s", p.Log(), p.Tail())
	}
	return b.String()
}

// prepare pushes the image and starts what is to show it.
func (r *interopRig) prepare(ctx context.Context) error {
	if _, err := shards.Write(r.source, uint64(time.Now().UnixNano()), r.cfg.size, 4); err != nil {
		return err
	}
	_, err := r.registry.Host().Run(ctx, r.cfg.shoal, "convert", "--plain-http", "--quiet", "--model", r.source, "--base", "oci:"+r.cfg.base, "--target", r.ref)
	if err != nil {
		return err
	}
	if r.image, err = inspect(ctx, r.registry, repository, "1"); err != nil {
		return err
	}
	for i, reader := range interopReaders {
		var c *cluster.Containerd
		switch n := r.nodes[i]; reader {
		case "shoal":
			c, err = n.StartContainerd(ctx, r.registry, cluster.ContainerdConfig{})
		case "nydus-snapshotter":
			c, err = r.startNydusSnapshotter(ctx, n)
		default:
			c, err = n.Host().StartContainerd(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", reader, err)
		}
		r.containerds = append(r.containerds, c)
	}
	return nil
}

// node has one reader bring the image to its node, runs a container of it, and compares what that read with the model.
func (r *interopRig) node(ctx context.Context, i int) (got interopNode, err error) {
	got.Reader = interopReaders[i]
	spec := cluster.Container{ID: "read", Args: []string{"/usr/bin/python3", "-c", interopProgram}}
	began := time.Now()
	if got.Reader == "nydusd" {
		if err := r.resolve(ctx, r.nodes[i]); err != nil { // as whoever starts a nydusd has found the image
			return got, err
		}
		v := nydusVariant{host: r.nodes[i].Host(), server: r.registry.Addr(), mirror: r.nodes[i].MirrorURL(), repository: repository, manifest: r.image.nydus}
		spec.Rootfs, err = v.mountNydusd(ctx)
	} else {
		spec.Image = r.ref
		err = r.containerds[i].Pull(ctx, r.ref)
	}
	if err != nil {
		return got, err
	}
	got.Started = time.Since(began).Seconds()
	out, err := r.containerds[i].RunContainer(ctx, spec)
	if err != nil {
		return got, err
	}
	got.Ready = time.Since(began).Seconds()
	if got.Reader == "nydus-snapshotter" && !mountedBelow(filepath.Join(r.nodes[i].Host().Dir, "nydus"), "fuse") {
		return got, errors.New("it has unpacked the image, no nydusd has mounted it")
	}
	if got.Files, err = sameDigests(r.source, out); err != nil {
		return got, err
	}
	m, err := r.nodes[i].Metrics(ctx)
	got.Mirror = int64(m.Sum("shoal_mirror_sent_bytes_total"))
	return got, err
}

// sameDigests compares the files of a folder with what a container printed of them, digests by name, and returns how many there are.
func sameDigests(source, printed string) (files int, err error) {
	var got map[string]digest.Digest
	if err := json.Unmarshal([]byte(printed), &got); err != nil {
		return 0, fmt.Errorf("answer of the container: %w: %q", err, printed)
	}
	entries, err := os.ReadDir(source)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		want, err := fileDigest(filepath.Join(source, e.Name()))
		if err != nil {
			return files, err
		}
		if got[e.Name()] != want {
			return files, fmt.Errorf("the container read %s with %q, its source has %s", e.Name(), got[e.Name()], want)
		}
		files++
	}
	return files, nil
}

// copies returns how often the data of the Nydus variant left the registry.
func (r *interopRig) copies() (float64, error) {
	served, err := r.registry.Served()
	if err != nil {
		return 0, err
	}
	var sent, size int64
	for _, l := range r.image.nydus.Layers[:len(r.image.nydus.Layers)-1] {
		sent, size = sent+served[l.Digest], size+l.Size
	}
	return float64(sent) / float64(size), nil
}

// nydusSnapshotterConfig is the configuration of nydus-snapshotter: it looks for a Nydus variant in the image's index, one nydusd for each image reads
// the blobs, and the hosts.toml files that containerd has tell of the mirror.
const nydusSnapshotterConfig = `version = 1
root = "%[1]s/root"
address = "%[1]s/s.sock"
daemon_mode = "dedicated"
cleanup_on_close = true
[system]
enable = false
[daemon]
nydusd_config = "%[1]s/nydusd.json"
nydusd_path = "%[1]s/nydusd"
nydusimage_path = "%[2]s"
fs_driver = "fusedev"
recover_policy = "none"
[cgroup]
enable = false
[log]
log_to_stdout = true
level = "info"
dir = "%[1]s/logs"
[metrics]
address = ""
[remote.mirrors_config]
dir = "%[3]s"
[snapshot]
enable_nydus_overlayfs = false
[cache_manager]
cache_dir = "%[1]s/cache"
[experimental]
enable_index_detect = true
`

// nydusdUnlimited has nydusd keep its limit of open files, which not every machine allows to be raised.
const nydusdUnlimited = "#!/bin/sh\nexec nydusd \"$@\" --rlimit-nofile 0\n"

// startNydusSnapshotter runs nydus-snapshotter on the node's host, and a containerd that has it as its snapshotter.
func (r *interopRig) startNydusSnapshotter(ctx context.Context, n *cluster.Node) (*cluster.Containerd, error) {
	dir := filepath.Join(n.Host().Dir, "nydus")
	socket := filepath.Join(dir, "s.sock")
	c, err := n.NewContainerd(ctx, r.registry, cluster.ContainerdConfig{Snapshotter: socket})
	if err != nil {
		return nil, err
	}
	nydusImage, err := exec.LookPath("nydus-image")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	daemon, err := json.Marshal(nydusVariant{prefetch: true, insecure: true}.nydusdConfig(""))
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf(nydusSnapshotterConfig, dir, nydusImage, c.HostsDir())
	err = errors.Join(os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600), os.WriteFile(filepath.Join(dir, "nydusd.json"), daemon, 0o600),
		os.WriteFile(filepath.Join(dir, "nydusd"), []byte(nydusdUnlimited), 0o700))
	if err != nil {
		return nil, err
	}
	r.nydus, err = n.Host().Start("nydus-snapshotter", []string{"containerd-nydus-grpc", "--config", filepath.Join(dir, "config.toml")}, nil)
	if err != nil {
		return nil, err
	}
	if err := r.nydus.WaitSocket(ctx, socket); err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

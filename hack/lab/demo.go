package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// The image of the demo: its repository, its tag, the program of the base image and the folder its model is in.
const (
	demoRepository = "demo/minilm"
	demoTag        = "1"
	demoModel      = "all-minilm-l6-v2"
	demoModelDir   = "/models/" + demoModel
	demoProgram    = "/srv/embed.py"
)

type demoConfig struct {
	cache string // folder of base image and model
	nodes int
	link  cluster.Rate
	keep  bool
}

// demoResult is what there is to judge at the end.
type demoResult struct {
	nodes      []nodeResult
	layers     []layerResult
	inferences []inference
	kept       *swarm // what is left running, when that was asked for
}

type nodeResult struct {
	name  string
	ready time.Duration // from the start of the pull to the first answer of the container; 0 for the seed
	read  map[string]int64
	again int     // times that it asked the origin once more for what it had asked before
	past  float64 // blobs that its mirror sent containerd to the registry for, and reads without a lease
}

// layerResult is a blob of the image and how much of it the registry sent, by its access log.
type layerResult struct {
	blob

	variant string // plain, nydus, or both
	served  int64
}

// inference is what one container said. The digest is that of the embeddings.
type inference struct {
	Node, Variant string
	Digest        string             `json:"digest"`
	Cosine        map[string]float64 `json:"cosine"`
	LoadSeconds   float64            `json:"load_seconds"`
	InferSeconds  float64            `json:"infer_seconds"`
}

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "bring a model to three nodes and let it answer there",
		Description: "A model is converted and pushed, three containerds pull it at once through their nodes, and containers answer from the\n" +
			"plain variant, from a kernel EROFS mount and from a nydusd mount. A table tells where the bytes came from.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "nodes", Value: 3, Usage: "`NUMBER` of nodes, the seed not counted"},
			linkFlag("1gbit"),
			&cli.BoolFlag{Name: "keep", Usage: "leave all running and say how to look around"},
		},
		Action: func(ctx *cli.Context) error {
			link, err := cluster.ParseRate(ctx.String("link"))
			if err != nil {
				return err
			}
			cfg := demoConfig{cache: ctx.Path("cache"), nodes: ctx.Int("nodes"), link: link, keep: ctx.Bool("keep")}
			return withShoal(ctx, func(shoal string) error {
				out := newTalk(ctx.App.Writer)
				result, err := runDemo(ctx.Context, cfg, shoal, out)
				if err != nil {
					return err
				}
				out.table(result)
				if cfg.keep {
					out.lookAround(result.kept)
				}
				return result.check()
			})
		},
	}
}

// runDemo makes a cluster, does it all, and removes the cluster unless it is to be kept.
func runDemo(ctx context.Context, cfg demoConfig, shoal string, out *talk) (result demoResult, err error) {
	if err := checkDemo(cfg); err != nil {
		return result, err
	}
	c, err := cluster.New(ctx, cluster.Config{Link: cfg.link, Log: out})
	if err != nil {
		return result, err
	}
	d := &demo{cfg: cfg, out: out}
	defer func() {
		if cfg.keep && err == nil {
			result.kept = d.swarm
			err = c.Detach()
			return
		}
		out.step("remove all that was made")
		err = errors.Join(err, c.Close())
	}()
	if err := d.start(ctx, c, shoal); err != nil {
		return result, err
	}
	if err := d.convert(ctx); err != nil {
		return result, err
	}
	if err := d.pull(ctx); err != nil {
		return result, d.withLogs(err)
	}
	if err := d.mounts(ctx); err != nil {
		return result, d.withLogs(err)
	}
	return d.account(ctx)
}

func checkDemo(cfg demoConfig) error {
	err := cluster.CheckTools("ip", "tc", "docker-registry", "containerd", "ctr", "runc", "nydusd")
	for _, folder := range []string{"base", "models/" + demoModel} {
		if _, statErr := os.Stat(filepath.Join(cfg.cache, folder)); statErr != nil {
			err = errors.Join(err, fmt.Errorf("%w; run hack/setup", statErr))
		}
	}
	return err
}

// demo is one run of it.
type demo struct {
	*swarm

	cfg   demoConfig
	out   *talk
	shoal string
	ref   string
	image pushedImage
	ready []time.Duration

	inferences []inference
}

func (d *demo) start(ctx context.Context, c *cluster.Cluster, shoal string) (err error) {
	d.out.step("start a registry, a scheduler, a seed and %d nodes, each on a link of its own", d.cfg.nodes)
	// The nodes outlive the folder that shoal was built into when the demo is kept.
	if d.shoal = filepath.Join(c.Dir(), "shoal"); shoal != d.shoal {
		if err := copyFile(d.shoal, shoal, 0o755); err != nil {
			return err
		}
	}
	c.SetShoal(d.shoal)
	if d.swarm, err = newSwarm(ctx, c, swarmConfig{nodes: d.cfg.nodes}); err != nil {
		return err
	}
	if err := d.addContainerds(ctx); err != nil {
		return err
	}
	d.ref = d.registry.Addr() + "/" + demoRepository + ":" + demoTag
	return nil
}

// convert makes the image and pushes it, on the registry's host so that no link is loaded.
func (d *demo) convert(ctx context.Context) (err error) {
	d.out.step("convert the model %s and push it as %s", demoModel, d.ref)
	start := time.Now()
	_, err = d.registry.Host().Run(ctx, d.shoal, "convert", "--plain-http",
		"--model", d.modelSource(), "--base", "oci:"+filepath.Join(d.cfg.cache, "base"), "--target", d.ref)
	if err != nil {
		return err
	}
	if d.image, err = inspect(ctx, d.registry, demoRepository, demoTag); err != nil {
		return err
	}
	d.out.step("converted in %.1f s: %s", time.Since(start).Seconds(), d.image)
	return nil
}

// pull has all containerds pull at once and starts the container of each as soon as its image is there.
func (d *demo) pull(ctx context.Context) error {
	d.out.step("all %d containerds pull %s at once", d.cfg.nodes, d.ref)
	d.ready = make([]time.Duration, d.cfg.nodes)
	d.inferences = make([]inference, d.cfg.nodes)
	watch := d.out.watch(ctx, d.swarm, d.image.plainSize())
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range d.containerds {
		group.Go(func() (err error) {
			if err := c.Pull(ctx, d.ref); err != nil {
				return err
			}
			pulled := time.Since(start)
			d.inferences[i], err = d.infer(ctx, i, "plain", cluster.Container{Image: d.ref})
			d.ready[i] = time.Since(start)
			d.out.step("%s: pulled in %.1f s, container ready in %.1f s", d.nodes[i].Host().Name, pulled.Seconds(), d.ready[i].Seconds())
			return err
		})
	}
	err := group.Wait()
	watch.stop()
	return err
}

// mounts has every node mount the Nydus variant both ways and answer from it.
func (d *demo) mounts(ctx context.Context) error {
	d.out.step("mount the Nydus variant with nydusd (FUSE) and with the kernel (EROFS), on every node")
	results := make([][]inference, d.cfg.nodes)
	group, ctx := errgroup.WithContext(ctx)
	for i := range d.nodes {
		group.Go(func() error {
			// nydusd first: it reads ranges of what the cluster does not hold yet; the kernel's mount needs whole blobs.
			fuse, err := d.inferNydusd(ctx, i)
			if err != nil {
				return fmt.Errorf("%s: nydusd: %w", d.nodes[i].Host().Name, err)
			}
			erofs, err := d.inferEROFS(ctx, i)
			if err != nil {
				return fmt.Errorf("%s: kernel mount: %w", d.nodes[i].Host().Name, err)
			}
			results[i] = []inference{fuse, erofs}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	d.inferences = append(d.inferences, slices.Concat(results...)...)
	return nil
}

// inferEROFS answers with the framework of the pulled image and the model of the kernel's mount.
func (d *demo) inferEROFS(ctx context.Context, i int) (inference, error) {
	mount, err := d.variant(i).mountEROFS(ctx)
	if err != nil {
		return inference{}, err
	}
	if err := d.compareModel(i, "erofs", mount); err != nil {
		return inference{}, err
	}
	return d.infer(ctx, i, "erofs", cluster.Container{
		Image:  d.ref,
		Mounts: []string{"type=bind,src=" + filepath.Join(mount, "models") + ",dst=/models,options=rbind:ro"},
	})
}

// inferNydusd answers from nydusd alone: framework and model are read through its mount, an empty folder takes writes.
func (d *demo) inferNydusd(ctx context.Context, i int) (inference, error) {
	root, err := d.variant(i).mountNydusd(ctx)
	if err != nil {
		return inference{}, err
	}
	if err := d.compareModel(i, "nydusd", root); err != nil {
		return inference{}, err
	}
	return d.infer(ctx, i, "nydusd", cluster.Container{Rootfs: root, Args: []string{"/usr/bin/python3", demoProgram}})
}

// compareModel checks that the model in a mounted image is the one that was converted, file by file.
func (d *demo) compareModel(i int, variant, root string) error {
	files, err := sameFiles(d.modelSource(), filepath.Join(root, demoModelDir))
	if err != nil {
		return err
	}
	d.out.step("%s: %s shows the model's %d files with the sha256 of their sources", d.nodes[i].Host().Name, variant, files)
	return nil
}

func (d *demo) modelSource() string { return filepath.Join(d.cfg.cache, "models", demoModel) }

// infer runs a container on a node and reads its answer.
func (d *demo) infer(ctx context.Context, i int, variant string, spec cluster.Container) (inference, error) {
	answer := inference{Node: d.nodes[i].Host().Name, Variant: variant}
	spec.ID = "demo-" + variant
	out, err := d.containerds[i].RunContainer(ctx, spec)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return answer, fmt.Errorf("answer of %s on %s: %w: %q", variant, answer.Node, err, out)
	}
	d.out.step("%s: %s answers %s…, loaded in %.2f s, inferred in %.3f s", answer.Node, variant, answer.Digest[:12], answer.LoadSeconds, answer.InferSeconds)
	return answer, nil
}

// account asks the registry's access log and the nodes' metrics where the bytes came from.
func (d *demo) account(ctx context.Context) (demoResult, error) {
	result := demoResult{inferences: d.inferences}
	for i, n := range append([]*cluster.Node{d.seeds[0]}, d.nodes...) {
		m, err := n.Metrics(ctx)
		if err != nil {
			return result, err
		}
		node := nodeResult{name: n.Host().Name, read: m.Read(), again: int(m.Sum("shoal_peer_origin_asked_again_total")),
			past: m.Sum("shoal_mirror_fallbacks_total") + m.Sum("shoal_peer_unleased_reads_total")}
		if i > 0 {
			node.ready = d.ready[i-1]
		}
		result.nodes = append(result.nodes, node)
	}
	for _, l := range d.image.layers() {
		served, err := d.registry.WaitServed(ctx, l.digest, l.size)
		if err != nil {
			return result, err
		}
		l.served = served
		result.layers = append(result.layers, l)
	}
	return result, nil
}

// sentAhead is what a registry may have written to a connection, in the buffers of two kernels, when its reader gives it up.
const sentAhead = 8 << 20

// check says whether all held that the demo is to show: one copy to the byte, unless the registry kept a question waiting for so long that
// it was asked once more.
func (r demoResult) check() error {
	var errs []error
	again := 0
	for _, n := range r.nodes {
		again += n.again
		if n.past != 0 {
			errs = append(errs, fmt.Errorf("%s: %v blobs were read past the swarm", n.name, n.past))
		}
	}
	for _, l := range r.layers {
		if more := l.served - l.size; more < 0 || more > int64(again)*sentAhead {
			errs = append(errs, fmt.Errorf("layer %s (%s): the registry sent %d bytes of %d, and was asked once more %d times",
				l.digest, l.variant, l.served, l.size, again))
		}
	}
	for _, i := range r.inferences {
		if i.Digest != r.inferences[0].Digest {
			errs = append(errs, fmt.Errorf("%s from %s answers %s, %s from %s answered %s",
				i.Node, i.Variant, i.Digest, r.inferences[0].Node, r.inferences[0].Variant, r.inferences[0].Digest))
		}
	}
	return errors.Join(errs...)
}

func (d *demo) withLogs(err error) error {
	for _, n := range append(d.nodes, d.seeds[0]) {
		err = fmt.Errorf("%w\n--- %s\n%s", err, n.Log(), n.Tail())
	}
	return err
}

func copyFile(to, from string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// pushedImage is the index as the registry has it.
type pushedImage struct {
	plain, nydus ocispec.Manifest
}

// artifactTypeNydus marks the Nydus manifest in the index.
const artifactTypeNydus = "application/vnd.nydus.image.manifest.v1+json"

func (p pushedImage) String() string {
	return fmt.Sprintf("%d plain layers of %d MiB, %d Nydus layers, shared by both %d", len(p.plain.Layers), p.plainSize()>>20,
		len(p.nydus.Layers), len(p.plain.Layers)+len(p.nydus.Layers)-len(p.layers()))
}

// plainSize is the sum of the plain layers' sizes.
func (p pushedImage) plainSize() (sum int64) {
	for _, l := range p.plain.Layers {
		sum += l.Size
	}
	return sum
}

// layers lists the layers of both variants, each digest once.
func (p pushedImage) layers() []layerResult {
	var layers []layerResult
	at := map[digest.Digest]int{}
	add := func(m ocispec.Manifest, variant string) {
		for _, l := range m.Layers {
			if i, ok := at[l.Digest]; ok {
				if layers[i].variant != variant {
					layers[i].variant = "both"
				}
				continue
			}
			at[l.Digest] = len(layers)
			layers = append(layers, layerResult{blob: blob{l.Digest, l.Size}, variant: variant})
		}
	}
	add(p.plain, "plain")
	add(p.nydus, "nydus")
	return layers
}

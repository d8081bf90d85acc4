package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/hack/shards"
)

type lazyBenchConfig struct {
	shoal, base string
	size        int64
	link        cluster.Rate
	nodes       int
	rounds      int
	ways        []string // of lazyWays
	reads       []string // of lazyReads
	log         io.Writer
}

// lazyBenchResult is what the command prints.
type lazyBenchResult struct {
	SizeBytes         int64      `json:"size_bytes"`
	LinkBitsPerSecond int64      `json:"link_bits_per_second"`
	Nodes             int        `json:"nodes"`
	Rounds            int        `json:"rounds"`
	Limit             float64    `json:"limit_seconds"` // a link carries the model once
	Cases             []lazyCase `json:"cases"`
}

// lazyCase is one way to bring the image to its containers and one way in which these read all of the model. Times are medians over the rounds, of
// the slowest node, in seconds.
type lazyCase struct {
	Way       string    `json:"way"`
	Read      string    `json:"read"`
	Pulled    float64   `json:"pulled_seconds"`     // from the beginning until the container is started
	FirstByte float64   `json:"first_byte_seconds"` // from the start of the container until it has a byte of the model
	Ready     float64   `json:"ready_seconds"`      // from the beginning until all is read
	Ratio     float64   `json:"ready_to_limit"`
	Copies    float64   `json:"origin_copies"` // of the model
	Runs      []lazyRun `json:"runs"`
}

// lazyRun is one round.
type lazyRun struct {
	Nodes  []lazyNode `json:"nodes"`
	Copies float64    `json:"origin_copies"`
}

// lazyNode is what one node took, in seconds.
type lazyNode struct {
	Pulled    float64 `json:"pulled_seconds"`
	FirstByte float64 `json:"first_byte_seconds"`
	Ready     float64 `json:"ready_seconds"`
}

// slowest returns the run's largest times.
func (r lazyRun) slowest() (worst lazyNode) {
	for _, n := range r.Nodes {
		worst = lazyNode{max(worst.Pulled, n.Pulled), max(worst.FirstByte, n.FirstByte), max(worst.Ready, n.Ready)}
	}
	return worst
}

// lazyWays are the ways to bring an image to a container.
var lazyWays = []string{"registry", "mirror", "nydusd", "shoal"}

// lazyReads are the programs that read all of a model in a container, in Python. Each prints when it had a byte and when all, by the machine's clock.
const (
	readHead = `
import glob, json, os, random, time
files = sorted(glob.glob("/models/*/*.safetensors"))
with open(files[0], "rb", 0) as f:
    assert len(f.read(16)) == 16
first = time.time()
total = 0
`
	readTail = `
print(json.dumps({"first": first, "done": time.time(), "bytes": total}))
`
	readMapped = `
import numpy as np
from safetensors import safe_open
for name in files:
    with safe_open(name, "np") as f:
        for key in f.keys():
            t = f.get_tensor(key)
            total += t.nbytes
            t.view(np.uint8).reshape(-1)[::4096].sum()
`
	readSequential = `
buf = bytearray(1 << 20)
for name in files:
    with open(name, "rb", 0) as f:
        while n := f.readinto(buf):
            total += n
`
	readRandom = `
step = 64 << 10
places = [(name, at) for name in files for at in range(0, os.path.getsize(name), step)]
random.Random(1).shuffle(places)
fds = {name: os.open(name, os.O_RDONLY) for name in files}
for name, at in places:
    total += len(os.pread(fds[name], step, at))
`
)

// readFirst reads the beginning of the model by a small program, for the time at which a container has any byte of it; starting Python takes longer.
const readFirst = `head -c 16 /models/*/model-00001-*.safetensors >/dev/null && echo "{\"first\":$EPOCHREALTIME,\"done\":$EPOCHREALTIME}"`

// lazyProgram returns the command of a container that reads.
func lazyProgram(read string) ([]string, error) {
	if read == "first" {
		return []string{"/bin/bash", "-c", readFirst}, nil
	}
	body, ok := map[string]string{"mmap": readMapped, "sequential": readSequential, "random": readRandom}[read]
	if !ok {
		return nil, fmt.Errorf("--read %q: want first, mmap, sequential or random", read)
	}
	return []string{"/usr/bin/python3", "-c", readHead + body + readTail}, nil
}

func lazyBenchCommand() *cli.Command {
	return &cli.Command{
		Name:  "lazy",
		Usage: "measure how long containers on several nodes take until they have read all of a model, from a cold start",
		Description: "A registry, a scheduler, a seed and the nodes, each on a link of the same rate; all anew for each figure. All nodes start a\n" +
			"container at once. The ways are registry (containerd pulls from the registry, then runs), mirror (it pulls through its node, then\n" +
			"runs), nydusd (mounted, blobs read from the registry) and shoal (mounted by the snapshotter). Containers read the whole model:\n" +
			"mmap (by the safetensors library), sequential, or random (64 KiB at a time); or, first, just its beginning, by a shell.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "size", Value: "2GiB", Usage: "`SIZE` of the model"},
			linkFlag("500mbit"),
			&cli.IntFlag{Name: "nodes", Value: 4, Usage: "`NUMBER` of nodes, the seed not counted"},
			&cli.IntFlag{Name: "rounds", Value: 1, Usage: "`NUMBER` of rounds"},
			&cli.StringFlag{Name: "ways", Value: strings.Join(lazyWays, ","), Usage: "`WAYS`, apart by commas"},
			&cli.StringFlag{Name: "read", Value: "first,mmap,sequential,random", Usage: "`WAYS` to read, apart by commas"},
			&cli.PathFlag{Name: "plot", Usage: "draw the times to `FILE`, an SVG"},
			&cli.PathFlag{Name: "json", Usage: "write all figures to `FILE`"},
		},
		Action: func(ctx *cli.Context) error {
			cfg, err := lazyBenchFlags(ctx)
			if err != nil {
				return err
			}
			var result lazyBenchResult
			err = withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = lazyBench(ctx.Context, cfg)
				return err
			})
			if err != nil {
				return err
			}
			if err := result.print(ctx.App.Writer); err != nil {
				return err
			}
			return writeFigures(ctx, result, lazyPlot(result))
		},
	}
}

func lazyBenchFlags(ctx *cli.Context) (lazyBenchConfig, error) {
	cfg := lazyBenchConfig{base: filepath.Join(ctx.Path("cache"), "base"), nodes: ctx.Int("nodes"), rounds: ctx.Int("rounds"),
		ways: strings.Split(ctx.String("ways"), ","), reads: strings.Split(ctx.String("read"), ","), log: ctx.App.ErrWriter}
	var err error
	if cfg.size, cfg.link, err = sizeAndLink(ctx); err != nil {
		return cfg, err
	}
	if cfg.nodes < 1 || cfg.rounds < 1 || cfg.size < 1<<20 {
		return cfg, errors.New("--nodes and --rounds have to be above 0, --size 1MiB at the least")
	}
	for _, way := range cfg.ways {
		if !slices.Contains(lazyWays, way) {
			return cfg, fmt.Errorf("--ways %q: want some of %s", way, strings.Join(lazyWays, ","))
		}
	}
	for _, read := range cfg.reads {
		if _, err := lazyProgram(read); err != nil {
			return cfg, err
		}
	}
	return cfg, cluster.CheckTools("ip", "tc", "docker-registry", "containerd", "ctr", "runc", "nydusd")
}

func (r lazyBenchResult) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d MiB to %d nodes, median of %d\tread\tpulled\tfirst byte\tready\tto limit %.1f s\tcopies\n", r.SizeBytes>>20, r.Nodes, r.Rounds, r.Limit)
	for _, c := range r.Cases {
		fmt.Fprintf(t, "%s\t%s\t%.2f s\t%.3f s\t%.2f s\t%.2f\t%.2f\n", c.Way, c.Read, c.Pulled, c.FirstByte, c.Ready, c.Ratio, c.Copies)
	}
	return t.Flush()
}

// lazyBench measures all ways to read by all ways to bring, round by round.
func lazyBench(ctx context.Context, cfg lazyBenchConfig) (lazyBenchResult, error) {
	result := lazyBenchResult{SizeBytes: cfg.size, LinkBitsPerSecond: int64(cfg.link), Nodes: cfg.nodes, Rounds: cfg.rounds,
		Limit: cfg.link.Seconds(cfg.size)}
	for _, read := range cfg.reads {
		for _, way := range cfg.ways {
			result.Cases = append(result.Cases, lazyCase{Way: way, Read: read})
		}
	}
	for round := range cfg.rounds {
		for i := range result.Cases {
			c := &result.Cases[i]
			run, err := lazyOnce(ctx, cfg, c.Way, c.Read)
			if err != nil {
				return result, fmt.Errorf("%s, %s: %w", c.Way, c.Read, err)
			}
			c.Runs = append(c.Runs, run)
			worst := run.slowest()
			fmt.Fprintf(cfg.log, "round %d, %s, %s: pulled in %.2f s, first byte after %.3f s, ready in %.2f s\n",
				round+1, c.Way, c.Read, worst.Pulled, worst.FirstByte, worst.Ready)
		}
	}
	for i := range result.Cases {
		result.Cases[i].sum(result.Limit)
	}
	return result, nil
}

// sum sets the medians.
func (c *lazyCase) sum(limit float64) {
	of := func(value func(lazyRun) float64) float64 {
		var all []float64
		for _, run := range c.Runs {
			all = append(all, value(run))
		}
		return median(all)
	}
	c.Pulled = of(func(r lazyRun) float64 { return r.slowest().Pulled })
	c.FirstByte = of(func(r lazyRun) float64 { return r.slowest().FirstByte })
	c.Ready = of(func(r lazyRun) float64 { return r.slowest().Ready })
	c.Copies = of(func(r lazyRun) float64 { return r.Copies })
	c.Ratio = c.Ready / limit
}

// mostTouched bounds the memory that is touched before each figure.
const mostTouched = 12 << 30

// lazyOnce makes a cluster, brings a new image to all nodes at once, and removes the cluster.
func lazyOnce(ctx context.Context, cfg lazyBenchConfig, way, read string) (run lazyRun, err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Link: cfg.link, Log: cfg.log})
	if err != nil {
		return run, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := newSwarm(ctx, c, swarmConfig{nodes: cfg.nodes})
	if err != nil {
		return run, err
	}
	b := &lazyBencher{cfg: cfg, swarm: s, way: way, read: read, ref: s.registry.Addr() + "/" + repository + ":1"}
	if b.program, err = lazyProgram(read); err != nil {
		return run, err
	}
	if err := b.prepare(ctx); err != nil {
		return run, err
	}
	if err := shards.Touch(filepath.Join(c.Dir(), "touched"), min(int64(4+3*cfg.nodes)*cfg.size, mostTouched)); err != nil {
		return run, err
	}
	run.Nodes = make([]lazyNode, cfg.nodes)
	began := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range s.nodes {
		group.Go(func() (err error) {
			run.Nodes[i], err = b.node(groupCtx, i, began)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return run, err
	}
	run.Copies, err = b.copies()
	return run, err
}

// lazyBencher is one run.
type lazyBencher struct {
	*swarm

	cfg     lazyBenchConfig
	way     string
	read    string
	ref     string
	program []string
	image   pushedImage
}

// prepare converts a model nobody has seen and pushes it on the registry's host, and starts the containerds.
func (b *lazyBencher) prepare(ctx context.Context) error {
	model := filepath.Join(b.Dir(), "model")
	if _, err := shards.Write(model, uint64(time.Now().UnixNano()), b.cfg.size, 4); err != nil {
		return err
	}
	_, err := b.registry.Host().Run(ctx, b.cfg.shoal, "convert", "--plain-http", "--quiet", "--model", model, "--base", "oci:"+b.cfg.base, "--target", b.ref)
	if err != nil {
		return err
	}
	if b.image, err = inspect(ctx, b.registry, repository, "1"); err != nil {
		return err
	}
	if b.way == "mirror" {
		return b.addContainerds(ctx)
	}
	for _, n := range b.nodes {
		start := n.Host().StartContainerd // which knows of no mirror
		if b.way == "shoal" {
			start = func(ctx context.Context) (*cluster.Containerd, error) {
				return n.StartContainerd(ctx, b.registry, cluster.ContainerdConfig{})
			}
		}
		c, err := start(ctx)
		if err != nil {
			return err
		}
		b.containerds = append(b.containerds, c)
	}
	return nil
}

// node brings the image to one node and runs its container.
func (b *lazyBencher) node(ctx context.Context, i int, began time.Time) (took lazyNode, err error) {
	spec := cluster.Container{ID: "read", Args: b.program}
	switch b.way {
	case "nydusd":
		v := nydusVariant{host: b.nodes[i].Host(), server: b.registry.Addr(), repository: repository, manifest: b.image.nydus}
		spec.Rootfs, err = v.mountNydusd(ctx)
	default:
		spec.Image = b.ref
		err = b.containerds[i].Pull(ctx, b.ref)
	}
	if err != nil {
		return took, err
	}
	started := time.Now()
	out, err := b.containerds[i].RunContainer(ctx, spec)
	if err != nil {
		return took, err
	}
	var answer struct {
		First, Done float64
		Bytes       int64
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return took, fmt.Errorf("answer of %s: %w: %q", b.nodes[i].Name(), err, out)
	}
	if answer.Bytes < b.cfg.size && b.read != "first" {
		return took, fmt.Errorf("the container on %s read %d of %d bytes", b.nodes[i].Name(), answer.Bytes, b.cfg.size)
	}
	since := func(unix float64, from time.Time) float64 { return unix - float64(from.UnixNano())/1e9 }
	return lazyNode{Pulled: started.Sub(began).Seconds(), FirstByte: since(answer.First, started), Ready: since(answer.Done, began)}, nil
}

// copies returns how often the model's layers left the registry.
func (b *lazyBencher) copies() (float64, error) {
	served, err := b.registry.Served()
	if err != nil {
		return 0, err
	}
	var size, sent int64
	for _, l := range b.image.layers() {
		if l.variant == "both" {
			size, sent = size+l.size, sent+served[l.digest]
		}
	}
	if size == 0 {
		return 0, errors.New("the variants share no layer")
	}
	return float64(sent) / float64(size), nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/hack/lab/cluster"
	"github.com/shoal-project/shoal/hack/shards"
)

// What is wanted of the snapshotter.
const (
	fillGoalRate  = 1200e6 // bytes a second, of the first fill by erofs
	fillGoalTimes = 2      // of nydusd's rate
	fillGoalRSS   = 100 << 20
	readGoalRatio = 0.97 // of a plain file's rate
)

// fillWays are what mounts the model: the node's snapshotter with one driver or the other, or with erofs while nobody reads; nydusd that fetches what is read, and nydusd that fetches
// ahead as nydus-snapshotter has it do by default.
var fillWays = []string{"erofs", "unread", "fuse", "nydusd", "nydusd-prefetch"}

type fillConfig struct {
	shoal  string
	size   int64
	rounds int
	reads  int
	ways   []string
	alone  bool // the node has no scheduler
	log    io.Writer
}

// fillResult is what the command prints. Rates are in bytes a second, medians over the rounds.
type fillResult struct {
	SizeBytes int64      `json:"size_bytes"`
	Origin    float64    `json:"origin_bytes_per_second"` // one stream from the registry that nobody keeps: no fill is faster
	Fills     []fillCase `json:"fills"`
	Reads     []readCase `json:"complete_reads"`
	Times     float64    `json:"erofs_to_best_nydusd"` // 0 without both
	Origins   []float64  `json:"all_origin_bytes_per_second"`
}

// fillCase is one way to fill. The peak is the most memory that the daemon had resident in any round, in bytes.
type fillCase struct {
	Way     string    `json:"way"`
	Rate    float64   `json:"bytes_per_second"`
	PeakRSS int64     `json:"peak_rss_bytes"`
	All     []float64 `json:"all_bytes_per_second"`
}

// readCase is one way to read the complete model from the driver's mount, beside the same from plain files on the same disk.
type readCase struct {
	Driver   string    `json:"driver"`
	Mode     string    `json:"mode"`
	Rate     float64   `json:"bytes_per_second"`
	Plain    float64   `json:"plain_bytes_per_second"`
	Ratio    float64   `json:"ratio"`
	All      []float64 `json:"all_bytes_per_second"`
	AllPlain []float64 `json:"all_plain_bytes_per_second"`
}

func fillCommand() *cli.Command {
	return &cli.Command{
		Name:  "fill",
		Usage: "measure how fast a model is read while it is fetched, beside nydusd, and when it is complete, beside plain files",
		Description: "One host with a registry whose blobs are in memory, and on it by turns: a node and a containerd that pulls by the node's\n" +
			"snapshotter, with the driver erofs or fuse; and nydusd, which reads the registry itself, as it is read or ahead. As soon as the\n" +
			"mount is there a process reads all of the model; of the way unread, by erofs, nobody does, which tells how fast it is fetched\n" +
			"ahead. In the last round the complete model is read again from the snapshotter's mount, by turns with plain files on the same\n" +
			"disk: cold, warm, and mapped, cold and warm. Figures of a busy machine say nothing.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "size", Value: "1GiB", Usage: "`SIZE` of the model"},
			&cli.IntFlag{Name: "rounds", Value: 3, Usage: "`NUMBER` of first fills each way"},
			&cli.IntFlag{Name: "reads", Value: 7, Usage: "`NUMBER` of reads of the complete model each way; 0 leaves them out"},
			&cli.StringFlag{Name: "ways", Value: strings.Join(fillWays, ","), Usage: "`WAYS`, apart by commas"},
			&cli.BoolFlag{Name: "alone", Usage: "run the node without a scheduler"},
			&cli.PathFlag{Name: "json", Usage: "write all figures to `FILE`"},
		},
		Action: func(ctx *cli.Context) error {
			cfg, err := fillFlags(ctx)
			if err != nil {
				return err
			}
			var result fillResult
			err = withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = fill(ctx.Context, cfg)
				return err
			})
			if err != nil {
				return err
			}
			return errors.Join(result.print(ctx.App.Writer), writeFigures(ctx, result, nil))
		},
	}
}

func fillFlags(ctx *cli.Context) (cfg fillConfig, err error) {
	cfg = fillConfig{rounds: ctx.Int("rounds"), reads: ctx.Int("reads"), ways: strings.Split(ctx.String("ways"), ","),
		alone: ctx.Bool("alone"), log: ctx.App.ErrWriter}
	if cfg.size, err = cluster.ParseSize(ctx.String("size")); err != nil {
		return cfg, err
	}
	if cfg.rounds < 1 || cfg.reads < 0 || cfg.size < 1<<20 {
		return cfg, errors.New("--rounds has to be above 0, --reads not below, --size 1MiB at the least")
	}
	for _, way := range cfg.ways {
		if !slices.Contains(fillWays, way) {
			return cfg, fmt.Errorf("--ways %q: want some of %s", way, strings.Join(fillWays, ","))
		}
	}
	return cfg, cluster.CheckTools(fillTools()...)
}

func fillTools() []string {
	return []string{"ip", "tc", "docker-registry", "containerd", "ctr", "nydusd"}
}

func (r fillResult) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "first fill, %d MiB\tMB/s\tpeak RSS of the daemon\tgoal\n", r.SizeBytes>>20)
	fmt.Fprintf(t, "the registry alone, one stream\t%.0f\t\t\n", r.Origin/1e6)
	for _, c := range r.Fills {
		goal := ""
		if c.Way == "erofs" {
			goal = fmt.Sprintf("%.0f MB/s, %d MiB", fillGoalRate/1e6, fillGoalRSS>>20)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%d MiB\t%s\n", c.Way, c.Rate/1e6, c.PeakRSS>>20, goal)
	}
	if r.Times > 0 {
		fmt.Fprintf(t, "erofs to the better nydusd\t%.2f\t\t%d\n", r.Times, fillGoalTimes)
	}
	for _, c := range r.Reads {
		fmt.Fprintf(t, "complete, %s, %s\t%.0f\tplain %.0f MB/s, ratio %.3f\t%.2f\n", c.Driver, c.Mode, c.Rate/1e6, c.Plain/1e6, c.Ratio, readGoalRatio)
	}
	return t.Flush()
}

// fillBench is one run of the command.
type fillBench struct {
	*cluster.Cluster

	cfg      fillConfig
	registry *cluster.Registry
	planned  []*cluster.Scheduler // the node's; none when it is alone
	ref      string
	source   string // folder of the model, the plain files
	image    pushedImage
	started  int // nydusds, which have names of their own
}

// fill makes the host, measures, and removes it.
func fill(ctx context.Context, cfg fillConfig) (result fillResult, err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Log: cfg.log})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b := &fillBench{Cluster: c, cfg: cfg, source: filepath.Join(c.Dir(), "model")}
	if err := b.prepare(ctx); err != nil {
		return result, err
	}
	result.SizeBytes = cfg.size
	for _, way := range cfg.ways {
		result.Fills = append(result.Fills, fillCase{Way: way})
	}
	for round := range cfg.rounds {
		for i := range result.Fills {
			f := &result.Fills[i]
			rate, err := b.warm(ctx)
			if err != nil {
				return result, err
			}
			result.Origins = append(result.Origins, rate)
			if err := b.round(ctx, round, f, &result.Reads); err != nil {
				return result, fmt.Errorf("%s: %w", f.Way, err)
			}
			fmt.Fprintf(cfg.log, "round %d of %d, %s: %.0f MB/s, peak RSS so far %d MiB\n", round+1, cfg.rounds, f.Way, f.All[round]/1e6, f.PeakRSS>>20)
		}
	}
	result.sum()
	return result, nil
}

// sum sets the medians.
func (r *fillResult) sum() {
	r.Origin = median(r.Origins)
	var erofs, nydusd float64
	for i := range r.Fills {
		f := &r.Fills[i]
		f.Rate = median(f.All)
		if f.Way == "erofs" {
			erofs = f.Rate
		} else if strings.HasPrefix(f.Way, "nydusd") {
			nydusd = max(nydusd, f.Rate)
		}
	}
	if nydusd > 0 {
		r.Times = erofs / nydusd
	}
	for i := range r.Reads {
		c := &r.Reads[i]
		c.Rate, c.Plain = median(c.All), median(c.AllPlain)
		c.Ratio = c.Rate / c.Plain
	}
}

// prepare converts the model, with as good as no framework, and pushes it.
func (b *fillBench) prepare(ctx context.Context) (err error) {
	if b.registry, err = b.StartRegistry(ctx); err != nil {
		return err
	}
	if !b.cfg.alone {
		scheduler, err := b.StartScheduler(ctx, "scheduler")
		if err != nil {
			return err
		}
		b.planned = append(b.planned, scheduler)
	}
	b.ref = b.registry.Addr() + "/" + repository + ":1"
	base, err := cluster.RandomImage(b.Dir(), 1, 64<<10)
	if err != nil {
		return err
	}
	if err := writeBase(filepath.Join(b.Dir(), "base"), base); err != nil {
		return err
	}
	if _, err := shards.Write(b.source, uint64(time.Now().UnixNano()), b.cfg.size, 4); err != nil {
		return err
	}
	_, err = b.registry.Host().Run(ctx, b.cfg.shoal, "convert", "--plain-http", "--quiet", "--model", b.source,
		"--base", "oci:"+filepath.Join(b.Dir(), "base"), "--target", b.ref)
	if err != nil {
		return err
	}
	b.image, err = inspect(ctx, b.registry, repository, "1")
	return err
}

// round fills once in one way, from nothing; in the last round the snapshotter's mount is then read as complete.
func (b *fillBench) round(ctx context.Context, round int, f *fillCase, reads *[]readCase) error {
	var run fillRun
	var err error
	if strings.HasPrefix(f.Way, "nydusd") {
		run, err = b.byNydusd(ctx, f.Way == "nydusd-prefetch")
	} else {
		run, err = b.bySnapshotter(ctx, f.Way, func(root string) error {
			if round < b.cfg.rounds-1 || b.cfg.reads == 0 || f.Way == "unread" {
				return nil
			}
			cases, err := b.readComplete(ctx, f.Way, root)
			*reads = append(*reads, cases...)
			return err
		})
	}
	f.All = append(f.All, run.rate)
	f.PeakRSS = max(f.PeakRSS, run.peakRSS)
	return err
}

// files are those of the model below a folder that has it as a container sees it.
func (b *fillBench) files(root string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(root, "*.safetensors"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no model in %s", root)
	}
	return files, err
}

// modelOf is where an image that is mounted at root has the model.
func modelOf(root string) string { return filepath.Join(root, "models", "model") }

// warm has the registry read all of the image, so that its blobs are in memory, what was written before is on the disk, and there is memory for a fill: the
// file of the store, what the kernel keeps of it for the mount, and as much again. It
// returns the rate at which the registry gave them.
func (b *fillBench) warm(ctx context.Context) (rate float64, err error) {
	if err := syncDisk(b.Dir()); err != nil {
		return 0, err
	}
	read := func() (size int64, err error) {
		for _, l := range b.image.nydus.Layers {
			body, err := get(ctx, b.registry.Host().Client(), "http://"+b.registry.Addr()+"/v2/"+repository+"/blobs/"+l.Digest.String(), "")
			if err != nil {
				return 0, err
			}
			n, err := io.Copy(io.Discard, body)
			if err := errors.Join(err, body.Close()); err != nil {
				return 0, err
			}
			size += n
		}
		return size, nil
	}
	if _, err := read(); err != nil { // into memory
		return 0, err
	}
	began := time.Now()
	size, err := read()
	if err != nil {
		return 0, err
	}
	return float64(size) / time.Since(began).Seconds(), shards.Touch(filepath.Join(b.Dir(), "touched"), 4*b.cfg.size)
}

// syncDisk waits until all that was written to the file system of dir is on its disk.
func syncDisk(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return syncFS(f)
}

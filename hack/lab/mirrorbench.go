package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

type mirrorBenchConfig struct {
	shoal  string
	size   int64
	link   cluster.Rate
	rounds int
	log    io.Writer
}

// mirrorBenchResult is what the command prints: the medians, and all values in the order of the rounds.
type mirrorBenchResult struct {
	SizeBytes         int64     `json:"size_bytes"`
	LinkBitsPerSecond int64     `json:"link_bits_per_second"`
	Rounds            int       `json:"rounds"`
	DirectSeconds     float64   `json:"direct_seconds"` // containerd pulls from the idle registry
	MirrorSeconds     float64   `json:"mirror_seconds"` // through its node, of which another one has the image
	PullRatio         float64   `json:"pull_ratio"`     // of these: below 1 the mirror is faster
	NginxRate         float64   `json:"nginx_bytes_per_second"`
	MirrorRate        float64   `json:"mirror_bytes_per_second"` // of a blob that the node holds
	RateRatio         float64   `json:"rate_ratio"`              // the mirror's rate to nginx's
	AllDirect         []float64 `json:"all_direct_seconds"`
	AllMirror         []float64 `json:"all_mirror_seconds"`
	AllNginxRates     []float64 `json:"all_nginx_bytes_per_second"`
	AllMirrorRates    []float64 `json:"all_mirror_bytes_per_second"`
}

func mirrorBenchCommand() *cli.Command {
	return &cli.Command{
		Name:  "mirror",
		Usage: "measure pulls through the mirror beside pulls from the registry, and a held blob beside nginx",
		Description: "A registry, a scheduler, a seed, two nodes and a host without Shoal, each on a link of the same rate. Round by round, by turns:\n" +
			"containerd pulls a new image of one layer from the idle registry, and another containerd pulls it through its node after a node\n" +
			"elsewhere has pulled it; curl reads the layer from the node's mirror, which holds it, and the same file from nginx.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "size", Value: "256MiB", Usage: "`SIZE` of the layer"},
			linkFlag("1gbit"),
			&cli.IntFlag{Name: "rounds", Value: 5, Usage: "`NUMBER` of rounds"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
		},
		Action: func(ctx *cli.Context) error {
			size, link, err := sizeAndLink(ctx)
			if err != nil {
				return err
			}
			cfg := mirrorBenchConfig{size: size, link: link, rounds: ctx.Int("rounds"), log: ctx.App.ErrWriter}
			if cfg.rounds < 1 || size < 1 {
				return errors.New("--rounds and --size have to be above 0")
			}
			var result mirrorBenchResult
			err = withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = mirrorBench(ctx.Context, cfg)
				return err
			})
			if err != nil {
				return err
			}
			return tellResult(ctx, result)
		},
	}
}

func (r mirrorBenchResult) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%d MiB, median of %d\tbaseline\tthrough the mirror\tratio\n", r.SizeBytes>>20, r.Rounds)
	fmt.Fprintf(t, "pull by containerd, against the registry\t%.2f s\t%.2f s\t%.3f\n", r.DirectSeconds, r.MirrorSeconds, r.PullRatio)
	fmt.Fprintf(t, "held blob, against nginx\t%.0f MB/s\t%.0f MB/s\t%.3f\n", r.NginxRate/1e6, r.MirrorRate/1e6, r.RateRatio)
	return t.Flush()
}

// mirrorBench makes a cluster, measures and removes it.
func mirrorBench(ctx context.Context, cfg mirrorBenchConfig) (result mirrorBenchResult, err error) {
	if err := cluster.CheckTools("ip", "tc", "docker-registry", "containerd", "ctr", "curl", "nginx"); err != nil {
		return result, err
	}
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Link: cfg.link, Log: cfg.log})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := newSwarm(ctx, c, swarmConfig{nodes: 2})
	if err != nil {
		return result, err
	}
	if err := s.addContainerds(ctx); err != nil {
		return result, err
	}
	host, err := c.AddHost(ctx, "direct")
	if err != nil {
		return result, err
	}
	direct, err := host.StartContainerd(ctx)
	if err != nil {
		return result, err
	}
	b := mirrorBencher{cfg: cfg, swarm: s, direct: direct}
	result = mirrorBenchResult{SizeBytes: cfg.size, LinkBitsPerSecond: int64(cfg.link), Rounds: cfg.rounds}
	for i := range cfg.rounds {
		if err := b.round(ctx, i, &result); err != nil {
			return result, err
		}
		fmt.Fprintf(cfg.log, "round %d of %d: registry %.2f s, mirror %.2f s; nginx %.0f MB/s, mirror %.0f MB/s\n", i+1, cfg.rounds,
			result.AllDirect[i], result.AllMirror[i], result.AllNginxRates[i]/1e6, result.AllMirrorRates[i]/1e6)
	}
	result.DirectSeconds, result.MirrorSeconds = median(result.AllDirect), median(result.AllMirror)
	result.NginxRate, result.MirrorRate = median(result.AllNginxRates), median(result.AllMirrorRates)
	result.PullRatio, result.RateRatio = result.MirrorSeconds/result.DirectSeconds, result.MirrorRate/result.NginxRate
	return result, nil
}

type mirrorBencher struct {
	cfg    mirrorBenchConfig
	swarm  *swarm
	direct *cluster.Containerd
}

// round measures everything once, with an image nobody has seen.
func (b *mirrorBencher) round(ctx context.Context, i int, result *mirrorBenchResult) error {
	tag := strconv.Itoa(i)
	img, err := cluster.RandomImage(b.swarm.Dir(), uint64(time.Now().UnixNano()), b.cfg.size)
	if err != nil {
		return err
	}
	if err := b.swarm.registry.Push(ctx, repository, tag, img); err != nil {
		return err
	}
	blobs, err := layersOf(img)
	if err != nil {
		return err
	}
	ref := b.swarm.registry.Addr() + "/" + repository + ":" + tag
	if err := b.swarm.containerds[0].Pull(ctx, ref); err != nil { // the first node
		return err
	}
	pulls := []func() error{
		func() error { return b.pull(ctx, b.direct, ref, &result.AllDirect) },
		func() error { return b.pull(ctx, b.swarm.containerds[1], ref, &result.AllMirror) },
	}
	if i%2 == 1 {
		pulls[0], pulls[1] = pulls[1], pulls[0]
	}
	for _, pull := range pulls {
		if err := pull(); err != nil {
			return err
		}
	}
	if err := b.swarm.containerds[0].Forget(ctx, ref); err != nil {
		return err
	}
	return b.held(ctx, i, blobs[0], result)
}

// pull adds how long a pull took to all.
func (b *mirrorBencher) pull(ctx context.Context, c *cluster.Containerd, ref string, all *[]float64) error {
	began := time.Now()
	if err := c.Pull(ctx, ref); err != nil {
		return err
	}
	*all = append(*all, time.Since(began).Seconds())
	return c.Forget(ctx, ref)
}

const nginxConfig = `daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error;
events {}
http { access_log off; sendfile on; server { listen 127.0.0.1:7080; root %[1]s/files; } }
`

// held reads a blob that the second node holds from its mirror and from nginx, whose file is a copy, both out of the page cache.
func (b *mirrorBencher) held(ctx context.Context, i int, blob blob, result *mirrorBenchResult) error {
	host := b.swarm.nodes[1].Host()
	dir := filepath.Join(host.Dir, "nginx")
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
		return err
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, dir), 0o644); err != nil {
		return err
	}
	mirror := b.swarm.nodes[1].MirrorURL() + "/v2/" + repository + "/blobs/" + blob.digest.String() + "?ns=" + b.swarm.registry.Addr()
	if _, err := host.Run(ctx, "curl", "-sf", "-o", filepath.Join(dir, "files", "blob"), mirror); err != nil {
		return err
	}
	nginx, err := host.Start("nginx", []string{"nginx", "-c", config, "-p", dir}, nil)
	if err != nil {
		return err
	}
	defer nginx.Stop(time.Second)
	reads := []func() error{
		func() error { return curl(ctx, host, "http://127.0.0.1:7080/blob", &result.AllNginxRates) },
		func() error { return curl(ctx, host, mirror, &result.AllMirrorRates) },
	}
	if i%2 == 1 {
		reads[0], reads[1] = reads[1], reads[0]
	}
	for _, read := range reads {
		if err := read(); err != nil {
			return err
		}
	}
	return nil
}

// curl adds the better rate of three downloads, in bytes a second, to all.
func curl(ctx context.Context, host *cluster.Host, url string, all *[]float64) error {
	best := 0.0
	for range 3 {
		out, err := host.Run(ctx, "curl", "-sf", "--retry", "20", "--retry-connrefused", "--retry-delay", "0", "-o", "/dev/null", "-w", "%{speed_download}", url)
		if err != nil {
			return err
		}
		rate, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		if err != nil {
			return err
		}
		best = max(best, rate)
	}
	*all = append(*all, best)
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

type firstConfig struct {
	shoal  string
	rounds int
	reads  int
	small  int64
	huge   int64
	link   cluster.Rate
	log    io.Writer
}

// firstResult is what the command prints.
type firstResult struct {
	SmallBytes int64        `json:"small_bytes"`
	HugeBytes  int64        `json:"huge_bytes"`
	Latencies  []latency    `json:"latencies"`
	Ranges     []sharedRead `json:"shared_ranges"`
}

// latency is how long one kind of read took.
type latency struct {
	What          string  `json:"what"`
	Samples       int     `json:"samples"`
	Failed        int     `json:"failed"` // answered by a refusal, which sends containerd to the registry; not among the samples
	MedianSeconds float64 `json:"median_seconds"`
	P99Seconds    float64 `json:"p99_seconds"`
}

// sharedRead is what left the registry when several nodes read the same ranges.
type sharedRead struct {
	What        string  `json:"what"`
	Nodes       int     `json:"nodes"`
	WantedBytes int64   `json:"wanted_bytes"` // by one node
	OriginBytes int64   `json:"origin_bytes"` // by the registry's access log, until some time after the last read
	Copies      float64 `json:"copies"`
	Seconds     float64 `json:"seconds"` // until the last node had all
}

func firstCommand() *cli.Command {
	return &cli.Command{
		Name:  "first",
		Usage: "measure small blobs and first bytes: cold, by ranges, and while a link is full",
		Description: "A registry, one seed, a scheduler and four nodes. Small cold blobs, and ranges of a huge cold one with and without a\n" +
			"chunk map, on links without a limit; then ranges while a whole blob is fetched, on links of --link. Each kind is\n" +
			"read by turns with the same read of the registry itself.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rounds", Value: 10, Usage: "`NUMBER` of cold rounds"},
			&cli.IntFlag{Name: "reads", Value: 60, Usage: "`NUMBER` of ranges for each figure on limited links"},
			&cli.StringFlag{Name: "small", Value: "5MiB", Usage: "`SIZE` of the small blobs"},
			&cli.StringFlag{Name: "huge", Value: "1GiB", Usage: "`SIZE` of the huge blobs"},
			linkFlag("200mbit"),
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
		},
		Action: func(ctx *cli.Context) error {
			cfg := firstConfig{rounds: ctx.Int("rounds"), reads: ctx.Int("reads"), log: ctx.App.ErrWriter}
			var errSmall, errHuge, errLink error
			cfg.small, errSmall = cluster.ParseSize(ctx.String("small"))
			cfg.huge, errHuge = cluster.ParseSize(ctx.String("huge"))
			cfg.link, errLink = cluster.ParseRate(ctx.String("link"))
			if err := errors.Join(errSmall, errHuge, errLink); err != nil {
				return err
			}
			if cfg.rounds < 1 || cfg.reads < 1 {
				return errors.New("--rounds and --reads have to be at least 1")
			}
			var result firstResult
			err := withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = first(ctx.Context, cfg)
				return err
			})
			if err != nil {
				return err
			}
			if ctx.Bool("json") {
				return json.NewEncoder(ctx.App.Writer).Encode(result)
			}
			return result.table(ctx.App.Writer)
		},
	}
}

// first makes a cluster, measures everything there and removes it.
func first(ctx context.Context, cfg firstConfig) (result firstResult, err error) {
	if err := cluster.CheckTools("ip", "tc", "docker-registry"); err != nil {
		return result, err
	}
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Log: cfg.log})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := newSwarm(ctx, c, swarmConfig{nodes: 4})
	if err != nil {
		return result, err
	}
	m := &firstBench{swarm: s, cfg: cfg}
	for _, part := range []func(context.Context) error{m.smallBlobs, m.hugeBlobs, m.sharedRanges, m.busyLinks} {
		began := time.Now()
		if err := part(ctx); err != nil {
			return result, err
		}
		c.Logf("  took %.0f s", time.Since(began).Seconds())
	}
	m.result.SmallBytes, m.result.HugeBytes = cfg.small, cfg.huge
	return m.result, nil
}

func (r firstResult) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "read\tmedian\tp99\tsamples\tfailed")
	for _, l := range r.Latencies {
		fmt.Fprintf(t, "%s\t%.1f ms\t%.1f ms\t%d\t%d\n", l.What, l.MedianSeconds*1000, l.P99Seconds*1000, l.Samples, l.Failed)
	}
	fmt.Fprintln(t, "\nranges\tnodes\twanted\tfrom the origin\tcopies\ttook")
	for _, s := range r.Ranges {
		fmt.Fprintf(t, "%s\t%d\t%.2f MiB\t%.2f MiB\t%.2f\t%.2f s\n", s.What, s.Nodes, float64(s.WantedBytes)/(1<<20),
			float64(s.OriginBytes)/(1<<20), s.Copies, s.Seconds)
	}
	return t.Flush()
}

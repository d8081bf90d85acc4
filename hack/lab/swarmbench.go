package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

type swarmBenchConfig struct {
	shoal  string
	peers  []int
	sizes  []int64
	rounds int
	link   cluster.Rate
	log    io.Writer
}

// swarmBenchResult is what the command prints, one element for each number of peers and size.
type swarmBenchResult struct {
	LinkBitsPerSecond int64       `json:"link_bits_per_second"`
	Rounds            int         `json:"rounds"`
	Cases             []swarmCase `json:"cases"`
}

// swarmCase compares both ways for one number of peers and size. Times are medians in seconds, from the first request to the last peer's
// last byte.
type swarmCase struct {
	Peers       int         `json:"peers"`
	SizeBytes   int64       `json:"size_bytes"`
	Limit       float64     `json:"limit_seconds"`       // a peer's link carries the blob once
	PlainLimit  float64     `json:"plain_limit_seconds"` // the registry's link carries it once for each peer
	Plain       float64     `json:"plain_seconds"`
	Shoal       float64     `json:"shoal_seconds"`
	PlainCopies float64     `json:"plain_origin_copies"` // by the registry's access log
	ShoalCopies float64     `json:"shoal_origin_copies"`
	PlainRuns   []swarmPull `json:"plain_runs"`
	ShoalRuns   []swarmPull `json:"shoal_runs"`
}

// swarmPull is one blob brought to all peers.
type swarmPull struct {
	Seconds      float64  `json:"seconds"`
	OriginCopies float64  `json:"origin_copies"`
	Series       []series `json:"-"` // how much each peer had, when
	Uploads      []upload `json:"uploads,omitempty"`
}

// series is how many bytes a host had at some times.
type series struct {
	name    string
	seconds []float64
	bytes   []int64
}

// upload is what a host sent to others.
type upload struct {
	Host  string `json:"host"`
	Bytes int64  `json:"bytes"`
}

func swarmBenchCommand() *cli.Command {
	return &cli.Command{
		Name:  "swarm",
		Usage: "bring blobs to peers, by turns each on its own from the registry and through Shoal",
		Description: "A registry, one seed, a scheduler and the peers, each on a link of the same rate. In each round all peers first get one blob\n" +
			"straight from the registry at once, then another one through their node's mirror. Every digest is checked. The last case's\n" +
			"median runs are drawn: what each peer had when, and what each host sent.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "peers", Value: "2,8", Usage: "`NUMBERS` of peers, apart by commas"},
			&cli.StringFlag{Name: "sizes", Value: "64MiB,256MiB", Usage: "`SIZES` of the blobs, apart by commas"},
			&cli.IntFlag{Name: "rounds", Value: 3, Usage: "`NUMBER` of rounds"},
			linkFlag("200mbit"),
			&cli.PathFlag{Name: "plot", Usage: "draw the last case to `FILE`, an SVG"},
			&cli.PathFlag{Name: "json", Usage: "write all figures to `FILE`"},
		},
		Action: func(ctx *cli.Context) error {
			cfg, err := swarmBenchFlags(ctx)
			if err != nil {
				return err
			}
			var result swarmBenchResult
			err = withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = swarmBench(ctx.Context, cfg)
				return err
			})
			if err != nil {
				return err
			}
			if err := result.table(ctx.App.Writer); err != nil {
				return err
			}
			return writeFigures(ctx, result, swarmPlot(result))
		},
	}
}

// writeFigures writes what was measured, and the plot of it, to the files that --json and --plot name.
func writeFigures(ctx *cli.Context, result any, plot []byte) error {
	if path := ctx.Path("json"); path != "" {
		data, err := json.MarshalIndent(result, "", "  ")
		if err == nil {
			err = os.WriteFile(path, append(data, '\n'), 0o644)
		}
		if err != nil {
			return err
		}
	}
	if path := ctx.Path("plot"); path != "" {
		return os.WriteFile(filepath.Clean(path), plot, 0o644)
	}
	return nil
}

func swarmBenchFlags(ctx *cli.Context) (cfg swarmBenchConfig, err error) {
	cfg = swarmBenchConfig{rounds: ctx.Int("rounds"), log: ctx.App.ErrWriter}
	for word := range strings.SplitSeq(ctx.String("peers"), ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return cfg, fmt.Errorf("--peers %q: want numbers from 1, like 2,8", ctx.String("peers"))
		}
		cfg.peers = append(cfg.peers, n)
	}
	for word := range strings.SplitSeq(ctx.String("sizes"), ",") {
		n, err := cluster.ParseSize(word)
		if err != nil {
			return cfg, err
		}
		cfg.sizes = append(cfg.sizes, n)
	}
	if cfg.link, err = cluster.ParseRate(ctx.String("link")); err != nil {
		return cfg, err
	}
	if cfg.link == 0 || cfg.rounds < 1 {
		return cfg, errors.New("--link has to limit, and --rounds to be at least 1")
	}
	return cfg, nil
}

// swarmBench makes a cluster for each number of peers and measures all sizes there.
func swarmBench(ctx context.Context, cfg swarmBenchConfig) (swarmBenchResult, error) {
	result := swarmBenchResult{LinkBitsPerSecond: int64(cfg.link), Rounds: cfg.rounds}
	if err := cluster.CheckTools("ip", "tc", "docker-registry"); err != nil {
		return result, err
	}
	for _, peers := range cfg.peers {
		err := withSwarm(ctx, cfg, peers, func(s *swarm) error {
			for _, size := range cfg.sizes {
				s.Logf("%d peers, %d MiB", peers, size>>20)
				c, err := s.compare(ctx, cfg, size)
				if err != nil {
					return err
				}
				result.Cases = append(result.Cases, c)
			}
			return nil
		})
		if err != nil {
			return result, err
		}
	}
	return result, nil
}

func withSwarm(ctx context.Context, cfg swarmBenchConfig, peers int, fn func(*swarm) error) (err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Link: cfg.link, Log: cfg.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := newSwarm(ctx, c, swarmConfig{nodes: peers})
	if err != nil {
		return err
	}
	return fn(s)
}

// compare brings blobs of one size to all peers, by turns both ways.
func (s *swarm) compare(ctx context.Context, cfg swarmBenchConfig, size int64) (c swarmCase, err error) {
	for round := range cfg.rounds {
		for _, way := range []struct {
			runs *[]swarmPull
			pull func(context.Context, blob) (swarmPull, error)
		}{{&c.PlainRuns, s.pullPlain}, {&c.ShoalRuns, s.pullShoal}} {
			img, err := cluster.RandomImage(s.Dir(), uint64(time.Now().UnixNano()), size)
			if err != nil {
				return c, err
			}
			if err := s.registry.Push(ctx, repository, fmt.Sprint(time.Now().UnixNano()), img); err != nil {
				return c, err
			}
			blobs, err := layersOf(img)
			if err != nil {
				return c, err
			}
			run, err := way.pull(ctx, blobs[0])
			if err != nil {
				return c, err
			}
			served, err := s.registry.WaitServed(ctx, blobs[0].digest, 1)
			if err != nil {
				return c, err
			}
			run.OriginCopies = float64(served) / float64(blobs[0].size)
			*way.runs = append(*way.runs, run)
			c.SizeBytes = blobs[0].size
		}
		s.Logf("  round %d: plain %.2f s, Shoal %.2f s", round+1, c.PlainRuns[round].Seconds, c.ShoalRuns[round].Seconds)
	}
	c.Peers, c.Limit = len(s.nodes), cfg.link.Seconds(c.SizeBytes)
	c.PlainLimit = c.Limit * float64(c.Peers)
	plain, shoal := medianPull(c.PlainRuns), medianPull(c.ShoalRuns)
	c.Plain, c.PlainCopies, c.Shoal, c.ShoalCopies = plain.Seconds, plain.OriginCopies, shoal.Seconds, shoal.OriginCopies
	return c, nil
}

// medianPull returns the run with the median time.
func medianPull(runs []swarmPull) swarmPull {
	sorted := slices.SortedFunc(slices.Values(runs), func(a, b swarmPull) int { return int((a.Seconds - b.Seconds) * 1e6) })
	return sorted[(len(sorted)-1)/2]
}

// pullPlain has all peers read the blob from the registry at once.
func (s *swarm) pullPlain(ctx context.Context, b blob) (swarmPull, error) {
	return s.pull(ctx, b, func(*cluster.Node) string {
		return "http://" + s.registry.Addr() + "/v2/" + repository + "/blobs/" + b.digest.String()
	}, nil)
}

// pullShoal has all peers read the blob through their nodes at once, and watches what the nodes hold.
func (s *swarm) pullShoal(ctx context.Context, b blob) (swarmPull, error) {
	hosts := slices.Concat(s.seeds, s.nodes)
	before := make([]int64, len(hosts))
	for i, n := range hosts {
		m, err := n.Metrics(ctx)
		if err != nil {
			return swarmPull{}, err
		}
		before[i] = int64(m.Sum("shoal_transfer_uploaded_bytes_total"))
	}
	run, err := s.pull(ctx, b, func(n *cluster.Node) string {
		return n.MirrorURL() + "/v2/" + repository + "/blobs/" + b.digest.String() + "?ns=" + s.registry.Addr()
	}, s.held)
	if err != nil {
		return run, err
	}
	for i, n := range hosts {
		m, err := n.Metrics(ctx)
		if err != nil {
			return run, err
		}
		name, _, _ := strings.Cut(n.Name(), "/")
		run.Uploads = append(run.Uploads, upload{name, int64(m.Sum("shoal_transfer_uploaded_bytes_total")) - before[i]})
	}
	return run, nil
}

// held returns how many bytes of blobs a node has fetched since it was started.
func (s *swarm) held(ctx context.Context, n *cluster.Node) (int64, error) {
	read, err := n.Read(ctx)
	return read["peer"] + read["source"] + read["local"], err
}

// watchEvery is the time between two looks at what a peer has.
const watchEvery = 250 * time.Millisecond

// pull has all peers read a URL each at once, and notes what they have meanwhile: as has tells, or as the readers got it.
func (s *swarm) pull(ctx context.Context, b blob, url func(*cluster.Node) string, has func(context.Context, *cluster.Node) (int64, error)) (swarmPull, error) {
	run := swarmPull{Series: make([]series, len(s.nodes))}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var watchers sync.WaitGroup
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range s.nodes {
		r := &countingReader{}
		name, _, _ := strings.Cut(n.Name(), "/")
		run.Series[i].name = name
		group.Go(func() error { return r.read(ctx, n, url(n), b) })
		look := func() (int64, error) { return r.count(), nil }
		if has != nil {
			base, err := has(ctx, n)
			if err != nil {
				return run, err
			}
			look = func() (int64, error) {
				now, err := has(watching, n)
				return now - base, err
			}
		}
		watchers.Go(func() { run.Series[i].watch(watching, start, look) })
	}
	err := group.Wait()
	run.Seconds = time.Since(start).Seconds()
	stop()
	watchers.Wait()
	for i := range run.Series {
		run.Series[i].add(run.Seconds, b.size)
	}
	return run, err
}

// watch notes what there is until ctx ends. A look that fails is left out.
func (s *series) watch(ctx context.Context, start time.Time, look func() (int64, error)) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if n, err := look(); err == nil {
				s.add(time.Since(start).Seconds(), n)
			}
		}
	}
}

func (s *series) add(at float64, n int64) {
	s.seconds, s.bytes = append(s.seconds, at), append(s.bytes, n)
}

// countingReader reads a blob, checks it, and knows how far it is.
type countingReader struct {
	mu sync.Mutex // guards n
	n  int64
}

func (r *countingReader) count() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n
}

// Write counts.
func (r *countingReader) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n += int64(len(p))
	return len(p), nil
}

func (r *countingReader) read(ctx context.Context, n *cluster.Node, url string, b blob) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := n.Host().Client().Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name(), err)
	}
	defer resp.Body.Close()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(hash, r), resp.Body); err != nil {
		return fmt.Errorf("%s: %s after %d bytes: %w", n.Name(), b.digest, r.count(), err)
	}
	if got := digest.NewDigest(digest.SHA256, hash); resp.StatusCode != http.StatusOK || got != b.digest {
		return fmt.Errorf("%s: %s, %d bytes with the digest %s, want %s", n.Name(), resp.Status, r.count(), got, b.digest)
	}
	return nil
}

func (r swarmBenchResult) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "peers\tblob\tlimit\tShoal\tof limit\tcopies\tplain\tcopies\tplain to Shoal")
	for _, c := range r.Cases {
		fmt.Fprintf(t, "%d\t%d MiB\t%.2f s\t%.2f s\t%.2f×\t%.2f\t%.2f s\t%.2f\t%.1f×\n", c.Peers, c.SizeBytes>>20, c.Limit, c.Shoal,
			c.Shoal/c.Limit, c.ShoalCopies, c.Plain, c.PlainCopies, c.Plain/c.Shoal)
	}
	return t.Flush()
}

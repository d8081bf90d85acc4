package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/hack/lab/cluster"
)

// repository is where random images are pushed.
const repository = "lab/random"

type broadcastConfig struct {
	shoal  string
	peers  int
	size   int64
	link   cluster.Rate
	bounds cluster.Bounds
	log    io.Writer
}

// broadcastResult is what the command prints. With several runs the figures are those of the run with the median
// makespan.
type broadcastResult struct {
	Peers             int     `json:"peers"`
	SizeBytes         int64   `json:"size_bytes"`
	LinkBitsPerSecond int64   `json:"link_bits_per_second"`
	MakespanSeconds   float64 `json:"makespan_seconds"` // from the first request to the last peer's last byte
	// LimitSeconds is what no way of spreading can beat: each peer's link has to carry the blob once, TCP's and
	// Ethernet's headers included. 0 without a limit.
	LimitSeconds     float64   `json:"limit_seconds"`
	Ratio            float64   `json:"ratio"`                 // makespan to limit
	OriginCopies     float64   `json:"origin_copies"`         // by the registry's access log
	CPUSecondsPerGiB float64   `json:"cpu_seconds_per_gib"`   // of all daemons, for each GiB that reached a reader
	PeakRSSBytes     int64     `json:"peak_rss_bytes"`        // of the largest daemon
	FirstByteSeconds float64   `json:"first_byte_seconds"`    // the slowest peer's
	Runs             int       `json:"runs"`                  //
	Makespans        []float64 `json:"all_makespans_seconds"` // of every run, in their order
}

func broadcastCommand() *cli.Command {
	return &cli.Command{
		Name:  "broadcast",
		Usage: "bring one random blob to many peers at once and compare with what the links allow",
		Description: "A registry, one seed, a scheduler and the peers, each on a link of the same rate. All peers ask their own\n" +
			"node's mirror for the blob at once, over HTTP, and check the digest of what they get.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "peers", Value: 8, Usage: "`NUMBER` of peers, the seed not counted"},
			&cli.StringFlag{Name: "size", Value: "256MiB", Usage: "`SIZE` of the blob"},
			linkFlag("200mbit"),
			&cli.StringFlag{Name: "memory", Usage: "bound the memory of each node to `SIZE`, its page cache included"},
			&cli.Float64Flag{Name: "cpus", Usage: "bound each node to `NUMBER` of processors"},
			&cli.IntFlag{Name: "runs", Value: 1, Usage: "`NUMBER` of runs, each from cold; the one with the median makespan is told"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
		},
		Action: func(ctx *cli.Context) error {
			size, errSize := cluster.ParseSize(ctx.String("size"))
			link, errLink := cluster.ParseRate(ctx.String("link"))
			if err := errors.Join(errSize, errLink); err != nil {
				return err
			}
			bounds := cluster.Bounds{CPUs: ctx.Float64("cpus")}
			if ctx.IsSet("memory") {
				var err error
				if bounds.Memory, err = cluster.ParseSize(ctx.String("memory")); err != nil {
					return err
				}
			}
			cfg := broadcastConfig{bounds: bounds, peers: ctx.Int("peers"), size: size, link: link, log: ctx.App.ErrWriter}
			var result broadcastResult
			err := withShoal(ctx, func(shoal string) (err error) {
				cfg.shoal = shoal
				result, err = broadcasts(ctx.Context, cfg, ctx.Int("runs"))
				return err
			})
			if err != nil {
				return err
			}
			if ctx.Bool("json") {
				return json.NewEncoder(ctx.App.Writer).Encode(result)
			}
			_, err = fmt.Fprintf(ctx.App.Writer, "%d peers, %d MiB: %.2f s, limit %.2f s (%.2f×), origin copies %.3f, CPU %.2f s/GiB, peak RSS %d MiB\n",
				result.Peers, result.SizeBytes>>20, result.MakespanSeconds, result.LimitSeconds, result.Ratio,
				result.OriginCopies, result.CPUSecondsPerGiB, result.PeakRSSBytes>>20)
			return err
		},
	}
}

// broadcasts runs broadcast several times and returns the run with the median makespan.
func broadcasts(ctx context.Context, cfg broadcastConfig, runs int) (broadcastResult, error) {
	if cfg.peers < 1 || runs < 1 {
		return broadcastResult{}, errors.New("--peers and --runs have to be at least 1")
	}
	if err := cluster.CheckTools("ip", "tc", "docker-registry"); err != nil {
		return broadcastResult{}, err
	}
	var results []broadcastResult
	var makespans []float64
	for i := range runs {
		r, err := broadcast(ctx, cfg)
		if err != nil {
			return broadcastResult{}, err
		}
		fmt.Fprintf(cfg.log, "run %d of %d: %.2f s, %.2f× the limit, %.3f origin copies\n", i+1, runs, r.MakespanSeconds, r.Ratio, r.OriginCopies)
		results = append(results, r)
		makespans = append(makespans, r.MakespanSeconds)
	}
	slices.SortFunc(results, func(a, b broadcastResult) int {
		return int((a.MakespanSeconds - b.MakespanSeconds) * 1e6)
	})
	median := results[(runs-1)/2]
	median.Runs, median.Makespans = runs, makespans
	return median, nil
}

// broadcast makes a cluster, moves the blob and removes the cluster.
func broadcast(ctx context.Context, cfg broadcastConfig) (result broadcastResult, err error) {
	c, err := cluster.New(ctx, cluster.Config{Shoal: cfg.shoal, Link: cfg.link, Log: cfg.log})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := newSwarm(ctx, c, swarmConfig{nodes: cfg.peers, bounds: cfg.bounds})
	if err != nil {
		return result, err
	}
	img, err := cluster.RandomImage(c.Dir(), uint64(time.Now().UnixNano()), cfg.size)
	if err != nil {
		return result, err
	}
	if err := s.registry.Push(ctx, repository, "1", img); err != nil {
		return result, err
	}
	blobs, err := layersOf(img)
	if err != nil {
		return result, err
	}
	blob := blobs[0]

	before := s.usage()
	pull, err := s.fetchAll(ctx, blob)
	if err != nil {
		return result, err
	}
	after := s.usage()
	served, err := s.registry.WaitServed(ctx, blob.digest, 0)
	if err != nil {
		return result, err
	}
	limit := cfg.link.Seconds(blob.size)
	result = broadcastResult{
		Peers: cfg.peers, SizeBytes: blob.size, LinkBitsPerSecond: int64(cfg.link),
		MakespanSeconds: pull.makespan.Seconds(), FirstByteSeconds: pull.firstByte.Seconds(), LimitSeconds: limit,
		OriginCopies:     float64(served) / float64(blob.size),
		CPUSecondsPerGiB: (after.cpu - before.cpu).Seconds() / (float64(blob.size) * float64(cfg.peers) / (1 << 30)),
		PeakRSSBytes:     after.peakRSS,
	}
	if limit > 0 {
		result.Ratio = result.MakespanSeconds / limit
	}
	return result, nil
}

type fetched struct{ makespan, firstByte time.Duration }

// fetchAll has every node read the blob through its mirror, all at once, and checks the digests.
func (s *swarm) fetchAll(ctx context.Context, b blob) (fetched, error) {
	firsts := make([]time.Duration, len(s.nodes))
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range s.nodes {
		group.Go(func() (err error) {
			firsts[i], err = s.fetch(ctx, n, b)
			return err
		})
	}
	err := group.Wait()
	return fetched{time.Since(start), slices.Max(firsts)}, err
}

// fetch reads a blob through a node's mirror, checks it, and returns when the first byte came.
func (s *swarm) fetch(ctx context.Context, n *cluster.Node, b blob) (time.Duration, error) {
	start := time.Now()
	body, err := s.open(ctx, n, "blobs/"+b.digest.String())
	if err != nil {
		return 0, err
	}
	defer body.Close()
	hash := sha256.New()
	if _, err := io.CopyN(hash, body, 1); err != nil {
		return 0, fmt.Errorf("%s: first byte of %s: %w", n.Name(), b.digest, err)
	}
	first := time.Since(start)
	size, err := io.Copy(hash, body)
	if err != nil {
		return 0, fmt.Errorf("%s: %s after %d bytes: %w", n.Name(), b.digest, size, err)
	}
	if got := digest.NewDigest(digest.SHA256, hash); got != b.digest {
		return 0, fmt.Errorf("%s: got %d bytes with the digest %s, want %s", n.Name(), size+1, got, b.digest)
	}
	return first, nil
}

// open asks a node's mirror for a part of the lab's repository, as containerd does.
func (s *swarm) open(ctx context.Context, n *cluster.Node, part string) (io.ReadCloser, error) {
	url := n.MirrorURL() + "/v2/" + repository + "/" + part + "?ns=" + s.registry.Addr()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.Host().Client().Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name(), err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s: %s; the end of %s:\n%s", n.Name(), url, resp.Status, n.Log(), n.Tail())
	}
	return resp.Body, nil
}
